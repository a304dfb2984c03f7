"""Training texts that stand in the evaluation set: with one of them the verdict is worth nothing.

Texts are compared without regard to case and white space, all of them: the queries, positives and
negatives of every row, by the hashes that the index holds (64 bits of BLAKE2b: among 10**7 training
and 10**6 evaluation texts, two different ones have the same hash with a chance of 10**-6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.errors import UsageError
from gemb.training_index import digest, folded
from gemb.training_rows import Rows
from gemb.visible import visible

BLOCK = 1 << 20  # training texts at a time
NAMED = 3  # sources in the message


@dataclass(frozen=True)
class EvaluationTexts:
    """The hashes of the texts of an evaluation."""

    ids: NDArray[np.uint64]  # [texts], sorted
    set_of: NDArray[np.uint32]  # [texts], rows of `names`
    names: tuple[str, ...]

    def set_name(self, text_id: int) -> str:
        """Return the first set that holds a text."""
        first, last = np.searchsorted(self.ids, np.array([text_id, text_id + 1], np.uint64))
        return self.names[int(self.set_of[first:last].min())]


def evaluation_texts(sets: Mapping[str, Iterable[str]]) -> EvaluationTexts:
    """Return the hashes of the texts of sets by name."""
    ids, set_of = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
    for number, texts in enumerate(sets.values()):
        ids.append(np.frombuffer(b"".join(map(_id, texts)), "<u8").astype(np.uint64))
        set_of.append(np.full(len(ids[-1]), number, np.uint32))
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids, kind="stable")
    return EvaluationTexts(all_ids[order], np.concatenate(set_of)[order], tuple(sets))


def _id(text: str) -> bytes:
    return digest(folded(text))


def overlapping(rows: Rows, against: EvaluationTexts) -> NDArray[np.uint32]:
    """Return the rows with a text that is tested, uint32, sorted.

    Of rows that stand in one line, with several positives, the first is returned.
    """
    found = [np.zeros(0, np.uint32)]
    for begin in range(0, len(rows.texts) if len(against.ids) else 0, BLOCK):
        block = rows.texts[begin : begin + BLOCK]
        ids = block["id"]
        nearest = np.searchsorted(against.ids, ids).clip(max=len(against.ids) - 1)
        found.append(block["row"][against.ids[nearest] == ids])
    return np.unique(np.concatenate(found))


def refuse_overlap(
    sources: Sequence[Rows], against: EvaluationTexts, listing: Path | None = None
) -> None:
    """Stop a run whose data holds texts of its evaluation.

    Args:
        sources: the training data.
        against: the texts of the evaluation.
        listing: where to write all rows that were found, a line each: place, set, text.

    Raises:
        UsageError: there is such a text; the message counts the rows and shows the first.
    """
    found = [(rows, numbers) for rows in sources if len(numbers := overlapping(rows, against))]
    if not found:
        return
    count = sum(len(numbers) for _, numbers in found)
    counts = [f"{len(numbers):,} of {rows.name}" for rows, numbers in found[:NAMED]]
    if len(found) > NAMED:
        counts.append(f"{len(found) - NAMED} more sources")
    place, name, side, text = next(_hits(*found[0], against))
    where = ""
    if listing:
        listing.parent.mkdir(parents=True, exist_ok=True)
        with listing.open("w", encoding="utf-8") as file:
            for rows, numbers in found:
                file.writelines("\t".join(hit) + "\n" for hit in _hits(rows, numbers, against))
        where = f"; all are in {listing}"
    raise UsageError(
        f"{count:,} training rows hold texts of the evaluation ({', '.join(counts)}), first "
        f"{place}: its {side} '{visible(text, 60)}' stands in {visible(name)}{where}; take them "
        "out, or evaluate on other data"
    )


def _hits(
    rows: Rows, numbers: NDArray[np.uint32], against: EvaluationTexts
) -> Iterator[tuple[str, str, str, str]]:
    """Yield place, set, side and text of the first text of each row that is tested."""
    for number in numbers.tolist():
        for side, text in rows.texts_of(number):
            text_id = int.from_bytes(_id(text), "little")
            at = int(np.searchsorted(against.ids, np.uint64(text_id)))
            if at < len(against.ids) and int(against.ids[at]) == text_id:
                yield rows.place(number), against.set_name(text_id), side, visible(text)
                break
