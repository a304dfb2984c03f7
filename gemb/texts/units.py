"""The lines of a text as units, with how natural a cut before each is, packed into passages.

Text with headings (Markdown, reStructuredText, AsciiDoc, Org) is cut by its sections, code in any
language by indentation, blank lines and closing brackets; no more than needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MOST = 1200  # characters of a passage; a longer word alone has more
LEAST = 160  # a shorter passage joins its neighbour
LEAST_APART = 60  # one that stands apart, at a cut of level APART or more, may be shorter
APART = 9

_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？]")
# Where there is no space: after a mark, or after a character of a script that writes none.
_ANYWHERE = re.compile(
    r"[^\w\s]|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff\uf900-\ufaff]"
)
_SPACE = re.compile(r"\s+")


class Unit(NamedTuple):
    """A line that is not blank, or a part of a very long one."""

    start: int  # characters in the text
    end: int
    line: int  # its number, from 1
    level: int  # how natural a cut before it is; the highest is cut first


class Span(NamedTuple):
    """Units `first` to `end - 1`."""

    first: int
    end: int


def pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the parts, of at most MOST characters, of one line: by sentences, else by words."""
    parts: list[tuple[int, int]] = []
    while end - start > MOST:
        cut = _cut(text, start, end)
        if cut >= end:
            break
        if part := text[start:cut].rstrip():  # not of the space before a long word
            parts.append((start, start + len(part)))
        space = _SPACE.match(text, cut, end)
        start = space.end() if space else cut
    if start < end:
        parts.append((start, end))
    return parts


