"""What is seen before the first step of adaptation: the texts, and how long it will take."""

from __future__ import annotations

import time

import click
import numpy as np

from gemb.io.text import duration, visible
from gemb.training.preflight import BAD_SHOWN, WIDTH, table
from gemb_torch.adapt_order import Example
from gemb_torch.adapt_session import Adaptation
from gemb_torch.adapt_steps import gradients, micro_batches
from gemb_torch.looking import MOMENTS, peak_bytes

_SHOWN = 3  # examples
_HEAD = ("source", "texts", "tokens", "share", "length", "cut", "format")


def look(adaptation: Adaptation) -> None:
    """Show what will be read, and predict time and memory. All processes call this together."""
    examples = adaptation.order().step()
    dry_run = adaptation.training.dry_run
    if adaptation.ranks.is_first and not dry_run:
        adaptation.run.write_json(adaptation.run.preflight, _to_json(adaptation, examples))
    speed, peak = _speed(adaptation, examples)
    if not adaptation.ranks.is_first or (adaptation.training.quiet and not dry_run):
        return
    steps, tokens = adaptation.steps, sum(one.tokens for one in examples)
    lines = [*_sources(adaptation), "", *_examples(adaptation, examples)]
    objective = ", ".join(task.name for task in adaptation.tasks)
    lines += [
        f"objective  {adaptation.adapt.objective}: {objective}",
        f"steps      {steps:,} of about {tokens:,} tokens, {len(examples):,} texts",
        f"about {speed:,.0f} tokens/s: {duration(steps * tokens / speed)} for {steps:,} steps, "
        f"{peak / 1e9:.1f} GB of memory",
    ]
    click.echo("\n".join(lines), err=not dry_run)


def _sources(adaptation: Adaptation) -> list[str]:
    order = adaptation.order()
    rows: list[tuple[str, ...]] = [_HEAD]
    bad: list[str] = []
    for store, share in zip(adaptation.stores, order.shares, strict=True):
        sizes = np.diff(store.ends, prepend=0)
        length = "/".join(f"{size:.0f}" for size in np.quantile(sizes, (0.5, 0.95, 1)))
        over = float((sizes > adaptation.longest).mean())
        cells = f"{len(store):,}", f"{sizes.sum():,}", f"{share:.1%}", length, f"{over:.1%}"
        rows.append((store.name, *cells, store.format))
        if store.bad_count:
            bad.append(f"{store.name}: {store.bad_count:,} bad rows are left out:")
            bad += [f"  {place}: {reason}" for place, reason in store.bad[:BAD_SHOWN]]
    words = (
        "length: tokens, median/95 %/longest; cut: texts over "
        f"{adaptation.longest} tokens, into parts"
    )
    return [*table(rows), words, *bad]


def _examples(adaptation: Adaptation, examples: list[Example]) -> list[str]:
    lines = []
    for number, one in enumerate(examples[:_SHOWN], 1):
        lines.append(f"example {number}: {_place(adaptation, one)}, {one.task.name}")
        lines += [f"  {side:<8}  {visible(text, WIDTH)}" for side, text in _sides(adaptation, one)]
        lines.append("")
    return lines


def _sides(adaptation: Adaptation, one: Example) -> list[tuple[str, str]]:
    def text(ids: np.typing.NDArray[np.int64]) -> str:
        return adaptation.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    return [("input", text(one.inputs)), ("target", text(one.targets))]


def _place(adaptation: Adaptation, one: Example) -> str:
    return f"{adaptation.stores[one.source].name}:{one.text + 1}"


def _to_json(adaptation: Adaptation, examples: list[Example]) -> dict[str, object]:
    """Return what the run's page shows of it (`gemb.run_record`)."""
    order = adaptation.order()
    sources = []
    for store, share in zip(adaptation.stores, order.shares, strict=True):
        sizes = np.diff(store.ends, prepend=0)
        median, p95, most = (float(size) for size in np.quantile(sizes, (0.5, 0.95, 1)))
        sources.append(
            {
                "name": store.name,
                "format": store.format,
                "rows": len(store),
                "bad": store.bad_count,
                "share": float(share),
                "passes": adaptation.steps
                * adaptation.adapt.tokens
                * float(share)
                / max(1, int(sizes.sum())),
                "cut": float((sizes > adaptation.longest).mean()),
                "tokens": {"median": median, "p95": p95, "max": most},
            }
        )
    return {
        "steps": adaptation.steps,
        "sources": sources,
        "examples": [
            {
                "source": adaptation.stores[one.source].name,
                "place": f"{_place(adaptation, one)}, {one.task.name}",
                "sides": _sides(adaptation, one),
            }
            for one in examples[:_SHOWN]
        ],
    }


def _speed(adaptation: Adaptation, examples: list[Example]) -> tuple[float, int]:
    """Return tokens a second, and the bytes that this process will need at its peak.

    Measured by the gradients of one micro-batch, which are then forgotten.
    """
    optimizer = adaptation.optimizer(adaptation.warmup)  # all learns
    tokens = adaptation.recipe.batch.micro_tokens
    micros = list(micro_batches(examples, tokens))
    micro = micros[len(micros) // 2]
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        gradients(adaptation, micro * adaptation.ranks.count)
        seconds = time.perf_counter() - started
    moments = sum(p.numel() * 4 * MOMENTS for p in optimizer.parameters.values())
    peak = peak_bytes(adaptation.device) + moments
    adaptation.model.zero_grad(set_to_none=True)
    return sum(one.tokens for one in micro) * adaptation.ranks.count / seconds, peak
