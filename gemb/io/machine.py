"""The processors and the memory that this process may use, and work shared among processors.

In a container or under systemd the limits are those of its control group and of all groups around
it: of version 2 in `cpu.max`, `memory.max`, `memory.high`, of version 1 in `cpu.cfs_quota_us` and
`memory.limit_in_bytes`. Sources: Linux, `admin-guide/cgroup-v2.rst`, `scheduler/sched-bwc.rst`,
`admin-guide/cgroup-v1/memory.rst`; `man 7 cgroups`, `man 5 proc_pid_mountinfo`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")  # where control groups are mounted
_MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
_LACKS = re.compile(
    "failed to map segment|(?:can.?not|can't|unable to) allocate|not enough memory|out of memory"
    "|bad_alloc|can't start new thread",
    re.IGNORECASE,
)


class Memory(NamedTuple):
    """Bytes of memory that this process may use."""

    free: int  # what it can get without swapping
    total: int
    is_limited: bool  # by a control group, not by the machine


def cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return how many processors this process may use, a part of one counted as one.

    Args:
        proc: where /proc is.
        groups: where control groups are.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux; not macOS. A group's cpuset shows here, too
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, math.ceil(min(count, _cpu_limit(proc, groups))))


def memory(proc: Path = PROC, groups: Path = GROUPS) -> Memory | None:
    """Return the memory that this process may use; None where the system does not say.

    Args:
        proc: where /proc is.
        groups: where control groups are.
    """
    try:
        lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
        kilobytes = {fields[0].rstrip(":"): int(fields[1]) for fields in lines if len(fields) > 1}
        host_free, host = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    except (OSError, KeyError):  # no Linux, or a sandbox
        return None
    free, total = host_free, host
    for folder in _groups("memory", proc, groups):
        limits = [_number(folder / name) for name in _MEMORY_LIMITS]
        limit = min((limit for limit in limits if limit is not None), default=host)
        if limit >= host:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        total = min(total, limit)
        free = min(free, limit - used + _cached(folder))
    return Memory(max(0, free), total, total < host)


@cache
def processor_kind(proc: Path = PROC) -> str:
    """Return 8 hex digits of the processor's instructions; what is tuned to one fits no other."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    kinds = ("flags", "Features", "model name", "isa", "cpu")
    known = sorted({line for line in lines if line.partition(":")[0].strip() in kinds})
    text = "\n".join(known) or f"{platform.machine()} {platform.processor()}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def has_gpu() -> bool:
    """Return whether this machine has a GPU that PyTorch may take; loads no library."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or what it came from, is a lack of memory."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, ImportError | OSError | RuntimeError) and _LACKS.search(str(cause)))
        for cause in seen
    )


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


@cache
def _cpu_limit(proc: Path, groups: Path) -> float:
    """Return the processors' worth of time that control groups allow; infinite without a limit."""
    least = math.inf
    for folder in _groups("cpu", proc, groups):
        fields = _words(folder / "cpu.max")
        if not fields:
            fields = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        try:
            quota, period = map(int, fields)
        except ValueError:  # "max", or no such file
            continue
        if quota > 0 and period > 0:
            least = min(least, quota / period)
    return least


def _groups(controller: str, proc: Path, groups: Path) -> list[Path]:
    """Return the folders of this process's control group and of those around it, inner ones first.

    Args:
        controller: cpu or memory.
        proc: where /proc is.
        groups: where control groups are; mounts elsewhere are not looked at.
    """
    paths: dict[bool, str] = {}  # of version 2? -> the group
    for line in _lines(proc / "self/cgroup"):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:
            paths[True] = path
        elif controller in names.split(","):
            paths[False] = path
    if not paths:
        return []
    is_second = False not in paths  # where both are mounted, version 1 has what it names
    root, mount = _mount(controller, is_second, proc, groups)
    try:
        inner = PurePosixPath(paths[is_second]).relative_to(root)
    except ValueError:  # the group that is mounted is none around this process's: a container
        inner = PurePosixPath()
    if ".." in inner.parts:
        inner = PurePosixPath()
    return [mount / part for part in (inner, *inner.parents) if (mount / part).is_dir()]


def _mount(controller: str, is_second: bool, proc: Path, groups: Path) -> tuple[str, Path]:
    """Return the group that is mounted for a controller, and where."""
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        is_it = (
            kind[0] == "cgroup2"
            if is_second
            else (kind[0] == "cgroup" and controller in kind[2].split(","))
        )
        point = PurePosixPath(fields[4])
        if is_it and point.is_relative_to(GROUPS):
            return fields[3], groups / point.relative_to(GROUPS)
    return "/", groups if is_second else groups / controller


def _cached(folder: Path) -> int:
    """Return the bytes of files that a group holds in memory and that it can let go."""
    for line in _lines(folder / "memory.stat"):
        name, _, number = line.partition(" ")
        # Version 1 counts the groups within a group under the second name.
        if name == "total_inactive_file" or (
            name == "inactive_file" and not (folder / "memory.limit_in_bytes").exists()
        ):
            return int(number)
    return 0


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None: "max", or no such file."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
