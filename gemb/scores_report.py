"""What `gemb eval` says of a model's scores: a table or JSON, and notes beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gemb.io.notes import note, warn

if TYPE_CHECKING:
    from gemb.evaluation.scores import Row, Scores
    from gemb.evaluation.verdict import Verdict


def in_words(scores: Scores, found: Verdict | None, *, every_metric: bool) -> str:
    """Return a line for each set and type: the metric, its units, and a column for each width.

    Args:
        scores: of the model.
        found: what became of them since another model's; it is the last line. None: nothing is
            compared.
        every_metric: of a set; else the main one alone.
    """
    dims = list(dict.fromkeys(size.dim for size in scores.sizes))
    types = list(dict.fromkeys(size.dtype for size in scores.sizes))
    units = {one.name: str(one.units) for one in scores.sets}
    main = {(one.name, one.metric) for one in scores.sets}
    shown = [row for row in scores.rows if every_metric or (row.set, row.metric) in main]
    if len(scores.sets) > 1:
        shown += scores.means()
    lines: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in shown:
        lines.setdefault((row.set, row.metric, row.dtype), {})[row.dim] = row
    head = ["set", "metric", "n", *(["dtype"] if len(types) > 1 else []), *map(str, dims)]
    table = [head]
    for (name, metric, dtype), cells in lines.items():
        kind = [dtype] if len(types) > 1 else []
        table.append([name, metric, units.get(name, ""), *kind, *map(_cell, cells.values())])
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join(text + ([found.line] if found else []))


def _cell(row: Row) -> str:
    return f"{row.value:.3f} ±{(row.high - row.low) / 2:.3f}"


def in_json(scores: Scores, found: Verdict | None) -> str:
    """Return all of it as one JSON document."""
    document = {**scores.to_json(), **({"verdict": found.to_json()} if found else {})}
    return json.dumps(document, ensure_ascii=False, indent=2)


def tell_notes(scores: Scores, longest: int, *, quiet: bool) -> None:
    """Say on stderr what is not in the table: prompts, texts that were cut, what is left out.

    Args:
        scores: of the model.
        longest: tokens of a text that the model takes.
        quiet: warnings alone.
    """
    if scores.cut:
        warn(f"{scores.cut} of {scores.texts} texts were cut at {longest} tokens")
    for one in scores.sets:
        if one.left_out:
            warn(f"{one.name}: {one.left_out}; they take no part")
    if quiet:
        return
    users: dict[tuple[str, ...], list[str]] = {}
    for one in scores.sets:
        users.setdefault(tuple(dict.fromkeys(one.prompts)), []).append(one.name)
    for prompts, names in users.items():
        words = " and ".join(f"'{prompt}'" for prompt in prompts)
        note(f"prompts of {', '.join(names)}: {words}")
