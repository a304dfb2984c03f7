"""`gemb index push` into LanceDB, and `gemb search` there."""

from __future__ import annotations

import pytest

from fake_backend import Gemb
from gemb.targets.addresses import address_of
from gemb.targets.connect import open_target
from pushed_rows import ROWS, check_filters, found, ids, push, refused, write_rows

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
    line = refused(rows, "index", "push", "rows.gemb", "lance:db", "--type", "bit")
    assert line.startswith("--type bit is for PostgreSQL")
    line = refused(rows, "search", "q", "lance:db")
    assert line == "db has no table of gemb index push"
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
