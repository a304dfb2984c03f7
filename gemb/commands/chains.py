"""Chains in `gemb train` and `gemb recipes`: check the options, print the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gemb.commands.printing import print_table
from gemb.errors import UsageError
from gemb.io.notes import answer

if TYPE_CHECKING:
    from gemb.recipe.chain import Chain
    from gemb.recipe.yaml_text import Value

TERAFLOPS = 400.0  # of an H100 at 40 % of its peak


def checked_chain(tree: Value, overrides: Sequence[str]) -> Chain:
    """Return the chain of a file, with the options of its commands checked.

    Raises:
        UsageError: the chain or an override is wrong.
    """
    from gemb.recipe.chain import read_chain

    return read_chain(tree, overrides, _check_options)


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse an option that the command of a stage does not have, or one without its value.

    Raises:
        UsageError: an option is unknown, or lacks its value.
    """
    root = click.get_current_context().find_root()
    assert isinstance(root.command, click.Group), root.command
    command = root.command.get_command(root, arguments[0])
    assert command, arguments[0]
    context = click.Context(command, parent=root, info_name=arguments[0])
    try:
        command.make_parser(context).parse_args(list(arguments[1:]))
    except click.UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message[:1].lower() + message[1:]
        raise UsageError(f"{message} (see gemb {arguments[0]} --help)") from error


def print_plan(
    chain: Chain, teraflops: float = TERAFLOPS, states: Sequence[str] | None = None
) -> None:
    """Print the estimated cost of the stages; with `states`, also the state of each."""
    from textwrap import shorten

    from gemb.training.chain_cost import plan

    costs, absent = plan(chain)
    head = ("STAGE", "KIND", "STEPS", "TOKENS", "LAYERS", "HOURS", "STATE", "WHAT")
    rows = [head]
    for cost, state in zip(costs, states or [""] * len(costs), strict=True):
        steps = "" if cost.steps is None else f"{cost.steps:,}"
        hours = _hours(cost.hours(teraflops))
        numbers = (_short(cost.tokens), _short(cost.parameters), hours, state)
        does = shorten(cost.does, 100, placeholder=" ...")
        rows.append((cost.stage, cost.kind, steps, *numbers, does))
    print_table([row if states else (*row[:6], *row[7:]) for row in rows])
    hours = _hours(sum(cost.hours(teraflops) or 0 for cost in costs)) or "no"
    answer(
        f"together {hours} hours of a GPU that reaches {teraflops:g} TFLOP/s (--tflops): 6 "
        "operations a token for each number in the model's layers, all texts as long as max_tokens"
    )
    if absent:
        answer(f"not here, and assumed as large as EmbeddingGemma-300M: {', '.join(absent)}")
    if unknown := [cost.stage for cost in costs if cost.parameters and not cost.tokens]:
        answer(f"the length depends on the data: {', '.join(unknown)} (run.epochs)")


def _short(number: int | None) -> str:
    """Return 1.8T, 314B, 20M, 512."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number is not None and number >= size:
            return f"{number / size:.3g}{letter}"
    return "" if number is None else str(number)


def _hours(hours: float | None) -> str:
    if not hours:
        return ""
    if hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
