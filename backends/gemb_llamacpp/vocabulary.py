"""From tokenizer.json to llama.cpp's vocabulary: tokens, types and scores.

transformers runs Gemma's tokenizer as byte-pair encoding: of all neighbours that have a merge, the
one of the lowest rank joins first. llama.cpp runs it as SentencePiece does: of all neighbours
whose join is a token, the one of the highest score joins first, the leftmost of equals. The two
give the same ids where (a) every split of a token into two tokens has a merge, and (b) a token's
merges stand together, so that ranks of pairs are ranks of tokens. Gemma's merges were made so from
SentencePiece's scores (transformers `SentencePieceExtractor`). Runs of newlines, spaces and tabs
had equal scores there, so their merges are interleaved; they get equal scores here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gemb.errors import UsageError
from gemb.models.config import read_json

# llama.cpp's `llama_token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_NOT_GEMMAS = "{path}: {what}; gemb writes GGUF for Gemma's tokenizer alone"


@dataclass(frozen=True)
class Vocabulary:
    """What the `tokenizer.ggml.*` arrays hold, by id, and the tokens that have a role."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    pad: int
    eos: int
    bos: int
    unk: int
    mask: int | None


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Return the vocabulary of the folder's tokenizer.json.

    Args:
        folder: the model folder.
        rows: tokens in the embedding table. An added token beyond it is left out: Gemma 3's
            `<image_soft_token>` is one, and a text model has no vector for it.

    Raises:
        UsageError: llama.cpp could not give the same ids as this tokenizer.
    """
    path = folder / "tokenizer.json"
    raw = read_json(path)
    model = cast("dict[str, Any]", raw.get("model") or {})
    _check_kind(path, raw, model)
    ids = cast("dict[str, int]", model["vocab"])
    added = {token["content"]: token for token in raw["added_tokens"] if token["id"] < rows}
    by_id = {i: token for token, i in ids.items()}
    by_id |= {entry["id"]: token for token, entry in added.items()}
    if len(by_id) != rows or max(by_id) != rows - 1 or len(set(by_id.values())) != rows:
        raise UsageError(f"{path}: {len(by_id)} tokens, but the embedding table has {rows} rows")
    tokens = [by_id[i] for i in range(rows)]
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    if missing:
        raise UsageError(_NOT_GEMMAS.format(path=path, what=f"no byte token <0x{missing[0]:02X}>"))
    scores = _scores(path, ids, model["merges"])
    roles = {name: by_id_of(path, ids, f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
    return Vocabulary(
        tokens=tokens,
        types=[_type(token, added) for token in tokens],
        scores=[scores.get(token, 0.0) for token in tokens],
        mask=ids.get("<mask>"),
        **roles,
    )


def by_id_of(path: Path, ids: dict[str, int], token: str) -> int:
    """Return a token's id, or refuse a tokenizer without it."""
    if token not in ids:
        raise UsageError(_NOT_GEMMAS.format(path=path, what=f"no token {token}"))
    return ids[token]


def _check_kind(path: Path, raw: dict[str, Any], model: dict[str, Any]) -> None:
    normalizer = raw.get("normalizer") or {}
    single = (raw.get("post_processor") or {}).get("single") or []
    around = [next(iter(part.values())).get("id") for part in single]
    wrong = {
        f"a {model.get('type')} model": model.get("type") != "BPE",
        "no byte fallback": not model.get("byte_fallback"),
        "dropout": bool(model.get("dropout")),
        "ignore_merges": bool(model.get("ignore_merges")),
        f"normalizer {normalizer.get('type')}": (
            (normalizer.get("pattern"), normalizer.get("content")) != ({"String": " "}, "▁")
        ),
        f"tokens around a text: {around}": around != ["<bos>", "A", "<eos>"],
        "an added token that takes white space with it": any(
            token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"]
            for token in raw.get("added_tokens") or []
        ),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(_NOT_GEMMAS.format(path=path, what=what))


def _type(token: str, added: dict[str, Any]) -> int:
    if token == "<unk>":
        return UNKNOWN
    if token in added:
        return CONTROL if added[token]["special"] else USER_DEFINED
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return NORMAL


def _scores(path: Path, ids: dict[str, int], merges: list[Any]) -> dict[str, float]:
    """Return the score of every token that has a merge, the first to be joined highest."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    count: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        token = left + right
        first.setdefault(token, rank)
        last[token] = rank
        count[token] = count.get(token, 0) + 1
    for token in ids:
        splits = sum(token[:i] in ids and token[i:] in ids for i in range(1, len(token)))
        if splits != count.get(token, 0):
            what = f"token {token!r} has {splits} splits and {count.get(token, 0)} merges"
            raise UsageError(_NOT_GEMMAS.format(path=path, what=what))
    scores: dict[str, float] = {}
    group, end = -1, -1
    for token, rank in first.items():  # in the order of the ranks
        if rank > end:
            group += 1
        end = max(end, last[token])
        scores[token] = -float(group)
    return scores
