"""Files of training data as rows by column: JSONL, CSV and TSV (gzip too), Parquet, LlamaIndex."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from gemb.datasets.columns import ACCEPTED, NAMES_OF_COLUMNS, known
from gemb.errors import UsageError
from gemb.io.lfs import check_no_pointer
from gemb.io.text import visible
from gemb.texts.contents import BOM, is_gzip, is_parquet, is_plain, refuse_foreign, shown
from gemb.texts.inputs import format_by_name
from gemb.texts.json_files import refuse_pretty
from gemb.texts.lines import Line, file_lines
from gemb.texts.records import RowError
from gemb.texts.tables import (
    Cells,
    ParquetFile,
    column_name,
    json_value,
    refuse_twice,
    table_rows,
)

UNNAMED = ("query", "positive", "negative")  # columns of a table without names: two, or all
_LLAMA_INDEX = re.compile(rb'\s*\{\s*"(queries|corpus|relevant_docs|mode)"\s*:\s*[{"]')
ARRAY = "rows are objects, one a line: jq -c '.[]' makes them of an array"
NAMES = {
    "llamaindex": "LlamaIndex JSON",
    "jsonl": "JSONL",
    "csv": "CSV",
    "tsv": "TSV",
    "parquet": "Parquet",
}


class RawRow(NamedTuple):
    """A row's values by column, or the reason why there are none, and where it stands."""

    number: int  # line of its beginning, or row of a Parquet file; from 1
    values: Mapping[str, object] | None
    reason: str = ""
    offset: int = 0  # bytes from the beginning of a plain JSONL file
    size: int = 0  # bytes of its line there


class Written(NamedTuple):
    """How the texts of a file are written, as `gemb.texts.inputs.Reading` has it."""

    encoding: str = ""
    quoting: str = ""


AS_USUAL = Written()  # UTF-8, or by its mark; quotes as the kind of table has them


