"""What is seen before the first step: the data, and how long and how much it will take."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from functools import partial

import click
import numpy as np
import torch
from torch import Tensor

from gemb.io import notes
from gemb.io.text import duration
from gemb.models.tokenizer import tokenize
from gemb.training.preflight import preflight
from gemb_torch.model.sharding import local
from gemb_torch.train.batches import row_ids
from gemb_torch.train.gradients import TokenBatch, passes
from gemb_torch.train.objective import StepVectors
from gemb_torch.train.session import Session

MOMENTS = 2  # fp32 numbers that AdamW keeps of each parameter


def look(session: Session) -> None:
    """Show what will be trained on, and predict time and memory. All processes call this together.

    Raises:
        UsageError: a training text stands in the evaluation set.
    """
    recipe, run, maker = session.recipe, session.run, session.maker
    is_first, dry_run = session.ranks.is_first, session.training.dry_run
    show = click.echo if dry_run else notes.show
    if is_first:
        found = preflight(
            recipe.batch,
            session.sources,
            session.order(),
            partial(tokenize, maker.tokenizer),
            maker.prompts,
            steps=session.steps,
            suite=session.suite,
            shared_documents=recipe.eval.shared_documents,
            held_out=recipe.held_out,
            overlap_listing=None if dry_run else run.overlap,
        )
        if not dry_run:
            run.write_json(run.preflight, found.to_json())
        show("\n".join(found.lines()))
    rate, peak = speed(session)
    if is_first:
        seconds = found.total_tokens / rate
        show(
            f"about {rate:,.0f} tokens/s: {duration(seconds)} for {session.steps:,} steps, "
            f"{peak / 1e9:.1f} GB of memory{_each(session.ranks.count)}"
        )


def _each(processes: int) -> str:
    return f" in each of {processes} processes" if processes > 1 else ""


def speed(session: Session) -> tuple[float, int]:
    """Return tokens a second, and the bytes that this process will need at its peak.

    Measured by the gradients of a part of the first batch, which are then forgotten; that a whole
    batch may need more passes is counted in. All processes call this together.
    """
    recipe = session.recipe
    whole = replace(session.maker, teacher=None).make(next(session.order()))
    batch = _beginning(whole, recipe.batch.micro_tokens)
    gradients = replace(session.gradients, objective=_sum_of_first)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        ids = session.ranks.union(row_ids([batch]))
        leaf = session.optimizer.leaf(ids)
        session.rounding.rows(leaf)
        with session.rounding.applied():
            gradients.add(batch, leaf, ids)
        seconds = time.perf_counter() - started
    moments = sum(local(p).numel() * 4 * MOMENTS for p in session.optimizer.parameters.values())
    peak = peak_bytes(session.device) + moments
    session.gradients.model.zero_grad(set_to_none=True)
    needed, measured = (
        passes(
            [len(ids) for ids in each.texts],
            recipe.batch.micro_tokens,
            recomputes=recipe.run.activation_checkpointing,
        )
        for each in (whole, batch)
    )
    (tokens,) = session.ranks.total(batch.tokens)
    return tokens / seconds * measured / needed, peak


def _beginning(batch: TokenBatch, tokens: int) -> TokenBatch:
    """Return the first pairs of the batch, with about so many tokens, without negatives."""
    pairs = batch.pairs
    lengths = [len(ids) for ids in batch.texts]
    both = np.add(lengths[:pairs], lengths[pairs : 2 * pairs]).cumsum()
    kept = max(1, int(np.searchsorted(both, tokens, side="right")))
    texts = batch.texts[:kept] + batch.texts[pairs : pairs + kept]
    return replace(
        batch,
        places=batch.places[:kept],
        texts=texts,
        negative_rows=np.empty(0, np.int64),
        query_ids=batch.query_ids[:kept],
        positive_ids=batch.positive_ids[:kept],
        teacher=None,
    )


def _sum_of_first(vectors: StepVectors) -> tuple[Tensor, dict[str, Tensor]]:
    """Return some loss: the work is the model's."""
    return vectors.queries.sum() + vectors.positives.sum(), {}


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use so far: the device's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
