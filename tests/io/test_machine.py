"""Processors and memory: limits of control groups of both versions; what a lack of memory is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gemb.io import machine
from gemb.io.machine import cores, lacks_memory, memory

MEMINFO = """MemTotal:       65536000 kB
MemFree:         1000000 kB
MemAvailable:   40000000 kB
HugePages_Total:       0
"""
HOST = 65536000 * 1024
# Of a kernel with version 2, of one with version 1 (Docker, systemd) and of one with both.
SECOND = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "30 23 0:27 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "31 23 0:28 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    machine._cpu_limit.cache_clear()


class Machine:
    """Folders as /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, group: str, mounts: str) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.groups.mkdir()
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "self/cgroup").write_text(group)
        (self.proc / "self/mountinfo").write_text(
            "23 28 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n" + mounts
        )

    def write(self, folder: str, **files: object) -> None:
        (self.groups / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            name = name.replace("__", ".")
            (self.groups / folder / name).write_text(f"{content}\n")

    @property
    def seen(self) -> tuple[int, int, int]:
        """Cores, free and total memory in MB."""
        usable = memory(self.proc, self.groups)
        assert usable is not None
        return cores(self.proc, self.groups), usable.free // 10**6, usable.total // 10**6


def test_without_a_limit_the_machine_is_seen(tmp_path):
    host = Machine(tmp_path, "0::/user.slice\n", SECOND)
    host.write("user.slice", cpu__max="max 100000", memory__max="max", memory__current=5 * 10**9)
    assert host.seen == (64, 40_960, 67_108)
    assert memory(host.proc, host.groups) == machine.Memory(40_000_000 * 1024, HOST, False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("200000 100000", 2), ("50000 100000", 1), ("150000 100000", 2), ("1000 1000000", 1),
     ("9900000 100000", 64), ("max 100000", 64), ("25000 10000", 3), ("", 64), ("nonsense", 64)],
)  # fmt: skip
def test_a_quota_of_version_2_counts(quota, count, tmp_path):
    host = Machine(tmp_path, "0::/\n", SECOND)
    host.write("", cpu__max=quota)
    assert host.seen[0] == count


def test_the_tightest_of_nested_groups_counts(tmp_path):
    host = Machine(tmp_path, "0::/a.slice/b.scope/c\n", SECOND)
    host.write("a.slice", cpu__max="400000 100000", memory__max=4 * 10**9, memory__current=10**9)
    host.write("a.slice/b.scope", cpu__max="300000 100000", memory__max="max")
    host.write("a.slice/b.scope/c", cpu__max="max 100000", memory__max=8 * 10**9)
    (host.groups / "a.slice/memory.stat").write_text("anon 5\ninactive_file 400000000\nfile 7\n")
    assert host.seen == (3, 3_400, 4_000)
    assert memory(host.proc, host.groups) == machine.Memory(3_400_000_000, 4_000_000_000, True)


def test_memory_that_a_group_is_slowed_down_at_is_its_limit(tmp_path):
    host = Machine(tmp_path, "0::/s\n", SECOND)
    host.write("s", memory__max=4 * 10**9, memory__high=3 * 10**9, memory__current=3_500_000_000)
    assert host.seen[1:] == (0, 3_000)


NONE = 0x7FFFFFFFFFFFF000  # version 1's word for no limit


def first(path: str) -> str:
    return f"9:memory:{path}\n5:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::{path}\n"


def test_limits_of_version_1_count(tmp_path):
    host = Machine(tmp_path, first("/jobs/mine"), FIRST.format(root="/"))
    host.write("cpu,cpuacct/jobs/mine", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    host.write("cpu,cpuacct/jobs", cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
    usage = {"memory__usage_in_bytes": 10**9}
    host.write("memory", memory__limit_in_bytes=NONE, **usage)
    host.write("memory/jobs", memory__limit_in_bytes=2 * 10**9, **usage)
    host.write("memory/jobs/mine", memory__limit_in_bytes=NONE, **usage)
    stat = "inactive_file 1\ntotal_inactive_file 200000000\n"
    (host.groups / "memory/jobs/memory.stat").write_text(stat)
    assert host.seen == (3, 1_200, 2_000)


@pytest.mark.parametrize("root", ["/docker/0123abcd", "/"])
def test_a_container_sees_its_own_group_where_groups_are_mounted(root, tmp_path):
    # Docker mounts the container's group; its path is the host's, or / in a namespace of its own.
    host = Machine(tmp_path, first(root), FIRST.format(root=root))
    host.write("cpu,cpuacct", cpu__cfs_quota_us=100000, cpu__cfs_period_us=100000)
    host.write("memory", memory__limit_in_bytes=10**9, memory__usage_in_bytes=4 * 10**8)
    assert host.seen == (1, 600, 1_000)


def test_a_group_within_a_container_is_found_below_the_mount(tmp_path):
    host = Machine(tmp_path, first("/docker/01/sub"), FIRST.format(root="/docker/01"))
    host.write("cpu,cpuacct/sub", cpu__cfs_quota_us=100000, cpu__cfs_period_us=100000)
    host.write("memory/sub", memory__limit_in_bytes=10**9, memory__usage_in_bytes=0)
    assert host.seen == (1, 1_000, 1_000)


def test_a_group_of_the_host_outside_the_namespace_is_not_looked_for(tmp_path):
    host = Machine(tmp_path, "0::/../../other\n", SECOND)
    host.write("", cpu__max="100000 100000")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cpu.max").write_text("1000000 100000\n")
    assert host.seen[0] == 1


def test_where_both_are_mounted_version_1_has_the_controllers_that_it_names(tmp_path):
    unified = "32 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    host = Machine(tmp_path, first("/x"), FIRST.format(root="/") + unified)
    host.write("unified/x", cpu__max="100000 100000", memory__max=1)
    host.write("cpu,cpuacct/x", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    host.write("memory/x", memory__limit_in_bytes=10**9, memory__usage_in_bytes=0)
    assert host.seen == (2, 1_000, 1_000)


def test_a_system_without_these_files_has_the_processors_it_says(tmp_path):
    assert cores(tmp_path, tmp_path) == 64
    assert memory(tmp_path, tmp_path) is None


def test_an_affinity_tighter_than_the_quota_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    host = Machine(tmp_path, "0::/\n", SECOND)
    host.write("", cpu__max="800000 100000")
    assert host.seen[0] == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError("libggml.so: cannot allocate memory in static TLS block"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_lack_of_memory_is_known_by_its_words(error):
    assert lacks_memory(error)
    outer = ImportError("numpy: IMPORTANT: PLEASE READ THIS")
    outer.__cause__ = error
    assert lacks_memory(outer)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("poisoned"),
        ImportError("no module x"),
        OSError(2, "x"),
    ],
)
def test_other_errors_are_none(error):
    assert not lacks_memory(error)
