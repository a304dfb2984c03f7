from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fake_backend import install
from gemb.embedding import pipeline
from gemb.embedding.pipeline import Embedder, OutputRow, Window, embed, windows
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError
from gemb.texts.records import Record, RowError

SPEC = VectorSpec(model="", prompt="say: {text}", dim=8, dtype="f32", max_tokens=6)


class Counting:
    """The fake encoder, with a list of the batches that it was given."""

    def __init__(self, folder: Path, **settings: object) -> None:
        sys.path.insert(0, str(install(folder)))
        try:
            import gemb_fake
        finally:
            sys.path.pop(0)
        self._encoder = gemb_fake.FakeEncoder(
            gemb_fake.FakeModel(**{"dim": 8, "dims": (8, 4), "max_tokens": 6, **settings})
        )
        self.profile = self._encoder.profile
        self.tokenize = self._encoder.tokenize
        self.batches: list[list[tuple[int, ...]]] = []

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append([tuple(ids.tolist()) for ids in batch])
        return self._encoder.encode(batch)

    def alone(self, text: str) -> np.ndarray:
        """The vector of a prompted text that is not too long, computed by itself."""
        return self._encoder.encode(self._encoder.tokenize([text]))[0]


@pytest.fixture
def encoder(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def records(*texts: str) -> list[Record]:
    return [Record(number, f"line {number}", text) for number, text in enumerate(texts, 1)]


def run(
    encoder: Counting,
    found: list[Record | None],
    spec: VectorSpec = SPEC,
    on_long: str = "truncate",
) -> Window:
    embedder = Embedder(encoder, spec, on_long=on_long)
    done = list(embed(iter(found), embedder, live=False))
    rows = [row for window in done for row in window.rows]
    return Window(rows, np.concatenate([window.vectors for window in done]))


def codes(rows: list[OutputRow]) -> list[str | None]:
    return [row.error.code if row.error else None for row in rows]


def test_every_row_has_the_vector_of_its_own_prompted_text_in_order(encoder: Counting) -> None:
    texts = [f"word{number % 700} end" for number in range(2000)]
    found = run(encoder, records(*texts))
    assert [row.record.id for row in found.rows] == list(range(1, 2001))
    for place in range(0, 2000, 37):
        assert np.array_equal(found.vectors[place], encoder.alone(f"say: {texts[place]}"))


def test_equal_texts_are_computed_once_across_windows(encoder: Counting) -> None:
    texts = [f"word{number % 700} end" for number in range(2000)]
    run(encoder, records(*texts))
    computed = [ids for batch in encoder.batches for ids in batch]
    distinct = {tuple(ids) for ids in encoder.tokenize([f"say: {text}" for text in texts])}
    assert len(distinct) > 690, "two words may share an id"
    assert len(computed) == len(distinct)
    assert set(computed) == distinct


def test_only_recent_texts_are_remembered(encoder: Counting, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "RECENT", 2)
    embedder = Embedder(encoder, SPEC)
    for text in ("a", "b", "a", "c", "a", "b"):
        window = embedder.window(records(text))
        assert np.array_equal(window.vectors[0], encoder.alone(f"say: {text}"))
    assert len(encoder.batches) == 4, "a b c, and b again, that was the oldest when c came"


def test_a_long_text_keeps_its_beginning_and_its_closing_tokens(encoder: Counting) -> None:
    found = run(encoder, records("a b c d e f g h"))
    (row,) = found.rows
    assert (row.tokens, row.is_cut, row.error) == (11, True, None)
    assert np.array_equal(found.vectors[0], encoder.alone("say: a b c"))


def test_a_text_of_just_the_length_is_not_cut(encoder: Counting) -> None:
    (row,) = run(encoder, records("a b c")).rows
    assert (row.tokens, row.is_cut) == (6, False)


def test_long_texts_are_errors_when_asked_for(encoder: Counting) -> None:
    found = run(encoder, records("a", "a b c d"), on_long="error")
    assert codes(found.rows) == [None, "too_long"]
    assert found.rows[1].error == RowError("too_long", "7 tokens; the model takes 6")
    assert np.isnan(found.vectors[1]).all()


def test_a_row_that_makes_the_encoder_raise_fails_alone(encoder: Counting) -> None:
    texts = [f"t{number}" for number in range(50)]
    texts[31] = "poison"
    found = run(encoder, records(*texts))
    assert codes(found.rows) == [None] * 31 + ["failed"] + [None] * 18
    assert found.rows[31].error == RowError("failed", "RuntimeError: poisoned")
    assert np.isnan(found.vectors[31]).all()
    for place in (0, 30, 32, 49):
        assert np.array_equal(found.vectors[place], encoder.alone(f"say: t{place}"))


def test_a_backend_that_fails_on_every_text_ends_the_run(encoder: Counting) -> None:
    with pytest.raises(GembError, match="the backend fails on every text: RuntimeError: poisoned"):
        run(encoder, records("poison a", "poison b"))


def test_numbers_that_are_not_finite_fail_their_row_alone(encoder: Counting) -> None:
    found = run(encoder, records("a", "notfinite", "b", "notfinite"))
    assert codes(found.rows) == [None, "not_finite", None, "not_finite"]


def test_a_row_that_came_with_an_error_is_not_computed(encoder: Counting) -> None:
    bad = Record(1, "line 1", error=RowError("empty", "the text is empty"))
    found = run(encoder, [bad, *records("a")])
    assert codes(found.rows) == ["empty", None]
    assert [len(batch) for batch in encoder.batches] == [1]


def test_a_shorter_vector_is_the_beginning_of_length_one_again(encoder: Counting) -> None:
    found = run(encoder, records("a"), dataclasses.replace(SPEC, dim=4))
    full = encoder.alone("say: a").astype(np.float64)
    expected = full[:4] / np.sqrt((full[:4] ** 2).sum())
    assert found.vectors.shape == (1, 4)
    np.testing.assert_allclose(found.vectors[0], expected, atol=1e-7)  # float32 rounding


def test_titles_reach_the_prompt(encoder: Counting) -> None:
    spec = dataclasses.replace(SPEC, prompt="{title} | {text}")
    found = run(encoder, [Record(1, "line 1", "a", title="T"), *records("a")], spec)
    assert np.array_equal(found.vectors[0], encoder.alone("T | a"))
    assert np.array_equal(found.vectors[1], encoder.alone("none | a"))


def test_the_first_window_is_small_and_they_grow_to_a_limit() -> None:
    sizes = [len(one) for one in windows(records(*["x" * 10] * 5000), SPEC, live=False)]
    assert sizes[0] <= 64
    assert max(sizes) == pipeline.WINDOW_ROWS
    assert sum(sizes) == 5000


def test_an_idle_input_is_worked_off_before_more_is_awaited(encoder: Counting) -> None:
    seen: list[int] = []

    def stream() -> Iterator[Record | None]:
        first, second = records("a", "b")
        yield first
        yield None
        assert seen == [1], "the vector is out before the next text is read"
        yield second

    embedder = Embedder(encoder, SPEC)
    for window in embed(stream(), embedder, live=True):
        seen.extend(int(row.record.id) for row in window.rows)
    assert seen == [1, 2]


def test_a_far_too_long_text_is_tokenized_in_part_and_has_the_same_vector(
    encoder: Counting, monkeypatch
) -> None:
    texts = ["a b c d e f g h " * 50, " " * 900 + "a b c d e f g h i j k l m n", "a b c d e f g h"]
    whole = run(encoder, records(*texts))
    lengths: list[int] = []
    tokenize = encoder.tokenize

    def listening(some: Sequence[str]) -> list[np.ndarray]:
        lengths.extend(map(len, some))
        return tokenize(some)

    monkeypatch.setattr(encoder, "tokenize", listening)
    monkeypatch.setattr(pipeline, "LOOKED_AT", 64)
    found = run(encoder, records(*texts))
    assert np.array_equal(found.vectors, whole.vectors)
    assert [row.is_cut for row in found.rows] == [True] * 3
    assert [row.tokens for row in found.rows][1:] == [row.tokens for row in whole.rows][1:]
    assert 12 <= found.rows[0].tokens < 64 < whole.rows[0].tokens
    assert sorted(lengths) == [20, 64, 64, 128, 256, 512, 932]


def test_a_real_tokenizers_beginning_does_not_depend_on_what_comes_after(tiny_model: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    random = np.random.default_rng(0)
    words = ["quick", "brown", "日本語", "aaaa", "   ", "\n\n", "é", "x==x", "\U0001f600", "planet"]
    texts = ["".join(random.choice(words, 2000)) for _ in range(10)] + ["a" * 9000, " " * 9000]
    for text in texts:
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        for size in range(600, 640):
            part = tokenizer.encode(text[:size], add_special_tokens=False).ids
            assert part[: len(part) // 2] == whole[: len(part) // 2]
