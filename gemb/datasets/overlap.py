"""Training texts that stand in the evaluation set: with one of them the verdict is worth nothing.

A run whose data has one stops, unless the recipe holds the set out: then its rows are not drawn.

All texts of every row are compared, its query, positives and negatives, as
`gemb.texts.examples.folded` makes them, by the hashes that the index holds (64 bits of BLAKE2b:
among 10**7 training and 10**6 evaluation texts, two different ones have the same hash with a chance
of 10**-6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.datasets.rows import Rows
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.examples import digest, folded

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite


BLOCK = 1 << 20  # training texts at a time
NAMED = 3  # sources in the message


class TextsOf(NamedTuple):
    """Texts of an evaluation set."""

    name: str  # of the set
    texts: Iterable[str]
    are_documents: bool = False  # of a corpus that is searched


@dataclass(frozen=True)
class EvaluationTexts:
    """The hashes of the texts of an evaluation."""

    ids: NDArray[np.uint64]  # [texts], sorted
    set_of: NDArray[np.uint32]  # [texts], rows of `names`
    names: tuple[str, ...]
    never: NDArray[np.uint64]  # sorted; those that are not documents alone

    def set_name(self, text_id: int) -> str:
        """Return the first set that holds a text."""
        first, last = np.searchsorted(self.ids, np.array([text_id, text_id + 1], np.uint64))
        return self.names[int(self.set_of[first:last].min())]


def texts_of(suite: Suite) -> Iterator[TextsOf]:
    """Yield the texts of evaluation sets."""
    for dataset in suite.sets:
        for number, part in enumerate(dataset.scored):
            are_documents = dataset.kind in ("retrieval", "rerank") and number == 1
            yield TextsOf(dataset.name, (text.text for text in part.texts), are_documents)


def evaluation_texts(sets: Iterable[TextsOf]) -> EvaluationTexts:
    """Return the hashes of the texts."""
    ids, set_of, never = (
        [np.zeros(0, np.uint64)],
        [np.zeros(0, np.uint32)],
        [np.zeros(0, np.uint64)],
    )
    names = []
    for number, dataset in enumerate(sets):
        ids.append(np.frombuffer(b"".join(map(_id, dataset.texts)), "<u8").astype(np.uint64))
        set_of.append(np.full(len(ids[-1]), number, np.uint32))
        names.append(dataset.name)
        if not dataset.are_documents:
            never.append(ids[-1])
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids, kind="stable")
    of_texts = np.concatenate(set_of)[order]
    return EvaluationTexts(all_ids[order], of_texts, tuple(names), np.sort(np.concatenate(never)))


def _id(text: str) -> bytes:
    return digest(folded(text))


def overlapping(
    rows: Rows, against: EvaluationTexts, *, shared_documents: bool = False
) -> NDArray[np.uint32]:
    """Return the rows with a text of the evaluation, uint32, sorted.

    Of rows that stand in one line, with several positives, the first is returned.

    Args:
        rows: a source.
        against: the evaluation.
        shared_documents: positives and negatives may be documents of the evaluation.
    """
    numbers = [np.zeros(0, np.uint32)]
    for begin in range(0, len(rows.texts), BLOCK):
        block = rows.texts[begin : begin + BLOCK]
        hits = _refused(block["id"], block["is_document"], against, shared_documents)
        numbers.append(block["row"][hits])
    return np.unique(np.concatenate(numbers))


def _refused(
    ids: NDArray[np.uint64],
    are_documents: NDArray[np.bool_],
    against: EvaluationTexts,
    shared_documents: bool,
) -> NDArray[np.bool_]:
    """Return which training texts must not be there."""
    hits = _stand_in(ids, against.ids)
    if shared_documents:
        hits &= ~are_documents | _stand_in(ids, against.never)
    return hits


def _stand_in(ids: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which ids stand in the sorted ones."""
    if not len(among):
        return np.zeros(len(ids), np.bool_)
    nearest = np.searchsorted(among, ids).clip(max=len(among) - 1)
    is_in: NDArray[np.bool_] = among[nearest] == ids
    return is_in


def hold_out(sources: Sequence[Rows], suite: Suite) -> None:
    """Let no row with a text of the sets be drawn, whatever side of a set it is on.

    Raises:
        UsageError: no row of a source is left.
    """
    against = evaluation_texts(texts_of(suite))
    for rows in sources:
        rows.held_out = rows.lines_of(overlapping(rows, against))
        if len(rows.held_out) == len(rows):
            raise UsageError(
                f"{rows.name}: each of its {len(rows):,} rows holds a text of "
                f"{visible(suite.name)}, which held_out names; take one of the two out"
            )


def refuse_overlap(
    sources: Sequence[Rows],
    against: EvaluationTexts,
    *,
    shared_documents: bool = False,
    listing: Path | None = None,
) -> int:
    """Stop a run whose data holds texts of its evaluation.

    Args:
        sources: the training data.
        against: the texts of the evaluation.
        shared_documents: positives and negatives may be documents of the evaluation, for both
            search one corpus.
        listing: where to write all rows that were found, a line each: place, set, side, text.

    Returns:
        how many rows have documents that are shared.

    Raises:
        UsageError: there is such a text in a row that may be drawn; the message counts the rows and
            shows the first.
    """
    all_rows = [_drawn(rows, overlapping(rows, against)) for rows in sources]
    allowed = [_drawn(rows, overlapping(rows, against, shared_documents=True)) for rows in sources]
    refused = allowed if shared_documents else all_rows
    affected = [
        (rows, numbers) for rows, numbers in zip(sources, refused, strict=True) if len(numbers)
    ]
    if not affected:
        return sum(map(len, all_rows))
    counts = [f"{len(numbers):,} of {rows.name}" for rows, numbers in affected[:NAMED]]
    if len(affected) > NAMED:
        counts.append(f"{len(affected) - NAMED} more sources")
    place, name, side, text = next(_hits(*affected[0], against, shared_documents))
    where = ""
    if listing:
        listing.parent.mkdir(parents=True, exist_ok=True)
        with listing.open("w", encoding="utf-8") as file:
            for rows, numbers in affected:
                hits = _hits(rows, numbers, against, shared_documents)
                file.writelines("\t".join(hit) + "\n" for hit in hits)
        where = f"; all are in {listing}"
    kind = "" if any(map(len, allowed)) else ", all of them as documents of a corpus"
    raise UsageError(
        f"{sum(map(len, refused)):,} training rows hold texts of the evaluation{kind} "
        f"({', '.join(counts)}), first {place}: its {side} '{visible(text, 60)}' stands in "
        f"{visible(name)}{where}; take them out, name the set in held_out, or evaluate on other "
        "data"
    )


def _drawn(rows: Rows, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the rows that may be drawn."""
    return numbers[~np.isin(numbers, rows.held_out)]


def _hits(
    rows: Rows, numbers: NDArray[np.uint32], against: EvaluationTexts, shared_documents: bool
) -> Iterator[tuple[str, str, str, str]]:
    """Yield place, set, side and text of the first text of each row that must not be there."""
    for number in numbers.tolist():
        texts = rows.texts_of(number)
        ids = np.frombuffer(b"".join(_id(text) for _, text in texts), "<u8").astype(np.uint64)
        are_documents = np.array([side != "query" for side, _ in texts])
        first = int(_refused(ids, are_documents, against, shared_documents).argmax())
        side, text = texts[first]
        yield rows.place(number), against.set_name(int(ids[first])), side, visible(text)
