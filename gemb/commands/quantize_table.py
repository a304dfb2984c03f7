"""The output of `gemb quantize`: a line for each file, as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gemb.errors import NegativeAnswer
from gemb.evaluation.verdict import too_few
from gemb.io.notes import answer, note
from gemb.weights.measure import Measures
from gemb.weights.mix import Share, fitting_mix, sensitivity
from gemb.weights.quantize import Candidate, QuantizeJob, Quantizer


def print_ladder(quantizer: Quantizer, *, as_json: bool) -> None:
    """Print the measures of each file, as it is made.

    Raises:
        NegativeAnswer: a file was not written, or none was good enough.
    """
    table = _Table([file.quantization.label for file in quantizer.files])
    if not as_json:
        table.head(quantizer.baseline.source, quantizer.source.type)
    candidates = []
    for candidate in quantizer.ladder():
        candidates.append(candidate)
        if not as_json:
            table.line(candidate)
    if as_json:
        answer(_json(quantizer, candidates))
    _say_too_few(candidates)
    _judge(quantizer.job, candidates)


def print_fit(quantizer: Quantizer, size_bytes: int, *, as_json: bool) -> None:
    """Print the best mix that fits, and the measures of its file.

    Raises:
        NegativeAnswer: no mix fits, or its file was not good enough.
    """
    mix = fitting_mix(quantizer, size_bytes, f"{size_bytes / 1e6:g}M")
    rules = " ".join(f"--tensor '{rule.pattern}={rule.type}'" for rule in mix.rules)
    note(f"the mix for {mix.name}: -t {mix.type} {rules}")
    print_ladder(quantizer.of_mix(mix, size_bytes), as_json=as_json)


def _say_too_few(candidates: Sequence[Candidate]) -> None:
    """Say where the change of a score is no measure of a file, a limit or none (--max-drop)."""
    changes = [candidate.measures.change for candidate in candidates]
    few = [change.main.units for change in changes if change and change.word == "TOO FEW"]
    if few:
        note(too_few(few[0]))


def _judge(job: QuantizeJob, candidates: Sequence[Candidate]) -> None:
    """Raise NegativeAnswer if files are not good enough, with the reasons."""
    refused = [candidate for candidate in candidates if candidate.refused]
    if not refused or (job.limits.max_drop is not None and len(refused) < len(candidates)):
        return
    fate = "" if job.output is None else "not written: "
    reasons = "; ".join(f"{candidate.label}: {candidate.refused}" for candidate in refused)
    raise NegativeAnswer(f"{fate}{reasons}")


def print_shares(quantizer: Quantizer, *, as_json: bool) -> None:
    """Print the gain from raising each class of tensors to more bits."""
    base = quantizer.files[0].quantization
    raised = "q8_0" if base.type != "q8_0" else "bf16"
    shares: list[Share] = []
    unraised: Candidate | None = None
    for step in sensitivity(quantizer, base, raised):
        if isinstance(step, Candidate):
            unraised = step
            if not as_json:
                measures = step.measures
                answer(
                    f"{base.label} everywhere: {measures.size_bytes / 1e6:.1f} MB, "
                    f"least cosine {measures.min_cosine:.5f}, mean {measures.mean_cosine:.5f}"
                )
                answer(_share_head(raised, quantizer.job))
            continue
        shares.append(step)
        if not as_json:
            answer(_share_line(step, quantizer.job))
    assert unraised is not None
    _say_too_few([unraised, *(share.raised for share in shares)])
    if as_json:
        classes = [
            {
                "class": share.name,
                "bytes_more": share.bytes_more,
                "error_less": share.error_less,
                "share": share.share,
                **_candidate(share.raised),
            }
            for share in shares
        ]
        document = {"base": _candidate(unraised), "raised_to": raised, "classes": classes}
        answer(json.dumps(document, ensure_ascii=False, indent=2))


def _share_head(raised: str, job: QuantizeJob) -> str:
    score_title = f"  {'score':>15}" if job.suite else ""
    titles = f"{'MB more':>8} {'error less':>10} {'per MB':>8} {'least':>8}"
    return f"{'in ' + raised:12} {titles}{score_title}"


def _share_line(share: Share, job: QuantizeJob) -> str:
    megabytes = share.bytes_more / 1e6
    least = share.raised.measures.min_cosine
    cells = _changes(share.raised.measures) if job.suite else []
    score_cells = "".join(f"  {cell:>15}" for cell in cells)
    # A preset may have the class in that type already.
    rate = f"{share.share / megabytes:.2%}" if megabytes else "-"
    return (
        f"{share.name:12} {megabytes:8.1f} {share.share:10.1%} {rate:>8} {least:8.5f}{score_cells}"
    )


def print_plans(quantizer: Quantizer, *, as_json: bool) -> None:
    """Print the size of each planned file, and how many of its tensors have which type."""
    if as_json:
        rows = [
            {
                "type": file.quantization.label,
                "about_bytes": quantizer.about_bytes(file),
                "tensors": {tensor.name: tensor.type for tensor in file.plan},
            }
            for file in quantizer.files
        ]
        answer(json.dumps({"dry_run": True, "files": rows}, indent=2))
        return
    for file in quantizer.files:
        counts = file.type_counts().most_common()
        types = ", ".join(f"{count} {type_}" for type_, count in counts)
        megabytes = quantizer.about_bytes(file) / 1e6
        target = quantizer.target(file)
        where = f"{target}: " if target else ""
        answer(f"{where}{file.quantization.label}, about {megabytes:.1f} MB, {types}")
        for line in file.misfits:
            note(f"{file.quantization.name}: {line}")


class _Table:
    """Lines of one width."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._first = max(map(len, [*labels, "source f32+bf16"]), default=0)

    def head(self, source: Measures, type_: str) -> None:
        """Print the titles, and the source's line."""
        titles = ["MB", "least", "mean", "kept@10", *self._titles(source), "tokens/s"]
        widths = self._widths(source)
        cells = " ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
        answer(f"{'type':{self._first}} {cells}")
        self._print(f"source {type_}", source, "")

    def line(self, candidate: Candidate) -> None:
        """Print a file's line."""
        self._print(
            candidate.label, candidate.measures, candidate.refused and f"  {candidate.refused}"
        )

    def _print(self, label: str, measures: Measures, remark: str) -> None:
        cells = [
            f"{measures.size_bytes / 1e6:.1f}",
            f"{measures.min_cosine:.5f}",
            f"{measures.mean_cosine:.5f}",
            f"{measures.neighbours_kept:.1%}",
            *_changes(measures),
            f"{measures.tokens_per_s:,.0f}",
        ]
        line = " ".join(
            f"{cell:>{width}}" for cell, width in zip(cells, self._widths(measures), strict=True)
        )
        answer(f"{label:{self._first}} {line}{remark}")

    def _titles(self, source: Measures) -> list[str]:
        scores = source.scores
        if scores is None:
            return []
        return [f"{scores.metric} {size.dim}" for size in scores.sizes]

    def _widths(self, measures: Measures) -> list[int]:
        sizes = len(measures.scores.sizes) if measures.scores else 0
        return [7, 8, 8, 8, *[14] * sizes, 9]


