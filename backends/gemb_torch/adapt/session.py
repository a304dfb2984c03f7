"""Where adaptation begins: the decoder as an encoder's folder, cut if the recipe says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import structs
from tokenizers import Tokenizer
from torch import Tensor, nn

from gemb.backend import Training
from gemb.datasets.plain_texts import PlainTexts, Texts
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.caches import tokens_cache
from gemb.io.machine import cores
from gemb.models import references as models
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.from_decoder import write_encoder
from gemb.models.tokenizer import load_tokenizer
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Adapt, Recipe
from gemb.training.ul2 import OBJECTIVES, Task, most_spans
from gemb_torch.adapt.order import Ids, TextOrder, TokenStore, tokenized
from gemb_torch.model.encode import device_of
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.seq2seq import Seq2Seq
from gemb_torch.model.weights import load
from gemb_torch.train.adamw import AdamW, rate
from gemb_torch.train.session import forgotten_folder, starting_folder

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
    counted = [Texts(one.name, one.read) for one in texts]
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
    wanted = most_spans(tasks, longest)
    if len(marks) < wanted:
        raise UsageError(
            f"{folder / 'tokenizer.json'}: {len(marks)} marks (<unused0>, <unused1>, ...), and a "
            f"text of {longest} tokens may need {wanted}; lower batch.max_tokens"
        )
    return Ids(bos=bos, eos=eos, marks=np.array(marks[:wanted], np.int64))


def _files(source: Path) -> list[list[str | int]]:
    found = sorted(source.glob("*")) if source.is_dir() else [source]
    abouts = [(path.name, path.stat()) for path in found if path.is_file()]
    return [[name, about.st_size, about.st_mtime_ns] for name, about in abouts]


# What a run of adaptation works with: texts, model, optimizer, opened from the recipe.


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The parts of a run."""

    recipe: Recipe
    training: Training
    run: RunFolder
    ranks: Ranks
    device: torch.device
    start: Checkpoint  # the decoder, as an encoder's folder
    head: Mapping[str, Tensor]  # of the vectors: it is written, and not trained
    model: Seq2Seq
    tokenizer: Tokenizer
    ids: Ids
    stores: list[TokenStore]
    longest: int  # tokens of a text, or of a part of one

    @property
    def adapt(self) -> Adapt:
        """The recipe's block, or its defaults."""
        return self.recipe.adapt or Adapt()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is done to the texts."""
        return OBJECTIVES[self.adapt.objective]

    @cached_property
    def steps(self) -> int:
        """Of the whole run."""
        if self.recipe.run.steps:
            return self.recipe.run.steps
        tokens = self.recipe.run.epochs * self.order().tokens_of_all
        return max(1, math.ceil(tokens / self.adapt.tokens))

    @property
    def warmup(self) -> int:
        """The first steps, in which cross-attention alone learns."""
        if self.adapt.cross_attention == "copy":
            return 0
        return min(self.adapt.cross_warmup_steps, self.steps)

    def order(self) -> TextOrder:
        """Return the order of the examples, at its beginning."""
        return TextOrder(
            self.stores,
            self.tasks,
            self.ids,
            longest=self.longest,
            tokens=self.adapt.tokens,
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


def open_adaptation(recipe: Recipe, training: Training, ranks: Ranks) -> Adaptation:
    """Open everything; texts are tokenized where they have not been.

    Raises:
        UsageError: something does not fit together.
        Missing: a model or a file is not here.
    """
    run = RunFolder(training.run)
    device = device_of(training.runtime.device)
    torch.set_num_threads(training.runtime.threads or max(1, cores() // ranks.count))
    texts = [PlainTexts(source, strict=training.strict) for source in recipe.data]
    work = forgotten_folder() if training.dry_run else run.start
    start = ranks.first_then_all(lambda: start_of(recipe, work, texts, training.runtime))
    path = start.folder / "tokenizer.json"
    tokenizer = load_tokenizer(path, start.config.vocab_size)
    digest = blake2b(path.read_bytes(), digest_size=8).hexdigest()
    stores = ranks.first_then_all(
        lambda: [tokenized(one, tokenizer, digest, tokens_cache()) for one in texts]
    )
    tasks = OBJECTIVES[(recipe.adapt or Adapt()).objective]
    longest = min(recipe.batch.max_tokens, start.max_tokens)
    encoder = load(start, device=device, pooling=recipe.pooling).train()
    head = {
        name: tensor
        for name, tensor in encoder.state_dict().items()
        if name.startswith(("dense.", "pool_queries"))
    }
    encoder.dense, encoder.pool_queries = nn.ModuleList(), None
    model = Seq2Seq(encoder).train()
    if recipe.adapt is not None and recipe.adapt.cross_attention == "random":
        model.randomise_cross_attention(recipe.seed)
    model.encoder.recomputes = model.decoder.recomputes = recipe.run.activation_checkpointing
    if recipe.run.compile:
        for block in (*model.encoder.layers, *model.decoder.layers):
            block.compile()
    adaptation = Adaptation(
        recipe=recipe,
        training=training,
        run=run,
        ranks=ranks,
        device=device,
        start=start,
        head=head,
        model=model,
        tokenizer=tokenizer,
        ids=ids_of(tokenizer, start.folder, tasks, longest),
        stores=stores,
        longest=longest,
    )
    if adaptation.warmup and adaptation.warmup == adaptation.steps:
        raise UsageError(
            f"adapt.cross_warmup_steps {adaptation.adapt.cross_warmup_steps} leaves none of "
            f"{adaptation.steps} steps to the rest of the model"
        )
    return adaptation
