"""How good, small and fast the bundled model is, beside others: the table of the README.

    python tests/bench/bench_scores.py --data DEV [--json FILE] [--models NAME|NAME=REF|PATH ...]
    python tests/bench/bench_scores.py --data DEV --judge CANDIDATE.gguf [--bf16 FOLDER]

Every model is scored by gemb's own evaluation with the prompts that its documentation names; STS is
100 x Spearman, retrieval 100 x nDCG@10. The models are in `scored_models.py`, how the others are
run in `other_models.py`, how speed and start are taken in `timed_models.py`. NAME=REF says where a
model of gemb's is; PATH adds one.

Scores and times are kept in --cache by the model's fingerprint, so that a second call only prints,
and one that was stopped goes on where it was. --judge holds a model against the bars that the
bundled one must reach; exit code 1 where one is missed, 2 where a model of these is not here.
Sets with titles are not for this: the other models have no prompt that takes a title.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bars import NARROW, bars, judged
from kept_vectors import KeptVectors
from other_models import Absent
from scored_models import MODELS, Described, Own, chosen, describe
from timed_models import Times, measured

from gemb.datasets.sets import Suite, open_suite
from gemb.embedding.text_vectors import text_progress
from gemb.errors import GembError
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import MetricRow, Scores

if TYPE_CHECKING:
    from gemb.backend import Encoder

SETS = (
    "sts/stsb-en-dev.tsv",
    "sts/sick-r-trial.tsv",
    "retrieval/cosqa-dev",
    "retrieval/debian-desc-dev",
    "retrieval/xsum-1000",
)
TEACHER = "embeddinggemma-300m-bf16"
REFERENCE = "embeddinggemma-300m-q4_0"  # of speed and start
RIVAL = "all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is known of a model."""

    name: str
    fingerprint: str
    dims: tuple[int, ...]  # widest first
    megabytes: float  # 10^6 bytes of weights and tokenizer
    scores: Scores
    times: Times | None

    def cell(self, name: str, dim: int = 0) -> MetricRow:
        """Return the score of a set, or the mean of all, at a width; 0: the full one."""
        dim = dim or self.dims[0]
        if name != "mean":
            return self.scores.main(name, dim)
        return next(row for row in self.scores.means() if row.dim == dim)

    def mean(self, dim: int = 0) -> float:
        """Return 100 x the mean of the sets at a width."""
        return 100 * self.scores.mean(dim or self.dims[0])


def scored(found: Described, data: Path, sets: Sequence[str], cache: Path, *, keep: bool) -> Scores:
    """Return a model's scores on the sets, from the cache what is there.

    Args:
        found: the model.
        data: the folder of the sets.
        sets: their paths in it.
        cache: a folder.
        keep: whether to keep vectors, too, until a set is done.
    """
    encoder = None
    parts = []
    for name in sets:
        suite = open_suite(data / name)
        place = cache / f"{found.fingerprint}-{suite.sets[0].fingerprint}"
        file = place.with_suffix(".json")
        if not file.exists():
            encoder = encoder or found.open()
            _score(suite, KeptVectors(encoder, place) if keep else encoder, name).save(file)
            place.unlink(missing_ok=True)
        parts.append(Scores.load(file))
    return replace(
        parts[0],
        suite=", ".join(sets),
        texts=sum(one.texts for one in parts),
        cut=sum(one.cut for one in parts),
        sets=tuple(one.sets[0] for one in parts),
        rows=tuple(row for one in parts for row in one.rows),
        evidence={key: value for one in parts for key, value in one.evidence.items()},
    )


def _score(suite: Suite, encoder: Encoder, label: str) -> Scores:
    with text_progress(label) as progress:
        return evaluate(suite, encoder, progress=progress)


def timed(specs: dict[str, str], reference: str, options: argparse.Namespace) -> dict[str, Times]:
    """Return the times of models, from the cache what is there.

    Args:
        specs: fingerprint -> spec of those wanted.
        reference: the spec of what ratios are to; empty: it is not here, and nothing is measured.
        options: of the command line.
    """
    files = {mark: options.cache / f"{mark}.times.json" for mark in specs}
    wanted = {
        mark: spec
        for mark, spec in specs.items()
        if options.times == "again" or not files[mark].exists()
    }
    if wanted and reference and options.times != "kept":
        new = measured(list(wanted.values()), reference, options.data)
        for mark, spec in wanted.items():
            files[mark].write_text(json.dumps(asdict(new[spec])), encoding="utf-8")
    return {
        mark: Times(**json.loads(file.read_text(encoding="utf-8")))
        for mark, file in files.items()
        if file.exists()
    }


