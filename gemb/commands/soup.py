"""`gemb soup`: one model from several, by averaging their weights."""

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
from gemb.io.notes import answer

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite
    from gemb.models.checkpoint import Checkpoint
    from gemb.weights.ingredients import Ingredient, IngredientSpec
    from gemb.weights.soup import Method, SoupPlan
    from gemb.weights.soup_scores import Comparison, GreedyStep, Keep, Scorer


class WrittenSoup(NamedTuple):
    """A soup that was written."""

    ingredients: Sequence[Ingredient]  # all that the user named
    chosen: Sequence[Ingredient]  # those in the soup
    written: Checkpoint
    method: str
    tries: Sequence[GreedyStep]
    comparison: Comparison | None


def in_words(result: WrittenSoup) -> str:
    """Return what was written, the scores and the verdict, as lines of text."""
    count = f"{len(result.chosen)} model{'s' if len(result.chosen) > 1 else ''}"
    if len(result.chosen) < len(result.ingredients):
        count = f"{len(result.chosen)} of {len(result.ingredients)} models"
    parameters = sum(tensor.count for tensor in result.written.tensors.values())
    method = "slerp" if result.method == "slerp" else "mean"
    lines = [f"{result.written.folder}: {method} of {count}, {parameters / 1e6:.1f} M parameters"]
    comparison = result.comparison
    if comparison is None:
        return lines[0]
    names = [ingredient.name for ingredient in result.ingredients]
    width = max(map(len, [*names, "soup"]))
    for name, score in zip([*names, "soup"], [*comparison.scores, comparison.soup], strict=True):
        lines.append(f"{name:<{width}}  {score:.4f}")
    return "\n".join([*lines, _line(comparison)])


def _line(comparison: Comparison) -> str:
    return f"{comparison.verdict.line}, from {comparison.best}"


def in_json(result: WrittenSoup) -> str:
    """Return the same as one line of JSON."""
    from gemb.weights.soup import shares

    comparison = result.comparison
    document: dict[str, Any] = {
        "folder": str(result.written.folder),
        "fingerprint": result.written.fingerprint(),
        "method": result.method,
        "ingredients": [
            {"model": ingredient.name, "fingerprint": ingredient.fingerprint, "weight": share}
            for ingredient, share in zip(result.chosen, shares(result.chosen), strict=True)
        ],
    }
    if result.tries:
        document["tries"] = [dataclasses.asdict(step) for step in result.tries]
    if comparison:
        names = [ingredient.name for ingredient in result.ingredients]
        document["scores"] = dict(zip(names, comparison.scores, strict=True)) | {
            "soup": comparison.soup
        }
        document["best"] = comparison.best
        document["verdict"] = comparison.verdict.to_json()
    return json.dumps(document, ensure_ascii=False)


