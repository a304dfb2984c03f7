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
    model: Path | bytes, *, threads: int, is_verbose: bool = False
) -> onnxruntime.InferenceSession:
    """Return an open graph, which several threads may run at once.

    Args:
        model: the file, or its bytes.
        threads: of one run.
        is_verbose: the library's warnings are printed, too.
    """
    runtime = library()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 2 if is_verbose else 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