def lines(specs: Sequence[str], options: argparse.Namespace) -> tuple[list[Line], dict[str, str]]:
    """Return what is known of each model that is here, and why the others are not, by name."""
    found: dict[str, Described] = {}
    absent: dict[str, str] = {}
    for spec in specs:
        try:
            found[spec] = describe(chosen(spec))
        except Absent as error:
            absent[spec.partition("=")[0]] = str(error)
    scores = {
        spec: scored(
            one,
            options.data,
            options.sets,
            options.cache,
            keep=isinstance(chosen(spec), Own),
        )
        for spec, one in found.items()
    }
    reference = next((spec for spec in found if chosen(spec).name == REFERENCE), "")
    times = timed({one.fingerprint: spec for spec, one in found.items()}, reference, options)
    return [
        Line(
            name=chosen(spec).name,
            fingerprint=one.fingerprint,
            dims=one.dims,
            megabytes=one.size_bytes / 1e6,
            scores=scores[spec],
            times=times.get(one.fingerprint),
        )
        for spec, one in found.items()
    ], absent


def table(rows: Sequence[Line]) -> str:
    """Return the table in Markdown."""
    names = [one.name for one in rows[0].scores.sets]
    head = ["model", "width", *names, "mean", f"at {NARROW}", "MB", "tokens/s", "x", "start, s"]
    text = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        narrow = f"{row.mean(NARROW):.1f}" if NARROW in row.dims else ""
        times = ["", "", ""]
        if row.times:
            speed, start = row.times.tokens_per_second, row.times.start_s
            times = [f"{speed:,.0f}", f"{row.times.speed_ratio:.1f}", f"{start:.2f}"]
        cells = [f"{100 * row.cell(name).value:.1f}" for name in names]
        size = f"{row.megabytes:.0f}"
        text.append([row.name, str(row.dims[0]), *cells, f"{row.mean():.1f}", narrow, size, *times])
    return "\n".join(f"| {' | '.join(line)} |" for line in text)


def document(rows: Sequence[Line], absent: dict[str, str]) -> dict[str, object]:
    """Return all that is known, with the 95 % interval of each score."""
    return {
        "models": [
            {
                "name": row.name,
                "fingerprint": row.fingerprint,
                "megabytes": row.megabytes,
                "times": asdict(row.times) if row.times else None,
                "sets": [asdict(one) for one in row.scores.sets],
                "scores": [
                    asdict(row.cell(name, dim))
                    for dim in row.dims
                    for name in (*(one.name for one in row.scores.sets), "mean")
                ],
            }
            for row in rows
        ],
        "absent": absent,
    }


def main() -> int:
    """Make the table; return the exit code."""
    try:
        return _main()
    except GembError as error:
        print(f"bench_scores: {error}", file=sys.stderr)
        return error.exit_code


def _main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the development sets")
    parser.add_argument("--models", nargs="+", metavar="NAME[=REF]|PATH", default=[])
    parser.add_argument("--sets", nargs="+", metavar="PATH", default=SETS, help="in --data")
    parser.add_argument("--times", choices=["new", "again", "kept"], default="new")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "gemb-scores")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--judge", metavar="NAME[=REF]|PATH")
    parser.add_argument("--bf16", metavar="FOLDER|FILE", help="the judged model, not quantized")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        specs = {chosen(spec).name: spec for spec in options.models}
        if options.judge:
            describe(chosen(options.judge))  # before the others take their minutes
    except Absent as error:
        parser.error(str(error))
    if options.judge:
        needed = [specs.get(name, name) for name in (TEACHER, RIVAL, REFERENCE)]
        before = [f"before={options.bf16}"] if options.bf16 else []
        rows, absent = lines([options.judge, *before, *needed], options)
    else:
        rows, absent = lines(list(specs.values()) or [one.name for one in MODELS], options)
    for name, reason in absent.items():
        print(f"{name}: left out: {reason}", file=sys.stderr)
    if options.json:
        text = json.dumps(document(rows, absent), indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    if rows:
        print(table(rows))
    if not options.judge:
        return 0
    known = {row.name: row for row in rows}
    if absent.keys() & {options.judge.partition("=")[0], TEACHER, RIVAL}:
        return 2  # said above
    held = bars(rows[0], known[TEACHER], known[RIVAL], known.get("before"))
    print("\n" + judged(held))
    return int(any(bar.reached(bar.must) == "missed" for bar in held))


if __name__ == "__main__":
    sys.exit(main())
