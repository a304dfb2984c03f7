"""metrics.jsonl: what is written is read back, and a resumed run goes on where it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemb.errors import UsageError
from gemb.training.log import MetricsLog, read_metrics


def written(path: Path, *steps: int) -> None:
    log = MetricsLog(path, -1)
    for step in steps:
        log.write(step=step, loss=step / 2)
    log.close()


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write(step=10, loss=1.25, parts={"distill": 0.5}, source="boolq")
    log.write(step=20, eval={768: {"mean": np.float32(0.5), "sets": {"ä": np.float64(0.25)}}})
    log.close()
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [
        {"step": 10, "loss": 1.25, "parts": {"distill": 0.5}, "source": "boolq"},
        {"step": 20, "eval": {"768": {"mean": 0.5, "sets": {"ä": 0.25}}}},
    ]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m", 0)
    log.write(step=1, loss=float("nan"), grad_norm=float("inf"), lr=np.float32("nan"))
    log.close()
    assert list(read_metrics(tmp_path / "m")) == [
        {"step": 1, "loss": None, "grad_norm": None, "lr": None}
    ]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m"
    written(path, 0, 10, 20, 20, 30, 40)
    log = MetricsLog(path, 20)
    log.write(step=30, loss=9.0)
    log.close()
    assert steps(path) == [0, 10, 20, 20, 30]
    assert list(read_metrics(path))[-1] == {"step": 30, "loss": 9.0}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "tail", [b'{"step": 30, "lo', b'{"step": 3', b"\0\0\0\0", b'x\n{"st', b"7\n"]
)
def test_a_torn_end_is_passed_over_by_readers_and_removed_by_a_resume(
    tmp_path: Path, tail: bytes
) -> None:
    path = tmp_path / "m"
    written(path, 10, 20)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert steps(path) == [10, 20]
    assert path.read_bytes() == whole + tail, "reading changed the file"
    MetricsLog(path, 100).close()
    assert path.read_bytes() == whole


def test_a_last_line_without_its_end_is_torn_though_it_parses(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step":1}\n{"step":2}')
    MetricsLog(path, 5).close()
    assert path.read_bytes() == b'{"step":1}\n'


def test_a_file_with_nothing_to_drop_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "m"
    written(path, 10, 20)
    inode = path.stat().st_ino
    MetricsLog(path, 20).close()
    assert path.stat().st_ino == inode


def test_a_broken_line_within_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step":1}\nnonsense\n{"step":3}\n')
    for use in (lambda: MetricsLog(path, 5), lambda: list(read_metrics(path))):
        with pytest.raises(UsageError, match=r"m:2 is no line of metrics; remove that line$"):
            use()
    assert path.read_bytes().count(b"\n") == 3, "the file was changed"


def test_lines_survive_a_kill_right_after_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "m"
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from gemb.training.log import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]), 0)\n"
        "for step in range(1, 4): log.write(step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert steps(path) == [1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path, 0)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), log._file.fileno())
    with pytest.raises(OSError, match="No space left") as caught:
        log.write(step=1)
    assert caught.value.filename == str(path)
    log.close()
