"""`gemb index build` of what `gemb embed` wrote: no text is embedded again."""

from __future__ import annotations

import codecs
import gzip
import json

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.embedding.formats.read import read_vectors
from gemb.index.reader import Index
from index_cases import ROWS, all_hits, error, inside, jsonl, log_texts, out, texts_encoded

FILES = ["v.npy", "v.npz", "v.f32", "v.parquet", "v.jsonl"]


@pytest.fixture
def embedded(gemb: Gemb) -> Gemb:
    rows = [*ROWS, {"key": "bad", "text": "poison"}]
    (gemb.folder / "rows.jsonl").write_text(jsonl(rows))
    log_texts(gemb)
    return gemb


def embed(gemb: Gemb, name: str, *arguments: str) -> None:
    keep = ["--keep", "text,year"] if name.endswith((".parquet", ".jsonl")) else []
    fields = ["--id-field", "key", "--title-field", "title"]
    done = gemb("embed", "rows.jsonl", *fields, *keep, "-o", name, *arguments)
    assert done.returncode == 3, done.stderr
    texts_encoded(gemb)


@pytest.mark.parametrize("name", FILES)
def test_vectors_of_every_format_are_taken_over(embedded: Gemb, name: str) -> None:
    gemb = embedded
    embed(gemb, name)
    done = gemb("index", "build", "v.gemb", name)
    assert done.returncode == 3
    assert done.stdout == b"+3 ~0 -0 rows (3 vectors taken over; 3 in all)\n"
    assert b"1 of 4 rows have no vector: no_vector (first: row 4)" in done.stderr
    assert texts_encoded(gemb) == 0
    with inside(gemb.folder), Index.open(gemb.folder / "v.gemb") as index:
        found = read_vectors(gemb.folder / name)
        np.testing.assert_array_equal(index.stored, found.vectors[:3].astype(np.float16))
        assert index.spec.dtype == "f16"
        assert index.manifest.task == "document"
    hits = all_hits(gemb, "v.gemb")
    has_ids = name not in ("v.npy", "v.f32")
    assert [hit.id for hit in hits] == (["a", "b", "c"] if has_ids else [1, 2, 3])
    if name in ("v.parquet", "v.jsonl"):
        assert [(hit.text, hit.kept) for hit in hits] == [
            (row["text"], {"year": row["year"]}) for row in ROWS
        ]
    assert gemb("index", "sync", "v.gemb").stdout.startswith(b"+0 ~0 -0 rows")
    if name != "v.f32":
        done = gemb("index", "verify", "v.gemb", "--rows", "3")
        assert done.returncode == (1 if name in ("v.parquet", "v.jsonl") else 0), done.stdout
        assert (b"none is embedded again" in done.stdout) == (name in ("v.npy", "v.npz"))


@pytest.mark.parametrize("name", ["v.npy", "v.jsonl", "v.parquet", "v.npz"])
@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_the_type_of_the_vectors_is_kept(embedded: Gemb, name: str, dtype: str) -> None:
    embed(embedded, name, "--dtype", dtype, "--dim", "128")
    assert embedded("index", "build", "v.gemb", name).returncode == 3
    with Index.open(embedded.folder / "v.gemb") as index:
        assert (index.spec.dtype, index.stored.shape) == (dtype, (3, 128))
        found = read_vectors(embedded.folder / name)
        scale = 1.0 if dtype == "f16" else 127 / index.spec.int8_clip
        stored = index.stored.astype(np.float32)
        np.testing.assert_allclose(stored, found.vectors[:3] * scale, rtol=1e-5, atol=1e-5)


def test_a_sync_takes_the_vectors_that_are_new(embedded: Gemb) -> None:
    gemb = embedded
    embed(gemb, "v.jsonl")
    assert gemb("index", "build", "v.gemb", "v.jsonl").returncode == 3
    rows = [ROWS[1], ROWS[0] | {"text": "red cherries"}, {"key": "bad", "text": "poison"}]
    (gemb.folder / "rows.jsonl").write_text(jsonl(rows))
    embed(gemb, "v.jsonl")
    done = gemb("index", "sync", "v.gemb")
    assert done.stdout == b"+0 ~1 -1 rows (1 vector taken over; 2 in all)\n"
    assert texts_encoded(gemb) == 0
    assert {hit.id: hit.text for hit in all_hits(gemb, "v.gemb")} == {
        "a": "red cherries",
        "b": "green pears",
    }


