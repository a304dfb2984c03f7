"""Sources of training data: every layout that people hold, bad rows named, any row at once."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.datasets.files import AS_USUAL
from gemb.datasets.rows import Rows, _stamp, open_source
from gemb.errors import GembError, UsageError
from gemb.io.text import size_in_words
from gemb.recipe.schema import Source
from gemb.texts.examples import Example, Text
from gemb.texts.records import has_visible

ROWS = [
    {"query": "why is the sky blue", "positive": "Air scatters blue light most."},
    {"query": "wie spät ist es", "positive": "Es ist “drei” Uhr,\nsagt die Uhr."},
    {"query": "空は青い", "positive": "光が散乱する\u2028から"},
]


def opened(path: Path, *, strict: bool = False, rows: int = 0) -> Rows:
    source = Source(path=str(path), rows=rows)
    return open_source(source, path.parent / "cache", strict=strict)


def texts(rows: Rows) -> list[tuple[str, str, tuple[str, ...]]]:
    examples = [rows[row] for row in range(len(rows))]
    return [
        (one.query.text, one.positive.text, tuple(text for text, _ in one.negatives))
        for one in examples
    ]


def json_lines(rows: Sequence[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def delimited(rows: Sequence[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


WANTED = [(row["query"], row["positive"], ()) for row in ROWS]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet", ".data"])
def test_the_same_rows_come_out_of_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{suffix}"
    data = json_lines(ROWS)
    if "csv" in suffix:
        data = delimited([["query", "positive"], *([*row.values()] for row in ROWS)])
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    rows = opened(path)
    assert texts(rows) == WANTED
    assert rows.name == "pairs"
    assert "(query, positive)" in rows.format
    assert (rows.bad_count, rows.bad) == (0, [])


def test_the_cells_of_a_tsv_file_are_what_stands_between_the_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", b'anchor\tpositive\r\n"Go", he said\t"unbalanced\na\tb\n')
    assert texts(opened(path)) == [('"Go", he said', '"unbalanced', ()), ("a", "b", ())]


ITEM = {"query": "q", "positive": "p"}
LAYOUTS: list[tuple[object, str, list[tuple[str, str, tuple[str, ...]]]]] = [
    ({**ITEM, "negative": "n"}, "JSONL (query, positive, negative)", [("q", "p", ("n",))]),
    (
        {**ITEM, "negatives": ["n", {"text": "m", "title": "t"}], "lang": "en"},
        "JSONL (query, positive, negatives[]); not used: lang",
        [("q", "p", ("n", "m"))],
    ),
    ({"query": "q", "positive": ["p", "r"]}, "JSONL", [("q", "p", ()), ("q", "r", ())]),
    (
        {"anchor": "q", "positive": "p", "negative_10": "c", "negative_2": "b", "negative_1": "a"},
        "JSONL (anchor, positive, negative_1, negative_2, negative_10)",
        [("q", "p", ("a", "b", "c"))],
    ),
    ({"sentence1": "q", "sentence2": "p"}, "JSONL (sentence1, sentence2)", [("q", "p", ())]),
    ({"question": "q", "answer": "p"}, "JSONL (question, answer)", [("q", "p", ())]),
    ({"query": "q", "answer": "p"}, "JSONL (query, answer)", [("q", "p", ())]),
    (["q", "p", "n"], "JSONL (query, positive, negative)", [("q", "p", ("n",))]),
    (
        {"query": "q", "pos": ["p", "r"], "neg": ["n"], "pos_scores": [1, 2], "prompt": "Find: "},
        "FlagEmbedding JSONL (query, pos[], neg[]); not used: pos_scores, prompt",
        [("q", "p", ("n",)), ("q", "r", ("n",))],
    ),
    (
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": [{"docid": "2", "title": "t", "text": "p"}],
            "negative_passages": [{"docid": "3", "title": "", "text": "n"}],
        },
        "Tevatron JSONL (query, positive_passages[], negative_passages[]); not used: query_id",
        [("q", "p", ("n",))],
    ),
]


@pytest.mark.parametrize(("row", "words", "wanted"), LAYOUTS)
def test_each_layout_is_recognised_and_said(
    row: object, words: str, wanted: list[tuple[str, str, tuple[str, ...]]], tmp_path: Path
) -> None:
    for path, data in (
        (tmp_path / "plain.jsonl", json_lines([row])),
        (tmp_path / "zipped.jsonl.gz", gzip.compress(json_lines([row]))),
    ):
        rows = opened(write(path, data))
        assert texts(rows) == wanted
        assert rows.format.replace("JSONL (gzip)", "JSONL").startswith(words)


def test_a_title_goes_with_the_positive_and_a_negative_has_its_own(tmp_path: Path) -> None:
    row = {**ITEM, "title": "t", "negatives": ["n", {"text": "m", "title": "u"}]}
    wanted = Example(Text("q"), Text("p", "t"), (Text("n"), Text("m", "u")), place="pairs.jsonl:1")
    assert opened(write(tmp_path / "pairs.jsonl", json_lines([row])))[0] == wanted
    zipped = opened(write(tmp_path / "pairs.jsonl.gz", gzip.compress(json_lines([row]))))[0]
    assert zipped == dataclasses.replace(wanted, place="pairs.jsonl.gz:1")


def beir(folder: Path, qrels: str, lines: str) -> Path:
    corpus = [
        {"_id": "d1", "title": "Sky", "text": "Air scatters blue light most."},
        {"_id": "d2", "title": "", "text": "Grass is green."},
        {"_id": "d3", "text": "Snow is white."},
    ]
    write(folder / "corpus.jsonl", json_lines(corpus))
    questions = [{"_id": "q1", "text": "why is the sky blue"}, {"_id": "q2", "text": "colours"}]
    write(folder / "queries.jsonl", json_lines(questions))
    return write(folder / qrels, lines.encode())


def test_every_positive_judgement_of_a_beir_folder_is_a_pair(tmp_path: Path) -> None:
    folder = tmp_path / "nq"
    beir(folder, "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t1\n")
    beir(
        folder,
        "qrels/train.tsv",
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td2\t1\nq1\td2\t0\nq1\td9\t1\nq1\td2\n"
        "q1\td1\t1\nq2\td3\t0\n",
    )
    rows = opened(folder)
    assert [(one.query.text, one.positive) for one in map(rows.__getitem__, range(3))] == [
        ("why is the sky blue", Text("Air scatters blue light most.", "Sky")),
        ("colours", Text("Snow is white.")),
        ("colours", Text("Grass is green.")),
    ]
    assert rows[1].place == "nq/qrels/train.tsv:3"
    assert rows.format == "BEIR folder with qrels/train.tsv (query, positive, title)"
    assert rows.bad == [
        ("nq/qrels/train.tsv:6", "document 'd9' is not in corpus.jsonl"),
        (
            "nq/qrels/train.tsv:7",
            "2 columns, not query-id, corpus-id, score with tabs between, or TREC's four",
        ),
        (
            "nq/qrels/train.tsv:9",
            "query 'q2' and document 'd3' have grade 0 here, and 2 in a line before",
        ),
    ]
    write(folder / "corpus.jsonl", json_lines([{"_id": "d3", "text": "Snow is cold."}]))
    assert [one[1] for one in texts(opened(folder))] == ["Snow is cold."], "a stale index was used"


def test_a_table_without_column_names_says_so_and_loses_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", b"Guten Tag\tgood day\nJa\tyes\n")
    rows = opened(path)
    assert texts(rows) == [("Guten Tag", "good day", ()), ("Ja", "yes", ())]
    assert rows.format.endswith(
        "without column names, so its first line is a row: Guten Tag | good day"
    )


BAD: list[tuple[bytes, str]] = [
    (b'{"query": "q"}', "no 'positive'; it has: query"),
    (b'{"query": "", "positive": "p"}', "'query' is empty"),
    (b'{"query": "q", "positive": " \\n"}', "'positive' is empty"),
    (b'{"query": "q", "positive": []}', "'positive' is empty"),
    (b'{"query": "q", "positive": ["p", ""]}', "'positive' is empty"),
    (b'{"query": "q", "positive": null}', "'positive' is empty"),
    (b'{"query": 7, "positive": "p"}', "'query' is a number, not text"),
    (b'{"query": "q", "positive": {"words": "p"}}', "'positive' is an object without a text"),
    (b'{"query": "q", "positive": "p", "negatives": ["n", 3]}', "'negatives' is a number, not"),
    (b'{"query": "q", "positive": "p", "title": 3}', "'title' is a number, not text"),
    (b'{"query": "q", "positive": "p"', "bad JSON: "),
    (b'{"query": "\xff", "positive": "p"}', "byte 12 (0xff) is no valid UTF-8"),
    (b'{"query": "\\ud800", "positive": "p"}', "bad JSON: "),
    (b'"q"', "no JSON object"),
    (b'{"query": "q", "positive": "p", "\\u001b[2J": 1, "negative": 1}', "'negative' is a number"),
]


@pytest.mark.parametrize("is_gzip", [False, True])
@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_row_is_named_and_left_out_and_strict_stops(
    line: bytes, reason: str, is_gzip: bool, tmp_path: Path
) -> None:
    data = json_lines(ROWS[:1]) + b"\n" + line + b"\n" + json_lines(ROWS[1:])
    path = tmp_path / ("pairs.jsonl.gz" if is_gzip else "pairs.jsonl")
    path.write_bytes(gzip.compress(data) if is_gzip else data)
    with pytest.raises(UsageError) as stopped:
        opened(path, strict=True)
    assert str(stopped.value).startswith(f"{path.name}:3: {reason}")
    rows = opened(path)
    assert texts(rows) == WANTED
    assert rows[1].place == f"{path.name}:4"
    assert (rows.bad_count, len(rows.bad), rows.bad[0][0]) == (1, 1, f"{path.name}:3")
    assert rows.bad[0][1].startswith(reason)
    with pytest.raises(UsageError, match=":3: "):  # the index is there by now
        opened(path, strict=True)


def test_bad_rows_are_all_counted_and_the_first_twenty_named(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", json_lines([*ROWS, *[{"query": "q"}] * 100]))
    rows = opened(path)
    assert (len(rows), rows.bad_count, len(rows.bad)) == (3, 100, 20)
    assert rows.bad[19][0] == "pairs.jsonl:23"


REFUSED: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "a.jsonl has no good row; it is empty"),
    ("a.jsonl", b'{"query": 1, "positive": 2}\n', "no good row; a.jsonl:1: 'query' is a number"),
    (
        "a.jsonl",
        b'{"text": "t", "label": 1}\n',
        r"no training data by its columns \(text, label\);",
    ),
    ("a.jsonl", b'{"\\u001b[2Jx": "t"}\n', r"columns \(\\x1b\[2Jx\); accepted: query and positive"),
    ("a.jsonl", b'[\n{"query": "q",\n', "is one JSON array; of an array make lines: jq -c"),
    ("a.json", json.dumps(ROWS).encode(), "not of two or three texts; rows are objects, one a"),
    ("a.tsv", b"sentence1\tsentence2\tscore\na\tb\t5\n", "'score' grades the pairs"),
    ("a.jsonl", b'{"query": "q", "answer": "p", "document": "d"}', "answer or document"),
    ("a.jsonl", b'{"anchor": "q", "question": "r", "answer": "p"}', "anchor or question"),
    ("a.csv", b"a,b,c\n1,2,3\n", r"3 columns, and the first line names none known \(a, b, c\)"),
    ("a.csv", b"query,query,positive\n1,2,3\n", "two columns have the same name"),
    ("a.parquet", b"query,positive\n", "no Parquet file by its first bytes"),
    ("a.parquet", b"PAR1 and nothing", "no readable Parquet file"),
    ("a.txt", b"just text\n", r"what is it\? Name it .jsonl, .csv or .tsv"),
    ("a.jsonl.zst", b"\x28\xb5\x2f\xfd....", "a.jsonl.zst is compressed: zstdcat .* > a.jsonl"),
    ("a.jsonl.gz", gzip.compress(json_lines(ROWS))[:-9], "no whole gzip file"),
]


@pytest.mark.parametrize(("name", "data", "words"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(UsageError, match=words) as refused:
        opened(path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.isprintable()
    assert not list((tmp_path / "cache").glob("rows-*[!.lock]")), "an index of nothing is left"


def test_a_path_that_is_not_there_or_no_beir_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.jsonl cannot be read: No such file"):
        opened(tmp_path / "nothing.jsonl")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"loop cannot be read: Too many levels of symbolic"):
        opened(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"has no corpus\.jsonl and no queries\.jsonl"):
        opened(tmp_path / "folder")
    beir(tmp_path / "nq", "qrels/dev.tsv", "q1\td1\t1\n")
    assert "qrels/dev.tsv" in opened(tmp_path / "nq").format  # the only one there is
    beir(tmp_path / "nq", "qrels/test.tsv", "q1\td1\t1\n")
    with pytest.raises(UsageError, match=r"no qrels/train\.tsv and no .* has dev\.tsv, test\.tsv$"):
        opened(tmp_path / "nq")


@pytest.mark.parametrize("is_gzip", [False, True])
def test_rows_limits_how_many_are_taken(is_gzip: bool, tmp_path: Path) -> None:
    data = json_lines([{"query": "q", "positive": ["a", "b"]}, *ROWS])
    path = write(tmp_path / "a.jsonl", gzip.compress(data) if is_gzip else data)
    assert [one[1] for one in texts(opened(path, rows=1))] == ["a"]
    assert [one[1] for one in texts(opened(path, rows=3))] == ["a", "b", ROWS[0]["positive"]]
    assert len(opened(path, rows=99)) == len(opened(path)) == 5


def test_equal_texts_have_equal_ids_and_others_have_not(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("a ", "b")]
    rows = opened(write(tmp_path / "a.jsonl", json_lines([list(pair) for pair in pairs])))
    queries, positives = rows.query_ids.tolist(), rows.positive_ids.tolist()
    assert queries[0] == queries[2] == positives[1]
    assert positives[0] == positives[3] == queries[1]
    assert len({*queries, *positives}) == 4
    wanted = hashlib.blake2b(b"a", digest_size=8).digest()
    assert queries[0] == int.from_bytes(wanted, "little")


def test_a_byte_order_mark_and_a_last_line_without_its_end_do_no_harm(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + json_lines(ROWS).rstrip(b"\n")
    assert texts(opened(write(tmp_path / "a.jsonl", data))) == WANTED
    assert texts(opened(write(tmp_path / "b.jsonl", data.replace(b"\n", b"\r\n")))) == WANTED


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.text(min_size=1).filter(has_visible)] * 3), min_size=1, max_size=9))
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, triplets: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    data = json_lines(
        [dict(zip(("query", "positive", "negative"), one, strict=True)) for one in triplets]
    )
    plain = opened(write(folder / "a.jsonl", data))
    zipped = opened(write(folder / "b.jsonl.gz", gzip.compress(data)))
    fit = [one for one in triplets if all(map(is_utf8, one))]
    wanted = [(query, positive, (negative,)) for query, positive, negative in triplets]
    assert len(fit) == len(triplets), "hypothesis makes no surrogates"
    assert texts(plain) == texts(zipped) == wanted


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_a_source_that_changed_is_indexed_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(ROWS))
    before = opened(path)
    about = path.stat()
    data = json_lines(ROWS).replace(b"blue light", b"BLUE LIGHT")
    path.write_bytes(data)  # of the same size, in the same file
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert texts(opened(path))[0][1] == "Air scatters BLUE LIGHT most."
    with pytest.raises(
        GembError, match=r"a\.jsonl:1: .* changed after it was indexed; start again"
    ):
        before[0]
    assert before[1].query.text == ROWS[1]["query"]  # this row did not change


def spoil(folder: Path, change: Callable[[Path], object]) -> None:
    (index,) = (one for one in folder.glob("rows-*") if one.is_dir())
    change(index)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: (index / "about.json").unlink(),
        lambda index: ((index / "about.json").unlink(), os.mkfifo(index / "about.json")),
        lambda index: (index / "about.json").write_bytes(b'{"stamp":'),
        lambda index: (index / "rows.bin").write_bytes(b""),
        lambda index: os.truncate(index / "lines.jsonl", 10),
        lambda index: (index / "texts.bin").unlink(),
    ],
)
def test_an_index_that_is_not_whole_is_made_again(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(ROWS)))
    opened(path)
    spoil(tmp_path / "cache", change)
    assert texts(opened(path)) == WANTED


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_change_that_keeps_size_and_time_is_seen(name: str, tmp_path: Path) -> None:
    rows = "query,positive\nwhy is it red,the sun is low\n"
    data = rows if name.endswith("csv") else '{"query": "why is it red", "positive": "low sun"}\n'
    path = write(tmp_path / name, data.encode())
    os.utime(path, (1, 1))
    assert texts(opened(path))[0][0] == "why is it red"
    write(path, data.replace("red", "hot").encode())
    os.utime(path, (1, 1))
    assert texts(opened(path))[0][0] == "why is it hot"


def test_an_index_that_does_not_fit_its_file_is_made_again_the_next_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(ROWS))
    rows = opened(path)
    (index,) = (one for one in (tmp_path / "cache").glob("rows-*") if one.is_dir())
    about = orjson.loads((index / "about.json").read_bytes())
    write(path, json_lines(ROWS).replace(b"blue light", b"BLUE LIGHT"))
    about["stamp"] = _stamp([path], rows.source, AS_USUAL)  # as of a disk that keeps no times
    (index / "about.json").write_bytes(orjson.dumps(about))
    with pytest.raises(GembError, match="changed after it was indexed; start again"):
        opened(path)[0]
    assert texts(opened(path))[0][1] == "Air scatters BLUE LIGHT most."


def test_an_index_is_used_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(ROWS)))
    opened(path)
    path.chmod(0o644)
    (index,) = (one for one in (tmp_path / "cache").glob("rows-*") if one.is_dir())
    before = index.stat().st_ino
    opened(path)
    assert index.stat().st_ino == before


def test_what_a_killed_process_left_is_removed_and_never_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(ROWS)))
    opened(path)
    (index,) = (one for one in (tmp_path / "cache").glob("rows-*") if one.is_dir())
    part = index.rename(index.with_name(f".{index.name}.77-abcd.part"))
    os.truncate(part / "lines.jsonl", 10)
    assert texts(opened(path)) == WANTED
    assert not part.exists()


def test_a_file_that_changes_leaves_one_index(tmp_path: Path) -> None:
    for rows in (ROWS, ROWS[1:], ROWS[2:]):
        path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(rows)))
        assert len(opened(path)) == len(rows)
    assert len([one for one in (tmp_path / "cache").iterdir() if one.is_dir()]) == 1


def test_a_source_that_takes_long_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(ROWS))
    monkeypatch.setattr("gemb.datasets.rows.LONG_BYTES", 10)
    opened(path)
    opened(path)  # silent: it is indexed
    words = f"a.jsonl: {size_in_words(path.stat().st_size)} are indexed, once"
    assert capsys.readouterr().err.count(words) == 1


def _open_and_count(path: str) -> int:
    return len(opened(Path(path)))


def test_processes_that_begin_together_make_one_index(tmp_path: Path) -> None:
    rows = [{"query": f"q{one}", "positive": f"p{one}"} for one in range(20_000)]
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(rows), 1))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_open_and_count, [str(path)] * 4) == [20_000] * 4
    assert len([one for one in (tmp_path / "cache").iterdir() if one.is_dir()]) == 1


def test_many_threads_read_what_one_reads(tmp_path: Path) -> None:
    rows = opened(
        write(tmp_path / "a.jsonl", json_lines([[f"q{n}", "p" * n] for n in range(1, 999)]))
    )
    wanted = [rows[row] for row in range(len(rows))]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(rows.__getitem__, range(len(rows)))) == wanted


def test_the_sample_data_is_found_by_its_name(tmp_path: Path) -> None:
    from gemb.recipe.names import sample_names

    for name in sample_names():
        source = Source(path=f"@sample/{name}")
        try:
            rows = open_source(source, tmp_path, strict=True)
        except UsageError as error:
            assert "no training data by its columns" in str(error)  # noqa: PT017
        else:
            assert len(rows) > 0