def _changes(measures: Measures) -> list[str]:
    """Return the mean score in hundredths at each width: of the source, or its change."""
    scores, change = measures.scores, measures.change
    if scores is None:
        return []
    if change is None:
        return [f"{100 * row.value:.2f}" for row in scores.means()]
    return [
        f"{100 * size.difference:+.2f}"
        + ("" if size.low is None or size.high is None else f" ±{50 * (size.high - size.low):.2f}")
        for size in change.sizes
    ]


def _json(quantizer: Quantizer, candidates: Sequence[Candidate]) -> str:
    source = {"type": quantizer.source.type, **_measures(quantizer.baseline.source)}
    document = {"source": source, "files": [_candidate(candidate) for candidate in candidates]}
    return json.dumps(document, ensure_ascii=False, indent=2)


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "type": candidate.label,
        "file": str(candidate.target) if candidate.target else None,
        "refused": candidate.refused or None,
        "bar": candidate.bar,
        "tensors": dict(candidate.file.type_counts()),
        "not_fitting": candidate.file.misfits,
        **_measures(candidate.measures),
    }


def _measures(measures: Measures) -> dict[str, Any]:
    return {
        "size_bytes": measures.size_bytes,
        "min_cosine": measures.min_cosine,
        "mean_cosine": measures.mean_cosine,
        "kept_at_10": measures.neighbours_kept,
        "tokens_per_s": round(measures.tokens_per_s, 1),
        "worst_text": measures.worst_text,
        "scores": measures.scores.to_json() if measures.scores else None,
        "change": measures.change.to_json() if measures.change else None,
    }
