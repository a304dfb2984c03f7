"""A run of adaptation from end to end: look, train, save the encoder.

RUN/start/encoder/               the decoder's weights as an encoder: where it begins
RUN/checkpoints/step-000500/     model/ (the encoder), state/ (with the decoder, to go on)
RUN/model/                       the encoder at the end

`AdaptationRun.step` is one step, from texts to the numbers of a line of metrics.jsonl;
`AdaptationRun.train` is the loop around it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from gemb.backend import Training
from gemb.datasets.plain_texts import PlainTexts
from gemb.errors import UsageError
from gemb.io import notes
from gemb.io.atomic import process_folder
from gemb.io.caches import tokens_cache
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.io.text import duration
from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import read_header
from gemb.models.tokenizer import load_tokenizer
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Adapt, Recipe
from gemb.training.log import StepMetrics
from gemb.training.report import write_report
from gemb.training.ul2 import OBJECTIVES
from gemb_torch.adapt.look import shown_examples, source_checks, table_lines
from gemb_torch.adapt.order import Example, TextOrder, tokenized
from gemb_torch.adapt.start import ids_of, start_of
from gemb_torch.model.encode import device_of
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.save import write_checkpoint, write_tensors
from gemb_torch.model.seq2seq import Seq2Seq, Sequences, pack_pairs
from gemb_torch.model.weights import load
from gemb_torch.train.adamw import AdamW, clip, rate
from gemb_torch.train.finite import refuse
from gemb_torch.train.gradients import CPU_PADDING, CUDA_PADDING
from gemb_torch.train.keeper import Keeper, run_folder
from gemb_torch.train.speed import memory_words, moment_bytes, peak_bytes
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
        AdaptationRun(recipe, training, ranks).look()
        return
    with run_folder(recipe, training, ranks) as run:
        if run.model.is_dir() and training.resume != "never":
            if ranks.is_first:
                tell_ended(run)
            return
        checkpoint = resumed(run, training.resume)
        adaptation = AdaptationRun(recipe, training, ranks)
        early.check()
        adaptation.look()
        early.check()
        adaptation.train(checkpoint, early)


@dataclass(frozen=True, kw_only=True)
class AdaptationMetrics(StepMetrics):
    """A line of metrics.jsonl about one step."""

    texts: int


class AdaptationRun:
    """The parts of a run, opened from the recipe, and what is done with them."""

    def __init__(self, recipe: Recipe, training: Training, ranks: Ranks) -> None:
        """Open everything; texts are tokenized where they have not been.

        Raises:
            UsageError: something does not fit together.
            Missing: a model or a file is not here.
        """
        self.recipe, self.training, self.ranks = recipe, training, ranks
        self.folder = RunFolder(training.run)
        self.settings = recipe.adapt or Adapt()
        self.tasks = OBJECTIVES[self.settings.objective]
        self.device = device_of(training.runtime.device)
        torch.set_num_threads(training.runtime.threads or max(1, cores() // ranks.count))

        # Data
        texts = [PlainTexts(source, strict=training.strict) for source in recipe.data]
        work = process_folder("start") if training.dry_run else self.folder.start
        start = ranks.first_then_all(lambda: start_of(recipe, work, texts, training.runtime))
        path = start.folder / "tokenizer.json"
        self.tokenizer = tokenizer = load_tokenizer(path, start.config.vocab_size)
        digest = blake2b(path.read_bytes(), digest_size=8).hexdigest()
        self.stores = ranks.first_then_all(
            lambda: [tokenized(source, tokenizer, digest, tokens_cache()) for source in texts]
        )
        self.longest = min(recipe.batch.max_tokens, start.max_tokens)  # of a text or a part of one

        # Model: the encoder without its head, which is written and not trained
        self.start = start
        encoder = load(start, device=self.device, pooling=recipe.pooling).train()
        self.head = {
            name: tensor
            for name, tensor in encoder.state_dict().items()
            if name.startswith(("dense.", "pool_queries"))
        }
        encoder.dense, encoder.pool_queries = nn.ModuleList(), None
        self.model = Seq2Seq(encoder).train()
        if self.settings.cross_attention == "random":
            self.model.randomise_cross_attention(recipe.seed)
        recomputes = recipe.run.activation_checkpointing
        self.model.encoder.recomputes = self.model.decoder.recomputes = recomputes
        if recipe.run.compile:
            for block in (*self.model.encoder.layers, *self.model.decoder.layers):
                block.compile()

        self.ids = ids_of(tokenizer, start.folder, self.tasks, self.longest)
        self.steps = recipe.run.steps or max(
            1, math.ceil(recipe.run.epochs * self.order().tokens_of_all / self.settings.tokens)
        )
        # The first steps, in which cross-attention alone learns
        self.warmup = 0
        if self.settings.cross_attention == "random":
            self.warmup = min(self.settings.cross_warmup_steps, self.steps)
        if self.warmup and self.warmup == self.steps:
            raise UsageError(
                f"adapt.cross_warmup_steps {self.settings.cross_warmup_steps} leaves none of "
                f"{self.steps} steps to the rest of the model"
            )

    def order(self) -> TextOrder:
        """Return the order of the examples, at its beginning."""
        return TextOrder(
            self.stores,
            self.tasks,
            self.ids,
            longest=self.longest,
            tokens=self.settings.tokens,
            seed=self.recipe.seed,
        )

    def optimizer(self, step: int) -> AdamW:
        """Return a fresh optimizer of what learns after so many steps; the rest is frozen."""
        learns: nn.Module = self.model
        if step < self.warmup:  # T5Gemma: where cross-attention begins random
            learns = self.model.decoder.cross_attentions()
        self.model.requires_grad_(False)
        learns.requires_grad_(True)
        return AdamW(learns, self.recipe.optimizer, whole_table=True)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate after so many steps; it rises twice."""
        if step < self.warmup:
            return rate(self.recipe.optimizer, step, self.warmup)
        return rate(self.recipe.optimizer, step - self.warmup, self.steps - self.warmup)

    # Before the first step

    def look(self) -> None:
        """Show what will be read, and predict time and memory. All processes call this together."""
        order, dry_run = self.order(), self.training.dry_run
        passes = self.steps * self.settings.tokens
        sources = source_checks(self.stores, order.shares, self.longest, passes)
        examples = order.step()
        shown = shown_examples(examples, self.stores, self.tokenizer)
        if self.ranks.is_first and not dry_run:
            check = {"steps": self.steps, "sources": sources, "examples": shown}
            self.folder.write_json(self.folder.preflight, check)
        tokens_per_s, peak = self._speed(examples)
        if not self.ranks.is_first:
            return
        tokens = sum(example.tokens for example in examples)
        objective = ", ".join(task.name for task in self.tasks)
        lines = [
            *table_lines(sources, shown, self.longest),
            f"objective  {self.settings.objective}: {objective}",
            f"steps      {self.steps:,} of about {tokens:,} tokens, {len(examples):,} texts",
            f"about {tokens_per_s:,.0f} tokens/s: {duration(self.steps * tokens / tokens_per_s)} "
            f"for {self.steps:,} steps, {memory_words(peak, self.device, self.ranks.count)}",
        ]
        show = notes.answer if dry_run else notes.show
        show("\n".join(lines))

    def _speed(self, examples: Sequence[Example]) -> tuple[float, int]:
        """Return tokens a second, and the bytes that this process will need at its peak.

        Measured by the gradients of one micro-batch, which are then forgotten.
        """
        optimizer = self.optimizer(self.warmup)  # all learns
        micros = list(micro_batches(examples, self.recipe.batch.micro_tokens))
        micro = micros[len(micros) // 2]
        seconds = 0.0
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            self.gradients(micro * self.ranks.count)
            seconds = time.perf_counter() - started
        peak = peak_bytes(self.device) + moment_bytes(optimizer.parameters.values())
        self.model.zero_grad(set_to_none=True)
        return sum(example.tokens for example in micro) * self.ranks.count / seconds, peak

    # The loop

    def train(self, checkpoint: Path | None, early: EarlyStop) -> None:
        """Train to the end.

        Args:
            checkpoint: to go on from; None: from the beginning.
            early: what answers signals before and after the loop.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        progress, optimizer = self._restored(checkpoint)
        with closing(
            Keeper(self.recipe, self.training, self.ranks, steps=self.steps, progress=progress)
        ) as keeper:
            order = self.order()
            order.restore(progress.order)
            early.check()
            with StopRequest() as request:
                for step in range(progress.step, self.steps):
                    if step and step == self.warmup:
                        optimizer = self.optimizer(step)
                    keeper.count(*self.step(keeper.progress, order, optimizer))
                    save = partial(self._write_checkpoint, keeper, optimizer)
                    keeper.end_step(request, partial(keeper.save_checkpoint, save))
            self._end(keeper)

    def step(
        self, before: Progress, order: TextOrder, optimizer: AdamW
    ) -> tuple[AdaptationMetrics, Progress]:
        """Change the parameters once. All processes call this together.

        Args:
            before: how far the run is.
            order: where the step's examples come from; each process takes its part of them.
            optimizer: of what learns now.

        Returns:
            The numbers of the step, and how far the run is after it.

        Raises:
            GembError: the loss or the gradient is not finite; no parameter was changed by it.
        """
        settings, step = self.recipe.optimizer, before.step + 1
        drawn = time.perf_counter()
        examples = order.step()
        started = time.perf_counter()
        places = [example.place(self.stores) for example in examples]

        # Gradients of the mean loss of the target tokens, of all processes
        sums = self.gradients(examples)
        self.ranks.sum([sums])
        loss = float(sums[:, 0].sum() / sums[:, 1].sum())
        if not math.isfinite(loss):
            refuse(step, "the loss", places)
        gradients = list(optimizer.gradients(None))
        self.ranks.sum(gradients)

        # Clip
        norm = clip(gradients, settings.max_grad_norm)
        if not math.isfinite(norm):
            refuse(step, "the gradient", places)

        # Optimizer
        factor = self.factor(before.step)
        optimizer.step(factor, self.ids.marks[:0], None)

        # Numbers
        tokens = sum(example.tokens for example in examples)
        seconds = time.perf_counter() - started
        progress = before.after(order.state(), tokens=tokens, pairs=len(examples), seconds=seconds)
        return AdaptationMetrics(
            step=step,
            loss=loss,
            parts={
                task.name: float(total / count)
                for task, (total, count) in zip(self.tasks, sums, strict=True)
                if count
            },
            tokens=progress.tokens,
            tokens_per_s=tokens / seconds,
            step_s=seconds,
            data_s=started - drawn,
            lr=settings.lr * factor,
            grad_norm=norm,
            texts=len(examples),
        ), progress

    def gradients(self, examples: Sequence[Example]) -> Tensor:
        """Add the gradients of this process's part of the mean loss of the step's target tokens.

        Returns the sum of losses and the number of tokens of each task, fp64 [tasks, 2].
        """
        names = [task.name for task in self.tasks]
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        count = sum(len(example.targets) for example in examples)
        mine = examples[self.ranks.rank :: self.ranks.count]
        is_mixed = self.recipe.run.precision == "bf16"
        for micro in micro_batches(mine, self.recipe.batch.micro_tokens):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
                total, losses = self.model(self._packed(micro))
            (total / count).backward()
            by_example = losses.double().cpu().split([len(example.targets) for example in micro])
            for example, own in zip(micro, by_example, strict=True):
                sums[names.index(example.task.name)] += torch.stack(
                    [own.sum(), own.new_tensor(len(own))]
                )
        return sums

    def _packed(self, examples: Sequence[Example]) -> Sequences:
        return pack_pairs(
            [example.inputs for example in examples],
            [example.targets for example in examples],
            bos=self.ids.bos,
            window=self.start.config.sliding_window,
            device=self.device,
            max_padding=CPU_PADDING if self.device.type == "cpu" else CUDA_PADDING,
        )

    # Checkpoints, and the end

    def _restored(self, checkpoint: Path | None) -> tuple[Progress, AdamW]:
        """Bring model and optimizer to where a checkpoint stands; None: the beginning."""
        if checkpoint is None:
            return Progress(step=0, order=self.order().state()), self.optimizer(0)
        progress = read_progress(checkpoint)
        restore_model(self.model, checkpoint)
        if self.ranks.is_first:
            note(f"resumed at step {progress.step} of {self.steps}, from {checkpoint}")
        optimizer = self.optimizer(progress.step)
        # Where cross-attention has just ended to learn alone, all begin with a new optimizer.
        if progress.step != self.warmup:
            steps = progress.step - (self.warmup if progress.step > self.warmup else 0)
            restore_optimizer(checkpoint, optimizer, steps)
        return progress, optimizer

    def _write_checkpoint(self, keeper: Keeper, optimizer: AdamW, folder: Path) -> None:
        self._write_model(folder / "model", keeper.progress)
        write_state(folder / "state", optimizer, keeper.progress)
        write_tensors(folder / "state" / _DECODER, self.model.decoder.state_dict())

    def _write_model(self, target: Path, progress: Progress) -> None:
        sources = ", ".join(store.name for store in self.stores)
        write_checkpoint(
            self.start,
            target,
            {**self.model.encoder.state_dict(), **self.head},
            pooling=self.recipe.pooling,
            note=f"adapt ({self.settings.objective}), {progress.step} steps, {progress.tokens} "
            f"tokens of {sources}; its dense layers are random",
        )

    def _end(self, keeper: Keeper) -> None:
        """Write the encoder: a run with a model has ended."""
        keeper.close()
        if self.ranks.is_first:
            model = self.folder.model
            self._write_model(model, keeper.progress)
            report = write_report(self.folder.path)
            goes_on = f"gemb train pretrain init.from={model}"
            note(f"encoder {model}, report {report}; to train it to embed: {goes_on}")
        self.ranks.wait()


def restore_model(model: Seq2Seq, checkpoint: Path) -> None:
    """Give encoder and decoder the weights of a checkpoint.

    Raises:
        UsageError: it has no decoder, or is of another model.
    """
    stored = load(open_checkpoint(checkpoint / "model")).state_dict()
    model.encoder.load_state_dict({name: stored[name] for name in model.encoder.state_dict()})
    path = checkpoint / "state" / _DECODER
    if not path.is_file():
        raise UsageError(f"{path}: missing; the checkpoint is of another stage, or not whole")
    tensors = {
        name: torch.from_numpy(tensor.float32().copy())
        for name, tensor in read_header(path).items()
    }
    model.decoder.load_state_dict(tensors)


def micro_batches(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """Yield the examples in groups of at most so many tokens, those of like lengths together."""
    group: list[Example] = []
    size = 0
    for example in sorted(
        examples, key=lambda example: (len(example.targets), len(example.inputs))
    ):
        if group and size + example.tokens > tokens:
            yield group
            group, size = [], 0
        group.append(example)
        size += example.tokens
    if group:
        yield group
