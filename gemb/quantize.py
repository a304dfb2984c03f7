"""Quantize a model to one type or several; what it costs is shown before a file gets its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Runtime
from gemb.errors import UsageError
from gemb.evaluation.agreement import bar_for
from gemb.io.atomic import check_file, new_file
from gemb.io.notes import note
from gemb.io.paths import check_folder_of
from gemb.models.gguf import class_of
from gemb.plugins import able
from gemb.quantization import Quantization, TensorPlan, is_matrix, trained
from gemb.quantize_measure import Measures, Yardstick
from gemb.quantize_source import Source, model_name, naming, opened_source
from gemb.quantize_texts import calibration_texts

if TYPE_CHECKING:
    from gemb.datasets.sets import Suite
    from gemb.quantization import Importance

Plan = tuple[TensorPlan, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file must keep to."""

    min_cosine: float | None = None  # the least of any text; None: what is right for its types
    max_drop: float | None = None  # points (hundredths) of the mean score; None: any
    max_bytes: int | None = None  # of the file; None: any


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for."""

    model: Path  # a model folder or a GGUF file
    wanted: tuple[Quantization, ...]
    output: Path | None  # a file, or a folder where there are several; None: nothing is kept
    is_folder: bool = False
    limits: Limits = field(default_factory=Limits)
    requantize: bool = False  # take a source that is quantized already
    ignore_qat: bool = False  # take other types than the model was trained for
    corpus: str | None = None  # a file of texts, for the importance matrix
    texts: tuple[str, ...] = ()  # to compare vectors on
    suite: Suite | None = None
    dims: tuple[int, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    overwrite: bool = False
    is_plan: bool = False  # no file is made
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that was made and measured."""

    wanted: Quantization
    plan: Plan
    measures: Measures
    bar: float
    refused: str  # why it is not put in place; empty: nothing is against it
    target: Path | None  # where it is; None: nowhere

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return self.wanted.label


class Workshop:
    """A source, opened; makes files of it and measures them."""

    def __init__(self, job: Job, source: Source) -> None:
        self.job = job
        self.source = source

    @cached_property
    def yardstick(self) -> Yardstick:
        """The source, measured at the first use."""
        job = self.job
        return Yardstick(
            self.source.gguf, job.texts, job.suite, job.dims, job.runtime, quiet=job.quiet
        )

    @cached_property
    def importance(self) -> Importance | None:
        """Which columns matter to the user's corpus, found at the first use."""
        if self.job.corpus is None:
            return None
        texts = calibration_texts(self.job.corpus, self.source.prompts)
        if not self.job.quiet:
            note(f"looking which columns matter to {len(texts)} texts with their prompts")
        return able("importance").importance(self.source.gguf, texts, self.job.runtime)

    def planned(self, wanted: Quantization) -> Plan:
        """Return what becomes of each tensor; nothing is written."""
        wanted = replace(wanted, importance=self.importance)
        return able("quantize").quantize(self.source.gguf, None, wanted)

    def target(self, wanted: Quantization) -> Path | None:
        """Return where a file goes; None: nowhere."""
        return target_of(self.job, wanted)

    def made(self, wanted: Quantization, *, keep: bool = True) -> Candidate:
        """Return a file that was measured, and is put in place if nothing is against it.

        Args:
            wanted: its types.
            keep: put it in place, if there is one.

        Raises:
            UsageError: the types do not fit.
            OSError: the file cannot be written.
        """
        wanted = replace(wanted, importance=self.importance)
        target = self.target(wanted) if keep else None
        self.yardstick  # noqa: B018 - before anything is written
        with tempfile.TemporaryDirectory(
            prefix=".gemb-quantize-", dir=_scratch(self.job)
        ) as folder:
            place = Path(folder) / "measured.gguf"
            with naming(Path(folder).parent):
                plan = able("quantize").quantize(
                    self.source.gguf, place, wanted, threads=self.job.runtime.threads
                )
            measures = self.yardstick.measure(place, wanted.label)
            bar = _bar(plan, self.job.limits)
            refused = _refusal(measures, bar, self.job.limits)
            if target is not None and not refused:
                target.parent.mkdir(exist_ok=True)
                with new_file(target) as part:
                    place.replace(part)
        return Candidate(
            wanted=wanted,
            plan=plan,
            measures=measures,
            bar=bar,
            refused=refused,
            target=None if refused else target,
        )


