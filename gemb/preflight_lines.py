"""The check before a run as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemb.io.text import visible
from gemb.preflight import Lengths, Preflight, SourceCheck

BAD_SHOWN = 3  # bad rows of a source
WIDTH = 240  # characters of an example's text

HEAD = ("source", "rows", "share", "passes", "query", "positive", "cut", "format")


def lines(check: Preflight) -> list[str]:
    """Return the lines, without their ends."""
    return [
        *table([HEAD, *map(_cells, check.sources)]),
        f"query, positive: tokens, median/95 %/longest; cut: texts over {check.max_tokens} tokens",
        *_bad(check.sources),
        *_duplicates(check.sources),
        "",
        *_examples(check),
        *table([("data", f"{check.rows:,} rows{_bad_count(check.bad)}"), *_plan(check)]),
    ]


def _cells(source: SourceCheck) -> tuple[str, ...]:
    return (
        source.name,
        f"{source.rows:,}",
        f"{source.share:.1%}",
        f"{source.passes:.2f}",
        _lengths(source.query),
        _lengths(source.positive),
        f"{source.cut:.1%}",
        source.format,
    )


def _lengths(lengths: Lengths) -> str:
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


def _examples(check: Preflight) -> Iterator[str]:
    for number, example in enumerate(check.examples, 1):
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
    found = [(source.held_out, source.name) for source in check.sources if source.held_out]
    if not found:
        return f"none: no training text is one of {sets}"
    rows = sum(count for count, _ in found)
    of = ", ".join(f"{count:,} of {name}" for count, name in sorted(found, reverse=True))
    return f"{rows:,} rows have a text of {sets} and are never drawn: {of}"


def _about(count: float) -> str:
    """Return a number of three digits: 12.3 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
