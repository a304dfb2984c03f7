"""Which soup is best on a user's own sets: scores of ingredients and of soups, and greedy choice.

Greedy (Wortsman et al. 2022, arXiv 2203.05482, "recipe 1"): the ingredients in the order of their
scores, each added to the soup if it does not become worse. What became of the score is told by a
paired bootstrap. Scores are kept in the cache with what a later comparison needs, so that a second
run, with one more model, computes the new soups alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from gemb import __version__
from gemb.backend import Runtime
from gemb.datasets.sets import Suite
from gemb.embedding.pipeline import text_progress
from gemb.errors import UsageError
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores
from gemb.evaluation.verdict import Difference, Verdict, verdict
from gemb.io.caches import scores_cache
from gemb.plugins import for_model
from gemb.weights.ingredients import Ingredient, in_order
from gemb.weights.soup import Method, shares, write_soup

Keep = Literal["better", "win"]


@dataclass(frozen=True, kw_only=True)
class Try:
    """One step of a greedy choice."""

    added: str  # the ingredient
    to: tuple[str, ...]  # the soup so far; empty: the first
    before: float  # mean of the sets' main metrics; of the first, as `after`
    after: float
    low: float  # 95 % interval of the difference
    high: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores models on a suite, at their full width."""

    suite: Suite
    near: Path  # soups to try are written into this folder, and removed
    backend: str = "auto"
    runtime: Runtime = field(default_factory=Runtime)

    def scores(
        self,
        ingredients: Sequence[Ingredient],
        method: Method = "mean",
        written: Path | None = None,
    ) -> Scores:
        """Return the scores of an ingredient, or of a soup of several, which may be written yet.

        Raises:
            UsageError: a model cannot be opened or averaged.
            GembError: a text has no vector.
            OSError: a soup cannot be written.
        """
        kept = scores_cache() / f"{self._key(ingredients, method)}.json"
        if kept.is_file():
            try:
                return Scores.load(kept)
            except UsageError:  # of another version, or cut short by a full disk
                kept.unlink()
        if len(ingredients) == 1:
            written = ingredients[0].checkpoint.folder
        if written:
            found = self._of(written, ingredients)
        else:
            with TemporaryDirectory(prefix=".soup-", dir=self.near) as folder:
                write_soup(ingredients, Path(folder) / "model", method)
                found = self._of(Path(folder) / "model", ingredients)
        kept.parent.mkdir(parents=True, exist_ok=True)
        found.save(kept)
        return found

    def _of(self, model: Path, ingredients: Sequence[Ingredient]) -> Scores:
        encoder = for_model(model, self.backend).open(model, self.runtime)
        name = " + ".join(one.name for one in ingredients)
        dim = ingredients[0].checkpoint.dim
        with text_progress(f"eval {name}") as progress:
            return evaluate(self.suite, encoder, dims=(dim,), progress=progress)

    def _key(self, ingredients: Sequence[Ingredient], method: Method) -> str:
        """Return 32 hex digits of all that the scores depend on."""
        ordered = in_order(ingredients)
        facts = (
            __version__,
            method if len(ordered) > 1 else "",
            [(one.fingerprint, share) for one, share in zip(ordered, shares(ordered), strict=True)],
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
    """Return what became of the scores, from the best ingredient to the soup of the chosen ones."""
    found = [scorer.scores([one]) for one in ingredients]
    soup = scorer.scores(chosen, method, written)
    means = [scores.value for scores in found]
    best = means.index(max(means))
    return Comparison(
        scores=tuple(means),
        soup=soup.value,
        best=ingredients[best].name,
        verdict=verdict(found[best], soup),
    )


def greedy(
    ingredients: Sequence[Ingredient],
    scorer: Scorer,
    keep: Keep = "better",
    tell: Callable[[Try], None] = lambda step: None,
) -> tuple[list[Ingredient], list[Try]]:
    """Return the ingredients of the best soup that was found, and each try.

    Args:
        ingredients: models that differ in their numbers alone.
        scorer: what is good.
        keep: better: an ingredient that does not lower the score (the paper's rule); win: one that
            raises it beyond the 95 % interval of a paired bootstrap.
        tell: called after each try.
    """
    singles = [(one, scorer.scores([one])) for one in in_order(ingredients)]
    singles.sort(key=lambda pair: -pair[1].value)  # a stable sort: ties as `in_order` has them
    (first, best), *others = singles
    chosen = [first]
    alone = best.value
    tries = [Try(added=first.name, to=(), before=alone, after=alone, low=0.0, high=0.0, kept=True)]
    tell(tries[0])
    for one, _ in others:
        found = scorer.scores([*chosen, one])
        change = verdict(best, found).main
        kept = change.low > 0 if keep == "win" else change.difference >= 0
        tries.append(_try(one, chosen, change, kept=kept))
        tell(tries[-1])
        if kept:
            chosen.append(one)
            best = found
    return chosen, tries


def _try(one: Ingredient, chosen: Sequence[Ingredient], change: Difference, *, kept: bool) -> Try:
    return Try(
        added=one.name,
        to=tuple(each.name for each in chosen),
        before=change.before,
        after=change.after,
        low=change.low,
        high=change.high,
        kept=kept,
    )


def to_json(tries: Sequence[Try], suite: Suite, keep: Keep) -> dict[str, Any]:
    """Return what the manifest says of a greedy choice."""
    return {
        "sets": suite.fingerprints(),
        "keep": keep,
        "tries": [asdict(step) for step in tries],
    }
