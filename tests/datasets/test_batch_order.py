"""Which rows make which batch: distinct, complete, by the weights, and the same after a restart."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import maximum_bipartite_matching

from gemb.datasets.batches import Batch, BatchOrder, largest_matching
from gemb.errors import UsageError
from gemb.recipe.schema import Source


@dataclass(frozen=True)
class Ids:
    """A source of which only the equality of its texts is known."""

    query_ids: NDArray[np.uint64]
    positive_ids: NDArray[np.uint64]
    weight: float | None = None
    name: str = "pairs"
    held_out: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    @property
    def source(self) -> Source:
        return Source(path="pairs.jsonl", weight=self.weight)

    def __len__(self) -> int:
        return len(self.query_ids)


def distinct(rows: int, weight: float | None = None) -> Ids:
    ids = np.arange(rows, dtype=np.uint64)
    return Ids(ids, ids, weight)


def of(pairs: list[tuple[int, int]]) -> Ids:
    queries, positives = np.array(pairs, np.uint64).reshape(-1, 2).T
    return Ids(queries, positives)


def take(order: BatchOrder, steps: int) -> list[tuple[int, int, list[int]]]:
    return [
        (one.step, one.source, one.rows.tolist()) for one in (next(order) for _ in range(steps))
    ]


def largest(rows: Ids) -> int:
    """scipy's answer (Hopcroft-Karp)."""
    queries = np.unique(rows.query_ids, return_inverse=True)[1]
    positives = np.unique(rows.positive_ids, return_inverse=True)[1]
    graph = scipy.sparse.csr_matrix((np.ones(len(queries)), (queries, positives)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


FEW = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@settings(deadline=None)
@given(FEW)
def test_the_largest_batch_is_the_one_that_scipy_finds(pairs: list[tuple[int, int]]) -> None:
    rows = of(pairs)
    found = largest_matching(rows.query_ids, rows.positive_ids, enough=100)
    assert len(found) == largest(rows)
    assert len(set(rows.query_ids[found])) == len(set(rows.positive_ids[found])) == len(found)


@settings(deadline=None)
@given(FEW, st.integers(0, 2**64 - 1))
def test_no_query_and_no_positive_stands_twice_in_a_batch(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    rows = of(pairs)
    # The largest batch possible is the hardest: mostly only one choice of rows makes it.
    order = BatchOrder([rows], pairs=largest(rows), seed=seed)
    for _, batch in zip(range(30), order, strict=False):
        assert len(set(rows.query_ids[batch.rows])) == order.pairs
        assert len(set(rows.positive_ids[batch.rows])) == order.pairs


@settings(deadline=None)
@given(FEW, st.integers(1, 6))
def test_a_batch_that_the_rows_cannot_make_is_refused_and_the_largest_named(
    pairs: list[tuple[int, int]], more: int
) -> None:
    rows = of(pairs)
    most = largest(rows)
    hint = rf"batch\.pairs={most}" if most > 1 else "a batch needs two that differ"
    words = rf"pairs: its {len(pairs)} rows .* {most} at most: {hint}$"
    with pytest.raises(UsageError, match=words):
        BatchOrder([rows], pairs=most + more, seed=0)


@settings(max_examples=50, deadline=None)
@given(FEW, st.integers(1, 4), st.integers(0, 12), st.integers(0, 12))
def test_a_restart_at_any_step_continues_exactly(
    pairs: list[tuple[int, int]], size: int, before: int, after: int
) -> None:
    sources = [of(pairs), distinct(17)]
    size = min(size, largest(sources[0]))
    whole = take(BatchOrder(sources, pairs=size, seed=3), before + after)
    first = BatchOrder(sources, pairs=size, seed=3)
    take(first, before)
    state = json.loads(json.dumps(first.state()))
    second = BatchOrder(sources, pairs=size, seed=3)
    second.restore(state)
    assert take(second, after) == whole[before:]
    assert take(first, after) == whole[before:]  # asking for the state changes nothing


def test_every_row_comes_once_in_an_epoch_and_the_rest_begins_the_next() -> None:
    order = BatchOrder([distinct(103)], pairs=10, seed=0)
    rows = np.concatenate([next(order).rows for _ in range(103)])
    for epoch in range(10):
        counts = Counter(rows[: 103 * (epoch + 1)].tolist())
        assert set(counts.values()) == {epoch + 1}, f"epoch {epoch}"
    assert not np.array_equal(rows[:103], rows[103:206]), "an epoch repeats the order of the last"
    assert order.steps_per_epoch == 11


def test_rows_that_wait_for_a_batch_are_not_lost() -> None:
    rows = of([(one // 3, one) for one in range(300)])  # every query has three positives
    order = BatchOrder([rows], pairs=32, seed=5)
    counts = Counter(np.concatenate([next(order).rows for _ in range(300)]).tolist())
    assert len(counts) == 300
    assert max(counts.values()) - min(counts.values()) <= 2  # 32 times each, but for those waiting


def test_a_query_that_half_of_the_rows_share_does_not_grow_the_state() -> None:
    rows = of([(0, one) for one in range(500)] + [(one, one) for one in range(500, 1000)])
    order = BatchOrder([rows], pairs=50, seed=0)
    take(order, 400)
    waiting = order.state()["sources"][0]["waiting"]
    assert len(waiting) == len(set(waiting)) <= 500


@pytest.mark.parametrize("weights", [(None, None, None), (3.0, 1.0, 0.5), (0.0, 1.0, 3.0)])
def test_the_mixture_keeps_to_the_weights(weights: tuple[float | None, ...]) -> None:
    sizes = (600, 300, 100)
    sources = [distinct(size, weight) for size, weight in zip(sizes, weights, strict=True)]
    wanted = np.array(
        [size if one is None else one for size, one in zip(sizes, weights, strict=True)]
    )
    wanted = wanted / wanted.sum()
    order = BatchOrder(sources, pairs=4, seed=11)
    steps = 4000
    found = np.bincount([next(order).source for _ in range(steps)], minlength=3) / steps
    deviation = np.sqrt(wanted * (1 - wanted) / steps)
    assert np.all(np.abs(found - wanted) <= 4 * deviation), (found, wanted)
    assert order.shares == pytest.approx(wanted.tolist())


def test_the_seed_alone_decides() -> None:
    sources = [distinct(50), distinct(80)]
    one, same, other = (BatchOrder(sources, pairs=8, seed=seed) for seed in (1, 1, 2))
    first = take(one, 40)
    assert take(same, 40) == first
    assert take(other, 40) != first


def test_the_order_is_the_one_that_it_always_was() -> None:
    """A change of these numbers breaks the resuming of every run that is under way."""
    order = BatchOrder([distinct(11), distinct(7)], pairs=3, seed=42)
    first = [(0, 1, [6, 0, 2]), (1, 0, [4, 10, 9]), (2, 0, [5, 3, 0]), (3, 0, [2, 7, 1])]
    assert take(order, 4) == first


def test_sources_of_one_kind_do_not_go_through_the_same_order() -> None:
    order = BatchOrder([distinct(64, 1.0), distinct(64, 1.0)], pairs=64, seed=0)
    first: dict[int, Batch] = {}
    for _, batch in zip(range(30), order, strict=False):
        first.setdefault(batch.source, batch)
    assert first[0].rows.tolist() != first[1].rows.tolist()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1.0, None), "pairs has no weight and others have"),
        ((1.0, -1.0), "weight -1; it must be 0 or more"),
        ((1.0, float("nan")), "weight nan"),
        ((0.0, 0.0), "no source has a weight above 0"),
    ],
)
def test_unclear_weights_are_refused(weights: tuple[float | None, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BatchOrder([distinct(9, one) for one in weights], pairs=2, seed=0)


@pytest.mark.parametrize(
    ("sources", "pairs", "seed", "words"),
    [
        ([distinct(20)], 4, 9, "other seed: 1, now 9"),
        ([distinct(20)], 5, 1, "other pairs: 4, now 5"),
        ([distinct(20), distinct(20)], 4, 1, "other shares"),
        ([distinct(21)], 4, 1, "its rows are not those"),
        ([of([(one, one + 1) for one in range(20)])], 4, 1, "its rows are not those"),
    ],
)
def test_a_state_of_another_run_is_refused(
    sources: list[Ids], pairs: int, seed: int, words: str
) -> None:
    state = BatchOrder([distinct(20)], pairs=4, seed=1).state()
    with pytest.raises(UsageError, match=words):
        BatchOrder(sources, pairs=pairs, seed=seed).restore(state)


@settings(deadline=None)
@given(FEW, st.sets(st.integers(0, 39)), st.integers(0, 2**64 - 1))
def test_rows_held_out_are_in_no_batch_and_the_others_in_all_their_epochs(
    pairs: list[tuple[int, int]], out: set[int], seed: int
) -> None:
    """Even where few rows are left, and a batch is completed by exchanging some."""
    held = np.array(sorted(row for row in out if row < len(pairs)), np.intp)
    rows = replace(of(pairs), held_out=held)
    free = sorted(set(range(len(pairs))) - set(held.tolist()))
    if not free:
        with pytest.raises(UsageError, match="its 0 rows make no batch"):
            BatchOrder([rows], pairs=1, seed=seed)
        return
    # Of the largest size, there may be rows that fit into no batch at all; of one, there is none.
    for size in (1, largest(of([pairs[row] for row in free]))):
        order = BatchOrder([rows], pairs=size, seed=seed)
        assert order.steps_per_epoch == -(-len(free) // size)
        batches = [batch for _, _, batch in take(order, len(free))]
        assert {row for batch in batches for row in batch} <= set(free)
        assert all(len(batch) == size for batch in batches)
        if size == 1:
            assert sorted(row for batch in batches for row in batch) == free


def test_what_is_held_out_moves_no_other_row() -> None:
    rows = distinct(1000)
    whole = [row for _, _, batch in take(BatchOrder([rows], pairs=8, seed=2), 60) for row in batch]
    out = np.array([whole[3], whole[100], whole[101], whole[479]], np.intp)
    order = BatchOrder([replace(rows, held_out=np.sort(out))], pairs=8, seed=2)
    less = [row for _, _, batch in take(order, 59) for row in batch]
    assert less == [row for row in whole if row not in out][: len(less)]


def test_a_checkpoint_is_not_gone_on_from_with_other_rows_held_out() -> None:
    rows = distinct(20)
    state = BatchOrder([rows], pairs=4, seed=1).state()
    now = BatchOrder([replace(rows, held_out=np.array([7]))], pairs=4, seed=1)
    with pytest.raises(UsageError, match="its rows are not those that the checkpoint was made"):
        now.restore(state)
