"""`gemb search` of an index: filters, words, likeness, many queries, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.index.reader import Index
from gemb.search.index import rows_of

ROWS = [
    ("a", "cancel an order", "en", 2024),
    ("b", "it rains in the north", "en", 2020),
    ("c", "order a parcel", "de", 2024),
    ("d", "cancel the train", "de", 2023),
    ("e", "a parcel of land", "en", 2023),
]
BAG = {"is_bag": True, "max_tokens": 512}


@pytest.fixture
def rows(gemb: Gemb) -> Gemb:
    """An index `rows.gemb` of five rows, by a model whose vectors are sums of those of words."""
    write_model(gemb.folder / "model.fake", **BAG)
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    names = ("id", "text", "lang", "year")
    content = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)
    (gemb.folder / "rows.jsonl").write_text(content)
    built = gemb("index", "build", "rows.gemb", "rows.jsonl", "--id-field", "id")
    assert built.returncode == 0, built.stderr
    return gemb


def ids(gemb: Gemb, *arguments: str, code: int = 0) -> list[str]:
    found = gemb("search", *arguments, "--json")
    assert found.returncode == code, found.stderr
    return [json.loads(line)["id"] for line in found.stdout.splitlines()]


def refused(gemb: Gemb, *arguments: str, code: int = 2) -> str:
    found = gemb("search", *arguments)
    assert (found.returncode, found.stdout) == (code, b"")
    (line,) = found.stderr.decode().splitlines()
    return line.removeprefix("gemb: ")


def bag_cosines(gemb: Gemb, query: str) -> dict[str, float]:
    """Return the cosine of each row with a query, computed here from the words alone."""

    def vector(text: str) -> np.ndarray:
        import zlib

        words = [10 + zlib.crc32(word.encode()) % 50000 for word in text.split()]
        total = sum(
            (np.random.default_rng(one).standard_normal(768) for one in words), np.full(768, 1e-3)
        )
        return total / np.linalg.norm(total)

    return {row[0]: float(vector(row[1]) @ vector(query)) for row in ROWS}


def test_the_order_and_the_scores_are_those_of_the_vectors(rows: Gemb):
    wanted = bag_cosines(rows, "cancel an order")
    found = rows("search", "cancel an order", "rows.gemb", "--json", "--weak")
    hits = [json.loads(line) for line in found.stdout.splitlines()]
    assert [hit["id"] for hit in hits] == sorted(wanted, key=wanted.__getitem__, reverse=True)
    for hit in hits:
        assert hit["score"] == pytest.approx(wanted[hit["id"]], abs=1e-3)  # f16 rows
    assert (hits[0]["lang"], hits[0]["year"], hits[0]["text"]) == ("en", 2024, "cancel an order")


def test_a_filter_comes_first_and_then_as_many_as_are_wanted(rows: Gemb):
    found = ids(rows, "cancel an order", "rows.gemb", "--where", "lang='de'", "-k1", "--weak")
    assert found in (["c"], ["d"])
    both = ids(rows, "cancel an order", "rows.gemb", "--where", "lang='de'", "-k2", "--weak")
    assert sorted(both) == ["c", "d"]
    found = rows("search", "cancel an order", "rows.gemb", "--where", "year>2030")
    assert found.returncode == 1
    assert b"rows.gemb: no row passes --where" in found.stderr


def test_words_count_too_where_they_are_asked_for(rows: Gemb):
    found = ids(rows, "parcel", "rows.gemb", "--hybrid", "--min-score", "0.99")
    assert sorted(found) == ["c", "e"], "all words of the query are in them"
    assert ids(rows, "parcel", "rows.gemb", "--min-score", "0.99", code=1) == []
    only = ids(rows, "parcel", "rows.gemb", "--hybrid", "--weak", "--where", "lang='en'")
    assert only[0] == "e"
    assert set(only) <= {"a", "b", "e"}


def test_what_is_like_a_row_is_not_the_row_itself(rows: Gemb):
    wanted = bag_cosines(rows, "order a parcel")
    del wanted["c"]
    found = ids(rows, "--like", "c", "rows.gemb", "-k2")
    assert found == sorted(wanted, key=wanted.__getitem__, reverse=True)[:2]
    assert ids(rows, "--like", "rows.jsonl:3", "rows.gemb", "-k2") == found


def test_likeness_needs_no_model(rows: Gemb):
    (rows.folder / "model.fake").unlink()
    assert len(ids(rows, "--like", "c", "rows.gemb")) == 4


def test_a_row_that_was_removed_is_not_found(rows: Gemb):
    assert rows("index", "rm", "rows.gemb", "a", "--yes").returncode == 0
    for more in ((), ("--hybrid",)):
        assert "a" not in ids(rows, "cancel an order", "rows.gemb", "--weak", *more)
    assert "no row 'a'" in refused(rows, "--like", "a", "rows.gemb")


def test_many_queries_make_a_run_with_the_ids_of_rows(rows: Gemb):
    (rows.folder / "q.jsonl").write_text('{"_id": "q1", "text": "cancel an order"}\nparcel\n')
    found = rows("search", "-f", "q.jsonl", "rows.gemb", "--trec", "-k2", "--weak")
    table = [line.split() for line in found.stdout.decode().splitlines()]
    assert [line[0] for line in table] == ["q1", "q1", "2", "2"]
    assert [line[3] for line in table] == ["1", "2", "1", "2"]
    assert table[0][2] == "a"
    assert float(table[0][4]) > float(table[1][4])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("q.tsv", "q1\tcancel an order\nq2\tparcel\n"),
        ("q.tsv", "ID\tQuery\nq1\tcancel an order\nq2\tparcel\n"),
        ("q.csv", '_id,text,x\nq1,"cancel an order",\nq2,parcel,1\n'),
        ("q.csv", "text;id\ncancel an order;q1\nparcel;q2\n"),
        ("q.jsonl", '{"docid":"q1","contents":"cancel an order"}\n{"id":"q2","query":"parcel"}'),
    ],
)
def test_queries_are_read_from_what_people_hold(rows: Gemb, name: str, data: str):
    (rows.folder / name).write_text(data)
    found = rows("search", "-f", name, "rows.gemb", "--trec", "-k1", "--weak")
    table = [line.split() for line in found.stdout.decode().splitlines()]
    assert [line[0] for line in table] == ["q1", "q2"], found.stderr
    assert table[0][2] == "a"


def test_queries_have_the_encoding_that_is_named(rows: Gemb):
    (rows.folder / "q.tsv").write_bytes("q1\tcaf\u00e9\n".encode("cp1252"))
    found = rows("search", "-f", "q.tsv", "rows.jsonl", "--encoding", "cp1252", "--json", "--weak")
    assert found.returncode == 0, found.stderr
    assert "valid UTF-8" in refused(rows, "-f", "q.tsv", "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("q.tsv", "a\tb\tc\n", "q.tsv, line 1: no column 'text' or 'query'; it has: a, b, c"),
        ("q.tsv", "q1\ta\nq2\n", "q.tsv, line 2: 1 columns; the first line has 2"),
        ("q", '[{"text": "a"}]\n', "q, line 1: a JSON array; queries are JSON lines: jq -c '.[]'"),
    ],
)
def test_queries_that_are_none_are_refused(rows: Gemb, name: str, data: str, words: str):
    (rows.folder / name).write_text(data)
    assert words in refused(rows, "-f", name, "rows.gemb")


def test_the_model_is_the_one_of_the_index_where_none_is_named(rows: Gemb):
    write_model(rows.folder / "other.fake", **BAG, name="other")
    rows.environment["GEMB_MODEL"] = "other.fake"
    assert ids(rows, "cancel an order", "rows.gemb", "-k1", "--weak") == ["a"]


def test_another_model_is_refused_with_what_mends_it(rows: Gemb):
    write_model(rows.folder / "other.fake", **BAG, name="other")
    line = refused(rows, "cancel", "rows.gemb", "-m", "other.fake")
    model = rows.folder / "model.fake"
    assert line == (
        f"rows.gemb holds vectors of another model ({model}), not of other.fake: leave -m out, or "
        "gemb index build -f rows.gemb SOURCE... -m other.fake"
    )
    forced = ids(rows, "cancel an order", "rows.gemb", "-m", "other.fake", "--force", "--weak")
    assert forced[0] == "a"
    write_model(rows.folder / "narrow.fake", **BAG, name="narrow", dim=512, dims=[512, 256])
    line = refused(rows, "cancel", "rows.gemb", "-m", "narrow.fake", "--force")
    assert line == "--force: rows.gemb has vectors of 768 components, and the model gives 512, 256"


def test_a_model_that_has_changed_is_refused_with_what_mends_it(rows: Gemb):
    write_model(rows.folder / "model.fake", **BAG, name="changed")
    line = refused(rows, "cancel", "rows.gemb")
    assert "is not what it was when the index was built" in line
    assert "gemb index build -f rows.gemb" in line


def test_another_width_or_prompt_is_refused_with_what_mends_it(rows: Gemb):
    line = refused(rows, "cancel", "rows.gemb", "--dim", "256")
    assert line == (
        "--dim 256: the vectors of rows.gemb have 768; leave --dim out, or build another index: "
        "gemb index build OTHER SOURCE... --dim 256"
    )
    line = refused(rows, "cancel", "rows.gemb", "--task", "similarity")
    assert line.startswith("--task similarity: rows.gemb was built with --task document, which ")
    assert ids(rows, "cancel an order", "rows.gemb", "--task", "qa", "-k1", "--weak") == ["a"]
    built = rows("index", "build", "s.gemb", "rows.jsonl", "--task", "similarity")
    assert built.returncode == 0
    assert "goes with --task similarity" in refused(rows, "cancel", "s.gemb", "--task", "query")
    assert rows("search", "cancel an order", "s.gemb", "--weak").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "rows.gemb", "rows.gemb"), "rows.gemb is an index; it is searched alone"),
        (("x", "rows.gemb", "-g", "*.py"), "-g is for files; what an index holds is chosen by"),
        (("x", "rows.gemb", "--budget", "5s"), "--budget is for files; what an index holds is"),
        (("x", "rows.gemb", "--exact"), "--exact is for files; what an index holds is chosen by"),
        (("x", "rows.gemb", "--lines"), "--lines is for files; what an index holds is chosen by"),
        (("x", "rows.gemb", "--where", "lnag='de'"), "did you mean 'lang'"),
        (("x", "rows.gemb", "--where", "lang='de"), "--where"),
        (("--like", "zzz", "rows.gemb"), "no row 'zzz' in rows.gemb; name an id, or FILE:LINE"),
    ],
)
def test_what_does_not_fit_an_index_is_one_line(rows: Gemb, arguments: tuple[str], message: str):
    assert message in refused(rows, *arguments)


def test_a_mistyped_index_is_told_apart_from_a_folder(rows: Gemb):
    line = refused(rows, "x", "row.gemb", "--where", "lang='de'")
    assert "no index row.gemb; did you mean rows.gemb? (" in line
    assert "no index zzz (" in refused(rows, "x", "zzz", "--accuracy", "exact")


def test_a_slow_filter_says_so_before_it_runs(rows: Gemb, monkeypatch, capsys):
    monkeypatch.setattr("gemb.search.index.NOTED", 1)
    with Index.open(rows.folder / "rows.gemb") as index:
        rows_of(index, "line = 1")
        assert capsys.readouterr().err == ""
        rows_of(index, "lang = 'de'")
        assert "--where reads the kept fields of" in capsys.readouterr().err


def test_a_damaged_index_is_one_line(rows: Gemb):
    shutil.copytree(rows.folder / "rows.gemb", rows.folder / "whole.gemb")
    (rows.folder / "rows.gemb" / "vectors.f16").unlink()
    assert "vectors.f16 is missing" in refused(rows, "x", "rows.gemb", code=5)
    manifest = rows.folder / "whole.gemb" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "gemb index": 99}))
    assert "was made by a newer gemb" in refused(rows, "x", "whole.gemb")


def test_an_index_of_a_folder_gives_lines_of_its_files(rows: Gemb):
    (rows.folder / "docs").mkdir()
    text = "# Guide\n\nNothing.\n\n## Cancel\n\nYou can cancel an order until it is sent.\n"
    (rows.folder / "docs" / "guide.md").write_text(text)
    assert rows("index", "build", "docs.gemb", "docs").returncode == 0
    found = rows("search", "cancel an order", "docs.gemb", "--weak", "-k1")
    assert found.stdout == b"docs/guide.md:7:You can cancel an order until it is sent.\n"
    around = rows("search", "cancel an order", "docs.gemb", "--weak", "-k1", "-B2")
    assert around.stdout.splitlines()[0] == b"docs/guide.md-5-## Cancel"


def test_recall_is_measured_on_the_rows_themselves(rows: Gemb):
    found = rows("search", "--check-recall", "3", "rows.gemb", "-k2", "--json")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert (report["queries"], report["k"], report["kind"]) == (3, 2, "rows as queries")
    assert 0 <= report["worst"] <= report["recall"] <= 1
    assert report["accuracy"] == "balanced"
    (rows.folder / "q").write_text("cancel an order\nparcel\n")
    by_queries = rows(
        "search", "--check-recall", "9", "rows.gemb", "-f", "q", "--accuracy", "exact"
    )
    line = by_queries.stdout.decode()
    assert line.startswith("recall@10 1.0000 (worst 1.00) of 2 queries; exact, exact: ")


def test_a_run_is_read_by_the_reference(rows: Gemb):
    trec = pytest.importorskip("pytrec_eval")
    (rows.folder / "q.jsonl").write_text('{"_id": "q1", "text": "cancel an order"}\n')
    for more in ((), ("--hybrid",)):
        found = rows("search", "-f", "q.jsonl", "rows.gemb", "--trec", "--weak", *more)
        scores = trec.parse_run(found.stdout.decode().splitlines())["q1"]
        as_json = ids(rows, "cancel an order", "rows.gemb", "--weak", *more)
        assert sorted(scores, key=scores.__getitem__, reverse=True) == as_json


def test_a_batch_finds_what_each_query_finds_alone(rows: Gemb):
    queries = ["cancel an order", "parcel", "rains in the north", "land"]
    (rows.folder / "q").write_text("\n".join(queries))
    together = rows("search", "-f", "q", "rows.gemb", "--weak", "-k3")
    hits = [json.loads(line) for line in together.stdout.splitlines()]
    for number, query in enumerate(queries, 1):
        alone = ids(rows, query, "rows.gemb", "--weak", "-k3")
        assert [hit["id"] for hit in hits if hit["query"] == str(number)] == alone
