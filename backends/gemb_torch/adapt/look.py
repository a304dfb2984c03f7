"""What is shown before the first step of adaptation: sources and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gemb.io.text import visible
from gemb.training.preflight import BAD_SHOWN, WIDTH, table
from gemb_torch.adapt.order import Example, TokenStore

_SHOWN = 3  # examples
_HEAD = ("source", "texts", "tokens", "share", "length", "cut", "format")


def source_checks(
    stores: Sequence[TokenStore], shares: NDArray[np.float64], longest: int, run_tokens: int
) -> list[dict[str, Any]]:
    """Return what is known of each source, as preflight.json has it.

    Args:
        stores: the sources.
        shares: of the examples, by source.
        longest: tokens of a text that is not taken in parts.
        run_tokens: of the whole run.
    """
    checks = []
    for store, share in zip(stores, shares.tolist(), strict=True):
        sizes = np.diff(store.ends, prepend=0)
        median, p95, most = (float(size) for size in np.quantile(sizes, (0.5, 0.95, 1)))
        total = int(sizes.sum())
        checks.append(
            {
                "name": store.name,
                "format": store.format,
                "rows": len(store),
                "bad": store.bad_count,
                "bad_rows": store.bad,
                "share": share,
                "passes": run_tokens * share / max(1, total),
                "cut": float((sizes > longest).mean()),
                "tokens": {"total": total, "median": median, "p95": p95, "max": most},
            }
        )
    return checks


def shown_examples(
    examples: Sequence[Example], stores: Sequence[TokenStore], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Return the first examples with their input and target as text, as preflight.json has them."""

    def text(ids: NDArray[np.int64]) -> str:
        return tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    return [
        {
            "source": stores[example.source].name,
            "place": f"{example.place(stores)}, {example.task.name}",
            "sides": [("input", text(example.inputs)), ("target", text(example.targets))],
        }
        for example in examples[:_SHOWN]
    ]


def table_lines(
    sources: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], longest: int
) -> list[str]:
    """Return the lines for a terminal, of `source_checks` and `shown_examples`."""
    rows: list[tuple[str, ...]] = [_HEAD]
    bad: list[str] = []
    for source in sources:
        tokens = source["tokens"]
        rows.append(
            (
                source["name"],
                f"{source['rows']:,}",
                f"{tokens['total']:,}",
                f"{source['share']:.1%}",
                "/".join(f"{tokens[key]:.0f}" for key in ("median", "p95", "max")),
                f"{source['cut']:.1%}",
                source["format"],
            )
        )
        if source["bad"]:
            bad.append(f"{source['name']}: {source['bad']:,} bad rows are left out:")
            bad += [f"  {place}: {reason}" for place, reason in source["bad_rows"][:BAD_SHOWN]]
    words = f"length: tokens, median/95 %/longest; cut: texts over {longest} tokens, into parts"
    lines = [*table(rows), words, *bad, ""]
    for number, example in enumerate(examples, 1):
        lines.append(f"example {number}: {example['place']}")
        lines += [f"  {side:<8}  {visible(text, WIDTH)}" for side, text in example["sides"]]
        lines.append("")
    return lines
