"""Choose the tokens to keep, and rewrite the tokenizer's files for them.

Byte-pair encoding reaches a token through smaller ones: `▁the` is joined from `▁t` and `he`, say.
A token is kept together with every token on its way, down to its characters. Then a text whose
tokens were all kept is cut exactly as before, since each of its joins is still there and no new
one is; a text that had others is cut into smaller pieces, at worst into bytes, and still comes
back whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemb.datasets.plain_texts import Texts
from gemb.errors import UsageError
from gemb.io.notes import note
from gemb.models.checkpoint import Checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.tokenizer import load_tokenizer
from gemb.models.tokenizer_json import merge_pair, read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


_FIRST = 5  # pad, eos, bos, unk, mask: models and programs know them by these ids
_ASCII = [chr(code) for code in range(33, 127)]


@dataclass(frozen=True)
class SmallerTokenizer:
    """The tokenizer's files, and which of the old tokens they hold."""

    kept: NDArray[np.int64]  # old ids, ascending: the new id of kept[i] is i
    files: Mapping[str, Mapping[str, Any]]  # file name -> JSON

    def write(self, folder: Path) -> None:
        """Write the files."""
        for name, value in self.files.items():
            write_json(folder / name, value, None if name == "tokenizer.json" else 2)


def smaller_tokenizer(
    checkpoint: Checkpoint, size: int, texts: Sequence[Texts]
) -> SmallerTokenizer:
    """Return a tokenizer of exactly `size` tokens: those that the texts use most.

    Each source counts alike, however long it is: the use of a token is the mean of its shares. Of
    40 million tokens of technical and plain English, plain counting lost `▁Thursday` to the words
    of the longest files, and 1.5 % more of the tokens of everyday sentences.

    Always kept: special tokens, the 256 bytes, ASCII, and what the model's prompts are made of.
    Where the texts use fewer tokens, the tokenizer's own order fills the rest.

    Raises:
        UsageError: the size is too small or too large, a text cannot be read, or the tokenizer is
            not of Gemma's kind.
    """
    folder, rows = checkpoint.folder, checkpoint.config.vocab_size
    path = checkpoint.file("tokenizer.json")
    tokenizer = load_tokenizer(path, rows)
    raw = read_tokenizer(path)
    if not texts:
        raise UsageError(f"{folder}: no text to count tokens in")
    if size > rows:
        raise UsageError(f"{folder}: has {rows} tokens; {size} cannot be kept")
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < rows]
    ways = _Ways(raw)
    prompts = tokenizer.encode_batch_fast(sorted(set(checkpoint.prompts.values())))
    kept = _always(raw, ways, [i for encoding in prompts for i in encoding.ids])
    if len(kept) > size:
        raise UsageError(f"{folder}: {len(kept)} tokens are always kept; {size} are too few")
    counts = _counts(tokenizer, texts, rows)
    shares = (counts / counts.sum(axis=1, keepdims=True)).sum(axis=0)
    # Of equal use the lower id, which was the more frequent in training; <unused17> and its like,
    # which are found in a text only as they stand, come last.
    idle = np.isin(np.arange(rows), list(ways.direct)) & (shares == 0)
    for token in np.lexsort((np.arange(rows), idle, -shares)).tolist():
        if len(kept) == size:
            break
        way = ways.to(token)
        if way and len(kept | way) <= size:
            kept |= way
    ids = np.array(sorted(kept), np.int64)
    if len(ids) < size or list(ids[:_FIRST]) != list(range(_FIRST)):
        raise UsageError(f"{folder}: no {size} tokens of it can be reached and keep their ids")
    covered = counts[:, ids].sum() / counts.sum()
    note(f"{size} of {rows} tokens cover {covered:.2%} of {counts.sum():,} in the texts")
    return SmallerTokenizer(ids, _files(checkpoint, raw, ids))


