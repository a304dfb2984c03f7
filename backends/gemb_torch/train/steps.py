"""The steps of a run: batches in, changed parameters and what is to be told of each step out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import torch

from gemb.errors import GembError
from gemb.recipe.schema import Recipe
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.rounding import Rounding
from gemb_torch.model.sharding import local
from gemb_torch.train.adamw import AdamW, clip, rate
from gemb_torch.train.batches import Prepared, row_ids
from gemb_torch.train.gradients import Computed, Gradients, TokenBatch

_NAMED = 3  # rows that a message names


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One step, for the log."""

    step: int  # from 1
    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float  # before it was shortened
    tokens: int  # of all processes
    pairs: int
    cut: int  # texts that were longer than `max_tokens`, of this process
    source: str
    seconds: float
    data_s: float  # waited for batches
    order: dict[str, Any]  # where the order of the data stands after it


def training_steps(
    recipe: Recipe,
    gradients: Gradients,
    optimizer: AdamW,
    batches: Iterator[Prepared],
    rounding: Rounding,
    *,
    begin: int,
    steps: int,
) -> Iterator[StepDone]:
    """Yield after each step.

    Args:
        recipe: its batch and optimizer are read.
        gradients: of the model in training.
        optimizer: of the same model.
        batches: as many as wanted, beginning with those of step `begin`.
        rounding: of the same model; gradients are those of the rounded weights.
        begin: steps that were done before.
        steps: of the whole run.

    Raises:
        GembError: a loss or a gradient is not finite; no parameter was changed by it.
    """
    ranks = gradients.ranks
    for step in range(begin, steps):
        started = time.perf_counter()
        taken = list(islice(batches, recipe.batch.accumulate))
        data_s = time.perf_counter() - started
        each = [prepared.batch for prepared in taken]
        ids = ranks.union(row_ids(each))
        leaf = optimizer.leaf(ids)
        rounding.rows(leaf)
        computed = []
        with rounding.applied():
            for batch in each:
                made = gradients.add(batch, leaf, ids)
                _check_vectors(step + 1, batch, made, ranks)
                computed.append(made)
        row_gradient = None if leaf is None else leaf.grad
        found = list(optimizer.gradients(row_gradient))
        if gradients.is_sharded:  # each has the mean over the processes, of its share
            found = [local(gradient) for gradient in found]
            torch._foreach_mul_(found, float(ranks.count))
        else:
            ranks.sum(found)
        if len(each) > 1:
            torch._foreach_div_(found, float(len(each)))
        shares = ranks if gradients.is_sharded else None
        norm = clip(found, recipe.optimizer.max_grad_norm, shares)
        if not math.isfinite(norm):
            _refuse(step + 1, "the gradient", each, ranks)
        factor = rate(recipe.optimizer, step, steps)
        optimizer.step(factor, ids, row_gradient)
        loss, parts = _mean(computed)
        tokens, pairs = ranks.total(sum(b.tokens for b in each), sum(b.pairs for b in each))
        yield StepDone(
            step=step + 1,
            loss=loss,
            parts=parts,
            lr=recipe.optimizer.lr * factor,
            grad_norm=norm,
            tokens=tokens,
            pairs=pairs,
            cut=sum(batch.cut for batch in each),
            source="+".join(dict.fromkeys(batch.source for batch in each)),
            seconds=time.perf_counter() - started,
            data_s=data_s,
            order=taken[-1].order,
        )


def _mean(computed: Sequence[Computed]) -> tuple[float, dict[str, float]]:
    """Return the mean loss, and the mean of each part over the batches that have it."""
    parts: dict[str, list[float]] = {}
    for made in computed:
        for name, value in made.parts.items():
            parts.setdefault(name, []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in parts.items()}
    return sum(float(made.loss) for made in computed) / len(computed), means


def _check_vectors(step: int, batch: TokenBatch, made: Computed, ranks: Ranks) -> None:
    """Refuse a loss that is not finite: it is the same in all processes."""
    if math.isfinite(float(made.loss)):
        return
    broken = (~made.vectors.isfinite().all(1)).nonzero().flatten().tolist()
    pairs = batch.pairs
    owners = [
        text % pairs if text < 2 * pairs else int(batch.negative_rows[text - 2 * pairs])
        for text in broken
    ]
    places = ranks.words([batch.places[owner] for owner in dict.fromkeys(owners)])
    if places:
        not_finite(step, "a vector", places)
    _refuse(step, "the loss", [batch], ranks)


def _refuse(step: int, what: str, batches: Sequence[TokenBatch], ranks: Ranks) -> None:
    not_finite(step, what, ranks.words([place for batch in batches for place in batch.places]))


def not_finite(step: int, what: str, places: Sequence[str]) -> NoReturn:
    """Raise GembError: what is not finite in a step, and in which of its rows."""
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    raise GembError(
        f"step {step}: {what} is not finite; rows {', '.join(places[:_NAMED])}{more}; nothing was "
        "changed by it: lower optimizer.lr, or use run.precision=fp32, and resume"
    )
