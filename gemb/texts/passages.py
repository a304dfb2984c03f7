"""A text as passages of 800 to 1,200 characters, which keep their lines and cut no word."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from typing import NamedTuple

from gemb.texts.notebooks import SUFFIX as NOTEBOOK
from gemb.texts.units import (
    LEAST,
    MOST,
    Section,
    Span,
    Unit,
    code_units,
    heading_units,
    pack,
    scope,
)

VERSION = 3  # of the rules: another one makes other passages of the same text

_HEADED = {".md": "#", ".markdown": "#", ".mkd": "#", ".mdx": "#", ".rmd": "#", ".qmd": "#"}
_HEADED |= {".adoc": "=", ".asciidoc": "=", ".org": "*", ".rst": "", ".rest": "", ".txt": ""}
_LOOKED_AT = 20_000  # characters, to tell code from prose
_CODE_LINE = re.compile(r"[ \t]+\S|.*[{};,()\[\]>:\\=]$|[#@<\[{(]|\w+[ \t]*[=({:]")
MERGE_CODE = MOST
MERGE_SECTIONS = 400  # characters: shorter sections share a passage


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
        text: all of the file, as `gemb.texts.walk.read_text` gives it.
        name: the file's path or name; its end says the kind, and it stands in the titles.
        kind: one of `gemb.texts.PASSAGE_KINDS`; auto: by the name, then by the looks of the text.
    """
    name = os.path.basename(name)  # noqa: PTH119
    name = name.encode(errors="surrogateescape").decode(errors="replace")  # the model takes UTF-8
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if kind == "auto":
        is_code = suffix == NOTEBOOK or (suffix not in _HEADED and _is_code(text))
        kind = "code" if is_code else "markdown" if suffix in _HEADED else "prose"
    match kind:
        case "lines":
            return _lines(text)
        case "code":
            return _code(text, name)
        case "markdown":
            return _headed(text, name, _HEADED.get(suffix, "#"))
        case "prose":
            return _headed(text, name, "")
    raise AssertionError(kind)


def _is_code(text: str) -> bool:
    """Return whether most lines look like code: indented, or with its marks at their ends."""
    lines = [line for line in text[:_LOOKED_AT].split("\n") if line.strip()]
    if text.startswith("#!"):
        return True
    return 2 * sum(_CODE_LINE.match(line) is not None for line in lines) > len(lines)


def _lines(text: str) -> list[Passage]:
    passages: list[Passage] = []
    start = 0
    for number, line in enumerate(text.split("\n"), 1):
        words = line.strip()
        if words:
            first = start + line.index(words[0])
            passages.append(Passage(first, first + len(words), number, number, None))
        start += len(line) + 1
    return passages


def _code(text: str, name: str) -> list[Passage]:
    units, around = code_units(text)
    spans = pack(units, 0, len(units), MERGE_CODE)
    return [
        _passage(units, span, " › ".join([name, *scope(text, units, around, span.first)]))
        for span in spans
    ]


def _headed(text: str, name: str, marks: str) -> list[Passage]:
    units, sections = heading_units(text, marks)
    passages: list[Passage] = []
    for span, path in _sections(units, sections):
        title = " › ".join([name, *path])
        passages += [_passage(units, part, title) for part in pack(units, span.first, span.end)]
    return passages


def _sections(units: list[Unit], sections: list[Section]) -> list[tuple[Span, tuple[str, ...]]]:
    """Return the sections; neighbours that are short are joined, under what they share."""
    joined: list[tuple[Span, tuple[str, ...]]] = []
    ends = [section.first for section in sections[1:]] + [len(units)]
    for section, end in zip(sections, ends, strict=True):
        if section.first == end:
            continue
        if joined:
            (first, last), path = joined[-1]
            is_head = path == section.path[: len(path)]  # this section is inside the one before
            if is_head and units[last - 1].end - units[first].start < LEAST:
                joined[-1] = Span(first, end), section.path
                continue
            size = units[end - 1].end - units[first].start
            shared = _shared(path, section.path)
            if size <= MERGE_SECTIONS and shared:
                joined[-1] = Span(first, end), shared
                continue
        joined.append((Span(section.first, end), section.path))
    return joined


def _shared(path: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Return what two paths of headings begin with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))
    return tuple(heading for heading, _ in same)


def _passage(units: list[Unit], span: Span, title: str) -> Passage:
    first, last = units[span.first], units[span.end - 1]
    return Passage(first.start, last.end, first.line, last.line, title)
