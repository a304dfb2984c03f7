"""How far a run is: what stands on a terminal, and off one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from gemb.io import notes
from gemb.io import progress as module
from gemb.io.progress import CountProgress, InputProgress, StepProgress
from gemb.io.text import duration


class Clock:
    """A `time` whose seconds pass as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def train(progress: StepProgress, clock: Clock, steps: range, *, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        progress.step(step, 10 / step, 500)


def test_off_a_terminal_there_is_a_line_every_ten_seconds_and_at_the_end(clock, capsys):
    progress = StepProgress(60, 0)
    train(progress, clock, range(1, 58), seconds=0.5)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "gemb: step 1/60, loss 10.00, 1,000 tokens/s, 30 s left",
        "gemb: step 21/60, loss 0.4762, 1,000 tokens/s, 20 s left",
        "gemb: step 41/60, loss 0.2439, 1,000 tokens/s, 10 s left",
        "gemb: step 57/60, loss 0.1754, 1,000 tokens/s, 2 s left",
    ]


def test_the_last_step_is_said_once_and_has_no_time_left(clock, capsys):
    progress = StepProgress(3, 0)
    train(progress, clock, range(1, 4), seconds=60)
    progress.close()
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "gemb: step 1/3, loss 10.00, 8 tokens/s, 2 min left",
        "gemb: step 2/3, loss 5.000, 8 tokens/s, 1 min left",
        "gemb: step 3/3, loss 3.333, 8 tokens/s",
    ]


def test_rates_are_of_the_last_twenty_steps_and_a_resumed_run_counts_its_own(clock, capsys):
    progress = StepProgress(1000, 500)
    train(progress, clock, range(501, 521), seconds=50)
    capsys.readouterr()
    train(progress, clock, range(521, 541), seconds=1)
    progress.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("step 540/1000, loss 0.01852, 500 tokens/s, 8 min left")


def test_a_pause_does_not_slow_the_rate(clock, capsys):
    progress = StepProgress(4, 0)
    progress.step(1, 1.0, 0)
    train(progress, clock, range(2, 3), seconds=2)
    clock.now += 3600
    progress.skip_pause()
    train(progress, clock, range(3, 4), seconds=1)
    progress.close()
    assert "step 3/4, loss 3.333, 333 tokens/s, 1 s left" in capsys.readouterr().err


def test_a_loss_that_is_not_a_number_and_notes_are_shown(clock, capsys):
    progress = StepProgress(2, 0)
    clock.now += 1
    progress.step(1, float("nan"), 1)
    notes.tell("checkpoint at step 1")
    assert capsys.readouterr().err.splitlines() == [
        "gemb: step 1/2, loss nan, 1 tokens/s, 1 s left",
        "gemb: checkpoint at step 1",
    ]


def test_a_count_is_said_every_thirty_seconds_with_the_time_left(clock, capsys):
    progress = CountProgress(100, "vectors of m", "texts", work=1000)
    for _ in range(4):
        clock.now += 10
        progress.add(5, tokens=50, work=100)
    progress.close()
    line = "gemb: vectors of m: 15 of 100 texts, 0 texts/s, 5 tokens/s, 1 min left"
    assert capsys.readouterr().err.splitlines() == [line]  # 700 of work at 10 a second


def test_a_count_without_an_end_has_no_time_left(clock, capsys):
    progress = CountProgress(None, "vectors of m", "texts")
    clock.now += 40
    progress.add(80)
    progress.close()
    assert capsys.readouterr().err == "gemb: vectors of m: 80 texts, 2 texts/s\n"


def test_an_input_and_what_is_not_shown_say_nothing_off_a_terminal(clock, capsys):
    for progress in (InputProgress(1000), CountProgress(10, "rows", "rows", shown=False)):
        clock.now += 100
        if isinstance(progress, InputProgress):
            progress.add(1, tokens=10, size=100)
        else:
            progress.add(1)
        progress.close()
    assert capsys.readouterr().err == ""


def test_quiet_shows_nothing(clock, capsys):
    notes.speak(quiet=True)
    progress = StepProgress(2, 0)
    train(progress, clock, range(1, 3), seconds=20)
    notes.note("a note")
    progress.close()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.parametrize(("rows", "columns"), [(40, 100), (0, 0)])
def test_on_a_terminal_there_is_a_bar_and_notes_stand_above_it(rows: int, columns: int):
    program = (
        "import time\n"
        "from gemb.io import notes\n"
        "from gemb.io.progress import StepProgress\n"
        "notes.speak()\n"
        "progress = StepProgress(40, 30)\n"
        "for step in range(31, 41):\n"
        "    time.sleep(0.15)\n"
        "    progress.step(step, 2.5, 150)\n"
        "    if step == 39: notes.tell('checkpoint at step 39')\n"
        "progress.close()\n"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    os.close(ours)
    assert process.wait(30) == 0
    screen = shown.decode().replace("\r\n", "\n")
    bars = [line.rstrip() for line in screen.split("\r") if "/40" in line]
    assert "38/40, loss 2.500, " in screen
    assert bars[-1].startswith("100%|")
    assert "tokens/s" in bars[-1]
    assert "left" not in bars[-1]
    assert "\rgemb: checkpoint at step 39\n" in screen
    assert "gemb: step" not in screen


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 10_000)
    except OSError:  # how Linux says that the other side is closed
        return b""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_time_spans_are_said_in_words(seconds: float, words: str):
    assert duration(seconds) == words
