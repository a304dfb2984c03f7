"""One step of adaptation: examples in, changed parameters and what is to be told of it out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gemb_torch.adapt.order import Example
from gemb_torch.adapt.session import Adaptation
from gemb_torch.model.seq2seq import Sequences, pack_pairs
from gemb_torch.train.adamw import AdamW, clip
from gemb_torch.train.gradients import CPU_PADDING, CUDA_PADDING
from gemb_torch.train.steps import not_finite


@dataclass(frozen=True, kw_only=True)
class AdaptDone:
    """One step, for the log."""

    loss: float  # mean of the targets' tokens
    parts: dict[str, float]  # the same, of each task that was there
    grad_norm: float  # before it was shortened
    tokens: int  # of inputs and targets
    texts: int
    seconds: float


def adapt_step(
    adaptation: Adaptation, optimizer: AdamW, examples: Sequence[Example], step: int
) -> AdaptDone:
    """Change the parameters once. All processes call this together, with the same examples.

    Args:
        adaptation: the run.
        optimizer: of what learns now.
        examples: of the whole step; each process takes its part.
        step: steps that were done before.

    Raises:
        GembError: the loss or the gradient is not finite; no parameter was changed by it.
    """
    started = time.perf_counter()
    ranks = adaptation.ranks
    sums = gradients(adaptation, examples)
    ranks.sum([sums])
    loss = float(sums[:, 0].sum() / sums[:, 1].sum())
    places = [f"{adaptation.stores[one.source].name}:{one.text + 1}" for one in examples]
    if not math.isfinite(loss):
        not_finite(step + 1, "the loss", places)
    found = list(optimizer.gradients(None))
    ranks.sum(found)
    norm = clip(found, adaptation.recipe.optimizer.max_grad_norm)
    if not math.isfinite(norm):
        not_finite(step + 1, "the gradient", places)
    optimizer.step(adaptation.factor(step), adaptation.ids.marks[:0], None)
    return AdaptDone(
        loss=loss,
        parts={
            task.name: float(total / count)
            for task, (total, count) in zip(adaptation.tasks, sums, strict=True)
            if count
        },
        grad_norm=norm,
        tokens=sum(example.tokens for example in examples),
        texts=len(examples),
        seconds=time.perf_counter() - started,
    )


def gradients(adaptation: Adaptation, examples: Sequence[Example]) -> torch.Tensor:
    """Add the gradients of this process's part of the mean loss of the step's target tokens.

    Returns the sum of losses and the number of tokens of each task, fp64 [tasks, 2].
    """
    names = [task.name for task in adaptation.tasks]
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    count = sum(len(example.targets) for example in examples)
    mine = examples[adaptation.ranks.rank :: adaptation.ranks.count]
    is_mixed = adaptation.recipe.run.precision == "bf16"
    for micro in micro_batches(mine, adaptation.recipe.batch.micro_tokens):
        with torch.autocast(adaptation.device.type, torch.bfloat16, enabled=is_mixed):
            total, losses = adaptation.model(_packed(adaptation, micro))
        (total / count).backward()
        each = losses.double().cpu().split([len(example.targets) for example in micro])
        for example, own in zip(micro, each, strict=True):
            sums[names.index(example.task.name)] += torch.stack(
                [own.sum(), own.new_tensor(len(own))]
            )
    return sums


def micro_batches(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """Yield the examples in groups of at most so many tokens, those of like lengths together."""
    group: list[Example] = []
    size = 0
    for example in sorted(examples, key=lambda one: (len(one.targets), len(one.inputs))):
        if group and size + example.tokens > tokens:
            yield group
            group, size = [], 0
        group.append(example)
        size += example.tokens
    if group:
        yield group


def _packed(adaptation: Adaptation, examples: Sequence[Example]) -> Sequences:
    return pack_pairs(
        [example.inputs for example in examples],
        [example.targets for example in examples],
        bos=adaptation.ids.bos,
        window=adaptation.start.config.sliding_window,
        device=adaptation.device,
        max_padding=CPU_PADDING if adaptation.device.type == "cpu" else CUDA_PADDING,
    )
