"""The files of evaluation sets: BEIR folders, tables of sentence pairs, labelled lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemb.datasets.beir import COLUMNS, find_judgements, judgements, text_id
from gemb.errors import UsageError
from gemb.texts.examples import Text
from gemb.texts.lines import text_lines
from gemb.texts.tables import json_value

KINDS = ("retrieval", "rerank")
QRELS = ("qrels.tsv", *(f"qrels/{part}.tsv" for part in ("test", "dev", "val", "validation")))
TASKS = {  # what set.json calls a task -> the prompt of the queries
    "retrieval": "query",
    "code": "code",
    "qa": "qa",
    "fact": "fact",
    "similarity": "similarity",
}


@dataclass(frozen=True, kw_only=True)
class RetrievalFiles:
    """A folder in the layout of BEIR."""

    qrels: Path
    queries: Mapping[str, Text]  # by id; those without judgements too
    documents: Mapping[str, Text]  # by id, in descending order of its bytes
    judged: Mapping[str, Mapping[str, float]]  # query id -> document id -> grade; ids that exist
    unknown: int  # judgements that name other ids
    kind: str  # of KINDS; empty: set.json does not say
    task: str  # of the queries, of `gemb.models.prompts.TASKS`


@dataclass(frozen=True)
class Table:
    """A table of sentence pairs."""

    left: list[str]
    right: list[str]
    scores: list[float] | None  # None: there is no third column


def read_retrieval(folder: Path) -> RetrievalFiles:
    """Return what a BEIR folder holds.

    Raises:
        UsageError: a file of it is absent, empty or wrong, or no judgement names ids that exist.
    """
    documents = _read_texts(folder / "corpus.jsonl", may_be_empty=True)
    queries = _read_texts(folder / "queries.jsonl", may_be_empty=False)
    qrels = find_judgements(folder, QRELS)
    judged: dict[str, dict[str, float]] = {}
    unknown = total = 0
    for one in judgements(qrels):
        if one.reason:
            raise UsageError(f"{qrels}, line {one.number}: {one.reason}")
        total += 1
        if one.query in queries and one.document in documents:
            judged.setdefault(one.query, {})[one.document] = one.grade
        else:
            unknown += 1
    if not total:
        raise UsageError(f"{qrels}: it judges nothing; its lines are {COLUMNS}")
    if not judged:
        raise UsageError(
            f"{qrels}: not one of its {total} judgements names ids of queries.jsonl and "
            "corpus.jsonl; do the files belong together?"
        )
    settings = _settings(folder / "set.json")
    return RetrievalFiles(
        qrels=qrels,
        queries=queries,
        documents=dict(sorted(documents.items(), key=lambda item: item[0].encode(), reverse=True)),
        judged=judged,
        unknown=unknown,
        kind=settings.get("kind", ""),
        task=TASKS[settings.get("task", "retrieval")],
    )


def _settings(path: Path) -> dict[str, str]:
    """Return what set.json says; nothing where there is none."""
    import orjson

    if not path.exists():
        return {}
    try:
        settings = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: no valid JSON: {error}") from None
    choices: dict[str, tuple[str, ...]] = {"kind": KINDS, "task": tuple(TASKS)}
    for key, value in settings.items() if isinstance(settings, dict) else [("", settings)]:
        if key not in choices:
            raise UsageError(f"{path}: unknown key {key!r}; keys: {', '.join(choices)}")
        if value not in choices[key]:
            raise UsageError(f"{path}: {key} is {value!r}; one of {', '.join(choices[key])}")
    return dict(settings)


def _read_texts(path: Path, *, may_be_empty: bool) -> dict[str, Text]:
    """Return the texts of a corpus or of queries by id; an empty text is no query."""
    found: dict[str, Text] = {}
    for number, row in _json_lines(path):
        where = f"{path}, line {number}"
        key, text, title = text_id(row), row.get("text"), row.get("title")
        if key is None:
            raise UsageError(f"{where}: no '_id'; it has: {', '.join(row) or 'nothing'}")
        if not isinstance(text, str) or not (may_be_empty or text.strip()):
            raise UsageError(f"{where}: no 'text'; it has: {', '.join(row)}")
        if key in found:
            raise UsageError(f"{where}: the id {key!r} stands there twice")
        found[key] = Text(text, title if isinstance(title, str) and title.strip() else None)
    if not found:
        raise UsageError(f"{path}: it is empty")
    return found


def read_table(path: Path) -> Table:
    """Return the sentence pairs of a table: with a header and scores, or two columns alone.

    Cells are what stands between tabs, quotes and all.

    Raises:
        UsageError: the columns are not these, or a score is no number.
    """
    lines = text_lines(path)
    _, first = next(lines, (1, ""))
    header = first.split("\t")
    names = [name.strip().lower() for name in header]
    left, right = [], []
    scores: list[float] = []
    if len(header) == 2:  # bitext: the header may be absent
        score = None
        columns = (0, 1)
        if names != ["sentence1", "sentence2"]:
            left, right = [header[0]], [header[1]]
    else:
        score = next((names.index(name) for name in ("score", "label") if name in names), None)
        if score is None or "sentence1" not in names or "sentence2" not in names:
            raise UsageError(
                f"{path}: its first line must name the columns sentence1, sentence2 and score, "
                f"with tabs between; it is {first[:60]!r}"
            )
        columns = (names.index("sentence1"), names.index("sentence2"))
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UsageError(
                f"{path}, line {number}: {len(cells)} columns; the first line has {len(header)}"
            )
        left.append(cells[columns[0]])
        right.append(cells[columns[1]])
        if score is not None:
            scores.append(_number(cells[score], path, number))
    if len(left) < 2:
        raise UsageError(f"{path}: {len(left)} pairs; at least two are needed")
    return Table(left, right, None if score is None else scores)


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Return text and label of each line.

    Raises:
        UsageError: a line has not both, or there is none.
    """
    rows = []
    for number, row in _json_lines(path):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise UsageError(
                f"{path}, line {number}: no 'text' and 'label'; it has: {', '.join(row)}"
            )
        rows.append((text, str(label)))
    if not rows:
        raise UsageError(f"{path}: it is empty")
    return rows


def _number(cell: str, path: Path, line: int) -> float:
    import math

    try:
        value = float(cell)
        if not math.isfinite(value):
            raise ValueError
    except ValueError:
        raise UsageError(f"{path}, line {line}: the score {cell[:40]!r} is no number") from None
    return value


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines(path):
        row, error = json_value(line.encode())
        if error:
            raise UsageError(f"{path}, line {number}: no valid JSON: {error.message}")
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: no JSON object")
        yield number, row
