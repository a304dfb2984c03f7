"""Which shape a row of training data has, and the texts that it gives.

Recognised by the names of its columns:

- pairs and triplets: a query column and a positive column, perhaps `negative`, `negatives` or
  `negative_1`, `negative_2`, ..., perhaps `title` (the positive's). The names are ours
  (query, positive) and those of sentence-transformers' data sets (its "Dataset Overview":
  anchor/positive, question/answer, sentence1/sentence2, ...).
- FlagEmbedding: query, pos[], neg[] (its README, "Data format").
- Tevatron: query, positive_passages[], negative_passages[], each with text and title; those of
  Tevatron 2, which names documents by id, come joined (`gemb.datasets.tevatron`).
- DPR: question, positive_ctxs[], hard_negative_ctxs[], each with text and title (its README).
- all-nli: anchor, entailment, contradiction; SimCSE: sent0, sent1, hard_neg.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.examples import Text
from gemb.texts.records import has_visible

SCORES = ("score", "scores", "label", "labels", "similarity", "similarity_score")
ACCEPTED = (
    "query and positive (or anchor, question, sentence1 with positive, answer, sentence2, passage, "
    "document, response), perhaps negatives and title; FlagEmbedding's query, pos, neg; Tevatron's "
    "query, positive_passages, negative_passages, or query_text, positive_document_ids; DPR's "
    "question, positive_ctxs; anchor, entailment, contradiction; a BEIR folder"
)
MOST_POSITIVES = 1 << 16  # of one query in one row


@dataclass(frozen=True)
class Form:
    """The names of columns by which one kind of rows is known."""

    maker: str  # as `Layout` has it
    queries: tuple[str, ...]  # the first name is chosen where others are there, too
    positives: tuple[str, ...]  # so here; the first name says that no score is to be obeyed
    negative: str = ""
    title: str = ""


FORMS = (  # the first that fits counts
    Form("Tevatron", ("query",), ("positive_passages",), "negative_passages"),
    Form("FlagEmbedding", ("query",), ("pos",), "neg"),
    Form("DPR", ("question", "query"), ("positive_ctxs",), "hard_negative_ctxs"),
    Form(
        "",
        ("query", "anchor", "question", "sentence1", "sent0"),
        (
            "positive",
            "answer",
            "sentence2",
            "passage",
            "document",
            "response",
            "entailment",
            "sent1",
        ),
        title="title",
    ),
)

# By one of these the first row of a table is known for names of columns, not for texts.
NAMES_OF_COLUMNS = frozenset(
    (
        *(name for form in FORMS for name in (*form.queries, *form.positives, form.negative)),
        *SCORES,
        *("text", "contents", "title", "id", "_id", "docid", "negative", "negatives"),
    )
) - {""}

Row = tuple[str, list[Text], list[Text]]  # query, positives, negatives

_NEGATIVE = re.compile(r"(?:negatives?|contradictions?|hard_neg(?:ative)?s?)(?:_(\d+))?")


class BadRow(ValueError):
    """A row cannot be used; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Which columns are what."""

    maker: str  # FlagEmbedding, Tevatron, or nothing: pairs
    query: str
    positive: str
    negative: str = ""  # empty: every column that is named as one
    title: str = ""

    def negatives(self, columns: Collection[str]) -> tuple[str, ...]:
        """Return the columns of hard negatives, in their order."""
        return (self.negative,) if self.negative else _negative_columns(tuple(columns))

    def row(self, values: Mapping[str, object]) -> Row:
        """Return the texts of a row.

        Raises:
            BadRow: one is absent, empty, or no text.
        """
        query = values.get(self.query)
        if not isinstance(query, str):
            raise BadRow(_fault(self.query, query, values))
        if not has_visible(query):
            raise BadRow(f"'{self.query}' is empty")
        title = values.get(self.title) if self.title else None
        if title is not None and not isinstance(title, str):
            raise BadRow(_fault(self.title, title, values))
        positives = _passages(self.positive, values, title or None)
        if not positives:
            raise BadRow(_fault(self.positive, values.get(self.positive), values))
        if len(positives) > MOST_POSITIVES:
            raise BadRow(f"{len(positives)} positives; a row may have {MOST_POSITIVES}")
        negatives: list[Text] = []
        for column in self.negatives(values):
            negatives += _passages(column, values, None)
        return query, positives, negatives

    def words(self, columns: Collection[str]) -> str:
        """Return what was recognised among these columns, and what is not used."""
        used = [self.query, self.positive, *self.negatives(columns), self.title]
        used = [column for column in dict.fromkeys(used) if column in columns]
        rest = sorted(visible(column, 40) for column in columns if column and column not in used)
        lists = ["pos", "neg", "negatives", "positive_passages", "negative_passages"]
        lists += ["positive_ctxs", "hard_negative_ctxs"]
        named = ", ".join(column + "[]" * (column in lists) for column in used)
        left = f"; not used: {', '.join(rest[:8])}{', ...' * (len(rest) > 8)}" if rest else ""
        return f"({named}){left}"


def recognise(columns: Collection[str], where: str) -> Layout:
    """Return the layout of rows with these columns.

    Raises:
        UsageError: none fits, two would, or a score says that not every pair is a positive one.
    """
    layout = known(columns, where)
    if layout is None:
        names = ", ".join(visible(column, 40) for column in list(columns)[:12]) or "none"
        raise UsageError(
            f"{where}: no training data by its columns ({names}); accepted: {ACCEPTED}"
        )
    return layout


def known(columns: Collection[str], where: str) -> Layout | None:
    """Return the layout of rows with these columns, None where none fits.

    Raises:
        UsageError: two fit, or a score says that not every pair is a positive one.
    """
    for form in FORMS:
        query = _chosen(form.queries, columns, "query", where)
        positive = _chosen(form.positives, columns, "positive", where) if query else ""
        if not query or not positive:
            continue
        scores = [name for name in columns if name.strip().lower() in SCORES]
        if scores and positive != form.positives[0]:
            raise UsageError(
                f"{where}: its column '{scores[0]}' grades the pairs, and training takes positive "
                "pairs alone; keep the rows with a high grade, and leave the column out"
            )
        return Layout(form.maker, query, positive, form.negative, form.title)
    return None


def _chosen(names: Sequence[str], columns: Collection[str], what: str, where: str) -> str:
    """Return which of the names a column has, empty: none; beside the first one others may be."""
    present = [name for name in names if name in columns]
    if len(present) > 1 and present[0] != names[0]:
        raise UsageError(f"{where}: which is the {what}, {' or '.join(present)}? Name one '{what}'")
    return present[0] if present else ""


@lru_cache(maxsize=256)
def _negative_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    matches = [match for name in columns if (match := _NEGATIVE.fullmatch(name))]
    return tuple(match[0] for match in sorted(matches, key=lambda match: int(match[1] or 0)))


def _passages(column: str, values: Mapping[str, object], title: str | None) -> list[Text]:
    """Return the texts of a column: one, or a list of them; each a text or {text, title}."""
    value = values.get(column)
    if value is None:
        return []
    if isinstance(value, str):
        _check(column, value, title)
        return [Text(value, title)]
    texts: list[Text] = []
    for passage in value if isinstance(value, list) else [value]:
        text, own_title = passage, title
        if isinstance(passage, dict):
            text, own_title = passage.get("text"), passage.get("title")
        if not isinstance(text, str) or not isinstance(own_title, str | None):
            raise BadRow(f"'{column}' is {_kind(passage)}, not text")
        _check(column, text, own_title)
        texts.append(Text(text, own_title or None))
    return texts


def _check(column: str, text: str, title: str | None) -> None:
    """Refuse a passage of nothing; BEIR's sets have thousands of titles without a text."""
    if not has_visible(text) and not has_visible(title or ""):
        raise BadRow(f"'{column}' is empty" if column else "a text is empty")


def _fault(column: str, value: object, values: Mapping[str, object]) -> str:
    if column not in values:
        has = ", ".join(visible(str(name), 40) for name in list(values)[:6]) or "none"
        return f"no '{column}'; it has: {has}"
    if isinstance(value, str | list) or value is None:
        return f"'{column}' is empty"
    return f"'{column}' is {_kind(value)}, not text"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, dict):
        return "an object without a text"
    if isinstance(value, bytes):
        return "bytes"
    return "a list" if isinstance(value, list) else f"of the type {type(value).__name__}"
