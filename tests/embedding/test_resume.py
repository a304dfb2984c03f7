"""Runs of `gemb embed -o FILE` that are killed, and go on: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.embedding.formats.read import read_vectors
from gemb.embedding.formats.table import FORMATS
from gemb.embedding.output import Target
from gemb.errors import UsageError
from gemb.io.atomic import check_file
from gemb.io.paths import descriptor, is_stream

ROWS = 3000


@pytest.fixture
def texts(gemb: Gemb) -> Path:
    """Lines of many kinds: repeats, empty, long, one that makes the encoder raise."""
    path = gemb.folder / "texts.txt"
    lines = [f"text {number % 1700} of {number % 13}" for number in range(ROWS)]
    lines[100] = ""
    lines[200] = "green poison"
    lines[300] = "long " * 100
    path.write_text("\n".join(lines))
    return path


def leftovers(gemb: Gemb) -> list[str]:
    return sorted(path.name for path in gemb.folder.iterdir() if path.name.startswith("v"))


def encoded(log: Path) -> int:
    """How many texts the encoder was given; a text at fault is given again alone."""
    count = sum(map(int, log.read_text().split())) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


def kill_in_the_middle(
    gemb: Gemb, sent: signal.Signals, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start a slow run, and send the signal once its journal has grown past a few windows."""
    write_model(gemb.model, sleep_s=0.05, log=str(gemb.folder / "log"))
    process = gemb.start("embed", "texts.txt", *arguments)
    journal = next(gemb.folder / f"{name}.journal" for name in arguments if name.startswith("v."))
    deadline = time.monotonic() + 30
    while not (journal.exists() and journal.stat().st_size > 1_000_000):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    process.wait(10)
    write_model(gemb.model, log=str(gemb.folder / "log"))
    return process


@pytest.mark.parametrize("name", ["v.npy", "v.jsonl", "v.npz", "v.parquet"])
def test_a_killed_run_goes_on_and_gives_the_bytes_of_one_that_was_not(
    gemb: Gemb, texts: Path, name: str
) -> None:
    write_model(gemb.model, log=str(gemb.folder / "log"))
    assert gemb("embed", "texts.txt", "-o", name).returncode == 3
    whole = (gemb.folder / name).read_bytes()
    all_rows = encoded(gemb.folder / "log")
    (gemb.folder / name).unlink()

    process = kill_in_the_middle(gemb, signal.SIGKILL, "-o", name)
    assert process.returncode == -signal.SIGKILL
    assert not (gemb.folder / name).exists()
    before = encoded(gemb.folder / "log")
    assert 0 < before < all_rows

    done = gemb("embed", "texts.txt", "-o", name, "--resume")
    assert done.returncode == 3, done.stderr
    assert (gemb.folder / name).read_bytes() == whole
    # What was killed while it was computed is computed twice: the last window, and one read ahead.
    assert encoded(gemb.folder / "log") < all_rows - before + 1100
    sidecars = ["v.npy.json"] if name == "v.npy" else []
    assert leftovers(gemb) == [name, *sidecars]


