"""Vectors as a Parquet file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.formats.base import (
    BATCH,
    BATCH_BYTES,
    Description,
    FileLayout,
    RowBatch,
    VectorReader,
    stored,
)
from gemb.embedding.pipeline import OutputRow
from gemb.embedding.vectors import META, NUMBERS
from gemb.errors import GembError
from gemb.io.streams import Output, Sink
from gemb.texts.records import RESERVED
from gemb.texts.tables import import_pyarrow

ROW_GROUP = 4096  # rows


class ParquetWriter:
    """Columns id, kept fields, embedding (null where a row failed), tokens, truncated, error."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._arrow, self._parquet = import_pyarrow()
        self._layout = layout
        self._sink = Sink(output)
        self._rows: list[OutputRow] = []
        self._numbers: list[NDArray[Any]] = []
        self._schema: Any = None
        self._writer: Any = None

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Hold the rows until they make a row group."""
        self._rows += rows
        self._numbers.append(stored(vectors, self._layout.spec))
        if len(self._rows) >= ROW_GROUP:
            self._write_group()

    def finish(self) -> None:
        """Write the last row group and the footer."""
        if self._rows or self._writer is None:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        arrow, rows = self._arrow, self._rows
        spec = self._layout.spec
        empty = np.zeros((0, spec.width), NUMBERS[spec.dtype])
        numbers = np.concatenate([empty, *self._numbers])
        failed = np.array([row.error is not None for row in rows], np.bool_)
        ids = [row.record.id for row in rows]
        columns = {
            "id": arrow.array([str(i) for i in ids], arrow.string())
            if self._layout.text_ids
            else arrow.array(ids, arrow.int64())
        }
        for name in self._layout.kept:
            columns[name] = self._kept_column(name)
        columns["embedding"] = arrow.FixedSizeListArray.from_arrays(
            arrow.array(numbers.reshape(-1)), numbers.shape[1], mask=arrow.array(failed)
        )
        columns["tokens"] = arrow.array([row.tokens for row in rows], arrow.int32())
        columns["truncated"] = arrow.array([row.is_cut for row in rows], arrow.bool_())
        errors = [f"{row.error.code}: {row.error.message}" if row.error else None for row in rows]
        columns["error"] = arrow.array(errors, arrow.string())
        table = arrow.table(columns)
        if self._writer is None:
            layout = self._layout
            text = spec.to_json(task=layout.task, engine=layout.engine, **layout.described)
            self._schema = table.schema.with_metadata({META: text})
            self._writer = self._parquet.ParquetWriter(self._sink, self._schema)
        self._writer.write_table(table.cast(self._schema))
        self._rows, self._numbers = [], []

    def _kept_column(self, name: str) -> Any:  # noqa: ANN401  pyarrow has no types
        arrow = self._arrow
        values = [row.record.kept.get(name) for row in self._rows]
        column_type = self._schema.field(name).type if self._schema else None
        try:
            column = arrow.array(values, column_type)
        except (arrow.ArrowException, OverflowError) as error:
            reason = str(error).split("\n", 1)[0]
            raise GembError(
                f"--keep {name}: its values are of several types ({reason}); -O jsonl keeps them"
            ) from None
        # Of a first group without any value the type is not known: text fits most of what follows.
        return column.cast(arrow.string()) if arrow.types.is_null(column.type) else column


class ParquetReader(VectorReader):
    """Rows of a table with a column `embedding`, lists of one length; null where a row failed."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Return whether the schema holds the description that gemb writes."""
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                return False
        parquet = import_pyarrow()[1]
        return META.encode() in (parquet.ParquetFile(path).schema_arrow.metadata or {})

    def __init__(self, path: Path) -> None:
        self.path = path
        pyarrow, parquet = import_pyarrow()
        self._file = parquet.ParquetFile(path)
        schema = self._file.schema_arrow
        kind = schema.field("embedding").type
        if not pyarrow.types.is_fixed_size_list(kind):
            raise TypeError(f"its column 'embedding' is {kind}, not lists of one length")
        described = (schema.metadata or {}).get(META.encode())
        self.description = (
            Description(dim=kind.list_size)
            if described is None
            else Description.from_json(described)
        )
        self._width = kind.list_size
        self.count = int(self._file.metadata.num_rows)

    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        # The other columns of our own tell of the vector, not of the row.
        names = [
            name
            for name in self._file.schema_arrow.names
            if (name == "id" or name not in RESERVED) and (fields is None or name in fields)
        ]
        first = 1
        groups = self._file.metadata
        size = sum(groups.row_group(n).total_byte_size for n in range(groups.num_row_groups))
        most = max(1, min(BATCH, BATCH_BYTES * groups.num_rows // max(1, size)))
        for table in self._file.iter_batches(most, columns=[*names, "embedding"]):
            embedding = table.column("embedding")
            has_vector = ~np.asarray(embedding.is_null(), np.bool_)
            flat = embedding.flatten().to_numpy(zero_copy_only=False)  # the null rows left out
            numbers = np.zeros((len(has_vector), self._width), flat.dtype)
            numbers[has_vector] = flat.reshape(-1, self._width)
            columns = [table.column(name).to_pylist() for name in names]
            rows = (
                [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
                if names
                else [{}] * len(has_vector)
            )
            yield RowBatch(range(first, first + len(rows)), rows, numbers, has_vector)
            first += len(rows)
