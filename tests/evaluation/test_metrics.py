"""The numbers of an evaluation against trec_eval, scipy and scikit-learn; the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from gemb.evaluation.linear_probe import fitted, folded, predictions
from gemb.evaluation.metrics import (
    DEPTH,
    LEAST_UNITS,
    RESAMPLES,
    Statistic,
    average_precision,
    best,
    interval,
    of_rankings,
    resamples,
    score_interval,
    spearman,
)

SAME = 1e-6  # what the metrics must agree to; float64 gives 1e-12


def drawn(counts, *arrays):
    """Write a resample out: each unit as often as it was drawn."""
    return [np.repeat(array, counts.astype(int)) for array in arrays]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("places", [0, 1, 8], ids="{} decimals".format)
def test_spearman_is_scipys_with_ties_and_without(seed, places):
    random = np.random.default_rng(seed)
    a = np.round(random.normal(size=200), places)
    b = np.round(a + random.normal(size=200), places)
    assert spearman(a, b)[0] == pytest.approx(stats.spearmanr(a, b).statistic, abs=SAME)


def test_each_resample_has_the_spearman_of_its_pairs_written_out():
    random = np.random.default_rng(1)
    a, b = np.round(random.normal(size=(2, 60)), 1)
    counts = np.concatenate(list(resamples(60, seed=3)))[:20]
    expected = [stats.spearmanr(*drawn(row, a, b)).statistic for row in counts]
    np.testing.assert_allclose(spearman(a, b, counts), expected, atol=SAME)


def test_a_side_that_is_all_equal_has_no_correlation():
    assert spearman(np.ones(5), np.arange(5.0))[0] == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("places", [0, 1, 8], ids="{} decimals".format)
def test_average_precision_is_scikit_learns_with_ties_and_without(seed, places):
    random = np.random.default_rng(seed)
    scores = np.round(random.normal(size=100), places)
    positive = (random.random(100) < 0.3).astype(float)
    expected = average_precision_score(positive, scores)
    assert average_precision(scores, positive)[0] == pytest.approx(expected, abs=SAME)
    counts = np.concatenate(list(resamples(100, seed)))[:10]
    expected = [average_precision_score(*drawn(row, positive, scores)) for row in counts]
    np.testing.assert_allclose(average_precision(scores, positive, counts), expected, atol=SAME)


def rankings(scores, qrels, ids):
    """Return our metrics of each query; documents are put in the order that `best` asks for."""
    order = sorted(range(len(ids)), key=lambda row: ids[row].encode(), reverse=True)
    place = {ids[row]: new for new, row in enumerate(order)}
    grades, ideal = np.zeros((len(scores), DEPTH)), np.zeros((len(scores), 10))
    for query, row in enumerate(scores):
        judged = np.zeros(len(ids))
        for document, grade in qrels[query].items():
            judged[place[document]] = grade
        found = best(row[order].astype(np.float32))
        grades[query, : len(found)] = judged[found]
        highest = sorted(qrels[query].values(), reverse=True)[:10]
        ideal[query, : len(highest)] = highest
    relevant = np.array([sum(grade > 0 for grade in one.values()) for one in qrels], float)
    return of_rankings(grades, ideal, relevant)


def trec_eval(scores, qrels, ids):
    """Return trec_eval's values of the same metrics; of mrr@10, by cutting the run at ten."""
    names = {f"q{query}": one for query, one in enumerate(qrels)}
    run = {
        f"q{query}": dict(zip(ids, map(float, row), strict=True))
        for query, row in enumerate(scores)
    }
    measures = {
        "ndcg@10": "ndcg_cut_10",
        "recall@10": "recall_10",
        "recall@100": "recall_100",
        "map@100": "map_cut_100",
    }
    found = pytrec_eval.RelevanceEvaluator(names, set(measures.values())).evaluate(run)
    values = {
        ours: np.array([found[query][theirs] for query in names])
        for ours, theirs in measures.items()
    }
    top = {}
    for query, documents in run.items():
        by_rank = sorted(documents, key=lambda one: (documents[one], one.encode()), reverse=True)
        top[query] = {document: 10.0 - place for place, document in enumerate(by_rank[:10])}
    ranks = pytrec_eval.RelevanceEvaluator(names, {"recip_rank"}).evaluate(top)
    values["mrr@10"] = np.array([ranks[query]["recip_rank"] for query in names])
    return values


@settings(max_examples=60, deadline=None)
@given(
    documents=st.integers(1, 250),
    levels=st.sampled_from([2, 5, 1000]),  # few: nearly all scores are tied
    graded=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_rankings_are_trec_evals_with_ties_grades_and_few_documents(
    documents, levels, graded, seed
):
    random = np.random.default_rng(seed)
    # Ids of several lengths and scripts: trec_eval compares bytes, d10 before d9.
    ids = [f"{'dé文'[row % 3]}{row}" for row in range(documents)]
    scores = random.integers(levels, size=(6, documents)) / np.float32(levels)
    grades = (-1, 0, 1, 2, 3) if graded else (0, 1)
    qrels = []
    for _ in scores:
        judged = random.choice(
            documents, size=min(documents, 1 + random.integers(30)), replace=False
        )
        one = {ids[row]: int(random.choice(grades)) for row in judged}
        one[ids[judged[0]]] = 1
        qrels.append(one)
    ours, theirs = rankings(scores, qrels, ids), trec_eval(scores, qrels, ids)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=SAME, err_msg=name)


