"""What a run starts from: its rows, its teacher, and the model of `init` in its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from gemb.backend import Cut, Runtime, Training
from gemb.datasets.overlap import hold_out
from gemb.datasets.plain_texts import Texts
from gemb.datasets.rows import Rows, open_source
from gemb.datasets.sets import open_suite
from gemb.errors import UsageError
from gemb.io.atomic import new_folder, process_folder
from gemb.io.caches import rows_cache, teachers_cache
from gemb.io.notes import note, warn
from gemb.models import references as models
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.prompts import for_task
from gemb.recipe.layers import LayerChoice, layer_choice
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Recipe
from gemb.training.teacher import Teacher, TeacherText
from gemb.training.teachers import FileTeacher, open_teacher
from gemb_torch.cut.cut import cut_folder
from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.weights import load
from gemb_torch.train.losses import check_widths
from gemb_torch.train.objective import trains_widths

if TYPE_CHECKING:
    from gemb.recipe.schema import Init
    from gemb_torch.cut.layers import LayerTeacher


_MADE_FROM = "made_from.json"  # in a folder of ours: what it was made from
_COUNTED = 50_000_000  # characters of a source whose tokens are counted


def quick_init(init: Init) -> Init:
    """Return a model for a dry run: as deep, with layers and tokens that take no time to choose.

    Raises:
        UsageError: `keep_layers` is no choice of layers.
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


def starting_checkpoint(
    recipe: Recipe, training: Training, sources: Sequence[Rows], teacher: Teacher | None
) -> Checkpoint:
    """Return the folder that training starts from; made where the recipe cuts or unpacks a model.

    Args:
        recipe: its `init` and seed are read.
        training: for a dry run the folder is a temporary one, and what takes long is not chosen.
        sources: whose texts decide which layers and tokens are kept.
        teacher: whose vectors layers are measured against.
    """
    init, work = recipe.init, RunFolder(training.run).start
    if training.dry_run:
        init, work = quick_init(init), process_folder("start")
    folder = starting_folder(
        init,
        work,
        texts=[Texts(rows.name, partial(_texts, rows)) for rows in sources],
        runtime=training.runtime,
        seed=recipe.seed,
        teacher=None if teacher is None else partial(_taught, teacher),
    )
    return open_checkpoint(folder)


def _taught(teacher: Teacher, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32] | None:
    """Return the teacher's vectors of (task, text); None where its files lack some of them."""
    texts = [TeacherText(for_task(task, teacher.prompts).render(text)) for task, text in pairs]
    if isinstance(teacher, FileTeacher) and teacher.missing(texts):
        warn(
            f"{teacher.reference} has not both prompts' vectors of the texts that layers are "
            "measured with: they are measured against the whole model"
        )
        return None
    teacher.fill(texts)
    return teacher.vectors(texts)


def _texts(rows: Rows) -> Iterator[str]:
    """Yield every query and positive of a source."""
    for row in range(len(rows)):
        example = rows[row]
        yield example.query.text
        yield example.positive.text


def open_sources(recipe: Recipe, *, strict: bool) -> list[Rows]:
    """Return the rows of the recipe's data, without those that its held-out sets have."""
    sources = [open_source(source, rows_cache(), strict=strict) for source in recipe.data]
    if recipe.held_out:
        hold_out(sources, open_suite(*recipe.held_out))
    return sources


def distillation_teacher(recipe: Recipe, training: Training) -> Teacher | None:
    """Return whom the recipe's loss learns from, None where it has no distillation."""
    if recipe.loss.distill is None:
        return None
    return open_teacher(
        recipe.loss.distill.teacher,
        teachers_cache(),
        replace(training.runtime, precision=recipe.run.precision),
        max_tokens=recipe.batch.max_tokens,  # what the student does not see it cannot learn
    )


def open_model(recipe: Recipe, start: Checkpoint, device: torch.device) -> EmbeddingGemma:
    """Return the model to train, with the recipe's pooling."""
    model = load(start, device=device, pooling=recipe.pooling).train()
    model.recomputes = recipe.run.activation_checkpointing
    if recipe.run.compile:
        for block in model.blocks():
            block.compile()
    return model


def check_dims(recipe: Recipe, start: Checkpoint, teacher: Teacher | None) -> None:
    """Refuse widths of the loss that the model or the teacher does not have.

    Raises:
        UsageError: and it names the key.
    """
    for width in recipe.loss.matryoshka:
        if width > start.dim and trains_widths(recipe.loss):
            raise UsageError(
                f"loss.matryoshka: {width} is wider than the model's vectors, {start.dim}"
            )
    distill = recipe.loss.distill
    if teacher is not None and distill is not None and distill.weight:
        check_widths(start.dim, teacher.dim, distill.teacher)
