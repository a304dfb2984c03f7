"""What `gemb soup` prints of a soup that was written: a line, the scores, the verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from gemb.commands.options import GroupedCommand, ModelOptions, runtime_options
from gemb.commands.params import ModelReference, NewPath
from gemb.errors import GembError, NegativeAnswer, UsageError
from gemb.io.atomic import check_folder

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite
    from gemb.models.checkpoint import Checkpoint
    from gemb.weights.ingredients import Ingredient, Named
    from gemb.weights.soup import Method, Plan
    from gemb.weights.soup_scores import Comparison, Keep, Scorer, Try


class Made(NamedTuple):
    """A soup that was written."""

    ingredients: Sequence[Ingredient]  # all that were named
    chosen: Sequence[Ingredient]  # those that are in it
    written: Checkpoint
    method: str
    tries: Sequence[Try]
    comparison: Comparison | None


def in_words(made: Made) -> str:
    """Return the tables of scores, what was written, and the verdict."""
    count = f"{len(made.chosen)} model{'s' if len(made.chosen) > 1 else ''}"
    if len(made.chosen) < len(made.ingredients):
        count = f"{len(made.chosen)} of {len(made.ingredients)} models"
    parameters = sum(tensor.count for tensor in made.written.tensors.values())
    what = "slerp" if made.method == "slerp" else "mean"
    lines = [f"{made.written.folder}: {what} of {count}, {parameters / 1e6:.1f} M parameters"]
    found = made.comparison
    if found is None:
        return lines[0]
    names = [one.name for one in made.ingredients]
    width = max(map(len, [*names, "soup"]))
    for name, score in zip([*names, "soup"], [*found.scores, found.soup], strict=True):
        lines.append(f"{name:<{width}}  {score:.4f}")
    return "\n".join([*lines, _line(found)])


def _line(found: Comparison) -> str:
    return f"{found.verdict.line}, from {found.best}"


def in_json(made: Made) -> str:
    """Return all of it as one line of JSON."""
    from gemb.weights.soup import shares

    found = made.comparison
    document: dict[str, Any] = {
        "folder": str(made.written.folder),
        "fingerprint": made.written.fingerprint(),
        "method": made.method,
        "ingredients": [
            {"model": one.name, "fingerprint": one.fingerprint, "weight": share}
            for one, share in zip(made.chosen, shares(made.chosen), strict=True)
        ],
    }
    if made.tries:
        document["tries"] = [dataclasses.asdict(step) for step in made.tries]
    if found:
        names = [one.name for one in made.ingredients]
        document["scores"] = dict(zip(names, found.scores, strict=True)) | {"soup": found.soup}
        document["best"] = found.best
        document["verdict"] = found.verdict.to_json()
    return json.dumps(document, ensure_ascii=False)


# `gemb soup`: one model from several, by averaging their weights.


GROUPS = {
    "What is averaged": ("method", "last", "data", "keep"),
    "Output": ("output", "force", "dry_run", "as_json"),
    "Model, where --eval runs it": ("backend", "device", "precision", "threads"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument(
    "words", type=ModelReference(), nargs=-1, required=True, metavar="MODEL[=WEIGHT]..."
)
@click.option(
    "--method",
    type=click.Choice(["mean", "greedy", "slerp"]),
    default="mean",
    show_default=True,
    help="mean: of all, by their weights; greedy: of those that help, by --eval; slerp: on the arc "
    "between two, tensor by tensor.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    help="MODEL is a run of gemb train; take the last N of its checkpoints.",
)
@click.option(
    "--eval",
    "data",
    multiple=True,
    metavar="PATH|builtin:tiny",
    help="Sets to compare the soup and its ingredients on, as gemb eval --data takes them; "
    "repeatable.",
)
@click.option(
    "--keep",
    type=click.Choice(["better", "win"]),
    default="better",
    show_default=True,
    help="What greedy adds: better: what does not lower the score; win: what raises it beyond its "
    "95 % interval.",
)
@click.option(
    "-o", "--output", type=NewPath(), required=True, metavar="FOLDER", help="The folder to write."
)
@click.option("-f", "--force", is_flag=True, help="Replace the folder.")
@click.option("-n", "--dry-run", is_flag=True, help="Only check, and predict size and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@runtime_options
def soup(
    words: tuple[str, ...],
    method: str,
    last: int | None,
    data: tuple[str, ...],
    keep: str,
    output: Path,
    force: bool,
    dry_run: bool,
    as_json: bool,
    options: ModelOptions,
) -> None:
    """Average the weights of models that had one start.

    MODEL is a folder, or any other reference of a model folder. All must have the same tensors,
    tokenizer, pooling and prompts. =WEIGHT is relative to the others' weights.

    \b
    gemb soup runs/a/best runs/b/best runs/c/best -o soup
    gemb soup runs/a/best=0.7 embeddinggemma-300m=0.3 -o soup
    gemb soup runs/a --last 5 -o soup
    gemb soup runs/*/best --method greedy --eval dev/ -o soup

    The same bits come out in whatever order the models are named. FOLDER/gemb_soup.json says what
    is in the soup. With --eval the last line compares it with its best ingredient, by paired
    bootstrap; scores are kept for the next time.

    \b
    Exit codes: 0 done, 1 written, but worse than its best ingredient, 2 wrong usage, models that
    cannot be averaged or that hold NaN, 4 something is absent, 5 the run failed.
    """
    from gemb.io.notes import note
    from gemb.weights.soup import LOSES_TYPES, loses_types, plan, write_soup
    from gemb.weights.soup_scores import compared, greedy, to_json

    check_words(words, method=method, last=last, data=data, keep=keep)
    named = _named(words, last)
    if method == "slerp" and len(named) != 2:
        raise UsageError(f"slerp is between two models, not {len(named)}")
    ingredients = _opened(named, output, force=force)
    wanted = plan(ingredients)
    suite = _suite(data)
    if dry_run:
        click.echo(_planned(ingredients, wanted, output, as_json=as_json))
        return
    _check_space(wanted, output, copies=2 if method == "greedy" else 1)
    scorer = _scorer(suite, output, options) if suite else None
    chosen, evaluation = ingredients, None
    tries: Sequence[Try] = []
    if method == "greedy":
        assert scorer, "greedy has sets"
        chosen, tries = greedy(ingredients, scorer, cast("Keep", keep), _tell)
        evaluation = to_json(tries, scorer.suite, cast("Keep", keep))
    how: Method = "slerp" if method == "slerp" else "mean"
    written = write_soup(chosen, output, how, evaluation)
    if loses_types(chosen):
        note(LOSES_TYPES)
    found = compared(ingredients, chosen, scorer, how, output) if scorer else None
    made = Made(ingredients, chosen, written, method, tries, found)
    click.echo(in_json(made) if as_json else in_words(made))
    if found and found.verdict.word == "REGRESSION":
        raise NegativeAnswer(f"worse than {found.best}: {found.verdict.line}")


def check_words(
    words: Sequence[str], *, method: str, last: int | None, data: Sequence[str], keep: str
) -> None:
    """Refuse options that do not go together; no file is opened.

    Raises:
        UsageError: there are such.
    """
    from gemb.weights.ingredients import check_weights, named

    if method == "greedy" and not data:
        raise UsageError("greedy chooses by scores: name sets with --eval")
    if keep != "better" and method != "greedy":
        raise UsageError(f"--keep {keep} is of --method greedy; {method} keeps all")
    found = [named(word) for word in words]
    if last is not None and any(one.weight is not None for one in found):
        raise UsageError(
            "checkpoints of a run weigh alike: --last and MODEL=WEIGHT do not go together"
        )
    if method == "greedy" and any(one.weight is not None for one in found):
        raise UsageError("greedy chooses by itself: MODEL=WEIGHT is for --method mean and slerp")
    check_weights(found)


def _tell(step: Try) -> None:
    """Say on stderr what a try of the greedy choice came to."""
    from gemb.io.notes import note

    if not step.to:
        note(f"begins with {step.added}: {step.after:.4f}")
        return
    note(
        f"{'kept' if step.kept else 'left out'} {step.added}: {step.before:.4f} to "
        f"{step.after:.4f} ({step.after - step.before:+.4f}, 95% CI {step.low:+.4f} to "
        f"{step.high:+.4f})"
    )


def _named(words: Sequence[str], last: int | None) -> list[Named]:
    """Return what the words name, a run's checkpoints one by one."""
    from gemb.models.references import resolve
    from gemb.weights.ingredients import Named, last_checkpoints, named

    found = [named(word) for word in words]
    if last is None:
        return found
    return [
        Named(str(path), None)
        for one in found
        for path in last_checkpoints(resolve(one.reference), last)
    ]


def _opened(named: Sequence[Named], output: Path, *, force: bool) -> Sequence[Ingredient]:
    """Return the ingredients, after refusing those that cannot be averaged."""
    from gemb.commands.printing import print_table
    from gemb.io.notes import warn
    from gemb.weights.ingredients import differences, open_ingredients, summary, table

    ingredients = open_ingredients(named)
    for one in ingredients:
        check_folder(output, overwrite=force, source=one.checkpoint.folder)
    found = differences(ingredients)
    if found:
        print_table(table(ingredients, found), err=True)
        raise UsageError(f"these models cannot be averaged: {summary(ingredients, found)}")
    seen: dict[str, str] = {}
    for one in ingredients:
        twin = seen.setdefault(one.fingerprint, one.name)
        if twin != one.name:
            warn(f"{one.name} and {twin} are the same model: it counts twice")
    return ingredients


def _suite(data: Sequence[str]) -> Suite | None:
    from gemb.datasets.sets import open_suite

    return open_suite(*data) if data else None


def _planned(
    ingredients: Sequence[Ingredient], wanted: Plan, output: Path, *, as_json: bool
) -> str:
    import json

    if as_json:
        return json.dumps({"dry_run": True, "folder": str(output), **dataclasses.asdict(wanted)})
    return (
        f"would write {output} from {len(ingredients)} models: {wanted.tensors} tensors, "
        f"{wanted.parameters / 1e6:.1f} M parameters, {wanted.size_bytes / 1e6:,.0f} MB on the "
        f"disk, about {wanted.memory_bytes / 1e6:.0f} MB of memory"
    )


def _check_space(wanted: Plan, output: Path, *, copies: int) -> None:
    """Refuse to begin what the disk will not hold."""
    import shutil

    folder = output.absolute().parent
    free, needed = shutil.disk_usage(folder).free, copies * wanted.size_bytes
    if free < needed:
        raise GembError(
            f"{folder}: {free / 1e6:,.0f} MB are free, and the soup takes {needed / 1e6:,.0f} MB; "
            "free some space, or write elsewhere"
        )


def _scorer(suite: Suite, output: Path, options: ModelOptions) -> Scorer:
    from gemb.weights.soup_scores import Scorer

    return Scorer(
        suite=suite,
        near=output.absolute().parent,
        backend=options.backend,
        runtime=options.runtime,
    )
