"""onnxruntime, imported once, silent but for errors, its telemetry off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import Missing

if TYPE_CHECKING:
    import onnxruntime

OLDEST = (1, 20)  # whose operators the graph has: opset 21


def library() -> onnxruntime:
    """Return the module.

    Raises:
        Missing: it is not installed, does not load, or is too old.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import: it would report each session
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise Missing(f"onnxruntime does not load ({error}): pip install onnxruntime") from error
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if version < OLDEST:
        raise Missing(
            f"onnxruntime {onnxruntime.__version__} is too old: pip install --upgrade onnxruntime"
        )
    return onnxruntime


def session(
    model: Path | bytes, *, is_tuned: bool = False, is_verbose: bool = False
) -> onnxruntime.InferenceSession:
    """Return an open graph. Several threads may run it at once, each run on its own thread alone.

    Args:
        model: the file, or its bytes.
        is_tuned: `write_tuned` wrote the file.
        is_verbose: the library's warnings are printed, too.
    """
    options = _options(is_verbose=is_verbose)
    if is_tuned:
        options.graph_optimization_level = library().GraphOptimizationLevel.ORT_DISABLE_ALL
    return _opened(model, options)


def write_tuned(graph: Path, target: Path, weights: str) -> None:
    """Write a graph as this processor runs it: optimized, its weights in the order of its kernels.

    Args:
        graph: the file.
        target: the file to write.
        weights: name of the file beside it, for the weights; they are mapped when it is opened.
    """
    options = _options()
    for name, value in (
        ("save_external_prepacked_constant_initializers", "1"),
        ("optimized_model_external_initializers_file_name", weights),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    options.optimized_model_filepath = str(target)
    _opened(graph, options)


def _options(*, is_verbose: bool = False) -> onnxruntime.SessionOptions:
    options = library().SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 2 if is_verbose else 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _opened(
    model: Path | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, bytes) else str(model)
    return library().InferenceSession(source, options, providers=["CPUExecutionProvider"])
