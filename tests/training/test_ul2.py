"""UL2's spans: what must hold of each, and what theory says of many."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemb.training.ul2 import PREFIX_LM, UL2, Task, choose, divided, most_spans, spans, taken_apart

TASKS = {task.name: task for task in (*UL2, *PREFIX_LM)}
MARKS = np.arange(1000, 2000)


def test_the_mix_is_t5gemma_2s():
    assert [(task.mean_span, task.noise, task.weight) for task in UL2] == [
        (3, 0.15, 1),
        (12, 0.5, 1),
        (32, 0.15, 1),
        (32, 0.5, 1),
        (0, 0.75, 4),
    ]


def test_tasks_come_as_often_as_their_weights_say():
    random = np.random.default_rng(0)
    drawn = [choose(UL2, random).name for _ in range(20_000)]
    for task in UL2:
        # Four standard errors of a share of 1/8 or 1/2 in 20,000 draws.
        share = task.weight / 8
        error = 4 * np.sqrt(share * (1 - share) / 20_000)
        assert abs(drawn.count(task.name) / 20_000 - share) < error, task.name


@given(
    name=st.sampled_from(sorted(TASKS)),
    length=st.integers(2, 700),
    seed=st.integers(0, 2**32),
)
def test_a_text_comes_back_from_input_and_target(name, length, seed):
    task, ids = TASKS[name], np.arange(length)
    noise = spans(task, length, np.random.default_rng(seed))
    inputs, targets = taken_apart(ids, noise, MARKS, is_marked=task.is_marked)
    assert 0 < len(noise) <= max(1, most_spans([task], length))
    if not task.is_marked:
        assert (np.concatenate([inputs, targets]) == ids).all()
        return
    parts = np.split(targets, np.flatnonzero(targets >= 1000)[1:])
    assert [part[0] for part in parts] == list(MARKS[: len(noise)])
    back = []
    for token in inputs:
        back += list(parts[token - 1000][1:]) if token >= 1000 else [token]
    assert back == list(ids)
    # T5's way: a text begins with what is left, and no two spans touch.
    assert inputs[0] == 0
    assert (noise[:, 0] < noise[:, 1]).all()
    assert (noise[1:, 0] > noise[:-1, 1]).all()


@pytest.mark.parametrize("task", [task for task in UL2 if task.mean_span], ids=lambda t: t.name)
def test_noise_is_exactly_its_share_in_spans_of_exactly_the_mean(task):
    length = 6400  # 0.15 and 0.5 of it are whole spans
    for seed in range(50):
        noise = spans(task, length, np.random.default_rng(seed))
        sizes = noise[:, 1] - noise[:, 0]
        assert sizes.sum() == length * task.noise
        assert sizes.mean() == pytest.approx(task.mean_span, rel=0.01)


def test_the_suffix_task_takes_three_quarters_at_the_end():
    (found,) = spans(TASKS["suffix-75"], 400, np.random.default_rng(0))
    assert found.tolist() == [100, 400]


def test_prefix_lm_writes_the_second_half_without_a_mark():
    noise = spans(PREFIX_LM[0], 9, np.random.default_rng(0))
    inputs, targets = taken_apart(np.arange(9), noise, MARKS, is_marked=False)
    assert (inputs.tolist(), targets.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8])


def test_every_way_to_divide_is_as_likely_as_any_other():
    random = np.random.default_rng(1)
    total, parts, draws = 12, 4, 60_000
    found = np.array([divided(total, parts, random) for _ in range(draws)])
    assert (found.sum(1) == total).all()
    assert found.min() == 1
    # Of a random composition, P(size = k) = C(total - k - 1, parts - 2) / C(total - 1, parts - 1).
    for size in range(1, total - parts + 2):
        expected = comb(total - size - 1, parts - 2) / comb(total - 1, parts - 1)
        error = 5 * np.sqrt(expected * (1 - expected) / draws)
        for part in range(parts):  # wherever it stands
            assert abs((found[:, part] == size).mean() - expected) < error, (size, part)


def test_each_token_is_noise_about_as_often_as_any_other_but_at_the_ends():
    task, length = Task(name="", weight=1, noise=0.5, mean_span=4), 120
    hidden = np.zeros(length)
    for seed in range(3000):
        for start, end in spans(task, length, np.random.default_rng(seed)):
            hidden[start:end] += 1 / 3000
    assert hidden[0] == 0  # what is left comes first
    assert hidden[-1] == pytest.approx(1)  # noise last, as in T5
    assert np.abs(hidden[20:100] - 0.5).max() < 0.06
