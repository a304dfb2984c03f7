"""`gemb mine` at the prompt: what comes out, what is said, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb

THINGS = ["apple", "bread", "candle", "door", "engine", "feather", "glass", "hammer"]


@pytest.fixture
def mining(gemb: Gemb, tmp_path: Path) -> Gemb:
    """gemb with a cache of its own and a file of eight pairs."""
    gemb.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    write(gemb.folder / "pairs.jsonl", rows())
    return gemb


def rows(count: int = 8) -> list[dict[str, object]]:
    names = [THINGS[n % 8] + (str(n) if n >= 8 else "") for n in range(count)]
    return [{"query": f"what is a {name}", "positive": f"a {name} is a thing"} for name in names]


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def mine(gemb: Gemb, *arguments: str, **more: object) -> list[dict[str, object]]:
    done = gemb("mine", *arguments, **more)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(gemb: Gemb, *arguments: str, **more: object) -> tuple[int, str]:
    done = gemb("mine", *arguments, **more)
    return done.returncode, done.stderr.decode()


def embedded(gemb: Gemb, texts: list[str], task: str) -> np.ndarray:
    done = gemb("embed", "--task", task, "-O", "f32", stdin="\n".join(texts))
    return np.frombuffer(done.stdout, np.float32).reshape(len(texts), -1)


def test_the_lines_are_those_of_a_search_with_gemb_embed(mining):
    lines = mine(mining, "pairs.jsonl", "-k", "3")
    queries = embedded(mining, [row["query"] for row in rows()], "query")
    texts = embedded(mining, [row["positive"] for row in rows()], "document")
    scores = queries @ texts.T
    assert [(line["query"], line["positive"]) for line in lines] == [
        (row["query"], row["positive"]) for row in rows()
    ]
    for number, line in enumerate(lines):
        own = scores[number, number]
        # float16's rounding of two unit vectors: 1e-4 in a product at most.
        assert line["positive_score"] == pytest.approx(own, abs=2e-4)
        order = sorted(
            (n for n in range(8) if n != number and scores[number, n] <= own - 0.05 * abs(own)),
            key=lambda n: -scores[number, n],
        )
        assert line["negatives"] == [rows()[n]["positive"] for n in order[:3]]
        assert line["negative_scores"] == pytest.approx(
            [scores[number, n] for n in order[:3]], abs=2e-4
        )
    assert any(line["negatives"] for line in lines)


def test_what_comes_out_is_training_data_again(mining, tmp_path):
    from gemb.datasets.rows import open_source
    from gemb.recipe.schema import Source

    path = mining.folder / "out.jsonl"
    mine(mining, "pairs.jsonl", "-o", "out.jsonl")
    found = open_source(Source(path=str(path)), tmp_path / "index", strict=True)
    first = json.loads(path.read_text().splitlines()[0])
    assert len(found) == 8
    assert [text.text for text in found[0].negatives] == first["negatives"]
    assert found[0].positive.text == first["positive"]


def test_titles_are_kept_and_seen_by_the_model(mining):
    lines = [{**row, "title": f"Title {n}"} for n, row in enumerate(rows())]
    write(mining.folder / "titled.jsonl", lines)
    found = mine(mining, "titled.jsonl")
    assert [line["title"] for line in found] == [f"Title {n}" for n in range(8)]
    by_text = {line["positive"]: line["title"] for line in lines}
    some = [text for line in found for text in line["negatives"]]
    assert some
    assert all(by_text[text["text"]] == text["title"] for text in some)
    plain = mine(mining, "pairs.jsonl")
    assert [line["positive_score"] for line in plain] != [line["positive_score"] for line in found]


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(mining):
    mining.model.write_text(json.dumps({"log": "calls.txt"}))
    first = mining("mine", "pairs.jsonl")
    calls = (mining.folder / "calls.txt").read_text()
    assert calls
    second = mining("mine", "pairs.jsonl")
    assert (mining.folder / "calls.txt").read_text() == calls
    assert first.stdout == second.stdout
    assert first.stdout


def test_the_vectors_of_a_killed_run_are_kept(mining, tmp_path):
    write(mining.folder / "many.jsonl", rows(3000))
    mining.model.write_text(json.dumps({"sleep_s": 0.2}))
    process = mining.start("mine", "many.jsonl", "-o", "out.jsonl")
    deadline = time.monotonic() + 40
    keys: list[Path] = []
    while time.monotonic() < deadline and not keys:
        time.sleep(0.02)
        keys = list((tmp_path / "cache").glob("gemb/teachers/*/keys.bin"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = keys[0].stat().st_size // 16
    assert kept > 0
    assert not (mining.folder / "out.jsonl").exists()
    mining.model.write_text(json.dumps({"log": "calls.txt"}))
    assert len(mine(mining, "many.jsonl", "-q")) == 3000
    computed = sum(map(int, (mining.folder / "calls.txt").read_text().split()))
    assert computed <= 6000 - kept


def test_a_corpus_gives_the_negatives_and_its_copies_of_the_positive_do_not(mining):
    corpus = [{"text": f"stone {n}", "title": f"S{n}"} for n in range(5)]
    corpus += [{"text": "A apple is a  THING"}, {"text": ""}]
    write(mining.folder / "corpus.jsonl", corpus)
    code, words = said(mining, "pairs.jsonl", "--corpus", "corpus.jsonl", "-k", "6")
    assert code == 0
    assert "warning: 1 texts of the corpus are left out, the first: " in words
    assert "corpus.jsonl:7: the text is empty" in words or "line 7: the text is empty" in words
    found = mine(mining, "pairs.jsonl", "--corpus", "corpus.jsonl", "-k", "6", "-q")
    texts = [text if isinstance(text, str) else text["text"] for text in found[0]["negatives"]]
    assert all(text.startswith("stone") for text in texts)
    others = [text for line in found[1:] for text in line["negatives"]]
    assert "A apple is a  THING" in others


def test_any_kind_of_pairs_and_standard_input_give_the_same_lines(mining):
    expected = mine(mining, "pairs.jsonl")
    data = (mining.folder / "pairs.jsonl").read_bytes()
    (mining.folder / "pairs.jsonl.gz").write_bytes(gzip.compress(data))
    table = "".join(f"{row['query']},{row['positive']}\n" for row in rows())
    (mining.folder / "pairs.csv").write_text("question,answer\n" + table)
    write(
        mining.folder / "flag.jsonl",
        [{"query": row["query"], "pos": [row["positive"]], "neg": []} for row in rows()],
    )
    for name in ("pairs.jsonl.gz", "pairs.csv", "flag.jsonl"):
        assert mine(mining, name) == expected
    assert mine(mining, "-", stdin=data) == expected


def test_a_row_with_no_negative_is_kept_or_dropped_and_counted(mining):
    arguments = ("pairs.jsonl", "--max-score", "-1")
    code, words = said(mining, *arguments)
    assert code == 0
    assert "0 of 8 rows have 4 negatives; 8 have none and are written without" in words
    assert [line["negatives"] for line in mine(mining, *arguments)] == [[]] * 8
    assert mine(mining, *arguments, "--without", "drop") == []
    assert "8 have none and are left out" in said(mining, *arguments, "--without", "drop")[1]


def test_bad_rows_are_counted_and_named(mining):
    with (mining.folder / "pairs.jsonl").open("a") as file:
        file.write('{"query": "alone"}\n')
    code, words = said(mining, "pairs.jsonl")
    assert code == 0
    assert "warning: 1 rows of pairs.jsonl are left out, the first: pairs.jsonl:9: " in words


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(mining):
    write(mining.folder / "many.jsonl", rows(200))
    code, words = said(mining, "many.jsonl", "-n", "-o", "out.jsonl")
    assert code == 0
    assert "200 rows of JSONL (query, positive); 200 candidates; 400 texts have no vector" in words
    assert "about " in words
    assert " for the search; no output was written (-n)" in words
    assert not (mining.folder / "out.jsonl").exists()
    # At most 72 of them were embedded to time it; a text may be drawn as positive and as candidate.
    again = said(mining, "many.jsonl", "-n")[1]
    left = int(again.split(" candidates; ")[1].split()[0])
    assert 328 <= left <= 338


def test_quiet_says_nothing(mining):
    same = [{"query": row["query"], "positive": row["query"]} for row in rows()]
    write(mining.folder / "same.jsonl", same)
    assert said(mining, "same.jsonl", "--task", "similarity", "-q") == (0, "")
    words = said(mining, "same.jsonl", "--task", "similarity")[1]
    assert words == "gemb: note: 8 of 8 rows have 4 negatives\n"


def test_a_file_of_vectors_stands_for_a_model(mining):
    expected = mine(mining, "pairs.jsonl")
    for side, task in (("query", "query"), ("positive", "document")):
        done = mining(
            "embed",
            "pairs.jsonl",
            *("--text-field", side, "--task", task, "-o", f"{task}.jsonl", "--keep", side),
        )
        assert done.returncode == 0
        lines = (mining.folder / f"{task}.jsonl").read_text().replace(f'"{side}":', '"text":')
        (mining.folder / f"{task}.jsonl").write_text(lines)
    found = mine(mining, "pairs.jsonl", "-m", "[qd]*.jsonl", "-q")
    for one, other in zip(found, expected, strict=True):
        assert one["negatives"] == other["negatives"]
        assert one["negative_scores"] == pytest.approx(other["negative_scores"], abs=2e-5)


def test_a_home_is_meant_by_its_sign_and_samples_have_names(mining):
    mining.environment["HOME"] = str(mining.folder)
    expected = mine(mining, "pairs.jsonl")
    assert mine(mining, "~/pairs.jsonl") == expected
    (mining.folder / "texts.txt").write_text("".join(f"{row['positive']}\n" for row in rows()))
    assert mine(mining, "pairs.jsonl", "--corpus", "~/texts.txt") == expected
    code, line = said(mining, "~/pairs.jsonl", "-o", "pairs.jsonl")
    assert code == 2
    assert "is both input and output" in line
    assert said(mining, "@sample/jargon.jsonl", "-n")[0] == 0


def test_a_corpus_may_be_lines_or_a_table_with_titles_or_without(mining):
    texts = [f"stone {n}" for n in range(5)]
    folder = mining.folder
    (folder / "lines.txt").write_text("".join(f"{text}\n" for text in texts))
    write(folder / "plain.jsonl", [{"text": text} for text in texts])
    (folder / "plain.csv").write_text("id,text\n" + "".join(f"1,{text}\n" for text in texts))
    (folder / "titled.csv").write_text("title,text\n" + "".join(f"T,{text}\n" for text in texts))
    found = {}
    for name in ("lines.txt", "plain.jsonl", "plain.csv", "titled.csv"):
        done = mining("mine", "pairs.jsonl", "--corpus", name, "-q")
        assert done.returncode == 0, done.stderr
        assert b"title" not in done.stderr
        found[name] = done.stdout
    assert found["lines.txt"] == found["plain.jsonl"] == found["plain.csv"]
    assert b'"title":"T"' in found["titled.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pairs.jsonl", "-k", "8"), 2, "8 negatives a row, and only 7 other texts to choose"),
        (("pairs.jsonl", "--range", "0-5"), 2, "--range 0-5: ranks are counted from 1"),
        (("pairs.jsonl", "--range", "9-5"), 2, "--range 9-5: ranks are counted from 1"),
        (("pairs.jsonl", "--range", "1-2", "-k", "3"), 2, "--range 1-2 has 2 ranks; -k is 3"),
        (("pairs.jsonl", "--sample", "1"), 2, "--sample chooses from a range with an end"),
        (("gone.jsonl",), 2, "gone.jsonl cannot be read: No such file"),
        (("https://example.org/p.jsonl",), 2, "https://example.org/p.jsonl: gemb reads files"),
        (("pairs.jsonl", "--corpus", "hf://a/b"), 2, "gemb: hf://a/b: gemb reads files on this"),
        (("pairs.jsonl", "-o", "pairs.jsonl"), 2, "is both input and output"),
        (("pairs.jsonl", "-o", "no/out.jsonl"), 2, "no such folder: no"),
        (("pairs.jsonl", "-o", ""), 2, "an empty name for -o"),
        (("pairs.jsonl", "-m", "v.npy"), 2, ".npy has none: gemb embed --keep text"),
        (("pairs.jsonl", "--corpus", "empty.txt"), 2, "empty.txt: no text"),
        (("model.fake",), 2, "model.fake"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(mining, arguments, code, words):
    (mining.folder / "empty.txt").write_text("")
    found, line = said(mining, *arguments)
    assert found == code, line
    assert words in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "stdin.jsonl has no good row; it is empty"),
        (b"question,answer\na,b\n", "stdin.jsonl has no good row; stdin.jsonl:1: bad JSON"),
    ],
)
def test_standard_input_that_is_no_jsonl_is_refused_without_a_scratch_folders_name(
    mining, data, words
):
    code, line = said(mining, "-", stdin=data)
    assert code == 2
    assert words in line
    assert "/" not in line


def test_a_text_that_fails_stops_the_run_with_its_place_and_keeps_the_old_output(mining):
    write(mining.folder / "bad.jsonl", [*rows(), {"query": "notfinite", "positive": "x"}])
    (mining.folder / "out.jsonl").write_text("old")
    code, line = said(mining, "bad.jsonl", "-o", "out.jsonl")
    assert code == 5
    assert "has no vector for bad.jsonl:9 ('" in line
    assert (mining.folder / "out.jsonl").read_text() == "old"
    assert sorted(path.name for path in mining.folder.iterdir()) == [
        "bad.jsonl",
        "model.fake",
        "out.jsonl",
        "pairs.jsonl",
    ]


def test_a_reader_that_goes_away_ends_the_run_without_a_word(mining):
    write(mining.folder / "many.jsonl", rows(6000))
    process = mining.start("mine", "many.jsonl", "-q", stdin=subprocess.DEVNULL)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
