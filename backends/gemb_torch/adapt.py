"""A run of adaptation from end to end: look, train, save the encoder.

RUN/start/encoder/               the decoder's weights as an encoder: where it begins
RUN/checkpoints/step-000500/     model/ (the encoder), state/ (with the decoder, to go on)
RUN/model/                       the encoder at the end
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from gemb.atomic import new_folder
from gemb.backend import Training
from gemb.checkpoint import open_checkpoint
from gemb.errors import GembError, Stopped, UsageError
from gemb.metrics_log import MetricsLog
from gemb.notes import note
from gemb.recipe import Recipe
from gemb.run_folder import RunFolder
from gemb.run_report import write_report
from gemb.safetensors import read_header
from gemb.training_progress import TrainingProgress
from gemb_torch.adapt_look import look
from gemb_torch.adapt_session import Adaptation, open_adaptation
from gemb_torch.adapt_steps import AdaptDone, adapt_step
from gemb_torch.ranks import Ranks
from gemb_torch.resuming import check_resume, ended, resumed
from gemb_torch.save import write_checkpoint, write_tensors
from gemb_torch.stop_request import EarlyStop, StopRequest
from gemb_torch.training_state import (
    Progress,
    checkpoint_path,
    read_progress,
    remove_others,
    remove_parts,
    restore_optimizer,
    write_state,
)
from gemb_torch.weights import load

_DECODER = "decoder.safetensors"  # in a checkpoint's state/


def adapt(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Adapt a decoder; see `gemb.backend.Backend.train`."""
    ranks, run = Ranks(), RunFolder(training.run)
    if training.dry_run:
        look(open_adaptation(recipe, training, ranks))
        return
    check_resume(run, training.resume)
    if not ranks.is_first:
        _adapt(recipe, training, ranks, early)
        return
    with run.begun(recipe, resumes=training.resume != "never"):
        remove_parts(run.path)
        _adapt(recipe, training, ranks, early)


def _adapt(recipe: Recipe, training: Training, ranks: Ranks, early: EarlyStop) -> None:
    run = RunFolder(training.run)
    if run.model.is_dir() and training.resume != "never":
        if ranks.is_first:
            ended(run)
        return
    begin = resumed(run, training.resume)
    adaptation = open_adaptation(recipe, training, ranks)
    early.check()
    look(adaptation)
    early.check()
    progress = Progress(step=0, order=adaptation.order().state())
    if begin:
        progress = read_progress(begin)
        _restore_model(adaptation, begin)
        if ranks.is_first:
            note(f"resumed at step {progress.step} of {adaptation.steps}, from {begin}")
    _Run(adaptation, progress, early, begin).go()


def _restore_model(adaptation: Adaptation, checkpoint: Path) -> None:
    stored = load(open_checkpoint(checkpoint / "model")).state_dict()
    encoder, decoder = adaptation.model.encoder, adaptation.model.decoder
    encoder.load_state_dict({name: stored[name] for name in encoder.state_dict()})
    path = checkpoint / "state" / _DECODER
    if not path.is_file():
        raise UsageError(f"{path}: missing; the checkpoint is of another stage, or not whole")
    tensors = {
        name: torch.from_numpy(one.float32().copy()) for name, one in read_header(path).items()
    }
    decoder.load_state_dict(tensors)


