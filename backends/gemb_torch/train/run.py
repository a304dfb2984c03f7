"""A training run from end to end: look, measure, train, measure again, judge.

`TrainingRun.step` is one step, from batches to the numbers of a line of metrics.jsonl;
`TrainingRun.train` is the loop around it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from gemb.backend import Training
from gemb.datasets.batches import BatchOrder
from gemb.datasets.rows import prompts_of
from gemb.datasets.sets import open_suite
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores
from gemb.evaluation.similarities import similarities
from gemb.evaluation.verdict import verdict
from gemb.io import notes
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.io.text import duration
from gemb.models.card import LICENCE as GEMMA
from gemb.models.checkpoint import open_checkpoint
from gemb.models.qat import in_words
from gemb.models.tokenizer import load_tokenizer
from gemb.recipe.qat import check_model, qat_types
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.texts.contents import checked_encoding
from gemb.training.log import StepMetrics
from gemb.training.preflight import preflight
from gemb.training.report import write_report
from gemb_torch.model.encode import TorchEncoder, device_of, live_encoder
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.rounding import Rounding
from gemb_torch.model.save import write_checkpoint
from gemb_torch.model.sharding import Sharding, local, shard
from gemb_torch.model.weights import restore
from gemb_torch.train.adamw import AdamW, clip, rate
from gemb_torch.train.batches import BatchMaker, Prepared, TeacherTexts, prepared, row_ids
from gemb_torch.train.finite import check_gradient, check_loss
from gemb_torch.train.gradients import Computed, Gradients
from gemb_torch.train.keeper import Keeper, run_folder
from gemb_torch.train.measure import first_pairs, in_line, logged
from gemb_torch.train.objective import objective, trains_widths
from gemb_torch.train.speed import memory_words, speed
from gemb_torch.train.start import (
    check_dims,
    distillation_teacher,
    open_model,
    open_sources,
    starting_checkpoint,
)
from gemb_torch.train.state import (
    Progress,
    checkpoint_path,
    read_progress,
    restore_optimizer,
    restore_unrounded,
    resumed,
    tell_ended,
    write_state,
    write_unrounded,
)
from gemb_torch.train.stop import EarlyStop, StopRequest

COMPARED = 512  # pairs whose cosines are measured before and after


def train(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Train; see `gemb.backend.Backend.train`."""
    ranks = Ranks()
    if training.dry_run:
        TrainingRun(recipe, training, ranks).look()
        return
    with run_folder(recipe, training, ranks) as run:
        if run.model.is_dir() and training.resume != "never":
            if ranks.is_first:
                tell_ended(run)
            return
        checkpoint = resumed(run, training.resume)
        training_run = TrainingRun(recipe, training, ranks)
        early.check()
        training_run.look()
        early.check()
        training_run.fill_teacher()
        training_run.train(checkpoint, early)


@dataclass(frozen=True, kw_only=True)
class ContrastiveMetrics(StepMetrics):
    """A line of metrics.jsonl about one step."""

    pairs_per_s: float
    source: str  # of its batches, joined by +
    cut: int  # texts that were longer than `max_tokens`, of this process


