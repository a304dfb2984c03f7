"""Training examples, when two of their texts are the same, and distinct texts on the disk."""

from __future__ import annotations

import os
import tempfile
import unicodedata
import weakref
from array import array
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import orjson

from gemb.io.atomic import write_all


class Text(NamedTuple):
    """A text with its title, without a prompt."""

    text: str
    title: str | None = None

    @property
    def words(self) -> str:
        """By which two are the same: the text, or the title where there is no text."""
        return self.text or self.title or ""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training data."""

    query: Text
    positive: Text
    negatives: tuple[Text, ...] = ()  # hard negatives of this query, hardest first
    place: str = ""  # for messages: pairs.jsonl:17


def digest(text: str) -> bytes:
    """Return 8 bytes, little-endian the id of a text.

    Raises:
        UnicodeEncodeError: it holds half a character.
    """
    return blake2b(text.encode(), digest_size=8).digest()


def folded(text: str) -> str:
    """Return the text without regard to case, white space and the form of characters (NFKC).

    So are texts compared where a copy does harm: training texts with those of the evaluation, mined
    negatives with the answers. The rows of a batch are told apart as they are written: what the
    model sees as two texts, it may learn to tell apart.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class TextSpool:
    """Texts in the order in which they came, each once; about 130 bytes of memory a text.

    Of texts that are the same once they are `folded`, whatever their titles, the first is kept.
    """

    def __init__(self) -> None:
        """Make a temporary file, which nobody else sees."""
        self._file, name = tempfile.mkstemp(prefix="gemb-texts-")
        os.unlink(name)  # noqa: PTH108
        weakref.finalize(self, os.close, self._file)
        self._ends = array("q", [0])
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: Text) -> int:
        """Return the text's number; a new one's is the next, from 0."""
        number = self._numbers.setdefault(same_text(text.words), len(self))
        if number == len(self):
            line = orjson.dumps(tuple(text))
            write_all(partial(os.write, self._file), line)
            self._ends.append(self._ends[-1] + len(line))
        return number

    def number(self, text: str) -> int:
        """Return the number of a text, -1 where it is not here."""
        return self._numbers.get(same_text(text), -1)

    def __getitem__(self, number: int) -> Text:
        start, end = self._ends[number], self._ends[number + 1]
        return Text(*orjson.loads(os.pread(self._file, end - start, start)))


def same_text(text: str) -> int:
    """Return 64 bits that are equal for texts that are equal once they are `folded`."""
    return int.from_bytes(digest(folded(text)), "little")
