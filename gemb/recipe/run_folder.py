"""The folder of a training run: its files, and whether a run may write into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.io import locks
from gemb.io.atomic import is_unused, new_file

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe

# What may differ between a run and its continuation: it changes no number of the model.
FREE = {
    "eval",
    "checkpoint",
    "batch.micro_tokens",
    "run.log_every",
    "run.workers",
    "run.activation_checkpointing",
    "run.shard",
    "mixtures.trials",
    "mixtures.best",
}


@dataclass(frozen=True)
class RunFolder:
    """The names of its files."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe, every key of it."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, as steps end."""
        return self.path / "metrics.jsonl"

    @property
    def preflight(self) -> Path:
        """What the run found in its data and predicted, before the first step."""
        return self.path / "preflight.json"

    @property
    def overlap(self) -> Path:
        """The training rows that are in the evaluation set, if there are any."""
        return self.path / "overlap.tsv"

    @property
    def start(self) -> Path:
        """The model to start from, if one was cut or unpacked for the run."""
        return self.path / "start"

    @property
    def best(self) -> Path:
        """The model with the best evaluation."""
        return self.path / "best"

    @property
    def model(self) -> Path:
        """The final model; it is there when the run has ended."""
        return self.path / "model"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a later run can resume from this folder."""
        return any(self.path.glob("checkpoints/step-*"))

    @property
    def mixtures(self) -> Path:
        """The trials of a search of mixtures."""
        return self.path / "mixtures.json"

    @property
    def similarities(self) -> Path:
        """Cosines of pairs, before and after training."""
        return self.path / "similarities.json"

    @property
    def verdict(self) -> Path:
        """Whether the scores rose or fell: absent without an evaluation."""
        return self.path / "verdict.json"

    def scores(self, when: str) -> Path:
        """Return the file of the scores; `when` is baseline or final."""
        return self.path / f"scores-{when}.json"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    @contextmanager
    def begun(self, recipe: Recipe, *, resumes: bool) -> Iterator[None]:
        """Make the folder and write the recipe, or check that a resumed run has the same recipe.

        While the context lasts, no other process trains in this folder.

        Raises:
            UsageError: the folder holds something else, a run with another recipe, or a run that
                another process has not ended.
        """
        from gemb.recipe.file import dump

        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; name a folder for the run")
        if self.path.is_dir() and not self.recipe.is_file() and not is_unused(self.path):
            raise UsageError(f"{self.path} is no run and not empty; name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.locked_run(self.path):
            is_begun = self.metrics.exists() or self.mixtures.exists()
            if is_begun and not resumes:
                raise UsageError(
                    f"{self.path} holds a run; --resume auto goes on with it, or name another"
                )
            has_work = self.model.is_dir() or self.has_checkpoint or self.mixtures.exists()
            if self.recipe.is_file() and has_work:
                self._check_same(recipe)
            with new_file(self.recipe) as part:
                part.write_text(dump(recipe), encoding="utf-8")
            yield

    def write_json(self, path: Path, value: object) -> None:
        """Write a JSON file of the run, whole or not at all."""
        with new_file(path) as part:
            text = json.dumps(value, ensure_ascii=False, indent=1)
            part.write_text(text + "\n", encoding="utf-8")

    def _check_same(self, recipe: Recipe) -> None:
        from gemb.recipe.file import load
        from gemb.recipe.keys import to_plain

        before, now = flat(to_plain(load(self.recipe))), flat(to_plain(recipe))
        free = FREE - {"eval"} if self.mixtures.exists() else FREE  # by it trials are compared
        for key in sorted(before.keys() | now.keys()):
            if key in free or key.partition(".")[0] in free:
                continue
            if before.get(key) != now.get(key):
                raise UsageError(
                    f"{self.path}: its run has {key}={before.get(key)}, not {now.get(key)}; "
                    "resume with the same recipe, or name another folder"
                )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Return the leaves of nested dicts and lists by dotted key."""
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    else:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in items:
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
