"""Report how each process of a run ended to the process that started it.

The starter prints one line and exits with one code for all of them. A process that gemb did not
start prints its own line and exits with its own code.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from gemb.errors import Stopped

FOLDER = "GEMB_OUTCOMES"  # environment variable: the folder of the outcomes
_AGREED = (1, 75)  # a negative answer, a stop on request: all processes end the same way


class StoppedAlone(Stopped):
    """A stop of one process only, for which another may still wait."""


class Outcome(NamedTuple):
    """The end of a process, other than success."""

    code: int  # the exit code of the process, had it no starter
    line: str  # the line that it would have printed
    kind: str  # name of the exception's class
    at: float  # seconds since the epoch


def hand_over(code: int, line: str, error: BaseException) -> tuple[int, str]:
    """Write the outcome for the starter; return the exit code and the line of this process.

    Without a starter both are returned unchanged.
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

    The process that started the others is not one of them: it has set `FOLDER`, and has no rank.
    """
    return os.environ.get("RANK", "" if FOLDER in os.environ else "0") == "0"
