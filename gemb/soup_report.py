"""What `gemb soup` prints of a soup that was written: a line, the scores, the verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from gemb.models.checkpoint import Checkpoint
from gemb.weights.ingredients import Ingredient
from gemb.weights.soup import shares
from gemb.weights.soup_scores import Comparison, Try


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
