"""Gradients in the memory of a micro-batch are those of one plain backward pass."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from gemb_torch.model.ranks import Ranks
from gemb_torch.train.gradients import micro_batches, passes
from gemb_torch.train.objective import objective
from gradient_cases import (
    CASES,
    Case,
    batch_of,
    difference,
    found_gradients,
    gradients_by,
    model_of,
    one_thread,
    part_of,
    plain_gradients,
)

PAIRS = 12


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro_tokens", [1, 64, 1_000_000])
def test_cached_gradients_are_the_plain_ones(name, micro_tokens, tiny_model):
    case = CASES[name]
    batch = batch_of(PAIRS, case)
    model = model_of(tiny_model, case)
    made = gradients_by(model, case, Ranks(), micro_tokens)
    found = found_gradients(model, made, [batch])
    plain = model_of(tiny_model, Case(case.loss, pooling=case.pooling))
    expected = plain_gradients(plain, [batch], partial(objective, case.loss))
    assert difference(found, expected) < 1e-6


@pytest.mark.parametrize("name", ["pairs", "attention pooling"])
def test_gradients_of_accumulated_batches_are_the_sum(name, tiny_model):
    case = CASES[name]
    batches = [batch_of(PAIRS, case, seed) for seed in range(3)]
    model = model_of(tiny_model, case)
    found = found_gradients(model, gradients_by(model, case, Ranks(), 64), batches)
    expected = plain_gradients(model_of(tiny_model, case), batches, partial(objective, case.loss))
    assert difference(found, expected) < 1e-6


def test_the_measure_sees_a_wrong_mask_and_a_missing_negative(tiny_model):
    # Else the tests above would hold whatever the mask and the negatives.
    case = CASES["hard negatives"]
    batch = batch_of(PAIRS, case)
    right = plain_gradients(model_of(tiny_model, case), [batch], partial(objective, case.loss))
    unmasked = batch_of(PAIRS, case)
    unmasked.query_ids[-1] = 99
    fewer = part_of(batch, slice(0, PAIRS))
    fewer.negative_rows[0] += 1
    for changed in (unmasked, fewer):
        model = model_of(tiny_model, case)
        found = found_gradients(model, gradients_by(model, case, Ranks(), 64), [changed])
        assert difference(found, right) > 1e-3


@pytest.mark.parametrize("micro_tokens", [40, 10_000])
def test_the_loss_and_the_vectors_are_those_of_the_plain_pass(micro_tokens, tiny_model):
    case = CASES["activation checkpointing"]
    batch = batch_of(PAIRS, case)
    model = model_of(tiny_model, case)
    made = gradients_by(model, case, Ranks(), micro_tokens)
    whole = gradients_by(model, case, Ranks(), 1_000_000)
    computed, once = (each.add(batch, None, np.empty(0, np.int64)) for each in (made, whole))
    assert computed.loss == pytest.approx(float(once.loss), rel=1e-6)
    torch.testing.assert_close(computed.vectors, once.vectors, rtol=0, atol=1e-6)
    assert computed.parts.keys() == once.parts.keys()


@pytest.mark.parametrize("micro_tokens", [40, 150, 10_000])
@pytest.mark.parametrize("name", ["matryoshka", "activation checkpointing"])
def test_the_passes_of_a_batch_are_those_that_are_made(name, micro_tokens, tiny_model):
    case = CASES[name]
    batch = batch_of(PAIRS, case)
    model = model_of(tiny_model, case)
    through = {True: 0, False: 0}  # tokens through a layer, by whether there is a graph

    def count(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        through[torch.is_grad_enabled()] += given[0].shape[0]

    next(iter(model.blocks())).register_forward_pre_hook(count)
    gradients_by(model, case, Ranks(), micro_tokens).add(batch, None, np.empty(0, np.int64))
    forward, backward = through[True] + through[False], 2 * batch.tokens
    found = passes([len(ids) for ids in batch.texts], micro_tokens, recomputes=case.recomputes)
    assert found == pytest.approx((forward + backward) / batch.tokens)


def test_the_table_as_a_parameter_has_the_rows_gradients(tiny_model):
    case = CASES["matryoshka"]
    batch = batch_of(PAIRS, case)
    model = model_of(tiny_model, case)
    found = found_gradients(model, gradients_by(model, case, Ranks(), 64), [batch])
    dense = model_of(tiny_model, case)
    gradients_by(dense, case, Ranks(), 64).add(batch, None, np.empty(0, np.int64))
    by_table = {name: parameter.grad for name, parameter in dense.named_parameters()}
    assert difference(by_table, found) < 1e-6


def test_micro_batches_hold_every_text_once_and_no_more_than_their_tokens():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 100, 200).tolist()
    micros = micro_batches(lengths, 128)
    assert sorted(np.concatenate(micros).tolist()) == list(range(200))
    assert all(sum(lengths[text] for text in micro) <= 128 for micro in micros)
    longest = [max(lengths[text] for text in micro) for micro in micros]
    assert longest == sorted(longest)
    assert [len(micro) for micro in micro_batches([5, 900, 4], 10)] == [2, 1]
