"""The backend of static encoders: a table of token vectors and a small head, with NumPy alone.

Importing this loads no library. `gemb.models.static` has the folder; `encode` computes the vectors.
May import: `gemb`, but not its command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from gemb.backend import Backend, Check, Encoder, ModelDescription, Runtime
from gemb.errors import UsageError
from gemb.io.packages import version

PRECISIONS = ("auto", "fp32")


class StaticBackend(Backend):
    """Static encoders, drafts above all: hundreds of thousands of tokens a second on a core."""

    name = "static"
    requires: ClassVar[Mapping[str, str]] = {"tokenizers": "gemb"}
    rank = 10

    def can_open(self, model: Path) -> bool:
        """Return whether the path is a folder whose first module is a StaticEmbedding."""
        if not model.is_dir():
            return False
        from gemb.models.static import looks_like_static

        return looks_like_static(model)

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: the files are broken, or the precision or device cannot be.
        """
        if runtime.precision not in PRECISIONS:
            raise UsageError(f"precision '{runtime.precision}'; static has {', '.join(PRECISIONS)}")
        if runtime.device not in ("auto", "cpu"):
            raise UsageError(f"device '{runtime.device}'; static has auto, cpu")
        from gemb.models.static import open_static
        from gemb_static.encode import StaticEncoder

        return StaticEncoder(open_static(model))

    def describe(self, model: Path) -> ModelDescription:
        """Return what the folder's files say of it."""
        from gemb.models.static import open_static

        return open_static(model).description()

    def engine(self) -> str:
        """Return what computes, with its version."""
        return f"numpy {version('numpy')}"

    def checks(self) -> list[Check]:
        """Return the version of the tokenizers."""
        if installed := version("tokenizers"):
            return [Check("tokenizers", True, installed)]
        return [Check("tokenizers", False, "it is not installed", "pip install tokenizers")]
