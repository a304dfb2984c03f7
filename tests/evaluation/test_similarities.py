"""Cosines of right and wrong partners, alignment and uniformity, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.special import ive

from gemb.evaluation.similarities import ROWS_AT_A_TIME, _wrong_partners, similarities


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_orthogonal_pairs_have_the_values_of_the_formulas():
    x = np.eye(30, dtype=np.float32)
    found = similarities(x, x)
    assert found["pairs"] == 30
    assert found["alignment"] == 0
    assert found["uniformity"] == -4  # log exp(-2 * 2)
    assert found["positive"]["mean"] == 1
    assert found["positive"]["counts"] == [0] * 199 + [30]
    assert found["negative"]["mean"] == 0
    assert found["negative"]["counts"] == [0] * 100 + [600] + [0] * 99
    opposite = similarities(x, -x)
    assert opposite["alignment"] == 4
    assert opposite["positive"]["counts"] == [30] + [0] * 199


def test_one_point_is_perfectly_aligned_and_not_uniform_at_all():
    x = np.ones((50, 1), np.float32)
    found = similarities(x, x)
    assert (found["alignment"], found["uniformity"]) == (0, 0)


def test_uniform_points_on_a_circle_have_the_uniformity_of_the_bessel_function():
    angles = np.arange(4001) * 2 * np.pi / 4001
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    # E exp(-2 |x - y|^2) = exp(-4) I0(4), with the pairs i = j that the mean leaves out
    expected = np.log((4001 * ive(0, 4) - 1) / 4000)
    assert similarities(x, x)["uniformity"] == pytest.approx(expected, abs=1e-4)


def test_alignment_and_uniformity_are_those_of_the_authors_code():
    queries, positives = unit(ROWS_AT_A_TIME + 300, 16, 1), unit(ROWS_AT_A_TIME + 300, 16, 2)
    positives = (queries + 0.5 * positives).astype(np.float32)
    positives /= np.linalg.norm(positives, axis=1, keepdims=True)

    def uniform(x):  # github.com/ssnl/align_uniform: torch.pdist(x).pow(2).mul(-t).exp().mean()
        return np.log(np.exp(-2 * pdist(x.astype(np.float64)) ** 2).mean())

    found = similarities(queries, positives)
    aligned = (np.linalg.norm(queries - positives, axis=1) ** 2).mean()
    assert found["alignment"] == pytest.approx(aligned, abs=1e-4)
    expected = (uniform(queries) + uniform(positives)) / 2
    assert found["uniformity"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 20, 21, 22, 500])
def test_each_query_has_up_to_twenty_different_wrong_partners(count: int):
    # With these, the "cosine" of query i and positive j names both of them.
    names = np.arange(count * count, dtype=np.float32).reshape(count, count)
    found = _wrong_partners(np.eye(count, dtype=np.float32), names.T)
    assert len(found) == len(set(found)) == count * min(20, count - 1)
    queries, positives = np.divmod(found.astype(int), count)
    assert (queries != positives).all()
    assert (np.bincount(queries) == min(20, count - 1)).all()


def test_equal_input_gives_equal_answers_and_one_pair_has_no_wrong_partner():
    x, y = unit(100, 8, 3), unit(100, 8, 4)
    assert similarities(x, y) == similarities(x.copy(), y.copy())
    alone = similarities(x[:1], x[:1])
    assert alone["uniformity"] is None
    assert alone["negative"] == {"mean": None, "counts": [0] * 200}
    assert alone["alignment"] == pytest.approx(0, abs=1e-4)
