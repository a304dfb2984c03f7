"""The plugin interface: what a backend can do, and the values that pass between it and gemb.

A backend is a class named by an entry point of the group `gemb.backends` (`gemb.plugins` finds it).
The built-in ones are found in the same way. It overrides the methods that it supports; the others
refuse. It imports its tensor library in its methods. `backends/README.md` shows one.

    Backend     what it is called, what it requires, and how a model is opened and described
    Jobs        what a backend may do with model files, too: export, quantize, cut, train
    Encoder     an open model: texts to token ids, token ids to vectors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from gemb.errors import UsageError
from gemb.models.profile import ModelDescription as ModelDescription
from gemb.models.profile import ModelProfile as ModelProfile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds
    from gemb.recipe.schema import Recipe

    Importance = Mapping[str, NDArray[np.float32]]  # tensor -> mean square of each column's input

PRECISIONS = ("auto", "fp32", "bf16", "int8")  # of the arithmetic; a backend has some of them


class Encoder(Protocol):
    """An open model."""

    profile: ModelProfile

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's token ids, int32 [tokens], with the tokenizer's own (BOS, EOS).

        Nothing is cut here, however long the text: the caller decides, and reports.
        """

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences, each of 1 to `profile.max_tokens` ids, in any order of length.
        A row whose numbers are not finite is returned as NaN; it spoils no other row.
        """


@runtime_checkable
class Narrowing(Protocol):
    """An open model that takes less time for fewer components of its vectors."""

    def narrowed(self, dim: int) -> Encoder:
        """Return the model with vectors of the first `dim` components, of length one again."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a model is to be run."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1
    threads: int = 0  # 0: one for each core
    precision: str = "auto"  # one of `PRECISIONS`
    verbose: bool = False  # show the messages of native libraries


@dataclass(frozen=True)
class Check:
    """One line of `gemb doctor`."""

    name: str
    ok: bool
    detail: str
    fix: str = ""  # the command that mends it


class Jobs:
    """The work on model files that a backend may support, each method for itself."""

    name: ClassVar[str]

    def export_gguf(
        self, source: Path, target: Path | None, *, outtype: str, weights: bool = True
    ) -> Mapping[str, str]:
        """Write the model folder `source` as one GGUF file `target`.

        Args:
            source: the model folder.
            target: the file. None: nothing is written; what would be refused is refused.
            outtype: f32, bf16, q8_0 or q4_0; auto: the types that the model was trained for, or
                bf16.
            weights: False: write the header, and make the file as long as it would be. That is
                enough to plan a quantization with.

        Returns:
            The types in the file, by class of tensors (`gemb.models.tensors.CLASSES`).

        Raises:
            UsageError: the folder holds what a GGUF file cannot.
        """
        raise self.cannot("export_gguf")

    def quantize(
        self,
        source: Path,
        target: Path | None,
        quantization: Quantization,
        *,
        plan: tuple[TensorPlan, ...] | None = None,
        threads: int = 0,
    ) -> tuple[TensorPlan, ...]:
        """Write the GGUF file `source` as another one, `target`, in other types.

        Returns what becomes of each tensor, in the file's order. Without a target nothing is
        written: what would be refused before writing is refused. A plan is what an earlier call
        without a target returned of the same source and quantization; it is not made again.

        Raises:
            UsageError: a rule or a type does not fit the file.
        """
        raise self.cannot("quantize")

    def importance(self, model: Path, texts: Sequence[str], runtime: Runtime) -> Importance:
        """Return how much each column of each matrix of a GGUF file matters to these texts.

        That is the mean square of what the column is multiplied with, float32 [row], by the name
        of the tensor. The texts have their prompts already.
        """
        raise self.cannot("importance")

    def cut(self, source: Path, target: Path | None, cut: Cut) -> None:
        """Write a smaller model folder `target`, made from the folder `source`.

        Without a target nothing is written: what would be refused before writing is refused.
        """
        raise self.cannot("cut")

    def train(self, recipe: Recipe, training: Training) -> None:
        """Train a model as the recipe says, into the run folder.

        The run folder holds the result: the model, the scores, and the verdict where the recipe
        has evaluation sets (`gemb.recipe.run_folder.RunFolder`).

        Raises:
            UsageError: the recipe, the data or the model does not fit.
            Stopped: a signal came; the run can go on from its last checkpoint.
            GembError: a loss or gradient is not finite.
        """
        raise self.cannot("train")

    def cannot(self, method: str) -> UsageError:
        """Return the refusal of a method that this backend does not have."""
        return UsageError(f"backend '{self.name}' cannot {method.replace('_', '-')}")


