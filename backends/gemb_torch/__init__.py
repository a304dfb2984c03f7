"""The PyTorch backend. Importing this loads no torch: its methods do."""

from __future__ import annotations

from pathlib import Path

from gemb.backend import Backend, Cut, Encoder, Runtime
from gemb.checkpoint import looks_like_checkpoint, open_checkpoint


class TorchBackend(Backend):
    """Runs sentence-transformers folders with PyTorch."""

    name = "torch"
    requires = {"torch": "gemb[torch]", "tokenizers": "gemb[torch]"}
    can = frozenset({"open", "cut"})

    def can_open(self, model: Path) -> bool:
        """Return whether the path is a folder with a config.json."""
        return looks_like_checkpoint(model)

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: the folder would be computed wrongly, or the precision or device cannot be.
        """
        from gemb_torch.encode import TorchEncoder

        return TorchEncoder(open_checkpoint(model), runtime)

    def cut(self, source: Path, target: Path, cut: Cut) -> None:
        """Write a smaller model folder; see `gemb_torch.cut`."""
        from gemb_torch.cut import cut_folder

        cut_folder(source, target, cut)
