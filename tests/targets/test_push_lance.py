"""`gemb index push` into LanceDB, and `gemb search` there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fake_backend import Gemb
from gemb.errors import GembError
from gemb.targets.addresses import address_of
from gemb.targets.connect import open_target
from pushed_rows import (
    ROWS,
    check_filters,
    embedded_lines,
    found,
    ids,
    push,
    refused,
    write_rows,
)

lancedb = pytest.importorskip("lancedb")


def test_a_push_and_a_search(rows: Gemb) -> None:
    pushed = push(rows, "rows.gemb", "lance:db")
    assert (pushed["added"], pushed["rows"]) == (5, 5)
    assert pushed["checked"] == {"read": 5, "wrong": 0, "queries": 5, "k": 10, "recall": 1.0}
    here = found(rows, "cancel an order", "rows.gemb", "--weak")
    there = found(rows, "cancel an order", "lance:db", "--weak")
    for hit in here:
        hit["text"] = hit["text"].replace("\0", "\ufffd")
        hit["score"] = pytest.approx(hit["score"], abs=1e-5)
    assert there == here
    assert ids(rows, "order a parcel", "db/rows.lance")[0] == "c"
    assert push(rows, "rows.gemb", "lance:db")["unchanged"] == 5
    changed = [ROWS[0] | {"year": 2025}, ROWS[1] | {"text": "it snows"}, *ROWS[2:4]]
    write_rows(rows, [*changed, {"id": "f's", "text": "new"}])
    assert rows("index", "sync", "rows.gemb").returncode == 0
    pushed = push(rows, "rows.gemb", "lance:db", "--delete")
    counts = [pushed[name] for name in ("added", "changed", "unchanged", "removed", "rows")]
    assert counts == [1, 2, 2, 1, 5]
    assert ids(rows, "snows", "lance:db", "-k", "1") == ["b"]


def test_filters(rows: Gemb) -> None:
    push(rows, "rows.gemb", "lance:db")
    target = open_target(address_of(str(rows.folder / "db" / "rows.lance")))
    check_filters(rows.folder / "rows.gemb", target)
    assert ids(rows, "parcel", "lance:db", "--where", "lang = 'de' and year >= 2024") == ["c"]


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_types_and_widths(rows: Gemb, kind: str) -> None:
    pushed = push(rows, "rows.gemb", "docs.lance", "--type", kind, "--dim", "128")
    assert pushed["checked"]["wrong"] == 0
    size = lancedb.connect(str(rows.folder)).open_table("docs").schema.field("embedding").type
    assert (size.list_size, str(size.value_type)) == (
        128,
        {"vector": "float"}.get(kind, "halffloat"),
    )
    line = refused(rows, "index", "push", "rows.gemb", "docs.lance", "--type", kind)
    assert "table docs in . holds vectors of 128 components, not 768" in line


def test_bad_targets(rows: Gemb) -> None:
    for target, database in (("lance:db", "LanceDB"), ("qdrant:db", "Qdrant")):
        for more in (["-n"], []) if target == "lance:db" else (["-n"],):
            line = refused(rows, "index", "push", "rows.gemb", target, "--type", "bit", *more)
            assert line == f"--type bit is for PostgreSQL; {database} takes vector or halfvec"
    line = refused(rows, "search", "q", "lance:db")
    assert line == "db has no table of gemb index push"
    line = refused(rows, "search", "q", "db/rows.lance")
    assert line == "table rows in db is not there, or gemb index push did not make it"
    for name in ("a/b", "../up", "\u00fc"):
        line = refused(rows, "index", "push", "rows.gemb", "lance:db", "--table", name)
        assert line.endswith(f" digits, _, - and ., not {name}: name a --table")
    assert not (rows.folder / "db").exists()
    database = lancedb.connect(str(rows.folder / "db"))
    database.create_table("rows", data=[{"id": "a", "vector": [1.0, 2.0]}])
    line = refused(rows, "index", "push", "rows.gemb", "lance:db")
    assert line.startswith("table rows in db was not made by gemb index push")
    push(rows, "rows.gemb", "lance:db", "--table", "docs")
    database.open_table("docs").drop_columns(["title"])
    line = refused(rows, "index", "push", "rows.gemb", "lance:db", "--table", "docs")
    assert "has other columns (title is not there)" in line
    (rows.folder / "file").write_text("x")
    line = refused(rows, "index", "push", "rows.gemb", "lance:file", code=5)
    assert line.startswith("file: ")


def test_one_push_at_a_time(rows: Gemb) -> None:
    push(rows, "rows.gemb", "lance:db")
    address = address_of(str(rows.folder / "db" / "rows.lance"))
    first, second = open_target(address), open_target(address)
    assert first.content is not None
    first.prepare(first.content, with_index=False)
    with pytest.raises(GembError, match=r"table rows in .* another gemb index push is loading it"):
        second.prepare(first.content, with_index=False)
    line = refused(rows, "index", "push", "rows.gemb", "lance:db", code=5)
    assert line == "table rows in db: another gemb index push is loading it"
    push(rows, "rows.gemb", "lance:db", "--table", "docs")
    first.close()
    second.prepare(first.content, with_index=False)
    second.close()
    assert push(rows, "rows.gemb", "lance:db")["unchanged"] == 5
    assert not list((rows.folder / "db").glob(".*"))


def test_a_row_that_fails_is_not_removed(rows: Gemb) -> None:
    def embed(lines: list[dict], code: int) -> None:
        write_rows(rows, lines)
        done = rows("embed", "rows.jsonl", "--id-field", "id", "-o", "v.jsonl")
        assert done.returncode == code, done.stderr

    embed(ROWS[:4], 0)
    push(rows, "v.jsonl", "lance:db")
    embed([*ROWS[:2], ROWS[2] | {"text": "poison"}], 3)
    pushed = push(rows, "v.jsonl", "lance:db", "--delete", code=3)
    counts = [pushed[name] for name in ("unchanged", "failed", "removed", "rows", "others")]
    assert counts == [2, 1, 1, 3, 1]


def test_names_that_differ_in_bytes_that_are_no_utf8(rows: Gemb) -> None:
    (rows.folder / "docs").mkdir()
    for name, text in ((b"caf\xe9.txt", "order a parcel"), (b"caf\xe8.txt", "rain")):
        (rows.folder / "docs" / os.fsdecode(name)).write_text(text + "\n")
    assert rows("index", "build", "docs.gemb", "docs").returncode == 0
    assert push(rows, "docs.gemb", "lance:db")["rows"] == 2
    assert push(rows, "docs.gemb", "lance:db")["unchanged"] == 2
    like = os.fsdecode(b"docs/caf\xe9.txt:1")
    assert [hit["text"] for hit in found(rows, "lance:db", "--like", like)] == ["rain"]


def test_nothing_is_removed_for_a_pipe_that_may_have_broken(rows: Gemb) -> None:
    line = refused(rows, "index", "push", "-", "lance:db", "--delete", stdin=b"{}")
    assert line.startswith(
        "--delete needs all rows, and standard input does not say whether they were all: gemb "
        "embed ... -o rows.jsonl, then gemb index push rows.jsonl TARGET --delete"
    )


def test_a_full_disk(gemb: Gemb) -> None:
    disk = gemb.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        (gemb.folder / "v.jsonl").write_bytes(b"".join(embedded_lines(1000, 768)))
        line = refused(gemb, "index", "push", "v.jsonl", "lance:disk/db", code=5)
        assert line == (
            "disk/db: no space left; what was written is kept, and the same command goes on"
        )
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        pushed = push(gemb, "v.jsonl", "lance:disk/db")
        assert (pushed["rows"], pushed["checked"]["wrong"]) == (1000, 0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_whose_name_ends_in_lance(rows: Gemb) -> None:
    assert push(rows, "rows.gemb", "lance:all.lance")["added"] == 5
    assert (rows.folder / "all.lance" / "rows.lance").is_dir()
    assert ids(rows, "order a parcel", "lance:all.lance")[0] == "c"


FEWER = """
import sys
from gemb.targets.lance import LanceTarget

whole = LanceTarget.search


def search(self, vector, k, condition=None, *, is_exact=False):
    return whole(self, vector, k, condition, is_exact=True)[: k if is_exact else 2]


LanceTarget.search = search
sys.argv[0] = "gemb"
from gemb.cli import main

main()
"""


def test_a_recall_that_is_too_low(rows: Gemb) -> None:
    command = [sys.executable, "-c", FEWER, "index", "push", "rows.gemb", "lance:db"]

    def pushed(least: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, "--min-recall", least],
            cwd=rows.folder,
            env=rows.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    done = pushed("0.9")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [
        "gemb: table rows in db: recall@10 is 0.400, under --min-recall 0.9"
    ]
    done = pushed("0.4")
    assert done.returncode == 0, done.stderr
    assert b"recall@10 0.400 of 5 queries" in done.stdout
