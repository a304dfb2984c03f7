"""What is quantized: an unquantized GGUF file, which a model folder is exported to first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Quantization, Runtime, TensorPlan
from gemb.errors import UsageError
from gemb.evaluation.agreement import bar_for
from gemb.io.atomic import check_file, new_file
from gemb.io.notes import note, warn
from gemb.io.paths import check_folder_of
from gemb.models.gguf import GgufModel, open_gguf
from gemb.models.gguf_header import GgufHeader
from gemb.models.qat import GGUF_KEY
from gemb.models.tensors import tensor_class
from gemb.plugins import able
from gemb.weights.measure import Measures, Yardstick, calibration_texts
from gemb.weights.types import FILE_TYPES, PLAIN, is_matrix, trained

if TYPE_CHECKING:
    from gemb.backend import Importance
    from gemb.datasets.sets import Suite


@dataclass(frozen=True, kw_only=True)
class Source:
    """A GGUF file to be quantized."""

    gguf: Path
    type: str  # of its matrices: f32, bf16, f32+bf16
    other_bytes: int  # of the file, besides the tensors': mostly the vocabulary
    prompts: Mapping[str, str]
    qat: Mapping[str, str]  # token_embd, attention, ffn, dense -> type it was trained for; or none


@contextmanager
def opened_source(
    model: Path, scratch: Path | None, *, requantize: bool, weights: bool = True
) -> Iterator[Source]:
    """Yield the source; what a folder was exported to is gone afterwards.

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
    with tempfile.TemporaryDirectory(prefix=".gemb-quantize-", dir=scratch) as folder:
        exported = Path(folder) / "source.gguf"
        with naming(Path(folder).parent):
            able("export_gguf").export_gguf(model, exported, outtype="f32", weights=weights)
        yield _source(open_gguf(exported))


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let an error of a file that is gone afterwards name the folder, which may be full."""
    try:
        yield
    except OSError as error:
        if error.filename is None or folder in Path(os.fsdecode(error.filename)).parents:
            error.filename = str(folder)
        raise


def model_name(model: Path) -> str:
    """Return what files made of a model are called: its name without a type at the end."""
    if model.is_dir():
        return model.resolve().name
    head, _, tail = model.stem.rpartition("-")
    return head if head and tail.lower() in FILE_TYPES else model.stem


def _source(model: GgufModel) -> Source:
    header = model.header
    types = {one.type for one in header.tensors.values() if is_matrix(one.shape)}
    return Source(
        gguf=header.path,
        type="+".join(sorted(types)),
        other_bytes=header.data_start,
        prompts=model.prompts,
        qat=_trained(model),
    )


def _trained(model: GgufModel) -> dict[str, str]:
    """Return the types that the model was trained for; none where its numbers are others by now."""
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


# Quantize a model to one type or several; what it costs is shown before a file gets its name.


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
        return Yardstick(self.source.gguf, job.texts, job.suite, job.dims, job.runtime)

    @cached_property
    def importance(self) -> Importance | None:
        """Which columns matter to the user's corpus, found at the first use."""
        if self.job.corpus is None:
            return None
        texts = calibration_texts(self.job.corpus, self.source.prompts)
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
        kind = tensor_class(tensor.name)
        if tensor.wanted != qat.get(kind, tensor.source):
            raise UsageError(
                f"{model} was trained to be {said}; {tensor.name} as {tensor.wanted} "
                f"({wanted.name}) loses what that gained: name no types, or say --ignore-qat"
            )
