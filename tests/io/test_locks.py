"""One process at a time: who holds a lock, who waits, and disks without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gemb.errors import UsageError
from gemb.io import locks
from gemb.io.locks import LOCK, lock_file, locked, locked_index, locked_run, waiting

HOLD = """
import sys
from pathlib import Path
from gemb.io.locks import locked, waiting
with locked(Path(sys.argv[1]), waiting("is at work")):
    print("held", flush=True)
    sys.stdin.read()
"""


def refuse(holder: str) -> None:
    raise UsageError(f"held by {holder}")


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def other(tmp_path: Path):
    process = hold(tmp_path / LOCK)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_holder_is_named(other, tmp_path):
    with pytest.raises(UsageError, match=f"held by {other.pid} on {os.uname().nodename}$"):
        lock_file(tmp_path / LOCK, refuse)


def test_a_lock_goes_with_its_process_however_that_ends(other, tmp_path):
    other.kill()
    other.wait()
    with locked(tmp_path / LOCK, refuse):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def test_one_that_waits_says_so_and_goes_on(other, tmp_path, capsys):
    threading.Timer(0.3, end, [other]).start()
    began = time.monotonic()
    with locked(tmp_path / LOCK, waiting("is filling it")):
        assert time.monotonic() - began > 0.2
        with pytest.raises(UsageError):
            lock_file(tmp_path / LOCK, refuse)
    assert capsys.readouterr().err == (
        f"gemb: note: process {other.pid} on {os.uname().nodename} is filling it; "
        "this one waits for it\n"
    )


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path):
    path = tmp_path / LOCK
    first = lock_file(path, refuse)
    seen: list[str] = []

    def held(holder: str) -> None:
        seen.append(holder)
        path.unlink()  # as the holder does at its end
        os.close(first)

    second = lock_file(path, held)
    try:
        assert seen == [""]
        assert os.path.samestat(path.stat(), os.fstat(second))
        with pytest.raises(UsageError):
            lock_file(path, refuse)
    finally:
        os.close(second)


def test_a_folder_that_was_renamed_meanwhile_is_not_there(tmp_path):
    folder, file = tmp_path / "a.part", tmp_path / "a.part" / LOCK
    folder.mkdir()
    first = lock_file(file, refuse)

    def held(_holder: str) -> None:
        folder.rename(tmp_path / "a")
        os.close(first)

    with pytest.raises(FileNotFoundError):
        lock_file(file, held)


def test_a_run_is_refused_while_another_trains_in_it(tmp_path):
    with locked_run(tmp_path):
        words = f"{tmp_path} is being trained by process {os.getpid()} on "
        with pytest.raises(UsageError) as caught, locked_run(tmp_path):
            pass
        assert str(caught.value).startswith(words)
    assert not (tmp_path / LOCK).exists()
    with locked_run(tmp_path):
        pass


def test_the_lock_of_an_index_stays(tmp_path):
    with locked_index(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_warned_of(tmp_path, capsys, monkeypatch, code):
    def flock(file: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / LOCK, refuse):
        pass
    assert capsys.readouterr().err == (
        f"gemb: warning: {tmp_path}: its disk has no locks; run no second gemb that writes there\n"
    )


def test_another_error_is_raised_and_leaves_no_open_file(tmp_path, monkeypatch):
    def flock(file: int, how: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="no"):
        lock_file(tmp_path / LOCK, refuse)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_full_disk_takes_the_lock_without_the_name(tmp_path, monkeypatch):
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(locks.os, "pwrite", pwrite)
    with locked(tmp_path / LOCK, refuse):
        assert (tmp_path / LOCK).read_bytes() == b""


@pytest.mark.timeout(30)
def test_a_pipe_in_the_place_of_a_lock_holds_no_reader_up(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    assert locks.has_record_locks(tmp_path) in (True, False)
