"""Quantize a model to one type or several; each file is measured before it gets its name.

The source is an unquantized GGUF file; a model folder is exported to one first. The type of each
tensor is planned once for each file. A dry run prints the plan; otherwise it is compared with the
types that the model was trained for, and written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gemb.backend import Quantization, Runtime, TensorPlan
from gemb.errors import UsageError
from gemb.evaluation.agreement import bar_for
from gemb.io.atomic import check_file, new_file, scratch_folder
from gemb.io.notes import note, warn
from gemb.io.paths import check_folder_of
from gemb.models.gguf import GgufModel, open_gguf
from gemb.models.gguf_header import TENSORS, GgufHeader
from gemb.models.qat import GGUF_KEY
from gemb.models.tensors import tensor_class
from gemb.plugins import able
from gemb.weights.measure import Baseline, Measures, calibration_texts
from gemb.weights.types import FILE_TYPES, PLAIN, is_matrix, trained

if TYPE_CHECKING:
    from gemb.backend import Importance
    from gemb.datasets.sets import Suite


@dataclass(frozen=True, kw_only=True)
class GgufSource:
    """A GGUF file to be quantized."""

    gguf: Path
    type: str  # of its matrices: f32, bf16, f32+bf16
    other_bytes: int  # of the file, besides the tensors': mostly the vocabulary
    prompts: Mapping[str, str]
    qat: Mapping[str, str]  # token_embd, attention, ffn, dense -> type it was trained for; or none


@contextmanager
def opened_source(
    model: Path, scratch: Path | None, *, requantize: bool, weights: bool = True
) -> Iterator[GgufSource]:
    """Yield the source; the export of a folder is removed afterwards.

    Args:
        model: a model folder or a GGUF file.
        scratch: the folder for the export, as large as the model in 32 bits; None: the system's.
        requantize: take a file whose matrices are quantized already.
        weights: False: a header is enough, and of a folder no more is written.

    Raises:
        UsageError: it is quantized already, or no model.
        OSError: there is no room for the export.
    """
    if not model.is_dir():
        checked = open_gguf(model)
        _refuse_quantized(checked.header, requantize=requantize)
        yield _source(checked)
        return
    with scratch_folder("quantize", scratch) as folder:
        exported = folder / "source.gguf"
        with naming(folder.parent):
            able("export_gguf").export_gguf(model, exported, outtype="f32", weights=weights)
        yield _source(open_gguf(exported))


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let errors of a temporary file name its folder, whose disk may be full."""
    try:
        yield
    except OSError as error:
        if error.filename is None or folder in Path(os.fsdecode(error.filename)).parents:
            error.filename = str(folder)
        raise


def model_name(model: Path) -> str:
    """Return the stem of files that are made of a model: its name without a type at the end."""
    if model.is_dir():
        return model.resolve().name
    head, _, tail = model.stem.rpartition("-")
    return head if head and tail.lower() in FILE_TYPES else model.stem


def _source(model: GgufModel) -> GgufSource:
    header = model.header
    types = {tensor.type for tensor in header.tensors.values() if is_matrix(tensor.shape)}
    return GgufSource(
        gguf=header.path,
        type="+".join(sorted(types)),
        other_bytes=header.data_start,
        prompts=model.prompts,
        qat=_trained(model),
    )


def _trained(model: GgufModel) -> dict[str, str]:
    """Return the types that the model was trained for; none if its values have changed since."""
    types = model.trained_types()
    if not types and GGUF_KEY in model.header.metadata:
        warn(
            f"{model.header.path} was trained for its types, but its numbers are "
            f"{model.types()['ffn']} by now; quantize the model folder or an f32 file of it"
        )
    return types


def _refuse_quantized(header: GgufHeader, *, requantize: bool) -> None:
    for tensor in header.tensors.values():
        if is_matrix(tensor.shape) and tensor.type.lower() not in PLAIN and not requantize:
            raise UsageError(
                f"{header.path} is quantized already ({tensor.name} is {tensor.type}), and its "
                "losses would add up; quantize the model folder or a bf16 file of it, or say "
                "--requantize"
            )


