"""WIN, TIE, REGRESSION: by the paired bootstrap, on the same sets, as often right as promised."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from gemb.errors import UsageError
from gemb.evaluation.metrics import Statistic
from gemb.evaluation.scores import MetricRow, Scores, SetDescription, Size
from gemb.evaluation.verdict import verdict
from lfs_pointer import POINTER

F32 = Size(768, "f32")


def scores(sets, sizes=(F32,), metric="ndcg@10"):
    """Return scores of sets {name: units' values, for every size alike or by size}."""
    descriptions, rows, evidence = [], [], {}
    for number, (name, values) in enumerate(sets.items()):
        by_size = values if isinstance(values, dict) else dict.fromkeys(sizes, values)
        descriptions.append(
            SetDescription(
                name=name,
                kind="retrieval",
                metric=metric,
                units=len(next(iter(by_size.values()))),
                fingerprint=f"{number:016x}",
                prompts=("{text}",),
            )
        )
        for size, units in by_size.items():
            statistic = Statistic("mean", np.asarray(units, float))
            evidence[name, size] = statistic
            value = statistic.value()
            rows.append(
                MetricRow(set=name, metric=metric, value=value, low=0, high=1, **size._asdict())
            )
    return Scores(
        model="0" * 16,
        arithmetic="fp32",
        suite="test",
        texts=1,
        cut=0,
        sets=tuple(descriptions),
        sizes=tuple(dict.fromkeys(size for _, size in evidence)),
        rows=tuple(rows),
        evidence=evidence,
    )


def test_the_line_is_as_promised():
    before = np.random.default_rng(0).random(400)
    found = verdict(scores({"dev": before}), scores({"dev": before + 0.1}))
    assert found.line == (
        f"VERDICT WIN ndcg@10 {before.mean():.3f} → {before.mean() + 0.1:.3f} "
        "(+0.100, 95% CI +0.100 to +0.100)"
    )
    assert found.main.set == "dev"


def test_a_small_even_gain_wins_for_the_pairs_are_compared_one_by_one():
    # 0.02 better on nearly every query: far less than the queries differ among themselves.
    random = np.random.default_rng(0)
    before = random.random(300)
    after = before + 0.02 + 0.05 * random.normal(size=300)
    found = verdict(scores({"dev": before}), scores({"dev": after}))
    assert found.word == "WIN"
    apart = stats.ttest_ind(before, after).pvalue
    assert apart > 0.2, "without the pairing nothing would be seen"
    assert verdict(scores({"dev": after}), scores({"dev": before})).word == "REGRESSION"


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    random = np.random.default_rng(1)
    before, gain = random.random(150), 0.03 + 0.2 * random.normal(size=150)
    found = verdict(scores({"dev": before}), scores({"dev": before + gain})).main
    theirs = stats.bootstrap(
        (gain,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.difference == pytest.approx(gain.mean(), abs=1e-12)
    # 2,000 resamples know a bound to about 3 % of the interval's width.
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.08 * width)


@pytest.mark.slow
def test_models_that_are_equally_good_are_told_apart_no_oftener_than_promised():
    random = np.random.default_rng(0)
    words = []
    for _ in range(300):
        before, after = random.random((2, 100))
        words.append(verdict(scores({"dev": before}), scores({"dev": after})).word)
    # 5 % of 300 is 15; three standard deviations are 11, and the percentile bootstrap is a little
    # narrow.
    assert sum(word != "TIE" for word in words) <= 30


def test_the_mean_weighs_sets_alike_and_each_is_told():
    random = np.random.default_rng(0)
    large, small = random.random(1000), random.random(100)
    before = scores({"large": large, "small": small})
    after = scores({"large": large - 0.01, "small": small + 0.05})
    found = verdict(before, after)
    assert found.main.set == "mean"
    assert found.main.difference == pytest.approx(0.02)
    assert {one.set: one.word for one in found.sets} == {"large": "REGRESSION", "small": "WIN"}
    document = found.to_json()
    assert (document["verdict"], document["metric"]) == ("WIN", "ndcg@10")
    assert [one["word"] for one in document["sets"]] == ["REGRESSION", "WIN"]


def test_sets_of_several_metrics_have_a_mean():
    one = scores({"a": np.ones(10), "b": np.ones(10)})
    sets = (one.sets[0], dataclasses.replace(one.sets[1], metric="accuracy"))
    rows = (one.rows[0], dataclasses.replace(one.rows[1], metric="accuracy"))
    mixed = dataclasses.replace(one, sets=sets, rows=rows)
    assert verdict(mixed, mixed).line.startswith("VERDICT TIE mean 1.000 → 1.000 (+0.000, ")


@pytest.mark.parametrize("units", [1, 2, 3, 9])
def test_a_set_of_few_units_makes_no_verdict(units):
    few, many = np.full(units, 0.4), np.random.default_rng(0).random(50)
    found = verdict(scores({"dev": few}), scores({"dev": few + 0.1}))
    assert found.word == "TOO FEW"
    assert found.line == (f"VERDICT TOO FEW ndcg@10 0.400 → 0.500 (+0.100, n={units}: no interval)")
    document = found.to_json()
    assert (document["low"], document["high"], document["units"]) == (None, None, units)
    assert [one["word"] for one in document["sizes"]] == ["TOO FEW"]
    # A mean is as sure as its least sure set; the other set has its own verdict.
    found = verdict(scores({"dev": few, "more": many}), scores({"dev": few, "more": many - 0.1}))
    assert (found.word, found.main.units) == ("TOO FEW", units)
    assert {one.set: one.word for one in found.sets} == {"dev": "TOO FEW", "more": "REGRESSION"}


def test_ten_units_make_a_verdict():
    units = np.full(10, 0.4)
    assert verdict(scores({"dev": units}), scores({"dev": units + 0.1})).word == "WIN"
    assert verdict(scores({"dev": units}), scores({"dev": units - 0.1})).word == "REGRESSION"


def test_the_widest_vectors_decide_and_every_common_size_is_told():
    random = np.random.default_rng(0)
    units = random.random(50)
    narrow, bits = Size(128, "f32"), Size(768, "ubinary")
    before = scores({"dev": {narrow: units, F32: units, bits: units}})
    after = scores({"dev": {narrow: units - 0.2, F32: units + 0.1, bits: units}})
    found = verdict(before, after)
    assert found.word == "WIN"
    words = {(one.dim, one.dtype): one.word for one in found.sizes}
    assert words == {(128, "f32"): "REGRESSION", (768, "f32"): "WIN", (768, "ubinary"): "TIE"}


def test_models_of_two_widths_are_compared_at_their_widest_and_the_line_says_so():
    units = np.random.default_rng(0).random(50)
    small = Size(384, "f32")
    found = verdict(scores({"dev": units}), scores({"dev": {small: units - 0.1}}))
    assert found.line.startswith("VERDICT REGRESSION ndcg@10 768 → 384 dims 0.")
    assert found.sizes == ()


def test_scores_of_other_sets_are_refused():
    units = np.ones(9)
    one, two = scores({"a": units}), scores({"a": units, "b": units})
    with pytest.raises(UsageError, match=r"^the baseline has no set 'b'; a comparison needs the s"):
        verdict(one, two)
    with pytest.raises(UsageError, match=r"^the new scores have no set 'b'; a comparison needs th"):
        verdict(two, one)
    changed = dataclasses.replace(one, sets=(dataclasses.replace(one.sets[0], fingerprint="ff"),))
    with pytest.raises(UsageError, match=r"^the set 'a' has changed since the baseline; evaluate"):
        verdict(one, changed)


def test_scores_in_other_types_are_refused():
    units = np.ones(9)
    bits = scores({"a": {Size(768, "ubinary"): units}})
    with pytest.raises(
        UsageError, match=r"^one side is of vectors in f32, the other in ubinary; e"
    ):
        verdict(scores({"a": units}), bits)


def test_scores_are_read_only_from_a_file_that_has_the_evidence(tmp_path):
    path = tmp_path / "scores.json"
    for content in ("", "[]", "{}", '{"gemb_scores": 1}', '{"gemb_scores": 2}', "\x00"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"scores.json: no scores that gemb eval -o wrote"):
            Scores.load(path)
    path.write_text(POINTER)
    with pytest.raises(UsageError, match=r"scores.json: a Git LFS pointer"):
        Scores.load(path)
    with pytest.raises(UsageError, match=r"^no such file: .*gone.json$"):
        Scores.load(tmp_path / "gone.json")


CHANGES = [
    (("rows", 0, "dim"), []),
    (("rows", 0, "value"), "x"),
    (("sizes", 0, "dim"), [768]),
    (("sizes",), []),
    (("sets",), []),
    (("sets", 0, "name"), "other"),
    (("sets", 0, "fingerprint"), "-1"),
    (("evidence", 0, "dtype"), -1),
    (("evidence", 0, "form"), "median"),
    (("evidence", 0, "values"), [[1.0]]),
    (("evidence", 0, "gold"), [1.0]),
    (("texts",), None),
]


@pytest.mark.parametrize(("place", "value"), CHANGES)
def test_scores_that_gemb_did_not_write_are_refused(place, value, tmp_path):
    path = tmp_path / "scores.json"
    scores({"a": np.linspace(0, 1, 12)}).save(path)
    Scores.load(path)
    document = json.loads(path.read_text())
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"scores.json: no scores that gemb eval -o wrote"):
        Scores.load(path)
