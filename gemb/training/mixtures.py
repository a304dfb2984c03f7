"""Search the weights of a recipe's sources by short runs, train with the best, average the models.

    RUN/recipe.yaml         the recipe, every key of it
    RUN/mixtures.json       the trials and their scores
    RUN/tried/NN/           the run of a trial; its weights are removed once it has a score
    RUN/finetuned/NN/       the full run of one of the best
    RUN/model/              the mean of those runs' models

Each run is a run of `gemb train`, and is resumed where it was stopped.

EmbeddingGemma (arXiv 2509.20354) used a first mixture, mixtures drawn from a Dirichlet
distribution, and then Bayesian optimisation. Here the optimisation is Optuna's tree-structured
Parzen estimator. A share p of n sources is passed to it as exp(-n p): uniform values of this give a
flat Dirichlet distribution of the mixtures (Optuna's FAQ, "How do I suggest variables which
represent the proportion?").
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import structs

from gemb.backend import Backend, Training
from gemb.datasets.sets import open_suite
from gemb.errors import Missing, UsageError
from gemb.evaluation.scores import Scores
from gemb.io.atomic import new_file
from gemb.io.foreign import read_bytes
from gemb.io.notes import is_quiet, note, quieter
from gemb.recipe.file import dump
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Mixtures, Recipe
from gemb.texts.contents import checked_encoding
from gemb.weights.ingredients import IngredientSpec, open_ingredients
from gemb.weights.soup import LOSES_TYPES, loses_types, write_soup
from gemb.weights.soup_scores import Scorer, compared

LEAST = 0.001  # share of the batches for every source: a recipe has no weight of 0
DIGITS = 4  # of a share
# The least difference of a share between two mixtures that count as distinct. With less, their runs
# see nearly the same batches.
APART = 0.05

Origin = Literal["own", "drawn", "searched"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The sources' shares of the batches."""

    number: int  # from 0
    origin: Origin  # the recipe's own, drawn from the Dirichlet distribution, or searched
    weights: tuple[float, ...]  # of each source, in the order of `data`; their sum is about 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A mixture, and the score of the model from a short run with it."""

    mixture: Mixture
    score: float  # mean of the sets' main metrics, higher is better


def next_mixture(search: Mixtures, recipe: Recipe, trials: Sequence[Trial]) -> Mixture:
    """Return the mixture to try after these trials; it is deterministic.

    Raises:
        Missing: Optuna is not installed, and this trial requires it.
    """
    number, count = len(trials), len(recipe.data)
    if number == 0:
        own = [1.0 if source.weight is None else source.weight for source in recipe.data]
        return Mixture(number=0, origin="own", weights=_shares(own))
    if number <= search.seeds:
        random = np.random.default_rng([recipe.seed, number])
        drawn = random.dirichlet([search.concentration] * count)
        return Mixture(number=number, origin="drawn", weights=_shares(drawn))
    searched = _searched(trials, count, recipe.seed)
    return Mixture(number=number, origin="searched", weights=_shares(searched))


def best_mixtures(trials: Sequence[Trial], count: int) -> list[Mixture]:
    """Return up to `count` distinct mixtures with the highest scores, best first.

    A search returns to good mixtures, and a soup of similar runs gains nothing. So of mixtures that
    are nearly equal only the best is taken.
    """
    chosen: list[Mixture] = []
    for trial in sorted(trials, key=lambda trial: -trial.score):
        weights = trial.mixture.weights
        is_new = all(
            max(abs(a - b) for a, b in zip(weights, better.weights, strict=True)) >= APART
            for better in chosen
        )
        if is_new and len(chosen) < count:
            chosen.append(trial.mixture)
    return chosen


