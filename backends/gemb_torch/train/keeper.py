"""What `train` and `adapt` have in common beside their steps: folder, log, checkpoints, stop.

They differ in what a step is and in what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from gemb.backend import Training
from gemb.errors import GembError, Stopped
from gemb.io.atomic import new_folder
from gemb.io.notes import warn
from gemb.io.progress import StepProgress
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.training.log import MetricsLog, StepMetrics
from gemb.training.report import write_report
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.state import (
    Progress,
    check_resume,
    checkpoint_path,
    remove_others,
    remove_parts,
)
from gemb_torch.train.stop import StopRequest


@contextmanager
def run_folder(recipe: Recipe, training: Training, ranks: Ranks) -> Iterator[RunFolder]:
    """Yield the run's folder, which the first process holds against other runs meanwhile.

    Raises:
        UsageError: the folder, or the checkpoint to go on from, is not this run's.
    """
    run = RunFolder(training.run)
    check_resume(run, training.resume)
    if not ranks.is_first:
        yield run
        return
    with run.begun(recipe, resumes=training.resume != "never"):
        remove_parts(run.path)
        yield run


class Keeper:
    """Keeps a run between the first step and the last; in the first process, on the disk too."""

    def __init__(
        self, recipe: Recipe, training: Training, ranks: Ranks, *, steps: int, progress: Progress
    ) -> None:
        """Open the log, behind what the run has done.

        Args:
            recipe: its `run` and `checkpoint` are read.
            training: its folder is.
            ranks: the processes.
            steps: of the whole run.
            progress: how far the run is.
        """
        self.recipe = recipe
        self.run = RunFolder(training.run)
        self.ranks = ranks
        self.steps = steps
        self.progress = progress
        self._log: MetricsLog | None = None
        if ranks.is_first:
            self._log = MetricsLog(self.run.metrics, after_step=progress.step or -1)
        self.bar = StepProgress(steps, progress.step)
        self._saved_at = time.monotonic()

    def log(self, *, step: int, **fields: object) -> None:
        """Write a line of metrics."""
        if self._log is not None:
            self._log.write(step=step, **fields)

    def count(self, metrics: StepMetrics, progress: Progress) -> None:
        """Take a step that has ended, and log it if it is its turn.

        Args:
            metrics: its numbers.
            progress: how far the run is after it.
        """
        self.bar.step(progress.step, metrics.loss, progress.tokens - self.progress.tokens)
        self.progress = progress
        if progress.step % self.recipe.run.log_every == 0 or progress.step == self.steps:
            self.log(**asdict(metrics))

    def end_step(self, request: StopRequest, save: Callable[[], None]) -> None:
        """Save if it is time to, and stop if a signal came. All processes call this together.

        Args:
            request: where a signal is remembered.
            save: saves by `save_checkpoint`.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        is_stopped = self.ranks.any(bool(request.name))
        if is_stopped or self._is_time_to_save():
            save()
        if is_stopped and self.progress.step < self.steps:
            self._stop(request.name)

    def _is_time_to_save(self) -> bool:
        saving, step = self.recipe.checkpoint, self.progress.step
        # The last step is saved before it is measured, which may take longer than a signal leaves.
        if step == self.steps or (saving.every_steps and step % saving.every_steps == 0):
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.ranks.any(bool(saving.every_minutes) and minutes > saving.every_minutes)

    def save_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Save a checkpoint, whole or not at all. All processes call this together.

        Args:
            write: fills an empty folder; called in the first process alone.
        """
        if self.ranks.is_first:
            target = checkpoint_path(self.run.path, self.progress.step)
            target.parent.mkdir(exist_ok=True)
            with new_folder(target) as part:
                write(part)
            remove_others(self.run.path, self.progress.step, self.recipe.checkpoint.keep)
        self.ranks.wait()
        self._saved_at = time.monotonic()
        self.bar.skip_pause()

    def _stop(self, signal: str) -> None:
        self.close()
        if self.ranks.is_first:
            try:
                write_report(self.run.path)
            except (GembError, OSError) as error:  # the run is saved, and that is what counts
                warn(f"no report: {error}")
        raise Stopped(
            f"stopped by {signal or 'a signal'} after step {self.progress.step} of {self.steps}; "
            "saved; the same command with --resume auto goes on"
        )

    def close(self) -> None:
        """Close bar and log; a second time does nothing."""
        self.bar.close()
        if self._log is not None:
            self._log.close()
