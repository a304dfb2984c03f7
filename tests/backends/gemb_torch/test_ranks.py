"""Processes with a part of the batch each give the gradients of one with the whole batch."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from gemb.errors import GembError
from gemb_torch.model.ranks import OtherProcessFailed, Ranks
from gemb_torch.model.sharding import full, shard
from gemb_torch.train.adamw import clip
from gemb_torch.train.finite import check_loss
from gemb_torch.train.gradients import Computed
from gemb_torch.train.objective import objective
from gradient_cases import (
    CASES,
    batch_of,
    difference,
    found_gradients,
    gradients_by,
    model_of,
    one_thread,
    part_of,
    plain_gradients,
)
from processes import in_processes

PAIRS = 14  # no multiple of 4: parts of different sizes
BATCHES = 2
KINDS = ("hard negatives", "activation checkpointing", "attention pooling")  # and every loss


def write_gradients(tiny_model: Path, ranks: Ranks, folder: Path) -> None:
    for name in KINDS:
        case = CASES[name]
        model = model_of(tiny_model, case)
        made = gradients_by(model, case, ranks, 64)
        batches = [batch_of(PAIRS, case, seed) for seed in range(BATCHES)]
        found = found_gradients(
            model, made, [part_of(batch, ranks.part(PAIRS)) for batch in batches]
        )
        if ranks.rank == ranks.count - 1:  # every process has the sum
            torch.save(found, folder / f"{name}.pt")


def write_sharded_gradients(tiny_model: Path, ranks: Ranks, folder: Path) -> None:
    for name in KINDS:
        case = CASES[name]
        model = model_of(tiny_model, case)
        shard(model, ranks, torch.device("cpu"))
        made = replace(gradients_by(model, case, ranks, 64), is_sharded=True)
        for seed in range(BATCHES):
            part = part_of(batch_of(PAIRS, case, seed), ranks.part(PAIRS))
            made.add(part, None, np.empty(0, np.int64))
        # FSDP's are the mean over the processes.
        found = {name: full(p.grad) * ranks.count for name, p in model.named_parameters()}
        if ranks.is_first:
            torch.save(found, folder / f"{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "count"),
    [(write_gradients, 2), (write_gradients, 4), (write_sharded_gradients, 2)],
)
def test_gradients_are_those_of_one_process(write, count, tiny_model, tmp_path):
    in_processes(count, tmp_path, partial(write, tiny_model))
    with one_thread():
        for name in KINDS:
            case = CASES[name]
            batches = [batch_of(PAIRS, case, seed) for seed in range(BATCHES)]
            loss = partial(objective, case.loss)
            expected = plain_gradients(model_of(tiny_model, case), batches, loss)
            found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
            assert difference(found, expected) < 1e-6, name


def test_the_batches_share_texts_between_processes():
    # Else the mask across processes would not be tested.
    batch = batch_of(PAIRS, CASES["pairs"])
    first, last = (part_of(batch, slice(*ends)) for ends in ((0, 3), (10, 14)))
    assert set(first.query_ids) & set(last.query_ids)
    counts = [
        len(part_of(batch_of(PAIRS, CASES["hard negatives"]), slice(*ends)).negative_rows)
        for ends in ((0, 3), (3, 7), (7, 10), (10, 14))
    ]
    assert len(set(counts)) > 1


def tell_each_other(ranks: Ranks, folder: Path) -> None:
    rank, count = ranks.rank, ranks.count
    rows = torch.full((rank, 3), float(rank))  # process 0 has none
    gathered = ranks.gather(rows)
    assert [len(part) for part in gathered] == list(range(count))
    assert all((part == owner).all() for owner, part in enumerate(gathered))
    assert ranks.union(np.array([rank, 10])).tolist() == [*range(count), 10]
    tensors = [torch.full((2, 2), float(rank)), torch.tensor(1.0), torch.arange(5.0)]
    ranks.sum(tensors)
    total = count * (count - 1) // 2
    assert (tensors[0] == total).all()
    assert tensors[1] == count
    assert tensors[2].tolist() == [count * i for i in range(5)]
    assert ranks.total(rank, 1) == [total, count]
    assert ranks.most(10 - rank) == 10
    assert ranks.words(["ä"] * rank) == ["ä"] * total
    assert ranks.any(rank == 1) is True
    assert ranks.any(False) is False
    ranks.wait()


def make_in_turn(ranks: Ranks, folder: Path) -> None:
    made = folder / "made"

    def work() -> bool:
        was_made = made.exists()
        made.touch()
        return was_made

    assert ranks.first_then_all(work) is not ranks.is_first

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError if ranks.is_first else OtherProcessFailed):
        ranks.first_then_all(fail)


def clip_shares(ranks: Ranks, folder: Path) -> None:
    whole = [torch.arange(12.0).reshape(4, 3), torch.full((2, 2), 5.0)]
    shares = [x[ranks.part(len(x))].clone() for x in whole]
    norm = clip(shares, 1.0, ranks)
    expected = clip(whole, 1.0)
    assert norm == pytest.approx(expected, rel=1e-6)
    for share, x in zip(shares, whole, strict=True):
        torch.testing.assert_close(share, x[ranks.part(len(x))])


def lose_one(ranks: Ranks, folder: Path) -> None:
    if ranks.rank == 1:
        ranks.wait()
        os._exit(0)
    ranks.wait()
    with pytest.raises(OtherProcessFailed, match="the connection to another process broke"):
        ranks.sum([torch.ones(3)])


def blame_a_row(ranks: Ranks, folder: Path) -> None:
    whole = batch_of(PAIRS, CASES["hard negatives"])
    mine = part_of(whole, ranks.part(PAIRS))
    vectors = torch.ones(len(mine.texts), 4)
    if ranks.rank == 1:
        vectors[2 * mine.pairs] = float("nan")  # its first hard negative
    part = ranks.part(PAIRS)
    at_fault = whole.negative_rows[whole.negative_rows >= PAIRS // 3][0]
    assert (part.start <= at_fault < part.stop) == (ranks.rank == 1)
    made = Computed(loss=torch.tensor(float("nan")), parts={}, vectors=vectors)
    with pytest.raises(GembError) as caught:  # in all processes the same
        check_loss(3, mine, made, ranks)
    assert str(caught.value).startswith(f"step 3: a vector is not finite; rows a:{at_fault};")
    finite = replace(made, vectors=torch.ones(1, 4))
    with pytest.raises(GembError) as caught:
        check_loss(3, mine, finite, ranks)
    assert "the loss is not finite; rows a:0, a:1, a:2 and 11 more;" in str(caught.value)


@pytest.mark.parametrize(
    "work", [tell_each_other, make_in_turn, clip_shares, lose_one, blame_a_row]
)
def test_processes_tell_each_other(work, tmp_path):
    in_processes(3, tmp_path, work)


@pytest.mark.parametrize("rows", [1, 7, 8, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_are_all_rows_in_order_and_nearly_alike(rows, count):
    ranks = Ranks()
    ranks.count = count
    parts = []
    for ranks.rank in range(count):
        parts.append(range(rows)[ranks.part(rows)])
    assert [row for part in parts for row in part] == list(range(rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
