"""Rows that name their documents by id, as Tevatron 2 writes them.

A row is {query_text, positive_document_ids[], negative_document_ids[]}; the documents are lines of
a file of their own, {docid, title, text}. Source: `TrainDataset` of tevatron.retriever.dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemb.datasets.files import RawRow, TrainingFile
from gemb.datasets.identified import IdentifiedTexts, id_of
from gemb.errors import UsageError
from gemb.texts.contents import shown
from gemb.texts.tables import ParquetFile

QUERY, POSITIVES, NEGATIVES = "query_text", "positive_document_ids", "negative_document_ids"
CORPUS = "corpus.jsonl"  # beside the rows


def names_documents(file: TrainingFile) -> bool:
    """Return whether the first row of a file names its positives by id."""
    if file.kind == "parquet":
        with ParquetFile(file.path) as table:
            return POSITIVES in table.columns
    if file.kind != "jsonl":
        return False
    first = next(file.rows(), None)
    return first is not None and POSITIVES in (first.values or {})


@dataclass
class TevatronFile:
    """A file of such rows, and that of their documents."""

    rows_file: TrainingFile
    corpus: Path
    note: str = ""
    in_place: bool = False

    def __post_init__(self) -> None:
        """Look for the corpus.

        Raises:
            UsageError: it is not there.
        """
        if not self.corpus.is_file():
            raise UsageError(
                f"{shown(self.path)}: its rows name documents by id, and there is no "
                f"{shown(self.corpus)}; put the corpus there (JSON lines with docid, title, text), "
                "or name it in the recipe: data.0.corpus"
            )

    @property
    def path(self) -> Path:
        """The file of the rows."""
        return self.rows_file.path

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"Tevatron 2 {self.rows_file.name} with {shown(self.corpus.name)}"

    @property
    def label(self) -> str:
        """The file of the rows, in messages."""
        return self.rows_file.label

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return self.path, self.corpus

    def rows(self) -> Iterator[RawRow]:
        """Yield each row with the texts of its documents."""
        named: set[str] = set()
        for row in self.rows_file.rows():
            values = row.values or {}
            named.update(_ids(values, POSITIVES) or (), _ids(values, NEGATIVES) or ())
        with IdentifiedTexts(self.corpus, named, self.rows_file.written) as documents:
            del named
            for row in self.rows_file.rows():
                yield row if row.values is None else self._joined(row.number, row.values, documents)

    def _joined(
        self, number: int, values: Mapping[str, object], documents: IdentifiedTexts
    ) -> RawRow:
        texts: dict[str, object] = {"query": values.get(QUERY)}
        for side, column in (("positive", POSITIVES), ("negative", NEGATIVES)):
            ids = _ids(values, column)
            if ids is None:
                return RawRow(number, None, f"'{column}' is no list of ids")
            for key in ids:
                if key not in documents:
                    return RawRow(number, None, f"document {documents.absent(key)}")
            texts[side] = [documents[key] for key in ids]
        return RawRow(number, texts)


def _ids(values: Mapping[str, object], column: str) -> list[str] | None:
    """Return the ids of a column, none where it is absent; None: it is no list of ids."""
    value = values.get(column)
    keys = (
        [id_of(key) for key in value] if isinstance(value, list) else [None] * (value is not None)
    )
    return None if None in keys else [key for key in keys if key is not None]
