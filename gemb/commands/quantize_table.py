"""What `gemb quantize` prints: a line for each file, as soon as it is measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from gemb.errors import NegativeAnswer
from gemb.io.notes import is_quiet, note
from gemb.models.gguf_header import TENSORS
from gemb.weights.measure import Measures
from gemb.weights.mix import Share, fitting_mix, sensitivity
from gemb.weights.quantize import Candidate, Job, Plan, Workshop
from gemb.weights.types import is_matrix


def print_ladder(shop: Workshop, *, as_json: bool) -> None:
    """Make every file that is asked for, and print what each is like.

    Raises:
        NegativeAnswer: one was not put in place, or none was good enough.
    """
    job = shop.job
    table = _Table(job, [wanted.label for wanted in job.wanted])
    wanted = list(job.wanted)
    if job.limits.max_drop is not None:
        wanted.sort(key=lambda one: size_of(shop.planned(one)))
    if not as_json:
        table.head(shop.yardstick.source, shop.source.type)
    made: list[Candidate] = []
    for one in wanted:
        if not is_quiet():  # a plan takes a while
            for line in misfits(shop.planned(one)):
                note(f"{one.name}: {line}")
        found = shop.made(one)
        made.append(found)
        if not as_json:
            table.line(found)
        if job.limits.max_drop is not None and not found.refused:
            break
    if as_json:
        click.echo(_json(shop, made))
    _judge(job, made)


def print_fit(shop: Workshop, size_bytes: int, *, as_json: bool) -> None:
    """Find the best mix that fits, make it, and print what it is like.

    Raises:
        NegativeAnswer: nothing fits, or what does was not good enough.
    """
    mix = fitting_mix(shop, size_bytes, f"{size_bytes / 1e6:g}M")
    rules = " ".join(f"--tensor '{rule.pattern}={rule.type}'" for rule in mix.rules)
    note(f"the mix for {mix.name}: -t {mix.type} {rules}")
    limits = replace(shop.job.limits, max_bytes=size_bytes)
    shop.job = replace(shop.job, wanted=(mix,), limits=limits)
    print_ladder(shop, as_json=as_json)


def _judge(job: Job, made: Sequence[Candidate]) -> None:
    """Raise what is to be said of files that are not good enough."""
    refused = [one for one in made if one.refused]
    if not refused or (job.limits.max_drop is not None and len(refused) < len(made)):
        return
    kept = "" if job.output is None else "not written: "
    what = "; ".join(f"{one.label}: {one.refused}" for one in refused)
    raise NegativeAnswer(f"{kept}{what}")


def print_shares(shop: Workshop, *, as_json: bool) -> None:
    """Print what each class of tensors brings that is raised to more bits."""
    (base, *_) = shop.job.wanted
    raised = "q8_0" if base.type != "q8_0" else "bf16"
    found: list[Share] = []
    whole: Candidate | None = None
    for one in sensitivity(shop, base, raised):
        if isinstance(one, Candidate):
            whole = one
            if not as_json:
                measures = one.measures
                click.echo(
                    f"{base.label} everywhere: {measures.size_bytes / 1e6:.1f} MB, "
                    f"least cosine {measures.min_cosine:.5f}, mean {measures.mean_cosine:.5f}"
                )
                click.echo(_share_head(raised, shop.job))
            continue
        found.append(one)
        if not as_json:
            click.echo(_share_line(one, shop.job))
    assert whole is not None
    if as_json:
        click.echo(
            json.dumps(
                {
                    "base": _candidate(whole),
                    "raised_to": raised,
                    "classes": [
                        {
                            "class": one.name,
                            "bytes_more": one.bytes_more,
                            "error_less": one.error_less,
                            "share": one.share,
                            **_candidate(one.raised),
                        }
                        for one in found
                    ],
                },
                ensure_ascii=False,
                indent=2,
            )
        )


def _share_head(raised: str, job: Job) -> str:
    more = f"  {'score':>15}" if job.suite else ""
    return f"{'in ' + raised:12} {'MB more':>8} {'error less':>10} {'per MB':>8} {'least':>8}{more}"


def _share_line(one: Share, job: Job) -> str:
    megabytes = one.bytes_more / 1e6
    least = one.raised.measures.min_cosine
    more = "".join(f"  {cell:>15}" for cell in _changes(one.raised.measures)) if job.suite else ""
    # A preset may have the class in that type already.
    rate = f"{one.share / megabytes:.2%}" if megabytes else "-"
    return f"{one.name:12} {megabytes:8.1f} {one.share:10.1%} {rate:>8} {least:8.5f}{more}"


def print_plans(shop: Workshop, *, as_json: bool) -> None:
    """Print what each type would be: its size, and how many tensors have which type."""
    plans = [(one, shop.planned(one)) for one in shop.job.wanted]
    if as_json:
        rows = [
            {
                "type": one.label,
                "about_bytes": size_of(plan) + shop.source.other_bytes,
                "tensors": {tensor.name: tensor.type for tensor in plan},
            }
            for one, plan in plans
        ]
        click.echo(json.dumps({"dry_run": True, "files": rows}, indent=2))
        return
    for one, plan in plans:
        counts = Counter(tensor.type for tensor in plan if is_matrix(tensor.shape))
        types = ", ".join(f"{count} {type_}" for type_, count in counts.most_common())
        megabytes = (size_of(plan) + shop.source.other_bytes) / 1e6
        target = shop.target(one)
        where = f"{target}: " if target else ""
        click.echo(f"{where}{one.label}, about {megabytes:.1f} MB, {types}")
        for line in misfits(plan):
            note(f"{one.name}: {line}")


def size_of(plan: Plan) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.size_bytes for tensor in plan)


def misfits(plan: Plan) -> list[str]:
    """Return what is to be said of tensors whose rows their type does not fit."""
    rows: dict[tuple[str, str], list[int]] = {}
    for tensor in plan:
        if tensor.wanted != tensor.type:
            rows.setdefault((tensor.wanted, tensor.type), []).append(tensor.shape[0])
    return [
        f"{type_} instead of {wanted} in {len(some)} of {len(plan)} tensors: {wanted} packs "
        f"{TENSORS[wanted][1]} values of a row, which has {_or(some)}"
        for (wanted, type_), some in rows.items()
    ]


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(set(numbers))))


class _Table:
    """Lines of one width."""

    def __init__(self, job: Job, labels: Sequence[str]) -> None:
        self._job = job
        self._first = max(map(len, [*labels, "source f32+bf16"]), default=0)

    def head(self, source: Measures, type_: str) -> None:
        """Print the titles, and the source's line."""
        titles = ["MB", "least", "mean", "kept@10", *self._titles(source), "tokens/s"]
        widths = self._widths(source)
        cells = " ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
        click.echo(f"{'type':{self._first}} {cells}")
        self._print(f"source {type_}", source, "")

    def line(self, found: Candidate) -> None:
        """Print a file's line."""
        self._print(found.label, found.measures, found.refused and f"  {found.refused}")

    def _print(self, label: str, found: Measures, more: str) -> None:
        cells = [
            f"{found.size_bytes / 1e6:.1f}",
            f"{found.min_cosine:.5f}",
            f"{found.mean_cosine:.5f}",
            f"{found.kept:.1%}",
            *_changes(found),
            f"{found.tokens_per_s:,.0f}",
        ]
        line = " ".join(
            f"{cell:>{width}}" for cell, width in zip(cells, self._widths(found), strict=True)
        )
        click.echo(f"{label:{self._first}} {line}{more}")

    def _titles(self, source: Measures) -> list[str]:
        scores = source.scores
        if scores is None:
            return []
        return [f"{scores.metric} {size.dim}" for size in scores.sizes]

    def _widths(self, found: Measures) -> list[int]:
        sizes = len(found.scores.sizes) if found.scores else 0
        return [7, 8, 8, 8, *[14] * sizes, 9]


