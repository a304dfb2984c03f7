"""metrics.jsonl: one JSON object a line, as the steps of a training run come.

Every line has `step`; the others are what the trainer knew then. A kill may tear the last line:
who reads passes over it, and who resumes removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gemb.errors import UsageError
from gemb.io.atomic import naming, new_file, write_all
from gemb.io.foreign import open_regular

OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """A line about one step: its fields are the keys. A stage of training may add some."""

    step: int  # from 1
    loss: float
    parts: dict[str, float]  # of the loss, by name, before their weights
    tokens: int  # that the model has seen in the run so far
    tokens_per_s: float  # of this step
    step_s: float  # seconds that it took
    data_s: float  # of these, spent in waiting for data
    lr: float
    grad_norm: float  # before clipping


class MetricsLog:
    """The file of a run that goes on. Each line is with the system when `write` returns."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Open the file to append, without what came after the checkpoint that is resumed.

        Args:
            path: made where it is absent.
            after_step: the last step whose lines stay; -1 begins anew.

        Raises:
            UsageError: a line within the file is no line of metrics.
            OSError: the file cannot be read or written.
        """
        self._path = path
        if path.exists():
            before = [line for step, line in _whole_lines(path) if step <= after_step]
            if sum(map(len, before)) < path.stat().st_size:
                with new_file(path) as part:
                    part.write_bytes(b"".join(before))
        # No buffer: after a full disk nothing is left that closing would try to write again.
        self._file = path.open("ab", buffering=0)

    def write(self, *, step: int, **fields: object) -> None:
        """Append a line. Numbers that are not finite become null; keys may be numbers.

        Raises:
            OSError: the line could not be written, or only a part of it.
        """
        with naming(self._path):
            write_all(self._file.write, orjson.dumps({"step": step, **fields}, option=OPTIONS))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines, in the file's order; a torn end is passed over.

    Raises:
        UsageError: a line within the file is no line of metrics.
        OSError: the file cannot be read.
    """
    for _, line in _whole_lines(path):
        yield orjson.loads(line)


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (step, line with its end); broken lines may stand at the end alone."""
    broken = 0
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            step = _step(line)
            if step is None:
                broken = broken or number
            elif broken:
                raise UsageError(f"{path}:{broken} is no line of metrics; remove that line")
            else:
                yield step, line


def _step(line: bytes) -> int | None:
    """Return the step of a line, or None where the line is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    step = fields.get("step") if isinstance(fields, dict) else None
    return step if isinstance(step, int) else None
