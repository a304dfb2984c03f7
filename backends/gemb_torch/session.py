"""What a training run works with: data, model, teacher, optimizer, opened from the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gemb.backend import Runtime, Training
from gemb.datasets.batches import BatchOrder
from gemb.datasets.overlap import hold_out
from gemb.datasets.rows import Rows, open_source, prompts_of
from gemb.datasets.sets import Suite, open_suite
from gemb.errors import UsageError
from gemb.io.caches import rows_cache, teachers_cache
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.prompts import for_task
from gemb.models.tokenizer import load_tokenizer
from gemb.recipe.qat import check_model, wanted_types
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.training.teacher import Teacher, Wanted
from gemb.training.teachers import FileTeacher, open_teacher
from gemb_torch.adamw import AdamW
from gemb_torch.cut_texts import Texts
from gemb_torch.encode import device_of
from gemb_torch.gradients import Gradients
from gemb_torch.losses import check_widths
from gemb_torch.model import EmbeddingGemma
from gemb_torch.objective import objective, trains_widths
from gemb_torch.ranks import Ranks
from gemb_torch.rounding import Rounding
from gemb_torch.sharding import Sharding, shard
from gemb_torch.starting_model import forgotten_folder, quickly_made, starting_folder
from gemb_torch.step_batches import BatchMaker
from gemb_torch.weights import load

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of a run."""

    recipe: Recipe
    training: Training
    run: RunFolder
    ranks: Ranks
    device: torch.device
    sources: Sequence[Rows]
    suite: Suite | None
    start: Checkpoint  # the folder that training starts from
    teacher: Teacher | None
    model: EmbeddingGemma
    maker: BatchMaker
    gradients: Gradients
    rounding: Rounding  # of the model in training
    optimizer: AdamW
    steps: int  # of the whole run
    sharding: Sharding | None  # where `model` is not the one in training, but the one to look at

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16 if self.recipe.run.precision == "bf16" else torch.float32

    def collect(self, *, moments: bool = False) -> None:
        """Bring the first process's `model` up to date; all processes call this together.

        Args:
            moments: the optimizer's too, until `optimizer.forget`.
        """
        if self.sharding is not None:
            self.sharding.collect()
            if moments:
                self.optimizer.collect(keep=self.ranks.is_first)

    def spread(self) -> None:
        """Take the weights of the first process's `model`; all processes call this together."""
        if self.sharding is not None:
            self.sharding.spread()

    def order(self) -> BatchOrder:
        """Return the order of the data, at its beginning."""
        return _order(self.recipe, self.sources)


