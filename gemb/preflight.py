"""What a training run is about to do with its data, said before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemb.datasets.batches import BatchOrder
from gemb.datasets.overlap import evaluation_texts, refuse_overlap, texts_of
from gemb.datasets.rows import Rows
from gemb.io.text import visible
from gemb.models.prompts import Prompt
from gemb.recipe.schema import Batch
from gemb.texts.examples import Example, folded

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite

SAMPLED = 10_000  # rows of which the tokens are counted, over all sources
LEAST, MOST = 200, 1_000  # of a source
EXAMPLES = 3
LONGEST = 2_000  # characters of an example's text in JSON

Tokenize = Callable[[Sequence[str]], Sequence[Sized]]
Side = tuple[str, str]  # query, positive or negative; and the text as the model sees it


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts with their prompts, before they are cut."""

    median: float
    p95: float
    max: int


@dataclass(frozen=True)
class Rendered:
    """A row as the model sees it."""

    source: str
    place: str
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class SourceCheck:
    """What is known of a source before the run."""

    name: str
    format: str
    rows: int
    bad: int
    bad_rows: tuple[tuple[str, str], ...]  # place and reason of the first
    held_out: int  # rows that are never drawn, for a held-out set has a text of theirs
    share: float  # of the batches, 0 to 1
    passes: float  # over its rows in the whole run
    duplicates: int  # rows whose query and positive stand in a row before
    equal_queries: int  # rows whose query stands in a row before
    equal_positives: int
    sampled: int  # rows whose tokens were counted
    contradictions: int  # of these, rows that have their positive as a negative, too
    tokens: Lengths  # of all texts
    query: Lengths
    positive: Lengths  # of positives and negatives
    cut: float  # share of the texts that are longer than max_tokens
    row_tokens: float  # mean of a row's texts after cutting


@dataclass(frozen=True)
class Preflight:
    """The check before the first step; `gemb.preflight_lines` writes it for a terminal."""

    sources: tuple[SourceCheck, ...]
    examples: tuple[Rendered, ...]
    rows: int
    bad: int
    pairs: int  # a step, of all its batches
    max_tokens: int
    steps: int
    epochs: float
    step_tokens: float  # estimated, after cutting
    evaluation: str  # name of the evaluation; empty: none
    evaluation_texts: int
    shared_rows: int  # with documents of the evaluation, which the recipe allows
    held_out: tuple[str, ...]  # sets with a text of which no row is drawn

    @property
    def total_tokens(self) -> float:
        """Tokens of the whole run, estimated."""
        return self.step_tokens * self.steps

    def to_json(self) -> dict[str, Any]:
        """Return all of it, fit for JSON; long texts of the examples are shortened."""
        examples = [
            {
                "source": one.source,
                "place": one.place,
                "sides": [(side, visible(text, LONGEST)) for side, text in one.sides],
            }
            for one in self.examples
        ]
        total = {"examples": examples, "total_tokens": self.total_tokens}
        return {**dataclasses.asdict(self), **total}

    def lines(self) -> list[str]:
        """Return the lines for a terminal; no character of the data is obeyed by one."""
        from gemb.preflight_lines import lines

        return lines(self)


