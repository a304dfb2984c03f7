"""The statements of a push into PostgreSQL, which a dry run prints; they need no library."""

from __future__ import annotations

import os

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.targets.base import Content

PART_MEMORY = 64  # MB of the server, for a part: 5,000 rows of 768 numbers are 10 to 20
COLUMNS = ("id", "path", "line", "last_line", "title", "text", "kept", "hash", "embedding")
WIDEST = {"vector": 2000, "halfvec": 4000, "bit": 64_000}  # that HNSW takes
LARGEST = 16_000  # components of a vector or halfvec
LONGEST_NAME = 63  # bytes
GRAPH_MEMORY = 1 << 30  # bytes at most, if the server's own setting is less
LINK_BYTES = 320  # of a row in the graph, beside its vector


def column_types(content: Content) -> dict[str, str]:
    """Return the type of each column, as PostgreSQL writes it."""
    return {
        "id": "text",
        "path": "text",
        "line": "integer",
        "last_line": "integer",
        "title": "text",
        "text": "text",
        "kept": "jsonb",
        "hash": "bytea",
        "embedding": f"{content.kind}({content.spec.dim})",
    }


def check_width(content: Content, *, with_index: bool) -> None:
    """Refuse vectors that are too wide.

    Raises:
        UsageError: they are.
    """
    dim, widest = content.spec.dim, WIDEST[content.kind]
    if with_index and dim > widest:
        wider = [kind for kind, most in WIDEST.items() if dim <= most]
        instead = f"--type {wider[0]}, a smaller --dim, or --no-index" if wider else "--no-index"
        raise UsageError(
            f"HNSW takes {widest:,} components of {content.kind}, not {dim}: {instead}"
        )
    if content.kind == "bit" and dim % 8:
        raise UsageError(f"--type bit takes widths that are a multiple of 8, not {dim}")
    if content.kind != "bit" and dim > LARGEST:
        raise UsageError(f"pgvector takes {LARGEST:,} components, not {dim}; --dim cuts them")


def table_statements(table: str, content: Content) -> list[str]:
    """Return what makes the table; its name is quoted."""
    optional = ("path", "line", "last_line", "title")
    columns = [
        f"    {name} {kind}{'' if name in optional else ' NOT NULL'}"
        for name, kind in column_types(content).items()
    ]
    columns[0] = '    id text COLLATE "C" PRIMARY KEY'
    return [
        "CREATE EXTENSION IF NOT EXISTS vector",
        f"CREATE TABLE {table} (\n" + ",\n".join(columns) + "\n)",
        comment_statement(table, content),
    ]


def comment_statement(table: str, content: Content) -> str:
    """Return what lets the table say what it holds."""
    comment = content.to_json().replace("'", "''")
    return f"COMMENT ON TABLE {table} IS '{comment}'"


def temporary_statements(table: str) -> list[str]:
    """Return what makes the temporary table that a part is copied into, and stays in memory."""
    return [
        "SET statement_timeout = 0",  # also for the index
        f"SET temp_buffers = '{PART_MEMORY}MB'",
        f"CREATE TEMPORARY TABLE {_part_table(table)} (LIKE {table}) ON COMMIT DELETE ROWS",
    ]


def copy_statement(table: str) -> str:
    """Return the COPY of a part."""
    return f"COPY {_part_table(table)} ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"


def upsert_statement(table: str) -> str:
    """Return what takes a part from the temporary table."""
    names = ", ".join(COLUMNS)
    changes = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])
    return (
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {_part_table(table)} "
        f"ON CONFLICT (id) DO UPDATE SET {changes}"
    )


def index_statements(table: str, content: Content, rows: int, memory: int) -> list[str]:
    """Return what makes the HNSW index.

    Args:
        table: quoted.
        content: of it.
        rows: that it has.
        memory: that the server would use, in bytes.
    """
    how = "bit_hamming_ops" if content.kind == "bit" else f"{content.kind}_cosine_ops"
    row_bytes = content.width * content.numbers.itemsize + LINK_BYTES
    needed = min(rows * row_bytes, GRAPH_MEMORY)
    setting = [f"SET LOCAL maintenance_work_mem = '{-(-needed >> 20)}MB'"]
    return [
        *(setting if needed > memory else []),
        f"CREATE INDEX ON {table} USING hnsw (embedding {how})",
    ]


def dry_run(table: str, content: Content, rows: int, *, with_index: bool) -> list[str]:
    """Return all statements of a load into a new table."""
    check_width(content, with_index=with_index)
    table = quoted(table)
    statements = [
        *table_statements(table, content),
        *temporary_statements(table),
        copy_statement(table),
        upsert_statement(table),
        *(index_statements(table, content, rows, 0) if with_index else []),
        f"ANALYZE {table}",
    ]
    return [f"{statement};" for statement in statements]


def _part_table(table: str) -> str:
    """Return the name of the temporary table: another one than the table's, which it would hide."""
    return "gemb_part_rows" if table.endswith('"gemb_part"') else "gemb_part"


def quoted(table: str) -> str:
    """Return the name of a table, perhaps with its schema, as SQL has it.

    Raises:
        UsageError: PostgreSQL would cut it, or psycopg take a part of it for a parameter.
    """
    if "%" in table:
        raise UsageError(f"a table's name has no %, as {visible(table, 100)} has: name a --table")
    parts = table.split(".", 1)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise UsageError(
            f"PostgreSQL's names have at most {LONGEST_NAME} bytes, and {visible(table, 100)} has "
            "more: name a --table"
        )
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
