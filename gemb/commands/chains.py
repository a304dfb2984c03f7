"""What `gemb train` and `gemb recipes` say of chains, and what a stage's command means."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemb.commands.eval import PREFIXES
from gemb.commands.params import ModelReference
from gemb.commands.printing import print_json, print_table
from gemb.errors import UsageError

if TYPE_CHECKING:
    from gemb.recipe.chain import Chain, Words
    from gemb.recipe.yaml_text import Value
    from gemb.training.chain_cost import Plan
    from gemb.training.chain_run import Status


_WHAT = 100  # characters of a command that a plan shows
# Parameters of commands that name files: `gemb eval --data`, `gemb quantize --eval`, ...
_FILES = ("data", "sets", "texts", "more_texts", "corpus", "pairs")


def checked_chain(tree: Value, overrides: Sequence[str]) -> Chain:
    """Return the chain of a file, its commands checked by their own options."""
    from gemb.recipe.chain import read_chain

    group = click.get_current_context().find_root()
    return read_chain(tree, overrides, lambda words: _parsed(group, words))


def command_options(name: str) -> frozenset[str]:
    """Return the names of a command's options."""
    command = _command(click.get_current_context().find_root(), name)
    return frozenset(parameter.name or "" for parameter in command.params)


def print_plan(
    path: Path, overrides: Sequence[str], gpu: str, share: float, fill: float, *, as_json: bool
) -> None:
    """Print what a chain will cost, or a recipe, which is a chain of one."""
    import dataclasses

    from gemb.recipe.chain import Chain, Stage, is_chain
    from gemb.recipe.file import read_recipe, read_tree
    from gemb.training.chain_cost import Gpu, plan

    tree = read_tree(path)
    if is_chain(tree):
        chain = checked_chain(tree, overrides)
    else:
        chain = Chain((Stage(name=path.stem, recipe=read_recipe(tree, overrides)),))
    found = plan(chain, Gpu(name=gpu, share=share, fill=fill))
    if as_json:
        print_json({**dataclasses.asdict(found), "gpu_hours": found.gpu_hours})
        return
    print_table(plan_rows(found))
    for line in plan_words(found):
        click.echo(line)


def plan_rows(plan: Plan, statuses: dict[str, Status] | None = None) -> list[tuple[str, ...]]:
    """Return the plan as a table, its head first; with what is to be done, where that is known."""
    from textwrap import shorten

    rows = []
    for cost in plan.costs:
        cells = (
            cost.stage,
            cost.kind,
            _count(cost.steps),
            _short(cost.tokens),
            _short(cost.parameters),
            f"{cost.memory_bytes / 1e9:.1f} GB" if cost.memory_bytes else "",
            _hours(cost.gpu_hours),
        )
        state = (statuses[cost.stage].word,) if statuses else ()
        rows.append((*cells, *state, shorten(cost.does, _WHAT, placeholder=" ...")))
    head = ("STAGE", "KIND", "STEPS", "TOKENS", "NUMBERS", "MEMORY", "GPU-HOURS")
    return [(*head, *(("STATE",) if statuses else ()), "WHAT"), *rows]


def plan_words(plan: Plan) -> list[str]:
    """Return what the plan rests upon, and its sum."""
    from gemb.training.chain_cost import PEAKS

    gpu = plan.gpu
    lines = [
        f"together {_hours(plan.gpu_hours) or 'no'} GPU-hours of {gpu.name}: 6 N operations a "
        f"token (8 N where it is computed twice), at {gpu.share:.0%} of "
        f"{PEAKS[gpu.name] / 1e12:.0f} TFLOP/s (--share, --gpu), without attention's own products "
        "(of the 300M 5% more at 128 tokens, 19% at 512), evaluation and commands; texts "
        f"{gpu.fill:.0%} as long as max_tokens (--fill); memory of one process, libraries apart"
    ]
    if plan.assumed:
        lines.append(
            f"not here, and taken to be as big as EmbeddingGemma-300M: {', '.join(plan.assumed)}"
        )
    unknown = [cost.stage for cost in plan.costs if cost.parameters and cost.tokens is None]
    if unknown:
        lines.append(f"the data decides how long: {', '.join(unknown)} (run.epochs)")
    return lines


def _command(root: click.Context, name: str) -> click.Command:
    assert isinstance(root.command, click.Group), root.command
    command = root.command.get_command(root, name)
    assert command, name
    return command


def _parsed(root: click.Context, words: Sequence[str]) -> Words:
    """Return what a command's options make of its words.

    Raises:
        UsageError: they refuse them.
    """
    from gemb.recipe.chain import OUTPUTS, Words

    name, ours = words[0], "chain-output"
    command = _command(root, name)
    output = ["-o", ours] if OUTPUTS[name] else []
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of --help
            context = command.make_context(name, [*output, *words[1:]], parent=root)
    except click.exceptions.Exit as error:
        raise UsageError(f"gemb {name} would only print something, and end") from error
    except click.UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message[:1].lower() + message[1:]
        raise UsageError(f"{message} (see gemb {name} --help)") from error
    given = context.params
    if output and str(given["output"]) != ours:
        raise UsageError("-o is the chain's to say: leave it out")
    if given.get("dry_run"):
        raise UsageError("-n makes nothing that a later stage could take: leave it out")
    is_folder = _checked(name, given)
    references: list[str] = []
    files: list[str] = []
    others: list[str] = []
    for parameter in command.params:
        named = [each for each in _texts(given.get(parameter.name or "")) if each != ours]
        if isinstance(parameter.type, ModelReference):
            references += named
        elif parameter.name in _FILES:
            files += [each for each in named if not each.startswith(PREFIXES)]
        else:
            others += named
    if name == "soup":
        references = [each.partition("=")[0] for each in references]
    # `gemb eval --baseline` takes a file of scores, too.
    files += [each for each in references if Path(each).suffix == ".json"]
    references = [each for each in references if each not in files]
    return Words(tuple(references), tuple(files), tuple(others), is_folder=is_folder)


def _checked(name: str, given: Mapping[str, Any]) -> bool:
    """Refuse what a command would refuse hours later; return whether it writes several files.

    Raises:
        UsageError: options or types that do not go together.
    """
    if name == "soup":
        from gemb.commands.soup import check_words

        check_words(**{key: given[key] for key in ("words", "method", "last", "data", "keep")})
    if name == "quantize":
        from gemb.commands.quantize import Asked, wanted_files

        return len(wanted_files(Asked(**given))) > 1 and given["max_drop"] is None
    return False


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str | Path):
        yield str(value)


def _short(number: float | None) -> str:
    """Return 1.8T, 314B, 20M, 512."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number is not None and number >= size:
            return f"{number / size:.3g}{letter}"
    return "" if number is None else f"{number:.0f}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _hours(hours: float | None) -> str:
    if not hours:
        return ""
    if hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
