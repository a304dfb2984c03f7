"""What a draft learns from: rows and passages, the teacher's words for them, bags of tokens.

Of each source so many rows are taken as its weight says, those first whose query has the lowest
hash: a larger number takes the same ones and more, so that the teacher's vectors stay of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gemb.datasets.rows import Rows
from gemb.embedding.store import key_of
from gemb.errors import UsageError
from gemb.models.prompts import Prompt, for_task
from gemb.recipe.schema import Draft
from gemb.texts.contents import shown
from gemb.texts.inputs import Reading, read_opened
from gemb.texts.records import Fields, Record, has_visible
from gemb.training.teacher import Teacher, TeacherText

CHARACTERS = 32  # of a text, for each token that is read: no more are tokenized
CHUNK = 1024  # texts that are tokenized together
# Of passages; one may have a title alone.
_READING = Reading(
    fields=Fields(title="title", title_may_lack=True, text_may_lack=True), names_options=False
)


class Passage(NamedTuple):
    """A document: a text that has a title, or none."""

    text: str
    title: str | None
    place: str

    @property
    def words(self) -> str:
        """What a draft sees of it: it has no prompt."""
        return f"{self.title}\n{self.text}" if self.title else self.text


class Bags(NamedTuple):
    """Texts as bags of tokens: each text's different ids, ascending, and how often it has each."""

    ids: NDArray[np.int32]  # [entries of all texts]
    counts: NDArray[np.float32]  # the same
    ends: NDArray[np.int64]  # [texts]

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, rows: NDArray[np.int64]) -> Bags:
        """Return some of the texts, in the order of `rows`."""
        sizes = np.diff(self.ends, prepend=0)[rows]
        starts = (self.ends - np.diff(self.ends, prepend=0))[rows]
        ends = np.cumsum(sizes)
        entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes)
        return Bags(self.ids[entries], self.counts[entries], ends)

    @staticmethod
    def joined(parts: Sequence[Bags]) -> Bags:
        """Return the texts of all parts, in their order."""
        sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
        ids = np.concatenate([part.ids for part in parts])
        return Bags(ids, np.concatenate([part.counts for part in parts]), np.cumsum(sizes))


@dataclass(frozen=True)
class PairSource:
    """The rows of a source that are learned from."""

    name: str
    share: float  # of the steps
    queries: Sequence[TeacherText]
    positives: Sequence[Passage]
    positive_ids: NDArray[np.uint64]  # hashes: equal positives, equal ids
    bags: Bags  # of the positives
    documents: int  # the first so many, whose positives the teacher embeds, too


def pair_sources(
    sources: Sequence[Rows], draft: Draft, teacher: Teacher, tokenizer: Tokenizer, longest: int
) -> list[PairSource]:
    """Return the rows to learn from, source by source.

    Args:
        sources: of the recipe.
        draft: how many rows.
        teacher: whose prompt is around the queries.
        tokenizer: of the draft.
        longest: tokens of a text; the others are cut off.
    """
    query = for_task("query", teacher.prompts)
    weights = np.array([rows.source.weight or len(rows) for rows in sources], float)
    shares = weights / weights.sum()
    taken = []
    for rows, share in zip(sources, shares.tolist(), strict=True):
        numbers = _first(rows, round(draft.queries * share))
        examples = [rows[number] for number in numbers]
        positives = [
            Passage(row.positive.text, row.positive.title or None, row.place) for row in examples
        ]
        taken.append(
            PairSource(
                name=rows.name,
                share=share,
                queries=[TeacherText(query.render(row.query.text), row.place) for row in examples],
                positives=positives,
                positive_ids=rows.positive_ids[numbers],
                bags=bags_of((passage.words for passage in positives), tokenizer, longest),
                documents=min(len(numbers), round(draft.documents * share)),
            )
        )
    return taken


def _first(rows: Rows, count: int) -> list[int]:
    """Return `count` rows by the hashes of their queries, each query once, none held out."""
    held_out = set(rows.held_out.tolist())
    _, firsts = np.unique(rows.query_ids, return_index=True)
    free = [number for number in firsts.tolist() if number not in held_out]
    keys = {number: key_of(rows[number].query.text) for number in free}
    return sorted(free, key=lambda number: keys[number])[:count]


def read_passages(path: str, count: int) -> list[Passage]:
    """Return `count` passages of a file by the hashes of their texts; 0: all.

    Raises:
        UsageError: there is no such file, it is no text, or a row of it is no passage.
    """
    if not path:
        return []
    source = Path(path).expanduser()
    if not source.is_file():
        raise UsageError(f"{shown(path)}: no such file of passages")
    with source.open("rb") as file:
        records = read_opened(file, str(source), _READING, source.name)
        passages = [_passage(record) for record in records if record is not None]
    passages.sort(key=lambda passage: key_of(passage.text or passage.words))
    return passages[: count or None]


def _passage(record: Record) -> Passage:
    if record.error:
        raise UsageError(f"{record.place}: {record.error.message}")
    passage = Passage(record.text, record.title, record.place)
    if not has_visible(passage.words):
        raise UsageError(f"{record.place}: a passage is an object with text, and perhaps title")
    return passage


def taught(passages: Iterable[Passage], prompt: Prompt) -> list[TeacherText]:
    """Return what the teacher sees of documents."""
    return [TeacherText(prompt.render(text, title), place) for text, title, place in passages]


def token_texts(tokenizer: Tokenizer, prompt: Prompt) -> list[TeacherText | None]:
    """Return what the teacher sees of each token alone; None of one that is no text."""
    count = tokenizer.get_vocab_size()
    words = [tokenizer.decode([number]).strip() for number in range(count)]
    return [TeacherText(prompt.render(word), f"token {word!r}") if word else None for word in words]


def bags_of(texts: Iterable[str], tokenizer: Tokenizer, longest: int) -> Bags:
    """Return texts as bags of their first `longest` tokens."""
    ids, counts, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], []
    source = iter(texts)
    while chunk := [text[: CHARACTERS * longest] for text in islice(source, CHUNK)]:
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            different, often = np.unique(
                np.array(encoding.ids[:longest] or [0], np.int32), return_counts=True
            )
            ids.append(different)
            counts.append(often)
            sizes.append(len(different))
    return Bags(
        np.concatenate(ids),
        np.concatenate(counts).astype(np.float32),
        np.cumsum(np.array(sizes, np.int64)),
    )
