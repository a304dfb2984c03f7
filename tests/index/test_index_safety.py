"""An index when things go wrong: kills, two writers, damage, full and read-only disks."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.errors import GembError, UsageError
from gemb.index.manifest import FORMAT, read_manifest
from gemb.index.reader import Index
from gemb.io.locks import locked_index
from index_cases import all_hits, error, inside, out

LINES = [f"word{number} and more" for number in range(600)]
KILLS = int(os.environ.get("GEMB_KILLS", "8"))  # of each test; 50 once by hand
# The program itself, with batches so short that many of them fall into a test.
QUICK = "import gemb.index.writer as w; w.COMMIT_S = 0.02; from gemb.__main__ import main; main()"


def start(gemb: Gemb, *arguments: str, program: str = QUICK, **more) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=gemb.folder,
        env=gemb.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )
    gemb._started.append(process)
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout.decode(), stderr.decode()


def texts(gemb: Gemb, name: str) -> list[str]:
    return sorted(hit.text for hit in all_hits(gemb, name))


def check_whole(gemb: Gemb, name: str) -> None:
    done = gemb("index", "verify", name, "--rows", "0")
    assert done.returncode == 0, done.stdout.decode()


def wait_for(condition, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() - began < 60
        time.sleep(0.002)


def committed_rows(folder: Path) -> int:
    try:
        with Index.open(folder) as index:
            return index.count
    except (GembError, OSError):
        return 0


def test_a_build_that_is_killed_again_and_again_ends_as_one_that_was_not(gemb: Gemb) -> None:
    write_model(gemb.model, sleep_s=0.05, log=str(gemb.folder / "log"))
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    part = gemb.folder / "l.gemb.part"
    moments = random.Random(5)
    done = 0
    for _ in range(KILLS):
        process = start(gemb, "index", "build", "l.gemb", "l.txt")
        before = done
        wait_for(lambda: committed_rows(part) > before or not part.exists(), process)  # noqa: B023
        time.sleep(moments.random() * 0.15)
        process.kill()
        process.wait()
        if not part.exists():
            break
        assert not (gemb.folder / "l.gemb").exists()
        line = error(gemb, "index", "info", "l.gemb")
        assert line.endswith(
            "l.gemb is not whole: its build was stopped; the same build goes on with it"
        )
        with Index.open(part) as index:
            rows = np.arange(index.count)
            assert index.count >= done, "what was committed is gone"
            done = index.count
            found = [hit.text for hit in index.hits(rows, np.zeros(len(rows)))]
            assert found == LINES[:done]
    code, _, stderr = ended(start(gemb, "index", "build", "l.gemb", "l.txt"))
    if part.exists() or "goes on" in stderr:
        assert f"{done} rows of a stopped build are there; it goes on from them" in stderr
    assert code == 0, stderr
    assert not part.exists()
    encoded = sum(map(int, (gemb.folder / "log").read_text().split()))
    # Two texts of the model may have the same ids; a batch has at most 512 rows, and of each run
    # two are under way; the background takes some more texts.
    most = len(LINES) + KILLS * 2 * 512 + 500
    assert len(LINES) - 9 <= encoded <= most, "a kill lost more than a batch"
    out(gemb, "index", "build", "w.gemb", "l.txt")
    with Index.open(gemb.folder / "l.gemb") as one, Index.open(gemb.folder / "w.gemb") as other:
        np.testing.assert_array_equal(one.stored, other.stored)
    assert all_hits(gemb, "l.gemb") == all_hits(gemb, "w.gemb")
    check_whole(gemb, "l.gemb")


@pytest.mark.parametrize("command", ["sync", "rm", "compact"])
def test_an_index_is_whole_after_every_kill(gemb: Gemb, command: str) -> None:
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    model = json.loads(out(gemb, "index", "info", "l.gemb", "--json"))["model"]
    write_model(Path(model), sleep_s=0.01)
    moments = random.Random(7)
    if command == "compact":
        out(gemb, "index", "rm", "l.gemb", *map(str, range(1, 200)))
    took = 0.5  # seconds of a run, once one was not killed
    for turn in range(KILLS + 1):
        if command == "compact" and turn:
            out(gemb, "index", "rm", "l.gemb", str(200 + turn))
        arguments = {
            "sync": ("sync", "l.gemb"),
            "rm": ("rm", "l.gemb", *map(str, range(10 * turn + 1, 10 * turn + 11))),
            "compact": ("compact", "l.gemb"),
        }[command]
        changed = LINES[50 * (turn % 8) :] + [f"turn{turn} line{number}" for number in range(100)]
        (gemb.folder / "l.txt").write_text("\n".join(changed) + "\n")
        before = texts(gemb, "l.gemb")
        process = start(gemb, "index", *arguments)
        if turn:
            time.sleep(took * (0.3 + 0.8 * moments.random()))  # before is the start of Python
            process.kill()
            process.wait()
        else:
            began = time.monotonic()
            assert ended(process)[0] == 0
            took = time.monotonic() - began
        after = texts(gemb, "l.gemb")
        if command == "compact":
            assert after == before
        elif command == "rm":
            assert len(after) in (len(before), len(before) - 10), "a half of it was done"
        else:
            assert set(before) & set(after) >= set(before) & set(changed)
            assert set(after) <= set(before) | set(changed)
        check_whole(gemb, "l.gemb")
    if command == "sync":
        out(gemb, "index", "sync", "l.gemb")
        assert texts(gemb, "l.gemb") == sorted(changed)
    if command == "compact":
        out(gemb, "index", "compact", "l.gemb")
        assert all_hits(gemb, "l.gemb")
        assert len(list((gemb.folder / "l.gemb").iterdir())) == 5
    check_whole(gemb, "l.gemb")


def test_readers_see_whole_batches_while_a_sync_writes(gemb: Gemb) -> None:
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    write_model(gemb.model, sleep_s=0.1)  # long enough to be seen on a busy machine
    new = [f"new{number} line" for number in range(600)]
    (gemb.folder / "l.txt").write_text("\n".join(LINES + new) + "\n")
    counts = set()
    process = start(gemb, "index", "sync", "l.gemb")
    with Index.open(gemb.folder / "l.gemb") as early:
        while process.poll() is None:
            with Index.open(gemb.folder / "l.gemb") as index:
                counts.add(index.count)
                assert index.codes is not None
                rows = np.arange(index.count)
                found = [hit.text for hit in index.hits(rows, np.zeros(len(rows)))]
                assert found == (LINES + new)[: index.count]
                assert (
                    np.abs(np.linalg.norm(index.stored.astype(np.float32), axis=1) - 1) < 0.01
                ).all()
        assert ended(process)[0] == 0
        assert early.count == len(early.hits(np.arange(600), np.zeros(600))) == 600
    assert len(counts) > 2, "nothing was seen in between"
    assert len(all_hits(gemb, "l.gemb")) == 1200


def test_ctrl_c_keeps_what_was_done(gemb: Gemb) -> None:
    write_model(gemb.model, sleep_s=0.3)
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    part = gemb.folder / "l.gemb.part"
    process = start(gemb, "index", "build", "l.gemb", "l.txt")
    wait_for(lambda: committed_rows(part) > 0, process)
    process.send_signal(signal.SIGINT)
    code, _, stderr = ended(process)
    assert code == 130
    assert "l.gemb.part keeps what was done (" in stderr
    assert "the same gemb index build goes on from there" in stderr
    assert 0 < committed_rows(part) < 600
    out(gemb, "index", "build", "l.gemb", "l.txt")
    assert len(all_hits(gemb, "l.gemb")) == 600
    (gemb.folder / "l.txt").write_text("\n".join([*LINES, *map(str, range(900))]) + "\n")
    process = start(gemb, "index", "sync", "l.gemb")
    wait_for(lambda: committed_rows(gemb.folder / "l.gemb") > 600, process)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = ended(process)
    assert code == 143
    assert " new rows); gemb index sync goes on from there\n" in stderr
    check_whole(gemb, "l.gemb")


def test_a_manifest_that_a_kill_left_half_written_is_no_hindrance(gemb: Gemb) -> None:
    (gemb.folder / "l.txt").write_text("red\nblue\n")
    (gemb.folder / "l.gemb.part").mkdir()
    commands = {"l.gemb.part": ("build", "l.gemb", "l.txt"), "l.gemb": ("sync", "l.gemb")}
    for folder, command in commands.items():
        half = gemb.folder / folder / ".manifest.json.12-ab.part"
        half.write_text('{"gemb index": 1, ')
        out(gemb, "index", *command)
        assert sorted(path.name for path in (gemb.folder / "l.gemb").iterdir()) == [
            *("codes.bin", "lock", "manifest.json", "rows.sqlite", "vectors.f16"),
        ]
    check_whole(gemb, "l.gemb")


def test_what_another_build_left_is_not_gone_on_with(gemb: Gemb) -> None:
    write_model(gemb.model, sleep_s=0.02)
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    part = gemb.folder / "l.gemb.part"
    process = start(gemb, "index", "build", "l.gemb", "l.txt")
    wait_for(lambda: committed_rows(part) > 0, process)
    process.kill()
    process.wait()
    (gemb.folder / "m.txt").write_text("red\n")
    done = gemb("index", "build", "l.gemb", "m.txt", "--dim", "256")
    assert b"l.gemb.part, what another build left, is removed" in done.stderr
    assert texts(gemb, "l.gemb") == ["red"]


def test_a_second_writer_waits_and_says_so(gemb: Gemb, built: Path) -> None:
    with locked_index(built):
        second = start(gemb, "index", "rm", "l.gemb", "1", "2")
        assert second.stderr is not None
        note = second.stderr.readline().decode()
        assert note == (
            f"gemb: note: process {os.getpid()} on {os.uname().nodename} is writing l.gemb; "
            "this one waits for it\n"
        )
        assert len(all_hits(gemb, "l.gemb")) == 50, "a reader does not wait"
        assert second.poll() is None
    assert ended(second) == (0, "-2 rows (48 in all)\n", "")
    check_whole(gemb, "l.gemb")


def test_of_two_builds_the_second_waits_and_finds_the_first_ones(gemb: Gemb) -> None:
    write_model(gemb.model, sleep_s=0.5)
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    first = start(gemb, "index", "build", "l.gemb", "l.txt")
    wait_for(lambda: committed_rows(gemb.folder / "l.gemb.part") > 0, first)
    second = start(gemb, "index", "build", "l.gemb", "l.txt")
    assert ended(first)[0] == 0
    code, _, stderr = ended(second)
    assert code == 2
    assert "this one waits for it" in stderr
    assert "l.gemb is an index already" in stderr
    check_whole(gemb, "l.gemb")


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.fixture
def built(gemb: Gemb) -> Path:
    (gemb.folder / "l.txt").write_text("\n".join(LINES[:50]) + "\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    return gemb.folder / "l.gemb"


@pytest.mark.parametrize(
    ("name", "word"), [("vectors.f16", "vectors"), ("codes.bin", "codes"), ("rows.sqlite", "rows")]
)
def test_verify_finds_one_flipped_bit(gemb: Gemb, built: Path, name: str, word: str) -> None:
    path = built / name
    place = path.read_bytes().find(b"word7 and") + 2 if name == "rows.sqlite" else -100
    flip(path, place)
    done = gemb("index", "verify", "l.gemb", "--rows", "0")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.decode().splitlines() if "BAD" in line] == [
        ["BAD", word]
    ]
    assert f"gemb: l.gemb is not whole: {word}" in done.stderr.decode()
    if name == "rows.sqlite":
        with Index.open(built) as index, pytest.raises(GembError, match=r"row 7 of .* is damaged"):
            index.hits(np.arange(50), np.zeros(50))
    if name == "vectors.f16":
        out(gemb, "index", "rm", "l.gemb", "1")
        line = error(gemb, "index", "compact", "l.gemb", code=5)
        assert "is damaged; build the index anew" in line
        assert len(all_hits(gemb, "l.gemb")) == 49


def test_every_byte_of_the_manifest_counts(gemb: Gemb, built: Path) -> None:
    good = (built / "manifest.json").read_bytes()
    for place in range(0, len(good) - 1, 7):
        (built / "manifest.json").write_bytes(good)
        flip(built / "manifest.json", place)
        with pytest.raises((GembError, UsageError), match=r"damaged|no index|newer") as caught:
            read_manifest(built)
        assert "\n" not in str(caught.value)
    (built / "manifest.json").write_bytes(good)
    flip(built / "manifest.json", len(good) // 2)
    line = error(gemb, "index", "sync", "l.gemb", code=5)
    assert "manifest.json is damaged; build the index anew: gemb index build -f" in line
    out(gemb, "index", "build", "-f", "l.gemb", "l.txt")


def test_an_index_of_a_newer_gemb_is_refused(gemb: Gemb, built: Path) -> None:
    entries = json.loads((built / "manifest.json").read_text())
    entries |= {"gemb index": FORMAT + 1, "made_by": "9.1\x1b[31m", "what": "is new"}
    (built / "manifest.json").write_text(json.dumps(entries))
    for command in ("sync", "info", "verify", "compact"):
        line = error(gemb, "index", command, "l.gemb")
        assert line == (
            "gemb: l.gemb was made by a newer gemb (9.1\\x1b[31m, format 3; this one reads 2): "
            "pip install -U gemb"
        )


@pytest.mark.parametrize("harm", ["missing", "empty", "begun otherwise"])
def test_an_index_without_its_manifest_is_no_folder_of_files(
    gemb: Gemb, built: Path, harm: str
) -> None:
    path = built / "manifest.json"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "empty" else b"\0" + path.read_bytes()[1:])
    for command in (["search", "red"], ["index", "info"], ["index", "sync"], ["index", "verify"]):
        line = error(gemb, *command, "l.gemb", code=5)
        what = "is missing; copy all of the folder, or" if harm == "missing" else "is damaged;"
        assert line == (
            f"gemb: l.gemb/manifest.json {what} build the index anew: gemb index build -f"
        )
    out(gemb, "index", "build", "-f", "l.gemb", "l.txt")
    check_whole(gemb, "l.gemb")


@pytest.mark.parametrize("name", ["vectors.f16", "codes.bin", "rows.sqlite"])
def test_a_file_that_is_missing_or_cut_short_is_named(gemb: Gemb, built: Path, name: str) -> None:
    path = built / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    done = gemb("index", "info", "l.gemb")
    if name != "rows.sqlite" or done.returncode:
        assert done.returncode == 5
        assert f"l.gemb/{name} is " in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1
    assert gemb("index", "verify", "l.gemb", "--rows", "0").returncode in (1, 5)
    path.unlink()
    line = error(gemb, "index", "info", "l.gemb", code=5)
    assert line.startswith(f"gemb: l.gemb/{name} is missing; copy all of the folder")
    if name != "codes.bin":
        (gemb.folder / "l.txt").write_text("red\n")
        assert "is missing" in error(gemb, "index", "sync", "l.gemb", "--yes", code=5)
        assert not path.exists(), "an empty file would hide it"


def test_an_empty_database_is_not_taken_for_a_new_one(gemb: Gemb, built: Path) -> None:
    before = (built / "vectors.f16").read_bytes()
    (built / "rows.sqlite").write_bytes(b"")
    for command in (["sync"], ["rm", "--yes", "1"]):
        line = error(gemb, "index", command[0], "l.gemb", *command[1:], code=5)
        assert line == (
            "gemb: l.gemb/rows.sqlite is empty; copy it again, or build the index anew: "
            "gemb index build -f"
        )
    assert (built / "vectors.f16").read_bytes() == before


def test_a_full_disk_leaves_the_index_as_it_was(gemb: Gemb, built: Path) -> None:
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    most = (built / "vectors.f16").stat().st_size + 100_000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    code, stdout, stderr = ended(start(gemb, "index", "sync", "l.gemb", preexec_fn=limit))
    assert (code, stdout) == (5, "")
    lines = [line for line in stderr.splitlines() if "keeps what was done" not in line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("gemb: l.gemb/")
    kept = texts(gemb, "l.gemb")
    assert 50 <= len(kept) < 600
    check_whole(gemb, "l.gemb")
    out(gemb, "index", "sync", "l.gemb")
    assert texts(gemb, "l.gemb") == sorted(LINES)
    code, _, stderr = ended(start(gemb, "index", "build", "n.gemb", "l.txt", preexec_fn=limit))
    assert code == 5
    assert not (gemb.folder / "n.gemb").exists()
    out(gemb, "index", "build", "n.gemb", "l.txt")
    check_whole(gemb, "n.gemb")


def test_a_limit_on_files_is_not_taken_for_damage(gemb: Gemb, built: Path) -> None:
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    most = (built / "rows.sqlite").stat().st_size + 4096
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    code, _, stderr = ended(start(gemb, "index", "sync", "l.gemb", preexec_fn=limit))
    assert code == 5
    assert "damaged" not in stderr, stderr
    check_whole(gemb, "l.gemb")


def read_only(folder: Path, command: list[str], gemb: Gemb) -> subprocess.CompletedProcess[bytes]:
    """Run a command where a folder is on a disk that cannot be written to."""
    mount = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", mount + ' && exec "$@"', "sh", *command],
        cwd=gemb.folder,
        env=gemb.environment,
        capture_output=True,
        timeout=60,
    )


def test_an_index_on_a_read_only_disk_is_read(gemb: Gemb, built: Path) -> None:
    done = read_only(built, gemb.command("index", "verify", "l.gemb"), gemb)
    assert done.returncode == 0, done
    done = read_only(built, gemb.command("index", "info", "l.gemb"), gemb)
    assert b"\nrows     50" in done.stdout
    done = read_only(built, gemb.command("index", "sync", "l.gemb"), gemb)
    assert done.returncode == 5
    assert done.stderr == b"gemb: l.gemb/lock: read-only file system\n"


def test_a_log_that_a_kill_left_is_read_on_a_writable_disk_alone(gemb: Gemb, built: Path) -> None:
    (gemb.folder / "l.txt").write_text("\n".join(LINES) + "\n")
    write_model(gemb.model, sleep_s=0.05)
    process = start(gemb, "index", "sync", "l.gemb")
    wait_for(lambda: committed_rows(built) > 50, process)
    process.kill()
    process.wait()
    assert (built / "rows.sqlite-wal").stat().st_size
    (built / "rows.sqlite-shm").unlink()
    done = read_only(built, gemb.command("index", "info", "l.gemb"), gemb)
    assert done.returncode == 5
    assert b"was left by a run that was killed, and cannot be written to" in done.stderr
    out(gemb, "index", "info", "l.gemb")
    assert not (built / "rows.sqlite-wal").exists()
    done = read_only(built, gemb.command("index", "info", "l.gemb"), gemb)
    assert done.returncode == 0


def test_an_index_can_be_copied_and_read_elsewhere(gemb: Gemb, built: Path) -> None:
    there = gemb.folder / "an odd #name?%20"
    shutil.copytree(built, there)
    with inside(gemb.folder), Index.open(Path(there.name)) as index:
        assert index.count == 50
    check_whole(gemb, there.name)


def test_what_a_kill_left_of_an_index_that_was_replaced_is_removed(gemb: Gemb, built: Path) -> None:
    for name in (".l.gemb.99.old", ".other.gemb.99.old"):
        (gemb.folder / name).mkdir()
        (gemb.folder / name / "rows.sqlite").write_bytes(b"x")
    out(gemb, "index", "build", "-f", "l.gemb", "l.txt")
    assert not (gemb.folder / ".l.gemb.99.old").exists()
    assert (gemb.folder / ".other.gemb.99.old").exists()
    check_whole(gemb, "l.gemb")