def test_a_torn_tail_is_dropped(gemb: Gemb, texts: Path) -> None:
    assert gemb("embed", "texts.txt", "-o", "v.npy").returncode == 3
    whole = (gemb.folder / "v.npy").read_bytes()
    kill_in_the_middle(gemb, signal.SIGKILL, "-o", "v.npy")
    journal = gemb.folder / "v.npy.journal"
    kept = journal.read_bytes()
    for torn in (kept[:-100], kept[: len(kept) // 2], kept[:10], b"", kept + b"GEMB", kept + kept):
        journal.write_bytes(torn)
        assert gemb("embed", "texts.txt", "-o", "v.npy", "--resume").returncode == 3
        assert (gemb.folder / "v.npy").read_bytes() == whole
        assert not journal.exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_to_go_on(
    gemb: Gemb, texts: Path, sent: signal.Signals, code: int
) -> None:
    process = kill_in_the_middle(gemb, sent, "-o", "v.npy")
    assert process.returncode == code
    assert process.stderr
    assert b"the same command with --resume goes on from there" in process.stderr.read()
    assert leftovers(gemb) == ["v.npy.journal"]
    again = gemb("embed", "texts.txt", "-o", "v.npy")
    assert b"v.npy.journal of an unfinished run is overwritten" in again.stderr


def test_another_input_or_another_model_is_refused(gemb: Gemb, texts: Path) -> None:
    kill_in_the_middle(gemb, signal.SIGKILL, "-o", "v.npy")
    kept = (gemb.folder / "v.npy.journal").read_bytes()
    lines = texts.read_text().split("\n")
    for changed in (["other", *lines[1:]], lines[:20]):
        texts.write_text("\n".join(changed))
        done = gemb("embed", "texts.txt", "-o", "v.npy", "--resume")
        assert done.returncode == 2
        assert b"is of a run over another input" in done.stderr.splitlines()[-1]
    texts.write_text("\n".join(lines))
    for other in (["--task", "query"], ["--dim", "256"], ["--dtype", "f16"]):
        done = gemb("embed", "texts.txt", "-o", "v.npy", "--resume", *other)
        assert done.returncode == 2
        assert b"is of a run with another model, prompt, --dim, --dtype or backend" in done.stderr
    assert (gemb.folder / "v.npy.journal").read_bytes()[: len(kept) // 2] == kept[: len(kept) // 2]
    assert gemb("embed", "texts.txt", "-o", "v.npy", "--resume").returncode == 3
    assert leftovers(gemb) == ["v.npy", "v.npy.json"]


def test_nothing_to_resume_is_said_and_starts_from_the_beginning(gemb: Gemb, texts: Path) -> None:
    done = gemb("embed", "texts.txt", "-o", "v.npy", "--resume")
    assert done.returncode == 3
    assert b"nothing to resume" in done.stderr


def test_two_runs_to_one_file_do_not_mix(gemb: Gemb, texts: Path) -> None:
    write_model(gemb.model, sleep_s=0.3)
    first = gemb.start("embed", "texts.txt", "-o", "v.jsonl")
    while not (gemb.folder / "v.jsonl.journal").exists():
        time.sleep(0.01)
    second = gemb("embed", "-e", "x", "-o", "v.jsonl")
    assert second.returncode == 5
    assert second.stderr == b"gemb: another gemb embed is writing v.jsonl; wait for it\n"
    first.communicate(timeout=60)
    assert first.returncode == 3
    found = [json.loads(line) for line in (gemb.folder / "v.jsonl").read_text().splitlines()]
    assert len(found) == ROWS


def test_a_failed_run_leaves_an_older_output_as_it_was(gemb: Gemb, texts: Path) -> None:
    gemb("embed", "-e", "x", "-o", "v.npy")
    before = (gemb.folder / "v.npy").read_bytes()
    kill_in_the_middle(gemb, signal.SIGTERM, "-o", "v.npy")
    assert (gemb.folder / "v.npy").read_bytes() == before


@pytest.fixture
def small_disk(gemb: Gemb):
    """A file system of one megabyte."""
    folder = gemb.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_no_half_file(
    gemb: Gemb, texts: Path, small_disk: Path
) -> None:
    done = gemb("embed", "texts.txt", "-o", "disk/v.npy")
    assert done.returncode == 5
    last = done.stderr.decode().splitlines()[-1]
    assert "no space left on device; free some space, or write elsewhere" in last
    assert [path.name for path in small_disk.iterdir()] == ["v.npy.journal"]
    assert b"--resume" in done.stderr
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert gemb("embed", "texts.txt", "-o", "disk/v.npy", "--resume").returncode == 3
    gemb("embed", "texts.txt", "-o", "v.npy")
    assert (small_disk / "v.npy").read_bytes() == (gemb.folder / "v.npy").read_bytes()


def test_files_of_others_beside_the_output_are_kept(gemb: Gemb) -> None:
    (gemb.folder / "corpus.json").write_text('{"text": "a"}\n')
    assert gemb("embed", "corpus.json", "-o", "corpus").returncode == 0
    assert (gemb.folder / "corpus.json").read_text() == '{"text": "a"}\n'
    (gemb.folder / "c.npy.json").write_text('["mine"]')
    for name, other in (("c.npy", "c.npy.json"), ("p", "p.part"), ("j", "j.journal")):
        (gemb.folder / other).write_text('["mine"]')
        done = gemb("embed", "-e", "x", "-o", name, "-m", "no/model.fake")
        assert done.returncode == 2
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"gemb: gemb did not write {other}")
        assert (gemb.folder / other).read_text() == '["mine"]'
        assert not (gemb.folder / name).exists()


def test_an_old_description_is_removed_with_its_vectors(gemb: Gemb) -> None:
    assert gemb("embed", "-e", "x", "-o", "v", "-O", "npy").returncode == 0
    assert (gemb.folder / "v.json").exists()
    assert gemb("embed", "-e", "x", "-o", "v", "-O", "jsonl").returncode == 0
    assert not (gemb.folder / "v.json").exists()


def test_an_input_is_never_the_output(gemb: Gemb) -> None:
    same = gemb.folder / "same.jsonl"
    same.write_text('{"text": "a"}\n')
    (gemb.folder / "link.jsonl").symlink_to("same.jsonl")
    for read, written in (
        ("same.jsonl", "same.jsonl"),
        ("same.jsonl", "link.jsonl"),
        ("./link.jsonl", "same.jsonl"),
    ):
        done = gemb("embed", read, "-o", written)
        assert (done.returncode, same.read_text()) == (2, '{"text": "a"}\n')
        assert f"{read} is both input and output" in done.stderr.decode()
    for name in ("same.jsonl.npy.json", "same.npy.journal"):
        (gemb.folder / name).hardlink_to(same)
        done = gemb("embed", name, "-o", name.rpartition(".")[0])
        assert (done.returncode, same.read_text()) == (2, '{"text": "a"}\n')
    shell = " ".join(gemb.command("embed", "same.jsonl", ">>same.jsonl"))
    done = subprocess.run(
        ["bash", "-c", shell], cwd=gemb.folder, env=gemb.environment, capture_output=True
    )
    assert (done.returncode, same.read_text()) == (2, '{"text": "a"}\n')
    assert b"is both input and output" in done.stderr


def test_a_link_stays_a_link_and_permissions_stay(gemb: Gemb) -> None:
    data = gemb.folder / "data"
    data.mkdir()
    (data / "old.npy").write_text("old")
    (data / "old.npy").chmod(0o640)
    for name in ("old.npy", "new.npy"):
        (gemb.folder / f"to-{name}").symlink_to(f"data/{name}")
        assert gemb("embed", "-e", "x", "-o", f"to-{name}").returncode == 0
        assert (gemb.folder / f"to-{name}").is_symlink()
        assert np.load(data / name).shape == (1, 768)
        assert read_vectors(gemb.folder / f"to-{name}").spec is not None
    assert (data / "old.npy").stat().st_mode & 0o777 == 0o640
    (gemb.folder / "circle").symlink_to("circle")
    done = gemb("embed", "-e", "x", "-o", "circle")
    assert (done.returncode, b"leads back to itself" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["out", "/proc/self/fd/3", "/dev/fd/3"])
def test_an_open_file_is_written_where_it_stands(gemb: Gemb, name: str) -> None:
    """What `-o /dev/stdout` is; the link is one of our own, for a mistake would replace it."""
    (gemb.folder / "out").symlink_to("/proc/self/fd/1")
    command = " ".join(gemb.command("embed", "-e", "x", "-O", "jsonl", "-o", name))
    opened = "3>&1" if name.endswith("3") else ""
    done = subprocess.run(
        ["bash", "-c", f"(echo before; {command} {opened}; echo after) >file.txt"],
        cwd=gemb.folder,
        env=gemb.environment,
        capture_output=True,
    )
    assert done.stderr == b""
    first, row, last = (gemb.folder / "file.txt").read_text().splitlines()
    assert (first, json.loads(row)["id"], last) == ("before", 1, "after")
    assert (gemb.folder / "out").is_symlink()
    assert sorted(path.name for path in gemb.folder.iterdir()) == ["file.txt", "model.fake", "out"]


def test_what_lies_in_dev_and_proc_is_a_stream_and_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    (tmp_path / "again").symlink_to("link")
    for path in (
        "/dev/stdout",
        "/dev/stderr",
        "/dev/fd/1",
        "/proc/self/fd/1",
        "/dev/none",
        "again",
    ):
        assert is_stream(tmp_path / path), path
    for path in ("/dev/shm/v.npy", "v.npy", "dev/stdout"):
        assert not is_stream(tmp_path / path), path
    assert descriptor(tmp_path / "again") == descriptor(Path("/dev/stdout")) == 1
    assert descriptor(tmp_path / "v.npy") is None
    with pytest.raises(UsageError, match="no such device or open file"):
        Target.of("/dev/none", FORMATS["npy"]).check()
    with pytest.raises(UsageError, match="is no regular file"):
        check_file(tmp_path / "again", overwrite=True)


def test_a_folder_that_takes_no_files_is_refused_before_the_model_loads(gemb: Gemb) -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        os.seteuid(65534 if user == 0 else user)
        with pytest.raises(UsageError, match=f"^{folder}: nothing can be written to this folder"):
            Target.of(str(folder / "v.npy"), FORMATS["npy"]).check()
    finally:
        os.seteuid(user)
        folder.rmdir()


def test_a_full_disk_is_named_for_a_spool_and_a_stream(gemb: Gemb, small_disk: Path) -> None:
    (gemb.folder / "many.txt").write_text("".join(f"text {number}\n" for number in range(ROWS)))
    gemb.environment["TMPDIR"] = str(small_disk)
    for form in ("npz", "npy"):
        done = gemb("embed", "many.txt", "-O", form)
        assert done.returncode == 5
        last = done.stderr.decode().splitlines()[-1]
        assert last.startswith(f"gemb: a temporary file in {small_disk}: no space left"), last
    with (small_disk / "v.jsonl").open("wb") as file:
        process = gemb.start("embed", "many.txt", stdout=file)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert errors.startswith(b"gemb: standard output: no space left on device")
    assert len(errors.splitlines()) == 1
    done = gemb("embed", "-e", "x", "-o", "/dev/full")
    assert done.stderr.startswith(b"gemb: /dev/full: no space left on device")
