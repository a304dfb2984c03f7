"""Writes that are whole: short ones go on, and an error names the file."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemb.io import atomic
from gemb.io.atomic import (
    leftovers,
    naming,
    new_file,
    new_folder,
    pwrite_all,
    scratch_folder,
    sync_folder,
    take_name,
    write_all,
)
from gemb.io.streams import AtomicFile

DATA = bytes(random.Random(1).randbytes(10_000))


def short(write):
    """A `write` that takes a part of what it gets, as a pipe or a full disk does."""
    sizes = random.Random(2)
    return lambda data, *where: write(data[: sizes.randint(1, 99)], *where)


def test_short_writes_go_on():
    file = io.BytesIO()
    write_all(short(file.write), DATA)
    assert file.getvalue() == DATA


def test_nothing_is_written_of_nothing():
    calls: list[bytes] = []
    write_all(lambda rest: calls.append(bytes(rest)) or 1, b"")
    assert calls == []


def test_short_writes_at_a_place_go_on(tmp_path: Path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"-" * 12_000)
    monkeypatch.setattr(os, "pwrite", _short_pwrite(os.pwrite))
    file = os.open(path, os.O_RDWR)
    try:
        pwrite_all(file, DATA, 1_000)
    finally:
        os.close(file)
    assert path.read_bytes() == b"-" * 1_000 + DATA + b"-" * 1_000


def _short_pwrite(pwrite):
    return lambda file, data, at: pwrite(file, data[:77], at)


def test_an_error_names_the_file():
    with pytest.raises(OSError, match="full") as caught, naming(Path("a/b")):
        raise OSError(errno.ENOSPC, "full")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a/b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_named():
    with (
        pytest.raises(OSError, match="No space left") as caught,
        naming("/dev/full"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        write_all(file.write, DATA)
    assert caught.value.filename == "/dev/full"


def test_a_file_that_fills_the_disk_names_itself_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "v.npy"
    file = AtomicFile(path)

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.write(DATA)
    with pytest.raises(OSError, match="full") as caught:
        file.patch(0, b"abc")
    assert caught.value.filename == str(path)
    file.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_committed_file_holds_all_of_it(tmp_path):
    file = AtomicFile(tmp_path / "v")
    file.write(DATA)
    file.patch(2, b"abc")
    file.commit()
    assert (tmp_path / "v").read_bytes() == DATA[:2] + b"abc" + DATA[5:]
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    sync_folder(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writes a new file, folder or scratch folder; waits, or kills itself before one of its renames.
RUN = """
import os, signal, sys
from pathlib import Path
from gemb.io import atomic
kind, target, stop = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
left = int(stop) if stop.isdecimal() else -1
if stop == "slow":
    atomic.exchanged = lambda first, second: False
    left = 3
def count(event, args):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
made = {"file": atomic.new_file, "folder": atomic.new_folder}.get(kind)
with made(target) if made else atomic.scratch_folder("test", target) as part:
    (part if kind == "file" else part / "f").write_text("new")
    if stop == "waits":
        print("there", flush=True)
        sys.stdin.read()
