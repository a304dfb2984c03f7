"""A search of mixtures: short runs, the best in full, and their soup.

    RUN/recipe.yaml         the recipe, every key of it
    RUN/mixtures.json       what was tried, and what came of it
    RUN/tried/NN/           the run of a mixture; its weights go when its score is known
    RUN/finetuned/NN/       the full run of one of the best
    RUN/model/              the mean of those runs' models

Each run is one of `gemb train`, and each part is resumed from where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gemb.backend import Backend, Training
from gemb.datasets.sets import open_suite
from gemb.errors import UsageError
from gemb.evaluation.scores import Scores
from gemb.evaluation.verdict import Verdict
from gemb.io.atomic import new_file
from gemb.io.notes import note
from gemb.mixtures import Mixture, Trial, best_mixtures, check_search, next_mixture
from gemb.recipe.file import dump
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.weights.ingredients import Named, open_ingredients
from gemb.weights.soup import LOSES_TYPES, loses_types, write_soup
from gemb.weights.soup_scores import Scorer, compared


def search(recipe: Recipe, training: Training, backend: Backend) -> Verdict | None:
    """Find mixtures, train with the best, average; return what became of the best one's scores.

    Without weights of its own a recipe's first mixture is an equal share for each source.

    Raises:
        UsageError: as `Backend.train`; or this is one of several processes.
        Missing: what proposes mixtures is not installed.
        Stopped: a signal came; `--resume auto` goes on.
    """
    assert recipe.mixtures, "there is a search"
    if "RANK" in os.environ:
        raise UsageError(
            "a search of mixtures starts a run after the other: gemb train --nproc N, not torchrun"
        )
    if training.nodes > 1:
        raise UsageError("a search of mixtures works on one machine: --nnodes 1")
    if training.resume not in ("never", "auto"):
        raise UsageError(f"--resume {training.resume}: a search of mixtures goes on with auto")
    check_search(recipe.mixtures)
    if training.dry_run:
        _look(recipe, training, backend)
        return None
    run = RunFolder(training.run)
    with run.begun(recipe, resumes=training.resume != "never"):
        found = _tried(recipe, training, backend, run)
        best = best_mixtures(found, recipe.mixtures.best)
        folders = [_finetuned(recipe, training, backend, mixture) for mixture in best]
        return _cooked(recipe, training, folders)


def _look(recipe: Recipe, training: Training, backend: Backend) -> None:
    assert recipe.mixtures, "there is a search"
    note(
        f"{recipe.mixtures.trials} mixtures of {len(recipe.data)} sources, "
        f"{recipe.mixtures.steps} steps each; then the best {recipe.mixtures.best} as below, and "
        "their soup"
    )
    backend.train(replace(recipe, mixtures=None), training)


def _tried(recipe: Recipe, training: Training, backend: Backend, run: RunFolder) -> list[Trial]:
    """Return the trials, after running those that are still to do."""
    assert recipe.mixtures, "there is a search"
    trials = read_trials(run.mixtures) if run.mixtures.is_file() else []
    if not trials:
        _keep(run, trials)  # from here on it is a search that can go on
    while len(trials) < recipe.mixtures.trials:
        mixture = next_mixture(recipe, trials)
        folder = training.run / "tried" / f"{mixture.number:02}"
        quiet = training.quiet or mixture.number > 0  # the first shows what all are like
        how = replace(training, quiet=quiet)
        score = _score(_train(_short(recipe, mixture), folder, how, backend))
        trials.append(Trial(mixture=mixture, score=score))
        _keep(run, trials)
        for name in ("model", "best", "checkpoints", "start"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if not training.quiet:
            _tell(recipe, trials)
    return trials[: recipe.mixtures.trials]


def _tell(recipe: Recipe, trials: Sequence[Trial]) -> None:
    assert recipe.mixtures, "there is a search"
    last, best = trials[-1], max(trials, key=lambda trial: trial.score)
    shares = ", ".join(f"{weight:.2f}" for weight in last.mixture.weights)
    note(
        f"mixture {last.mixture.number} of {recipe.mixtures.trials} ({last.mixture.origin}: "
        f"{shares}): {last.score:.4f}; the best is {best.mixture.number}: {best.score:.4f}"
    )


def _finetuned(recipe: Recipe, training: Training, backend: Backend, mixture: Mixture) -> Path:
    """Return the model of the full run with a mixture."""
    folder = training.run / "finetuned" / f"{mixture.number:02}"
    if not training.quiet:
        note(f"in full: mixture {mixture.number}")
    return _train(_with(recipe, mixture), folder, training, backend).model


def _cooked(recipe: Recipe, training: Training, folders: Sequence[Path]) -> Verdict:
    """Write the soup of these models, and compare it with them."""
    run = RunFolder(training.run)
    ingredients = open_ingredients([Named(str(folder), None) for folder in folders])
    write_soup(ingredients, run.model)
    if loses_types(ingredients) and not training.quiet:
        note(LOSES_TYPES)
    scorer = Scorer(suite=open_suite(recipe.eval.data), near=run.path, runtime=training.runtime)
    found = compared(ingredients, ingredients, scorer, "mean", run.model)
    if not training.quiet:
        for one, score in zip(ingredients, found.scores, strict=True):
            note(f"{one.name}: {score:.4f}")
        note(f"{run.model}, their mean: {found.soup:.4f}; the verdict is from {found.best}")
    run.write_json(run.verdict, found.verdict.to_json())
    return found.verdict


def _train(recipe: Recipe, folder: Path, training: Training, backend: Backend) -> RunFolder:
    """Train in a folder, from where it was stopped; return the run, which has ended."""
    folder.parent.mkdir(exist_ok=True)
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    with new_file(run.recipe) as part:  # what the processes of a run of several begin with
        part.write_text(dump(recipe), encoding="utf-8")
    if run.model.is_dir():
        return run
    words = (sys.executable, "-m", "gemb", "train", str(run.recipe), "-o", str(folder))
    options = ("--resume", "auto", "--no-baseline", "--device", training.runtime.device)
    backend.train(
        recipe,
        replace(
            training,
            run=folder,
            resume="auto",
            baseline=False,
            command=(*words, *options, *(("-q",) if training.quiet else ())),
        ),
    )
    return run


def _short(recipe: Recipe, mixture: Mixture) -> Recipe:
    """Return the recipe of a trial: fewer steps, and one evaluation, at the end."""
    assert recipe.mixtures, "there is a search"
    return replace(
        _with(recipe, mixture),
        run=replace(recipe.run, steps=recipe.mixtures.steps),
        eval=replace(recipe.eval, every_steps=0),
        checkpoint=replace(recipe.checkpoint, keep=1),
    )


def _with(recipe: Recipe, mixture: Mixture) -> Recipe:
    """Return the recipe with a mixture's weights."""
    pairs = zip(recipe.data, mixture.weights, strict=True)
    data = tuple(replace(source, weight=weight) for source, weight in pairs)
    return replace(recipe, data=data, mixtures=None)


def _score(run: RunFolder) -> float:
    return Scores.load(run.scores("final")).value


def _keep(run: RunFolder, trials: Sequence[Trial]) -> None:
    run.write_json(run.mixtures, {"trials": [dataclasses.asdict(trial) for trial in trials]})


def read_trials(path: Path) -> list[Trial]:
    """Return the trials that a search has kept.

    Raises:
        UsageError: the file holds none.
    """
    try:
        return [
            Trial(
                mixture=Mixture(**{**one["mixture"], "weights": tuple(one["mixture"]["weights"])}),
                score=float(one["score"]),
            )
            for one in json.loads(path.read_bytes())["trials"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: no mixtures that gemb train kept: {error}") from error