def test_the_best_are_in_order_and_of_equal_ones_the_first():
    scores = np.array([0.5, 0.9, 0.5, -np.inf, 0.9, 0.5], np.float32)
    assert best(scores).tolist() == [1, 4, 0, 2, 5]
    assert best(scores, 3).tolist() == [1, 4, 0]
    assert best(scores, 4).tolist() == [1, 4, 0, 2]


def test_resamples_draw_every_unit_evenly_and_the_same_for_a_seed():
    counts = np.concatenate(list(resamples(50, seed=7)))
    assert counts.shape == (RESAMPLES, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.15)  # six standard deviations
    assert np.array_equal(counts, np.concatenate(list(resamples(50, seed=7))))
    assert not np.array_equal(counts, np.concatenate(list(resamples(50, seed=8))))


def test_the_interval_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).gamma(1, size=200)
    low, high = interval(Statistic("mean", values).resampled(seed=0))
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    # 2,000 resamples know a bound to about 3 % of the interval's width.
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.08 * width)
    assert high == pytest.approx(theirs.high, abs=0.08 * width)


@pytest.mark.slow
def test_the_interval_of_spearman_holds_the_truth_as_often_as_it_says():
    # Pairs of correlation 0.7: the population's Spearman is 6/pi asin(rho/2).
    truth = 6 / np.pi * np.arcsin(0.7 / 2)
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        a = random.normal(size=150)
        b = 0.7 * a + np.sqrt(1 - 0.49) * random.normal(size=150)
        low, high = interval(Statistic("spearman", a, b).resampled(seed))
        inside += low <= truth <= high
    assert 180 <= inside <= 198  # 190 expected, three standard deviations, and some bias


def probe_data(seed, rows=300, width=24, labels=5):
    random = np.random.default_rng(seed)
    classes = random.integers(labels, size=rows)
    centres = random.normal(size=(labels, width))
    x = centres[classes] + 1.5 * random.normal(size=(rows, width))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), classes


@pytest.mark.parametrize("labels", [2, 5, 9])
def test_the_probe_is_scikit_learns_logistic_regression(labels):
    x, classes = probe_data(labels, labels=labels)
    train, test = slice(0, 200), slice(200, None)
    # On two labels scikit-learn fits one row of weights, whose penalty is another: two rows of
    # half each have half the sum of squares, so there C is 2 for the same minimum.
    model = LogisticRegression(C=2.0 if labels == 2 else 1.0, tol=1e-10, max_iter=10000)
    model.fit(x[train].astype(np.float64), classes[train])
    weights = fitted(x[train], classes[train], labels)
    theirs = model.predict_proba(x[test].astype(np.float64))
    logits = x[test] @ weights[:-1] + weights[-1]
    ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # the solver's tolerance; float32 products
    names = [f"label {number}" for number in classes]
    found = predictions(x[train], names[train], x[test])
    expected = [f"label {number}" for number in model.predict(x[test])]
    accuracy = np.mean(np.array(found) == np.array(names[test]))
    assert accuracy == pytest.approx(model.score(x[test], classes[test]), abs=SAME)
    assert found == expected


def test_without_a_test_part_every_row_is_predicted_from_others():
    x, classes = probe_data(0)
    names = [str(number) for number in classes]
    found = folded(x, names)
    share = np.mean([one == name for one, name in zip(found, names, strict=True)])
    assert 0.5 < share < 0.99
    # Labels that tell nothing cannot be learned, which they would be if a row trained on itself.
    random = np.random.default_rng(0)
    unlearnable = [str(number) for number in random.permutation(classes)]
    sparse = np.eye(300, 24, dtype=np.float32)[random.permutation(300)] + x
    found = folded(sparse, unlearnable)
    assert np.mean([a == b for a, b in zip(found, unlearnable, strict=True)]) < 0.35


@pytest.mark.parametrize("units", [10, 25, 400])
@pytest.mark.parametrize("hits", [0, 1])
def test_the_interval_of_none_and_of_all_is_that_of_clopper_and_pearson(units, hits):
    statistic = Statistic("mean", np.full(units, float(hits)))
    theirs = stats.binomtest(hits * units, units).proportion_ci(0.95, "exact")
    ours = score_interval(statistic, statistic.resampled(0))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_few_units_have_no_interval_and_equal_ones_none_that_is_too_narrow():
    for units in range(1, LEAST_UNITS):
        statistic = Statistic("mean", np.linspace(0, 1, units))
        assert score_interval(statistic, statistic.resampled(0)) is None
    half = Statistic("mean", np.full(20, 0.5))
    low, high = score_interval(half, half.resampled(0))
    assert 0.3 < low < 0.45
    assert 0.55 < high < 0.7
    ordered = Statistic("spearman", np.arange(20.0), np.arange(20.0))
    assert score_interval(ordered, ordered.resampled(0)) is None  # all resamples are 1
    mixed = Statistic("mean", np.arange(20) % 2 * 1.0)
    low, high = score_interval(mixed, mixed.resampled(0))
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8
