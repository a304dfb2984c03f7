"""Forms of output: lines as grep prints them, JSON lines, names of files, a run for trec_eval.

A form is given the answers query by query, and writes them. `gemb.search.terminal` has another.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import orjson

from gemb.index.hits import Hit
from gemb.io.colours import Paint
from gemb.io.text import visible
from gemb.search.excerpts import Excerpt, LineContext, ShownLine
from gemb.search.queries import USUAL_SCALE, Query, Scale, Unsure
from gemb.texts.records import Id, as_text
from gemb.texts.words import wanted_stems, words_of

Write = Callable[[bytes], object]
STDIN = "(standard input)"  # as grep names it
# Fields that not all hits have.
OPTIONAL = ("query", "stale", "estimated", "unsure", "copies", "ranks")


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """The answer to one query as it is shown."""

    query: Query
    excerpts: Sequence[Excerpt]  # best first
    unsure: Unsure | None = None  # why these may not be relevant; None: they are
    scale: Scale = USUAL_SCALE  # of the scores


class OutputForm(Protocol):
    """Writes the answers to queries in one form."""

    needs_lines: bool  # whether it shows the line that answers best, so that it should be right

    def show(self, answer: ShownAnswer) -> None:
        """Write the answer to one query."""


def encoded(text: str) -> bytes:
    """Return UTF-8; a name that is not UTF-8 keeps its bytes."""
    return text.encode(errors="surrogateescape")


def shown_score(hit: Hit) -> str:
    """Return a hit's score in four columns or more; one that is estimated begins with ~."""
    return f"~{hit.score:.2f}".replace("0.", ".") if hit.is_estimate else f"{hit.score:.2f}"


def is_bare(hit: Hit) -> bool:
    """Return whether a hit is a line that has no name: of standard input."""
    return hit.path is None and (hit.id is None or hit.id == hit.line)


def shown_name(hit: Hit, *, is_terminal: bool = True) -> str:
    """Return the name of a hit's file, without control characters and line ends.

    Off a terminal bytes of a name that are no UTF-8 stay what they are, as with grep and ripgrep.
    """
    if hit.path is not None:
        if is_terminal or hit.path.isascii():
            return visible(hit.path)
        return "".join(char if _is_byte(char) else visible(char) for char in hit.path)
    return STDIN if is_bare(hit) else visible(str(hit.id))


def _is_byte(character: str) -> bool:
    """Return whether it stands for a byte that is no UTF-8 (the error handler surrogateescape)."""
    return "\udc80" <= character <= "\udcff"


def painted(
    text: str, stems: frozenset[str], paint: Paint, rest: Callable[[str], str] = str
) -> str:
    """Return a text with the words that have these stems painted, and the rest as `rest` does."""
    if not paint.is_on:
        return text
    parts: list[str] = []
    end = 0
    for word in words_of(text):
        if word.stem in stems:
            parts += [rest(text[end : word.start]), paint.word(text[word.start : word.end])]
            end = word.end
    return "".join(parts) + rest(text[end:])


class JsonHits:
    """`{"rank": 1, "score": 0.71, "id": null, "path": "a.md", "line": 3, ...}` for each hit.

    Fields that were kept with a row follow; one with a name from this list is in the object `kept`.
    A path that is not UTF-8 has U+FFFD in it, and its bytes in `path_base64`. Where the file of a
    hit is gone, or has changed since it was indexed, `stale` is "gone" or "changed". A hit that has
    no vector yet is `estimated`; where too few have one to tell whether hits are relevant, all of
    the answer are `unsure`: "time" was too short, or the model "failed". Of a hit that stands in
    several places `copies` says in how many; with --explain `ranks` has its ranks by words, draft
    and vector, null where it has none.
    """

    needs_lines = True

    def __init__(self, write: Write, *, with_query: bool = False) -> None:
        """Write through `write`; `with_query` writes the query's id first: there are several."""
        self._write = write
        self._with_query = with_query

    def show(self, answer: ShownAnswer) -> None:
        """Write the answer to one query."""
        for rank, excerpt in enumerate(answer.excerpts, 1):
            entries: dict[str, object] = {"query": answer.query.id} if self._with_query else {}
            entries |= _entries(rank, excerpt, answer.unsure)
            options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
            self._write(orjson.dumps(entries, as_text, options))


def _entries(rank: int, excerpt: Excerpt, unsure: Unsure | None) -> dict[str, object]:
    hit = excerpt.hit
    path = raw = None
    if hit.path is not None:
        raw = hit.path.encode(errors="surrogateescape")
        path = raw.decode(errors="replace")
    entries: dict[str, object] = {
        "rank": rank,
        "score": round(hit.score, 6),
        "id": hit.id,
        "path": path,
        "line": hit.line,
        "last_line": hit.last_line,
        "best_line": excerpt.number(excerpt.best),
        "title": hit.title,
        "text": hit.text,
    }
    if raw is not None and path != hit.path:
        entries["path_base64"] = base64.b64encode(raw).decode()
    if hit.stale is not None:
        entries["stale"] = hit.stale
    if hit.is_estimate:
        entries["estimated"] = True
    if unsure:
        entries["unsure"] = unsure
    if hit.copies > 1:
        entries["copies"] = hit.copies
    if hit.ranks:
        entries["ranks"] = hit.ranks
    ours = (*entries, *OPTIONAL)
    taken = {name: value for name, value in hit.kept.items() if name in ours}
    entries |= {name: value for name, value in hit.kept.items() if name not in taken}
    return entries | ({"kept": taken} if taken else {})