def _cut(text: str, start: int, end: int) -> int:
    """Return where a line that is too long is best cut."""
    window = start + MOST
    for pattern, least in ((_SENTENCE, MOST // 2), (_SPACE, 1), (_ANYWHERE, MOST // 2)):
        last = 0
        for match in pattern.finditer(text, start + least, window):
            last = match.end()
        if last:
            return last
    # After a word that is longer than a passage.
    matches = [pattern.search(text, window, end) for pattern in (_SPACE, _ANYWHERE)]
    return min((match.end() for match in matches if match), default=end)


def pack(units: Sequence[Unit], first: int, end: int, merge: int = MOST) -> list[Span]:
    """Return spans of at most MOST characters that cover these units.

    Cuts of the highest level come first; what is then too long is cut at the next one. Parts that
    are short join their neighbours on the same level, up to `merge` characters.
    """
    spans: list[Span] = []
    todo = [Span(first, end)] if first < end else []
    while todo:  # the next one last
        span = todo.pop()
        if _size(units, span) <= MOST or span.end - span.first == 1:
            spans.append(span)
            continue
        parts = _parts(units, span)
        todo.extend(reversed(_merged(units, parts, merge)))
    return _without_crumbs(units, spans)


def _size(units: Sequence[Unit], span: Span) -> int:
    return units[span.end - 1].end - units[span.first].start


def _parts(units: Sequence[Unit], span: Span) -> list[Span]:
    inner = range(span.first + 1, span.end)
    level = max(units[place].level for place in inner)
    cuts = [place for place in inner if units[place].level == level]
    return [Span(*pair) for pair in pairwise([span.first, *cuts, span.end])]


def _merged(units: Sequence[Unit], parts: list[Span], merge: int) -> list[Span]:
    """Join neighbours to spans that are about equally long, and no longer than `merge`."""
    merged: list[Span] = []
    run: list[Span] = []  # parts that are each short enough
    for part in [*parts, None]:
        if part is not None and _size(units, part) <= merge:
            run.append(part)
            continue
        merged += _even(units, run, merge)
        run = []
        if part is not None:
            merged.append(part)
    return merged


def _even(units: Sequence[Unit], run: list[Span], merge: int) -> list[Span]:
    if not run:
        return []
    whole = _size(units, Span(run[0].first, run[-1].end))
    wanted = whole / -(-whole // merge)
    spans = [run[0]]
    for part in run[1:]:
        now, with_it = spans[-1], Span(spans[-1].first, part.end)
        size, size_with_it = _size(units, now), _size(units, with_it)
        is_nearer = abs(size_with_it - wanted) <= abs(size - wanted)
        if size_with_it <= merge and is_nearer:
            spans[-1] = with_it
        else:
            spans.append(part)
    return spans


def _without_crumbs(units: Sequence[Unit], spans: list[Span]) -> list[Span]:
    """Join a span of a few words to what follows, else to what precedes."""
    kept: list[Span] = []
    for span in spans:
        if kept:
            joined = Span(kept[-1].first, span.end)
            least = LEAST_APART if units[span.first].level >= APART else LEAST
            is_crumb = min(_size(units, kept[-1]), _size(units, span)) < least
            if is_crumb and _size(units, joined) <= MOST:
                kept[-1] = joined
                continue
        kept.append(span)
    return kept


_HASH = re.compile(r"(#{1,6}|={1,5}|\*{1,6})[ \t]+(\S)(.*)$")
_CLOSING = " \t#="  # what may stand after the words of a heading
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
            level = _heading_level(line, is_after_gap, bool(fence), units, text)
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


def _heading_level(
    line: str, is_after_gap: bool, in_fence: bool, units: list[Unit], text: str
) -> int:
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
        return len(match[1]), (match[2] + match[3].rstrip(_CLOSING)).strip()
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


_MARK = re.compile(  # of a line that closes what is open, or of one that heads what follows
    r"([})\]]|</|(?:end|else|elif|elsif|except|finally|catch|fi|done|esac)\b)"
    r"|(@\w|#(?!include|define|if|else|end|!)|//|/\*|\*|--|;|\"\"\"$|\[\[?\w+\])"
)
CLOSES = 1  # group
TITLE_LINES = 3  # of the blocks around a passage
TITLE_CHARS = 72  # of each


def code_units(text: str) -> tuple[list[Unit], list[int]]:
    """Return the lines as units, and for each the unit whose block it is in (-1: none)."""
    units: list[Unit] = []
    around: list[int] = []
    open_: list[tuple[int, int]] = []  # indentation and unit of the blocks around this line
    is_after_gap = is_after_head = False
    before = 0  # indentation of the line before
    start = 0
    step = _step(text)
    for number, line in enumerate(text.split("\n"), 1):
        words = line.lstrip()
        if not words:
            is_after_gap = True
            start += len(line) + 1
            continue
        indent = len(line) - len(words)
        if indent and "\t" in line:
            indent += 3 * line.count("\t", 0, indent)
        mark = _MARK.match(words)
        closes = mark is not None and mark.lastindex == CLOSES
        level = _code_level(indent, before, step, closes, is_after_gap, is_after_head)
        while open_ and (open_[-1][0] > indent or (open_[-1][0] == indent and not closes)):
            open_.pop()
        parent = open_[-1][1] if open_ and open_[-1][0] < indent else -1
        if len(open_) > 1 and open_[-1][0] == indent:
            parent = open_[-2][1]
        if not closes and words[0] != "{" and (not open_ or open_[-1][0] < indent):
            open_.append((indent, len(units)))
        end = start + len(line.rstrip())
        if end - start <= MOST:
            units.append(Unit(start, end, number, level))
            around.append(parent)
        else:
            for place, (first, last) in enumerate(pieces(text, start, end)):
                units.append(Unit(first, last, number, 0 if place else level))
                around.append(parent)
        is_after_gap, before = False, indent
        is_after_head = mark is not None and not closes
        start += len(line) + 1
    return units, around


def _code_level(
    indent: int, before: int, step: int, closes: bool, is_after_gap: bool, is_after_head: bool
) -> int:
    """Return how well a passage may begin at a line of code.

    level 9  after a blank line, not indented: a new function, class, type
          8  after a blank line, one step in: a new method
       7, 6  after a blank line, deeper: a new step of a function
          5  not indented, after what is indented
    3, 2, 1  less indented than the line before, as much, more
          0  a line that ends what is open: `}`, `else:`, or the line under a comment or decorator
    """
    if closes:
        return 0
    if is_after_gap:
        return 9 - min(indent // step, 3)
    if is_after_head:
        return 0
    if indent == 0 and before > 0:
        return 5
    return 3 if indent < before else 2 if indent == before else 1


def _step(text: str) -> int:
    """Return how many columns a step of indentation has: 2 or 4."""
    twos = len(re.findall(r"^ {2}(?! )", text[:20_000], re.MULTILINE))
    fours = len(re.findall(r"^ {4}(?! )", text[:20_000], re.MULTILINE))
    return 2 if twos > fours else 4


def scope(text: str, units: Sequence[Unit], around: Sequence[int], place: int) -> list[str]:
    """Return the first lines of the blocks that a unit is in, the outermost first."""
    lines: list[str] = []
    while (place := around[place]) >= 0 and len(lines) < 16:
        unit = units[place]
        line = text[unit.start : unit.end].strip()
        lines.append(line[:TITLE_CHARS].rstrip(" {:(,"))
    return lines[-TITLE_LINES:][::-1]
