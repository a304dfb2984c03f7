"""A BEIR folder (arXiv 2104.08663): its judgements and ids, and its pairs as training data.

The folder has corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and judgements; Pyserini's
names, id or docid and contents, are taken, too. A line of judgements is query-id, corpus-id and
score, with tabs between, and the first may name them; or, as TREC writes it, query, iteration,
document and grade, with tabs or blanks between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gemb.datasets.files import AS_USUAL, RawRow, Written
from gemb.datasets.identified import IdentifiedTexts
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.contents import shown
from gemb.texts.lines import Line, file_lines
from gemb.texts.tables import column_name

COLUMNS = "query-id, corpus-id, score"
SCORE_NAMES = ("score", "relevance", "label", "grade", "rel", "qrel")
_DOCUMENT_NAMES = re.compile(r"(corpus|doc|document|passage|p)[ _-]?(id|no)?$")
_QUERY_NAMES = re.compile(r"(query|question|topic|q)[ _-]?(id|no)?$")


class Judgement(NamedTuple):
    """A line: how well a document answers a query, or the reason why it cannot be used."""

    number: int  # of the line, from 1
    query: str
    document: str
    grade: float
    reason: str = ""


def judgements(path: Path, encoding: str = "") -> Iterator[Judgement]:
    """Yield every line that is not blank, wrong ones too.

    A pair that was judged before with another grade is wrong; the same again is not.

    Raises:
        UsageError: the columns are named, and in another order.
    """
    grades: dict[int, float] = {}  # of a pair, by its hash
    is_first = True
    for line in file_lines(path, encoding):
        judgement = _judgement(line, path, is_first=is_first)
        is_first = is_first and not line.data.strip()
        if judgement is None:
            continue
        _, query, document, grade, reason = judgement
        before = grade if reason else grades.setdefault(hash((query, document)), grade)
        if before != grade:
            reason = (
                f"query '{visible(query, 40)}' and document '{visible(document, 40)}' have grade "
                f"{grade:g} here, and {before:g} in a line before"
            )
            judgement = judgement._replace(reason=reason)
        yield judgement


def _judgement(line: Line, path: Path, *, is_first: bool) -> Judgement | None:
    """Return what a line says, None where it is blank or, the first one, names the columns."""
    number = line.number
    text, error = line.text()
    if error:
        return _wrong(number, error.message)
    if not text.strip():
        return None
    cells = text.split("\t") if "\t" in text else text.split()
    if len(cells) == 4:  # TREC: the second says nothing
        del cells[1]
    if len(cells) != 3:
        return _wrong(
            number,
            f"{len(cells)} columns, not {COLUMNS} with tabs between, or TREC's four",
        )
    query, document, score = (cell.strip(" ") for cell in cells)
    names = [column_name(cell.strip('"')).lower() for cell in (query, document, score)]
    if is_first and names[2] in SCORE_NAMES:
        if _DOCUMENT_NAMES.match(names[0]) or _QUERY_NAMES.match(names[1]):
            order = ", ".join(visible(name, 40) for name in names)
            raise UsageError(f"{shown(path)}: its columns are {order}; they must be {COLUMNS}")
        return None
    try:
        grade = float(score)
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        return _wrong(number, f"the score '{visible(score, 40)}' is no number")
    return Judgement(number, query, document, grade)


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
    files = sorted((folder / "qrels").glob("*.tsv"))
    if len(files) == 1:
        return files[0]
    others = ", ".join(visible(file.name, 40) for file in files)
    has = f"; its qrels/ has {others}" if files else ""
    raise UsageError(f"{visible(str(folder))} has no {' and no '.join(names[:2])}{has}")


@dataclass
class BeirFolder:
    """A folder of queries, documents and judgements; every judgement above 0 is a row.

    Of the corpus only the places of relevant documents are held: memory grows with the judgements.
    """

    path: Path
    qrels: Path
    written: Written = AS_USUAL  # how the texts of its files are
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
        relevant = {
            (line.query, line.document)
            for line in judgements(self.qrels, self.written.encoding)
            if line.grade > 0
        }
        corpus, questions, _ = self.files
        with (
            IdentifiedTexts(questions, {query for query, _ in relevant}, self.written) as queries,
            IdentifiedTexts(corpus, {text for _, text in relevant}, self.written) as documents,
        ):
            del relevant
            for number, query, document, grade, reason in judgements(
                self.qrels, self.written.encoding
            ):
                if not reason and grade <= 0:
                    continue
                if not reason and query not in queries:
                    reason = f"query {queries.absent(query)}"
                elif not reason and document not in documents:
                    reason = f"document {documents.absent(document)}"
                if reason:
                    yield RawRow(number, None, reason)
                    continue
                answer = documents[document]
                texts = {"query": queries[query]["text"], "positive": answer["text"]}
                yield RawRow(number, {**texts, "title": answer["title"]})


def open_folder(path: Path, written: Written = AS_USUAL) -> BeirFolder:
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
    return BeirFolder(path, find_judgements(path, ("qrels/train.tsv", "qrels.tsv")), written)
