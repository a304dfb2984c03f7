"""The llama.cpp backend: GGUF files, written and run. Importing this loads no library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gemb.backend import Backend, Check, Encoder, ModelDescription, Runtime
from gemb.errors import UsageError

if TYPE_CHECKING:
    from gemb.backend import Importance, Quantization, TensorPlan


class LlamaCppBackend(Backend):
    """GGUF files of architecture `gemma-embedding`, written by gguf and run by llama.cpp."""

    name = "llamacpp"
    requires: ClassVar[Mapping[str, str]] = {"llama_cpp": "gemb"}
    rank = 10

    def can_open(self, model: Path) -> bool:
        """Return whether the path is a file that begins as GGUF does, or is named so."""
        from gemb.models.gguf_header import looks_like_gguf

        return looks_like_gguf(model)

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open file.

        Raises:
            UsageError: it is broken, no EmbeddingGemma, or one that would be computed wrongly; or
                a precision is asked for, which the file alone decides.
            Missing: a device is asked for that this llama-cpp-python was not built for.
            GembError: llama.cpp does not load it.
        """
        from gemb.models.gguf import open_gguf

        if runtime.precision != "auto":
            raise UsageError(
                f"--precision {runtime.precision}: a GGUF file's own types decide; "
                "leave it out, or export another file: gemb export-gguf MODEL --outtype bf16"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", runtime.device):
            raise UsageError(f"no device '{runtime.device}'; devices: auto, cpu, cuda, cuda:N")
        checked = open_gguf(model)
        from gemb_llamacpp.encode import open_encoder

        return open_encoder(checked, runtime)

    def describe(self, model: Path) -> ModelDescription:
        """Return what the file's header says of it.

        Raises:
            UsageError: it is broken, or no EmbeddingGemma.
        """
        from gemb.models.gguf import open_gguf

        return open_gguf(model).description()

    def export_gguf(
        self, source: Path, target: Path | None, *, outtype: str, weights: bool = True
    ) -> None:
        """Write the folder as one GGUF file; see `gemb_llamacpp.export`."""
        from gemb_llamacpp.export import export

        export(source, target, outtype, weights=weights)

    def quantize(
        self, source: Path, target: Path | None, wanted: Quantization, *, threads: int = 0
    ) -> tuple[TensorPlan, ...]:
        """Write the file in other types; see `gemb_llamacpp.quantize`."""
        from gemb_llamacpp.quantize import quantize

        return quantize(source, target, wanted, threads)

    def importance(self, model: Path, texts: Sequence[str], runtime: Runtime) -> Importance:
        """Return how much each column matters; see `gemb_llamacpp.importance`."""
        from gemb_llamacpp.importance import importance

        return importance(model, texts, runtime)

    def checks(self) -> list[Check]:
        """Return what `gemb doctor` prints: the library, its features, what it leaves unused."""
        from gemb_llamacpp.health import checks

        return checks()
