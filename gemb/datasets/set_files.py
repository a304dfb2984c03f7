"""The files of evaluation sets: BEIR folders, tables of sentence pairs, labelled lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemb.datasets.beir import COLUMNS, find_judgements, judgements
from gemb.datasets.columns import SCORES
from gemb.datasets.files import read_llama_index
from gemb.datasets.identified import text_id, text_of
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.models.config import read_json_value
from gemb.texts.contents import shown
from gemb.texts.examples import Text
from gemb.texts.inputs import format_by_name
from gemb.texts.lines import file_lines, text_lines
from gemb.texts.records import as_json, has_visible, unfit
from gemb.texts.tables import Cells, column_name, json_value, refuse_twice, table_rows

KINDS = ("retrieval", "rerank")
QRELS = ("qrels.tsv", *(f"qrels/{part}.tsv" for part in ("test", "dev", "val", "validation")))
SENTENCES = ("sentence1", "sentence2")
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


def read_retrieval(folder: Path, encoding: str = "") -> RetrievalFiles:
    """Return what a BEIR folder holds.

    Raises:
        UsageError: a file of it is absent, empty or wrong, or no judgement names ids that exist.
    """
    documents = _read_texts(folder / "corpus.jsonl", encoding, may_be_empty=True)
    queries = _read_texts(folder / "queries.jsonl", encoding, may_be_empty=False)
    qrels = find_judgements(folder, QRELS)
    judged: dict[str, dict[str, float]] = {}
    unknown = total = 0
    for judgement in judgements(qrels, encoding):
        if judgement.reason:
            raise UsageError(f"{qrels}, line {judgement.number}: {judgement.reason}")
        total += 1
        if judgement.query in queries and judgement.document in documents:
            judged.setdefault(judgement.query, {})[judgement.document] = judgement.grade
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
    if not path.exists():
        return {}
    settings = read_json_value(path)
    choices: dict[str, tuple[str, ...]] = {"kind": KINDS, "task": tuple(TASKS)}
    for key, value in settings.items() if isinstance(settings, dict) else [("", settings)]:
        if key not in choices:
            raise UsageError(f"{path}: unknown key {key!r}; keys: {', '.join(choices)}")
        if value not in choices[key]:
            raise UsageError(f"{path}: {key} is {value!r}; one of {', '.join(choices[key])}")
    return dict(settings)


def _read_texts(path: Path, encoding: str, *, may_be_empty: bool) -> dict[str, Text]:
    """Return the texts of a corpus or of queries by id; an empty text is no query."""
    texts: dict[str, Text] = {}
    for number, row in _json_lines(path, encoding):
        where = f"{path}, line {number}"
        key, text, title = text_id(row), text_of(row), row.get("title")
        if key is None:
            raise UsageError(f"{where}: no '_id'; it has: {', '.join(row) or 'nothing'}")
        if not isinstance(text, str) or not (may_be_empty or has_visible(text)):
            raise UsageError(f"{where}: no 'text'; it has: {', '.join(row)}")
        if key in texts:
            raise UsageError(f"{where}: the id {key!r} stands there twice")
        texts[key] = Text(text, title if isinstance(title, str) and title.strip() else None)
    if not texts:
        raise UsageError(f"{path}: it is empty")
    return texts


def read_llama_index_set(path: Path, encoding: str = "") -> RetrievalFiles:
    """Return the queries, documents and judgements of a file of LlamaIndex.

    Raises:
        UsageError: it is none, or no judgement names ids that exist.
    """
    texts = read_llama_index(path, encoding)
    for key, text in texts.queries.items():
        if not has_visible(text):
            raise UsageError(f"{shown(path)}: the query '{visible(key, 40)}' is empty")
    pairs = dict.fromkeys(
        (query, key) for query, keys in texts.relevant_docs.items() for key in keys
    )
    judged: dict[str, dict[str, float]] = {}
    for query, document in pairs:
        if query in texts.queries and document in texts.corpus:
            judged.setdefault(query, {})[document] = 1.0
    if not judged:
        raise UsageError(f"{path}: not one of its {len(pairs)} judgements names ids that are there")
    return RetrievalFiles(
        qrels=path,
        queries={key: Text(text) for key, text in texts.queries.items()},
        documents={
            key: Text(texts.corpus[key])
            for key in sorted(texts.corpus, key=lambda key: key.encode(), reverse=True)
        },
        judged=judged,
        unknown=len(pairs) - sum(map(len, judged.values())),
        kind="",
        task="query",
    )


def has_sentence_pairs(path: Path, encoding: str = "") -> bool:
    """Return whether the first row of a table or of JSON lines has two sentences and a score.

    Raises:
        UsageError: the file is no text.
    """
    first = next((row for row in _table_cells(path, encoding) if row is not None), None)
    names = _names(first.cells) if first else []
    return {"sentence1", "sentence2"} <= set(names) and any(name in names for name in SCORES)


def _table_cells(path: Path, encoding: str) -> Iterator[Cells | None]:
    """Yield the rows of a table; those of JSON lines with the names of the first one's fields."""
    form = format_by_name(path)
    if form != "jsonl":
        yield from table_rows(file_lines(path, encoding), form, shown(path))
        return
    names: list[str] = []
    for number, row in _json_lines(path, encoding):
        if not names:
            names = list(row)
            yield Cells(number, names, None, 0)
        yield Cells(
            number, [_as_cell(name, row.get(name), path, number) for name in names], None, 0
        )


