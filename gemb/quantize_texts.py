"""The user's texts for quantizing: those that are compared, and those that say what matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.notes import warn
from gemb.models.prompts import for_task
from gemb.texts.inputs import Reading, read
from gemb.texts.records import Fields, Record

# Of a corpus, evenly spaced; each as a document and as a query: about what llama-imatrix's users
# take, a hundred pieces of 512 tokens.
CALIBRATION_TEXTS = 256


def read_texts(path: str) -> tuple[str, ...]:
    """Return the texts of a file; `-` is standard input.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    return tuple(record.text for record in _records(path))


def calibration_texts(path: str, prompts: Mapping[str, str]) -> tuple[str, ...]:
    """Return texts of a corpus as the model is to see them: as documents, and as queries.

    Args:
        path: a file; of more texts than `CALIBRATION_TEXTS`, as many evenly spaced ones are taken.
        prompts: the model's.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    every = _records(path)
    step = max(1.0, len(every) / CALIBRATION_TEXTS)
    some = [every[int(i * step)] for i in range(min(len(every), CALIBRATION_TEXTS))]
    roles = [for_task(task, prompts) for task in ("document", "query")]
    return tuple(role.render(one.text, one.title) for one in some for role in roles)


def check_texts(path: str) -> None:
    """Refuse what is no file of texts.

    Raises:
        UsageError: there is none.
    """
    if path != "-" and (not Path(path).exists() or Path(path).is_dir()):  # a pipe is welcome
        raise UsageError(f"{path}: no such file of texts")


def _records(path: str) -> list[Record]:
    check_texts(path)
    reading = Reading(fields=Fields(title="title", title_may_lack=True), quiet=True)
    good: list[Record] = []
    bad: list[Record] = []
    for record in read([path], reading):
        if record is not None:
            (bad if record.error else good).append(record)
    if not good:
        raise UsageError(f"{'standard input' if path == '-' else path}: no text in it")
    if bad and bad[0].error:
        warn(f"{len(bad)} texts of {path} are left out, the first: {bad[0].error.message}")
    return good
