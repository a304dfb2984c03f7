"""PostgreSQL with pgvector: a table, binary COPY into a temporary one, and an upsert from there.

What the vectors are is the comment of the table: it is changed and rolled back with the table,
renamed with it, and pg_dump takes it along. The state of a load is the table itself: a part is one
transaction, and the next push asks for the hashes of the rows that are there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from gemb.errors import GembError, Missing, UsageError
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.targets.addresses import Address, only_table, unspoken
from gemb.targets.base import MARK, Content, FoundRow, Part, PushRow, bit_scores
from gemb.targets.filters import Condition
from gemb.targets.postgres_copy import copied, received
from gemb.targets.postgres_filters import sql_of
from gemb.targets.postgres_sql import (
    check_width,
    column_types,
    comment_statement,
    copy_statement,
    index_statements,
    quoted,
    table_statements,
    temporary_statements,
    upsert_statement,
)

PART_ROWS = 5000
EF_SEARCH = 200  # rows that a search of the graph keeps; pgvector's 40 finds less
BY_GRAPH = 400  # with more answers all vectors are compared
RERANKED = 10  # candidates by bits for each answer
CONNECT_S = 20
GONE_S = 2  # after which the server sees that a client was killed
LOOK_S = 0.2
LOCK_S = 5  # that another push may take to end
_IDS = 10_000  # fetched at a time


class PostgresTarget:
    """A table of a PostgreSQL server. See `gemb.targets.base.Target`."""

    part_rows = PART_ROWS

    def __init__(self, address: Address) -> None:
        """Connect, and read what the table holds.

        Raises:
            UsageError: the address is wrong, or no table is named, and there is not one of gemb.
            GembError: the server cannot be reached.
        """
        self._place = address.shown
        self._oid: int | None = None
        self.content: Content | None = None
        self._kept = ""  # what messages of a push say of it
        with self._talking(before="cannot be reached"):
            self._connection = psycopg.connect(
                address.place,
                autocommit=True,
                application_name="gemb",
                client_encoding="utf8",  # of the texts in COPY
                connect_timeout=CONNECT_S,
            )
        self._connection.add_notice_handler(_tell)
        # So that the server lets go of what a client that was killed has begun.
        setting = "client_connection_check_interval"
        self._value(
            "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s",
            f"{GONE_S}s",
            setting,
        )
        self._table = quoted(address.table or only_table(self._tables(), address))
        self.name = f"table {self._table} in {self._place}"
        self._open()

    def prepare(self, content: Content, *, with_index: bool) -> None:
        """Make the extension and the table where they are not there."""
        check_width(content, with_index=with_index)
        self._kept = "; what was committed is kept, and the same command goes on"
        self._lock()
        self._open()  # another push may have made it meanwhile
        if self.content is not None:
            content.check_same(self.content, self.name)
        if self._oid is None:
            self._check_extension()
            with self._talking(), self._connection.transaction():
                for statement in table_statements(self._table, content):
                    self._connection.execute(statement)
            self._oid = self._value("SELECT to_regclass(%s)::oid", self._table)
            self.content = content
        elif self.content is None:
            raise UsageError(
                f"{self.name} was not made by gemb index push; name another with --table"
            )
        self._check_columns(content)
        with self._talking():
            for statement in temporary_statements(self._table):
                self._connection.execute(statement)

    def describe(self, content: Content) -> None:
        """Change the comment of the table."""
        with self._talking():
            self._connection.execute(comment_statement(self._table, content))
        self.content = content

    def count(self, condition: Condition | None = None) -> int:
        """Return how many rows are there, or satisfy a condition."""
        values: list[object] = []
        where = f"WHERE {sql_of(condition, values)}" if condition else ""
        query = f"SELECT count(*) FROM {self._table} {where}"
        with self._talking(), _filtering():
            ((count,),) = self._connection.execute(query, values).fetchall()
        return int(count)

    def hashes(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the hash of each of these rows that is there."""
        query = f"SELECT id, hash FROM {self._table} WHERE id = ANY(%s)"
        with self._talking(), self._connection.cursor(binary=True) as cursor:
            return dict(cursor.execute(query, (list(ids),)).fetchall())

    def upsert(self, part: Part) -> None:
        """Copy rows into the temporary table, and from there into the table."""
        with self._talking(), self._connection.transaction(), self._connection.cursor() as cursor:
            with cursor.copy(copy_statement(self._table)) as copy:
                copy.write(copied(part, self._kind))
            cursor.execute(upsert_statement(self._table))

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all rows."""
        with (
            self._talking(),
            self._connection.transaction(),
            self._connection.cursor(name="gemb_ids") as cursor,
        ):
            cursor.execute(f"SELECT id FROM {self._table}")
            while rows := cursor.fetchmany(_IDS):
                yield [row_id for (row_id,) in rows]

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""
        with self._talking():
            self._connection.execute(f"DELETE FROM {self._table} WHERE id = ANY(%s)", (list(ids),))

    def finish(self, *, with_index: bool) -> None:
        """Make the HNSW index, and let the planner count the rows."""
        if with_index and not self._has_index():
            rows, content = self.count(), self._known
            with self._talking(), self._connection.transaction():
                for statement in index_statements(self._table, content, rows, self._memory()):
                    self._connection.execute(statement)
        with self._talking():
            self._connection.execute(f"ANALYZE {self._table}")

    def read(self, ids: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Return the stored vectors of rows."""
        query = f"SELECT id, embedding FROM {self._table} WHERE id = ANY(%s)"
        with self._talking(), self._connection.cursor(binary=True) as cursor:
            rows = cursor.execute(query, (list(ids),)).fetchall()
        return {row_id: received(data, self._known) for row_id, data in rows}

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        condition: Condition | None = None,
        *,
        is_exact: bool = False,
    ) -> list[FoundRow]:
        """Return the nearest rows to a unit vector, best first; bits are ranked by its numbers."""
        values: list[object] = []
        where = f"WHERE {sql_of(condition, values)}" if condition else ""
        is_bit = self._kind == "bit"
        count = RERANKED * k if is_bit else k
        dim = len(vector)
        if is_bit:
            nearest = "".join("1" if number > 0 else "0" for number in vector)
            score, order = "embedding", f"embedding <~> %s::bit({dim})"
        else:
            nearest = f"[{','.join(map(str, vector.tolist()))}]"
            score = "(-(embedding::vector <#> %s::vector))::float4"
            order = f"embedding <=> %s::{self._kind}({dim})"
        query = (
            f"SELECT id, path, line, last_line, title, text, kept::text, {score} "
            f"FROM {self._table} {where} ORDER BY {order} LIMIT %s"
        )
        parameters = [*([] if is_bit else [nearest]), *values, nearest, count]
        is_exact = is_exact or count > BY_GRAPH
        rows = self._ranked(query, parameters, is_exact=is_exact)
        if len(rows) < count and not is_exact:
            # The graph is left after so many rows, of which a filter may leave few.
            rows = self._ranked(query, parameters, is_exact=True)
        if is_bit and rows:
            bits = np.stack([received(row[-1], self._known) for row in rows])
            scores = bit_scores(vector, bits).tolist()
        else:
            scores = [row[-1] for row in rows]
        answers = [
            FoundRow(PushRow(*row[:-1]), score) for row, score in zip(rows, scores, strict=True)
        ]
        return sorted(answers, key=lambda answer: -answer.score)[:k]

    def vector_of(self, row_id: str) -> tuple[PushRow, NDArray[Any]] | None:
        """Return a row and its stored vector; None: there is none of this id."""
        query = (
            "SELECT id, path, line, last_line, title, text, kept::text, embedding "
            f"FROM {self._table} WHERE id = %s"
        )
        with self._talking(), self._connection.cursor(binary=True) as cursor:
            row = cursor.execute(query, (row_id,)).fetchone()
        return (PushRow(*row[:-1]), received(row[-1], self._known)) if row else None

    def cancel(self) -> None:
        """Let the server give up what another thread waits for, as a lock that somebody has."""
        with contextlib.suppress(psycopg.Error):  # the server may be gone
            self._connection.cancel_safe(timeout=CONNECT_S)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def _known(self) -> Content:
        assert self.content is not None, "the table is not there"
        return self.content

    @property
    def _kind(self) -> str:
        return self._known.kind

    def _open(self) -> None:
        """Read the newest state of the table."""
        self._oid = self._value("SELECT to_regclass(%s)::oid", self._table)
        comment = self._value("SELECT obj_description(%s, 'pg_class')", self._oid)
        self.content = Content.from_json(comment)

    def _settings(self, *, is_exact: bool) -> list[str]:
        if is_exact:
            return ["SET LOCAL enable_indexscan = off", "SET LOCAL enable_seqscan = on"]
        settings = [f"SET LOCAL hnsw.ef_search = {EF_SEARCH}"]
        if self._version() >= (0, 8):
            settings.append("SET LOCAL hnsw.iterative_scan = strict_order")
        return settings

    def _ranked(
        self, query: str, parameters: Sequence[object], *, is_exact: bool
    ) -> list[tuple[Any, ...]]:
        with self._talking(), self._connection.transaction():
            for setting in self._settings(is_exact=is_exact):
                self._connection.execute(setting)
            with self._connection.cursor(binary=True) as cursor, _filtering():
                return cursor.execute(query, parameters).fetchall()

    def _version(self) -> tuple[int, ...]:
        version = self._value("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        return tuple(int(number) for number in str(version or "0").split(".")[:2])

    def _value(self, query: str, *values: object) -> Any:  # noqa: ANN401
        """Return the first value of the first row; None: there is none."""
        with self._talking():
            row = self._connection.execute(query, values).fetchone()
        return row[0] if row else None

    def _tables(self) -> list[str]:
        query = (
            "SELECT CASE WHEN pg_table_is_visible(c.oid) THEN '' ELSE n.nspname || '.' END || "
            "c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE obj_description(c.oid, 'pg_class') LIKE %s"
        )
        with self._talking():
            rows = self._connection.execute(query, (f'%"{MARK}"%',)).fetchall()
        return [name for (name,) in rows]

    def _lock(self) -> None:
        """Refuse a table that another push is loading.

        Raises:
            GembError: one is.
        """
        deadline = time.monotonic() + LOCK_S
        lock = f"gemb {self._whole_name()}"
        while not self._value("SELECT pg_try_advisory_lock(hashtext(%s))", lock):
            if time.monotonic() > deadline:
                raise GembError(f"{self.name}: another gemb index push is loading it")
            time.sleep(LOOK_S)

    def _whole_name(self) -> str:
        """Return the name of the table with its schema: `docs` may be that of `public.docs`."""
        query = (
            "SELECT coalesce((SELECT relnamespace FROM pg_class WHERE oid = to_regclass(%s)), "
            "to_regnamespace(current_schema()::text)::oid)::regnamespace::text"
        )
        schema = self._value(query, self._table)
        return self._table if "." in self._table else f"{quoted(schema)}.{self._table}"

    def _check_extension(self) -> None:
        """Refuse a server without pgvector.

        Raises:
            Missing: it is not installed there.
        """
        if not self._value("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
            raise Missing(
                f"{self._place} has no pgvector; install it on the server "
                "(https://github.com/pgvector/pgvector)"
            )

    def _check_columns(self, content: Content) -> None:
        """Refuse a table whose columns are not ours.

        Raises:
            UsageError: they are others.
        """
        query = (
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
        )
        with self._talking():
            rows = self._connection.execute(query, (self._oid,)).fetchall()
        there: dict[str, str] = dict(rows)
        for name, kind in column_types(content).items():
            if there.get(name) != kind:
                has = f"{visible(there[name])}, not {kind}" if name in there else "not there"
                raise UsageError(
                    f"{self.name} has other columns ({name} is {has}); name another with --table"
                )

    def _has_index(self) -> bool:
        query = (
            "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = c.relam "
            "WHERE i.indrelid = %s AND i.indisvalid AND a.amname IN ('hnsw', 'ivfflat')"
        )
        return bool(self._value(query, self._oid))

    def _memory(self) -> int:
        """Return the server's memory for making an index, in bytes."""
        kib = self._value("SELECT setting FROM pg_settings WHERE name = 'maintenance_work_mem'")
        return int(kib) << 10

    @contextmanager
    def _talking(self, before: str = "") -> Iterator[None]:
        """Turn the server's errors into ours.

        Args:
            before: what the server does not do, where nothing is written yet.

        Raises:
            UsageError: the address is wrong.
            GembError: the server refuses, fails, or is gone.
        """
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            words = unspoken(error.diag.message_primary or str(error))
            who = "its owner can GRANT it"
            if "extension" in words:
                who = "who administers the server runs CREATE EXTENSION vector in this database"
            raise GembError(f"{self._place}: {words}; {who}") from None
        except psycopg.errors.DiskFull:
            raise GembError(f"{self._place}: no space left on the server{self._kept}") from None
        except psycopg.OperationalError as error:
            words = unspoken(error.diag.message_primary or str(error))
            wrong = words.removeprefix("connection is bad: ")
            if before and wrong.startswith("invalid "):  # a value in the address
                raise UsageError(f"{self._place}: {wrong}") from None
            if before:
                raise GembError(f"{self._place} {before}: {words}") from None
            raise GembError(f"{self._place}: {words}{self._kept}") from None
        except psycopg.Error as error:
            words = unspoken(error.diag.message_primary or str(error))
            if before:  # the address cannot be read
                raise UsageError(f"{self._place}: {words}") from None
            raise GembError(f"{self._place}: {words}") from None


@contextmanager
def _filtering() -> Iterator[None]:
    """Turn what the server says of a filter's values into the user's error.

    Raises:
        UsageError: it refuses one.
    """
    try:
        yield
    except psycopg.DataError as error:
        raise UsageError(f"--where: {unspoken(str(error))}") from None


def _tell(diagnostic: psycopg.errors.Diagnostic) -> None:
    """Print what the server says about an index that does not fit."""
    message = diagnostic.message_primary or ""
    if "maintenance_work_mem" in message:
        note(f"PostgreSQL: {unspoken(message)}")