@dataclass
class TrainingFile:
    """A file whose rows can be read from the beginning."""

    path: Path
    kind: str  # jsonl, csv, tsv, parquet, llamaindex
    is_gzip: bool
    is_plain: bool = True  # UTF-8, not compressed
    written: Written = AS_USUAL
    note: str = ""  # how its columns were found, once the first row is read

    @property
    def in_place(self) -> bool:
        """Whether a row can be read again from its offset and size."""
        return self.kind == "jsonl" and self.is_plain

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.path,)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return shown(self.path.name)

    @property
    def name(self) -> str:
        """What the file is, in words."""
        return NAMES[self.kind] + (" (gzip)" if self.is_gzip else "")

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows, bad ones too.

        Raises:
            Missing: Parquet without pyarrow.
            UsageError: the file is cut short, or is not what its name says.
        """
        if self.kind == "parquet":
            with ParquetFile(self.path) as table:
                for number, values in enumerate(table.rows(), 1):
                    yield RawRow(number, values)
        elif self.kind == "llamaindex":
            yield from self._judged_rows()
        elif self.kind == "jsonl":
            for line in file_lines(self.path, self.written.encoding):
                if line.error or (line.data and not line.data.isspace()):
                    yield json_row(line)
        else:
            yield from self._table_rows()

    def _judged_rows(self) -> Iterator[RawRow]:
        judged = read_llama_index(self.path, self.written.encoding)
        for number, (query, documents) in enumerate(judged.relevant_docs.items(), 1):
            texts = [judged.corpus.get(document) for document in documents]
            if query not in judged.queries or None in texts:
                yield RawRow(number, None, "it names a query or a document that is not there")
            else:
                yield RawRow(number, {"query": judged.queries[query], "positive": texts})

    def _table_rows(self) -> Iterator[RawRow]:
        """Yield the rows of a table.

        The first row names the columns if its names are known; else two columns are query and
        positive, three are query, positive and negative, and it is a row like the others.

        Raises:
            UsageError: the first row cannot be read, or its columns fit neither way.
        """
        where = shown(self.path)
        lines = file_lines(self.path, self.written.encoding)
        cells = table_rows(lines, self.kind, where, self.written.quoting)
        rows = (row for row in cells if row)
        first = next(rows, None)
        if first is None:
            return
        if first.error:
            reason = first.error.message
            raise UsageError(f"{where}:{first.number}: the first row cannot be read: {reason}")
        columns = [column_name(cell).lower() for cell in first.cells]
        if not known(columns, where) and "text" not in columns:
            has_names = not NAMES_OF_COLUMNS.isdisjoint(columns)
            if has_names or (len(columns) != 2 and not _is_triplet(first.cells)):
                names = ", ".join(visible(cell, 40) for cell in first.cells[:12])
                fault = "no query and positive" if has_names else "none known"
                raise UsageError(
                    f"{where}: {len(columns)} columns, and the first line names {fault} "
                    f"({names}); accepted: {ACCEPTED}; without names: two columns, "
                    "query and positive, or three, query, positive and negative"
                )
            line = " | ".join(visible(cell, 40) for cell in first.cells)
            self.note = f"; without column names, so its first line is a row: {line}"
            yield from _by_name(chain([first], rows), UNNAMED[: len(columns)])
            return
        refuse_twice(columns, where)
        yield from _by_name(rows, columns)


def _is_triplet(cells: Sequence[str]) -> bool:
    """Return whether cells are three texts: not names of columns, ids or a score."""
    are_texts = all(any(c.isspace() for c in cell.strip()) for cell in cells[1:])
    return len(cells) == len(UNNAMED) and are_texts


class JudgedTexts(NamedTuple):
    """Queries and documents by id, and the documents that answer each query."""

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    relevant_docs: Mapping[str, Sequence[str]]


def is_llama_index(head: bytes) -> bool:
    """Return whether a file begins as LlamaIndex writes data for fine-tuning and evaluation."""
    return _LLAMA_INDEX.match(head.removeprefix(BOM)) is not None


def read_llama_index(path: Path, encoding: str = "") -> JudgedTexts:
    """Return what a file holds that LlamaIndex's `EmbeddingQAFinetuneDataset` saved.

    Raises:
        UsageError: it is no whole JSON, or its parts are not what they should be.
    """
    data = b"\n".join(line.data for line in file_lines(path, encoding))
    value, error = json_value(data)
    if error:
        raise UsageError(f"{shown(path)}: no valid JSON: {error.message}")
    fields = JudgedTexts._fields
    parts: list[Any] = [value.get(name) if isinstance(value, dict) else None for name in fields]
    has_texts = all(
        isinstance(part, dict) and all(isinstance(text, str) for text in part.values())
        for part in parts[:2]
    )
    has_lists = isinstance(parts[2], dict) and all(
        isinstance(ids, list) for ids in parts[2].values()
    )
    if not has_texts or not has_lists:
        raise UsageError(
            f"{shown(path)}: no data of LlamaIndex: queries and corpus are texts by id, and "
            "relevant_docs lists of ids by query"
        )
    return JudgedTexts(*parts)


def _by_name(rows: Iterable[Cells], columns: Iterable[str]) -> Iterator[RawRow]:
    names = list(columns)
    for row in rows:
        values, error = row.by_name(names)
        if error:
            yield RawRow(row.number, None, error.message)
        else:
            # An empty cell is how a table says that there is none.
            yield RawRow(row.number, {name: cell or None for name, cell in values.items()})


def open_file(path: Path, written: Written = AS_USUAL) -> TrainingFile:
    """Return the file with its kind, by its name, or by its first bytes.

    Raises:
        UsageError: it is none that can be read.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise UsageError(
                f"{shown(path)} is no file and no folder: a source is read more than once"
            )
        with path.open("rb") as file:
            head = file.read(1 << 12)
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from None
    kind, is_packed = format_by_name(path), is_gzip(head)
    if is_parquet(head):
        return TrainingFile(path, "parquet", is_gzip=False)
    if kind == "parquet":
        check_no_pointer(path)
        raise UsageError(f"{shown(path)} is no Parquet file by its first bytes")
    refuse_foreign(head, path)
    if not kind and not is_packed and head.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        kind = "jsonl"
    if kind == "jsonl" and is_llama_index(head):
        kind = "llamaindex"
    if kind == "jsonl":
        _refuse_pretty(path, written)
    if not kind:
        raise UsageError(
            f"{shown(path)}: what is it? Name it .jsonl, .csv or .tsv (.gz too), or .parquet"
        )
    return TrainingFile(path, kind, is_packed, is_plain(head, written.encoding), written)


def _refuse_pretty(path: Path, written: Written) -> None:
    """Refuse JSON over several lines: of an array the last row alone would be a line's."""
    lines = file_lines(path, written.encoding)
    told = (line for line in lines if not line.error and line.data.strip())
    first = next(told, None)
    if first and first.data.strip() in (b"[", b"{"):
        refuse_pretty(first, next(told, first), str(path), names_options=False)


def json_row(line: Line) -> RawRow:
    """Return the row of a line of JSONL; a list of two or three texts is a pair or a triplet."""
    values, error = (None, line.error) if line.error else json_value(line.data)
    if error:
        return RawRow(line.number, None, _in_words(error, line.data))
    if isinstance(values, list):  # as sentence-transformers ships them
        if not 2 <= len(values) <= 3 or not all(isinstance(text, str) for text in values):
            return RawRow(line.number, None, f"an array, but not of two or three texts; {ARRAY}")
        values = dict(zip(("query", "positive", "negative"), values, strict=False))
    if not isinstance(values, dict):
        return RawRow(line.number, None, "no JSON object")
    texts = values.get("set")
    if len(values) == 1 and isinstance(texts, list):  # of like texts, as sentence-transformers' are
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            return RawRow(line.number, None, "its 'set' is not a list of two texts or more")
        values = {"query": texts[0], "positive": texts[1:]}
    return RawRow(line.number, values, "", line.offset, len(line.data))


def _in_words(error: RowError, data: bytes) -> str:
    if error.code != "bad_json":
        return error.message
    return (
        f"bad JSON; {ARRAY}"
        if data.strip() in (b"[", b"{")
        else f"bad JSON: {visible(error.message)}"
    )
