"""The PyTorch backend. Importing this loads no torch: its methods do.

Its packages import in one direction: `launch` > `adapt`, `draft` > `train` > `cut` > `model`.
May import: `gemb`, but not its command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gemb.backend import Backend, Check, Cut, Encoder, ModelDescription, Runtime, Training
from gemb.io.atomic import scratch_folder
from gemb.io.machine import has_gpu
from gemb.io.packages import version

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe


_FIX = "pip install 'gemb[torch]'"


class TorchBackend(Backend):
    """Runs sentence-transformers folders with PyTorch, and GGUF files, unpacked."""

    name = "torch"
    requires: ClassVar[Mapping[str, str]] = {"torch": "gemb[torch]", "tokenizers": "gemb[torch]"}
    rank = 12  # above llama.cpp's, which has no GPU in the usual package

    def can_open(self, model: Path) -> bool:
        """Return whether the path looks like a model folder or a GGUF file."""
        from gemb.models.gguf_header import looks_like_gguf

        if looks_like_gguf(model):
            return True
        from gemb.models.checkpoint import looks_like_checkpoint

        return looks_like_checkpoint(model)

    def suits(self, model: Path, runtime: Runtime) -> bool:
        """Return whether the model is a folder, or a file that a GPU is to run."""
        return model.is_dir() or (runtime.device != "cpu" and has_gpu())

    def engine(self) -> str:
        """Return the library and its version."""
        return f"torch {version('torch')}"

    def open(self, model: Path, runtime: Runtime) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: the model would be computed wrongly, or the precision or device cannot be.
        """
        _load_torch()
        from gemb.models.checkpoint import open_checkpoint
        from gemb_torch.model.encode import open_encoder

        if model.is_dir():
            return open_encoder(open_checkpoint(model), runtime)
        from gemb.models.from_gguf import unpack
        from gemb.models.gguf import open_gguf

        file = open_gguf(model)
        with scratch_folder("unpacked") as folder:
            unpack(file, folder)
            encoder = open_encoder(open_checkpoint(folder), runtime)
        encoder.profile = replace(file.profile(), dtype=encoder.profile.dtype)
        return encoder

    def describe(self, model: Path) -> ModelDescription:
        """Return what the model's files say; needs no torch."""
        from gemb.models.checkpoint import describe_folder
        from gemb.models.gguf import open_gguf

        return describe_folder(model) if model.is_dir() else open_gguf(model).description()

    def cut(self, source: Path, target: Path | None, cut: Cut) -> None:
        """Write a smaller model folder; see `gemb_torch.cut`."""
        _load_torch()
        from gemb_torch.cut.cut import cut_folder

        cut_folder(source, target, cut)

    def train(self, recipe: Recipe, training: Training) -> None:
        """Train a model; see `gemb_torch.launch` and `gemb_torch.train`."""
        # Machines end one after the other, of which torch would warn; read where it is loaded.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from gemb.recipe.run_folder import RunFolder
        from gemb_torch.train.stop import EarlyStop

        with EarlyStop(None if training.dry_run else RunFolder(training.run)) as early:
            with early.leaving():
                _load_torch()
                from gemb_torch.launch import run
            run(recipe, training, early)

    def checks(self) -> list[Check]:
        """Return whether torch and tokenizers are here, and the device that `auto` would choose."""
        checks = []
        for library in self.requires:
            # It is an extra: without it the other backends still embed.
            detail = version(library) or f"not installed (optional: {_FIX})"
            checks.append(Check(library, True, detail))
        if all("optional" not in check.detail for check in checks):
            checks.append(_device())
        return checks


def _load_torch() -> None:
    """Import torch, whose matrix library ends a process whose current folder has been removed."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY)
        os.chdir("/")
        try:
            import torch._dynamo  # noqa: F401  reads the current folder, too
        finally:
            os.fchdir(here)
            os.close(here)


def _device() -> Check:
    try:
        _load_torch()
        import torch
    except (ImportError, OSError) as error:  # a library of the system's that torch links is absent
        return Check("device", False, f"torch does not load: {error}", f"{_FIX} --force-reinstall")
    if not torch.cuda.is_available():
        from gemb_torch.model.frozen import can_freeze

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        fast = " and ".join(name for name, dtype in dtypes.items() if can_freeze(dtype))
        detail = f"cpu, {torch.get_num_threads()} threads, oneDNN products in {fast or 'no type'}"
        return Check("device", True, detail)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("device", True, f"cuda: {', '.join(names)}")
