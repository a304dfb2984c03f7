"""tokenizer.json, read whole and checked: what gemb uses of it has the types that it must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.models.config import MOST_TOKENIZER, read_json
from gemb.models.token_probe import LONGEST_TOKEN, MARKS

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def read_tokenizer(path: Path) -> dict[str, Any]:
    """Return what tokenizer.json holds.

    `model` with `vocab` and `merges` is a BPE model's, `added_tokens` is a list, `normalizer` and
    `post_processor` are objects or null. An absent flag of an added token is false.

    Raises:
        UsageError: it is missing or broken, or no tokenizer by byte-pair encoding.
    """
    raw = read_json(path, MOST_TOKENIZER)
    _check(path, "model", raw.get("model"), lambda model: isinstance(model, dict))
    if raw["model"].get("type") != "BPE":
        raise UsageError(f"{path}: a {raw['model'].get('type')} model; Gemma's tokenizer is BPE")
    _check(path, "model.vocab", raw["model"].get("vocab"), _is_vocabulary)
    _check(path, "model.merges", raw["model"].get("merges"), _are_merges)
    _check(path, "added_tokens", raw.setdefault("added_tokens", []), _are_added)
    for key, is_right in (("normalizer", _is_object), ("post_processor", _is_processor)):
        if raw.get(key) is not None:
            _check(path, key, raw[key], is_right)
    for token in raw["added_tokens"]:
        token.update({flag: token.get(flag, False) for flag in _FLAGS})
    return raw


def check_marks(path: Path, raw: dict[str, Any]) -> None:
    """Refuse a tokenizer that would not find one of Gemma's added tokens as it stands in a text.

    Raises:
        UsageError: its vocabulary has such a token, and the added tokens do not.
    """
    added = {token["content"] for token in raw["added_tokens"]}
    for mark in MARKS:
        if mark in raw["model"]["vocab"] and mark not in added:
            raise UsageError(f"{path}: {mark} is not among the added tokens; fetch the file again")


def merge_pair(merge: list[str] | str) -> tuple[str, str]:
    """Return a merge's two tokens; older files hold them in one string."""
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    return left, right


def _check(path: Path, key: str, value: object, is_right: Callable[[Any], bool]) -> None:
    if not is_right(value):
        raise UsageError(f"{path}: {key} is not what a tokenizer has there; fetch the file again")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_vocabulary(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(map(_is_id, value.values()))
        and max(map(len, value), default=0) <= LONGEST_TOKEN
    )


def _are_merges(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_merge, value))


def _is_merge(value: object) -> bool:
    parts = value.split(" ") if isinstance(value, str) else value
    return isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) for p in parts)


def _are_added(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_added, value))


def _is_added(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_id(value.get("id"))
        and isinstance(value.get("content"), str)
        and all(isinstance(value.get(flag, False), bool) for flag in _FLAGS)
    )


def _is_processor(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    special = value.get("special_tokens", {})
    return (
        isinstance(special, dict)
        and all(_is_object(token) for token in special.values())
        and all(
            isinstance(token.get("ids"), list) and all(map(_is_id, token["ids"]))
            for token in special.values()
        )
        and _are_parts(value.get("single", []))
    )


def _are_parts(value: object) -> bool:
    """Return whether it is a template: `[{"SpecialToken": {"id": "<bos>"}}, ...]`."""
    return isinstance(value, list) and all(
        isinstance(part, dict) and len(part) == 1 and all(map(_is_object, part.values()))
        for part in value
    )
