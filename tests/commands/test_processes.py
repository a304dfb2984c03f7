"""Closed streams, signals, folders that are gone, disks without locks: alike in every command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

GEMB = [sys.executable, "-m", "gemb"]
CLOSED = "gemb: standard output: it is closed\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.md").write_text("an order is here\n\nit can be cancelled\n")
    rows = "query,positive\na b,b c\nc d,d e\ne f,f g\n"
    (tmp_path / "p.csv").write_text(rows)
    return tmp_path


def run(words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*GEMB, *words.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "embed --help", "models ls", "models show mini", "models ls --json",
     "models path mini", "recipes ls", "recipes show smoke", "recipes check smoke", "doctor",
     "help", "help vectors", "help embed", "completion bash",
     "mine p.csv -k 1", "index build z.gemb a.md"],
)  # fmt: skip
def test_a_closed_output_is_an_error(words, folder):
    answer = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *GEMB, *words.split()],
        stderr=subprocess.PIPE, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert answer.returncode == (2 if words.startswith("mine") else 5), answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("gemb: standard output"), answer.stderr
    assert "closed" in last


def test_what_is_opened_next_does_not_get_the_number_of_a_closed_stream(folder):
    command = 'exec "$@" >&- 2>&- <&-'
    words = ["embed", "a.md", "-o", "v.f32", "-v"]
    done = subprocess.run(["sh", "-c", command, "sh", *GEMB, *words], check=False)
    assert done.returncode == 3  # an empty line
    assert (folder / "v.f32").stat().st_size == 3 * 768 * 4


@pytest.mark.parametrize(
    ("words", "code"),
    [("embed -e x -O f32", 0), ("search order {}/a.md", 0), ("models show mini", 0),
     ("index build {}/z.gemb {}/a.md -q", 3), ("models path mini", 0),
     ("mine {}/p.csv -k 1", 0)],
)  # fmt: skip
def test_absolute_paths_do_in_a_folder_that_is_gone(words, code, folder):
    gone = folder / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && exec " + '"$@"'
    words = words.replace("{}", str(folder))
    answer = subprocess.run(
        ["sh", "-c", command, "sh", *GEMB, *words.split()], capture_output=True, check=False
    )
    assert answer.returncode == code, answer.stderr


@pytest.mark.parametrize("words", ["embed -e x -o v.npy", "search x", "index build z.gemb d"])
def test_a_folder_that_is_gone_is_named_where_it_is_needed(words, folder):
    gone = folder / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && exec " + '"$@"'
    answer = subprocess.run(
        ["sh", "-c", command, "sh", *GEMB, *words.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = answer.stderr.splitlines()[-1]
    assert (answer.returncode, last) == (
        5,
        "gemb: the current folder has been removed; cd to another one",
    )


@pytest.mark.parametrize("named", ["cache", "./x", "~nobody-of-this-name/x"])
def test_a_cache_that_is_no_absolute_path_is_ignored(named, folder):
    environment = {**os.environ, "XDG_CACHE_HOME": named, "HOME": str(folder / "home")}
    before = {path.name for path in folder.iterdir()}
    answer = run("mine p.csv -k 1", env=environment)
    assert answer.returncode == 0
    note = f"gemb: note: XDG_CACHE_HOME is '{named}', no absolute path: it is ignored\n"
    assert answer.stderr.count(note) == 1
    assert {path.name for path in folder.iterdir()} - before == {"home"}
    assert (folder / "home/.cache/gemb/rows").is_dir()


@pytest.mark.parametrize(
    "words", ["mine p.csv -k 1", "search order a.md", "embed p.csv --text-field query -O csv"]
)
def test_a_cache_that_cannot_be_written_is_done_without(words, folder):
    (folder / "file").touch()
    right = run(words)
    answer = run(
        words, env={**os.environ, "XDG_CACHE_HOME": str(folder / "file"), "TMPDIR": str(folder)}
    )
    assert (answer.returncode, answer.stdout) == (right.returncode, right.stdout)
    assert answer.returncode == 0
    if not words.startswith("embed"):
        assert f"{folder}/file/gemb/" in answer.stderr
    assert [path.name for path in folder.iterdir() if path.name.startswith(".gemb")] == []


WITHOUT_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
"""


@pytest.mark.parametrize(
    "words",
    ["embed a.md -o v.npy", "mine p.csv -k 1", "index build z.gemb a.md", "search order a.md"],
)  # fmt: skip
def test_a_disk_without_locks_is_warned_of_and_used(words, folder):
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(WITHOUT_LOCKS)
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    answer = run(words, env={**os.environ, "PYTHONPATH": path})
    assert answer.returncode in (0, 3), answer.stderr
    assert "its disk has no locks; run no second gemb that writes there" in answer.stderr
    warnings = [line for line in answer.stderr.splitlines() if "no locks" in line]
    assert len(warnings) == len(set(warnings))


def started(words: str, folder: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start an export, and return when its part is there."""
    process = subprocess.Popen([*GEMB, *words.split()], cwd=folder, **options)
    until = time.monotonic() + 60
    while not any(path.name.startswith(".") for path in folder.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_half_written(number, tiny_model, tmp_path):
    (tmp_path / "w").mkdir()
    process = started(f"export-gguf {tiny_model} -o e.gguf", tmp_path / "w", stderr=subprocess.PIPE)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode:  # it may have been ready by then
        assert (process.returncode, said.splitlines()[-1]) == (128 + number, b"gemb: terminated")
    assert [path.name for path in (tmp_path / "w").iterdir()] in ([], ["e.gguf"])


def test_a_hang_up_that_the_parent_ignores_is_ignored(tiny_model, tmp_path):
    (tmp_path / "w").mkdir()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = started(f"export-gguf {tiny_model} -o e.gguf", tmp_path / "w")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["e.gguf"]
