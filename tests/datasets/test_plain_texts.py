"""Texts for adaptation, from files of every kind, and their tokens in the cache."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from hashlib import blake2b

import numpy as np
import pytest

from gemb.datasets.plain_texts import PlainTexts, counted_texts
from gemb.errors import UsageError
from gemb.recipe.schema import Source
from rewritten import rewrite


def texts(path, **more) -> PlainTexts:
    return PlainTexts(Source(path=str(path)), **more)


def test_lines_of_a_text_file_are_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\nzwei ü\n  \nthree".encode())
    found = texts(path)
    assert list(found.read()) == ["one", "zwei ü", "three"]
    assert (found.format, found.bad_count) == ("lines", 0)
    packed = tmp_path / "b.md.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(texts(packed).read()) == ["one", "zwei ü", "three"]


def test_a_column_of_texts_or_a_query_with_its_positives(tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a b", "query": "never"}\n{"text": ""}\n{"no": 1}\n{"text": "c"}\n')
    found = texts(plain)
    assert list(found.read()) == ["a b", "c"]
    assert found.format == "JSONL (text)"
    assert found.bad == [("plain.jsonl:2", "'text' is empty"), ("plain.jsonl:3", "no 'text'")]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("question,answer\nwhat,that\nwho,she\n")
    found = texts(pairs)
    assert list(found.read()) == ["what\nthat", "who\nshe"]
    assert found.format == "CSV (question + answer)"


def test_only_the_first_rows_are_taken(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1\n2\n3\n")
    assert list(PlainTexts(Source(path=str(path), rows=2)).read()) == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file or folder of texts"),
        ("a.txt", "\n\n", "a.txt has no text; it is empty"),
        ("a.jsonl", '{"body": "x"}\n', "a.jsonl: no text by its columns (body); name one 'text'"),
        ("a.bin", "words", "what is it? Name it"),
        ("a.txt.gz", b"\x1f\x8bno", "no whole gzip file"),
    ],
)
def test_what_has_no_texts_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as refusal:
        list(texts(path).read())
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_bad_row_stops_where_none_is_allowed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:2: 'text' is not text"):
        list(texts(path, strict=True).read())


class TestTokens:
    """Of real tokenizers' kind, kept in the cache."""

    @pytest.fixture
    def tokenizer(self, tiny_model):
        from gemb.models.checkpoint import open_checkpoint
        from gemb.models.tokenizer import load_tokenizer

        size = open_checkpoint(tiny_model).config.vocab_size
        return load_tokenizer(tiny_model / "tokenizer.json", size)

    def test_they_are_the_tokenizers_without_its_own(self, tmp_path, tokenizer):
        from gemb_torch.adapt.order import tokenized

        path = tmp_path / "a.jsonl"
        lines = ["the red planet", "of night", "日本語 and more"]
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        store = tokenized(texts(path), tokenizer, "digest", tmp_path / "cache")
        found = np.split(store.tokens, store.ends)[:-1]
        for line, ids in zip(lines, found, strict=True):
            assert ids.tolist() == tokenizer.encode(line).ids[1:-1]

    def test_they_are_made_once_and_again_when_the_file_changes(self, tmp_path, tokenizer):
        from gemb_torch.adapt.order import tokenized

        path, cache = tmp_path / "a.txt", tmp_path / "cache"
        path.write_text("one\n")
        first = tokenized(texts(path), tokenizer, "digest", cache)
        (made,) = cache.iterdir()
        stamp = made.stat().st_mtime_ns
        assert tokenized(texts(path), tokenizer, "digest", cache).stamp == first.stamp
        assert made.stat().st_mtime_ns == stamp
        path.write_text("one\ntwo\n")
        second = tokenized(texts(path), tokenizer, "digest", cache)
        assert (len(second), second.stamp != first.stamp) == (2, True)
        assert tokenized(texts(path), tokenizer, "other", cache).stamp != second.stamp

    def test_a_file_whose_time_was_set_back_is_another_and_a_copy_is_not(self, tmp_path, tokenizer):
        from gemb_torch.adapt.order import tokenized

        path, cache = tmp_path / "a.txt", tmp_path / "cache"
        path.write_text("the red planet\n")
        first = tokenized(texts(path), tokenizer, "digest", cache)
        rewrite(path, b"red", b"sky")
        second = tokenized(texts(path), tokenizer, "digest", cache)
        assert second.tokens.tolist() != first.tokens.tolist()
        assert second.stamp != first.stamp
        path.rename(tmp_path / "b.txt")
        shutil.copy(tmp_path / "b.txt", path)
        assert tokenized(texts(path), tokenizer, "digest", cache).stamp == second.stamp

    def test_a_checkpoint_of_version_0_1_still_counts(self, tmp_path, tokenizer):
        from gemb_torch.adapt.order import tokenized

        path = tmp_path / "a.txt"
        path.write_text("the red planet\n")
        store = tokenized(texts(path), tokenizer, "digest", tmp_path / "cache")
        about = path.stat()
        files = [(os.path.realpath(path), about.st_size, about.st_mtime_ns)]
        written = json.dumps([1, texts(path).source.rows, "digest", files])
        assert store.former == blake2b(written.encode(), digest_size=8).hexdigest()
        assert store.is_at(store.former)
        assert store.is_at(store.stamp)
        assert not store.is_at("0" * 16)


def counted(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(counted_texts(path).read())


def test_the_texts_of_tables_and_json_lines_are_counted_and_no_names_or_signs(tmp_path):
    table = "id;text\n1;a lamp, red\n2;\n"
    assert counted(tmp_path / "a.csv", table) == ["a lamp, red"]
    assert counted(tmp_path / "a.tsv", "query\tpositive\turl\na\tb\tx\n") == ["a", "b"]
    assert counted(tmp_path / "b.csv", 'body\n"a lamp, red"\na kettle\n') == [
        "a lamp, red",
        "a kettle",
    ]
    rows = '\n{"text": "a"}\n\n{"query": "b", "n": 1}\n'
    for name in ("a.jsonl", "a.txt", "a.log"):
        assert counted(tmp_path / name, rows) == ["a", "b"]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "a.parquet")
    assert list(counted_texts(tmp_path / "a.parquet").read()) == ["a"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{\n  "text": "one"\n}\n', "is a JSON object over several lines"),
        ('[{"text": "one"}]\n', "is one JSON array"),
        ('{"text": "one",\n "id": 1}\n', "first line is not a whole JSON object"),
        (b"CDF\x01\0\0\0\0", "is binary, not text"),
    ],
)
def test_what_is_no_text_is_not_counted(data, words, tmp_path):
    with pytest.raises(UsageError, match=words) as refusal:
        counted(tmp_path / "a.txt", data)
    assert "-I lines" not in str(refusal.value)


def test_a_table_with_a_column_of_texts_adapts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a lamp\n")
    assert list(texts(path).read()) == ["a lamp"]
