"""A run of adaptation from end to end: look, train, save the encoder.

RUN/start/encoder/               the decoder's weights as an encoder: where it begins
RUN/checkpoints/step-000500/     model/ (the encoder), state/ (with the decoder, to go on)
RUN/model/                       the encoder at the end
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch

from gemb.backend import Training
from gemb.errors import UsageError
from gemb.io import notes
from gemb.io.notes import note
from gemb.io.text import duration, visible
from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import read_header
from gemb.recipe.schema import Recipe
from gemb.training.preflight import BAD_SHOWN, WIDTH, table
from gemb.training.report import write_report
from gemb_torch.adapt.order import Example
from gemb_torch.adapt.session import Adaptation, open_adaptation
from gemb_torch.adapt.steps import adapt_step, gradients, micro_batches
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.save import write_checkpoint, write_tensors
from gemb_torch.model.weights import load
from gemb_torch.train.keeper import Keeper, run_folder
from gemb_torch.train.look import MOMENTS, peak_bytes
from gemb_torch.train.state import (
    Progress,
    read_progress,
    restore_optimizer,
    resumed,
    tell_ended,
    write_state,
)
from gemb_torch.train.stop import EarlyStop, StopRequest

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
                tell_ended(run)
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
            goes_on = f"gemb train pretrain init.from={run.model}"
            note(f"encoder {run.model}, report {report}; to train it to embed: {goes_on}")
        self.adaptation.ranks.wait()


# What is seen before the first step of adaptation: the texts, and how long it will take.


_SHOWN = 3  # examples
_HEAD = ("source", "texts", "tokens", "share", "length", "cut", "format")


def look(adaptation: Adaptation) -> None:
    """Show what will be read, and predict time and memory. All processes call this together."""
    examples = adaptation.order().step()
    dry_run = adaptation.training.dry_run
    if adaptation.ranks.is_first and not dry_run:
        adaptation.run.write_json(adaptation.run.preflight, _to_json(adaptation, examples))
    speed, peak = _speed(adaptation, examples)
    if not adaptation.ranks.is_first:
        return
    steps, tokens = adaptation.steps, sum(one.tokens for one in examples)
    lines = [*_sources(adaptation), "", *_examples(adaptation, examples)]
    objective = ", ".join(task.name for task in adaptation.tasks)
    lines += [
        f"objective  {adaptation.adapt.objective}: {objective}",
        f"steps      {steps:,} of about {tokens:,} tokens, {len(examples):,} texts",
        f"about {speed:,.0f} tokens/s: {duration(steps * tokens / speed)} for {steps:,} steps, "
        f"{peak / 1e9:.1f} GB of memory",
    ]
    show = click.echo if dry_run else notes.show
    show("\n".join(lines))


def _sources(adaptation: Adaptation) -> list[str]:
    order = adaptation.order()
    rows: list[tuple[str, ...]] = [_HEAD]
    bad: list[str] = []
    for store, share in zip(adaptation.stores, order.shares, strict=True):
        sizes = np.diff(store.ends, prepend=0)
        length = "/".join(f"{size:.0f}" for size in np.quantile(sizes, (0.5, 0.95, 1)))
        over = float((sizes > adaptation.longest).mean())
        cells = f"{len(store):,}", f"{sizes.sum():,}", f"{share:.1%}", length, f"{over:.1%}"
        rows.append((store.name, *cells, store.format))
        if store.bad_count:
            bad.append(f"{store.name}: {store.bad_count:,} bad rows are left out:")
            bad += [f"  {place}: {reason}" for place, reason in store.bad[:BAD_SHOWN]]
    words = (
        "length: tokens, median/95 %/longest; cut: texts over "
        f"{adaptation.longest} tokens, into parts"
    )
    return [*table(rows), words, *bad]


def _examples(adaptation: Adaptation, examples: list[Example]) -> list[str]:
    lines = []
    for number, one in enumerate(examples[:_SHOWN], 1):
        lines.append(f"example {number}: {_place(adaptation, one)}, {one.task.name}")
        lines += [f"  {side:<8}  {visible(text, WIDTH)}" for side, text in _sides(adaptation, one)]
        lines.append("")
    return lines


def _sides(adaptation: Adaptation, one: Example) -> list[tuple[str, str]]:
    def text(ids: np.typing.NDArray[np.int64]) -> str:
        return adaptation.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    return [("input", text(one.inputs)), ("target", text(one.targets))]


def _place(adaptation: Adaptation, one: Example) -> str:
    return f"{adaptation.stores[one.source].name}:{one.text + 1}"


def _to_json(adaptation: Adaptation, examples: list[Example]) -> dict[str, object]:
    """Return what the run's page shows of it (`gemb.run_record`)."""
    order = adaptation.order()
    sources = []
    for store, share in zip(adaptation.stores, order.shares, strict=True):
        sizes = np.diff(store.ends, prepend=0)
        median, p95, most = (float(size) for size in np.quantile(sizes, (0.5, 0.95, 1)))
        sources.append(
            {
                "name": store.name,
                "format": store.format,
                "rows": len(store),
                "bad": store.bad_count,
                "share": float(share),
                "passes": adaptation.steps
                * adaptation.adapt.tokens
                * float(share)
                / max(1, int(sizes.sum())),
                "cut": float((sizes > adaptation.longest).mean()),
                "tokens": {"median": median, "p95": p95, "max": most},
            }
        )
    return {
        "steps": adaptation.steps,
        "sources": sources,
        "examples": [
            {
                "source": adaptation.stores[one.source].name,
                "place": f"{_place(adaptation, one)}, {one.task.name}",
                "sides": _sides(adaptation, one),
            }
            for one in examples[:_SHOWN]
        ],
    }


def _speed(adaptation: Adaptation, examples: list[Example]) -> tuple[float, int]:
    """Return tokens a second, and the bytes that this process will need at its peak.

    Measured by the gradients of one micro-batch, which are then forgotten.
    """
    optimizer = adaptation.optimizer(adaptation.warmup)  # all learns
    tokens = adaptation.recipe.batch.micro_tokens
    micros = list(micro_batches(examples, tokens))
    micro = micros[len(micros) // 2]
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        gradients(adaptation, micro * adaptation.ranks.count)
        seconds = time.perf_counter() - started
    moments = sum(p.numel() * 4 * MOMENTS for p in optimizer.parameters.values())
    peak = peak_bytes(adaptation.device) + moments
    adaptation.model.zero_grad(set_to_none=True)
    return sum(one.tokens for one in micro) * adaptation.ranks.count / seconds, peak