class TrecRun:
    """One line for each hit, `query Q0 document rank score gemb`, for trec_eval.

    White space in an id, and %, are written as %20 and %25.
    """

    needs_lines = False

    def __init__(self, write: Write, *, by_rank: bool = False) -> None:
        """Write through `write`; `by_rank` writes 1 / rank where the order is not by the score."""
        self._write = write
        self._by_rank = by_rank

    def show(self, answer: ShownAnswer) -> None:
        """Write the answer to one query."""
        for rank, excerpt in enumerate(answer.excerpts, 1):
            score = 1 / rank if self._by_rank else excerpt.hit.score
            document = _word(document_id(excerpt.hit))
            line = f"{_word(answer.query.id)} Q0 {document} {rank} {score:.9g} gemb\n"
            self._write(line.encode())


def document_id(hit: Hit) -> str:
    """Return the id of a row, or path:line of a passage."""
    if hit.id is not None:
        return str(hit.id)
    return f"{hit.path or '-'}:{hit.line or 0}"


def _word(text: str) -> str:
    if text and not any(char.isspace() or char == "%" or not char.isprintable() for char in text):
        return text
    return quote(text, safe="/:@-._~#,;=+()[]!", errors="surrogateescape") or "-"


class NameList:
    """The name of each file, the one with the best hit first; rows of no file by their ids."""

    needs_lines = False

    def __init__(
        self,
        write: Write,
        paint: Paint,
        *,
        is_null: bool,
        counts: bool,
        most: int | None,
        is_terminal: bool = False,
    ) -> None:
        """Set how names are written.

        Args:
            write: takes bytes.
            paint: colours.
            is_null: names are written as they are, and end in NUL: for xargs -0.
            counts: write how many hits each file has.
            most: so many names at most; None: all.
            is_terminal: show no character that a terminal obeys.
        """
        self._write = write
        self._paint = paint
        self._is_null = is_null
        self._counts = counts
        self._most = most
        self._is_terminal = is_terminal

    def show(self, answer: ShownAnswer) -> None:
        """Write the files that answer a query."""
        counts: dict[tuple[str | None, Id | None], int] = {}
        first: dict[tuple[str | None, Id | None], Excerpt] = {}
        for excerpt in answer.excerpts:
            hit = excerpt.hit
            key = (hit.path, None if hit.path is not None or is_bare(hit) else hit.id)
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, excerpt)
        for key in list(first)[: self._most]:
            hit = first[key].hit
            if self._is_null and hit.path is not None:
                name = hit.path
            else:
                name = shown_name(hit, is_terminal=self._is_terminal)
            line = encoded(self._paint.path(name))
            line += b"\0" if self._is_null else b"" if self._counts else b"\n"
            if self._counts:
                mark = "" if self._is_null else self._paint.mark(":")
                line += encoded(f"{mark}{counts[key]}\n")
            self._write(line)


class Silent:
    """Writes nothing: the exit code is the answer."""

    needs_lines = False

    def show(self, answer: ShownAnswer) -> None:
        """Write nothing."""


class GrepLines:
    """The best line of each hit as `path:line:text`, as grep prints lines.

    Lines around it are `path-line-text`, and `--` stands between hits then.
    """

    needs_lines = True

    def __init__(
        self,
        write: Write,
        context: LineContext,
        paint: Paint,
        *,
        is_null: bool = False,
        is_terminal: bool = False,
        with_names: bool = False,
    ) -> None:
        """Set how lines are written.

        Args:
            write: takes bytes.
            context: how many lines around.
            paint: colours.
            is_null: a path ends in NUL, not in a colon, and is written as it is.
            is_terminal: show no character that a terminal obeys.
            with_names: write the name and the number of lines of standard input, too.
        """
        self._write = write
        self._context = context
        self._paint = paint
        self._is_null = is_null
        self._is_terminal = is_terminal
        self._with_names = with_names
        self._is_first = True

    def show(self, answer: ShownAnswer) -> None:
        """Write the answer to one query."""
        stems = wanted_stems(answer.query.text) if self._paint.is_on else frozenset()
        has_context = self._context.before or self._context.after
        for excerpt in answer.excerpts:
            if has_context and not self._is_first:
                self._write(encoded(self._paint.mark("--") + "\n"))
            self._is_first = False
            for line in self._context.around(excerpt):
                is_best = line.number == excerpt.number(excerpt.best) or not excerpt.is_numbered
                self._write(self._line(excerpt, line, stems, is_best=is_best))

    def _line(
        self, excerpt: Excerpt, line: ShownLine, stems: frozenset[str], *, is_best: bool
    ) -> bytes:
        paint, hit = self._paint, excerpt.hit
        mark = paint.mark(":" if is_best else "-")
        text = line.text.rstrip("\r")
        if self._is_terminal:
            text = visible(text.expandtabs(4))
        if is_best:
            text = painted(text, stems, paint)
        start = b""
        if self._with_names or not is_bare(hit):
            name = shown_name(hit, is_terminal=self._is_terminal)
            if self._is_null and hit.path is not None:
                start = encoded(paint.path(hit.path)) + b"\0"
            else:
                start = encoded(paint.path(name) + mark)
            if line.number is not None and (hit.path is not None or self._with_names):
                start += encoded(paint.number(str(line.number)) + mark)
        return start + encoded(text) + b"\n"
