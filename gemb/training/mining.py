"""Hard negatives for pairs: texts that a model finds close to a query, and that are not its answer.

A candidate is a negative of a query where its score (cosine) is at most

    positive - (1 - margin) |positive|

with the lowest score of the query's positives: NV-Retriever's "positive-aware" TopK-PercPos with
margin 0.95 (arXiv 2407.15831, section 4.3), for what scores nearly as high as the answer is often
an answer, too. Beside that, candidates are passed over that are the query's own positives, in
whichever row, or the query itself, but for case, spacing and width of characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints
from gemb.embedding.nearest import CANDIDATES, Nearest, nearest
from gemb.errors import UsageError
from gemb.models.prompts import Prompt
from gemb.texts.examples import Example, Text, TextSpool, same_text
from gemb.training.teacher import Teacher, TeacherText

if TYPE_CHECKING:
    from gemb.datasets.rows import Rows


QUERIES = 2048  # a block: its scores are QUERIES x nearest.CANDIDATES float32, 64 MiB


@dataclass(frozen=True, kw_only=True)
class NegativeRule:
    """Which candidates are negatives."""

    negatives: int = 4  # a row, at most
    margin: float = 0.95  # share of the positive's score that a negative may have; 1: all of it
    absolute_margin: float = 0.0  # how far a negative's score must be below the positive's
    max_score: float = 1.0  # that a negative may have
    max_likeness: float = 1.0  # cosine of a negative and the positive
    first_rank: int = 1  # of those left by what stands above, nearest first
    last_rank: int | None = None  # None: as many as are needed
    seed: int | None = None  # choose at random from first_rank to last_rank; None: the nearest

    @property
    def depth(self) -> int:
        """How many of the nearest must be known."""
        needed = self.first_rank - 1 + self.negatives
        if self.seed is None and self.last_rank is not None:
            return min(needed, self.last_rank)
        return self.last_rank or needed


class MinedRow(NamedTuple):
    """A row and its negatives, hardest first."""

    example: Example
    positive_score: float
    negatives: list[Text]
    scores: list[float]


class NegativeMiner:
    """The rows of a pairs file, and the candidates of their negatives."""

    def __init__(
        self, rows: Rows, corpus: Iterable[Text] | None, prompts: tuple[Prompt, Prompt]
    ) -> None:
        """Read all rows and the corpus once; the texts go to a temporary file.

        Args:
            rows: the pairs.
            corpus: the candidates; None: every positive, and every negative that the rows have.
            prompts: of queries, and of positives and candidates.
        """
        self.rows = rows
        self._has_positives = corpus is None
        self.own_negatives = 0  # rows that have some
        self._query_prompt, self._text_prompt = prompts
        self._texts = TextSpool()
        for text in corpus or ():
            self._texts.add(text)
        self.candidates = len(self._texts)  # they have the first numbers
        self._positive = np.empty(len(rows), np.int64)  # number of each row's
        self._query = np.empty(len(rows), np.uint64)  # equal for equal queries
        for row in range(len(rows)):
            example = rows[row]
            self._positive[row] = self._texts.add(example.positive)
            self._query[row] = same_text(example.query.text)
            self.own_negatives += bool(example.negatives)
            if corpus is None:
                for text in example.negatives:
                    self._texts.add(text)
        if corpus is None:
            self.candidates = len(self._texts)

    def check(self, rule: NegativeRule) -> None:
        """Refuse to look for more negatives than there are candidates.

        Raises:
            UsageError: the rule requires more.
        """
        least = rule.first_rank - 1 + rule.negatives
        others = self.candidates - self._has_positives  # each row's own is none
        if least > others:
            rank = f" from rank {rule.first_rank} on" if rule.first_rank > 1 else ""
            negatives = "negative" if rule.negatives == 1 else "negatives"
            raise UsageError(
                f"{rule.negatives} {negatives} a row{rank}, and only {others} other "
                f"{'text' if others == 1 else 'texts'} to choose from; "
                "fewer with -k, or more texts with --corpus"
            )

    def teacher_texts(self) -> _Repeatable:
        """Return every text whose vector is needed; it can be iterated over again and again."""
        return _Repeatable(self._all_texts)

    def _all_texts(self) -> Iterator[TeacherText]:
        yield from self._both()
        for number in range(self.candidates):
            yield self._candidate(number)

    def _both(self) -> Iterator[TeacherText]:
        """Yield each row's query and positive."""
        for row in range(len(self.rows)):
            example = self.rows[row]
            yield TeacherText(self._query_prompt.render(*example.query), example.place)
            yield TeacherText(self._text_prompt.render(*example.positive), example.place)

    def _candidate(self, number: int) -> TeacherText:
        text = self._texts[number]
        return TeacherText(self._text_prompt.render(text.text, text.title))

    def run(self, teacher: Teacher, rule: NegativeRule) -> Iterator[list[MinedRow]]:
        """Yield the rows in their order, a block at a time. The teacher has all `teacher_texts`."""
        candidates = _vector_rows(teacher, map(self._candidate, range(self.candidates)))
        both = _vector_rows(teacher, self._both())
        queries, positives = both[0::2], both[1::2]
        scores = np.empty(len(self.rows), np.float32)
        for block in _blocks(len(self.rows)):
            scores[block] = np.einsum(
                "nd,nd->n", teacher.at(queries[block]), teacher.at(positives[block])
            )
        groups = _Groups(self._query, self._positive)
        ceiling = _ceiling(groups.least(scores), rule)
        for block in _blocks(len(self.rows)):
            neighbours = nearest(
                teacher.at(queries[block]),
                lambda first, last: teacher.at(candidates[first:last]),
                self.candidates,
                depth=rule.depth,
                ceiling=ceiling[block],
                left_out=self._left_out(groups, block),
                unlike=(teacher.at(positives[block]), rule.max_likeness)
                if rule.max_likeness < 1
                else None,
            )
            yield [
                self._mined(row, float(scores[row]), neighbours, row - block.start, rule)
                for row in range(block.start, block.stop)
            ]

    def search_seconds(self, dim: int, rule: NegativeRule) -> float:
        """Return about how long `run` takes, by a block of random vectors of this width."""
        vectors = np.random.default_rng(0).standard_normal((CANDIDATES, dim)).astype(np.float32)
        vectors /= np.sqrt(dim)
        none = np.zeros(0, np.int64)
        began = time.monotonic()
        nearest(
            vectors[:QUERIES],
            lambda first, last: vectors[first:last],
            CANDIDATES,
            depth=rule.depth,
            ceiling=np.full(QUERIES, 0.5, np.float32),
            left_out=(none, none),
            unlike=(vectors[:QUERIES], rule.max_likeness) if rule.max_likeness < 1 else None,
        )
        blocks = len(self.rows) / QUERIES * (self.candidates / CANDIDATES)
        return blocks * (time.monotonic() - began)

    def _left_out(self, groups: _Groups, block: slice) -> tuple[Ints, Ints]:
        """Return rows of the block, from 0, and numbers of candidates that are false negatives."""
        rows, numbers = groups.positives(block)
        own = [
            self._texts.number(self.rows[row].query.text) for row in range(*block.indices(1 << 62))
        ]
        itself = np.array(own, np.int64)
        with_itself = np.flatnonzero(itself >= 0)
        rows = np.concatenate([rows, with_itself])
        numbers = np.concatenate([numbers, itself[with_itself]])
        return rows, numbers

    def _mined(
        self, row: int, score: float, neighbours: Nearest, at: int, rule: NegativeRule
    ) -> MinedRow:
        ranks = chosen_ranks(int((neighbours.numbers[at] >= 0).sum()), rule, row)
        return MinedRow(
            self.rows[row],
            score,
            [self._texts[number] for number in neighbours.numbers[at][ranks].tolist()],
            neighbours.scores[at][ranks].tolist(),
        )