def open_session(recipe: Recipe, training: Training, ranks: Ranks) -> Session:
    """Open everything; nothing is computed yet but what makes the starting model.

    Raises:
        UsageError: something does not fit together.
        Missing: a model, a file or a library is not here.
    """
    run = RunFolder(training.run)
    types = wanted_types(recipe)
    if types:
        ranks.first_then_all(partial(check_model, types, recipe.init.model))
    device = device_of(training.runtime.device)
    torch.set_num_threads(training.runtime.threads or max(1, cores() // ranks.count))
    suite = open_suite(recipe.eval.data) if recipe.eval.data else None
    sources = ranks.first_then_all(partial(_sources, recipe, training))
    teacher = _teacher(recipe, training.runtime)
    begin = partial(_starting_checkpoint, recipe, training, run, sources, teacher)
    start = ranks.first_then_all(begin)
    _check_dims(recipe, start, teacher)
    model = _model(recipe, start, device)
    trained, sharding = model, None
    if recipe.run.shard == "fsdp2" and ranks.count > 1:
        trained = _model(recipe, start, device)
        shard(trained, ranks, device)
        if not ranks.is_first:
            model.to("cpu")
        sharding = Sharding(model, trained, ranks.is_first)
    maker = BatchMaker(
        sources=sources,
        prompts=[prompts_of(rows.source, start.prompts) for rows in sources],
        tokenizer=load_tokenizer(start.folder / "tokenizer.json", start.config.vocab_size),
        max_tokens=min(recipe.batch.max_tokens, start.max_tokens),
        negatives=recipe.batch.negatives,
        ranks=ranks,
        teacher=teacher,
        teacher_prompts=[
            prompts_of(rows.source, teacher.prompts if teacher else {}) for rows in sources
        ],
    )
    gradients = Gradients(
        model=trained,
        objective=partial(objective, recipe.loss),
        ranks=ranks,
        micro_tokens=recipe.batch.micro_tokens,
        autocast=_autocast(recipe, device),
        device=device,
        width=start.dim,
        is_sharded=sharding is not None,
    )
    return Session(
        recipe=recipe,
        training=training,
        run=run,
        ranks=ranks,
        device=device,
        sources=sources,
        suite=suite,
        start=start,
        teacher=teacher,
        model=model,
        maker=maker,
        gradients=gradients,
        rounding=Rounding(trained, types, table=sharding is not None),
        optimizer=AdamW(trained, recipe.optimizer, whole_table=sharding is not None),
        sharding=sharding,
        steps=_steps(recipe, sources),
    )


def _model(recipe: Recipe, start: Checkpoint, device: torch.device) -> EmbeddingGemma:
    model = load(start, device=device, pooling=recipe.pooling).train()
    model.recomputes = recipe.run.activation_checkpointing
    if recipe.run.compile:
        for block in model.blocks():
            block.compile()
    return model


def _order(recipe: Recipe, sources: Sequence[Rows]) -> BatchOrder:
    return BatchOrder(sources, pairs=recipe.batch.pairs, seed=recipe.seed)


def _steps(recipe: Recipe, sources: Sequence[Rows]) -> int:
    if recipe.run.steps:
        return recipe.run.steps
    batches = recipe.run.epochs * _order(recipe, sources).steps_per_epoch
    return max(1, math.ceil(batches / recipe.batch.accumulate))


def _sources(recipe: Recipe, training: Training) -> list[Rows]:
    cache = rows_cache()
    sources = [open_source(source, cache, strict=training.strict) for source in recipe.data]
    if recipe.held_out:
        hold_out(sources, open_suite(*recipe.held_out))
    return sources


def _teacher(recipe: Recipe, runtime: Runtime) -> Teacher | None:
    distill = recipe.loss.distill
    if distill is None:
        return None
    return open_teacher(
        distill.teacher,
        teachers_cache(),
        replace(runtime, precision=recipe.run.precision),
        max_tokens=recipe.batch.max_tokens,  # what the student does not see it cannot learn
    )


def _starting_checkpoint(
    recipe: Recipe,
    training: Training,
    run: RunFolder,
    sources: Sequence[Rows],
    teacher: Teacher | None,
) -> Checkpoint:
    begin = partial(
        starting_folder,
        texts=[Texts(rows.name, partial(_texts, rows)) for rows in sources],
        runtime=training.runtime,
        seed=recipe.seed,
        teacher=None if teacher is None else partial(_taught, teacher, training.quiet),
    )
    if not training.dry_run:
        return open_checkpoint(begin(recipe.init, run.start))
    return open_checkpoint(begin(quickly_made(recipe.init), forgotten_folder()))


def _taught(
    teacher: Teacher, quiet: bool, pairs: Sequence[tuple[str, str]]
) -> NDArray[np.float32] | None:
    """Return the teacher's vectors of (task, text); None where its files lack some of them."""
    wanted = [Wanted(for_task(task, teacher.prompts).render(text)) for task, text in pairs]
    if isinstance(teacher, FileTeacher) and teacher.missing(wanted):
        note(
            f"{teacher.reference} has not both prompts' vectors of the texts that layers are "
            "measured with: they are measured against the whole model"
        )
        return None
    teacher.fill(wanted, quiet=quiet)
    return teacher.vectors(wanted)


def _texts(rows: Rows) -> Iterator[str]:
    """Yield every query and positive of a source."""
    for row in range(len(rows)):
        example = rows[row]
        yield example.query.text
        yield example.positive.text


def _check_dims(recipe: Recipe, start: Checkpoint, teacher: Teacher | None) -> None:
    for width in recipe.loss.matryoshka:
        if width > start.dim and trains_widths(recipe.loss):
            raise UsageError(
                f"loss.matryoshka: {width} is wider than the model's vectors, {start.dim}"
            )
    distill = recipe.loss.distill
    if teacher is not None and distill is not None and distill.weight:
        check_widths(start.dim, teacher.dim, distill.teacher)


def _autocast(recipe: Recipe, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    is_mixed = recipe.run.precision == "bf16"
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=is_mixed)
