"""`gemb index push` into Qdrant's local mode, and `gemb search` there."""

from __future__ import annotations

import pytest

from fake_backend import Gemb
from pushed_rows import FILTERS, ROWS, check_filters, found, ids, push, refused, write_rows

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from gemb.targets.addresses import address_of
from gemb.targets.base import MARK
from gemb.targets.connect import open_target

# Qdrant compares no texts but for being equal, and has no functions.
PLAIN = [
    (text, wanted)
    for text, wanted in FILTERS
    if not any(word in text for word in ("like", "length(", "lower(", "upper(", "'d'"))
]


def test_a_push_and_a_search(rows: Gemb) -> None:
    pushed = push(rows, "rows.gemb", "qdrant:db")
    assert (pushed["added"], pushed["rows"]) == (5, 5)
    assert pushed["checked"] == {"read": 5, "wrong": 0, "queries": 5, "k": 10, "recall": 1.0}
    here = found(rows, "cancel an order", "rows.gemb", "--weak")
    there = found(rows, "cancel an order", "qdrant:db", "--weak")
    for hit in here:
        hit["text"] = hit["text"].replace("\0", "\ufffd")
        hit["score"] = pytest.approx(hit["score"], abs=1e-5)
    assert there == here
    changed = [ROWS[0] | {"year": 2025}, ROWS[1] | {"text": "it snows"}, *ROWS[2:4]]
    write_rows(rows, [*changed, {"id": "f", "text": "new"}])
    assert rows("index", "sync", "rows.gemb").returncode == 0
    pushed = push(rows, "rows.gemb", "qdrant:db", "--delete")
    counts = [pushed[name] for name in ("added", "changed", "unchanged", "removed", "rows")]
    assert counts == [1, 2, 2, 1, 5]
    assert ids(rows, "snows", "qdrant:db", "-k", "1") == ["b"]
    line = refused(rows, "index", "push", "rows.gemb", "qdrant:db", "--dim", "128")
    assert "collection rows in db holds vectors of 768 components, not 128" in line
    line = refused(rows, "search", "q", "qdrant:db", "--where", "text like 'a%'")
    assert line.startswith("--where: Qdrant has no like of texts")


def test_filters(rows: Gemb) -> None:
    push(rows, "rows.gemb", "qdrant:db")
    target = open_target(address_of(f"qdrant:{rows.folder / 'db'}"))
    try:
        numbers = [entry for entry in PLAIN if "year" not in entry[0] or "=" in entry[0]]
        differing = ("year between", "<=")  # "2020" is a text, and so not between
        plain = [entry for entry in numbers if not any(word in entry[0] for word in differing)]
        check_filters(rows.folder / "rows.gemb", target, plain)
    finally:
        target.close()


def test_bad_targets(rows: Gemb) -> None:
    line = refused(rows, "search", "q", "qdrant:db")
    assert line == "db has no table of gemb index push"
    line = refused(rows, "search", "q", "qdrant:db", "--table", "docs")
    assert line == "collection docs in db is not there, or gemb index push did not make it"
    assert not (rows.folder / "db").exists()
    client = QdrantClient(path=str(rows.folder / "db"))
    vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection("rows", vectors_config=vectors)
    client.close()
    line = refused(rows, "index", "push", "rows.gemb", "qdrant:db")
    assert line.startswith("collection rows in db was not made by gemb index push")
    push(rows, "rows.gemb", "qdrant:db", "--table", "docs")
    target = open_target(address_of(f"qdrant:{rows.folder / 'db'}", "docs"))
    content = target.content
    target.close()
    client = QdrantClient(path=str(rows.folder / "db"))
    client.create_collection("other", vectors_config=vectors, metadata={MARK: content.to_json()})
    client.close()
    line = refused(rows, "index", "push", "rows.gemb", "qdrant:db", "--table", "other")
    assert "collection other in db has other vectors (size is 2, not 768)" in line


def test_a_server_that_is_not_there(rows: Gemb) -> None:
    rows.environment["QDRANT_API_KEY"] = "hunter2"
    address = "qdrant:http://localhost:9"
    line = refused(rows, "index", "push", "rows.gemb", address, code=5)
    assert line.startswith("http://localhost:9: ")
    assert "hunter2" not in line
    line = refused(rows, "search", "q", "qdrant:http://u:secret@host")
    assert "secret" not in line
