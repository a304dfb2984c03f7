"""How fast a run will be, and how much memory it takes, measured before its first step."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gemb.io.machine import memory
from gemb.io.notes import warn
from gemb_torch.model.rounding import Rounding
from gemb_torch.model.sharding import local
from gemb_torch.train.adamw import AdamW
from gemb_torch.train.batches import row_ids
from gemb_torch.train.gradients import Gradients, TokenBatch, passes
from gemb_torch.train.objective import StepVectors


def speed(
    batch: TokenBatch, gradients: Gradients, optimizer: AdamW, rounding: Rounding
) -> tuple[float, int]:
    """Return tokens a second, and the bytes that this process will need at its peak.

    Measured by the gradients of a part of the batch, which are then forgotten; that the whole of it
    may need more passes is counted in. All processes call this together.
    """
    beginning = _beginning(batch, gradients.micro_tokens)
    measured = replace(gradients, objective=_sum_of_first)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        ids = gradients.ranks.union(row_ids([beginning]))
        rows = optimizer.leaf(ids)
        rounding.rows(rows)
        with rounding.applied():
            measured.add(beginning, rows, ids)
        seconds = time.perf_counter() - started
    peak = peak_bytes(gradients.device) + moment_bytes(optimizer.parameters.values())
    gradients.model.zero_grad(set_to_none=True)
    whole_passes, measured_passes = (
        passes(
            [len(ids) for ids in part.texts],
            gradients.micro_tokens,
            recomputes=gradients.model.recomputes,
        )
        for part in (batch, beginning)
    )
    (tokens,) = gradients.ranks.total(beginning.tokens)
    return tokens / seconds * measured_passes / whole_passes, peak


def _beginning(batch: TokenBatch, tokens: int) -> TokenBatch:
    """Return the first pairs of the batch, with about so many tokens, without negatives."""
    pairs = batch.pairs
    lengths = [len(ids) for ids in batch.texts]
    ends = np.add(lengths[:pairs], lengths[pairs : 2 * pairs]).cumsum()
    count = max(1, int(np.searchsorted(ends, tokens, side="right")))
    return replace(
        batch,
        places=batch.places[:count],
        texts=batch.texts[:count] + batch.texts[pairs : pairs + count],
        negative_rows=np.empty(0, np.int64),
        query_ids=batch.query_ids[:count],
        positive_ids=batch.positive_ids[:count],
        teacher=None,
    )


def _sum_of_first(vectors: StepVectors) -> tuple[Tensor, dict[str, Tensor]]:
    """Return some loss: the work is the model's."""
    return vectors.queries.sum() + vectors.positives.sum(), {}


def moment_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the memory of AdamW's two moments, fp32, of this process's share of the parameters."""
    return sum(local(parameter).numel() * 2 * 4 for parameter in parameters)


def memory_words(peak: int, device: torch.device, processes: int) -> str:
    """Return what a run needs, in words; of what this machine has not there is a warning.

    Args:
        peak: bytes of each process.
        device: whose memory they are of.
        processes: of the run, as many on this machine as `LOCAL_WORLD_SIZE` says.
    """
    usable = memory()
    needed = peak * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cpu" and usable and needed > usable.total:
        limit = ", the limit of its control group" if usable.is_limited else ""
        warn(
            f"it needs about {needed / 1e9:.1f} GB of memory, and this machine has "
            f"{usable.total / 1e9:.1f} GB{limit}; a smaller batch.micro_tokens takes less"
        )
    where = f" in each of {processes} processes" if processes > 1 else ""
    return f"{peak / 1e9:.1f} GB of memory{where}"


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use so far: the device's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
