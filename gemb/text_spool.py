"""Distinct texts on the disk, by number: the candidates of a search, however many."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array

import orjson

from gemb.examples import Text
from gemb.same_text import digest, folded


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
        number = self._numbers.setdefault(same_text(text.text), len(self))
        if number == len(self):
            line = orjson.dumps(tuple(text))
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
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
