"""Parts of the index that a process would not show."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemb.index.manifest import kept_paths, shown_path
from gemb.index.schema import IndexRow, crc, kept_fields, open_to_write, path_of, transaction
from gemb.index.state import RowLookup

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def row(**fields: object) -> IndexRow:
    given_: dict = {
        "id": None,
        "path": None,
        "line": None,
        "last_line": None,
        "title": None,
        "text": "words",
        "kept": "{}",
        "digest": b"0" * 16,
    }
    return IndexRow(**{**given_, **fields})


def test_a_first_build_looks_nothing_up(tmp_path: Path) -> None:
    connection = open_to_write(tmp_path / "rows.sqlite")
    lookup = RowLookup(connection, 0, [])
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    assert lookup.with_digest(b"0" * 16) is None
    assert lookup.twin(b"0" * 16, 0) is None
    assert statements == [], "without an index on it, a look-up reads all rows"
    connection.close()


def test_rows_of_one_text_are_claimed_one_after_the_other(tmp_path: Path) -> None:
    connection = open_to_write(tmp_path / "rows.sqlite")
    insert = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    with transaction(connection):
        for slot in range(2000):
            connection.execute(insert, (slot, *row(digest=bytes([slot % 2]) * 16).columns()))
    lookup = RowLookup(connection, 2000, [])
    for slot in range(0, 2000, 2):
        found = lookup.with_digest(b"\0" * 16)
        assert found is not None
        assert found.slot == slot
        lookup.claim(slot)
    assert lookup.with_digest(b"\0" * 16) is None
    assert list(lookup.left()) == list(range(1, 2000, 2))
    connection.close()


@given(
    row_id=st.one_of(st.none(), TEXTS, st.integers(-(1 << 70), 1 << 70)),
    path=st.one_of(
        st.none(),
        st.binary(min_size=1, max_size=9).map(lambda name: name.decode(errors="surrogateescape")),
    ),
    line=st.one_of(st.none(), st.integers(1, 1 << 40)),
    text=TEXTS,
)
def test_what_a_row_holds_comes_back_with_its_checksum(
    row_id: object, path: str | None, line: int | None, text: str
) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE rows(id, path TEXT, line, last, title, text, kept, digest, crc)"
    )
    one = row(id=row_id, path=path, line=line, text=text)
    connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", one.columns())
    found = connection.execute("SELECT * FROM rows").fetchone()
    connection.close()
    assert crc(found[:-1]) == found[-1]
    assert path_of(found[1]) == path
    is_large = isinstance(row_id, int) and abs(row_id) >= 1 << 63
    assert found[0] == (str(row_id) if is_large else row_id)
    assert (found[2], found[5], kept_fields(found[6])) == (line, text, {})


@pytest.mark.parametrize(
    ("path", "here", "shown"),
    [
        ("docs/a.md", "/base", "docs/a.md"),
        ("docs/a.md", "/base/docs", "a.md"),
        ("docs/a.md", "/", "base/docs/a.md"),
        ("docs/a.md", "/elsewhere", "/base/docs/a.md"),
        ("../x/a.md", "/base", "../x/a.md"),
        ("../x/a.md", "/x", "a.md"),
        ("/abs/a.md", "/abs", "/abs/a.md"),
    ],
)
def test_a_path_is_shown_as_one_types_it_here(
    path: str, here: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getcwd", lambda: here)
    assert shown_path(path, "/base") == shown
    assert path in kept_paths(shown, "/base")


def test_a_kept_path_is_absolute_where_the_current_folder_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert shown_path("d/x", str(tmp_path / "gone")) == "d/x"
    assert shown_path("d/x", str(tmp_path)) == f"{tmp_path}/d/x"
    (tmp_path / "gone").rmdir()
    assert shown_path("d/x", str(tmp_path)) == f"{tmp_path}/d/x"
    monkeypatch.chdir("/")
    assert shown_path("d/x", "/base") == "base/d/x"
