"""A run of adaptation from end to end: look, train, save the encoder.

RUN/start/encoder/               the decoder's weights as an encoder: where it begins
RUN/checkpoints/step-000500/     model/ (the encoder), state/ (with the decoder, to go on)
RUN/model/                       the encoder at the end
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from gemb.backend import Training
from gemb.errors import UsageError
from gemb.io.notes import note
from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import read_header
from gemb.recipe.schema import Recipe
from gemb.training.report import write_report
from gemb_torch.adapt_look import look
from gemb_torch.adapt_session import Adaptation, open_adaptation
from gemb_torch.adapt_steps import adapt_step
from gemb_torch.keeping import Keeper, run_folder
from gemb_torch.ranks import Ranks
from gemb_torch.resuming import ended, resumed
from gemb_torch.save import write_checkpoint, write_tensors
from gemb_torch.stop_request import EarlyStop, StopRequest
from gemb_torch.training_state import (
    Progress,
    read_progress,
    restore_optimizer,
    write_state,
)
from gemb_torch.weights import load

_DECODER = "decoder.safetensors"  # in a checkpoint's state/


def adapt(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Adapt a decoder; see `gemb.backend.Backend.train`."""
    ranks = Ranks()
    if training.dry_run:
        look(open_adaptation(recipe, training, ranks))
        return
    with run_folder(recipe, training, ranks) as run:
        if run.model.is_dir() and training.resume != "never":
            if ranks.is_first:
                ended(run)
            return
        begin = resumed(run, training.resume)
        adaptation = open_adaptation(recipe, training, ranks)
        early.check()
        look(adaptation)
        early.check()
        _Run(adaptation, early, begin).go()


def _restored(adaptation: Adaptation, begin: Path | None) -> Progress:
    """Bring the model to where a checkpoint stands; None: it is at the beginning."""
    if begin is None:
        return Progress(step=0, order=adaptation.order().state())
    progress = read_progress(begin)
    _restore_model(adaptation, begin)
    if adaptation.ranks.is_first:
        note(f"resumed at step {progress.step} of {adaptation.steps}, from {begin}")
    return progress


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

    def __init__(self, adaptation: Adaptation, early: EarlyStop, begin: Path | None) -> None:
        self.adaptation = adaptation
        self.early = early
        progress = _restored(adaptation, begin)
        self.optimizer = adaptation.optimizer(progress.step)
        # Where cross-attention has just ended to learn alone, all begin with a new optimizer.
        if begin and progress.step != adaptation.warmup:
            moved = progress.step - (adaptation.warmup if progress.step > adaptation.warmup else 0)
            restore_optimizer(begin, self.optimizer, moved)
        self.keeper = Keeper(
            adaptation.recipe,
            adaptation.training,
            adaptation.ranks,
            steps=adaptation.steps,
            progress=progress,
        )

    def go(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        try:
            self._steps()
            self._end()
        finally:
            self.keeper.close()

    def _steps(self) -> None:
        adaptation = self.adaptation
        order = adaptation.order()
        order.restore(self.keeper.progress.order)
        self.early.check()
        with StopRequest() as request:
            for step in range(self.keeper.progress.step, adaptation.steps):
                if step and step == adaptation.warmup:
                    self.optimizer = adaptation.optimizer(step)
                started = time.perf_counter()
                examples = order.step()
                data_s = time.perf_counter() - started
                done = adapt_step(adaptation, self.optimizer, examples, step)
                self.keeper.count(
                    step + 1,
                    order.state(),
                    loss=done.loss,
                    tokens=done.tokens,
                    pairs=done.texts,
                    seconds=done.seconds,
                    parts=done.parts,
                    lr=adaptation.recipe.optimizer.lr * adaptation.factor(step),
                    grad_norm=done.grad_norm,
                    texts=done.texts,
                    data_s=data_s,
                )
                self.keeper.end_step(request, self._save)

    def _save(self) -> None:
        self.keeper.save_checkpoint(self._write_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        self._write_model(folder / "model")
        write_state(folder / "state", self.optimizer, self.keeper.progress)
        decoder = self.adaptation.model.decoder
        write_tensors(folder / "state" / _DECODER, decoder.state_dict())

    def _write_model(self, target: Path) -> None:
        adaptation, progress = self.adaptation, self.keeper.progress
        sources = ", ".join(store.name for store in adaptation.stores)
        write_checkpoint(
            adaptation.start,
            target,
            {**adaptation.model.encoder.state_dict(), **adaptation.head},
            pooling=adaptation.recipe.pooling,
            note=f"adapt ({adaptation.adapt.objective}), {progress.step} steps, {progress.tokens} "
            f"tokens of {sources}; its dense layers are random",
        )

    def _end(self) -> None:
        """Write the encoder: a run with a model has ended."""
        run = self.adaptation.run
        self.keeper.close()
        if self.adaptation.ranks.is_first:
            self._write_model(run.model)
            report = write_report(run.path)
            if not self.adaptation.training.quiet:
                goes_on = f"gemb train pretrain init.from={run.model}"
                note(f"encoder {run.model}, report {report}; to train it to embed: {goes_on}")
        self.adaptation.ranks.wait()
