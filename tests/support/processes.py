"""Work in several processes that know each other as ranks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from gemb_torch.model.ranks import Ranks


def as_process(rank: int, count: int, folder: Path, work: Callable[[Ranks, Path], None]) -> None:
    """Be one of so many processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    work(Ranks(), folder)
    dist.destroy_process_group()
    os._exit(0)  # as gemb ends: a thread of torch that Python's own end meets may abort


def in_processes(count: int, folder: Path, work: Callable[[Ranks, Path], None]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=as_process, args=(rank, count, folder, work))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * count