def _changes(found: Measures) -> list[str]:
    """Return the mean score in hundredths at each width: the source's, or what is lost or won."""
    scores, change = found.scores, found.change
    if scores is None:
        return []
    if change is None:
        return [f"{100 * row.value:.2f}" for row in scores.means()]
    return [f"{100 * one.difference:+.2f} ±{50 * (one.high - one.low):.2f}" for one in change.sizes]


def _json(shop: Workshop, made: Sequence[Candidate]) -> str:
    source = {"type": shop.source.type, **_measures(shop.yardstick.source)}
    document = {"source": source, "files": [_candidate(one) for one in made]}
    return json.dumps(document, ensure_ascii=False, indent=2)


def _candidate(one: Candidate) -> dict[str, Any]:
    counts = Counter(tensor.type for tensor in one.plan if is_matrix(tensor.shape))
    return {
        "type": one.label,
        "file": str(one.target) if one.target else None,
        "refused": one.refused or None,
        "bar": one.bar,
        "tensors": dict(counts),
        "not_fitting": misfits(one.plan),
        **_measures(one.measures),
    }


def _measures(found: Measures) -> dict[str, Any]:
    return {
        "size_bytes": found.size_bytes,
        "min_cosine": found.min_cosine,
        "mean_cosine": found.mean_cosine,
        "kept_at_10": found.kept,
        "tokens_per_s": round(found.tokens_per_s, 1),
        "worst_text": found.worst_text,
        "scores": found.scores.to_json() if found.scores else None,
        "change": found.change.to_json() if found.change else None,
    }
