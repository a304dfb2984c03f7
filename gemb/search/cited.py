"""Passages as one block for a language model: numbered sources, within a number of tokens.

    [1] docs/cat.md:3-5 (Pets)
      The cat sleeps on the mat all day.

A passage is indented, so that no line of a file can pass for another source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gemb.index.hits import Hit
from gemb.io.text import visible, visible_lines
from gemb.search.excerpts import Excerpt
from gemb.search.forms import ShownAnswer, Write, encoded, is_bare, shown_name

INDENT = "  "
CUT = f"{INDENT}…\n"
BYTES_A_TOKEN = 3  # where no tokenizer is open: few texts have more tokens than this says

Count = Callable[[str], int]  # tokens of a text


class CitedSources:
    """The best passages, whole where they fit; no text twice, and no lines of a file twice."""

    needs_lines = True

    def __init__(self, write: Write, tokens: int, *, is_terminal: bool = False) -> None:
        """Set how much is written.

        Args:
            write: takes bytes.
            tokens: of the whole block at most, as the model of the search counts them.
            is_terminal: no character may be obeyed.
        """
        self._write = write
        self._tokens = tokens
        self._is_terminal = is_terminal
        self.count_tokens: Count = lambda text: (
            -(-len(text.encode(errors="replace")) // BYTES_A_TOKEN)
        )

    def show(self, answer: ShownAnswer) -> None:
        """Write the sources for one query, best first."""
        block = ""
        for excerpt in _distinct(answer.excerpts):
            number = block.count("\n[") + bool(block) + 1
            source = self._source(number, excerpt, self._tokens - self.count_tokens(block))
            while source and self.count_tokens(block + source) > self._tokens:
                source = _shorter(source)
            block += source
        if self._is_terminal:
            block = visible_lines(block)
        self._write(encoded(block))

    def _source(self, number: int, excerpt: Excerpt, room: int) -> str:
        """Return a passage as a source; empty: it does not fit."""
        head = ("\n" if number > 1 else "") + f"[{number}] {_place(excerpt.hit)}\n"
        return fitted(head, excerpt.lines, excerpt.best, room, self.count_tokens)


def fitted(head: str, lines: Sequence[str], best: int, room: int, count: Count) -> str:
    """Return a head and indented lines, cut around the best one; empty: not even that fits.

    Args:
        head: with its line end.
        lines: of a passage.
        best: index of the line that answers best.
        room: tokens at most.
        count: counts them.
    """
    lines = [_indented(line) for line in lines]
    whole = head + lines[best]
    if count(whole) > room:
        return ""
    if count(head + "".join(lines)) <= room:
        return head + "".join(lines)
    for first, last in _around(best, len(lines)):
        before, after = CUT if first else "", CUT if last < len(lines) else ""
        part = head + before + "".join(lines[first:last]) + after
        if count(part) > room:
            break
        whole = part
    return whole


def _indented(line: str) -> str:
    """Return a line, indented after each character that some program takes for a line's end."""
    return "".join(f"{INDENT}{part}\n" for part in line.splitlines() or [""])


def _around(best: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield larger and larger ranges of lines around the best one, those after it first."""
    first, last = best, best + 1
    while first > 0 or last < count:
        if last < count:
            last += 1
            yield first, last
        if first > 0:
            first -= 1
            yield first, last


def _shorter(source: str) -> str:
    """Return a source without its last line; empty where only its head would be left."""
    lines = source.rstrip("\n").split("\n")[:-1]
    return "\n".join(lines) + "\n" if any(line.startswith(INDENT) for line in lines) else ""


def _place(hit: Hit) -> str:
    """Return the name of a source, its lines and its title."""
    name = "standard input" if is_bare(hit) else shown_name(hit)
    if hit.line is not None:
        name += f":{hit.line}"
        if hit.last_line not in (None, hit.line):
            name += f"-{hit.last_line}"
    return f"{name} ({visible(hit.title, 80)})" if hit.title else name


def _distinct(answers: Sequence[Excerpt]) -> Iterator[Excerpt]:
    """Yield the passages whose text, and whose lines of a file, did not come before."""
    texts: set[str] = set()
    ranges: dict[str, list[tuple[int, int]]] = {}
    for excerpt in answers:
        hit = excerpt.hit
        text = " ".join(hit.text.split())
        if not text or text in texts:
            continue
        texts.add(text)
        if hit.path is not None and hit.line is not None:
            lines = hit.line, hit.last_line or hit.line
            taken = ranges.setdefault(hit.path, [])
            if any(first <= lines[1] and lines[0] <= last for first, last in taken):
                continue
            taken.append(lines)
        yield excerpt