class _Run:
    """The time between the first step and the last."""

    def __init__(
        self, adaptation: Adaptation, progress: Progress, early: EarlyStop, begin: Path | None
    ) -> None:
        self.adaptation = adaptation
        self.early = early
        self.progress = progress
        self.is_first = adaptation.ranks.is_first
        self.optimizer = adaptation.optimizer(progress.step)
        # Where cross-attention has just ended to learn alone, all begin with a new optimizer.
        if begin and progress.step != adaptation.warmup:
            moved = progress.step - (adaptation.warmup if progress.step > adaptation.warmup else 0)
            restore_optimizer(begin, self.optimizer, moved)
        self.log: MetricsLog | None = None
        if self.is_first:
            self.log = MetricsLog(adaptation.run.metrics, after_step=progress.step or -1)
        self.bar = TrainingProgress(
            adaptation.steps, progress.step, quiet=adaptation.training.quiet or not self.is_first
        )
        self.saved_at = time.monotonic()

    def go(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        try:
            self._steps()
            self._end()
        finally:
            self._close()

    def _steps(self) -> None:
        adaptation = self.adaptation
        order = adaptation.order()
        order.restore(self.progress.order)
        self.early.check()
        with StopRequest() as request:
            for step in range(self.progress.step, adaptation.steps):
                if step and step == adaptation.warmup:
                    self.optimizer = adaptation.optimizer(step)
                started = time.perf_counter()
                examples = order.step()
                data_s = time.perf_counter() - started
                done = adapt_step(adaptation, self.optimizer, examples, step)
                self.progress = replace(self.progress, order=order.state())
                self._count(step + 1, done, data_s)
                is_stopped = adaptation.ranks.any(bool(request.name))
                if is_stopped or self._is_time_to_save(step + 1):
                    self._save()
                if is_stopped and step + 1 < adaptation.steps:
                    self._stop(request.name)

    def _count(self, step: int, done: AdaptDone, data_s: float) -> None:
        before = self.progress
        self.progress = replace(
            before,
            step=step,
            tokens=before.tokens + done.tokens,
            pairs=before.pairs + done.texts,
            seconds=before.seconds + done.seconds,
        )
        self.bar.step(step, done.loss, done.tokens)
        recipe = self.adaptation.recipe
        if self.log is None or (step % recipe.run.log_every and step != self.adaptation.steps):
            return
        self.log.write(
            step=step,
            loss=done.loss,
            parts=done.parts,
            lr=recipe.optimizer.lr * self.adaptation.factor(step - 1),
            grad_norm=done.grad_norm,
            tokens=self.progress.tokens,
            tokens_per_s=done.tokens / done.seconds,
            texts=done.texts,
            data_s=data_s,
            step_s=done.seconds,
        )

    def _is_time_to_save(self, step: int) -> bool:
        saving = self.adaptation.recipe.checkpoint
        if step == self.adaptation.steps or (saving.every_steps and step % saving.every_steps == 0):
            return True
        minutes = (time.monotonic() - self.saved_at) / 60
        is_due = bool(saving.every_minutes) and minutes > saving.every_minutes
        return self.adaptation.ranks.any(is_due)

    def _save(self) -> None:
        adaptation, step = self.adaptation, self.progress.step
        if self.is_first:
            target = checkpoint_path(adaptation.run.path, step)
            target.parent.mkdir(exist_ok=True)
            with new_folder(target) as part:
                self._write_model(part / "model")
                write_state(part / "state", self.optimizer, self.progress)
                write_tensors(part / "state" / _DECODER, adaptation.model.decoder.state_dict())
            remove_others(adaptation.run.path, step, adaptation.recipe.checkpoint.keep)
        adaptation.ranks.wait()
        self.saved_at = time.monotonic()
        self.bar.skip_pause()

    def _write_model(self, target: Path) -> None:
        adaptation, progress = self.adaptation, self.progress
        sources = ", ".join(store.name for store in adaptation.stores)
        write_checkpoint(
            adaptation.start,
            target,
            {**adaptation.model.encoder.state_dict(), **adaptation.head},
            pooling=adaptation.recipe.pooling,
            note=f"adapt ({adaptation.adapt.objective}), {progress.step} steps, {progress.tokens} "
            f"tokens of {sources}; its dense layers are random",
        )

    def _close(self) -> None:
        self.bar.close()
        if self.log is not None:
            self.log.close()

    def _stop(self, signal: str) -> None:
        self._close()
        if self.is_first:
            try:
                write_report(self.adaptation.run.path)
            except (GembError, OSError) as error:  # the run is saved, and that is what counts
                note(f"no report: {error}")
        raise Stopped(
            f"stopped by {signal or 'a signal'} after step {self.progress.step} of "
            f"{self.adaptation.steps}; saved; the same command with --resume auto goes on"
        )

    def _end(self) -> None:
        """Write the encoder: a run with a model has ended."""
        run = self.adaptation.run
        self._close()
        if self.is_first:
            self._write_model(run.model)
            report = write_report(run.path)
            if not self.adaptation.training.quiet:
                goes_on = f"gemb train pretrain init.from={run.model}"
                note(f"encoder {run.model}, report {report}; to train it to embed: {goes_on}")
        self.adaptation.ranks.wait()
