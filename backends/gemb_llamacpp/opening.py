"""Load a checked GGUF file, while Python imports what will use it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gemb_llamacpp import native

if TYPE_CHECKING:
    from gemb.backend import Runtime
    from gemb.models.gguf import GgufModel
    from gemb_llamacpp.encode import LlamaCppEncoder


def open_encoder(model: GgufModel, runtime: Runtime) -> LlamaCppEncoder:
    """Return the open model.

    Raises:
        Missing: a GPU is asked for, and this llama-cpp-python was built without.
        GembError: llama.cpp does not load the file.
    """
    native.set_verbose(runtime.verbose)
    native.llama()
    with ThreadPoolExecutor(1) as pool:
        # Reading 262,144 tokens takes llama.cpp 0.3 s, numpy's import 0.1 s: both at once.
        pointer = pool.submit(native.open_model, model.header.path, device=runtime.device)
        from gemb_llamacpp.encode import LlamaCppEncoder

        return LlamaCppEncoder(model, pointer.result(), runtime)
