"""The llama.cpp backend: GGUF files, written and run. Importing this loads no library.

`encode` runs a file, `export` and `quantize` write one, `native` keeps the library in bounds.
May import: `gemb`, but not its command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gemb.backend import Backend, Check, Encoder, ModelDescription, Runtime
from gemb.errors import Missing, UsageError
from gemb.io.packages import version

if TYPE_CHECKING:
    from gemb.backend import Importance, Quantization, TensorPlan
    from gemb.models.qat import Types

_AMX_FLAGS = "-fno-dse -fno-tree-dse -frecord-gcc-switches"
_INSTALL = "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"


class LlamaCppBackend(Backend):
    """GGUF files of architecture `gemma-embedding`, written by gguf and run by llama.cpp."""

    name = "llamacpp"
    requires: ClassVar[Mapping[str, str]] = {"llama_cpp": "gemb"}
    rank = 10

    def can_open(self, model: Path) -> bool:
        """Return whether the path is a file that begins as GGUF does, or is named so."""
        from gemb.models.gguf_header import looks_like_gguf

        return looks_like_gguf(model)

    def engine(self) -> str:
        """Return the library and its version."""
        return f"llama-cpp-python {version('llama-cpp-python') or 'of unknown version'}"

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
        from gemb_llamacpp import native

        native.set_verbose(runtime.verbose)
        native.llama()
        with ThreadPoolExecutor(1) as pool:
            # Reading 262,144 tokens takes llama.cpp 0.3 s, numpy's import 0.1 s: both at once.
            pointer = pool.submit(native.open_model, model, device=runtime.device)
            from gemb_llamacpp.encode import LlamaCppEncoder

            return LlamaCppEncoder(checked, pointer.result(), runtime)

    def describe(self, model: Path) -> ModelDescription:
        """Return what the file's header says of it.

        Raises:
            UsageError: it is broken, or no EmbeddingGemma.
        """
        from gemb.models.gguf import open_gguf

        return open_gguf(model).description()

    def export_gguf(
        self, source: Path, target: Path | None, *, outtype: str, weights: bool = True
    ) -> Types:
        """Write the folder as one GGUF file; see `gemb_llamacpp.export`."""
        from gemb_llamacpp.export import export

        return export(source, target, outtype, weights=weights)

    def quantize(
        self,
        source: Path,
        target: Path | None,
        quantization: Quantization,
        *,
        plan: tuple[TensorPlan, ...] | None = None,
        threads: int = 0,
    ) -> tuple[TensorPlan, ...]:
        """Write the file in other types; see `gemb_llamacpp.quantize`."""
        from gemb_llamacpp.quantize import quantize

        return quantize(source, target, quantization, threads, plan)

    def importance(self, model: Path, texts: Sequence[str], runtime: Runtime) -> Importance:
        """Return how much each column matters; see `gemb_llamacpp.importance`."""
        from gemb_llamacpp.importance import importance

        return importance(model, texts, runtime)

    def checks(self) -> list[Check]:
        """Return the library's line, and where it loads, what its build makes of this processor."""
        from gemb_llamacpp import native

        try:
            library = native.llama()
        except Missing as error:
            return [Check("llama-cpp-python", False, str(error), _INSTALL)]
        folder = Path(library._lib._name).parent
        is_known = any(
            b"gemma-embedding" in path.read_bytes()
            for path in sorted(folder.glob("libllama.*"))[:1]
        )
        installed = version("llama-cpp-python") or "unknown version"
        gpu = "GPU" if library.llama_supports_gpu_offload() else "no GPU"
        checks = [
            Check("llama-cpp-python", True, f"{installed}, {gpu}"),
            Check(
                "gemma-embedding",
                is_known,
                "this llama.cpp knows the architecture" if is_known else "not in this llama.cpp",
                "pip install --upgrade llama-cpp-python",
            ),
            Check("built for", True, " ".join(native.features()) or "no known feature"),
        ]
        if native.uses_broken_amx(library):
            compiler = ".".join(map(str, native.compiler(folder))) or "an unknown compiler"
            checks.append(  # no failure: only slower
                Check(
                    "AMX",
                    True,
                    f"left unused: gcc {compiler} compiles it wrongly; with flags that prevent it "
                    f"4-bit models run twice as fast: CXXFLAGS='{_AMX_FLAGS}' {_INSTALL}",
                )
            )
        return checks
