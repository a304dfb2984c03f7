"""Writes that are whole: short ones go on, and an error names the file."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path

import pytest

from gemb.io.atomic import naming, pwrite_all, sync_folder, write_all
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