GROUPS = {
    "What is averaged": ("method", "last", "data", "keep"),
    "Output": ("output", "force", "dry_run", "as_json"),
    "Model, where --eval runs it": ("backend", "device", "precision", "threads"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument(
    "references", type=ModelReference(), nargs=-1, required=True, metavar="MODEL[=WEIGHT]..."
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
    help="Which models greedy adds. better: those that do not lower the score; win: those that "
    "raise it beyond its 95 % interval.",
)
@click.option(
    "-o", "--output", type=NewPath(), required=True, metavar="FOLDER", help="The folder to write."
)
@click.option("-f", "--force", is_flag=True, help="Replace the folder.")
@click.option("-n", "--dry-run", is_flag=True, help="Only check, and predict size and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@runtime_options
def soup(
    references: tuple[str, ...],
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
    """Average the weights of models from one start.

    MODEL is a folder, or any other reference of a model folder. All must have tensors of the same
    shapes, a tokenizer that gives the same ids, the same pooling and prompts. F32, BF16 and F16 may
    be mixed: what is averaged of different types is written in F32. =WEIGHT is
    relative to the others' weights.

    \b
    gemb soup runs/a/best runs/b/best runs/c/best -o soup
    gemb soup runs/a/best=0.7 embeddinggemma-300m=0.3 -o soup
    gemb soup runs/a --last 5 -o soup
    gemb soup runs/*/best --method greedy --eval dev/ -o soup

    The result does not depend on the order of the models. FOLDER/gemb_soup.json lists the
    ingredients. With --eval the last line compares the soup with its best ingredient, by paired
    bootstrap; scores are cached.

    \b
    Exit codes: 0 done, 1 written, but worse than its best ingredient, 2 wrong usage, models that
    cannot be averaged or that hold NaN, 4 something is absent, 5 the run failed.
    """
    from gemb.evaluation.verdict import too_few
    from gemb.io.notes import note
    from gemb.weights.soup import LOSES_TYPES, loses_types, plan, widened, write_soup
    from gemb.weights.soup_scores import compared, greedy, to_json

    check_options(references, method=method, last=last, data=data, keep=keep)
    specs = _named(references, last)
    if method == "slerp" and len(specs) != 2:
        raise UsageError(f"slerp is between two models, not {len(specs)}")
    ingredients = _opened(specs, output, force=force)
    size = plan(ingredients)
    suite = _suite(data)
    if mixed := widened(ingredients):
        note(f"the models' numbers are {mixed}; where they differ the soup's are F32")
    if dry_run:
        answer(_planned(ingredients, size, output, as_json=as_json))
        return
    _check_space(size, output, copies=2 if method == "greedy" else 1)
    scorer = _scorer(suite, output, options) if suite else None
    chosen, evaluation = ingredients, None
    tries: Sequence[GreedyStep] = []
    if method == "greedy":
        assert scorer, "greedy has sets"
        chosen, tries = greedy(ingredients, scorer, cast("Keep", keep), _tell)
        evaluation = to_json(tries, scorer.suite, cast("Keep", keep))
    average: Method = "slerp" if method == "slerp" else "mean"
    written = write_soup(chosen, output, average, evaluation)
    if loses_types(chosen):
        note(LOSES_TYPES)
    comparison = compared(ingredients, chosen, scorer, average, output) if scorer else None
    result = WrittenSoup(ingredients, chosen, written, method, tries, comparison)
    answer(in_json(result) if as_json else in_words(result))
    if comparison and comparison.verdict.word == "TOO FEW":
        note(too_few(comparison.verdict.main.units))
    if comparison and comparison.verdict.word == "REGRESSION":
        raise NegativeAnswer(f"worse than {comparison.best}: {comparison.verdict.line}")


def check_options(
    references: Sequence[str], *, method: str, last: int | None, data: Sequence[str], keep: str
) -> None:
    """Refuse options that do not go together; no file is opened.

    Raises:
        UsageError: two options do not go together.
    """
    from gemb.weights.ingredients import check_weights, ingredient_spec

    if method == "greedy" and not data:
        raise UsageError("greedy chooses by scores: name sets with --eval")
    if keep != "better" and method != "greedy":
        raise UsageError(f"--keep {keep} is of --method greedy; {method} keeps all")
    specs = [ingredient_spec(reference) for reference in references]
    if last is not None and any(spec.weight is not None for spec in specs):
        raise UsageError(
            "checkpoints of a run weigh alike: --last and MODEL=WEIGHT do not go together"
        )
    if method == "greedy" and any(spec.weight is not None for spec in specs):
        raise UsageError("greedy chooses by itself: MODEL=WEIGHT is for --method mean and slerp")
    check_weights(specs)


def _tell(step: GreedyStep) -> None:
    """Print the result of a step of the greedy choice on stderr."""
    from gemb.evaluation.verdict import spread
    from gemb.io.notes import note

    if not step.to:
        note(f"begins with {step.added}: {step.after:.4f}")
        return
    note(
        f"{'kept' if step.kept else 'left out'} {step.added}: {step.before:.4f} to "
        f"{step.after:.4f} ({step.after - step.before:+.4f}, "
        f"{spread(step.low, step.high, step.units, '+.4f')})"
    )


def _named(references: Sequence[str], last: int | None) -> list[IngredientSpec]:
    """Return the ingredients that are named; of a run, its last checkpoints."""
    from gemb.models.references import resolve
    from gemb.weights.ingredients import IngredientSpec, ingredient_spec, last_checkpoints

    specs = [ingredient_spec(reference) for reference in references]
    if last is None:
        return specs
    return [
        IngredientSpec(str(path), None)
        for spec in specs
        for path in last_checkpoints(resolve(spec.reference), last)
    ]


def _opened(specs: Sequence[IngredientSpec], output: Path, *, force: bool) -> Sequence[Ingredient]:
    """Open the ingredients, and refuse those that cannot be averaged."""
    from gemb.commands.printing import print_table
    from gemb.io.notes import warn
    from gemb.models.adapter import base_of
    from gemb.weights.ingredients import mismatches, open_ingredients, summary, table

    ingredients = open_ingredients(specs)
    for ingredient in ingredients:
        folder = ingredient.checkpoint.folder
        for needed in dict.fromkeys((folder, base_of(folder))):
            check_folder(output, overwrite=force, source=needed)
    differing = mismatches(ingredients)
    if differing:
        print_table(table(ingredients, differing), err=True)
        raise UsageError(f"these models cannot be averaged: {summary(ingredients, differing)}")
    names: dict[str, str] = {}
    for ingredient in ingredients:
        twin = names.setdefault(ingredient.fingerprint, ingredient.name)
        if twin != ingredient.name:
            warn(f"{ingredient.name} and {twin} are the same model: it counts twice")
    return ingredients


def _suite(data: Sequence[str]) -> Suite | None:
    from gemb.datasets.sets import open_suite

    return open_suite(*data) if data else None


def _planned(
    ingredients: Sequence[Ingredient], size: SoupPlan, output: Path, *, as_json: bool
) -> str:
    import json

    if as_json:
        return json.dumps({"dry_run": True, "folder": str(output), **dataclasses.asdict(size)})
    return (
        f"would write {output} from {len(ingredients)} models: {size.tensors} tensors, "
        f"{size.parameters / 1e6:.1f} M parameters, {size.size_bytes / 1e6:,.0f} MB on the "
        f"disk, about {size.memory_bytes / 1e6:.0f} MB of memory"
    )


def _check_space(size: SoupPlan, output: Path, *, copies: int) -> None:
    """Refuse a soup for which the disk has no room."""
    import shutil

    folder = output.absolute().parent
    free, needed = shutil.disk_usage(folder).free, copies * size.size_bytes
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
