"""The processes of one run: what each has to do, and what they tell each other.

Every process computes the whole loss from everybody's vectors, and the gradients of its own part
of the batch; the sum of these gradients over the processes is the gradient of one process with the
whole batch. So nothing here has to pass gradients through a collective. The sum is made when the
backward pass has ended: it overlaps nothing with it, as a gradient cache would forbid for all but
the last micro-batch.

All methods but `part` are called by all processes together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gemb.errors import GembError

T = TypeVar("T")

_BUCKET = 1 << 25  # numbers summed in one call: 128 MB of fp32


class OtherProcessFailed(GembError):
    """Another process has ended, or said that it failed: its own line tells why."""


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo and NCCL have no narrower class in common
        raise OtherProcessFailed(
            "the connection to another process broke; where that one ran it is told why"
        ) from error


class Ranks:
    """All processes of the run; one alone needs no process group."""

    def __init__(self, *, alone: bool = False) -> None:
        """Take rank and count from the process group, if there is one.

        Args:
            alone: of one process, whatever others there are.
        """
        grouped = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.count = dist.get_world_size() if grouped else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Return which of so many rows are this process's."""
        begin, end = (rows * r // self.count for r in (self.rank, self.rank + 1))
        return slice(begin, end)

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return the rows of every process, in the order of ranks, without gradients.

        Args:
            x: [n, ...]; n may differ between processes, the rest may not.
        """
        if self.count == 1:
            return [x.detach()]
        sizes = [int(size) for size in self._each(torch.tensor([len(x)], device=x.device))]
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x.detach()
        everybody = [torch.empty_like(padded) for _ in sizes]
        with _together():
            dist.all_gather(everybody, padded)
        return [part[:size] for part, size in zip(everybody, sizes, strict=True)]

    def _each(self, x: Tensor) -> list[Tensor]:
        everybody = [torch.empty_like(x) for _ in range(self.count)]
        with _together():
            dist.all_gather(everybody, x)
        return everybody

    def union(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sorted distinct ids of every process; `ids` are sorted and distinct."""
        if self.count == 1:
            return ids
        return np.unique(torch.cat(self.gather(torch.from_numpy(ids))).numpy())

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, many in one call."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _together():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, *numbers: int) -> list[int]:
        """Return the sum over the processes of each number."""
        told = torch.tensor(numbers)
        if self.count > 1:
            with _together():
                dist.all_reduce(told)
        return [int(number) for number in told]

    def most(self, number: int) -> int:
        """Return the greatest of the processes' numbers."""
        return int(torch.cat(self.gather(torch.tensor([number]))).max())

    def words(self, mine: Sequence[str]) -> list[str]:
        """Return the words of every process, in the order of ranks."""
        told = np.frombuffer(json.dumps(list(mine)).encode(), np.uint8).copy()
        parts = self.gather(torch.from_numpy(told))
        return [word for part in parts for word in json.loads(part.numpy().tobytes())]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return self.total(int(flag))[0] > 0

    def first_then_all(self, work: Callable[[], T]) -> T:
        """Return what `work` makes here, after the first process has made it: it may fill a cache.

        Raises:
            What `work` raises; if the first process fails, OtherProcessFailed in the others.
        """
        if self.is_first:
            try:
                made = work()
            except BaseException:
                self.any(True)
                raise
            self.any(False)
            return made
        if self.any(False):
            raise OtherProcessFailed("the first process failed")
        return work()

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any(False)  # by way of the CPU: on a GPU a barrier would keep it busy


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
