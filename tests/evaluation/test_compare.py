"""How far models and vectors agree: against scipy and brute force; and `gemb verify`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from gemb.errors import NegativeAnswer
from gemb.evaluation.agreement import (
    VERIFICATION_TEXTS,
    bar_for,
    compare,
    compare_vectors,
    script_of,
)
from gemb.models.profile import ModelProfile


def rows(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


class Bytes:
    """An encoder that is exact and obvious: a text's vector is the histogram of its bytes."""

    def __init__(self, dim: int = 16, max_tokens: int = 4000, lost: Sequence[int] = ()):
        self.lost = set(lost)
        self.batches: list[int] = []
        self.profile = ModelProfile(
            dim=dim,
            matryoshka_dims=(dim,),
            max_tokens=max_tokens,
            closing_tokens=1,
            prompts={"query": "Q:"},
            dtype="fp32",
            fingerprint="0" * 16,
        )

    def tokenize(self, texts):
        return [np.array([2, *text.encode(), 1], np.int32) for text in texts]

    def encode(self, batch):
        self.batches.append(sum(len(ids) for ids in batch))
        vectors = []
        for ids in batch:
            assert len(ids) <= self.profile.max_tokens, "a text was not cut"
            assert ids[-1] == 1, "the closing token was cut away"
            kept = [i for i in ids if i not in self.lost]
            counts = np.bincount(np.array(kept) % self.profile.dim, minlength=self.profile.dim)
            vectors.append(counts / np.linalg.norm(counts))
        return np.array(vectors, np.float32)


def test_the_texts_are_sixty_four_different_ones_and_three_are_long():
    assert len(VERIFICATION_TEXTS) == len(set(VERIFICATION_TEXTS)) == 64
    assert sum(len(text) > 1500 for text in VERIFICATION_TEXTS) == 3


def test_the_long_texts_have_more_than_600_real_tokens(real_model):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_model / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text).ids) for text in VERIFICATION_TEXTS]
    assert min(lengths) == 3  # one token, between BOS and EOS
    assert sum(length > 600 for length in lengths) == 3
    assert max(lengths) <= 2048


def test_the_same_vectors_agree_in_full_whatever_their_length():
    vectors = rows(50)
    found = compare_vectors(vectors, 3 * vectors)
    assert found.count == 50
    assert found.min_cosine == pytest.approx(1, abs=1e-6)  # float32 rounding of the two lengths
    assert found.rank_agreement == 1
    assert found.spearman == pytest.approx(1, abs=1e-4)  # the same rounding may swap two pairs


def test_cosines_and_the_worst_row_equal_a_plain_computation():
    a, b = rows(40, seed=1), rows(40, seed=2)
    found = compare_vectors(a, b, [f"text {i}" for i in range(40)])
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert found.min_cosine == pytest.approx(min(expected), abs=1e-6)
    assert found.mean_cosine == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.worst_row == np.argmin(expected)
    assert found.worst_text == f"text {np.argmin(expected)}"


def test_spearman_equals_scipys_with_ties_too():
    a, b = rows(60, seed=3), rows(60, seed=4)
    a[30:40] = a[29]
    b += a
    unit_a, unit_b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    pairs = np.triu_indices(60, 1)
    expected = spearmanr((unit_a @ unit_a.T)[pairs], (unit_b @ unit_b.T)[pairs]).statistic
    # Two float32 products of one pair may differ in the last bit, so a tie may be no tie.
    assert compare_vectors(a, b).spearman == pytest.approx(expected, abs=1e-3)


def test_rank_agreement_equals_brute_force():
    a = rows(100, seed=5)
    b = a + 0.5 * rows(100, seed=6)

    def nearest(vectors: np.ndarray, row: int) -> set[int]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        order = [i for i in np.argsort(-(unit @ unit[row])) if i != row]
        return set(order[:10])

    shared = [len(nearest(a, row) & nearest(b, row)) / 10 for row in range(100)]
    assert compare_vectors(a, b).rank_agreement == pytest.approx(np.mean(shared), abs=1e-9)
    assert 0.1 < np.mean(shared) < 0.9  # or the test shows nothing


