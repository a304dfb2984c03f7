"""What `gemb doctor` looks at: llama-cpp-python, and what its build makes of this processor."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gemb.backend import Check
from gemb.errors import Missing
from gemb_llamacpp import native

_FLAGS = "-fno-dse -fno-tree-dse -frecord-gcc-switches"
_INSTALL = "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"


def checks() -> list[Check]:
    """Return the lines, the library itself first; only that one where it does not load."""
    try:
        library = native.llama()
        installed = version("llama-cpp-python")
    except (Missing, PackageNotFoundError) as error:
        return [Check("llama-cpp-python", False, str(error), _INSTALL)]
    folder = Path(library._lib._name).parent
    is_known = any(
        b"gemma-embedding" in path.read_bytes() for path in sorted(folder.glob("libllama.*"))[:1]
    )
    gpu = "GPU" if library.llama_supports_gpu_offload() else "no GPU"
    found = [
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
        built_by = ".".join(map(str, native.compiler(folder))) or "an unknown compiler"
        found.append(  # no failure: only slower
            Check(
                "AMX",
                True,
                f"left unused: gcc {built_by} compiles it wrongly; with flags that prevent it "
                f"4-bit models run twice as fast: CXXFLAGS='{_FLAGS}' {_INSTALL}",
            )
        )
    return found
