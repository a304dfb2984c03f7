"""Options of a run on a cluster, which `--engine ray` turns on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
NAMES = ("engine", "workers", "address", "gpus", "part_rows")
PART_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """What the options say; see their help."""

    workers: int
    address: str
    gpus: float
    part_rows: int


def cluster_options(command: F) -> F:
    """Give a command the options; it gets them as `cluster`, None without `--engine ray`."""

    @functools.wraps(command)
    def packed(*args: object, **values: Any) -> object:  # noqa: ANN401
        engine = values.pop("engine")
        chosen = {name: values.pop(name) for name in NAMES[1:]}
        given = [name for name, value in chosen.items() if value is not None]
        if engine != "ray":
            if given:
                option = given[0].replace("_", "-")
                raise click.UsageError(f"--{option} goes with --engine ray")
            return command(*args, cluster=None, **values)
        cluster = ClusterChoice(
            workers=chosen["workers"] or 0,
            address=chosen["address"] or "",
            gpus=chosen["gpus"] or 0.0,
            part_rows=chosen["part_rows"] or PART_ROWS,
        )
        return command(*args, cluster=cluster, **values)

    decorators = (
        click.option(
            "--engine",
            type=click.Choice(("local", "ray")),
            default="local",
            help="ray: by Ray Data, on this machine or a cluster, into a folder of Parquet parts "
            "(gemb help scale).",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Processes with the model, of -j CPUs each (1 if not given); as many as fit.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="A cluster: auto (this is one of its nodes) or HOST:PORT; else Ray starts here.",
        ),
        click.option(
            "--gpus",
            type=click.FloatRange(min=0, min_open=True),
            metavar="G",
            help="GPUs for each worker; 0.5 puts two on one.",
        ),
        click.option(
            "--part-rows",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Rows of a part; what a worker that dies loses at most.  [default: {PART_ROWS}]",
        ),
    )
    wrapped: Any = packed
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[no-any-return]
