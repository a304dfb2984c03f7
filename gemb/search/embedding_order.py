"""In what order passages are embedded: the most promising first, for good answers early."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gemb.search.corpus import Passages
from gemb.texts.words import Promise

JUDGED = 64  # so many passages or fewer are embedded as they come
FIRST_BEST = 8192  # passages that are embedded strictly by promise; then file by file


def ordered(passages: Passages, numbers: list[int], promise: Promise) -> list[int]:
    """Return the numbers of passages, ascending before, the most promising first."""
    if len(numbers) <= JUDGED or not promise.terms:
        return numbers
    scores = promise.scores(_terms(passages, numbers, promise))
    order = np.argsort(-scores, kind="stable")
    best, rest = order[:FIRST_BEST], order[FIRST_BEST:]
    # Of the rest file by file, so that none is read again and again: its best passage counts.
    files = passages.files_of(np.array(numbers)[rest])
    hopes = np.zeros(len(passages.entries) + 1, np.float32)
    np.maximum.at(hopes, files, scores[rest])
    rest = rest[np.lexsort((rest, files, -hopes[files]))]
    return [numbers[place] for place in (*best.tolist(), *rest.tolist())]


def _terms(passages: Passages, numbers: list[int], promise: Promise) -> NDArray[np.bool_]:
    """Return which terms stand in which passages, bool [n, terms]."""
    found: list[NDArray[np.bool_]] = []
    at = 0
    while at < len(numbers):
        file = passages.file_of(numbers[at])
        if file == len(passages.entries):
            for number in numbers[at:]:
                record = passages.record(number)
                text = record.text if record else ""
                found.append(promise.found(text, [(0, len(text))]))
            break
        end = at
        while end < len(numbers) and numbers[end] in passages.of_file(file):
            end += 1
        rows = passages.table[numbers[at:end]]
        spans = list(zip(rows["start"].tolist(), rows["end"].tolist(), strict=True))
        of_text = promise.found(passages.text_of(file) or "", spans)
        path = passages.entries[file].path
        found.append(of_text | promise.found(path, [(0, len(path))]))
        at = end
    return np.concatenate(found)
