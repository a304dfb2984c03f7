"""What a run needs to go on as if it had never stopped, in a folder that is whole or absent.

    checkpoints/step-000500/model/                  the plain model folder
    checkpoints/step-000500/state/optimizer.safetensors   the moments, fp32
    checkpoints/step-000500/state/rows.npy                the token rows that have moments, int64
    checkpoints/step-000500/state/unrounded.safetensors   the weights, where the model's are rounded
    checkpoints/step-000500/state/progress.json

The folder gets its name when all of it is on the disk, so a killed run leaves no half of one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemb.errors import UsageError
from gemb.io.notes import note
from gemb.models.safetensors import NewTensor, read_header, write_file
from gemb.recipe.run_folder import RunFolder
from gemb.training.report import write_report
from gemb_torch.train.adamw import AdamW

_NAME = re.compile(r"step-(\d{6,})")
_UNROUNDED = "unrounded.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    step: int  # steps that are done
    order: Mapping[str, Any]  # where the order of the data stands
    tokens: int = 0  # seen by the model so far
    pairs: int = 0
    seconds: float = 0.0  # spent in steps
    best: float | None = None  # mean of the evaluation, the best so far

    def after(
        self, order: Mapping[str, Any], *, tokens: int, pairs: int, seconds: float
    ) -> Progress:
        """Return the progress one step later.

        Args:
            order: where the order of the data stands then.
            tokens: of the step, all processes together.
            pairs: the same; in adaptation, texts.
            seconds: that the step took.
        """
        return replace(
            self,
            step=self.step + 1,
            order=order,
            tokens=self.tokens + tokens,
            pairs=self.pairs + pairs,
            seconds=self.seconds + seconds,
        )


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoints, the latest last."""
    paths = (run / "checkpoints").glob("step-*") if (run / "checkpoints").is_dir() else ()
    return sorted(
        (path for path in paths if _NAME.fullmatch(path.name) and path.is_dir()), key=_step
    )


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:06d}"


def write_state(folder: Path, optimizer: AdamW, progress: Progress) -> None:
    """Write the files of `state/`.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir()
    tensors = {name: _new_tensor(tensor) for name, tensor in optimizer.moments().items()}
    write_file(folder / "optimizer.safetensors", tensors)
    np.save(folder / "rows.npy", optimizer.row_ids, allow_pickle=False)
    (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n")


def read_progress(checkpoint: Path) -> Progress:
    """Return how far the run was.

    Raises:
        UsageError: the file is missing or broken.
    """
    path = checkpoint / "state" / "progress.json"
    try:
        stored = json.loads(path.read_bytes())
        # A checkpoint of an earlier version may say more.
        known = [field.name for field in fields(Progress)]
        return Progress(**{name: stored[name] for name in known if name in stored})
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: no training state ({error}); --resume takes a folder that gemb train wrote "
            "under checkpoints/"
        ) from error


def _new_tensor(tensor: Tensor) -> NewTensor:
    values = tensor.detach().cpu().contiguous()
    raw = values.numpy().reshape(-1).view(np.uint8)
    return NewTensor("F32", tuple(values.shape), [raw])


def restore_optimizer(checkpoint: Path, optimizer: AdamW, steps: int) -> None:
    """Give the optimizer its moments after so many steps.

    Raises:
        UsageError: a file is missing, broken, or of another model.
    """
    folder = checkpoint / "state"
    try:
        ids = np.load(folder / "rows.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'rows.npy'}: {error}") from error
    moments = {
        name: torch.from_numpy(stored.float32().copy())
        for name, stored in read_header(folder / "optimizer.safetensors").items()
    }
    optimizer.restore(moments, ids, steps)


def write_unrounded(folder: Path, model: nn.Module) -> None:
    """Add the weights as they are, fp32, to the files of `state/`.

    Raises:
        OSError: they cannot be written.
    """
    tensors = {name: _new_tensor(parameter) for name, parameter in model.named_parameters()}
    write_file(folder / _UNROUNDED, tensors)


def restore_unrounded(checkpoint: Path, model: nn.Module) -> None:
    """Give a model the weights of `write_unrounded`, where the checkpoint has them.

    Raises:
        UsageError: the file is broken, or of another model.
    """
    path = checkpoint / "state" / _UNROUNDED
    if not path.exists():
        return
    parameters = dict(model.named_parameters())
    stored = read_header(path)
    if {name: tuple(p.shape) for name, p in parameters.items()} != {
        name: tensor.shape for name, tensor in stored.items()
    }:
        raise UsageError(f"{path} is of another model; resume from another checkpoint")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(stored[name].float32().copy()))


def remove_others(run: Path, step: int, keep: int) -> None:
    """Remove all but the last checkpoints up to the one that was saved just now.

    What is later is of a run that was taken back to an earlier checkpoint.
    """
    saved = checkpoints(run)
    last = [path for path in saved if _step(path) <= step][-max(1, keep) :]
    for old in saved:
        if old in last:
            continue
        # First out of sight: a kill while it is removed must not leave half a checkpoint.
        gone = old.with_name(f".{old.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        old.replace(gone)
        shutil.rmtree(gone)


def remove_parts(run: Path) -> None:
    """Remove what a killed run left half-written or half-removed."""
    for folder in (run, run / "checkpoints"):
        for part in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def check_resume(run: RunFolder, resume: str) -> None:
    """Refuse the path of a checkpoint that is not this run's.

    Args:
        run: the run's folder, which need not exist.
        resume: never, auto or the path.

    Raises:
        UsageError: it is no checkpoint, or another run's.
    """
    if resume in ("never", "auto"):
        return
    named, own = Path(resume), run.path / "checkpoints"
    read_progress(named)  # or refuse
    if named.resolve().parent != own.resolve():
        raise UsageError(
            f"--resume {named} is no checkpoint of {run.path}: name a folder in {own}; "
            f"to start from those weights, init.from={named / 'model'}"
        )


def resumed(run: RunFolder, resume: str) -> Path | None:
    """Return the checkpoint to go on from, None to begin at the beginning; `resume` as above."""
    if resume == "never":
        return None
    if resume != "auto":
        return Path(resume)
    saved = checkpoints(run.path)
    return saved[-1] if saved else None


def tell_ended(run: RunFolder) -> None:
    """Say that a run has ended, and write its page if it has none.

    Raises:
        OSError: the page cannot be written.
    """
    note(f"{run.path} has ended; its model is {run.model}")
    if not run.report.is_file():
        write_report(run.path)
