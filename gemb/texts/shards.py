"""Which rows are this worker's: `--shard I/N`, or what a scheduler's variables say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gemb.errors import UsageError
from gemb.texts.records import Record


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 1, of `count`: the rows i, from 0, with i % count == index - 1."""

    index: int
    count: int

    def of(self, records: Iterable[Record | None]) -> Iterator[Record | None]:
        """Yield this shard's records, and None as it comes."""
        places = itertools.cycle(range(self.count))
        for record in records:
            if record is None or next(places) == self.index - 1:
                yield record


def shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Return the shard that `I/N` or `auto` means.

    auto reads, in this order: SLURM's array variables, its tasks within one job (both are
    multiplied where a job has both), Kubernetes' JOB_COMPLETION_INDEX with JOB_COMPLETIONS.

    Raises:
        UsageError: the text is neither, or no scheduler's variables are set.
    """
    if text == "auto":
        return _from_scheduler(environment)
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard {text}: write I/N, such as 3/16, or auto")
    if not 1 <= int(index) <= int(count):
        raise UsageError(f"--shard {text}: I goes from 1 to N")
    return Shard(int(index), int(count))


def _from_scheduler(environment: Mapping[str, str]) -> Shard:
    index, count = 0, 1
    is_set = False
    if "SLURM_ARRAY_TASK_ID" in environment:
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        first = _number(environment, "SLURM_ARRAY_TASK_MIN")
        index = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // max(1, step)
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        is_set = True
    if "SLURM_PROCID" in environment:
        tasks = _number(environment, "SLURM_NTASKS")
        index = index * tasks + _number(environment, "SLURM_PROCID")
        count *= tasks
        is_set = True
    if not is_set and "JOB_COMPLETION_INDEX" in environment:
        index = _number(environment, "JOB_COMPLETION_INDEX")
        count = _number(environment, "JOB_COMPLETIONS")
        is_set = True
    if not is_set:
        raise UsageError(
            "--shard auto: neither SLURM_ARRAY_TASK_ID, SLURM_PROCID nor JOB_COMPLETION_INDEX "
            "is set; write --shard I/N"
        )
    if not 0 <= index < count:
        raise UsageError(
            f"--shard auto: the variables give part {index + 1} of {count}; write --shard I/N"
        )
    return Shard(index + 1, count)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        what = f"is {value!r}, no number" if value else "is not set"
        raise UsageError(f"--shard auto: {name} {what}; set it, or write --shard I/N")
    return int(value)