def _as_cell(name: str, value: object, path: Path, number: int) -> str:
    """Return a field of JSON lines as a cell.

    Raises:
        UsageError: it is a sentence, and no text.
    """
    if isinstance(value, str):
        return value
    if column_name(name).lower() in SENTENCES and value is not None:
        raise UsageError(f"{shown(path)}, line {number}: '{visible(name, 40)}' is no text")
    return "" if value is None else as_json(value)


def read_table(path: Path, encoding: str = "") -> Table:
    """Return the sentence pairs of a table: with a header and scores, or two columns alone.

    The table is TSV, whose cells are what stands between tabs, quotes and all, or CSV, or JSON
    lines.

    Raises:
        UsageError: the columns are not these, or a score is no number.
    """
    rows = (_checked(row, path) for row in _table_cells(path, encoding) if row is not None)
    first = next(rows, None)
    header = first.cells if first else [""]
    names = _names(header)
    refuse_twice([name for name in names if name in SENTENCES], shown(path))
    left, right = [], []
    scores: list[float] = []
    if len(header) == 2:  # bitext: the header may be absent
        score = None
        columns = (0, 1)
        if sorted(names) == ["sentence1", "sentence2"]:
            columns = (names.index("sentence1"), names.index("sentence2"))
        else:
            left, right = [header[0]], [header[1]]
    else:
        score = next((names.index(name) for name in SCORES if name in names), None)
        if score is None or "sentence1" not in names or "sentence2" not in names:
            is_tsv = path.suffix == ".tsv"
            between, sign = (", with tabs between", "\t") if is_tsv else ("", ",")
            raise UsageError(
                f"{path}: its first line must name the columns sentence1, sentence2 and score"
                f"{between}; it is {sign.join(header)[:60]!r}"
            )
        columns = (names.index("sentence1"), names.index("sentence2"))
    for row in rows:
        if len(row.cells) != len(header):
            raise UsageError(
                f"{path}, line {row.number}: {len(row.cells)} columns; "
                f"the first line has {len(header)}"
            )
        for texts, column in zip((left, right), columns, strict=True):
            if not has_visible(row.cells[column]):
                what = f"'{names[column]}'" if score is not None else f"column {column + 1}"
                raise UsageError(f"{shown(path)}, line {row.number}: {what} is empty")
            texts.append(row.cells[column])
        if score is not None:
            scores.append(_number(row.cells[score], path, row.number))
    if len(left) < 2:
        raise UsageError(f"{path}: {len(left)} pairs; at least two are needed")
    return Table(left, right, None if score is None else scores)


def _names(cells: Sequence[str]) -> list[str]:
    return [column_name(cell).lower() for cell in cells]


def _checked(row: Cells, path: Path) -> Cells:
    error = row.error or unfit("-", *row.cells)
    if error:
        raise UsageError(f"{path}, line {row.number}: {error.message}")
    return row


def read_labelled(path: Path, encoding: str = "") -> list[tuple[str, str]]:
    """Return text and label of each line.

    Raises:
        UsageError: a line has not both, or there is none.
    """
    rows = []
    for number, row in _json_lines(path, encoding):
        text, label = row.get("text"), row.get("label")
        if "text" not in row or "label" not in row:
            raise UsageError(
                f"{path}, line {number}: no 'text' and 'label'; it has: {', '.join(row)}"
            )
        if not isinstance(text, str) or not isinstance(label, str | int):
            name, kind = (
                ("label", "text or whole number") if isinstance(text, str) else ("text",) * 2
            )
            raise UsageError(f"{path}, line {number}: '{name}' is no {kind}")
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


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in text_lines(path, encoding):
        row, error = json_value(line.encode())
        if error:
            raise UsageError(f"{path}, line {number}: no valid JSON: {error.message}")
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: no JSON object")
        yield number, row