class TrainingRun:
    """The parts of a run, opened from the recipe, and what is done with them."""

    def __init__(self, recipe: Recipe, training: Training, ranks: Ranks) -> None:
        """Open everything; nothing is computed yet but what makes the starting model.

        Raises:
            UsageError: something does not fit together.
            Missing: a model, a file or a library is not here.
        """
        self.recipe, self.training, self.ranks = recipe, training, ranks
        self.folder = RunFolder(training.run)
        types = qat_types(recipe)
        if types:
            ranks.first_then_all(partial(check_model, types, recipe.init.model))
        device = self.device = device_of(training.runtime.device)
        torch.set_num_threads(training.runtime.threads or max(1, cores() // ranks.count))

        # Data
        encoding = checked_encoding(recipe.eval.encoding)
        self.suite = open_suite(recipe.eval.data, encoding=encoding) if recipe.eval.data else None
        self.sources = ranks.first_then_all(partial(open_sources, recipe, strict=training.strict))
        self.teacher = distillation_teacher(recipe, training)
        self.steps = recipe.run.steps or max(
            1,
            math.ceil(recipe.run.epochs * self.order().steps_per_epoch / recipe.batch.accumulate),
        )

        # Model. One that is sharded is trained beside a whole one, which the first process
        # evaluates and saves.
        begin = partial(starting_checkpoint, recipe, training, self.sources, self.teacher)
        self.start = ranks.first_then_all(begin)
        check_dims(recipe, self.start, self.teacher)
        self.model = trained = open_model(recipe, self.start, device)
        self.sharding: Sharding | None = None
        if recipe.run.shard == "fsdp2" and ranks.count > 1:
            trained = open_model(recipe, self.start, device)
            shard(trained, ranks, device)
            if not ranks.is_first:
                self.model.to("cpu")
            self.sharding = Sharding(self.model, trained, ranks.is_first)
        is_sharded = self.sharding is not None
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32

        # What a step goes through
        prompts = self.teacher.prompts if self.teacher else {}
        self.maker = BatchMaker(
            sources=self.sources,
            prompts=[prompts_of(rows.source, self.start.prompts) for rows in self.sources],
            tokenizer=load_tokenizer(
                self.start.file("tokenizer.json"), self.start.config.vocab_size
            ),
            max_tokens=min(recipe.batch.max_tokens, self.start.max_tokens),
            negatives=recipe.batch.negatives,
            ranks=ranks,
            teacher=self.teacher,
            teacher_prompts=[prompts_of(rows.source, prompts) for rows in self.sources],
        )
        self.rounding = Rounding(trained, types, table=is_sharded)
        self.gradients = Gradients(
            model=trained,
            objective=partial(objective, recipe.loss),
            ranks=ranks,
            micro_tokens=recipe.batch.micro_tokens,
            autocast=partial(
                torch.autocast,
                device.type,
                torch.bfloat16,
                enabled=self.dtype == torch.bfloat16,
            ),
            device=device,
            width=self.start.dim,
            is_sharded=is_sharded,
        )
        self.optimizer = AdamW(trained, recipe.optimizer, whole_table=is_sharded)

    def order(self) -> BatchOrder:
        """Return the order of the data, at its beginning."""
        return BatchOrder(self.sources, pairs=self.recipe.batch.pairs, seed=self.recipe.seed)

    # Before the first step

    def look(self) -> None:
        """Show the data, and predict time and memory. All processes call this together.

        Raises:
            UsageError: a training text stands in the evaluation set.
        """
        dry_run = self.training.dry_run
        show = notes.answer if dry_run else notes.show
        if self.ranks.is_first:
            check = preflight(
                self.recipe,
                self.maker,
                self.order(),
                steps=self.steps,
                suite=self.suite,
                overlap_listing=None if dry_run else self.folder.overlap,
            )
            if not dry_run:
                self.folder.write_json(self.folder.preflight, check.to_json())
            show("\n".join(check.lines()))
        batch = replace(self.maker, teacher=None).make(next(self.order()))
        tokens_per_s, peak = speed(batch, self.gradients, self.optimizer, self.rounding)
        if self.ranks.is_first:
            show(
                f"about {tokens_per_s:,.0f} tokens/s: "
                f"{duration(check.total_tokens / tokens_per_s)} for {self.steps:,} steps, "
                f"{memory_words(peak, self.gradients.device, self.ranks.count)}"
            )

    def fill_teacher(self) -> None:
        """Compute the teacher's vectors of the whole run that are not on the disk yet."""
        if self.teacher is not None:
            batches = self.steps * self.recipe.batch.accumulate
            texts = TeacherTexts(maker=self.maker, order=self.order, batches=batches)
            self.ranks.first_then_all(partial(self.teacher.fill, texts))

    # The loop

    def train(self, checkpoint: Path | None, early: EarlyStop) -> None:
        """Train to the end.

        Args:
            checkpoint: to go on from; None: from the beginning.
            early: what answers signals before and after the loop.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        progress = self._restored(checkpoint)
        with closing(
            Keeper(self.recipe, self.training, self.ranks, steps=self.steps, progress=progress)
        ) as keeper:
            if self.ranks.is_first and progress.step == 0:
                self._measure_baseline(keeper)
            self.ranks.wait()
            order = self.order()
            order.restore(progress.order)
            batches = prepared(order, self.maker, self.recipe.run.workers)
            early.check()
            with StopRequest() as request:
                for step in range(progress.step + 1, self.steps + 1):
                    metrics, progress = self.step(keeper.progress, batches)
                    keeper.count(metrics, progress)
                    if self._is_evaluation_due(step):
                        self._evaluate_together(keeper)
                    keeper.end_step(request, partial(self._save, keeper))
            self._end(keeper)

    def step(
        self, before: Progress, batches: Iterator[Prepared]
    ) -> tuple[ContrastiveMetrics, Progress]:
        """Change the parameters once. All processes call this together.

        Args:
            before: how far the run is.
            batches: the run's, the next of this step; the step takes `batch.accumulate` of them.

        Returns:
            The numbers of the step, and how far the run is after it.

        Raises:
            GembError: a loss or a gradient is not finite; no parameter was changed by it.
        """
        ranks, optimizer, settings = self.ranks, self.optimizer, self.recipe.optimizer
        step = before.step + 1
        started = time.perf_counter()

        # Batches, of each this process's part, and the rows of the token table that they use
        drawn = list(islice(batches, self.recipe.batch.accumulate))
        data_s = time.perf_counter() - started
        parts = [prepared.batch for prepared in drawn]
        token_ids = ranks.union(row_ids(parts))
        rows = optimizer.leaf(token_ids)

        # Gradients of the objective, summed over the batches: of the rounded weights
        self.rounding.rows(rows)
        computed: list[Computed] = []
        with self.rounding.applied():
            for batch in parts:
                computed.append(self.gradients.add(batch, rows, token_ids))
                check_loss(step, batch, computed[-1], ranks)

        # Their mean over the batches, summed over the processes
        row_gradient = None if rows is None else rows.grad
        gradients = list(optimizer.gradients(row_gradient))
        if self.sharding:  # each has the mean over the processes, of its share
            gradients = [local(gradient) for gradient in gradients]
            torch._foreach_mul_(gradients, float(ranks.count))
        else:
            ranks.sum(gradients)
        if len(parts) > 1:
            torch._foreach_div_(gradients, float(len(parts)))

        # Clip
        norm = clip(gradients, settings.max_grad_norm, ranks if self.sharding else None)
        check_gradient(step, norm, parts, ranks)

        # Optimizer
        factor = rate(settings, before.step, self.steps)
        optimizer.step(factor, token_ids, row_gradient)

        # Numbers
        tokens, pairs = ranks.total(sum(b.tokens for b in parts), sum(b.pairs for b in parts))
        seconds = time.perf_counter() - started
        progress = before.after(drawn[-1].order, tokens=tokens, pairs=pairs, seconds=seconds)
        return ContrastiveMetrics(
            step=step,
            loss=sum(float(made.loss) for made in computed) / len(computed),
            parts=mean_parts(computed),
            tokens=progress.tokens,
            tokens_per_s=tokens / seconds,
            pairs_per_s=pairs / seconds,
            step_s=seconds,
            data_s=data_s,
            lr=settings.lr * factor,
            grad_norm=norm,
            source="+".join(dict.fromkeys(batch.source for batch in parts)),
            cut=sum(batch.cut for batch in parts),
        ), progress

    def _restored(self, checkpoint: Path | None) -> Progress:
        """Bring model and optimizer to where a checkpoint stands; None: the beginning."""
        if checkpoint is None:
            return Progress(step=0, order=self.order().state())
        progress = read_progress(checkpoint)
        restore(self.model, open_checkpoint(checkpoint / "model"))
        restore_unrounded(checkpoint, self.model)
        if self.sharding:
            self.sharding.spread()
        restore_optimizer(checkpoint, self.optimizer, progress.step)
        if self.ranks.is_first:
            note(f"resumed at step {progress.step} of {self.steps}, from {checkpoint}")
        return progress

    def _save(self, keeper: Keeper) -> None:
        """Save a checkpoint. All processes call this together."""
        self._collect()
        if self.sharding:
            self.optimizer.collect(keep=self.ranks.is_first)
        keeper.save_checkpoint(partial(self._write_checkpoint, keeper.progress))
        self.optimizer.forget()

    def _collect(self) -> None:
        """Bring the first process's `model` up to date; all processes call this together."""
        if self.sharding:
            self.sharding.collect()

    def _write_checkpoint(self, progress: Progress, folder: Path) -> None:
        self._write_model(folder / "model", progress)
        write_state(folder / "state", self.optimizer, progress)
        if self.rounding.types:
            write_unrounded(folder / "state", self.model)

    def _write_model(self, target: Path, progress: Progress) -> None:
        loss = self.recipe.loss
        sources = ", ".join(rows.name for rows in self.sources)
        # A student of a Gemma is a derivative of it, whatever it started from (terms, 1.1 e).
        is_gemmas = self.teacher is not None and self.teacher.licence == GEMMA
        write_checkpoint(
            self.start,
            target,
            self.model.state_dict(),
            pooling=self.recipe.pooling,
            note=f"{self.recipe.stage}, {progress.step} steps, {progress.pairs} pairs of {sources}",
            matryoshka_dims=loss.matryoshka if trains_widths(loss) else None,
            types=self.rounding.types,
            licence=GEMMA if is_gemmas else self.start.licence(),
        )

    # Evaluation: in the first process alone

    @contextmanager
    def encoder(self) -> Iterator[TorchEncoder]:
        """Yield the model as it is now, rounded to what it is trained for, as an encoder."""
        model = self.model.eval()
        # A new one, for the run's keeps its memory, and this one's is as big as the table.
        with Rounding(model, self.rounding.types, table=True).applied():
            encoder = live_encoder(model, self.start, self.device, self.dtype)
            # A width that is trained now is measured before, too.
            encoder.profile = replace(encoder.profile, matryoshka_dims=self._dims(), default_dim=0)
            try:
                yield encoder
            finally:
                encoder.close()
                model.train()

    def _dims(self) -> tuple[int, ...]:
        """Return the widths that are evaluated, widest first."""
        ends = self.recipe.loss.matryoshka[0], self.recipe.loss.matryoshka[-1]
        # Of a loss without widths they are the default's, and the model may be narrower.
        dims = self.recipe.eval.dims or {min(width, self.start.dim) for width in ends}
        return tuple(sorted(dims, reverse=True))

    def _scores(self) -> Scores | None:
        """Return the scores on the recipe's sets, None where it has none.

        Their fingerprint is that of the model that training started from.
        """
        if self.suite is None:
            return None
        with self.encoder() as encoder:
            return evaluate(self.suite, encoder, dims=self._dims())

    def _similarities(self) -> dict[str, Any]:
        """Return the cosines of some pairs of the training data, for the report."""
        queries, positives = first_pairs(self.maker, self.order(), COMPARED)
        with self.encoder() as encoder:
            return similarities(encoder.encode(queries), encoder.encode(positives))

    def _measure_baseline(self, keeper: Keeper) -> None:
        """Measure the model that training starts from."""
        if self.training.baseline:
            scores = self._scores()
            if scores is not None:
                scores.save(self.folder.scores("baseline"))
                keeper.log(step=0, eval=logged(scores))
                types = self.rounding.types
                rounded = f", rounded to {in_words(types)}" if types else ""
                notes.tell(f"baseline{rounded}: {in_line(scores)}")
        self.folder.write_json(self.folder.similarities, {"before": self._similarities()})
        keeper.bar.skip_pause()

    def _is_evaluation_due(self, step: int) -> bool:
        """Return whether the model is measured after this step; after the last one it always is."""
        every = self.recipe.eval.every_steps
        return bool(every) and step % every == 0 and step < self.steps

    def _evaluate_together(self, keeper: Keeper) -> None:
        """Measure the model. All processes call this together."""
        self._collect()
        if self.ranks.is_first:
            self._evaluate(keeper)
        self.ranks.wait()
        keeper.bar.skip_pause()

    def _evaluate(self, keeper: Keeper) -> Scores | None:
        """Measure and log the model, and keep the best."""
        scores = self._scores()
        if scores is None:
            return None
        step, best = keeper.progress.step, keeper.progress.best
        keeper.log(step=step, eval=logged(scores))
        notes.tell(f"step {step}: {in_line(scores)}")
        if best is None or scores.value > best:
            keeper.progress = replace(keeper.progress, best=scores.value)
            self._write_model(self.folder.best, keeper.progress)
        return scores

    # After the last step

    def _end(self, keeper: Keeper) -> None:
        """Save the model, measure it, and compare it with the baseline."""
        self._collect()
        if self.ranks.is_first:
            self._judge(keeper)
        keeper.close()
        if self.ranks.is_first:
            report = write_report(self.folder.path)
            note(f"model {self.folder.model}, report {report}")
        self.ranks.wait()

    def _judge(self, keeper: Keeper) -> None:
        folder = self.folder
        # Scored before it has its name: a run with a model has ended.
        scores = self._evaluate(keeper)
        if folder.similarities.is_file():
            cosines = json.loads(folder.similarities.read_bytes())
            folder.write_json(folder.similarities, {**cosines, "after": self._similarities()})
        if scores is not None:
            # The last step's checkpoint holds the model that is written below.
            saved = checkpoint_path(folder.path, keeper.progress.step) / "model"
            scores = replace(scores, model=open_checkpoint(saved).fingerprint())
            scores.save(folder.scores("final"))
            if folder.scores("baseline").is_file():
                judged = verdict(Scores.load(folder.scores("baseline")), scores)
                folder.write_json(folder.verdict, judged.to_json())
        self._write_model(folder.model, keeper.progress)


def mean_parts(computed: Sequence[Computed]) -> dict[str, float]:
    """Return the mean of each part of the loss over the batches that have it."""
    parts: dict[str, list[float]] = {}
    for made in computed:
        for name, value in made.parts.items():
            parts.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in parts.items()}
