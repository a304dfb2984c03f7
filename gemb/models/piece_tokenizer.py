"""Gemma's tokenizer for many texts: pieces that return are looked up, new ones are tokenized.

A piece is a word with the spaces before it, a run of signs, or of newlines. No token of Gemma's
spans two of them, so its ids are the same alone and in a text. Of source code four pieces of five
came before, and a look-up takes a tenth of the library's time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gemb.arrays import TokenIds

MOST_PIECES = 1 << 19  # that are remembered, in about 100 MB
# Of these: a line of Chinese is one piece, and so is a text with a special token.
MOST_CHARS = 1 << 24
# Of a pattern that takes no time to make; Gemma's have 6,400 names of up to 20 characters.
MOST_SPECIAL, LONGEST_SPECIAL = 20_000, 64
_SPACE = "▁"
_ASCII = r" *+(?:[A-Za-z]++|[^A-Za-z\n ]++)|\n++| ++"
# Typographic marks share tokens with letters and with ASCII's marks: such words stay whole.
# They begin where a word does, so that a long word of ASCII is looked through once.
_OTHER = r"(?: ++|(?<![^\n ]))[^\n \x80-\U0010ffff]*+[\x80-\U0010ffff][^\n ]*"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class _Numbers(dict[str, int]):
    """A number for each piece; a new one gets the next."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        self.new.append(piece)
        number = self[piece] = len(self)
        return number


class _Grown:
    """An array that grows at its end."""

    def __init__(self) -> None:
        self._values: NDArray[np.int32] = np.empty(1024, np.int32)
        self._size = 0

    @property
    def values(self) -> NDArray[np.int32]:
        return self._values[: self._size]

    def add(self, values: Sequence[int]) -> None:
        end = self._size + len(values)
        if end > len(self._values):
            self._values = np.concatenate([self.values, np.empty(2 * end, np.int32)])
        self._values[self._size : end] = values
        self._size = end


class PieceTokenizer:
    """Texts to ids, for any number of threads."""

    def __init__(self, tokenizer: Tokenizer, special: Sequence[str]) -> None:
        """See `PieceTokenizer.of`; a text with one of `special` in it is one piece."""
        self._tokenizer = tokenizer
        self._special = re.compile(any_of(special))
        self._ascii, self._any = re.compile(_ASCII), re.compile(f"{_OTHER}|{_ASCII}")
        self._lock = Lock()
        self._forget()

    @staticmethod
    def of(tokenizer: Tokenizer) -> PieceTokenizer | None:
        """Return it for a tokenizer of the library's; None: some of its tokens span pieces."""
        added = tokenizer.get_added_tokens_decoder().values()
        if not _is_plain(tokenizer) or any(_has_rules(token) for token in added):
            return None
        names = {token.content for token in added}
        is_ascii, is_other = (re.compile(pattern).fullmatch for pattern in (_ASCII, _OTHER))
        for token in tokenizer.get_vocab():
            if token in names or token in _BYTES:
                continue
            text = token.replace(_SPACE, " ")
            if not (is_ascii if text.isascii() else is_other)(text):
                return None
        special = [name for name in names if name.strip("\n" + _SPACE)]
        if len(special) > MOST_SPECIAL or any(len(name) > LONGEST_SPECIAL for name in special):
            return None
        return PieceTokenizer(tokenizer, [_SPACE, *special])

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], without those around it; nothing is cut."""
        if not texts:
            return []
        with self._lock:
            if len(self._numbers) > MOST_PIECES or self._chars > MOST_CHARS:
                self._forget()
            try:
                return self._ids(texts)
            except BaseException:  # pieces may have numbers, and no ids
                self._forget()
                raise

    def _ids(self, texts: Sequence[str]) -> list[TokenIds]:
        numbers = self._numbers
        pieces = [[*map(numbers.__getitem__, self._pieces(text))] for text in texts]
        self._learn()
        ends = np.cumsum([len(some) for some in pieces])
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, ends[-1])
        counts = self._counts.values[flat]
        stops = np.cumsum(counts)
        ids = self._tokens.values[
            np.repeat(self._starts.values[flat] - stops + counts, counts) + np.arange(counts.sum())
        ]
        stops = np.concatenate([[0], stops])[np.concatenate([[0], ends])]
        return [ids[start:stop] for start, stop in pairwise(stops)]

    def _pieces(self, text: str) -> list[str]:
        if self._special.search(text):
            return [text]
        if text.isascii():
            return self._ascii.findall(text)
        head, end, rest = text.partition("\n")  # a title, it may be, above ASCII
        if not rest.isascii():
            return self._any.findall(text)
        return self._any.findall(head) + self._ascii.findall(end + rest)

    def _learn(self) -> None:
        """Tokenize the pieces that are new."""
        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        counts = np.array([len(some) for some in ids], np.int32)
        self._starts.add((len(self._tokens.values) + np.cumsum(counts) - counts).tolist())
        self._counts.add(counts.tolist())
        self._tokens.add([*chain.from_iterable(ids)])
        self._chars += sum(map(len, new))

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._tokens, self._starts, self._counts = _Grown(), _Grown(), _Grown()
        self._chars = 0  # of all pieces


def any_of(names: Iterable[str]) -> str:
    """Return the pattern of a text that begins with one of some names, none of them empty.

    It branches where the names differ, so that a place in a text is looked at once, however many
    names there are: models have thousands of them, which begin alike.
    """
    by_first: dict[str, set[str]] = {}
    for name in names:
        by_first.setdefault(name[0], set()).add(name[1:])
    # Where a name ends, the longer ones need not be looked for.
    branches = [
        re.escape(first) + ("" if "" in rests else any_of(rests))
        for first, rests in sorted(by_first.items())
    ]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _is_plain(tokenizer: Tokenizer) -> bool:
    """Return whether spaces become ▁, and then pairs are joined by rank alone."""
    model, normalizer, splitter = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
    split = json.loads(splitter.__getstate__()) if splitter else None
    return (
        type(model).__name__ == "BPE"
        and not (model.dropout or model.ignore_merges)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and model.byte_fallback
        # A character that lacks a byte is unknown, and of several in a row one token is made.
        and all(tokenizer.token_to_id(byte) is not None for byte in _BYTES)
        and normalizer is not None
        and json.loads(normalizer.__getstate__()) == _NORMALIZER
        # A split at spaces, of which the normalizer has left none.
        and (split is None or (split["type"], split.get("pattern")) == ("Split", {"String": " "}))
    )


def _has_rules(token: object) -> bool:
    rules = ("single_word", "lstrip", "rstrip", "normalized")
    return any(getattr(token, rule) for rule in rules)