class _Ways:
    """The tokens on the way to each token."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.ids: dict[str, int] = raw["model"]["vocab"]
        self.tokens = {i: token for token, i in self.ids.items()}
        self.ranks = {merge_pair(merge): i for i, merge in enumerate(raw["model"]["merges"])}
        self.direct = {
            token["id"]
            for token in raw["added_tokens"]
            # Found in the text as they stand, but runs of spaces: they are joined, like words.
            if token["content"].strip("▁")
        }

    def to(self, token: int) -> set[int]:
        """Return the token and all on the way to it, or nothing where no text leads to it."""
        if token in self.direct:
            return {token}
        text = self.tokens.get(token)
        if text is None:
            return set()
        symbols = list(text)
        seen = set(symbols)
        while len(symbols) > 1:
            pairs = [self.ranks.get(pair, -1) for pair in pairwise(symbols)]
            known = [rank for rank in pairs if rank >= 0]
            if not known:
                return set()
            at = pairs.index(min(known))
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
            seen.add(symbols[at])
        return {self.ids[symbol] for symbol in seen} if seen <= self.ids.keys() else set()


def _always(raw: Mapping[str, Any], ways: _Ways, prompt_ids: Iterable[int]) -> set[int]:
    """Return the ids that every cut keeps."""
    special = [token["id"] for token in raw["added_tokens"] if token["special"]]
    byte_tokens = [ways.ids[f"<0x{byte:02X}>"] for byte in range(256)]
    kept = {*range(_FIRST), *special, *byte_tokens}
    characters = [ways.ids[character] for character in [*_ASCII, "▁"] if character in ways.ids]
    for token in [*characters, *prompt_ids]:
        kept |= ways.to(token)
    return kept


def _counts(tokenizer: Tokenizer, texts: Sequence[Texts], rows: int) -> NDArray[np.int64]:
    """Return how often each source uses each token, int64 [sources, rows]."""
    counts = np.zeros((len(texts), rows), np.int64)
    for row, source in zip(counts, texts, strict=True):
        for batch in source.batches():
            # The prompts end with a space: the first word of a text has a space before it.
            encoded = tokenizer.encode_batch_fast(
                [f" {text}" for text in batch], add_special_tokens=False
            )
            ids = np.concatenate([np.array(encoding.ids, np.int64) for encoding in encoded])
            row += np.bincount(ids, minlength=rows)
    return counts


def _files(
    checkpoint: Checkpoint, raw: dict[str, Any], ids: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Return the tokenizer's files for these tokens; `raw` is used up."""
    new = {int(old): i for i, old in enumerate(ids)}
    model = raw["model"]
    model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
    pairs = ((merge, merge_pair(merge)) for merge in model["merges"])
    vocab = model["vocab"]
    model["merges"] = [
        merge
        for merge, (left, right) in pairs
        if left in vocab and right in vocab and left + right in vocab
    ]
    raw["added_tokens"] = [
        token | {"id": new[token["id"]]} for token in raw["added_tokens"] if token["id"] in new
    ]
    for token in (raw.get("post_processor") or {}).get("special_tokens", {}).values():
        token["ids"] = [new[i] for i in token["ids"]]
    files = {"tokenizer.json": raw}
    added = {token["content"]: token for token in raw["added_tokens"]}
    known = added.keys() | vocab.keys()
    path = checkpoint.file("tokenizer_config.json")
    if path.is_file():
        config = _without(read_json(path), known)
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(token["id"]): {key: token[key] for key in token if key != "id"}
                for token in raw["added_tokens"]
            }
        files["tokenizer_config.json"] = config
    path = checkpoint.file("special_tokens_map.json")
    if path.is_file():
        files["special_tokens_map.json"] = _without(read_json(path), known)
    path = checkpoint.file("added_tokens.json")
    if path.is_file():
        # Beyond the table in EmbeddingGemma's: an image token that a text model has no vector for.
        old = {token: i for token, i in read_json(path).items() if type(i) is int and i in new}
        if old:
            files["added_tokens.json"] = {token: new[i] for token, i in old.items()}
    return files


def _without(config: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return the settings without those that name a token which is no more."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key == "extra_special_tokens" and isinstance(value, dict):
            value = _without(value, known)
        name = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(name, str) and name not in known:
            continue
        kept[key] = value
    return kept