def chosen_ranks(count: int, rule: NegativeRule, row: int) -> Sequence[int]:
    """Return which of the `count` nearest are taken, ascending, from 0."""
    first, last = rule.first_rank - 1, min(count, rule.last_rank or count)
    if rule.seed is None or last - first <= rule.negatives:
        return range(first, min(last, first + rule.negatives))
    random = np.random.default_rng((rule.seed, row))
    chosen: list[int] = np.sort(random.choice(last - first, rule.negatives, replace=False)).tolist()
    return [first + rank for rank in chosen]


def _ceiling(positive: NDArray[np.float32], rule: NegativeRule) -> NDArray[np.float32]:
    """Return the highest score of a negative, [n], by the least score of the query's positives."""
    below = np.minimum(
        positive - np.abs(positive) * np.float32(1 - rule.margin),
        positive - np.float32(rule.absolute_margin),
    )
    ceiling: NDArray[np.float32] = np.minimum(below, np.float32(rule.max_score))
    return ceiling


class _Groups:
    """Rows by their query."""

    def __init__(self, query: NDArray[np.uint64], positive: Ints) -> None:
        _, self._group = np.unique(query, return_inverse=True)
        order = np.argsort(self._group, kind="stable")
        self._positives = positive[order]
        self._starts = np.searchsorted(self._group[order], np.arange(len(np.unique(query)) + 1))

    def least(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return for each row the least score in its group."""
        least = np.full(len(self._starts) - 1, np.inf, np.float32)
        np.minimum.at(least, self._group, scores)
        of_rows: NDArray[np.float32] = least[self._group]
        return of_rows

    def positives(self, block: slice) -> tuple[Ints, Ints]:
        """Return rows of the block, from 0, and the positives of their groups, pairwise."""
        groups = self._group[block]
        counts = self._starts[groups + 1] - self._starts[groups]
        rows = np.repeat(np.arange(len(groups)), counts)
        ends = counts.cumsum()
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        return rows, self._positives[np.repeat(self._starts[groups], counts) + within]


class _Repeatable:
    """An iterable that begins anew each time."""

    def __init__(self, source: Callable[[], Iterator[TeacherText]]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[TeacherText]:
        return self._source()


def _blocks(count: int) -> Iterator[slice]:
    for first in range(0, count, QUERIES):
        yield slice(first, min(count, first + QUERIES))


def _vector_rows(teacher: Teacher, texts: Iterable[TeacherText]) -> Ints:
    """Return where the teacher has each text's vector, 8 bytes a text."""
    source = iter(texts)
    rows = [np.zeros(0, np.int64)]
    while chunk := list(islice(source, 4096)):
        rows.append(teacher.rows(chunk))
    return np.concatenate(rows)