class Backend(Jobs):
    """One way to run models. A subclass overrides the methods that it supports."""

    requires: ClassVar[Mapping[str, str]] = {}  # module -> the package to `pip install` for it
    rank: ClassVar[int] = 0  # of several that could do the same, the highest does; built-in: >= 10

    def can_open(self, model: Path) -> bool:
        """Return whether the path looks like a model of this backend. Reads little."""
        return False

    def suits(self, model: Path, runtime: Runtime) -> bool:
        """Return whether this backend is a good choice where none is named.

        Asked of a model that it can open, once its libraries are known to be installed.
        """
        return True

    def engine(self) -> str:
        """Return what computes, with its version: "onnxruntime 1.32.0"; empty: it is not told."""
        return ""

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: the files are not a model, or one that would be computed wrongly.
        """
        raise self.cannot("open")

    def describe(self, model: Path) -> ModelDescription:
        """Return what the model's files say of it. Loads no weights and no tensor library.

        Raises:
            UsageError: the files are not a model.
        """
        raise self.cannot("describe")

    def checks(self) -> list[Check]:
        """Return what `gemb doctor` prints of this backend, libraries and versions first."""
        return []

    def can(self, method: str) -> bool:
        """Return whether this backend overrides a method, one of `Backend`'s or `Jobs`'."""
        return getattr(type(self), method) is not getattr(Backend, method)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What to keep of a model."""

    layers: tuple[int, ...] | None = None  # 0-based layers to keep, ascending; None: all
    vocab: int | None = None  # how many tokens to keep; None: all
    vocab_texts: tuple[Path, ...] = ()  # files whose most used tokens are kept
    encoding: str = ""  # of these files, as `gemb.texts.contents.checked_encoding` returns it


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a recipe is to be run."""

    run: Path  # the run's folder
    resume: str = "never"  # auto: from the last checkpoint, if there is one; or its path
    dry_run: bool = False  # only look at the data and predict
    strict: bool = False  # a bad row stops
    baseline: bool = True  # evaluate before the first step
    runtime: Runtime = Runtime()
    command: tuple[str, ...] = ()  # what starts this again: the processes of a run of several
    launch: str = "auto"  # none: only this process; torchrun: at least one beside it
    processes: int = 0  # on this machine; 0: one for each GPU, or one
    nodes: int = 1  # machines
    meeting: str = ""  # HOST:PORT where machines meet


class Rule(NamedTuple):
    """Tensors whose name the pattern finds have this type; the first rule that finds one counts."""

    pattern: str
    type: str  # of `gemb.models.gguf_header.TENSORS`


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The types of a GGUF file that is to be written."""

    name: str  # of `FILE_TYPES` or `PRESETS`; part of the file's name
    type: str  # of `FILE_TYPES`
    rules: tuple[Rule, ...] = ()  # the user's first
    label: str  # the name, and the user's rules
    is_exact: bool = False  # the values of the reference rounding, which training has imitated
    importance: Importance | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """What becomes of one tensor."""

    name: str
    shape: tuple[int, ...]  # the innermost first
    source: str  # type in the source, in lower case
    type: str  # type in the file
    requested: str  # the type that was asked for; not `type` where its rows do not fit it

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        from gemb.models.gguf_header import TENSORS

        _, block, size = TENSORS[self.type]
        return -(-prod(self.shape) // block) * size
