"""What of a tokenizer.json decides about a text's ids, and how models differ in it.

The library that saves a tokenizer writes the rest as it likes: whether a token is `special`, how
ids become a text again, padding, the order of keys, the form of merges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemb.models.tokenizer_json import merge_pair, read_tokenizer

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token, where it is found
_SHOWN = 2  # differing entries that are named
_LONGEST = 60  # characters of a setting that is shown as it stands


def tokenizer_parts(path: Path, rows: int) -> dict[str, Any]:
    """Return what decides about ids, by name; empty where there is no such file.

    Args:
        path: of a tokenizer.json.
        rows: tokens in the table; those beyond it have no vector and are left out.

    Raises:
        UsageError: it is no tokenizer.
    """
    if not path.exists():
        return {}
    raw = read_tokenizer(path)
    model = raw["model"]
    merges = [" ".join(merge_pair(merge)) for merge in model["merges"]]
    vocabulary = {f"{token!r}={i}" for token, i in model["vocab"].items() if i < rows}
    added = {_added(token) for token in raw["added_tokens"] if token["id"] < rows}
    after = raw.get("post_processor") or {}
    if isinstance(after, dict) and after.get("type") == "TemplateProcessing":
        after = {key: after.get(key) for key in ("type", "single", "special_tokens")}
    settings = {key: model[key] for key in sorted(model) if key not in ("vocab", "merges")}
    return {
        "vocabulary": vocabulary,
        "added tokens": added,
        "merges": merges,
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": raw.get("pre_tokenizer"),
        "post_processor": after,
        "model": {key: value for key, value in settings.items() if value},
    }


def _added(token: dict[str, Any]) -> str:
    flags = [flag for flag in _FLAGS if token.get(flag)]
    return " ".join([f"{token['content']!r}={token['id']}", *flags])


def in_words(values: Sequence[Any]) -> list[str]:
    """Return what differs between the values of one part, of each model."""
    if all(isinstance(value, set) for value in values):
        shared = set.intersection(*values)
        return [_entries(sorted(value - shared), len(value)) for value in values]
    if all(isinstance(value, list) for value in values):
        first = next(
            (i for i, same in enumerate(zip(*values, strict=False)) if len(set(same)) > 1),
            min(map(len, values)),
        )
        return [
            f"{len(value)}, number {first + 1} is {value[first]!r}"
            if first < len(value)
            else f"{len(value)}"
            for value in values
        ]
    return [_setting(value) for value in values]


def _entries(own: Sequence[str], count: int) -> str:
    more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
    return f"{count}" + (f", with {', '.join(own[:_SHOWN])}{more}" if own else "")


def _setting(value: Any) -> str:  # noqa: ANN401
    import orjson

    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if len(text) <= _LONGEST:
        return text.decode()
    return hashlib.sha256(text).hexdigest()[:8]
