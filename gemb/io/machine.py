"""The processors of this machine, and work that is shared among them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; not macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(work: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """Yield work(item) in order, done by as many threads as there are cores, one item ahead each.

    numpy and faiss leave Python's lock while they compute, so this is what uses both cores.
    """
    if min(cores(), len(items)) < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(_pool().submit(work, item))
            if len(waiting) > cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads that stay: new ones for each query take as long as a scan of 500,000 codes."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="gemb-scan")
