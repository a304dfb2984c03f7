"""The end of each process of a run, given to the process that started it.

The starter prints one line and leaves with one exit code for all of them. A process that gemb did
not start prints its own line and leaves with its own code.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from gemb.errors import Stopped

FOLDER = "GEMB_OUTCOMES"  # environment variable: the folder of the outcomes
_AGREED = (1, 75)  # a negative answer, a stop on request: all processes end alike, none has failed


class StoppedAlone(Stopped):
    """A stop that the processes have not agreed on: one may stop while another waits for it."""


class Outcome(NamedTuple):
    """The end of a process, other than success."""

    code: int  # the exit code of the process, had it no starter
    line: str  # the line that it would have printed
    kind: str  # name of the exception's class
    at: float  # seconds since the epoch


def hand_over(code: int, line: str, error: BaseException) -> tuple[int, str]:
    """Write the outcome for the starter; return the exit code and the line that this process has.

    Without a starter both are as given.
    """
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
    """Return the outcomes in a folder, by rank."""
    return {
        int(path.stem): Outcome(*json.loads(path.read_bytes())) for path in folder.glob("*.json")
    }


def speaks_for_all() -> bool:
    """Return whether this process prints the run's result: the first of several, or the only one.

    The process that started the others is none of them: it has set `FOLDER`, and has no rank.
    """
    return os.environ.get("RANK", "" if FOLDER in os.environ else "0") == "0"
