"""A text as passages of 800 to 1,200 characters, which keep their lines and cut no word."""

from __future__ import annotations

from typing import NamedTuple

VERSION = 1  # of the rules: another one makes other passages of the same text
KINDS = ("auto", "lines", "code", "markdown", "prose")


class Passage(NamedTuple):
    """A part of a text: `text[start:end]`, which begins and ends with no blank line."""

    start: int  # characters, not bytes
    end: int
    line: int  # of the first character, from 1
    last_line: int  # of the last character
    title: str | None  # for the document prompt: the file's name, the headings around it


def split(text: str, name: str, kind: str = "auto") -> list[Passage]:
    """Return the passages of a file's text, in order; they do not overlap.

    Args:
        text: all of the file, as `gemb.search.reading.read_text` gives it.
        name: the file's path or name; its end says the kind, and it stands in the titles.
        kind: one of KINDS; auto: by the name, then by the looks of the text.
    """
    raise NotImplementedError
