"""From rows of training data to a process's part of a batch, prepared ahead by threads.

A batch depends on the recipe alone: not on how many threads prepare it, and its rows not on how
many processes share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gemb.datasets.batches import Batch, BatchOrder
from gemb.datasets.rows import Rows
from gemb.models.profile import CLOSING_TOKENS, cut_ids
from gemb.models.prompts import Prompt
from gemb.models.tokenizer import tokenize
from gemb.texts.examples import Example, Text
from gemb.training.teacher import Teacher, TeacherText
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.gradients import TokenBatch

if TYPE_CHECKING:
    from gemb.arrays import TokenIds


Sides = tuple[Prompt, Prompt]  # of the query; of the positive and the negatives


class Prepared(NamedTuple):
    """A batch, and where the order of the data stands after it."""

    batch: TokenBatch
    order: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Renders, tokenizes and cuts the texts of a batch."""

    sources: Sequence[Rows]
    prompts: Sequence[Sides]  # of each source, in the student's words
    tokenizer: Tokenizer
    max_tokens: int
    negatives: int  # of a pair at most
    ranks: Ranks
    teacher: Teacher | None = None
    teacher_prompts: Sequence[Sides] = ()  # of each source, in the teacher's words
    teacher_lock: Lock = field(default_factory=Lock)  # it answers one thread at a time

    def make(self, batch: Batch) -> TokenBatch:
        """Return this process's part of the batch."""
        rows = self.sources[batch.source]
        mine = batch.rows[self.ranks.part(len(batch.rows))]
        examples = [rows[int(row)] for row in mine]
        texts, owners = self._texts(examples)
        query, positive = self.prompts[batch.source]
        rendered = [
            (query if number < len(examples) else positive).render(*text)
            for number, text in enumerate(texts)
        ]
        ids = self.tokenize(rendered)
        return TokenBatch(
            source=rows.name,
            places=[example.place for example in examples],
            texts=[cut_ids(text_ids, self.max_tokens, CLOSING_TOKENS) for text_ids in ids],
            negative_rows=np.array(owners, np.int64),
            query_ids=rows.query_ids[mine].view(np.int64),
            positive_ids=rows.positive_ids[mine].view(np.int64),
            teacher=self._taught(batch.source, examples, texts, owners),
            cut=sum(len(text_ids) > self.max_tokens for text_ids in ids),
        )

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of texts with their prompts, int32 [tokens] each; nothing is cut."""
        return tokenize(self.tokenizer, texts)

    def teacher_texts(self, batch: Batch) -> list[TeacherText]:
        """Return what the teacher must know for a batch, of all processes."""
        examples = [self.sources[batch.source][int(row)] for row in batch.rows]
        return self._teacher_texts(batch.source, examples, *self._texts(examples))

    def _texts(self, examples: Sequence[Example]) -> tuple[list[Text], list[int]]:
        """Return queries, positives and negatives, and whose the negatives are."""
        queries = [example.query for example in examples]
        positives = [example.positive for example in examples]
        negatives: list[Text] = []
        owners: list[int] = []
        for owner, example in enumerate(examples):
            own = example.negatives[: self.negatives]
            negatives += own
            owners += [owner] * len(own)
        return queries + positives + negatives, owners

    def _teacher_texts(
        self,
        source: int,
        examples: Sequence[Example],
        texts: Sequence[Text],
        owners: Sequence[int],
    ) -> list[TeacherText]:
        """Return what the teacher must know of texts and owners as `_texts` returns them."""
        query, positive = self.teacher_prompts[source]
        count = len(examples)
        whose = [*range(count), *range(count), *owners]
        return [
            TeacherText(
                (query if number < count else positive).render(*text), examples[owner].place
            )
            for number, (text, owner) in enumerate(zip(texts, whose, strict=True))
        ]

    def _taught(
        self,
        source: int,
        examples: Sequence[Example],
        texts: Sequence[Text],
        owners: Sequence[int],
    ) -> NDArray[np.float32] | None:
        if self.teacher is None:
            return None
        with self.teacher_lock:
            return self.teacher.vectors(self._teacher_texts(source, examples, texts, owners))


@dataclass(frozen=True, kw_only=True)
class TeacherTexts:
    """What the teacher must know for a run; it can be iterated over again."""

    maker: BatchMaker
    order: Callable[[], BatchOrder]  # at the run's beginning
    batches: int

    def __iter__(self) -> Iterator[TeacherText]:
        """Yield every text, batch by batch."""
        for batch in islice(self.order(), self.batches):
            yield from self.maker.teacher_texts(batch)


def prepared(order: BatchOrder, maker: BatchMaker, workers: int) -> Iterator[Prepared]:
    """Yield the batches of an endless order, each made ahead.

    A failure to make one is raised where it would have been yielded.
    """
    waiting: deque[tuple[Future[TokenBatch], dict[str, Any]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="gemb-data") as pool:
        try:
            for batch in order:
                waiting.append((pool.submit(maker.make, batch), order.state()))
                if len(waiting) > 2 * workers:
                    future, state = waiting.popleft()
                    yield Prepared(future.result(), state)
        finally:
            for future, _ in waiting:
                future.cancel()


def row_ids(batches: Sequence[TokenBatch]) -> NDArray[np.int64]:
    """Return the distinct tokens of the batches, ascending, int64."""
    texts: list[TokenIds] = [ids for batch in batches for ids in batch.texts]
    return np.unique(np.concatenate(texts)).astype(np.int64)
