"""Text with headings as sections: Markdown, reStructuredText, AsciiDoc, Org."""

from __future__ import annotations

import re
from typing import NamedTuple

from gemb.search.packing import Unit, pieces

_HASH = re.compile(r"(#{1,6}|={1,5}|\*{1,6})[ \t]+(\S.*?)[ \t#=]*$")
_UNDERLINE = re.compile(r"([=\-~^\"`'*+#.:_])\1{2,}$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s")
_MARKS = {"=": 1, "-": 2}  # underlines; the others are a level lower


class Section(NamedTuple):
    """A heading with what is under it, to the next heading of any level."""

    first: int  # unit
    path: tuple[str, ...]  # the headings around it, its own last; empty before the first one


def heading_units(text: str, marks: str) -> tuple[list[Unit], list[Section]]:
    """Return the lines as units, and the sections that they make.

    Args:
        text: all of it.
        marks: which characters begin a heading: `#` of Markdown, `=` of AsciiDoc, `*` of Org,
            or none. Underlined headings always count.
    """
    lines = text.split("\n")
    units: list[Unit] = []
    outline = _Outline()
    fence = ""
    is_after_gap = False
    skip = _front_matter(lines)
    start = 0
    for number, line in enumerate(lines):
        end = start + len(line.rstrip())
        if end > start:
            if not fence and number >= skip and (heading := _heading(lines, number, marks)):
                outline.add(len(units), *heading)
            level = _level(line, is_after_gap, bool(fence), units, text)
            for place, (first, last) in enumerate(pieces(text, start, end)):
                units.append(Unit(first, last, number + 1, 0 if place else level))
            fence = _fence_after(line, fence)
        is_after_gap = end == start
        start += len(line) + 1
    return units, outline.sections


class _Outline:
    """The sections so far."""

    def __init__(self) -> None:
        self.sections = [Section(0, ())]
        self._path: list[tuple[int, str]] = []

    def add(self, unit: int, depth: int, words: str) -> None:
        while self._path and self._path[-1][0] >= depth:
            self._path.pop()
        self._path.append((depth, words))
        if self.sections[-1].first == unit:
            self.sections.pop()
        self.sections.append(Section(unit, tuple(words for _, words in self._path)))


def _fence_after(line: str, fence: str) -> str:
    """Return the marks of the fence that is open after a line, empty where none is."""
    mark = _FENCE.match(line)
    if not mark:
        return fence
    if not fence:
        return mark[1]
    return "" if mark[1].startswith(fence) and not line.strip(" `~") else fence


def _level(line: str, is_after_gap: bool, in_fence: bool, units: list[Unit], text: str) -> int:
    if is_after_gap:
        return 4 if in_fence else 6
    if _ITEM.match(line):
        return 3
    ends_sentence = bool(units) and text[units[-1].end - 1] in ".!?:。！？"
    return 2 if ends_sentence else 1


def _heading(lines: list[str], number: int, marks: str) -> tuple[int, str] | None:
    """Return level and words of the heading that begins in a line."""
    line = lines[number]
    if line[0] in marks and (match := _HASH.match(line)) and match[1][0] in marks:
        return len(match[1]), match[2].strip()
    before = lines[number - 1].strip() if number else ""
    if number + 1 < len(lines) and not before:
        under = lines[number + 1].rstrip()
        if _UNDERLINE.match(under) and not _UNDERLINE.match(line.rstrip()):
            words = line.strip()
            if len(under) >= min(len(words), 8) and not line[0].isspace() and "|" not in words:
                return _MARKS.get(under[0], 3), words
        if _UNDERLINE.match(line.rstrip()) and number + 2 < len(lines):  # a line above it, too
            words, under = lines[number + 1].strip(), lines[number + 2].rstrip()
            if under == line.rstrip() and words and not _UNDERLINE.match(words):
                return 0 if line[0] in "=#*" else _MARKS.get(line[0], 3), words
    return None


def _front_matter(lines: list[str]) -> int:
    """Return how many lines at the beginning are settings between `---`."""
    if lines and lines[0].rstrip() == "---":
        for number, line in enumerate(lines[1:100], 1):
            if line.rstrip() in ("---", "..."):
                return number + 1
    return 0
