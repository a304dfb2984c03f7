"""The model folder that training starts from: `init: {from, keep_layers, vocab}` of a recipe."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from gemb.backend import Cut, Runtime, Training
from gemb.datasets.batches import BatchOrder
from gemb.datasets.overlap import hold_out
from gemb.datasets.plain_texts import Texts
from gemb.datasets.rows import Rows, open_source, prompts_of
from gemb.datasets.sets import Suite, open_suite
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.caches import rows_cache, teachers_cache
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.models import references as models
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.prompts import for_task
from gemb.models.tokenizer import load_tokenizer
from gemb.recipe.layers import LayerChoice, layer_choice
from gemb.recipe.qat import check_model, wanted_types
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.training.teacher import Teacher, Wanted
from gemb.training.teachers import FileTeacher, open_teacher
from gemb_torch.cut.cut import cut_folder
from gemb_torch.model.encode import device_of
from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.rounding import Rounding
from gemb_torch.model.sharding import Sharding, shard
from gemb_torch.model.weights import load
from gemb_torch.train.adamw import AdamW
from gemb_torch.train.batches import BatchMaker
from gemb_torch.train.gradients import Gradients
from gemb_torch.train.losses import check_widths
from gemb_torch.train.objective import objective, trains_widths

if TYPE_CHECKING:
    from gemb.recipe.schema import Init
    from gemb_torch.cut.layers import LayerTeacher


_MADE_FROM = "made_from.json"  # in a folder of ours: what it was made from
_COUNTED = 50_000_000  # characters of a source whose tokens are counted


_TEMPORARY: list[TemporaryDirectory[str]] = []


def forgotten_folder() -> Path:
    """Return a new folder for what a look at the data makes: it goes when the process ends."""
    folder = TemporaryDirectory(prefix="gemb-start-", ignore_cleanup_errors=True)
    _TEMPORARY.append(folder)
    return Path(folder.name)


def quickly_made(init: Init) -> Init:
    """Return what is as deep, for a look: what takes long to find out, tokens and layers, can wait.

    Raises:
        UsageError: the choice of layers is none.
    """
    greedy = _choice(init).greedy
    layers = init.keep_layers if greedy is None else f"0-{greedy - 1}"
    return structs.replace(init, keep_layers=layers, vocab=0)


def starting_folder(
    init: Init,
    work: Path,
    *,
    texts: Sequence[Texts],
    runtime: Runtime,
    seed: int = 0,
    teacher: LayerTeacher | None = None,
) -> Path:
    """Return a plain model folder; `init.model` itself where nothing of it is to be changed.

    Args:
        init: the model, and what to keep of it.
        work: where what is made is kept, and found again: unpacked/, layers.json, start/. One
            process at a time.
        texts: the training texts, source by source, without prompts; read only where something is
            cut.
        runtime: of the model, where layers are removed by their worth.
        seed: of the choice of texts by which layers are removed.
        teacher: whose vectors the layers' worth is measured against, where its width is the
            model's; None: the whole model's own.

    Raises:
        UsageError: the model is none, or has not what is to be kept.
        Missing: it is not here.
    """
    source = models.resolve(init.model)
    if not source.is_dir():
        source = _unpacked(source, work)
    checkpoint = open_checkpoint(source)
    choice = _choice(init)
    if choice == LayerChoice() and not init.vocab:
        return source
    layers = choice.layers
    if choice.greedy is not None:
        from gemb_torch.cut.layers import LayerRemoval

        removal = LayerRemoval(
            checkpoint=checkpoint, texts=texts, seed=seed, runtime=runtime, teacher=teacher
        )
        layers = removal.kept(choice.greedy, work / "layers.json")
    return _cut(checkpoint, work / "start", Cut(layers=layers, vocab=init.vocab or None), texts)


def _choice(init: Init) -> LayerChoice:
    try:
        return layer_choice(init.keep_layers)
    except ValueError as error:
        raise UsageError(f"init.keep_layers {init.keep_layers!r}: {error}") from error


def _cut(checkpoint: Checkpoint, target: Path, cut: Cut, texts: Sequence[Texts]) -> Path:
    made_from = {
        "model": checkpoint.fingerprint(),
        "layers": list(cut.layers) if cut.layers is not None else "all",
        "vocab": cut.vocab or "all",
        "texts": _hash(texts) if cut.vocab else "none",
    }
    if not _is_made(target, made_from):
        target.parent.mkdir(parents=True, exist_ok=True)
        counted = [_beginning(source, tells=True) for source in texts]
        cut_folder(checkpoint.folder, target, cut, counted)
        write_json(target / _MADE_FROM, made_from)  # last: without it the folder is made again
    return target


def _beginning(texts: Texts, *, tells: bool = False) -> Texts:
    """Return so much of the texts as tells how often they use a token."""

    def read() -> Iterator[str]:
        left = _COUNTED
        for text in texts.read():
            if left <= 0:
                if tells:
                    note(f"{texts.name}: tokens are counted in its first {_COUNTED:,} characters")
                return
            left -= len(text)
            yield text

    return Texts(texts.name, read)


def _hash(texts: Sequence[Texts]) -> str:
    """Return 16 hex digits of the sources' names, and of their texts that are counted."""
    whole = hashlib.blake2b(digest_size=8)
    for source in texts:
        digest = hashlib.blake2b(digest_size=8)
        for text in _beginning(source).read():
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        whole.update(json.dumps([source.name, digest.hexdigest()]).encode())
    return whole.hexdigest()


def _unpacked(source: Path, work: Path) -> Path:
    """Return the GGUF file as a folder, named as the file is."""
    from gemb.models.from_gguf import unpack
    from gemb.models.gguf import open_gguf

    model = open_gguf(source)
    target = work / "unpacked" / source.stem
    made_from = {"model": model.fingerprint()}
    if not _is_made(target, made_from):
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as part:
            unpack(model, part)
            open_checkpoint(part)
            write_json(part / _MADE_FROM, made_from)
    return target


def _is_made(folder: Path, made_from: Mapping[str, object]) -> bool:
    path = folder / _MADE_FROM
    return path.is_file() and read_json(path) == made_from


# What a training run works with: data, model, teacher, optimizer, opened from the recipe.


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
        teacher=None if teacher is None else partial(_taught, teacher),
    )
    if not training.dry_run:
        return open_checkpoint(begin(recipe.init, run.start))
    return open_checkpoint(begin(quickly_made(recipe.init), forgotten_folder()))


def _taught(teacher: Teacher, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32] | None:
    """Return the teacher's vectors of (task, text); None where its files lack some of them."""
    wanted = [Wanted(for_task(task, teacher.prompts).render(text)) for task, text in pairs]
    if isinstance(teacher, FileTeacher) and teacher.missing(wanted):
        note(
            f"{teacher.reference} has not both prompts' vectors of the texts that layers are "
            "measured with: they are measured against the whole model"
        )
        return None
    teacher.fill(wanted)
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