def test_vectors_that_rank_nothing_or_belong_to_another_model_are_refused(embedded: Gemb) -> None:
    gemb = embedded
    embed(gemb, "v.npy", "--dtype", "ubinary")
    assert "sign bits alone" in error(gemb, "index", "build", "v.gemb", "v.npy")
    embed(gemb, "v.npy")
    embed(gemb, "v.jsonl")
    write_model(gemb.folder / "other.fake", name="other")
    line = error(gemb, "index", "build", "v.gemb", "v.npy", "-m", "other.fake")
    assert "has vectors of another model" in line
    line = error(gemb, "index", "build", "v.gemb", "v.jsonl", "-m", "other.fake")
    assert "name their model with -m" in line
    gemb.environment["GEMB_MODEL"] = "other.fake"
    done = gemb("index", "build", "v.gemb", "v.npy")
    assert b"a search needs -m" in done.stderr
    assert json.loads(out(gemb, "index", "info", "v.gemb", "--json"))["model"] == ""
    (gemb.folder / "v.npy.json").unlink()
    line = error(gemb, "index", "build", "w.gemb", "v.npy")
    assert "its sidecar v.npy.json, which describes the vectors, is missing" in line
    (gemb.folder / "t.txt").write_text("red\n")
    embed(gemb, "v.npz")
    assert "not together" in error(gemb, "index", "build", "w.gemb", "v.npz", "t.txt")
    data = (gemb.folder / "v.npz").read_bytes()
    (gemb.folder / "v.npz").write_bytes(data[: len(data) // 2])
    line = error(gemb, "index", "build", "w.gemb", "v.npz")
    assert line.startswith("gemb: v.npz: no vectors can be read from it: ")


def packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return data.decode().encode("utf-16") if "16" in name else codecs.BOM_UTF8 + data


@pytest.mark.parametrize("name", ["mark.jsonl", "v.jsonl.gz", "utf16.ndjson"])
def test_vectors_in_lines_are_read_as_texts_are(embedded: Gemb, name: str) -> None:
    gemb = embedded
    embed(gemb, "v.jsonl")
    (gemb.folder / name).write_bytes(packed(name, (gemb.folder / "v.jsonl").read_bytes()))
    done = gemb("index", "build", "v.gemb", name)
    assert done.stdout == b"+3 ~0 -0 rows (3 vectors taken over; 3 in all)\n", done.stderr
    assert texts_encoded(gemb) == 0
    assert gemb("index", "sync", "v.gemb").stdout.startswith(b"+0 ~0 -0 rows")
    assert gemb("verify", name, "v.jsonl").returncode == 0


def test_vectors_that_are_cut_in_a_compressed_file_are_said(embedded: Gemb) -> None:
    gemb = embedded
    embed(gemb, "v.jsonl")
    data = gzip.compress((gemb.folder / "v.jsonl").read_bytes())
    (gemb.folder / "v.jsonl.gz").write_bytes(data[:-20])
    line = error(gemb, "index", "build", "v.gemb", "v.jsonl.gz")
    assert line.startswith("gemb: v.jsonl.gz")


def edited(gemb: Gemb, changes: list[dict]) -> None:
    """Change the rows of v.jsonl, one after the other."""
    path = gemb.folder / "v.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(jsonl([row | change for row, change in zip(rows, changes, strict=True)]))


def test_odd_fields_beside_a_vector_are_those_of_a_row_without_one(embedded: Gemb) -> None:
    gemb = embedded
    embed(gemb, "v.jsonl")
    edited(gemb, [{"id": 1.5}, {"id": [1, 2]}, {"id": None}, {}])
    done = gemb("index", "build", "v.gemb", "v.jsonl")
    assert done.returncode == 3
    assert done.stdout == b"+2 ~0 -0 rows (2 vectors taken over; 2 in all)\n"
    assert b"missing_field" in done.stderr
    assert [hit.id for hit in all_hits(gemb, "v.gemb")] == ["1.5", "[1,2]"]
    assert gemb("search", "red", "v.gemb").returncode == 0
    embed(gemb, "v.jsonl")
    edited(gemb, [{"text": {"a": 1}}, {"text": None}, {"text": " "}, {}])
    done = gemb("index", "build", "w.gemb", "v.jsonl")
    assert b"bad_field" in done.stderr
    hits = [(hit.id, hit.text, hit.kept) for hit in all_hits(gemb, "w.gemb")]
    assert hits == [("b", "", {"year": 2024}), ("c", " ", {"year": 2025})]
