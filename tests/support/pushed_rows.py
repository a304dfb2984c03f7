"""What the tests of `gemb index push` share: rows, an index of them, and what a search finds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fake_backend import Gemb, write_model
from gemb.embedding.vectors import VectorSpec
from gemb.index.reader import Index
from gemb.index.where import condition_for, matching
from gemb.models.prompts import for_task
from gemb.targets.base import Target
from gemb.targets.filters import parsed, with_kept

ROWS = [
    {
        "id": "a",
        "text": "cancel an order",
        "lang": "en",
        "year": 2024,
        "tags": ["x", "y"],
        "code": "c:\\new\tline",  # with a backslash before the letter of an escape
    },
    {
        "id": "b",
        "text": "it rains in the north",
        "lang": "en",
        "year": "2020",
        "tags": ["y"],
        "note": 'two\n"lines" \\',
        "big": 2**53 + 1,
        "path": "/north",  # of the names of columns
        "line": 7,
    },
    {
        "id": "c",
        "text": "order a parcel",
        "lang": "de",
        "year": 2024,
        "paid": True,
        "big": 2**53,
        "meta": {"city": "Bonn", "tags": ["z"]},
        "place": "ÜBER den Bergen",
    },
    {"id": "d", "text": "cancel the train", "lang": "de", "year": 2023, "title": "Trains"},
    {"id": "e", "text": 'a parcel of land it\'s 5% "more" \\ end\x00', "year": "soon"},
]
FILTERS = [
    ("lang = 'en'", {"a", "b"}),
    ("year >= 2024", {"a", "c"}),
    ("year = 2020", {"b"}),
    ("year != 2024", {"b", "d", "e"}),
    ("not year = 2024", {"b", "d", "e"}),
    ("year between 2020 and 2023", {"b", "d"}),
    ("2023 <= year", {"a", "c", "d"}),
    ("year in (2020, 2023)", {"b", "d"}),
    ("lang in ('de') or has(tags, 'y')", {"a", "b", "c", "d"}),
    ("has(tags, 'x')", {"a"}),
    ("not has(tags, 'x')", {"b"}),
    ("paid = true", {"c"}),
    ("paid in (true, false)", {"c"}),
    ("paid != true", set()),
    ("year != true", {"a", "b", "c", "d", "e"}),
    ("not year = true", {"a", "b", "c", "d", "e"}),
    ("lang is 'en'", {"a", "b"}),
    ("lang is not 'en'", {"c", "d", "e"}),
    ("not lang is 'en'", {"c", "d", "e"}),
    ("meta.city = 'Bonn'", {"c"}),
    ("has(meta.tags, 'z')", {"c"}),
    ("not has(meta.tags, 'x')", {"c"}),
    ("note = 'two\n\"lines\" \\'", {"b"}),
    ("note != 'two\n\"lines\" \\'", set()),
    (f"big = {2**53 + 1}", {"b"}),
    (f"big != {2**53 + 1}", {"c"}),
    ("lang is null", {"e"}),
    ("lang is not null and not lang = 'en'", {"c", "d"}),
    ("title is not null", {"d"}),
    ("lower(title) like '%TRAIN%'", {"d"}),
    ("text like '%5\\%%'", set()),
    ("text like '%5% \"more\"%'", {"e"}),
    ("text like '%it''s%'", {"e"}),
    ("length(text) > 20", {"b", "e"}),
    ("id = 'a' or id > 'd'", {"a", "e"}),
    ("id = 'x'' OR ''1''=''1'", set()),
    ("\"lang\" = 'en'", {"a", "b"}),
    ("path = '/north'", {"b"}),
    ("line between 7 and 9", {"b"}),
    ("place like 'ÜBER DEN%'", {"c"}),
    ("place like '%über%'", set()),
    ("lower(place) = 'Über den bergen'", {"c"}),
    ("upper(place) = 'ÜBER DEN BERGEN'", {"c"}),
    ("note like 'TWO%\\'", {"b"}),
    ("note like 'two\n\"lines%'", {"b"}),
    ("length(note) = 13", {"b"}),
    ("code like 'c:\\new\tline%'", {"a"}),
    ("lower(code) > 'c:\\new\t'", {"a"}),
]
BAG = {"is_bag": True, "max_tokens": 512}


def check_filters(
    index: Path, target: Target, filters: Sequence[tuple[str, set[str]]] = FILTERS
) -> None:
    """Compare the rows that pass each filter with those of the index, and with what is right."""
    (query,) = unit_rows(1, 768)
    for filter_, wanted in filters:
        with Index.open(index) as opened:
            slots = matching(opened.connection, condition_for(opened.connection, filter_))
            assert {hit.id for hit in opened.hits(slots, np.zeros(len(slots)))} == wanted, filter_
        condition = with_kept(parsed(filter_), target.content.fields)
        passed = target.search(query, 10, condition)
        assert {found.row.id for found in passed} == wanted, filter_
        assert target.count(condition) == len(wanted), filter_


def write_rows(gemb: Gemb, rows: Sequence[dict]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (gemb.folder / "rows.jsonl").write_text(content)


def build(gemb: Gemb, rows: Sequence[dict] = ROWS) -> Gemb:
    write_model(gemb.folder / "model.fake", **BAG)
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    write_rows(gemb, rows)
    built = gemb("index", "build", "rows.gemb", "rows.jsonl", "--id-field", "id")
    assert built.returncode == 0, built.stderr
    return gemb


def unit_rows(count: int, dim: int = 128, seed: int = 0) -> np.ndarray:
    """Return random vectors of length one, float32 [count, dim]."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def lines_of(vectors: np.ndarray, fingerprint: str, **more: object) -> str:
    """Return vectors as `gemb embed` writes them."""
    rows = [
        {"id": f"row{n}", "n": n, "embedding": vector.tolist(), "tokens": 3, "task": "document"}
        for n, vector in enumerate(vectors)
    ]
    return "".join(json.dumps({**row, "fingerprint": fingerprint, **more}) + "\n" for row in rows)


def embedded_lines(count: int, dim: int = 8) -> list[bytes]:
    """Return rows of random vectors as `gemb embed` writes them with the fake model."""
    spec = VectorSpec(
        model=f"{zlib.crc32(b'fake'):016x}",
        prompt=for_task("document", {}).template,
        dim=dim,
        dtype="f32",
        max_tokens=32,
    )
    text = lines_of(unit_rows(count, dim), spec.fingerprint)
    return text.encode().splitlines(keepends=True)


def push(gemb: Gemb, *arguments: str, code: int = 0, **more: object) -> dict:
    """Run a push, and return its JSON."""
    done = gemb("index", "push", *arguments, "--json", **more)
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout) if done.stdout else {}


def refused(gemb: Gemb, *arguments: str, code: int = 2, **more: object) -> str:
    """Return the one line of a refusal."""
    done = gemb(*arguments, **more)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    (line,) = done.stderr.decode().splitlines()
    return line.removeprefix("gemb: ")


def found(gemb: Gemb, *arguments: str, code: int = 0) -> list[dict]:
    """Return the hits of a search."""
    done = gemb("search", *arguments, "--json")
    assert done.returncode == code, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(gemb: Gemb, *arguments: str, code: int = 0) -> list[str]:
    return [hit["id"] for hit in found(gemb, *arguments, code=code)]
