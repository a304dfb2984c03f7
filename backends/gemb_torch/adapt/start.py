"""Where adaptation begins: the decoder as an encoder's folder, cut if the recipe says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs
from tokenizers import Tokenizer

from gemb.datasets.plain_texts import PlainTexts, Texts
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.stamps import Stamp
from gemb.models import references as models
from gemb.models.adapter import base_of
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.from_decoder import write_encoder
from gemb.recipe.schema import Recipe
from gemb.training.ul2 import Task, most_spans
from gemb_torch.adapt.order import Ids
from gemb_torch.train.start import starting_folder

if TYPE_CHECKING:
    from gemb.backend import Runtime


_MADE_FROM = "decoder.json"  # in a folder of ours: what it was made from
_MARKS = 400  # that a smaller vocabulary keeps, where there are so many


def start_of(
    recipe: Recipe, work: Path, texts: Sequence[PlainTexts], runtime: Runtime
) -> Checkpoint:
    """Return the encoder that has the decoder's weights.

    Args:
        recipe: its `init` and seed are read.
        work: where it is made, and found again by a run that goes on.
        texts: of the run, whose tokens a smaller vocabulary keeps.
        runtime: where layers are chosen by their worth.

    Raises:
        UsageError: `init.from` is no Gemma 3, or has not what is to be kept of it.
        Missing: it is not here.
    """
    source = models.resolve(recipe.init.model)
    whole = work / "encoder"
    made_from = {"decoder": str(source.resolve()), "files": _files(source), "seed": recipe.seed}
    if not (whole / _MADE_FROM).is_file() or read_json(whole / _MADE_FROM) != made_from:
        work.mkdir(parents=True, exist_ok=True)
        with new_folder(whole) as part:
            write_encoder(source, part, seed=recipe.seed)
            open_checkpoint(part)
            write_json(part / _MADE_FROM, made_from)
    counted = [Texts(source.name, source.read) for source in texts]
    names = [f"<unused{number}>" for number in range(_MARKS)]
    counted.append(Texts("marks", lambda: iter(names)))
    init = structs.replace(recipe.init, model=str(whole.resolve()))
    folder = starting_folder(init, work, texts=counted, runtime=runtime, seed=recipe.seed)
    return open_checkpoint(folder)


def ids_of(tokenizer: Tokenizer, folder: Path, tasks: Sequence[Task], longest: int) -> Ids:
    """Return the tokens that stand around texts and for spans.

    Raises:
        UsageError: the tokenizer has too few marks for texts so long.
    """
    bos, *_, eos = tokenizer.encode("").ids
    marks: list[int] = []
    while (mark := tokenizer.token_to_id(f"<unused{len(marks)}>")) is not None:
        marks.append(mark)
    needed = most_spans(tasks, longest)
    if len(marks) < needed:
        raise UsageError(
            f"{folder / 'tokenizer.json'}: {len(marks)} marks (<unused0>, <unused1>, ...), and a "
            f"text of {longest} tokens may need {needed}; lower batch.max_tokens"
        )
    return Ids(bos=bos, eos=eos, marks=np.array(marks[:needed], np.int64))


def _files(source: Path) -> list[list[str | int]]:
    folders = dict.fromkeys((source, base_of(source))) if source.is_dir() else ()
    paths = sorted(path for folder in folders for path in folder.glob("*")) or [source]
    abouts = [(path.name, path.stat()) for path in paths if path.is_file()]
    return [[name, *Stamp.of(about)] for name, about in abouts]
