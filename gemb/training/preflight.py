"""What a training run will do with its data, shown before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemb.datasets.batches import BatchOrder
from gemb.datasets.overlap import evaluation_texts, refuse_overlap, texts_of
from gemb.datasets.rows import Rows
from gemb.io.text import visible
from gemb.models.prompts import PLAIN, Prompt, PromptedTexts
from gemb.recipe.schema import Batch, Recipe
from gemb.texts.examples import Example, folded

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite


SAMPLED = 10_000  # rows of which the tokens are counted, over all sources
LEAST, MOST = 200, 1_000  # of a source
EXAMPLES = 3
LONGEST = 2_000  # characters of an example's text in JSON
WIDTH = 240  # the same for a terminal
BAD_SHOWN = 3  # bad rows of a source
HEAD = ("source", "rows", "share", "passes", "query", "positive", "cut", "format")

Side = tuple[str, str]  # query, positive or negative; and the text as the model sees it


class Renderer(Protocol):
    """The data of a run, and how its rows become token ids."""

    @property
    def sources(self) -> Sequence[Rows]:
        """The rows."""

    @property
    def prompts(self) -> Sequence[tuple[Prompt, Prompt]]:
        """Of query and positive, of each source."""

    def tokenize(self, texts: Sequence[str]) -> Sequence[Sized]:
        """Return the ids of texts with their prompts; nothing is cut."""


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
    prompted: str = ""  # a prompt that a sampled query or positive begins with already


@dataclass(frozen=True)
class Preflight:
    """The check before the first step."""

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
                "source": example.source,
                "place": example.place,
                "sides": [(side, visible(text, LONGEST)) for side, text in example.sides],
            }
            for example in self.examples
        ]
        total = {"examples": examples, "total_tokens": self.total_tokens}
        return {**dataclasses.asdict(self), **total}

    def lines(self) -> list[str]:
        """Return the lines for a terminal; no character of the data is obeyed by one."""
        cut = f"cut: texts over {self.max_tokens} tokens"
        return [
            *table([HEAD, *map(_cells, self.sources)]),
            f"query, positive: tokens, median/95 %/longest; {cut}",
            *_bad(self.sources),
            *_duplicates(self.sources),
            "",
            *_example_lines(self.examples),
            *table([("data", f"{self.rows:,} rows{_bad_count(self.bad)}"), *_plan(self)]),
        ]


def preflight(
    recipe: Recipe,
    renderer: Renderer,
    order: BatchOrder,
    *,
    steps: int,
    suite: Suite | None = None,
    overlap_listing: Path | None = None,
) -> Preflight:
    """Check the data of a run, and measure samples of it.

    Args:
        recipe: its `batch`, `held_out` and `eval.shared_documents` are read.
        renderer: the data, and how its rows become token ids.
        order: of the batches; it is not moved.
        steps: of the run, each of `batch.accumulate` batches.
        suite: the evaluation whose texts must not be trained on.
        overlap_listing: the file to write training rows with such texts to.

    Raises:
        UsageError: a training text stands in the evaluation set.
    """
    batch, sources = recipe.batch, renderer.sources
    against = evaluation_texts(texts_of(suite) if suite else ())
    shared = refuse_overlap(
        sources,
        against,
        shared_documents=recipe.eval.shared_documents,
        listing=overlap_listing,
    )
    sampled = min(MOST, max(LEAST, SAMPLED // len(sources)))
    batches = steps * batch.accumulate
    checks, drawn = [], []
    for rows, prompts, share in zip(sources, renderer.prompts, order.shares, strict=True):
        sample = [rows[row] for row in _sample(len(rows), sampled, order.seed)]
        drawn.append((share, rows, prompts, sample))
        sides = [side for example in sample for side in render(example, prompts, batch.negatives)]
        tokens = renderer.tokenize([text for _, text in sides])
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        is_query = np.array([side == "query" for side, _ in sides])
        prompted = _prompted(sample, prompts)
        checks.append(_check(rows, sample, lengths, is_query, batch, share, batches, prompted))
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
        held_out=recipe.held_out,
    )


def _sample(rows: int, count: int, seed: int) -> list[int]:
    """Return that many different rows, or all, the same for a seed."""
    if rows <= count:
        return list(range(rows))
    words = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(2 * count)
    distinct: NDArray[np.uint64] = np.unique(words % np.uint64(rows))
    return [
        int(row) for row in distinct[np.argsort(distinct * np.uint64(0x9E3779B97F4A7C15))][:count]
    ]


def _check(
    rows: Rows,
    sample: Sequence[Example],
    sizes: NDArray[np.int64],
    is_query: NDArray[np.bool_],
    batch: Batch,
    share: float,
    batches: int,
    prompted: str,
) -> SourceCheck:
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
        prompted=prompted,
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
    return sides + [("negative", document.render(*text)) for text in example.negatives[:negatives]]


def _prompted(sample: Sequence[Example], prompts: tuple[Prompt, Prompt]) -> str:
    """Return a prompt that a text begins with before it gets its own; empty: none."""
    finder = PromptedTexts.of({})
    sides = [(example.query, example.positive) for example in sample]
    texts = (
        text.text
        for pair in sides
        for text, prompt in zip(pair, prompts, strict=True)
        if prompt.template != PLAIN
    )
    return next(filter(None, map(finder.prompt_of, texts)), "")


def _contradicts(example: Example, negatives: int) -> bool:
    positive = folded(example.positive.text)
    return any(folded(text.text) == positive for text in example.negatives[:negatives])


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
    largest = sorted(drawn, key=lambda source: -source[0])
    for number in range(EXAMPLES):
        _, rows, prompts, sample = largest[number % len(largest)]
        turn = number // len(largest)
        if turn < len(sample):
            sides = render(sample[turn], prompts, batch.negatives)
            yield Rendered(rows.name, sample[turn].place, tuple(sides))


def _cells(source: SourceCheck) -> tuple[str, ...]:
    return (
        source.name,
        f"{source.rows:,}",
        f"{source.share:.1%}",
        f"{source.passes:.2f}",
        _lengths_line(source.query),
        _lengths_line(source.positive),
        f"{source.cut:.1%}",
        source.format,
    )


def _lengths_line(lengths: Lengths) -> str:
    return f"{lengths.median:.0f}/{lengths.p95:.0f}/{lengths.max:,}"


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows with their columns under each other; the first and last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell if at == last else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _bad(sources: Sequence[SourceCheck]) -> Iterator[str]:
    for source in sources:
        if source.bad:
            yield f"{source.name}: {source.bad:,} bad rows are left out:"
            yield from (f"  {place}: {reason}" for place, reason in source.bad_rows[:BAD_SHOWN])
            if source.bad > BAD_SHOWN:
                yield f"  and {source.bad - BAD_SHOWN:,} more"


def _bad_count(bad: int) -> str:
    return f", {bad:,} bad ones left out" if bad else ""


def _duplicates(sources: Sequence[SourceCheck]) -> Iterator[str]:
    for source in sources:
        counts = (
            (source.duplicates, "pair"),
            (source.equal_queries, "query"),
            (source.equal_positives, "positive"),
        )
        words = [f"{count:,} with the {what}" for count, what in counts if count]
        if words:
            yield f"{source.name}: rows that repeat one before: {', '.join(words)}"
        if source.contradictions:
            yield (
                f"{source.name}: {source.contradictions:,} of {source.sampled:,} rows have their "
                "positive as a negative, too; training works against itself there"
            )
        if source.prompted:
            yield (
                f"{source.name}: texts begin with a prompt, '{visible(source.prompted, 60)}', and "
                "the source's is put before it: take it out of the data, or set prompts.query and "
                "prompts.positive to '{text}'"
            )


def _example_lines(examples: Sequence[Rendered]) -> Iterator[str]:
    for number, example in enumerate(examples, 1):
        yield f"example {number}: {example.source}, {example.place}"
        yield from (f"  {side:<8}  {visible(text, WIDTH)}" for side, text in example.sides)
        yield ""


def _plan(check: Preflight) -> Iterator[tuple[str, str]]:
    sampled = sum(source.sampled for source in check.sources)
    yield "steps", f"{check.steps:,} of {check.pairs:,} pairs: {check.epochs:.2f} epochs"
    yield (
        "tokens",
        f"about {_about(check.step_tokens)} a step, {_about(check.total_tokens)} in all "
        f"(from {sampled:,} rows)",
    )
    if check.evaluation:
        texts = f"{check.evaluation_texts:,} texts of {visible(check.evaluation, 60)}"
        if check.shared_rows:
            yield "overlap", f"{check.shared_rows:,} rows have documents of the {texts}, as allowed"
        else:
            yield "overlap", f"none: no training text is one of the {texts}"
    elif not check.held_out:
        yield "overlap", "not looked for: the recipe has no evaluation"
    if check.held_out:
        yield "held out", _held_out(check)


def _held_out(check: Preflight) -> str:
    sets = visible(", ".join(check.held_out), 60)
    counts = [(source.held_out, source.name) for source in check.sources if source.held_out]
    if not counts:
        return f"none: no training text is one of {sets}"
    rows = sum(count for count, _ in counts)
    of = ", ".join(f"{count:,} of {name}" for count, name in sorted(counts, reverse=True))
    return f"{rows:,} rows have a text of {sets} and are never drawn: {of}"


def _about(count: float) -> str:
    """Return a number of three digits: 12.3 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
