"""Passages as they are shown: their lines, and which of them answer the query best."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from gemb.index.hits import Hit
from gemb.io.stamps import Stamp
from gemb.texts.walk import Entry, open_text
from gemb.texts.words import wanted_stems, weights, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder
    from gemb.models.prompts import Prompt


BESIDE = 0.25  # share of a line's weight that its neighbours get: words stand together
GOOD = 0.75  # a line with this share of the best line's weight stands out as well
LOOKED_AT = 20_000  # characters of a line
# A line with this share of the query's weight is the best one, whatever the model would say: it
# finds better lines where few words are shared, but a second search is to take no second.
ENOUGH = 0.6
MOST_LINES = 8
MOST_CHARACTERS = 320
LINES_EACH = 6  # of a passage: those that share most


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A passage, with the line that answers best."""

    hit: Hit
    lines: tuple[str, ...]  # of the passage; at least one
    best: int  # place in `lines`
    good: frozenset[int]  # places that stand out
    shares: tuple[float, ...]  # of each line in the weight of the query's words

    @property
    def is_numbered(self) -> bool:
        """Whether each line has a number of its own: not those of a row of a table."""
        hit = self.hit
        last = hit.line if hit.last_line is None else hit.last_line
        return hit.line is not None and last is not None and last - hit.line + 1 == len(self.lines)

    def number(self, index: int) -> int | None:
        """Return the number of a line in its file, None where it has none."""
        if self.is_numbered and self.hit.line is not None:
            return self.hit.line + index
        return self.hit.line


def excerpts(query: str, hits: Sequence[Hit]) -> list[Excerpt]:
    """Return the passages with the lines that share most with the query, rare words first."""
    stems = wanted_stems(query)
    # A passage of a table's row may end in newlines, or be one.
    all_lines = [tuple(hit.text.strip("\n").split("\n")) for hit in hits]
    worth = weights(stems, [line[:LOOKED_AT] for lines in all_lines for line in lines])
    return [_excerpt(hit, lines, worth) for hit, lines in zip(hits, all_lines, strict=True)]


def compared(
    passages: Sequence[Excerpt],
    query: NDArray[np.float32],
    encoder: Encoder,
    prompt: Prompt,
) -> list[Excerpt]:
    """Return the excerpts; where lines share little with the query, the model finds the best.

    It does so for the first ones only, to keep the search fast.

    Args:
        passages: as `excerpts` gives them, best first.
        query: its unit vector, float32 [dim].
        encoder: the open model.
        prompt: of the passages.
    """
    todo: list[tuple[int, int]] = []  # excerpt, line
    characters_left = MOST_CHARACTERS
    for number, excerpt in enumerate(passages):
        if len(excerpt.lines) == 1 or max(excerpt.shares) >= ENOUGH:
            continue
        indices = [index for index, line in enumerate(excerpt.lines) if len(line.split()) > 1]
        indices = sorted(indices, key=lambda index: -excerpt.shares[index])[:LINES_EACH]
        characters_left -= sum(len(excerpt.lines[index].strip()) for index in indices)
        if characters_left < 0 or len(todo) + len(indices) > MOST_LINES:
            break
        todo += [(number, index) for index in indices]
    result = list(passages)
    if not todo:
        return result
    import numpy as np

    from gemb.embedding.pipeline import shortened

    lines = [passages[number].lines[index].strip() for number, index in todo]
    ids = encoder.tokenize([prompt.render(line) for line in lines])
    vectors = shortened(encoder.encode(list(map(encoder.profile.cut, ids))), len(query))
    scores = np.nan_to_num(vectors @ query, nan=-1).tolist()
    best: dict[int, tuple[float, int]] = {}
    for (number, index), score in zip(todo, scores, strict=True):
        best[number] = max(best.get(number, (-2.0, 0)), (score, -index))
    for number, (_, negative) in best.items():
        result[number] = replace(passages[number], best=-negative, good=frozenset({-negative}))
    return result


def _excerpt(hit: Hit, lines: tuple[str, ...], worth: Mapping[str, float]) -> Excerpt:
    """Return the excerpt; `good` is empty where no line shares a word with the query."""
    own = [_weight(line, worth) for line in lines]
    around = [sum(own[max(0, index - 1) : index + 2]) - own[index] for index in range(len(lines))]
    scores = [
        line + BESIDE * beside if line else 0.0 for line, beside in zip(own, around, strict=True)
    ]
    top = max(scores)
    if top <= 0:
        first = next((index for index, line in enumerate(lines) if len(line.split()) > 1), 0)
        return Excerpt(hit, lines, first, frozenset(), tuple(own))
    good = frozenset(index for index, score in enumerate(scores) if score >= GOOD * top)
    total = sum(worth.values())
    shares = tuple(score / total for score in scores)
    return Excerpt(hit, lines, scores.index(top), good, shares)


def _weight(line: str, worth: Mapping[str, float]) -> float:
    """Return the weight of the query's words that a line has, less where it is very long."""
    stems = [word.stem for word in words_of(line[:LOOKED_AT])]
    shared = sum(worth[stem] for stem in set(stems) & worth.keys())
    return shared / (1 + len(stems) / 100)


class ShownLine(NamedTuple):
    """A line that is shown."""

    number: int | None
    text: str
    is_good: bool  # it answers the query


class LineContext:
    """Finds the lines around the best one; holds the lines of the file that it read last."""

    def __init__(self, before: int, after: int, *, is_inside: bool = False) -> None:
        """Set which lines are shown.

        Args:
            before: how many lines before the best one.
            after: and after it.
            is_inside: only lines of the passage itself.
        """
        self.before = before
        self.after = after
        self._is_inside = is_inside
        self._path = ""
        self._lines: list[str] = []

    def around(self, excerpt: Excerpt) -> list[ShownLine]:
        """Return the best line and those around it, in the order of the file.

        Where the file cannot be read any more, or holds something else now, the passage alone
        gives its lines.
        """
        first, last = excerpt.best - self.before, excerpt.best + self.after
        lines, start = excerpt.lines, 0
        if not self._is_inside and (first < 0 or last >= len(lines)):
            file = self._file(excerpt)
            if file:
                start = (excerpt.hit.line or 1) - 1
                # Its own lines stay: the first and the last may be parts of very long ones.
                lines = (*file[:start], *lines, *file[start + len(lines) :])
        shown = range(max(0, first + start), min(len(lines), last + start + 1))
        return [
            ShownLine(
                excerpt.number(at - start),
                lines[at],
                at - start in excerpt.good or at - start == excerpt.best,
            )
            for at in shown
        ]

    def _file(self, excerpt: Excerpt) -> list[str]:
        """Return the lines of the passage's file, none where the passage is not there."""
        path, line = excerpt.hit.path, excerpt.hit.line
        if path is None or line is None or not excerpt.is_numbered:
            return []
        if path != self._path:
            self._path, self._lines = path, _lines(path)
        file_lines = self._lines[line - 1 : line - 1 + len(excerpt.lines)]
        pairs = zip(excerpt.lines, file_lines, strict=False)
        is_same = len(file_lines) == len(excerpt.lines) and all(
            own.strip() in line for own, line in pairs
        )
        return self._lines if is_same else []


def _lines(path: str) -> list[str]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return []
    real = os.path.abspath(path)  # noqa: PTH100
    entry = Entry(path, real, Stamp.of(status), is_named=False)
    try:
        text = open_text(entry).text
    except OSError:
        return []
    return text.removesuffix("\n").split("\n") if text else []
