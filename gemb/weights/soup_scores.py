"""Which soup is best on a user's own sets: scores of ingredients and of soups, and greedy choice.

Greedy (Wortsman et al. 2022, arXiv 2203.05482, "recipe 1"): the ingredients in the order of their
scores, each added to the soup if the score does not fall. A paired bootstrap compares the scores.
They are cached with what a later comparison needs, so that a second run with one more model
computes only the new soups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gemb import __version__
from gemb.backend import Runtime
from gemb.datasets.sets import Suite
from gemb.embedding.engine import open_engine
from gemb.embedding.text_vectors import text_progress
from gemb.errors import UsageError
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores
from gemb.evaluation.verdict import Difference, Verdict, verdict
from gemb.io.atomic import scratch_folder
from gemb.io.caches import scores_cache, writable
from gemb.weights.ingredients import Ingredient, in_order
from gemb.weights.soup import Method, shares, write_soup

Keep = Literal["better", "win"]


@dataclass(frozen=True, kw_only=True)
class GreedyStep:
    """One step of a greedy choice."""

    added: str  # the ingredient that was tried
    to: tuple[str, ...]  # names of the ingredients chosen before; empty at the first step
    before: float  # mean of the sets' main metrics; at the first step, the same as `after`
    after: float
    units: int  # that were compared: queries, pairs or rows
    low: float | None  # 95 % interval of the difference; None: too few units, or the first step
    high: float | None
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores models on a suite, at their full width."""

    suite: Suite
    near: Path  # the folder for soups that are tried, and then removed
    backend: str = "auto"
    runtime: Runtime = field(default_factory=Runtime)

    def scores(
        self,
        ingredients: Sequence[Ingredient],
        method: Method = "mean",
        written: Path | None = None,
    ) -> Scores:
        """Return the scores of an ingredient, or of a soup of several.

        Args:
            ingredients: one model, or those of the soup.
            method: how they are averaged.
            written: the folder of the soup, if it is written already.

        Raises:
            UsageError: a model cannot be opened or averaged.
            GembError: a text has no vector.
            OSError: a soup cannot be written.
        """
        cached = scores_cache() / f"{self._key(ingredients, method)}.json"
        if cached.is_file():
            try:
                return Scores.load(cached)
            except UsageError:  # of another version, or cut short by a full disk
                cached.unlink()
        if len(ingredients) == 1:
            written = ingredients[0].checkpoint.folder
        if written:
            scores = self._of(written, ingredients)
        else:
            with scratch_folder("soup", self.near) as folder:
                write_soup(ingredients, folder / "model", method)
                scores = self._of(folder / "model", ingredients)
        scores.save(writable(cached.parent) / cached.name)
        return scores

    def _of(self, model: Path, ingredients: Sequence[Ingredient]) -> Scores:
        encoder = open_engine(model, self.runtime, self.backend).encoder
        name = " + ".join(ingredient.name for ingredient in ingredients)
        dim = ingredients[0].checkpoint.dim
        with text_progress(f"eval {name}") as progress:
            return evaluate(self.suite, encoder, dims=(dim,), progress=progress)

    def _key(self, ingredients: Sequence[Ingredient], method: Method) -> str:
        """Return 32 hex digits of all that the scores depend on."""
        ordered = in_order(ingredients)
        facts = (
            __version__,
            method if len(ordered) > 1 else "",
            [
                (ingredient.fingerprint, share)
                for ingredient, share in zip(ordered, shares(ordered), strict=True)
            ],
            sorted(self.suite.fingerprints().items()),
            (self.backend, self.runtime.device, self.runtime.precision),
        )
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A soup and its ingredients."""

    scores: tuple[float, ...]  # of each ingredient: the mean of the sets' main metrics
    soup: float
    best: str  # the ingredient with the highest score
    verdict: Verdict  # from it to the soup


def compared(
    ingredients: Sequence[Ingredient],
    chosen: Sequence[Ingredient],
    scorer: Scorer,
    method: Method,
    written: Path,
) -> Comparison:
    """Compare the soup of the chosen ingredients, in `written`, with the best ingredient."""
    single_scores = [scorer.scores([ingredient]) for ingredient in ingredients]
    soup = scorer.scores(chosen, method, written)
    means = [scores.value for scores in single_scores]
    best = means.index(max(means))
    return Comparison(
        scores=tuple(means),
        soup=soup.value,
        best=ingredients[best].name,
        verdict=verdict(single_scores[best], soup),
    )


def greedy(
    ingredients: Sequence[Ingredient],
    scorer: Scorer,
    keep: Keep = "better",
    tell: Callable[[GreedyStep], None] = lambda step: None,
) -> tuple[list[Ingredient], list[GreedyStep]]:
    """Return the ingredients of the best soup that was found, and each step of the choice.

    Args:
        ingredients: models that differ only in the values of their tensors.
        scorer: computes the scores.
        keep: better: an ingredient that does not lower the score (the paper's rule); win: one that
            raises it beyond the 95 % interval of a paired bootstrap.
        tell: called after each step.
    """
    singles = [(ingredient, scorer.scores([ingredient])) for ingredient in in_order(ingredients)]
    singles.sort(key=lambda pair: -pair[1].value)  # a stable sort: ties as `in_order` has them
    (first, best), *rest = singles
    chosen = [first]
    mean = best.value
    steps = [
        GreedyStep(
            added=first.name,
            to=(),
            before=mean,
            after=mean,
            units=best.fewest.units,
            low=None,
            high=None,
            kept=True,
        )
    ]
    tell(steps[0])
    for ingredient, _ in rest:
        scores = scorer.scores([*chosen, ingredient])
        change = verdict(best, scores).main
        kept = change.word == "WIN" if keep == "win" else change.difference >= 0
        steps.append(_greedy_step(ingredient, chosen, change, kept=kept))
        tell(steps[-1])
        if kept:
            chosen.append(ingredient)
            best = scores
    return chosen, steps


def _greedy_step(
    ingredient: Ingredient, chosen: Sequence[Ingredient], change: Difference, *, kept: bool
) -> GreedyStep:
    return GreedyStep(
        added=ingredient.name,
        to=tuple(member.name for member in chosen),
        before=change.before,
        after=change.after,
        units=change.units,
        low=change.low,
        high=change.high,
        kept=kept,
    )


def to_json(steps: Sequence[GreedyStep], suite: Suite, keep: Keep) -> dict[str, Any]:
    """Return the record of a greedy choice for the manifest."""
    return {
        "sets": suite.fingerprints(),
        "keep": keep,
        "tries": [asdict(step) for step in steps],
    }
