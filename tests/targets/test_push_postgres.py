"""`gemb index push` into a real PostgreSQL, and `gemb search` there."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from fake_backend import Gemb, write_model
from gemb.errors import GembError, UsageError
from gemb.targets.addresses import address_of
from gemb.targets.connect import open_target
from gemb.targets.filters import parsed
from pushed_rows import (
    ROWS,
    build,
    check_filters,
    found,
    ids,
    push,
    refused,
    unit_rows,
    write_rows,
)

psycopg = pytest.importorskip("psycopg")


def test_a_search_in_the_database_is_that_of_the_index(rows: Gemb, database: str) -> None:
    pushed = push(rows, "rows.gemb", database)
    assert (pushed["added"], pushed["rows"], pushed["others"]) == (5, 5, 0)
    assert pushed["checked"] == {"read": 5, "wrong": 0, "queries": 5, "k": 10, "recall": 1.0}
    here = found(rows, "cancel an order", "rows.gemb", "--weak")
    there = found(rows, "cancel an order", database, "--weak")
    assert len(here) == 5
    for hit in (*here, *there):
        hit["text"] = hit["text"].replace("\0", "\ufffd")
        hit["score"] = pytest.approx(hit["score"], abs=2e-4)
    assert [{**hit, "path": None, "line": None} for hit in there] == [
        {**hit, "path": None, "line": None} for hit in here
    ]
    for form in (["-l"], ["--trec"], ["--cite", "100"], ["-C", "1"]):
        outputs = [
            rows("search", "order a parcel", name, *form).stdout.replace(b"\0", b"\xef\xbf\xbd")
            for name in ("rows.gemb", database)
        ]
        if form == ["--trec"]:
            outputs = [[line.split()[2] for line in out.splitlines()] for out in outputs]
        assert outputs[0] == outputs[1], form
    like = ids(rows, database, "--like", "c", "-k", "2")
    assert like == ids(rows, "rows.gemb", "--like", "c", "-k", "2")
    assert "c" not in like


def test_filters_are_bound_as_parameters(rows: Gemb, database: str) -> None:
    push(rows, "rows.gemb", database)
    target = open_target(address_of(database))
    try:
        check_filters(rows.folder / "rows.gemb", target)
    finally:
        target.close()
    assert ids(rows, "parcel", database, "--where", "lang = 'de' and year >= 2024") == ["c"]
    line = refused(rows, "search", "q", database, "--where", "year + 1 = 2025")
    assert line.startswith("--where: at +: a database takes FIELD = VALUE")
    line = refused(rows, "search", "q", database, "--where", "pg_sleep(10)")
    assert "at pg_sleep" in line
    done = rows("search", "parcel", database, "--where", "jear = 2024")
    assert (
        b"no field jear in any row; there are: line, path, big, code, lang, meta, note, paid, "
        b"place, tags, year" in done.stderr
    )
    assert ids(rows, "rain", database, "--weak", "--where", "path = '/north'") == ["b"]


def test_a_push_writes_what_is_new_or_has_changed(rows: Gemb, database: str) -> None:
    push(rows, "rows.gemb", database)
    again = push(rows, "rows.gemb", database)
    assert (again["added"], again["changed"], again["unchanged"]) == (0, 0, 5)
    changed = [
        ROWS[0] | {"year": 2025},
        ROWS[1] | {"text": "it snows"},
        *ROWS[2:4],
        {"id": "f", "text": "new"},
    ]
    write_rows(rows, changed)
    assert rows("index", "sync", "rows.gemb").returncode == 0
    pushed = push(rows, "rows.gemb", database)
    assert (pushed["added"], pushed["changed"], pushed["unchanged"]) == (1, 2, 3 - 1)
    assert (pushed["rows"], pushed["others"], pushed["removed"]) == (6, 1, 0)
    said = rows("index", "push", "rows.gemb", database).stderr
    assert said.endswith(
        b"were not pushed now; --delete removes those that are not in the source\n"
    )
    assert ids(rows, "snows", database, "-k", "1") == ["b"]
    assert ids(rows, "order", database, "--weak", "--where", "year = 2025") == ["a"]
    pushed = push(rows, "rows.gemb", database, "--delete")
    assert (pushed["removed"], pushed["rows"], pushed["others"]) == (1, 5, 0)
    write_rows(rows, changed[:2])
    assert rows("index", "sync", "rows.gemb", "--yes").returncode == 0
    line = refused(rows, "index", "push", "rows.gemb", database, "--delete", code=2)
    assert line == "3 of 5 would be removed, which is more than half; --yes allows it"
    assert push(rows, "rows.gemb", database)["rows"] == 5
    assert push(rows, "rows.gemb", database, "--delete", "--yes")["rows"] == 2


@pytest.mark.parametrize("kind", ["vector", "halfvec", "bit"])
@pytest.mark.parametrize("dim", [None, "128"])
def test_every_type_and_width(rows: Gemb, database: str, kind: str, dim: str | None) -> None:
    more = ["--dim", dim] if dim else []
    pushed = push(rows, "rows.gemb", database, "--type", kind, *more)
    assert pushed["checked"]["wrong"] == 0
    with psycopg.connect(database) as connection:
        query = (
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname='embedding'"
        )
        assert connection.execute(query).fetchone() == (f"{kind}({dim or 768})",)
        (definition,) = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'rows_embedding_idx'"
        ).fetchone()
        assert ("hamming" if kind == "bit" else f"{kind}_cosine") in definition
    assert ids(rows, "order a parcel", database, "--table", "rows")[0] == "c"
    other = "vector" if kind == "bit" else "bit"
    line = refused(rows, "index", "push", "rows.gemb", database, "--type", other, *more)
    assert "holds vectors" in line
    assert line.endswith("push into another --table")


def test_what_embed_writes_is_pushed_without_an_index(rows: Gemb, database: str) -> None:
    embedded = rows("embed", "rows.jsonl", "--id-field", "id", "--keep", "all")
    assert embedded.returncode == 0, embedded.stderr
    pushed = push(rows, "-", database, "--table", "piped", stdin=embedded.stdout)
    assert (pushed["added"], pushed["rows"]) == (5, 5)
    assert ids(rows, "order a parcel", database)[0] == "c"
    assert set(ids(rows, "parcel", database, "--weak", "--where", "year >= 2024")) == {"a", "c"}
    assert push(rows, "-", database, "--table", "piped", stdin=embedded.stdout)["unchanged"] == 5
    for name in ("v.npz", "w.jsonl"):
        assert rows("embed", "rows.jsonl", "--id-field", "id", "-o", name).returncode == 0
        assert push(rows, name, database)["added"] == 5
    failing = [*ROWS[:2], {"id": "bad", "text": "poison"}]
    write_rows(rows, failing)
    embedded = rows("embed", "rows.jsonl", "--id-field", "id")
    assert embedded.returncode == 3
    done = rows("index", "push", "-", database, "--table", "failed", stdin=embedded.stdout)
    assert done.returncode == 3
    assert b"without a vector, and not pushed: 1 rows" in done.stderr


def test_a_dry_run_prints_the_sql(rows: Gemb, database: str) -> None:
    done = rows("index", "push", "rows.gemb", "postgres://nowhere.invalid/db", "-n")
    assert done.returncode == 0, done.stderr
    sql = done.stdout.decode()
    assert "COPY gemb_part (id, path, " in sql
    assert "USING hnsw (embedding halfvec_cosine_ops)" in sql
    statements = [part for part in sql.split(";\n") if not part.startswith("COPY")]
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    assert push(rows, "rows.gemb", database)["rows"] == 5


def test_bad_targets(rows: Gemb, database: str) -> None:
    line = refused(rows, "index", "push", "rows.gemb", "postgres://u:secret@host/db")
    assert line.startswith("a password in the address is seen by every user")
    assert "secret" not in line
    line = refused(rows, "search", "q", "postgres://host/db?password=secret")
    assert "secret" not in line
    rows.environment["PGPASSWORD"] = "hunter2"
    line = refused(rows, "index", "push", "rows.gemb", "postgres:///db?host=/nowhere", code=5)
    assert line.startswith("postgres:///nowhere/db cannot be reached: ")
    assert "hunter2" not in line
    for more, words in (
        ("&foo=1", 'invalid URI query parameter: "foo"'),
        ("&sslmode=foo", 'invalid sslmode value: "foo"'),
    ):
        line = refused(rows, "index", "push", "rows.gemb", f"postgres:///db?host=/nowhere{more}")
        assert line == f"postgres:///nowhere/db: {words}"
    line = refused(rows, "index", "push", "rows.gemb", "mysql://host/db")
    assert "mysql://host/db is no target; name postgres://HOST/DATABASE" in line
    line = refused(rows, "search", "q", database)
    assert line.endswith("has no table of gemb index push")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (id text PRIMARY KEY, words text)")
        connection.execute("CREATE ROLE reader LOGIN")
    line = refused(rows, "index", "push", "rows.gemb", database)
    assert "was not made by gemb index push; name another with --table" in line
    line = refused(rows, "search", "q", database, "--table", "rows")
    assert "gemb index push did not make it" in line
    push(rows, "rows.gemb", database, "--table", "docs")
    reader = database.replace("postgres@", "reader@")
    line = refused(rows, "index", "push", "rows.gemb", reader, "--table", "other", code=5)
    assert "permission denied for schema public; its owner can GRANT it" in line
    line = refused(rows, "index", "push", "rows.gemb", reader, "--table", "docs", code=5)
    assert "permission denied for table docs" in line
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE docs RENAME COLUMN kept TO fields")
        connection.execute("CREATE DATABASE bare OWNER reader")
    line = refused(rows, "index", "push", "rows.gemb", database, "--table", "docs")
    assert "has other columns (kept is not there)" in line
    bare = re.sub(r"/db\d+\?", "/bare?", reader)
    line = refused(rows, "index", "push", "rows.gemb", bare, code=5)
    assert line.endswith(
        'permission denied to create extension "vector"; who administers the server runs CREATE '
        "EXTENSION vector in this database"
    )


def test_a_table_that_another_push_made_meanwhile(rows: Gemb, database: str) -> None:
    early = open_target(address_of(database, "rows"))
    try:
        push(rows, "rows.gemb", database)
        made = open_target(address_of(database))
        content = made.content
        made.close()
        with pytest.raises(UsageError, match="holds vectors of type halfvec, not vector"):
            early.prepare(replace(content, kind="vector"), with_index=False)
        early.prepare(content, with_index=False)
        assert early.count() == 5
    finally:
        early.close()


def test_a_push_that_the_server_ends_says_what_to_do_and_a_search_does_not(
    rows: Gemb, database: str
) -> None:
    push(rows, "rows.gemb", database)
    target = open_target(address_of(database))

    def said(error: psycopg.Error) -> str:
        with pytest.raises(GembError) as raised, target._talking():
            raise error
        return str(raised.value).partition(": ")[2]

    full = psycopg.errors.DiskFull("could not extend file")
    cancelled = psycopg.errors.QueryCanceled("canceling statement due to user request")
    try:
        assert said(full) == "no space left on the server"
        assert said(cancelled) == "canceling statement due to user request"
        target.prepare(target.content, with_index=False)
        for error, words in (
            (full, "no space left on the server"),
            (cancelled, "canceling statement due to user request"),
        ):
            assert said(error) == (
                f"{words}; what was committed is kept, and the same command goes on"
            )
    finally:
        target.close()


@pytest.mark.parametrize(("table", "other"), [("docs", "public.docs"), ("more.docs", "docs")])
@pytest.mark.parametrize("is_there", [True, False])
def test_two_names_of_one_table_have_one_lock(
    rows: Gemb, database: str, monkeypatch: pytest.MonkeyPatch, table: str, other: str, is_there
) -> None:
    monkeypatch.setattr("gemb.targets.postgres.LOCK_S", 0)
    with psycopg.connect(database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute("CREATE SCHEMA more")
        if table == "more.docs":  # the first schema in which docs is looked for
            connection.execute(f"ALTER DATABASE {name} SET search_path = more, public")
    push(rows, "rows.gemb", database, "--table", "rows")
    if is_there:
        push(rows, "rows.gemb", database, "--table", table)
    first, second = (open_target(address_of(database, name)) for name in (table, other))
    made = open_target(address_of(database, "rows"))
    try:
        first.prepare(made.content, with_index=False)
        with pytest.raises(GembError, match="another gemb index push is loading it"):
            second.prepare(made.content, with_index=False)
    finally:
        for target in (first, second, made):
            target.close()


def test_another_model_is_refused(rows: Gemb, database: str) -> None:
    push(rows, "rows.gemb", database)
    write_model(rows.folder / "other.fake", name="other", is_bag=True, max_tokens=512)
    done = rows(
        "index", "build", "-f", "rows.gemb", "rows.jsonl", "--id-field", "id", "-m", "other.fake"
    )
    assert done.returncode == 0
    line = refused(rows, "index", "push", "rows.gemb", database)
    assert "holds vectors of another model" in line
    line = refused(rows, "search", "q", database, "-m", "other.fake")
    assert "holds vectors of another model" in line
    line = refused(rows, "search", "q", database, "--dim", "256")
    assert line.startswith("--dim 256: the vectors of table")
    line = refused(rows, "search", "q", database, "--task", "clustering")
    assert "--task clustering" in line
    for option in ("--hybrid", "--lines"):
        assert option in refused(rows, "search", "q", database, option)
    write_model(rows.folder / "model.fake", name="changed", is_bag=True, max_tokens=512)
    line = refused(rows, "search", "q", database)
    assert "is not what it was when its vectors were made" in line
    (rows.folder / "model.fake").unlink()
    line = refused(rows, "search", "q", database, code=4)
    assert "which is not here" in line
    assert line.endswith("-m REF names its new place")


def test_a_table_named_as_the_temporary_one(rows: Gemb, database: str) -> None:
    assert push(rows, "rows.gemb", database, "--table", "gemb_part")["rows"] == 5
    assert push(rows, "rows.gemb", database, "--table", "gemb_part")["unchanged"] == 5
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM gemb_part").fetchone() == (5,)
    assert push(rows, "rows.gemb", database, "--table", "docs")["added"] == 5


def test_names_of_tables(rows: Gemb, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    for name in ('a"b', "other.docs", "x" * 63, "x" * 62 + "y"):
        assert push(rows, "rows.gemb", database, "--table", name)["rows"] == 5
        assert ids(rows, "parcel", database, "--table", name)
    line = refused(rows, "index", "push", "rows.gemb", database, "--table", "ü" * 32)
    assert line == (
        f"PostgreSQL's names have at most 63 bytes, and {'ü' * 32} has more: name a --table"
    )
    line = refused(rows, "index", "push", "rows.gemb", database, "--table", "100%")
    assert line == "a table's name has no %, as 100% has: name a --table"
    line = refused(rows, "search", "q", database)
    assert line.endswith(f'with --table: a"b, other.docs, {"x" * 63}, {"x" * 62}y')


def test_passages_and_rows_with_ids_do_not_mix(rows: Gemb, database: str) -> None:
    (rows.folder / "docs").mkdir()
    (rows.folder / "docs" / "money.md").write_text("Your money comes back soon.\n")
    assert rows("index", "build", "docs.gemb", "docs").returncode == 0
    push(rows, "rows.gemb", database)
    line = refused(rows, "index", "push", "docs.gemb", database, "--table", "rows")
    assert line.endswith("holds rows with ids, not passages of files; push into another --table")
    push(rows, "docs.gemb", database)
    line = refused(rows, "index", "push", "rows.gemb", database, "--table", "docs")
    assert "holds passages of files, not rows with ids" in line


def test_ids_that_repeat_or_are_absent(gemb: Gemb, database: str) -> None:
    build(gemb)
    embedded = gemb("embed", "rows.jsonl", "--id-field", "id").stdout
    line = refused(gemb, "index", "push", "-", database, stdin=embedded + embedded)
    assert line.startswith("several rows have the id 'a', and a table has each once")
    row = json.loads(embedded.splitlines()[0])
    del row["id"]
    line = refused(gemb, "index", "push", "-", database, stdin=json.dumps(row))
    assert line.startswith("standard input, line 1: no id, by which a table knows a row")
    line = refused(gemb, "index", "push", "-", database, stdin=b"")
    assert line.startswith("standard input has no vectors")
    line = refused(gemb, "index", "push", "-", database, stdin=b"hello\n")
    assert line == "standard input, line 1: no row of vectors"


def test_a_filter_that_few_rows_pass_finds_all_of_them(gemb: Gemb, database: str) -> None:
    rows = [{"id": f"r{n}", "text": f"word{n}", "n": n} for n in range(600)]
    push(build(gemb, rows), "rows.gemb", database)
    with psycopg.connect(database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET enable_seqscan = off")  # by the graph
        connection.execute(f"ALTER DATABASE {name} SET hnsw.max_scan_tuples = 1")
    target = open_target(address_of(database))
    try:
        found = target.search(unit_rows(1, 768)[0], 10, parsed("n >= 590"))
    finally:
        target.close()
    assert {row.row.id for row in found} == {f"r{n}" for n in range(590, 600)}


def test_texts_are_whole_whatever_the_clients_encoding_is(gemb: Gemb, database: str) -> None:
    build(gemb, [{"id": "ä", "text": "grüße € 中", "lang": "dé"}])
    gemb.environment["PGCLIENTENCODING"] = "LATIN1"
    push(gemb, "rows.gemb", database)
    assert push(gemb, "rows.gemb", database)["unchanged"] == 1
    with psycopg.connect(database, client_encoding="utf8") as connection:
        row = connection.execute("SELECT id, text FROM rows").fetchone()
    assert row == ("ä", "grüße € 中")
    assert ids(gemb, "grüße", database, "--weak", "--where", "lang = 'dé'") == ["ä"]


def test_a_server_without_pgvector(rows: Gemb, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA bare")
        connection.execute(
            "CREATE VIEW bare.pg_available_extensions AS "
            "SELECT * FROM pg_catalog.pg_available_extensions WHERE name <> 'vector'"
        )
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET search_path = bare, pg_catalog, public"
        )
    line = refused(rows, "index", "push", "rows.gemb", database, code=4)
    assert line.endswith(
        " has no pgvector; install it on the server (https://github.com/pgvector/pgvector)"
    )
