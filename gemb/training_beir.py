"""A BEIR folder as training data: every judgement above 0 is a pair.

Layout: corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/train.tsv (`gemb.beir`).
Of the corpus only the places of relevant documents are held: memory grows with the judgements.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from gemb.beir import find_judgements, judgements, text_id
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.training_files import RawRow, json_lines, shown

Places = dict[str, tuple[int, int]]  # id -> offset and size of its line; of size 0: not found


@dataclass
class BeirFolder:
    """A folder of queries, documents and judgements."""

    path: Path
    qrels: Path
    note: str = ""
    in_place: bool = False

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"BEIR folder with {shown(self.qrels.relative_to(self.path))}"

    @property
    def label(self) -> str:
        """The file whose lines are the rows, in messages."""
        return shown(Path(self.path.resolve().name) / self.qrels.relative_to(self.path))

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return self.path / "corpus.jsonl", self.path / "queries.jsonl", self.qrels

    def rows(self) -> Iterator[RawRow]:
        """Yield a row for each judgement above 0, numbered as the lines of the judgements."""
        queries: Places = {}
        documents: Places = {}
        for one in judgements(self.qrels):
            if one.grade > 0:
                queries[one.query] = documents[one.document] = (0, 0)
        corpus, questions, _ = self.files
        _find(questions, queries)
        _find(corpus, documents)
        with questions.open("rb") as query_file, corpus.open("rb") as document_file:
            for number, query, document, grade, reason in judgements(self.qrels):
                if not reason and grade <= 0:
                    continue
                if not queries.get(query, (0, 0))[1]:
                    reason = reason or f"query '{visible(query, 40)}' is not in queries.jsonl"
                elif not documents.get(document, (0, 0))[1]:
                    reason = f"document '{visible(document, 40)}' is not in corpus.jsonl"
                if reason:
                    yield RawRow(number, None, reason)
                    continue
                question = _read(query_file.fileno(), queries[query])
                answer = _read(document_file.fileno(), documents[document])
                values = {"query": question.get("text"), "positive": answer.get("text")}
                yield RawRow(number, {**values, "title": answer.get("title")})


def open_folder(path: Path) -> BeirFolder:
    """Return the BEIR folder at a path.

    Raises:
        UsageError: it is none, or has several files of judgements and none for training.
    """
    absent = [name for name in ("corpus.jsonl", "queries.jsonl") if not (path / name).is_file()]
    if absent:
        raise UsageError(
            f"{shown(path)} is no BEIR folder: it has no {' and no '.join(absent)}; "
            "name a file, or a source for each file of the folder"
        )
    return BeirFolder(path, find_judgements(path, ("qrels/train.tsv", "qrels.tsv")))


def _find(path: Path, places: Places) -> None:
    """Set the places of the ids that are in a file; of an id that stands there twice, the first."""
    with path.open("rb", buffering=0) as file:
        for row in json_lines(file.fileno()):
            if row.values is None:
                continue  # if it was wanted, it is missed by its id
            key = text_id(row.values)
            if key is not None and places.get(key) == (0, 0):
                places[key] = (row.offset, row.size)


def _read(fd: int, place: tuple[int, int]) -> dict[str, object]:
    offset, size = place
    values: dict[str, object] = orjson.loads(os.pread(fd, size, offset))
    return values
