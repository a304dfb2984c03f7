"""Code in any language as blocks: by indentation, blank lines and closing brackets.

level 9  after a blank line, not indented: a new function, class, type
      8  after a blank line, one step in: a new method
   7, 6  after a blank line, deeper: a new step of a function
      5  not indented, after what is indented
3, 2, 1  less indented than the line before, as much, more
      0  a line that ends what is open: `}`, `else:`, or the line under a comment or decorator
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemb.search.packing import Unit, pieces

_CLOSES = re.compile(r"[})\]]|</|(?:end|else|elif|elsif|except|finally|catch|fi|done|esac)\b")
_HEADS = re.compile(r"@\w|#(?!include|define|if|else|end|!)|//|/\*|\*|--|;|\"\"\"$|\[\[?\w+\]")
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
        lead = line[: len(line) - len(words)]
        indent = len(lead) + 3 * lead.count("\t")
        closes = _CLOSES.match(words) is not None
        level = _level(indent, before, step, closes, is_after_gap, is_after_head)
        while open_ and (open_[-1][0] > indent or (open_[-1][0] == indent and not closes)):
            open_.pop()
        parent = open_[-1][1] if open_ and open_[-1][0] < indent else -1
        if len(open_) > 1 and open_[-1][0] == indent:
            parent = open_[-2][1]
        if not closes and words[0] != "{" and (not open_ or open_[-1][0] < indent):
            open_.append((indent, len(units)))
        end = start + len(line.rstrip())
        for place, (first, last) in enumerate(pieces(text, start, end)):
            units.append(Unit(first, last, number, 0 if place else level))
            around.append(parent)
        is_after_gap, before = False, indent
        is_after_head = _HEADS.match(words) is not None
        start += len(line) + 1
    return units, around


def _level(
    indent: int, before: int, step: int, closes: bool, is_after_gap: bool, is_after_head: bool
) -> int:
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
