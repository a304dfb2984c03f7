"""Scores of several kinds made one: backgrounds, fusion, probable cosines."""

from __future__ import annotations

import numpy as np

from gemb.search.fusion import WORDS, Background, fused, probable_cosines, standardised


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_background_counts_those_that_have_no_score() -> None:
    assert Background.of(floats(2, 4)) == (3.0, 1.0)
    assert Background.of(floats(3, np.nan)) == (3.0, 0.0)
    np.testing.assert_allclose(Background.of(floats(2, 4), 4), (1.5, np.std([2, 4, 0, 0])))
    assert Background.of(floats()) == (0.0, 0.0)


def test_scores_are_held_against_their_own_background() -> None:
    scores = floats(1, 2, 3, np.nan)
    np.testing.assert_allclose(standardised(scores)[:3], [-1.2247449, 0, 1.2247449], rtol=1e-6)
    assert np.isnan(standardised(scores)[3])
    assert standardised(scores, Background(1.0, 2.0))[:3].tolist() == [0, 0.5, 1]
    assert standardised(np.full(3, 7, np.float32)).tolist() == [0, 0, 0]
    assert standardised(np.full(3, 0.1)).tolist() == [0, 0, 0], "their mean is not 0.1"
    assert len(standardised(floats())) == 0


def test_words_and_cosines_are_added_in_deviations() -> None:
    cosines, words = floats(0.1, 0.3, np.nan), floats(0, 0, 30)
    total = fused(cosines, words)
    np.testing.assert_allclose(total[:2], WORDS * standardised(words)[:2] + [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(total[2], WORDS * standardised(words)[2], rtol=1e-6)
    # Ten times the scale of one kind changes nothing; its background does.
    np.testing.assert_allclose(fused(10 * cosines, words), total, rtol=1e-5)
    far = fused(cosines, words, Background(0.0, 0.01), Background(0.0, 1.0))
    np.testing.assert_allclose(far, [10, 30, 15], rtol=1e-5)
    np.testing.assert_allclose(fused(None, words), WORDS * standardised(words))


def test_a_probable_cosine_lies_on_the_line_of_those_that_are_known() -> None:
    first = np.linspace(-2, 5, 50).astype(np.float32)
    cosines = 0.1 + 0.05 * first
    found = probable_cosines(first, first[::2], cosines[::2])
    np.testing.assert_allclose(found, cosines, atol=1e-6)
    few = probable_cosines(first, first[:2], cosines[:2])  # too few for a slope
    assert (np.diff(few) > 0).all()
    none = probable_cosines(first, first[:0], cosines[:0])
    assert (np.diff(none) > 0).all()
    falling = probable_cosines(first, first, -cosines)  # what ranks higher is never less likely
    assert (np.diff(falling) == 0).all()
