"""Which words stand around the texts of a source of training data."""

from __future__ import annotations

from collections.abc import Mapping

from gemb.models.prompts import Prompt, custom, for_task
from gemb.recipe.schema import Source

# A recipe's task -> gemb's tasks of the query and of the positive (with its negatives). Source: the
# model card of google/embeddinggemma-300m: asymmetric tasks search documents, the others compare
# like with like.
SIDES: dict[str, tuple[str, str]] = {
    "retrieval": ("query", "document"),
    "code": ("code", "document"),
    "qa": ("qa", "document"),
    "fact": ("fact", "document"),
    "similarity": ("similarity", "similarity"),
    "classification": ("classification", "classification"),
    "clustering": ("clustering", "clustering"),
}


def prompts_of(source: Source, dictionary: Mapping[str, str]) -> tuple[Prompt, Prompt]:
    """Return the prompts of the query, and of the positive and the negatives.

    Args:
        source: its `prompts` replace the words of its `task`.
        dictionary: the model's own prompts by their names; empty where it has none.

    Raises:
        UsageError: a template has no `{text}`.
    """
    query, positive = SIDES[source.task]
    return (
        _prompt("query", source.prompts.query, query, dictionary),
        _prompt("positive", source.prompts.positive, positive, dictionary),
    )


def _prompt(side: str, template: str, task: str, dictionary: Mapping[str, str]) -> Prompt:
    if template:
        return custom(template, what=f"prompts.{side}")
    return for_task(task, dictionary)
