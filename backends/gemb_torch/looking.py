"""What is seen before the first step: the data, and how long and how much it will take."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gemb_torch.gradients import TokenBatch
from gemb_torch.objective import StepVectors
from gemb_torch.session import Session
from gemb_torch.step_batches import row_ids

MOMENTS = 2  # fp32 numbers that AdamW keeps of each parameter


def speed(session: Session) -> tuple[float, int]:
    """Return tokens a second, and the bytes that this process will need at its peak.

    Measured by the gradients of a part of the first batch, which are then forgotten. All processes
    call this together.
    """
    maker = replace(session.maker, teacher=None)
    batch = _beginning(maker.make(next(session.order())), session.recipe.batch.micro_tokens)
    gradients = replace(session.gradients, objective=_sum_of_first)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        ids = session.ranks.union(row_ids([batch]))
        rows = session.optimizer.rows
        leaf = None if rows is None else rows.table[torch.from_numpy(ids)].requires_grad_()
        gradients.add(batch, leaf, ids)
        seconds = time.perf_counter() - started
    moments = sum(p.numel() * 4 * MOMENTS for p in session.optimizer.parameters.values())
    peak = _peak_bytes(session.device) + moments
    session.model.zero_grad(set_to_none=True)
    tokens, _ = session.ranks.total(batch.tokens, 0)
    return tokens / seconds, peak


def look(session: Session) -> None:
    """Stand-in."""
    print(speed(session))


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


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
