"""Mixtures to try: weights of a recipe's sources, drawn at random, then by what did well.

As EmbeddingGemma was made (arXiv 2509.20354): a first mixture, some drawn from a Dirichlet
distribution, then Bayesian optimisation. This is Optuna's tree-structured Parzen estimator, with a
share p of n sources told to it as exp(-n p): with such numbers uniform, the mixtures are those of a
flat Dirichlet distribution (Optuna's FAQ, "How do I suggest variables which represent the
proportion?").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from gemb.errors import Missing
from gemb.recipe.schema import Mixtures, Recipe

LEAST = 0.001  # of the batches, for every source: a recipe knows no weight of 0
DIGITS = 4  # of a share
# By how much a share of two mixtures must differ that they count as two. Ours: with less, their
# runs see nearly the same batches.
APART = 0.05

Origin = Literal["own", "drawn", "searched"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the batches that a recipe's sources give."""

    number: int  # from 0
    origin: Origin  # the recipe's own, drawn from the Dirichlet distribution, or searched
    weights: tuple[float, ...]  # of each source, in the order of `data`; their sum is about 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A mixture, and how good a model a short run with it made."""

    mixture: Mixture
    score: float  # mean of the sets' main metrics, higher is better


def next_mixture(recipe: Recipe, trials: Sequence[Trial]) -> Mixture:
    """Return what to try after these. It depends on them and the recipe alone.

    Raises:
        Missing: Optuna is not installed, and it is time for it.
    """
    assert recipe.mixtures, "there is a search"
    number, count = len(trials), len(recipe.data)
    if number == 0:
        own = [1.0 if one.weight is None else one.weight for one in recipe.data]
        return Mixture(number=0, origin="own", weights=_shares(own))
    if number <= recipe.mixtures.seeds:
        random = np.random.default_rng([recipe.seed, number])
        drawn = random.dirichlet([recipe.mixtures.concentration] * count)
        return Mixture(number=number, origin="drawn", weights=_shares(drawn))
    searched = _searched(trials, count, recipe.seed)
    return Mixture(number=number, origin="searched", weights=_shares(searched))


def best_mixtures(trials: Sequence[Trial], count: int) -> list[Mixture]:
    """Return the mixtures with the highest scores, best first; of those nearly alike, the best.

    A search comes back to what did well, and a soup of runs that are alike gains nothing. Where too
    few are apart, there are fewer.
    """
    chosen: list[Mixture] = []
    for trial in sorted(trials, key=lambda trial: -trial.score):
        one = trial.mixture
        is_new = all(
            max(abs(a - b) for a, b in zip(one.weights, other.weights, strict=True)) >= APART
            for other in chosen
        )
        if is_new and len(chosen) < count:
            chosen.append(one)
    return chosen


def check_search(mixtures: Mixtures) -> None:
    """Refuse a search that would need what is not installed.

    Raises:
        Missing: it is Optuna.
    """
    if mixtures.trials > mixtures.seeds + 1 and find_spec("optuna") is None:
        raise Missing(
            "the search of mixtures needs the module 'optuna': pip install 'gemb[mixtures]'; with "
            f"mixtures.trials={mixtures.seeds + 1} there are drawn ones alone"
        )


def _searched(trials: Sequence[Trial], count: int, seed: int) -> list[float]:
    """Return the shares that Optuna proposes."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Another seed for each trial, so that one that goes on proposes what it would have.
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {
        f"source {i}": optuna.distributions.FloatDistribution(math.exp(-count), 1.0)
        for i in range(count)
    }
    for trial in trials:
        told = [math.exp(-count * share) for share in trial.mixture.weights]
        study.add_trial(
            optuna.trial.create_trial(
                params={
                    name: min(1.0, max(math.exp(-count), value))
                    for name, value in zip(space, told, strict=True)
                },
                distributions=dict(space),
                value=trial.score,
            )
        )
    asked = study.ask(dict(space)).params
    return [-math.log(asked[name]) for name in space]


def _shares(
    weights: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[float, ...]:
    total = math.fsum(weights)
    if not total:  # each at its least
        return tuple(round(1 / len(weights), DIGITS) for _ in weights)
    return tuple(max(LEAST, round(float(weight) / total, DIGITS)) for weight in weights)