"""


def run(kind: str, target: Path, stop: str = "") -> int:
    return subprocess.run([sys.executable, "-c", RUN, kind, target, stop]).returncode


@pytest.fixture(params=["file", "folder", "scratch"])
def kind(request) -> str:
    return request.param


def started(kind: str, target: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RUN, kind, str(target), "waits"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_what_a_killed_run_left_is_named_and_the_next_run_removes_it(kind, tmp_path):
    target = tmp_path if kind == "scratch" else tmp_path / "model"
    for _ in range(3):
        process = started(kind, target)
        process.kill()
        process.communicate()
    (tmp_path / ".model.12-notours.part").write_text("a user's")
    (tmp_path / ".other.12-0123abcd.part").write_text("of another target")
    (left,) = [path for path in leftovers(tmp_path) if ".other." not in path.name][-1:]
    assert left.name.startswith(".gemb-test-" if kind == "scratch" else ".model.")
    assert run(kind, target) == 0
    assert names(tmp_path) == [
        ".model.12-notours.part",
        ".other.12-0123abcd.part",
        *([] if kind == "scratch" else ["model"]),
    ]


def test_the_part_of_a_run_that_is_at_work_stays(kind, tmp_path):
    target = tmp_path if kind == "scratch" else tmp_path / "model"
    process = started(kind, target)
    assert leftovers(tmp_path) == []
    assert run(kind, target) == 0
    parts = [name for name in names(tmp_path) if name != "model"]
    assert len(parts) == 1
    process.communicate("")
    assert process.returncode == 0
    assert names(tmp_path) == ([] if kind == "scratch" else ["model"])


@pytest.mark.parametrize("is_there", [False, True])
def test_a_kill_at_any_rename_of_a_folder_leaves_the_old_one_or_the_new_one(is_there, tmp_path):
    target = tmp_path / "model"
    if is_there:
        target.mkdir()
        (target / "f").write_text("old")
    number, code = 0, -signal.SIGKILL
    while code:
        number += 1
        code = run("folder", target, str(number))
        assert code in (0, -signal.SIGKILL)
        if is_there or target.exists():
            assert (target / "f").read_text() in ("old", "new")
    assert number > 1
    assert names(tmp_path) == ["model"]
    assert (target / "f").read_text() == "new"


def test_where_names_cannot_be_exchanged_the_next_run_gives_the_old_folder_its_name(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "f").write_text("old")
    assert run("folder", target, "slow") == -signal.SIGKILL  # between old away and new in
    assert not target.exists()
    atomic.remove_left_beside(target)
    assert names(tmp_path) == ["model"]
    assert (target / "f").read_text() == "old"


def test_a_disk_that_cannot_exchange_names_replaces_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "exchanged", lambda first, second: False)
    for text in ("one", "two"):
        with new_folder(tmp_path / "model") as part:
            (part / text).write_text(text)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["two"]


def test_a_folder_of_any_name_takes_the_name_of_another(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    take_name(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["new"]
    take_name(tmp_path / "old", tmp_path / "elsewhere")
    assert names(tmp_path) == ["elsewhere"]


def test_a_folder_that_cannot_take_a_name_keeps_its_own(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "target").write_text("a file")
    with pytest.raises(NotADirectoryError):
        take_name(tmp_path / "new", tmp_path / "target")
    assert names(tmp_path) == ["new", "target"]


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / "f"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), new_file(target) as part:
        part.write_text("half \ud800", "utf-8")
    assert names(tmp_path) == ["f"]
    assert target.read_text() == "old"


def test_a_link_or_a_pipe_under_the_name_of_a_part_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("kept")
    work = tmp_path / "work"
    work.mkdir()
    (work / ".t.1-0123abcd.part").symlink_to(outside)
    os.mkfifo(work / ".t.2-0123abcd.part")
    with new_folder(work / "t"):
        pass
    assert (outside / "f").read_text() == "kept"


def test_without_locks_on_the_disk_no_part_is_taken_for_a_leftover(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    (tmp_path / ".f.1-0123abcd.part").write_text("of a run that may be alive")
    monkeypatch.setattr("fcntl.flock", flock)
    with new_file(tmp_path / "f") as part:
        part.write_text("x")
    with scratch_folder("test", tmp_path):
        pass
    assert leftovers(tmp_path) == []
    assert names(tmp_path) == [".f.1-0123abcd.part", "f"]


@pytest.mark.parametrize("is_link", [False, True])
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(is_link, tmp_path):
    """As root a link to /dev/null would replace the device for every program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    target = tmp_path / "link" if is_link else pipe
    if is_link:
        target.symlink_to(pipe)
    with pytest.raises(OSError, match="no regular file") as raised, new_file(target):
        pytest.fail("it was taken")
    assert raised.value.filename == str(target)
    assert pipe.is_fifo()
    with pytest.raises(OSError, match="no regular file"), new_file(Path("/dev/fd/99")):
        pytest.fail("it was taken")