def preflight(
    batch: Batch,
    sources: Sequence[Rows],
    order: BatchOrder,
    tokenize: Tokenize,
    prompts: Sequence[tuple[Prompt, Prompt]],
    *,
    steps: int,
    suite: Suite | None = None,
    shared_documents: bool = False,
    held_out: Sequence[str] = (),
    overlap_listing: Path | None = None,
) -> Preflight:
    """Look at the data of a run.

    Args:
        batch: the recipe's.
        sources: the data.
        order: of the batches; it is not moved.
        tokenize: texts to ids, not cut.
        prompts: of query and positive, of each source.
        steps: of the run, each of `batch.accumulate` batches.
        suite: the evaluation whose texts must not be trained on.
        shared_documents: positives and negatives may be documents of the evaluation.
        held_out: sets that the sources' held-out rows are of, as the recipe names them.
        overlap_listing: the file to write training rows with such texts to.

    Raises:
        UsageError: a training text stands in the evaluation set.
    """
    against = evaluation_texts(texts_of(suite) if suite else ())
    shared = refuse_overlap(
        sources, against, shared_documents=shared_documents, listing=overlap_listing
    )
    sampled = min(MOST, max(LEAST, SAMPLED // len(sources)))
    batches = steps * batch.accumulate
    checks, drawn = [], []
    for number, (rows, words) in enumerate(zip(sources, prompts, strict=True)):
        sample = [rows[row] for row in _sample(len(rows), sampled, order.seed)]
        drawn.append((order.shares[number], rows, words, sample))
        share = order.shares[number]
        checks.append(_check(rows, words, sample, batch, tokenize, share, batches))
    total = sum(len(rows) for rows in sources)
    step_pairs = batch.pairs * batch.accumulate
    return Preflight(
        sources=tuple(checks),
        examples=tuple(_examples(drawn, batch)),
        rows=total,
        bad=sum(rows.bad_count for rows in sources),
        pairs=step_pairs,
        max_tokens=batch.max_tokens,
        steps=steps,
        epochs=steps * step_pairs / total,
        step_tokens=step_pairs * sum(check.share * check.row_tokens for check in checks),
        evaluation=suite.name if suite else "",
        evaluation_texts=len(against.ids),
        shared_rows=shared,
        held_out=tuple(held_out),
    )


def _sample(rows: int, count: int, seed: int) -> list[int]:
    """Return that many different rows, or all, the same for a seed."""
    if rows <= count:
        return list(range(rows))
    words = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(2 * count)
    found: NDArray[np.uint64] = np.unique(words % np.uint64(rows))
    return [int(row) for row in found[np.argsort(found * np.uint64(0x9E3779B97F4A7C15))][:count]]


def _check(
    rows: Rows,
    prompts: tuple[Prompt, Prompt],
    sample: Sequence[Example],
    batch: Batch,
    tokenize: Tokenize,
    share: float,
    batches: int,
) -> SourceCheck:
    sides = [side for example in sample for side in render(example, prompts, batch.negatives)]
    sizes = np.array([len(ids) for ids in tokenize([text for _, text in sides])], np.int64)
    is_query = np.array([side == "query" for side, _ in sides])
    queries, positives = np.asarray(rows.query_ids), np.asarray(rows.positive_ids)
    # Sorting the pairs' own hash, an odd multiple of one id and the other, needs no 16-byte keys.
    pairs = queries * np.uint64(0x9E3779B97F4A7C15) ^ positives
    return SourceCheck(
        name=rows.name,
        format=rows.format,
        rows=len(rows),
        bad=rows.bad_count,
        bad_rows=tuple(rows.bad),
        held_out=len(rows.held_out),
        share=share,
        passes=batches * share * batch.pairs / len(rows),
        duplicates=_repeated(pairs),
        equal_queries=_repeated(queries),
        equal_positives=_repeated(positives),
        sampled=len(sample),
        contradictions=sum(_contradicts(example, batch.negatives) for example in sample),
        tokens=_lengths(sizes),
        query=_lengths(sizes[is_query]),
        positive=_lengths(sizes[~is_query]),
        cut=float((sizes > batch.max_tokens).mean()),
        row_tokens=float(sizes.clip(max=batch.max_tokens).sum()) / len(sample),
    )


def render(example: Example, prompts: tuple[Prompt, Prompt], negatives: int) -> list[Side]:
    """Return the texts of a row as the model sees them: query, positive, so many negatives."""
    query, document = prompts
    sides = [("query", query.render(*example.query))]
    sides.append(("positive", document.render(*example.positive)))
    return sides + [("negative", document.render(*one)) for one in example.negatives[:negatives]]


def _contradicts(example: Example, negatives: int) -> bool:
    positive = folded(example.positive.text)
    return any(folded(one.text) == positive for one in example.negatives[:negatives])


def _repeated(ids: NDArray[np.uint64]) -> int:
    ids = np.sort(ids)
    return int((ids[1:] == ids[:-1]).sum())


def _lengths(sizes: NDArray[np.int64]) -> Lengths:
    median, p95 = np.quantile(sizes, [0.5, 0.95])
    return Lengths(float(median), float(p95), int(sizes.max()))


def _examples(
    drawn: Sequence[tuple[float, Rows, tuple[Prompt, Prompt], Sequence[Example]]], batch: Batch
) -> Iterator[Rendered]:
    """Yield the examples, of the sources with the largest shares; of fewer sources, several."""
    largest = sorted(drawn, key=lambda one: -one[0])
    for number in range(EXAMPLES):
        _, rows, prompts, sample = largest[number % len(largest)]
        turn = number // len(largest)
        if turn < len(sample):
            sides = render(sample[turn], prompts, batch.negatives)
            yield Rendered(rows.name, sample[turn].place, tuple(sides))
