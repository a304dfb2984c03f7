"""One file is the same to all commands that read texts, or refused by all of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fake_backend import Gemb
from gemb.datasets.plain_texts import PlainTexts, counted_texts
from gemb.datasets.rows import open_source
from gemb.errors import UsageError
from gemb.recipe.schema import Source
from gemb.weights.measure import calibration_texts, read_texts

POWERSHELL = "\ufeffred lamp\r\ngreen kettle\r\nblue tea\r\n".encode("utf-16-le")
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\nxref\n"
PAIRS = '{"query":"a lamp","positive":"red lamp"}\n{"query":"a kettle","positive":"green kettle"}\n'
BINARY = "not text: pdftotext"
UNMARKED = "UTF-16-LE without a byte-order mark"


ALL = ("--json", "-k", "0", "--weak")


def hits(done: subprocess.CompletedProcess[bytes]) -> set[str]:
    """The texts of all hits."""
    return {json.loads(line)["text"] for line in done.stdout.splitlines()}


def commands(file: Path, folder: Path) -> dict[str, list[str]]:
    pairs = folder / "pairs.jsonl"
    pairs.write_text(PAIRS)
    return {
        "embed": ["embed", str(file)],
        "index": ["index", "build", str(folder / "i.gemb"), str(file)],
        "mine": ["mine", str(pairs), "--corpus", str(file), "-k", "1"],
        "verify": ["verify", "mini", "mini", "--texts", str(file)],
        "queries": ["search", "-f", str(file), str(pairs)],
        "eval": ["eval", "mini", "--data", str(file.rename(file.with_suffix(".tsv")))],
    }


@pytest.mark.parametrize("command", ["embed", "index", "mine", "verify", "queries", "eval"])
@pytest.mark.parametrize(("data", "words"), [(PDF, BINARY), (POWERSHELL[2:], UNMARKED)])
def test_what_is_no_text_is_refused_by_every_command(
    gemb: Gemb, tmp_path: Path, command: str, data: bytes, words: str
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(data)
    arguments = commands(file, tmp_path)[command]
    if command != "eval":
        file.write_bytes(data)
    done = gemb(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.decode()
    assert done.stdout == b""


@pytest.mark.parametrize("data", [PDF, POWERSHELL[2:]])
def test_what_is_no_text_is_no_piped_corpus_and_counts_no_tokens(
    gemb: Gemb, tmp_path: Path, data: bytes
) -> None:
    done = gemb("search", "kettle", "-", stdin=data)
    assert (done.returncode, done.stdout) == (2, b"")
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"not text|without a byte-order mark"):
        list(counted_texts(path).batches())
    with pytest.raises(UsageError, match=r"not text|without a byte-order mark"):
        read_texts(str(path))
    done = gemb("search", "kettle", str(path))
    assert b"left out: 1 " in done.stderr


def test_utf16_with_its_mark_is_the_same_text_to_every_command(gemb: Gemb, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(POWERSHELL)
    plain = gemb("embed", stdin="red lamp\ngreen kettle\nblue tea\n")
    assert gemb("embed", str(file)).stdout == plain.stdout
    assert [text for part in counted_texts(file).batches() for text in part] == [
        "red lamp",
        "green kettle",
        "blue tea",
    ]
    assert len(read_texts(str(file))) == 3
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(("\ufeff" + PAIRS).encode("utf-16-be"))
    done = gemb("mine", str(pairs), "--corpus", str(file), "-k", "1", "--max-score", "1")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    texts = {"red lamp", "green kettle", "blue tea"}
    assert [row["query"] for row in found] == ["a lamp", "a kettle"]
    assert all(set(row["negatives"]) <= texts for row in found)
    index = str(tmp_path / "i.gemb")
    assert gemb("index", "build", index, str(file)).returncode == 0
    assert hits(gemb("search", "kettle", index, *ALL)) == texts
    assert hits(gemb("search", "kettle", "-", *ALL, stdin=POWERSHELL)) == texts


def test_an_encoding_is_named_to_every_command(gemb: Gemb, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes("café rouge\nthé vert\n".encode("cp1252"))
    plain = gemb("embed", stdin="café rouge\nthé vert\n")
    assert gemb("embed", "--encoding", "cp1252", str(file)).stdout == plain.stdout
    index = str(tmp_path / "i.gemb")
    built = gemb("index", "build", index, str(file), "--encoding", "cp1252")
    assert built.returncode == 0, built.stderr
    assert hits(gemb("search", "thé", index, *ALL)) == {"café rouge", "thé vert"}
    with file.open("ab") as more:
        more.write("été bleu\n".encode("cp1252"))
    assert gemb("index", "sync", index).returncode == 0  # it knows the encoding
    assert hits(gemb("search", "thé", index, *ALL)) == {"café rouge", "thé vert", "été bleu"}
    tree = tmp_path / "tree"
    tree.mkdir()
    file.rename(tree / "notes.txt")
    for _ in range(2):  # the second time from the cache
        as_utf8 = gemb("search", "thé", str(tree), "--lines", *ALL)
        assert b"not all UTF-8" in as_utf8.stderr
        named = gemb("search", "thé", str(tree), "--lines", *ALL, "--encoding", "cp1252")
        assert hits(named) == {"café rouge", "thé vert", "été bleu"}
    sts = tmp_path / "sts.csv"
    sts.write_bytes("sentence1;sentence2;score\ncafé;thé;1\nété;ça;2\nà;b;3\n".encode("cp1252"))
    done = gemb("eval", "--data", str(sts), "--encoding", "cp1252", "--dims", "768", "--json")
    assert done.returncode == 0, done.stderr
    assert gemb("eval", "--data", str(sts)).returncode == 2
    texts = str(tree / "notes.txt")
    assert gemb("verify", gemb.model, gemb.model, "--texts", texts).returncode == 2
    done = gemb("verify", gemb.model, gemb.model, "--texts", texts, "--encoding", "cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    wrong = gemb("embed", "--encoding", "cp12522", str(tree / "notes.txt"))
    assert wrong.returncode == 2
    assert b"unknown encoding 'cp12522'; did you mean cp125" in wrong.stderr


def test_an_encoding_is_named_to_what_counts_measures_and_trains(
    gemb: Gemb, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes("café rouge\nthé vert\n".encode("cp1252"))
    assert list(read_texts(str(file), "cp1252")) == ["café rouge", "thé vert"]
    assert calibration_texts(str(file), {}, "cp1252")[0].endswith("café rouge")
    counted = [text for part in counted_texts(file, "cp1252").batches() for text in part]
    assert counted == ["café rouge", "thé vert"]
    source = Source(path=str(file), encoding="cp1252")
    assert list(PlainTexts(source).read()) == ["café rouge", "thé vert"]
    pairs = tmp_path / "pairs.csv"
    pairs.write_bytes("query,positive\ncafé,thé\nété,ça\n".encode("cp1252"))
    rows = open_source(Source(path=str(pairs), encoding="cp1252"), tmp_path / "cache", strict=True)
    assert [rows[number].positive.text for number in range(len(rows))] == ["thé", "ça"]
    with pytest.raises(UsageError, match="unknown encoding 'latin77'"):
        open_source(Source(path=str(pairs), encoding="latin77"), tmp_path / "cache", strict=True)
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_bytes('{"_id": "d", "text": "thé"}\n'.encode("cp1252"))
    (beir / "queries.jsonl").write_bytes('{"_id": "q", "text": "café"}\n'.encode("cp1252"))
    (beir / "qrels/train.tsv").write_text("q\td\t1\n")
    rows = open_source(Source(path=str(beir), encoding="cp1252"), tmp_path / "cache", strict=True)
    assert (rows[0].query.text, rows[0].positive.text) == ("café", "thé")


def test_an_index_of_a_folder_remembers_the_encoding(gemb: Gemb, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.txt").write_bytes("café rouge\n".encode("cp1252"))
    (tree / "b.txt").write_bytes("\ufeffthé vert\n".encode())
    index = str(tmp_path / "i.gemb")
    built = gemb("index", "build", index, str(tree), "--encoding", "cp1252")
    assert (built.returncode, b"UTF-8" in built.stderr) == (0, False), built.stderr
    assert hits(gemb("search", "thé", index, *ALL)) == {"café rouge", "thé vert"}
    (tree / "c.txt").write_bytes("été bleu\n".encode("cp1252"))
    assert gemb("index", "sync", index).returncode == 0
    assert hits(gemb("search", "thé", index, *ALL)) == {"café rouge", "thé vert", "été bleu"}


def test_a_notebook_is_read_by_its_cells(gemb: Gemb, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    file = tree / "a.ipynb"
    output = {"data": {"image/png": "iVBORw0KGgo" * 5000}, "text": ["printed kettle\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# red lamp\n"]},
        {
            "cell_type": "code",
            "outputs": [output],
            "source": ["green = 'kettle'\n", "print(green)"],
        },
    ]
    file.write_text(json.dumps({"cells": cells}, indent=1))
    line = file.read_text().split("\n").index("    \"green = 'kettle'\\n\",") + 1
    index = str(tmp_path / "i.gemb")
    assert gemb("index", "build", index, str(tree)).returncode == 0
    for place in (str(tree), index):
        done = gemb("search", "kettle", place, *ALL)
        rows = [json.loads(row) for row in done.stdout.splitlines()]
        texts = "".join(row["text"] for row in rows).split()
        source = ["#", "red", "lamp", "green", "=", "'kettle'", "print(green)"]
        assert sorted(texts) == sorted(source)
        assert any(row["line"] <= line <= row["last_line"] for row in rows)
    like = gemb("search", "--like", f"{file}:{line}", str(tree), *ALL)
    assert like.returncode in (0, 1), like.stderr
    refused = gemb("embed", str(file))
    assert refused.returncode == 2
    assert b"a.ipynb is a notebook: gemb search reads its cells" in refused.stderr


def test_a_text_with_its_prompt_is_noted_once(gemb: Gemb, tmp_path: Path) -> None:
    rows = "plain\ntask: search result | query: lamp\ntitle: none | text: red\n"
    done = gemb("embed", stdin=rows)
    assert done.stderr.decode().count("begins with a prompt") == 1
    assert "line 2: the text begins with a prompt, 'task: search result | query: '" in (
        done.stderr.decode()
    )
    titled = gemb("embed", stdin="title: A lamp | text: red\n")
    assert b"line 1: the text begins with a prompt, 'title: A lamp | text: '" in titled.stderr
    assert b"prompt" not in gemb("embed", "--task", "none", stdin=rows).stderr
    assert b"prompt" not in gemb("embed", "-q", stdin=rows).stderr
    assert b"prompt" not in gemb("embed", stdin="title: a text\ntask: do it\n").stderr
    file = tmp_path / "a.txt"
    file.write_text(rows)
    built = gemb("index", "build", str(tmp_path / "i.gemb"), str(file))
    assert b"begins with a prompt" in built.stderr


def test_a_semicolon_table_is_no_single_column_to_any_command(gemb: Gemb, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_bytes(b"id;text\r\n1;red lamp\r\n2;green kettle\r\n")
    plain = gemb("embed", stdin="red lamp\ngreen kettle\n")
    vectors = [json.loads(line)["embedding"] for line in plain.stdout.splitlines()]
    done = gemb("embed", str(table))
    assert [json.loads(line)["embedding"] for line in done.stdout.splitlines()] == vectors
    assert b"its columns are parted by ';'" in done.stderr
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(PAIRS)
    done = gemb("mine", str(pairs), "--corpus", str(table), "-k", "1", "--max-score", "1")
    found = [json.loads(line)["negatives"] for line in done.stdout.splitlines()]
    assert {text for texts in found for text in texts} <= {"red lamp", "green kettle"}
    assert any(found)


def test_quotes_of_a_tsv_are_read_as_an_option_says(gemb: Gemb, tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_bytes(b'id\ttext\nq1\t"He said ""stop"" now"\nq2\t"Two\nlines"\n')
    index = str(tmp_path / "i.gemb")
    done = gemb("index", "build", index, str(table), "--quoting", "csv", "--id-field", "id")
    assert done.returncode == 0, done.stderr
    assert hits(gemb("search", "stop", index, *ALL)) == {'He said "stop" now', "Two\nlines"}
    done = gemb("embed", str(table), "--id-field", "id")
    assert done.returncode == 3  # the second half of a cell is a row of one column
    assert b"quotes are taken as they stand" in done.stderr
