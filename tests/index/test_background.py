"""The floor of scores: what it is made of, and that it parts what is answered from what is not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemb.embedding.vectors import VectorSpec, packed
from gemb.errors import GembError, UsageError
from gemb.index.floor import PROBES, USUAL, Background, measure, probe_vectors
from gemb.models.profile import ModelProfile

DIM = 64


class Encoder:
    """A model whose vectors are drawn by a text's bytes; it counts the texts that it was given."""

    def __init__(self, fingerprint: str = "0123456789abcdef") -> None:
        self.profile = ModelProfile(
            dim=DIM,
            matryoshka_dims=(DIM, 16),
            max_tokens=512,
            closing_tokens=0,
            prompts={"query": "find: "},
            dtype="fp32",
            fingerprint=fingerprint,
        )
        self.texts: list[str] = []

    def tokenize(self, texts: list[str]) -> list[NDArray[np.int32]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def encode(self, batch: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        texts = [bytes(ids.tolist()).decode() for ids in batch]
        self.texts += texts
        return np.array([vector(text) for text in texts])


def vector(text: str) -> NDArray[np.float32]:
    drawn = np.random.default_rng(list(text.encode())).standard_normal(DIM).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def spec(dtype: str = "f32", dim: int = DIM) -> VectorSpec:
    return VectorSpec(model="m", prompt="{text}", dim=dim, dtype=dtype, max_tokens=512)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gemb" / "search"


def corpus(count: int, dim: int = DIM) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_background_is_that_of_the_probes():
    encoder = Encoder()
    rows = corpus(300)
    scores = np.array([rows @ vector("find: " + probe) for probe in PROBES])
    found = measure(rows, "f32", spec(), encoder)
    assert found.rows == 300
    assert found.quartile == pytest.approx(np.quantile(scores.max(axis=1), 0.25), abs=1e-4)
    assert found.deviation == pytest.approx(scores.std(), abs=1e-4)
    assert sorted(encoder.texts) == sorted("find: " + probe for probe in PROBES)


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_the_type_of_the_numbers_changes_next_to_nothing(dtype):
    rows = corpus(300)
    stored = packed(rows, dtype, rows.shape[1])
    found, exact = (
        measure(stored, dtype, spec(dtype), Encoder()),
        measure(rows, "f32", spec(), Encoder()),
    )
    # 8 bits of components up to 8 / sqrt(dim): the cosine of a vector and its int8 is 0.9998.
    assert found.quartile == pytest.approx(exact.quartile, abs=0.003)
    assert found.deviation == pytest.approx(exact.deviation, abs=0.003)


def test_shorter_vectors_have_a_background_of_their_own():
    rows = corpus(300, 16)
    probes = np.array([vector("find: " + probe)[:16] for probe in PROBES])
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    found = measure(rows, "f32", spec(dim=16), Encoder())
    assert found.quartile == pytest.approx(
        np.quantile((probes @ rows.T).max(axis=1), 0.25), abs=1e-4
    )


def test_rows_that_failed_and_rows_of_zeros_are_passed_over():
    rows = corpus(200)
    spoilt = np.concatenate([rows, np.full((5, DIM), np.nan, np.float32), np.zeros((5, DIM))])
    assert measure(spoilt.astype(np.float32), "f32", spec(), Encoder()) == measure(
        rows, "f32", spec(), Encoder()
    )


def test_a_large_corpus_is_sampled_over_all_of_it():
    rows = corpus(6000)
    rows[3000:] = rows[:3000] * -1
    found = measure(rows, "f32", spec(), Encoder())
    assert found.rows == 2000
    assert found.quartile == pytest.approx(
        measure(rows[::3], "f32", spec(), Encoder()).quartile, abs=0.02
    )


def test_without_vectors_or_a_model_the_usual_is_taken():
    assert measure(corpus(0), "f32", spec(), Encoder()) == USUAL
    assert measure(np.zeros((3, DIM), np.float32), "f32", spec(), Encoder()) == USUAL
    assert measure(corpus(300), "f32", spec()) == USUAL


def test_the_floor_is_the_formula():
    background = Background(quartile=0.2, deviation=0.03, rows=1000)
    assert background.floor(1000) == pytest.approx(0.34)
    grown = 0.2 + 1.5 * 0.03 * (math.sqrt(2 * math.log(1e7)) - math.sqrt(2 * math.log(1000)))
    assert background.floor(10_000_000) == pytest.approx(0.24 + grown / 2)
    floors = [background.floor(count) for count in (0, 1, 2, 30, 1000, 10**6, 10**9)]
    assert floors == sorted(floors)
    assert 0.24 < floors[0] < floors[-1] < 0.5


def test_a_model_with_high_scores_for_everything_has_a_high_floor():
    background = Background(quartile=0.8, deviation=0.03, rows=1000)
    assert background.floor(1000) == pytest.approx(0.845)


def test_a_background_is_the_same_when_it_is_read_back():
    found = measure(corpus(100), "f32", spec(), Encoder())
    assert Background.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "entries",
    [None, [], {}, {"quartile": 1}, {"quartile": "a", "deviation": 1, "rows": 2},
     {"quartile": math.nan, "deviation": 1, "rows": 2},
     {"quartile": True, "deviation": 1, "rows": 2}],
)  # fmt: skip
def test_what_is_no_background_is_refused(entries):
    message = "^the background of the scores is none that gemb wrote$"
    with pytest.raises(UsageError, match=message):
        Background.from_json(entries)


def test_the_probes_are_embedded_once_for_a_model(cache):
    first = Encoder()
    vectors = probe_vectors(first)
    assert len(first.texts) == len(PROBES)
    second = Encoder()
    assert np.array_equal(probe_vectors(second), vectors)
    assert not second.texts
    other = Encoder("another")
    probe_vectors(other)
    assert len(other.texts) == len(PROBES)
    assert len(list(cache.iterdir())) == 2


def zeros(file):
    """Return a file of vectors that are none."""
    data = file.read_bytes()
    return data[:128] + bytes(len(data) - 128)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_something_else_under_the_name_of_the_probes_is_done_without(cache, kind):
    vectors = probe_vectors(Encoder())
    (file,) = cache.iterdir()
    file.unlink()
    os.mkfifo(file) if kind == "pipe" else file.mkdir()
    assert np.array_equal(probe_vectors(Encoder()), vectors)


def test_a_damaged_cache_of_probes_is_written_again(cache):
    vectors = probe_vectors(Encoder())
    (file,) = cache.iterdir()
    for damage in (
        b"",
        b"PK\x03\x04 no archive",
        file.read_bytes()[:-5],
        b"\x93NUMPY",
        zeros(file),
    ):
        file.write_bytes(damage)
        encoder = Encoder()
        assert np.array_equal(probe_vectors(encoder), vectors)
        assert encoder.texts
        assert np.array_equal(np.load(file), vectors)


def test_a_cache_that_cannot_be_written_to_is_done_without(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where a folder should be")
    assert probe_vectors(Encoder()).shape == (len(PROBES), DIM)


def test_a_probe_without_a_vector_is_named_in_words_of_its_own(cache):
    class Failing(Encoder):
        def encode(self, batch):
            return np.full_like(super().encode(batch), np.nan)

    message = r"^which scores chance explains cannot be measured: a text of .* has no vector: "
    with pytest.raises(GembError, match=message):
        probe_vectors(Failing())


def test_the_probes_are_of_many_subjects():
    assert len(set(PROBES)) == len(PROBES) == 32
