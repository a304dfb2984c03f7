"""The words of an index: names taken apart, copies, fusion with vectors, older tables of words."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from fake_backend import Gemb, write_model
from gemb.index.words import OLD_WORDS
from gemb.texts.words import VERSION
from index_cases import error, out, write_old

LICENCE = "Permission is granted to anybody who asks for it, free of charge.\n"


@pytest.fixture
def built(gemb: Gemb) -> Gemb:
    """An index `d.gemb` of a folder, by a model whose vectors are sums of those of words."""
    write_model(gemb.model, is_bag=True, max_tokens=512)
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    docs = gemb.folder / "docs"
    (docs / "billing").mkdir(parents=True)
    write_old(docs / "billing" / "a.txt", "the invoice of a customer\n")
    write_old(docs / "b.py", "def cancelOrder(self):\n    pass\n")
    write_old(docs / "c.md", "how an order is made\n")
    write_old(docs / "d.md", "日本語の検索\n")
    for number in range(40):
        write_old(docs / f"licence{number}.txt", LICENCE)
        write_old(docs / f"noise{number}.txt", f"noise{number} of another kind {number}\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    return gemb


def hits(gemb: Gemb, *arguments: str, code: int = 0) -> list[dict]:
    return [
        json.loads(line)
        for line in out(gemb, "search", *arguments, "--json", code=code).splitlines()
    ]


def paths(gemb: Gemb, *arguments: str) -> list[str]:
    return [hit["path"] for hit in hits(gemb, *arguments)]


def check_whole(gemb: Gemb) -> None:
    out(gemb, "index", "verify", "d.gemb", "--rows", "0")


def make_old(gemb: Gemb) -> None:
    """Give the index the words of an earlier version."""
    connection = sqlite3.connect(gemb.folder / "d.gemb/rows.sqlite", isolation_level=None)
    connection.execute("DROP TABLE words")
    for statement in OLD_WORDS.values():
        connection.execute(statement)
    connection.execute("INSERT INTO words(words) VALUES ('rebuild')")
    connection.execute("DROP INDEX rows_copies")
    connection.execute("PRAGMA user_version = 0")
    connection.close()


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("cancelOrder", "docs/b.py"),
        ("cancel_order", "docs/b.py"),
        ("cancelorder", "docs/b.py"),
        ("検索", "docs/d.md"),
        ("billing", "docs/billing/a.txt"),
    ],
)
def test_names_are_found_in_every_form(built: Gemb, query: str, path: str) -> None:
    assert paths(built, query, "d.gemb", "--weak", "-k1") == [path]
    assert paths(built, query, "d.gemb", "--weak", "-k1", "--hybrid") == [path]
    assert paths(built, query, "docs", "--weak", "-k1", "--exact") == [path], "as without an index"


def test_words_follow_what_changes(built: Gemb) -> None:
    write_old(built.folder / "docs" / "b.py", "# moved\n\ndef refundOrder(self):\n    pass\n")
    (built.folder / "docs" / "c.md").unlink()
    out(built, "index", "sync", "d.gemb")
    check_whole(built)
    assert paths(built, "refund", "d.gemb", "--weak", "-k1") == ["docs/b.py"]
    found = hits(built, "cancelOrder", "d.gemb", "--weak", "--hybrid")
    assert all("cancelOrder" not in hit["text"] for hit in found)
    out(built, "index", "rm", "d.gemb", "docs/billing", "--yes")
    out(built, "index", "compact", "d.gemb")
    check_whole(built)
    assert "docs/billing/a.txt" not in paths(built, "billing", "d.gemb", "--weak", "--hybrid")


def test_copies_are_one_hit_with_a_count(built: Gemb) -> None:
    for more in ((), ("--hybrid",)):
        found = hits(built, "permission is granted free", "d.gemb", "--weak", *more)
        assert [hit["text"] == LICENCE.strip() for hit in found].count(True) == 1
        assert found[0]["copies"] == 40
        assert len(found) == 10, "copies keep nothing else out"
        assert "copies" not in found[1]
    where = ("--where", "path < 'docs/licence2'")
    found = hits(built, "permission is granted free", "d.gemb", "--weak", "-k2", *where)
    assert found[0]["copies"] == 12, "0, 1 and 10 to 19"
    names = out(built, "search", "permission is granted free", "d.gemb", "-l", "-k", "0")
    assert names.count("licence") == 40, "each file is one"


def test_rows_that_something_else_tells_apart_are_no_copies(gemb: Gemb) -> None:
    write_model(gemb.model, is_bag=True, max_tokens=512)
    rows = [{"key": key, "text": "red apples"} for key in "abc"]
    (gemb.folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (gemb.folder / "l.txt").write_text("red apples\n" * 3 + "green pears\n")
    out(gemb, "index", "build", "kept.gemb", "r.jsonl")
    out(gemb, "index", "build", "id.gemb", "r.jsonl", "--id-field", "key")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    assert len(hits(gemb, "red apples", "kept.gemb")) == 3
    assert len(hits(gemb, "red apples", "id.gemb")) == 3
    found = hits(gemb, "red apples", "l.gemb", "--weak")
    assert [(hit["text"], hit.get("copies")) for hit in found] == [
        ("red apples", 3),
        ("green pears", None),
    ]


def test_an_index_with_words_of_an_earlier_version_is_searched_and_renewed(built: Gemb) -> None:
    make_old(built)
    check_whole(built)
    assert paths(built, "an order", "d.gemb", "--weak", "--hybrid", "-k1") == ["docs/c.md"]
    found = hits(built, "permission is granted free", "d.gemb", "--weak", "-k3")
    assert found[0]["copies"] >= 3, "those that were ranked"
    done = built("index", "sync", "d.gemb")
    assert done.returncode == 0
    assert b"its words are written anew, by today's rules" in done.stderr
    check_whole(built)
    assert paths(built, "cancel_order", "d.gemb", "--weak", "-k1") == ["docs/b.py"]
    assert hits(built, "permission is granted free", "d.gemb", "--weak")[0]["copies"] == 40
    assert b"anew" not in built("index", "sync", "d.gemb").stderr


def test_a_renewal_of_the_words_that_is_killed_changes_nothing(built: Gemb) -> None:
    make_old(built)
    program = (
        "import os, gemb.index.schema as s\n"
        "from gemb.__main__ import main\n"
        "remake = s.remake_words\n"
        "s.remake_words = lambda connection: (remake(connection), os._exit(9))\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "index", "sync", "d.gemb"],
        cwd=built.folder,
        env=built.environment,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 9
    check_whole(built)
    out(built, "index", "sync", "d.gemb")
    check_whole(built)


def test_a_name_that_many_rows_have_is_no_reason_in_a_question(built: Gemb) -> None:
    answer = "how one may bake it"
    lines = [answer, *(f"GitHub u{number} v{number} w{number}" for number in range(40))]
    (built.folder / "l.txt").write_text("\n".join(lines) + "\n")
    out(built, "index", "build", "l.gemb", "l.txt")
    (hit,) = hits(built, "how do I bake bread on GitHub", "l.gemb", "-k1", "--weak")
    assert hit["text"] == answer
    (hit,) = hits(built, "GitHub", "l.gemb", "-k1", "--weak")
    assert hit["text"].startswith("GitHub ")


def test_words_of_a_newer_version_are_refused(built: Gemb) -> None:
    connection = sqlite3.connect(built.folder / "d.gemb/rows.sqlite")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    for command in (("search", "order", "d.gemb"), ("index", "sync", "d.gemb")):
        line = error(built, *command)
        assert f"d.gemb was made by a newer gemb (words {VERSION + 1}; this one reads" in line


def test_verify_sees_words_that_are_not_those_of_the_rows(built: Gemb) -> None:
    connection = sqlite3.connect(built.folder / "d.gemb/rows.sqlite")
    connection.execute("INSERT INTO words(rowid, title, text) VALUES (0, '', 'more')")
    connection.commit()
    connection.close()
    done = built("index", "verify", "d.gemb", "--rows", "0")
    assert done.returncode == 1
    assert any("BAD" in line and "words" in line for line in done.stdout.decode().splitlines())