TensorPlans = tuple[TensorPlan, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that a file must keep."""

    min_cosine: float | None = None  # the least of any text; None: that of its types
    max_drop: float | None = None  # points (hundredths) of the mean score; None: any
    max_bytes: int | None = None  # of the file; None: any


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """What to quantize, to which types, and where to write it."""

    model: Path  # a model folder or a GGUF file
    quantizations: tuple[Quantization, ...]  # none: the types that the model was trained for
    output: Path | None  # a file, or a folder where there are several; None: nothing is kept
    is_folder: bool = False
    limits: Limits = field(default_factory=Limits)
    requantize: bool = False  # take a source that is quantized already
    ignore_qat: bool = False  # take other types than the model was trained for
    corpus: str | None = None  # a file of texts, for the importance matrix
    encoding: str = ""  # of these, as `gemb.texts.contents.checked_encoding` returns it
    texts: tuple[str, ...] = ()  # to compare vectors on
    suite: Suite | None = None
    dims: tuple[int, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    overwrite: bool = False
    is_plan: bool = False  # no file is made


class PlannedFile(NamedTuple):
    """A file that can be made: the type of each tensor is decided."""

    quantization: Quantization
    plan: TensorPlans

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.plan)

    @property
    def misfits(self) -> list[str]:
        """A line for each type whose blocks do not fit the rows, with the type used instead."""
        rows: dict[tuple[str, str], list[int]] = {}
        for tensor in self.plan:
            if tensor.requested != tensor.type:
                rows.setdefault((tensor.requested, tensor.type), []).append(tensor.shape[0])
        return [
            f"{type_} instead of {requested} in {len(lengths)} of {len(self.plan)} tensors: "
            f"{requested} packs {TENSORS[requested][1]} values of a row, which has "
            f"{' or '.join(map(str, sorted(set(lengths))))}"
            for (requested, type_), lengths in rows.items()
        ]

    def type_counts(self) -> Counter[str]:
        """Return how many matrices have each type."""
        return Counter(tensor.type for tensor in self.plan if is_matrix(tensor.shape))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that was made and measured."""

    file: PlannedFile
    measures: Measures
    bar: float  # the least cosine that a text may have
    refused: str  # why the file is not written to its target; empty: it is
    target: Path | None  # the written file; None: none is kept

    @property
    def label(self) -> str:
        """Its name in a table."""
        return self.file.quantization.label


class Quantizer:
    """An opened source, whose files are planned, made and measured."""

    def __init__(self, job: QuantizeJob, source: GgufSource) -> None:
        self.job = job
        self.source = source

    @cached_property
    def baseline(self) -> Baseline:
        """The source, measured at the first use."""
        job = self.job
        return Baseline(self.source.gguf, job.texts, job.suite, job.dims, job.runtime)

    @cached_property
    def importance(self) -> Importance | None:
        """The importance of columns for the user's corpus, measured at the first use."""
        if self.job.corpus is None:
            return None
        texts = calibration_texts(self.job.corpus, self.source.prompts, self.job.encoding)
        note(f"measuring which columns matter to {len(texts)} texts with their prompts")
        return able("importance").importance(self.source.gguf, texts, self.job.runtime)

    @cached_property
    def files(self) -> tuple[PlannedFile, ...]:
        """The planned files of the job.

        Raises:
            UsageError: a type or a rule does not fit, or is not what the model was trained for.
        """
        job, qat = self.job, self.source.qat
        quantizations = job.quantizations
        if not qat or job.ignore_qat:
            if not quantizations:
                raise UsageError(
                    "-t TYPE is missing: this model was trained for no types; gemb quantize --types"
                )
            return tuple(map(self.planned, quantizations))
        if job.corpus is not None:
            raise UsageError(
                f"{job.model} was trained for its types' plain rounding, which --imatrix changes; "
                "leave it out, or say --ignore-qat"
            )
        files = []
        for quantization in quantizations or (trained(qat),):
            file = self.planned(replace(quantization, is_exact=True))
            _check_qat(job.model, qat, file)
            files.append(file)
        return tuple(files)

    def planned(self, quantization: Quantization) -> PlannedFile:
        """Decide the type of each tensor; nothing is written.

        Raises:
            UsageError: a type or a rule does not fit.
        """
        quantization = replace(quantization, importance=self.importance)
        plan = able("quantize").quantize(self.source.gguf, None, quantization)
        return PlannedFile(quantization, plan)

    def about_bytes(self, file: PlannedFile) -> int:
        """Return the size of a planned file, to a few hundred bytes."""
        return file.tensor_bytes + self.source.other_bytes

    def target(self, file: PlannedFile) -> Path | None:
        """Return the path of a planned file; None: it is not kept."""
        return target_of(self.job, file.quantization)

    def ladder(self) -> Iterator[Candidate]:
        """Make the files of the job one by one, and yield each when it is measured.

        With `max_drop` the smallest comes first, and the first good enough ends the iteration.
        """
        files = list(self.files)
        if self.job.limits.max_drop is not None:
            files.sort(key=lambda file: file.tensor_bytes)
        for file in files:
            for line in file.misfits:
                note(f"{file.quantization.name}: {line}")
            candidate = self.made(file)
            yield candidate
            if self.job.limits.max_drop is not None and not candidate.refused:
                return

    def made(self, file: PlannedFile, *, keep: bool = True) -> Candidate:
        """Make a file, measure it, and move it to its target if it keeps the limits.

        Args:
            file: the plan of the file.
            keep: move the file to its target, if it has one.

        Raises:
            OSError: the file cannot be written.
        """
        job = self.job
        target = self.target(file) if keep else None
        baseline = self.baseline  # measured before anything is written
        with scratch_folder("quantize", _scratch(job)) as folder:
            part = folder / "measured.gguf"
            with naming(folder.parent):
                able("quantize").quantize(
                    self.source.gguf,
                    part,
                    file.quantization,
                    plan=file.plan,
                    threads=job.runtime.threads,
                )
            measures = baseline.measure(part, file.quantization.label)
            bar = _bar(file.plan, job.limits)
            refused = _refusal(measures, bar, job.limits)
            if target is not None and not refused:
                target.parent.mkdir(exist_ok=True)
                with new_file(target) as new:
                    part.replace(new)
        return Candidate(
            file=file,
            measures=measures,
            bar=bar,
            refused=refused,
            target=None if refused else target,
        )

    def of_mix(self, mix: Quantization, max_bytes: int) -> Quantizer:
        """Return a quantizer of the same source that makes only this mix, up to `max_bytes`."""
        limits = replace(self.job.limits, max_bytes=max_bytes)
        mix_quantizer = Quantizer(
            replace(self.job, quantizations=(mix,), limits=limits), self.source
        )
        mix_quantizer.baseline, mix_quantizer.importance = self.baseline, self.importance
        mix_quantizer.files = (self.planned(mix),)
        return mix_quantizer


@contextmanager
def quantizer(job: QuantizeJob) -> Iterator[Quantizer]:
    """Yield the quantizer of a job, with all its files planned, so that errors come first.

    Raises:
        UsageError: the source is no unquantized model, or the job does not fit it.
    """
    weights = not job.is_plan or job.corpus is not None  # importance is found by running them
    with opened_source(
        job.model, _scratch(job), requantize=job.requantize, weights=weights
    ) as source:
        opened = Quantizer(job, source)
        opened.files  # noqa: B018 - planned here, before anything is measured
        yield opened


def target_of(job: QuantizeJob, quantization: Quantization) -> Path | None:
    """Return the path of a file of this quantization; None: it is not kept."""
    if job.output is None or not job.is_folder:
        return job.output
    return job.output / f"{model_name(job.model)}-{quantization.name}.gguf"


def check_targets(job: QuantizeJob) -> None:
    """Refuse files that cannot be written, before anything is made.

    Raises:
        UsageError: a file exists, or its folder cannot be written to.
    """
    if job.output is None:
        return
    if job.is_folder and not job.output.is_dir():
        if job.output.exists() or job.output.suffix == ".gguf":
            raise UsageError(f"{job.output} is a file; several types require a folder")
        check_folder_of(job.output)
        return
    for quantization in job.quantizations:
        target = target_of(job, quantization)
        assert target is not None, "there is an output"
        _check_file(target, job)
    if not job.quantizations:
        _check_file(job.output, job)


def _check_file(target: Path, job: QuantizeJob) -> None:
    if target.exists() and target.samefile(job.model):
        raise UsageError(f"{target} is the model itself; write elsewhere")
    check_file(target, overwrite=job.overwrite)


def _scratch(job: QuantizeJob) -> Path | None:
    """Return the folder for temporary files: that of the output, which has room for them."""
    if job.output is None:
        return None
    folder = Path(os.path.realpath(job.output))
    return folder if job.output.is_dir() else folder.parent


def _bar(plan: TensorPlans, limits: Limits) -> float:
    if limits.min_cosine is not None:
        return limits.min_cosine
    types = {tensor.type for tensor in plan if is_matrix(tensor.shape)}
    return bar_for("f32", "+".join(sorted(types)))


def _refusal(measures: Measures, bar: float, limits: Limits) -> str:
    """Return why a file is refused, in a few words; empty: it is not."""
    if measures.failed:
        return f"{measures.failed} texts failed"
    if limits.max_bytes is not None and measures.size_bytes > limits.max_bytes:
        excess = measures.size_bytes - limits.max_bytes
        return f"{excess:,} bytes larger than {limits.max_bytes:,} (--target-size)"
    if measures.min_cosine < bar:
        return f"least cosine {measures.min_cosine:.3f}, below {bar:g} (--min-cosine)"
    if limits.max_drop is not None and measures.drop > limits.max_drop:
        return f"{measures.drop:.2f} points lost, more than {limits.max_drop:g} (--max-drop)"
    return ""


def _check_qat(model: Path, qat: Mapping[str, str], file: PlannedFile) -> None:
    """Refuse a file whose types are not those that the model was trained for."""
    types = ", ".join(f"{kind} {type_}" for kind, type_ in qat.items())
    for tensor in file.plan:
        if not is_matrix(tensor.shape):
            continue
        if tensor.requested != qat.get(tensor_class(tensor.name), tensor.source):
            raise UsageError(
                f"{model} was trained to be {types}; {tensor.name} as {tensor.requested} "
                f"({file.quantization.name}) loses what that gained: name no types, or say "
                "--ignore-qat"
            )
