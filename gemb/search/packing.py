"""Lines packed into passages: cut where a text is cut most naturally, and no more than needed."""

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
    found: list[tuple[int, int]] = []
    while end - start > MOST:
        cut = _cut(text, start, end)
        if cut >= end:
            break
        found.append((start, start + len(text[start:cut].rstrip())))
        space = _SPACE.match(text, cut, end)
        start = space.end() if space else cut
    if start < end:
        found.append((start, end))
    return found


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
    found = [one.search(text, window, end) for one in (_SPACE, _ANYWHERE)]
    return min((match.end() for match in found if match), default=end)


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
    found: list[Span] = []
    run: list[Span] = []  # parts that are each short enough
    for part in [*parts, None]:
        if part is not None and _size(units, part) <= merge:
            run.append(part)
            continue
        found += _even(units, run, merge)
        run = []
        if part is not None:
            found.append(part)
    return found


def _even(units: Sequence[Unit], run: list[Span], merge: int) -> list[Span]:
    if not run:
        return []
    whole = _size(units, Span(run[0].first, run[-1].end))
    wanted = whole / -(-whole // merge)
    found = [run[0]]
    for part in run[1:]:
        now, with_it = found[-1], Span(found[-1].first, part.end)
        size, size_with_it = _size(units, now), _size(units, with_it)
        is_nearer = abs(size_with_it - wanted) <= abs(size - wanted)
        if size_with_it <= merge and is_nearer:
            found[-1] = with_it
        else:
            found.append(part)
    return found


def _without_crumbs(units: Sequence[Unit], spans: list[Span]) -> list[Span]:
    """Join a span of a few words to what follows, else to what precedes."""
    found: list[Span] = []
    for span in spans:
        if found:
            joined = Span(found[-1].first, span.end)
            least = LEAST_APART if units[span.first].level >= APART else LEAST
            is_crumb = min(_size(units, found[-1]), _size(units, span)) < least
            if is_crumb and _size(units, joined) <= MOST:
                found[-1] = joined
                continue
        found.append(span)
    return found