def check_search(search: Mixtures) -> None:
    """Refuse a search that requires Optuna, if it is not installed.

    Raises:
        Missing: Optuna is not installed.
    """
    if search.trials > search.seeds + 1 and find_spec("optuna") is None:
        raise Missing(
            "the search of mixtures requires the module 'optuna': pip install 'gemb[mixtures]'; "
            f"with mixtures.trials={search.seeds + 1} all mixtures are drawn at random"
        )


def _searched(trials: Sequence[Trial], count: int, seed: int) -> list[float]:
    """Return the shares that Optuna proposes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A seed for each trial, so that a resumed search proposes the same mixtures.
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {
        f"source {i}": optuna.distributions.FloatDistribution(math.exp(-count), 1.0)
        for i in range(count)
    }
    for trial in trials:
        positions = [math.exp(-count * share) for share in trial.mixture.weights]
        study.add_trial(
            optuna.trial.create_trial(
                params={
                    name: min(1.0, max(math.exp(-count), value))
                    for name, value in zip(space, positions, strict=True)
                },
                distributions=dict(space),
                value=trial.score,
            )
        )
    proposal = study.ask(dict(space)).params
    return [-math.log(proposal[name]) for name in space]


def _shares(
    weights: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[float, ...]:
    total = math.fsum(weights)
    if not total:  # each at its least
        return tuple(round(1 / len(weights), DIGITS) for _ in weights)
    return tuple(max(LEAST, round(float(weight) / total, DIGITS)) for weight in weights)


def run_search(search: Mixtures, recipe: Recipe, training: Training, backend: Backend) -> None:
    """Search mixtures, train with the best, and write the averaged model and the verdict.

    The first mixture is that of the recipe's weights, or an equal share for each source.

    Raises:
        UsageError: as `Backend.train`; or this is one of several processes.
        Missing: Optuna is not installed.
        Stopped: a signal came; `--resume auto` continues.
    """
    if "RANK" in os.environ:
        raise UsageError(
            "a search of mixtures starts one run after another: gemb train --nproc N, not torchrun"
        )
    if training.nodes > 1:
        raise UsageError("a search of mixtures works on one machine: --nnodes 1")
    if training.resume not in ("never", "auto"):
        raise UsageError(f"--resume {training.resume}: a search of mixtures goes on with auto")
    check_search(search)
    if training.dry_run:
        _preview(search, recipe, training, backend)
        return
    run = RunFolder(training.run)
    with run.begun(recipe, resumes=training.resume != "never"):
        trials = _trials(search, recipe, training, backend)
        best = best_mixtures(trials, search.best)
        folders = [_finetuned(recipe, training, backend, mixture) for mixture in best]
        _average(recipe, training, folders)


def _preview(search: Mixtures, recipe: Recipe, training: Training, backend: Backend) -> None:
    note(
        f"{search.trials} mixtures of {len(recipe.data)} sources, {search.steps} steps each; then "
        f"the best {search.best} as below, and their soup"
    )
    backend.train(structs.replace(recipe, mixtures=None), training)


def _trials(search: Mixtures, recipe: Recipe, training: Training, backend: Backend) -> list[Trial]:
    """Run the trials that are missing, and return all."""
    run = RunFolder(training.run)
    trials = read_trials(run.mixtures) if run.mixtures.is_file() else []
    if not trials:
        _write_trials(run, trials)  # marks the folder as a search that can be resumed
    while len(trials) < search.trials:
        mixture = next_mixture(search, recipe, trials)
        folder = training.run / "tried" / f"{mixture.number:02}"
        # Only the first trial prints the usual notes.
        with quieter() if mixture.number else nullcontext():
            score = _score(_train(_short(search, recipe, mixture), folder, training, backend))
        trials.append(Trial(mixture=mixture, score=score))
        _write_trials(run, trials)
        for name in ("model", "best", "checkpoints", "start"):
            shutil.rmtree(folder / name, ignore_errors=True)
        _note_trial(search, trials)
    return trials[: search.trials]


def _note_trial(search: Mixtures, trials: Sequence[Trial]) -> None:
    last, best = trials[-1], max(trials, key=lambda trial: trial.score)
    shares = ", ".join(f"{weight:.2f}" for weight in last.mixture.weights)
    note(
        f"mixture {last.mixture.number} of {search.trials} ({last.mixture.origin}: "
        f"{shares}): {last.score:.4f}; the best is {best.mixture.number}: {best.score:.4f}"
    )


def _finetuned(recipe: Recipe, training: Training, backend: Backend, mixture: Mixture) -> Path:
    """Return the model of the full run with a mixture."""
    folder = training.run / "finetuned" / f"{mixture.number:02}"
    note(f"in full: mixture {mixture.number}")
    return _train(_with_weights(recipe, mixture), folder, training, backend).model


def _average(recipe: Recipe, training: Training, folders: Sequence[Path]) -> None:
    """Write the soup of these models, and compare it with them."""
    run = RunFolder(training.run)
    ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in folders])
    write_soup(ingredients, run.model)
    if loses_types(ingredients):
        note(LOSES_TYPES)
    suite = open_suite(recipe.eval.data, encoding=checked_encoding(recipe.eval.encoding))
    scorer = Scorer(suite=suite, near=run.path, runtime=training.runtime)
    with quieter():
        comparison = compared(ingredients, ingredients, scorer, "mean", run.model)
    for ingredient, score in zip(ingredients, comparison.scores, strict=True):
        note(f"{ingredient.name}: {score:.4f}")
    note(f"{run.model}, their mean: {comparison.soup:.4f}; the verdict is from {comparison.best}")
    run.write_json(run.verdict, comparison.verdict.to_json())


def _train(recipe: Recipe, folder: Path, training: Training, backend: Backend) -> RunFolder:
    """Train in a folder, resuming if it was begun; return the completed run."""
    folder.parent.mkdir(exist_ok=True)
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    with new_file(run.recipe) as part:  # read by the processes that the run starts
        part.write_text(dump(recipe), encoding="utf-8")
    if run.model.is_dir():
        return run
    command = (sys.executable, "-m", "gemb", "train", str(run.recipe), "-o", str(folder))
    options = ("--resume", "auto", "--no-baseline", "--device", training.runtime.device)
    backend.train(
        recipe,
        replace(
            training,
            run=folder,
            resume="auto",
            baseline=False,
            command=(*command, *options, *(("-q",) if is_quiet() else ())),
        ),
    )
    return run


def _short(search: Mixtures, recipe: Recipe, mixture: Mixture) -> Recipe:
    """Return the recipe of a trial: fewer steps, and one evaluation, at the end."""
    return structs.replace(
        _with_weights(recipe, mixture),
        run=structs.replace(recipe.run, steps=search.steps),
        eval=structs.replace(recipe.eval, every_steps=0),
        checkpoint=structs.replace(recipe.checkpoint, keep=1),
    )


def _with_weights(recipe: Recipe, mixture: Mixture) -> Recipe:
    """Return the recipe with a mixture's weights."""
    pairs = zip(recipe.data, mixture.weights, strict=True)
    data = tuple(structs.replace(source, weight=weight) for source, weight in pairs)
    return structs.replace(recipe, data=data, mixtures=None)


def _score(run: RunFolder) -> float:
    return Scores.load(run.scores("final")).value


def _write_trials(run: RunFolder, trials: Sequence[Trial]) -> None:
    run.write_json(run.mixtures, {"trials": [dataclasses.asdict(trial) for trial in trials]})


def read_trials(path: Path) -> list[Trial]:
    """Read the trials of a search.

    Raises:
        UsageError: the file holds no trials.
    """
    try:
        return [
            Trial(
                mixture=Mixture(
                    **entry["mixture"] | {"weights": tuple(entry["mixture"]["weights"])}
                ),
                score=float(entry["score"]),
            )
            for entry in json.loads(read_bytes(path))["trials"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: no mixtures that gemb train wrote: {error}") from error
