"""The ONNX Runtime backend: GGUF files and model folders on a CPU, in int8 where that is exact.

Importing this loads no library. `gguf_numbers` and `folder_numbers` read a model, `graph` writes it
as ONNX, `prepared` keeps that, `encode` runs it.
May import: `gemb`, but not its command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from gemb.backend import Backend, Check, Encoder, ModelDescription, Runtime
from gemb.errors import Missing, UsageError
from gemb.io.machine import has_gpu

if TYPE_CHECKING:
    from pathlib import Path

    from gemb.models.checkpoint import Checkpoint
    from gemb.models.gguf import GgufModel

PRECISIONS = ("auto", "int8", "fp32")


class OnnxBackend(Backend):
    """EmbeddingGemma on a CPU; the weights are prepared once and kept in the cache."""

    name = "onnx"
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "gemb", "tokenizers": "gemb"}
    rank = 15  # above those that open the same models: it is faster where it suits them

    def can_open(self, model: Path) -> bool:
        """Return whether the path looks like a GGUF file or a model folder."""
        from gemb.models.gguf_header import looks_like_gguf

        if looks_like_gguf(model):
            return True
        from gemb.models.checkpoint import looks_like_checkpoint

        return looks_like_checkpoint(model)

    def suits(self, model: Path, runtime: Runtime) -> bool:
        """Return whether int8 is exact and fast on this processor, and nothing else is asked for.

        Of a GGUF file fp32 is, too; a model folder in fp32, and all on a GPU, is PyTorch's. With
        AVX2 alone fp32 is the fastest for a GGUF file, but is prepared for longer, and needs more
        memory and disk than what llama.cpp saves: it runs where it is asked for.
        """
        if runtime.device not in ("auto", "cpu") or runtime.precision not in PRECISIONS:
            return False
        if (model.is_dir() and runtime.precision == "fp32") or _is_torchs(runtime):
            return False
        if runtime.precision == "fp32":
            return True
        try:
            from gemb_onnx.graph import FULL_RANGE
            from gemb_onnx.prepared import can_keep
            from gemb_onnx.probe import weight_range
        except Missing:
            return False
        # Preparing a model anew for each run takes longer than it saves.
        return can_keep() and weight_range() == FULL_RANGE

    def engine(self) -> str:
        """Return the library and its version."""
        from gemb_onnx.runtime import library

        return f"onnxruntime {library().__version__}"  # its package may have another name

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: the files are broken, or the precision or device cannot be.
            Missing: a library is not here.
            GembError: onnxruntime does not take the graph.
        """
        if runtime.precision not in PRECISIONS:
            raise UsageError(f"precision '{runtime.precision}'; onnx has {', '.join(PRECISIONS)}")
        if runtime.device not in ("auto", "cpu"):
            raise UsageError(f"device '{runtime.device}'; onnx has auto, cpu")
        from gemb_onnx.opened import open_encoder

        return open_encoder(_checked(model), runtime)

    def describe(self, model: Path) -> ModelDescription:
        """Return what the model's files say of it."""
        from gemb.models.checkpoint import describe_folder

        if model.is_dir():
            return describe_folder(model)
        from gemb.models.gguf import open_gguf

        return open_gguf(model).description()

    def checks(self) -> list[Check]:
        """Return the library's version, and what this processor's integer products are."""
        try:
            from gemb_onnx.probe import products
            from gemb_onnx.runtime import library

            installed = library().__version__
        except Missing as error:
            return [Check("onnxruntime", False, str(error), "pip install onnxruntime")]
        return [Check("onnxruntime", True, f"{installed}, {products()}")]


def _is_torchs(runtime: Runtime) -> bool:
    """Return whether PyTorch would run a model on a GPU."""
    return runtime.device != "cpu" and has_gpu() and find_spec("torch") is not None


def _checked(model: Path) -> Checkpoint | GgufModel:
    if model.is_dir():
        from gemb.models.checkpoint import open_checkpoint

        return open_checkpoint(model)
    from gemb.models.gguf import open_gguf

    return open_gguf(model)
