"""What training and evaluation share of a BEIR folder (arXiv 2104.08663): its judgements and ids.

A line of the judgements is query-id, corpus-id and score, with tabs between; the first may name
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.lines import BOM, Oversize, blocks, split

COLUMNS = "query-id, corpus-id, score"
SCORE_NAMES = ("score", "relevance", "label", "grade")


class Judgement(NamedTuple):
    """A line: how well a document answers a query, or the reason why it cannot be used."""

    number: int  # of the line, from 1
    query: str
    document: str
    grade: float
    reason: str = ""


def judgements(path: Path) -> Iterator[Judgement]:
    """Yield every line that is not blank, wrong ones too.

    A pair that was judged before with another grade is wrong; the same again is not.
    """
    known: dict[int, float] = {}  # hash of a pair -> its grade
    with path.open("rb", buffering=0) as file:
        for number, line in enumerate(split(blocks(file.fileno(), live=False), b"\n"), 1):
            one = _judgement(number, line)
            if one is None:
                continue
            pair = hash((one.query, one.document))
            before = one.grade if one.reason else known.setdefault(pair, one.grade)
            if before != one.grade:
                words = (
                    f"query '{visible(one.query, 40)}' and document '{visible(one.document, 40)}'"
                )
                one = one._replace(
                    reason=f"{words} have grade {one.grade:g} here, and {before:g} in a line before"
                )
            yield one


def _judgement(number: int, line: bytes | Oversize | None) -> Judgement | None:
    """Return what a line says, None where it is blank or names the columns."""
    if not isinstance(line, bytes):
        return _wrong(number, "the line is too long")
    try:
        text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r")
    except UnicodeDecodeError:
        return _wrong(number, "no valid UTF-8")
    if not text.strip():
        return None
    cells = text.split("\t")
    if len(cells) != 3:
        return _wrong(number, f"{len(cells)} columns, not {COLUMNS} with tabs between")
    if number == 1 and cells[2].strip().lower() in SCORE_NAMES:
        return None
    try:
        grade = float(cells[2])
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        return _wrong(number, f"the score '{visible(cells[2], 40)}' is no number")
    return Judgement(number, cells[0], cells[1], grade)


def _wrong(number: int, reason: str) -> Judgement:
    return Judgement(number, "", "", 0.0, reason)


def find_judgements(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of these files that a folder has, or the only one of its `qrels/`.

    Raises:
        UsageError: there is none, or several and none of these.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = sorted((folder / "qrels").glob("*.tsv"))
    if len(found) == 1:
        return found[0]
    others = ", ".join(visible(one.name, 40) for one in found)
    has = f"; its qrels/ has {others}" if found else ""
    raise UsageError(f"{visible(str(folder))} has no {' and no '.join(names[:2])}{has}")


def text_id(row: Mapping[str, object]) -> str | None:
    """Return the id of a line of corpus.jsonl or queries.jsonl, None where it has none."""
    key = row.get("_id", row.get("id"))
    return str(key) if isinstance(key, str | int) and not isinstance(key, bool) else None
