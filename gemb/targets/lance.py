"""LanceDB: a table of Arrow batches in a folder or a bucket.

What the vectors are is metadata of the table's schema, and, once it has changed, of the column of
ids. A part is one version of the table: it is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gemb.errors import GembError, UsageError
from gemb.io.locks import lock_file
from gemb.io.text import visible
from gemb.targets.addresses import Address, only_table, unspoken
from gemb.targets.base import MARK, Content, FoundRow, Part, PushRow
from gemb.targets.filters import Condition
from gemb.targets.lance_filters import literal, sql_of

PART_ROWS = 5000
INDEXED_ROWS = 100_000  # fewer are compared one by one, which takes milliseconds
PROBES = 64  # partitions that a search looks into
REFINED = 20  # candidates for each answer whose vectors decide
TEXTS = ("id", "path", "line", "last_line", "title", "text", "kept")
_IDS = 10_000  # at a time
_KEY = MARK.encode()
_NAME = re.compile(r"[\w.-]+", re.ASCII)
M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS = 2


class LanceTarget:
    """A table of LanceDB. See `gemb.targets.base.Target`."""

    part_rows = PART_ROWS

    def __init__(self, address: Address) -> None:
        """Open the folder, and read what the table holds.

        Raises:
            UsageError: no table is named, and there is not one of gemb.
            GembError: the folder or bucket cannot be read.
        """
        self._place = address.shown
        self._folder = None if "://" in address.place else Path(address.place)
        self._lock: int | None = None
        self._database: Any = None  # None: its folder is not there
        self._table: Any = None
        self.content: Content | None = None
        _bound_arenas()
        with self._talking():
            if self._folder is None or self._folder.exists():
                self._database = lancedb.connect(address.place)
            self._name = address.table or only_table(
                [name for name in self._names() if self._content(name)], address
            )
            self.name = f"table {self._name} in {self._place}"
            if not _NAME.fullmatch(self._name):
                raise UsageError(
                    f"LanceDB's tables have names of letters of ASCII, digits, _, - and ., not "
                    f"{visible(self._name, 80)}: name a --table"
                )
            self._open()

    def prepare(self, content: Content, *, with_index: bool) -> None:
        """Make the table if it is not there."""
        content.refuse_bits("LanceDB")
        schema = _schema(content)
        with self._talking():
            self._take_lock()
            if self._database is None:
                self._database = lancedb.connect(str(self._folder))
            self._open()  # another push may have made it meanwhile
        if self.content is not None:
            content.check_same(self.content, self.name)
        if self._table is None:
            with self._talking():
                self._table = self._database.create_table(self._name, schema=schema)
            self.content = content
        elif self.content is None:
            raise UsageError(
                f"{self.name} was not made by gemb index push; name another with --table"
            )
        self._check_columns(schema)

    def describe(self, content: Content) -> None:
        """Change the metadata of the column of ids: that of the schema stays as it was made."""
        with self._talking():
            update = {"path": "id", "metadata": {MARK: content.to_json()}}
            self._table.update_field_metadata(update)
        self.content = content

    def count(self, condition: Condition | None = None) -> int:
        """Return how many rows are there, or satisfy a condition."""
        with self._talking():
            return int(self._table.count_rows(sql_of(condition) if condition else None))

    def hashes(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the hash of each of these rows that is there."""
        rows = self._of_ids(ids, ["id", "hash"])
        return dict(zip(rows["id"].to_pylist(), rows["hash"].to_pylist(), strict=True))

    def upsert(self, part: Part) -> None:
        """Write rows in place of those with their ids."""
        table = _arrow(part, _schema(self._known))
        with self._talking():
            if part.is_new:
                self._table.add(table)
                return
            merge = self._table.merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(table)

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all rows."""
        with self._talking():
            batches = self._table.search().select(["id"]).limit(None).to_batches(batch_size=_IDS)
            for batch in batches:
                yield batch["id"].to_pylist()

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""
        if ids:
            with self._talking():
                self._table.delete(_among(ids))

    def finish(self, *, with_index: bool) -> None:
        """Join small parts, and make an index where there are many rows."""
        with self._talking():
            self._table.optimize()
            has_index = any("embedding" in index.columns for index in self._table.list_indices())
            if with_index and not has_index and self._table.count_rows() >= INDEXED_ROWS:
                self._table.create_index(
                    metric="dot", vector_column_name="embedding", index_type="IVF_SQ"
                )

    def vector_of(self, row_id: str) -> tuple[PushRow, NDArray[Any]] | None:
        """Return a row and its stored vector."""
        rows = self._of_ids([row_id], [*TEXTS, "embedding"])
        for row, vector in zip(_rows(rows), _vectors(rows), strict=True):
            return row, vector
        return None

    def read(self, ids: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Return the stored vectors of rows."""
        rows = self._of_ids(ids, ["id", "embedding"])
        return dict(zip(rows["id"].to_pylist(), _vectors(rows), strict=True))

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        condition: Condition | None = None,
        *,
        is_exact: bool = False,
    ) -> list[FoundRow]:
        """Return the nearest rows to a unit vector, best first."""
        rows = self._nearest(vector, k, condition, is_exact=is_exact)
        if rows.num_rows < k and not is_exact:
            # The index looks into some partitions, where a filter may leave few rows.
            rows = self._nearest(vector, k, condition, is_exact=True)
        scores = (_vectors(rows).astype(np.float32) @ vector).tolist()
        answers = [FoundRow(row, score) for row, score in zip(_rows(rows), scores, strict=True)]
        return sorted(answers, key=lambda answer: -answer.score)

    def cancel(self) -> None:
        """Give up nothing: a write waits for no lock."""

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    @property
    def _known(self) -> Content:
        assert self.content is not None, "the table is not there"
        return self.content

    @property
    def _lock_path(self) -> Path:
        return Path(self._folder or "") / f".{self._name}.lock"

    def _take_lock(self) -> None:
        """Refuse a table in a folder of this machine that another push is loading.

        Both would add the rows that neither found there. A bucket has no such lock.

        Raises:
            GembError: one is.
        """

        def held(_: str) -> None:
            raise GembError(f"{self.name}: another gemb index push is loading it")

        if self._folder is not None and self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(self._lock_path, held)

    def _open(self) -> None:
        """Read the newest state of the table."""
        is_there = self._name in self._names()
        self._table = self._database.open_table(self._name) if is_there else None
        self.content = self._content(self._name) if is_there else None

    def _nearest(
        self,
        vector: NDArray[np.float32],
        k: int,
        condition: Condition | None,
        *,
        is_exact: bool,
    ) -> Any:  # noqa: ANN401
        """Return the columns of the nearest rows."""
        with self._talking():
            query = self._table.search(vector, vector_column_name="embedding").metric("dot")
            query = query.select([*TEXTS, "embedding", "_distance"]).limit(k)
            if condition:
                query = query.where(sql_of(condition), prefilter=True)
            if is_exact:
                query = query.bypass_vector_index()
            else:
                query = query.nprobes(PROBES).refine_factor(REFINED)
            return query.to_arrow()

    def _names(self) -> list[str]:
        """Return the names of all tables."""
        names: list[str] = []
        token = None
        while self._database is not None:
            page = self._database.list_tables(page_token=token)
            names += page.tables
            token = page.page_token
            if not token:
                break
        return names

    def _content(self, table: str) -> Content | None:
        """Return what a table says that it holds."""
        schema = self._database.open_table(table).schema
        number = schema.get_field_index("id")
        changed = (number >= 0 and schema.field(number).metadata) or {}
        text = changed.get(_KEY) or (schema.metadata or {}).get(_KEY, b"")
        return Content.from_json(text.decode())

    def _of_ids(self, ids: Sequence[str], columns: list[str]) -> Any:  # noqa: ANN401
        """Return some columns of the rows that have these ids."""
        with self._talking():
            query = self._table.search().where(_among(ids)).select(columns)
            return query.limit(None).to_arrow()

    def _check_columns(self, schema: pa.Schema) -> None:
        """Refuse a table whose columns are not ours.

        Raises:
            UsageError: they are others.
        """
        there = self._table.schema
        for field in schema:
            number = there.get_field_index(field.name)
            kind = None if number < 0 else there.field(number).type
            is_same = number >= 0 and (field.name == "kept" or kind == field.type)
            if not is_same:
                has = "not there" if kind is None else f"{kind}, not {field.type}"
                raise UsageError(
                    f"{self.name} has other columns ({field.name} is {has}); name another with "
                    "--table"
                )

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn the library's errors into ours.

        Raises:
            GembError: the folder or bucket cannot be read or written.
        """
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            words = unspoken(str(error))
            if "No space left" in words:
                words = "no space left; what was written is kept, and the same command goes on"
            raise GembError(f"{self._place}: {words}") from None


def _bound_arenas() -> None:
    """Let glibc keep few heaps: with one for each of Lance's threads a push takes twice as much."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def _schema(content: Content) -> pa.Schema:
    number = pa.float16() if content.kind == "halfvec" else pa.float32()
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("line", pa.int64()),
        pa.field("last_line", pa.int64()),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kept", pa.json_(), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
        pa.field("embedding", pa.list_(number, content.spec.dim), nullable=False),
    ]
    return pa.schema(fields, metadata={_KEY: content.to_json().encode()})


def _arrow(part: Part, schema: pa.Schema) -> pa.Table:
    columns = [*part.rows, part.hashes]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=False)]
    flat = pa.array(np.ascontiguousarray(part.vectors).reshape(-1))  # not copied
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, part.vectors.shape[1]))
    return pa.Table.from_arrays(arrays, schema=schema)


def _rows(table: pa.Table) -> list[PushRow]:
    columns = [table[name].to_pylist() for name in TEXTS]
    return [PushRow(*values) for values in zip(*columns, strict=True)]


def _vectors(table: pa.Table) -> NDArray[Any]:
    """Return the vectors, [n, dim] as they are stored."""
    column = table["embedding"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dim = table.schema.field("embedding").type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, dim), np.float32)


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(map(literal, ids))})"