@contextmanager
def workshop(job: Job) -> Iterator[Workshop]:
    """Yield the workshop of a job.

    Raises:
        UsageError: the source or what is asked of it is not right.
    """
    weights = not job.is_plan or job.corpus is not None  # which matter is told by running them
    with opened_source(
        job.model, _scratch(job), requantize=job.requantize, weights=weights
    ) as source:
        if source.qat and not job.ignore_qat:
            job = _heeding(job, source)
        if not job.wanted:
            raise UsageError(
                "-t TYPE is missing: this model was trained for no types; gemb quantize --types"
            )
        shop = Workshop(job, source)
        for wanted in job.wanted:
            shop.planned(wanted)  # what does not fit is refused before anything is measured
        yield shop


def _heeding(job: Job, source: Source) -> Job:
    """Return the job with the types that the model was trained for, or refuse others."""
    if job.corpus is not None:
        raise UsageError(
            f"{job.model} was trained for its types' plain rounding, which --imatrix changes; "
            "leave it out, or say --ignore-qat"
        )
    if not job.wanted:
        job = replace(job, wanted=(trained(source.qat),))
    for wanted in job.wanted:
        plan = able("quantize").quantize(source.gguf, None, wanted)
        _check_qat(job.model, source.qat, wanted, plan)
    return replace(job, wanted=tuple(replace(wanted, is_exact=True) for wanted in job.wanted))


def target_of(job: Job, wanted: Quantization) -> Path | None:
    """Return where a file goes; None: nowhere."""
    if job.output is None or not job.is_folder:
        return job.output
    return job.output / f"{model_name(job.model)}-{wanted.name}.gguf"


def check_targets(job: Job) -> None:
    """Refuse files that cannot be written, before anything is made.

    Raises:
        UsageError: one exists, or its folder cannot take it.
    """
    if job.output is None:
        return
    if job.is_folder and not job.output.is_dir():
        if job.output.exists() or job.output.suffix == ".gguf":
            raise UsageError(f"{job.output} is a file; several types want a folder")
        check_folder_of(job.output)
        return
    for wanted in job.wanted:
        target = target_of(job, wanted)
        assert target is not None, "there is an output"
        _check_file(target, job)
    if not job.wanted:
        _check_file(job.output, job)


def _check_file(target: Path, job: Job) -> None:
    if target.exists() and target.samefile(job.model):
        raise UsageError(f"{target} is the model itself; write elsewhere")
    check_file(target, overwrite=job.overwrite)


def _scratch(job: Job) -> Path | None:
    """Return the folder for what does not stay: that of the output, which has room for it."""
    if job.output is None:
        return None
    folder = Path(os.path.realpath(job.output))
    return folder if job.output.is_dir() else folder.parent


def _bar(plan: Plan, limits: Limits) -> float:
    if limits.min_cosine is not None:
        return limits.min_cosine
    types = {tensor.type for tensor in plan if is_matrix(tensor.shape)}
    return bar_for("f32", "+".join(sorted(types)))


def _refusal(found: Measures, bar: float, limits: Limits) -> str:
    """Return why a file is not put in place, in a few words; empty: it may be."""
    if found.failed:
        return f"{found.failed} texts failed"
    if limits.max_bytes is not None and found.size_bytes > limits.max_bytes:
        more = found.size_bytes - limits.max_bytes
        return f"{more:,} bytes larger than {limits.max_bytes:,} (--target-size)"
    if found.min_cosine < bar:
        return f"least cosine {found.min_cosine:.3f}, below {bar:g} (--min-cosine)"
    if limits.max_drop is not None and found.drop > limits.max_drop:
        return f"{found.drop:.2f} points lost, more than {limits.max_drop:g} (--max-drop)"
    return ""


def _check_qat(model: Path, qat: Mapping[str, str], wanted: Quantization, plan: Plan) -> None:
    said = ", ".join(f"{kind} {type_}" for kind, type_ in qat.items())
    for tensor in plan:
        if not is_matrix(tensor.shape):
            continue
        kind = class_of(tensor.name)
        if tensor.wanted != qat.get(kind, tensor.source):
            raise UsageError(
                f"{model} was trained to be {said}; {tensor.name} as {tensor.wanted} "
                f"({wanted.name}) loses what that gained: name no types, or say --ignore-qat"
            )
