"""Indexes that are not pushed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import zlib

import pytest

from fake_backend import Gemb, write_model
from gemb.index.schema import COLUMNS, crc
from pushed_rows import build, refused, write_rows


def test_an_index_with_drafts(gemb: Gemb) -> None:
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    gemb.environment["GEMB_DRAFT"] = "draft.fake"
    write_model(gemb.model, is_bag=True, max_tokens=512)
    model = f"{zlib.crc32(b'fake'):016x}"
    write_model(
        gemb.folder / "draft.fake", is_bag=True, max_tokens=512, name="draft", draft_of=[model]
    )
    (gemb.folder / "docs").mkdir()
    for number in range(3):
        (gemb.folder / f"docs/{number}.txt").write_text(f"words of {number}\n")
    built = gemb("index", "build", "d.gemb", "docs", "--draft")
    assert built.returncode == 0, built.stderr
    line = refused(gemb, "index", "push", "d.gemb", "lance:db")
    assert line == (
        "3 rows of d.gemb have drafts of vectors: gemb index refine d.gemb makes real ones"
    )
    assert not (gemb.folder / "db").exists()


@pytest.mark.parametrize("kept", ['{"year": 1999}', "[]"])
def test_a_damaged_row_is_named(rows: Gemb, kept: str) -> None:
    """The first has a wrong checksum, the second a right one of what is no row."""
    (path,) = (rows.folder / "rows.gemb").glob("rows*")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (values,) = connection.execute(f"SELECT {COLUMNS} FROM rows WHERE slot = 3")
        digits = crc((*values[:6], kept, values[7])) if kept == "[]" else values[-1]
        query = "UPDATE rows SET kept = ?, crc = ? WHERE slot = 3"
        connection.execute(query, (kept, digits))
    line = refused(rows, "index", "push", "rows.gemb", "lance:db", code=5)
    assert line == "row 3 of rows.gemb is damaged; gemb index verify rows.gemb says more"


def test_a_folder_of_parts_is_pushed_by_the_part(gemb: Gemb) -> None:
    (gemb.folder / "vectors").mkdir()
    (gemb.folder / "vectors" / "_gemb.json").write_text("{}")
    line = refused(gemb, "index", "push", "vectors/", "lance:db")
    assert line.startswith(
        "vectors/ is a folder of parts, which are pushed one by one: for part in vectors/part-*; "
        "do gemb index push $part TARGET --table NAME; done"
    )


PARTS = """
import sys
import gemb.targets.sources
from gemb.targets.lance import LanceTarget

whole = LanceTarget.upsert


def upsert(self, part):
    print(*part.rows.ids, file=sys.stderr)
    return whole(self, part)


LanceTarget.upsert = upsert
gemb.targets.sources.PART_BYTES = 1000
sys.argv[0] = "gemb"
from gemb.cli import main

main()
"""


def test_parts_end_after_so_many_bytes_of_texts(gemb: Gemb) -> None:
    pytest.importorskip("lancedb")
    lines = [{"id": row_id, "text": f"{row_id} " * 150} for row_id in "abcdefgh"]
    lines[3]["title"] = "t" * 1000
    lines[5]["note"] = "\u4e2d" * 500  # each is two bytes in memory
    build(gemb, lines)
    done = gemb("embed", "rows.jsonl", "--id-field", "id", "--keep", "all", "-o", "v.jsonl")
    assert done.returncode == 0, done.stderr
    for name, parts in {
        "rows.gemb": ["a b c", "d", "e f", "g h"],
        "v.jsonl": ["a b c d", "e f", "g h"],  # without the texts
    }.items():
        table = name.replace(".", "_")
        done = subprocess.run(
            [sys.executable, "-c", PARTS, "index", "push", name, "lance:db", "--table", table],
            cwd=gemb.folder,
            env=gemb.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.decode().splitlines() == parts, name
        assert b"8 of 8 vectors read back are equal" in done.stdout


def test_no_row_to_push_is_said_before_a_table_is_made(gemb: Gemb) -> None:
    build(gemb)
    write_rows(gemb, [{"id": "a", "text": "poison"}, {"id": "b", "text": "poison"}])
    assert gemb("embed", "rows.jsonl", "--id-field", "id", "-o", "v.npz").returncode == 3
    line = refused(gemb, "index", "push", "v.npz", "lance:db")
    assert line == "v.npz has no row to push: all 2 have no vector"
    assert not (gemb.folder / "db").exists()


def test_odd_fields_beside_a_vector_are_those_of_rows(gemb: Gemb) -> None:
    write_rows(gemb, [{"id": "a", "text": "red"}, {"id": "b", "text": "blue"}])
    done = gemb("embed", "rows.jsonl", "--id-field", "id", "--keep", "all", "-o", "v.jsonl")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, (gemb.folder / "v.jsonl").read_text().splitlines())

    def push(*rows: dict) -> list[str]:
        (gemb.folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["index", "push", "odd.jsonl", "lance:db"]

    done = gemb(*push(first | {"id": [1, 2]}, second | {"id": 1.5}))
    assert done.returncode == 0, done.stderr
    found = gemb("search", "red", "lance:db", "--json", "--min-score", "-1")
    assert {json.loads(line)["id"] for line in found.stdout.splitlines()} == {"[1,2]", "1.5"}
    line = refused(gemb, *push(first, second | {"text": {"a": 1}}))
    assert line == "odd.jsonl, line 2: field 'text' is an object, not text"
