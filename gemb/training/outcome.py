"""How a process of a run of several ended, handed to the one that started it.

The starter speaks for all of them: it prints one line and leaves with one code, where each process
would have printed its own. A process that was not started so keeps its line and code.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from gemb.errors import Stopped

FOLDER = "GEMB_OUTCOMES"  # environment variable: where to hand it over
_AGREED = (1, 75)  # a negative answer, a stop on request: all processes end so, none has failed


class StoppedAlone(Stopped):
    """A stop that the processes have not agreed on: one may stop while another waits for it."""


class Outcome(NamedTuple):
    """The end of a process, other than success."""

    code: int  # what it would have left with
    line: str  # what it would have said
    kind: str  # name of the exception's class
    at: float  # seconds since the epoch


def hand_over(code: int, line: str, error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line that remain to this process: without a starter, its own."""
    folder = os.environ.get(FOLDER)
    if not folder or "RANK" not in os.environ:
        return code, line
    outcome = Outcome(code, line, type(error).__name__, time.time())
    path = Path(folder) / f"{os.environ['RANK']}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome), encoding="utf-8")
    part.replace(path)
    is_agreed = code in _AGREED and not isinstance(error, StoppedAlone)
    return (0 if is_agreed else code), ""


def outcomes(folder: Path) -> dict[int, Outcome]:
    """Return what was handed over, by rank."""
    return {
        int(path.stem): Outcome(*json.loads(path.read_bytes())) for path in folder.glob("*.json")
    }


def speaks_for_all() -> bool:
    """Return whether this process prints the run's result: the first of several, or the only one.

    The process that started the others is none of them: it has set `FOLDER`, and has no rank.
    """
    return os.environ.get("RANK", "" if FOLDER in os.environ else "0") == "0"
