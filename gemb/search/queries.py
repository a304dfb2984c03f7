"""The input of a search: queries as texts and as vectors, and the criteria of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import Embedder, embed
from gemb.errors import GembError, UsageError
from gemb.index.floor import USUAL, Background
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models.prompts import Prompt
from gemb.texts.contents import STDIN, shown
from gemb.texts.lines import file_lines, text_lines
from gemb.texts.records import Record
from gemb.texts.tables import ParquetFile, json_value, table_rows

if TYPE_CHECKING:
    from gemb.backend import Encoder


TEXT_NAMES = ("text", "query", "contents")
ModelOpener = Callable[[str], "Encoder"]  # a model reference; empty: the user's or the index's own
# Why too few passages have a vector to tell what is relevant: too little time, or the model failed.
Unsure = Literal["time", "failed"]


class Scale(NamedTuple):
    """By what the cosines of a search are held against those of another."""

    space: str  # of the vectors, as `VectorSpec.space`; cosines in one are compared as they are
    background: Background


USUAL_SCALE = Scale("", USUAL)


@dataclass(frozen=True, slots=True)
class Query:
    """One question."""

    id: str  # its id in a file of queries, else the number of its line
    text: str
    place: str  # where it stands, for messages


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Which passages or rows answer a query."""

    k: int | None = 10  # of each query; None: all that reach the floor
    min_score: float | None = None  # None: what is better than chance
    is_weak: bool = False  # what does not reach the floor, too
    where: str | None = None  # a filter of rows
    where_seconds: float | None = None  # that it may take; None: as the index says
    is_hybrid: bool = False  # by words, too
    accuracy: str = "auto"  # of `gemb.index.ranking.ACCURACIES`
    # Of files:
    seconds: float | None = None  # of the search; None: all passages are embedded
    is_once: bool = True  # passages of the same text are one hit
    explains: bool = False  # hits have their ranks


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """The queries and options of a search."""

    queries: Sequence[Query]  # empty with `like`
    like: str | None  # an id, or FILE:LINE
    criteria: Criteria
    task: str | None  # of the queries; None: query, or what an index says
    dim: int | None  # None: the model's, or the index's
    model: str  # as the user gave it; empty: none was named
    force: bool  # another model than the index's
    is_verbose: bool = False  # say what each stage did


def from_words(text: str) -> Query:
    """Return the query of the command line.

    Raises:
        UsageError: it is empty, or not UTF-8.
    """
    return Query("1", _checked(text, "the query"), "the query")


def read_queries(path: str, encoding: str = "") -> list[Query]:
    """Return the queries of a file, in order, with their ids, or the numbers of their lines.

    Of JSON lines, of a table whose columns have names and of Parquet the fields are `text` (or
    `query`) and perhaps `_id`; a table without names has two columns, id and text, as MS MARCO's.
    Else each line is a query.

    Args:
        path: the file; - is standard input.
        encoding: of a file without a byte-order mark, as `checked_encoding` returns it.

    Raises:
        UsageError: there is no such file, no query in it, an empty one, or an id twice.
        Missing: Parquet without pyarrow.
    """
    queries: dict[str, Query] = {}  # by id
    for query in _queries(path, encoding):
        if query.id in queries:
            before = queries[query.id].place.rpartition(", ")[2]
            raise UsageError(f"{query.place}: the id {query.id!r} is that of {before}, too")
        queries[query.id] = query
    if not queries:
        raise UsageError(f"{shown(path)} has no query")
    return list(queries.values())


def _queries(path: str, encoding: str) -> Iterator[Query]:
    from gemb.texts.inputs import format_by_name

    form = format_by_name(Path(path)) if path != STDIN else ""
    where = shown(path)
    if form == "parquet":
        with ParquetFile(path) as table:
            for number, row in enumerate(table.rows(), 1):
                yield _of_row(row, number, f"{where}, row {number}")
    elif form in ("csv", "tsv"):
        yield from _of_table(path, form, encoding)
    else:
        for number, line in text_lines(path, encoding):
            yield _of_line(line.strip(), number, f"{where}, line {number}")


def _of_table(path: str, form: str, encoding: str) -> Iterator[Query]:
    names: list[str] = []
    for cells in filter(None, table_rows(file_lines(path, encoding), form, shown(path))):
        place = f"{shown(path)}, line {cells.number}"
        if not names and not cells.error:
            names = [cell.strip().lower() for cell in cells.cells]
            if not {*names}.isdisjoint(TEXT_NAMES):
                continue
            if len(names) != 2:
                has = ", ".join(visible(name, 40) for name in names)
                raise UsageError(f"{place}: no column 'text' or 'query'; it has: {has}")
            names = ["_id", "text"]
        row, error = cells.by_name(names)
        if error:
            raise UsageError(f"{place}: {error.message}")
        yield _of_row(row, cells.number, place)


def _of_line(text: str, number: int, place: str) -> Query:
    if not text.startswith(("{", "[{")):
        return Query(str(number), text, place)
    row, error = json_value(text.encode())
    if error:
        raise UsageError(f"{place}: no valid JSON: {error.message}")
    if isinstance(row, list):
        raise UsageError(f"{place}: a JSON array; queries are JSON lines: jq -c '.[]'")
    return _of_row(row, number, place)


def _of_row(row: Mapping[str, object], number: int, place: str) -> Query:
    from gemb.datasets.identified import text_id

    query = next((row[name] for name in TEXT_NAMES if isinstance(row.get(name), str)), None)
    if query is None:
        has = ", ".join(visible(name, 40) for name in row) or "nothing"
        raise UsageError(f"{place}: no 'text' or 'query'; it has: {has}")
    return Query(text_id(row) or str(number), _checked(str(query), place), place)


def _checked(text: str, place: str) -> str:
    from gemb.texts.records import unfit

    wrong = unfit(text)
    if wrong:
        raise UsageError(f"{place}: {wrong.message.replace('the text', 'it')}")
    return text


def embedded(
    queries: Sequence[Query], encoder: Encoder, prompt: Prompt, dim: int
) -> NDArray[np.float32]:
    """Return the unit vectors of the queries, float32 [len(queries), dim].

    A query that is longer than the model takes is cut, and counted in a note.

    Raises:
        GembError: the model fails on one of them.
    """
    records = [Record(query.id, query.place, query.text) for query in queries]
    vectors, cut = _vectors(records, encoder, prompt, dim)
    if cut:
        whose = "the query is" if len(records) == 1 else f"{cut:,} queries are"
        note(f"{whose} longer than the model takes ({encoder.profile.max_tokens} tokens), and cut")
    return vectors


def passage_vector(
    text: str, title: str | None, encoder: Encoder, prompt: Prompt, dim: int
) -> NDArray[np.float32]:
    """Return the unit vector of a passage, float32 [1, dim], as the query of --like."""
    vectors, _ = _vectors([Record(1, "the passage", text, title)], encoder, prompt, dim)
    return vectors


def _vectors(
    records: Sequence[Record], encoder: Encoder, prompt: Prompt, dim: int
) -> tuple[NDArray[np.float32], int]:
    """Return the vectors, float32 [len(records), dim], and how many texts were cut."""
    vectors = np.zeros((len(records), dim), np.float32)
    first = cut = 0
    for window in embed(records, Embedder.of(encoder, prompt, dim=dim), live=False):
        for row in window.rows:
            if row.error:
                raise GembError(f"{row.record.place}: {row.error.message}")
            cut += row.is_cut
        vectors[first : first + len(window.rows)] = window.vectors
        first += len(window.rows)
    return vectors, cut