def test_copies_of_one_text_do_not_spoil_the_ranks():
    a = np.repeat(rows(3, seed=7), 20, axis=0)
    assert compare_vectors(a, a + np.float32(1e-7) * rows(60)).rank_agreement == 1


def test_failed_rows_are_counted_and_take_no_part():
    a, b = rows(10), rows(10)
    a[2] = np.nan
    b[2] = 0
    b[5] = np.nan
    found = compare_vectors(a, b)
    assert (found.count, found.both_failed, found.one_failed) == (8, 1, 1)
    assert found.min_cosine == pytest.approx(1, abs=1e-6)


def test_a_difference_of_shape_is_a_negative_answer():
    with pytest.raises(NegativeAnswer, match="the vectors differ in shape: 4 x 16 and 5 x 16"):
        compare_vectors(rows(4), rows(5))
    with pytest.raises(NegativeAnswer, match="the models differ: vectors of 16 and 8"):
        compare(Bytes(16), Bytes(8), ["a"])


def test_nothing_but_failed_rows_is_a_negative_answer():
    empty = np.full((3, 4), np.nan, np.float32)
    with pytest.raises(NegativeAnswer, match="nothing to compare"):
        compare_vectors(empty, empty)


def test_more_rows_than_can_be_ranked_are_sampled():
    a, b = rows(5000, width=4), rows(5000, width=4, seed=8)
    chosen = np.linspace(0, 4999, 2000).astype(int)
    whole, sample = compare_vectors(a, b), compare_vectors(a[chosen], b[chosen])
    assert (whole.rank_agreement, whole.spearman) == (sample.rank_agreement, sample.spearman)


def test_a_model_agrees_with_itself_on_every_text():
    model = Bytes()
    found = compare(model, model, VERIFICATION_TEXTS)
    assert found.count == 64
    assert found.min_cosine == pytest.approx(1, abs=1e-6)  # float32 rounding
    assert max(model.batches) <= 4096


def test_a_model_that_loses_a_token_is_found_and_its_worst_text_named():
    found = compare(Bytes(), Bytes(lost=[ord("z")]), ["aaa", "zzzz", "aza"])
    assert found.worst_text == "zzzz"
    assert found.min_cosine < 0.9


def test_both_models_see_a_long_text_cut_to_the_shorter_context():
    found = compare(Bytes(max_tokens=50), Bytes(max_tokens=4000), VERIFICATION_TEXTS)
    assert found.min_cosine == pytest.approx(1, abs=1e-6)  # float32 rounding


def test_each_model_gets_its_own_prompt():
    a, b = Bytes(), Bytes()
    b.profile = ModelProfile(**{**a.profile.__dict__, "prompts": {"query": "zzzzzzzzz"}})
    assert compare(a, b, ["aaa"], task="query").min_cosine < 0.9
    assert compare(a, b, ["aaa"], task="none").min_cosine == pytest.approx(1, abs=1e-6)


def test_groups_by_length_and_script_cover_every_text():
    found = compare(Bytes(), Bytes(lost=["д".encode()[0]]), ["abc", "где", "где это", "x" * 600])
    scripts = {group.name: group for group in found.groups["script"]}
    assert [scripts["latin"].count, scripts["cyrillic"].count] == [2, 2]
    assert scripts["cyrillic"].min_cosine < 0.99 < scripts["latin"].min_cosine
    lengths = {group.name: group.count for group in found.groups["length"]}
    assert lengths == {"1-16 tokens": 3, "over 512 tokens": 1}


@pytest.mark.parametrize(
    ("text", "script"),
    [("hello мир", "latin"), ("取消 a", "cjk"), ("ひらがな", "hiragana"), ("42!", "no letters")],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_the_bar_is_that_of_the_coarser_type():
    assert bar_for("fp32", "f32") == 0.99999
    assert bar_for("fp32", "bf16") == 0.998
    assert bar_for("Q8_0", "bf16") == 0.995
    assert bar_for("fp32", "q4_0") == 0.8
