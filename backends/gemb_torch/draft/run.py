"""A run that makes a draft, from end to end: look, embed by the teacher, train, write.

RUN/start/                       the teacher's tokenizer
RUN/checkpoints/step-000500/     model/ (the draft), state/
RUN/model/                       the draft at the end

`DraftRun.step` is one step, from texts to the numbers of a line of metrics.jsonl;
`DraftRun.train` is the loop around it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemb.backend import Training
from gemb.errors import UsageError
from gemb.io import notes
from gemb.io.atomic import copy_file, process_folder
from gemb.io.caches import teachers_cache
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.io.text import duration
from gemb.models.card import write_card
from gemb.models.prompts import for_task
from gemb.models.references import resolve
from gemb.models.safetensors import NewTensor, read_header, write_file
from gemb.models.static import write_static
from gemb.models.tokenizer import read_tokenizer
from gemb.plugins import describe
from gemb.recipe.run_folder import RunFolder
from gemb.recipe.schema import Draft, Recipe
from gemb.training.log import StepMetrics
from gemb.training.report import write_report
from gemb.training.teacher import TeacherText
from gemb.training.teachers import open_teacher
from gemb_torch.draft.loss import contrast, cosine_distance, likeness_gap
from gemb_torch.draft.model import DraftModel, sif_weights
from gemb_torch.draft.texts import (
    Bags,
    bags_of,
    pair_sources,
    read_passages,
    taught,
    token_texts,
)
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.adamw import AdamW, clip, rate
from gemb_torch.train.finite import refuse
from gemb_torch.train.keeper import Keeper, run_folder
from gemb_torch.train.start import open_sources
from gemb_torch.train.state import (
    Progress,
    read_progress,
    restore_optimizer,
    resumed,
    tell_ended,
    write_state,
)
from gemb_torch.train.stop import EarlyStop, StopRequest

_WEIGHTS = "draft.safetensors"  # in a checkpoint's state/: what is not rounded yet


def draft(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Make a draft; see `gemb.backend.Backend.train`."""
    ranks = Ranks()
    if ranks.count > 1:
        raise UsageError("a draft is trained by one process; --nproc 1")
    device = training.runtime.device
    if device not in ("auto", "cpu"):
        raise UsageError(f"a draft is trained on the CPU, not on --device {device}")
    if training.dry_run:
        DraftRun(recipe, training).look()
        return
    with run_folder(recipe, training, ranks) as run:
        if run.model.is_dir() and training.resume != "never":
            tell_ended(run)
            return
        checkpoint = resumed(run, training.resume)
        draft_run = DraftRun(recipe, training)
        early.check()
        draft_run.look()
        early.check()
        draft_run.fill()
        draft_run.train(checkpoint, early)


class Step(NamedTuple):
    """The texts of a step: pairs of one source, then documents of all."""

    source: str
    bags: Bags
    queries: NDArray[np.int64]  # [pairs]: rows of the teacher's store
    same: NDArray[np.bool_]  # [pairs, pairs]: no negatives
    documents: NDArray[np.int64]  # [documents]: rows of the store


class DraftRun:
    """The parts of a run, opened from the recipe, and what is done with them."""

    def __init__(self, recipe: Recipe, training: Training) -> None:
        """Open everything; nothing is embedded yet.

        Raises:
            UsageError: something does not fit together.
            Missing: a model, a file or a library is not here.
        """
        self.recipe, self.training = recipe, training
        self.settings = settings = recipe.draft or Draft()
        self.folder = RunFolder(training.run)
        torch.set_num_threads(training.runtime.threads or cores())
        source = resolve(recipe.init.model)
        self.taught_by = describe(source)
        if max(recipe.loss.matryoshka) > self.taught_by.dim:
            raise UsageError(
                f"loss.matryoshka: {max(recipe.loss.matryoshka)} is wider than the teacher's "
                f"vectors, {self.taught_by.dim}"
            )
        longest = recipe.batch.max_tokens
        self.teacher = open_teacher(
            recipe.init.model,
            teachers_cache(),
            training.runtime,
            backend=settings.backend,
            max_tokens=longest,
        )
        work = process_folder("start") if training.dry_run else self.folder.start
        self.tokenizer_path = _tokenizer(source, work)
        tokenizer = read_tokenizer(self.tokenizer_path, self.taught_by.vocabulary)
        self.document = for_task("document", self.teacher.prompts)
        rows = open_sources(recipe, strict=training.strict)
        self.held_out = sum(len(source.held_out) for source in rows)
        self.sources = pair_sources(rows, settings, self.teacher, tokenizer, longest)
        if all(len(source.bags) < 2 for source in self.sources):
            raise UsageError("data: no source has two rows for draft.queries to take")
        self.passages = read_passages(settings.passages, settings.passage_rows)
        passages = bags_of((passage.words for passage in self.passages), tokenizer, longest)
        firsts = [source.bags.take(np.arange(source.documents)) for source in self.sources]
        self.documents = Bags.joined([*firsts, passages])
        self.tokens = token_texts(tokenizer, self.document)
        self.steps = recipe.run.steps or max(
            1,
            math.ceil(
                recipe.run.epochs * sum(map(len, self._bags())) / recipe.batch.pairs,
            ),
        )
        torch.manual_seed(recipe.seed)
        self.model = DraftModel(
            len(self.tokens), settings.width, settings.hidden, self.taught_by.dim
        )
        self._query_rows: list[NDArray[np.int64]] = []  # of the store, source by source
        self._document_rows = np.zeros(0, np.int64)

    def _bags(self) -> list[Bags]:
        return [source.bags for source in self.sources]

    def _taught_documents(self) -> list[TeacherText]:
        texts = [
            text
            for source in self.sources
            for text in taught(source.positives[: source.documents], self.document)
        ]
        return texts + taught(self.passages, self.document)

    def _taught(self) -> list[TeacherText]:
        """Return all that the teacher is to embed, tokens first."""
        queries = [text for source in self.sources for text in source.queries]
        return [*filter(None, self.tokens), *queries, *self._taught_documents()]

    # Before the first step

    def look(self) -> None:
        """Show what will be read, and predict how long the teacher will take."""
        estimate = self.teacher.predict(self._taught())
        sources = [
            {
                "name": source.name,
                "rows": len(source.bags),
                "share": source.share,
                "documents": source.documents,
            }
            for source in self.sources
        ]
        if not self.training.dry_run:
            check = {"steps": self.steps, "sources": sources}
            self.folder.write_json(self.folder.preflight, check)
        lines = [
            f"{source.name}: {len(source.bags):,} pairs, {source.documents:,} documents"
            for source in self.sources
        ]
        lines += [
            f"passages: {len(self.passages):,}",
            f"held out: {self.held_out:,} rows with a text of an evaluation set",
            f"teacher {self.teacher.reference}: {estimate.texts:,} texts to embed, about "
            f"{duration(estimate.seconds)}",
            f"steps {self.steps:,}, of {self.recipe.batch.pairs} pairs and "
            f"{self.settings.texts} documents",
        ]
        show = notes.answer if self.training.dry_run else notes.show
        show("\n".join(lines))

    def fill(self) -> None:
        """Let the teacher embed what it has not, and find the vectors in its store."""
        self.teacher.fill(self._taught())
        self._query_rows = [self.teacher.rows(source.queries) for source in self.sources]
        self._document_rows = self.teacher.rows(self._taught_documents())

    def begin(self) -> None:
        """Give the model its first values."""
        numbers = np.array([at for at, text in enumerate(self.tokens) if text])
        vectors = np.zeros((len(self.tokens), self.taught_by.dim), np.float32)
        has = np.zeros(len(vectors), bool)
        has[numbers] = True
        vectors[numbers] = self.teacher.vectors([text for text in self.tokens if text])
        texts = Bags.joined([*self._bags(), self.documents])
        weights = sif_weights(texts, len(self.tokens), self.settings.sif)
        share = self.model.begin(vectors, has, weights)
        note(f"{self.settings.width} components hold {share:.0%} of the variance of the tokens")

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
            Keeper(self.recipe, self.training, Ranks(), steps=self.steps, progress=progress)
        ) as keeper:
            early.check()
            with StopRequest() as request:
                for _ in range(progress.step, self.steps):
                    keeper.count(*self.step(keeper.progress, optimizer))
                    save = partial(self._write_checkpoint, keeper, optimizer)
                    keeper.end_step(request, partial(keeper.save_checkpoint, save))
            keeper.close()
            self._write_model(self.folder.model, keeper.progress)
            report = write_report(self.folder.path)
            note(f"draft {self.folder.model} of {self.recipe.init.model}, report {report}")

    def drawn(self, step: int) -> Step:
        """Return the texts of a step; they depend on the seed and the step alone."""
        dice = np.random.default_rng((self.recipe.seed, step))
        shares = np.array([source.share * (len(source.bags) > 1) for source in self.sources])
        at = int(dice.choice(len(shares), p=shares / shares.sum()))
        source = self.sources[at]
        count = min(self.recipe.batch.pairs, len(source.bags))
        rows = dice.choice(len(source.bags), count, replace=False)
        size = min(self.settings.texts, len(self.documents))
        documents = dice.choice(len(self.documents), size, replace=False)
        queries = self._query_rows[at][rows]
        positives = source.positive_ids[rows]
        same = (queries[:, None] == queries) | (positives[:, None] == positives)
        np.fill_diagonal(same, val=False)
        bags = Bags.joined([source.bags.take(rows), self.documents.take(documents)])
        return Step(source.name, bags, queries, same, self._document_rows[documents])

    def losses(self, drawn: Step, vectors: Tensor) -> dict[str, Tensor]:
        """Return the parts of the loss that have a weight, by name."""
        settings, widths = self.settings, self.recipe.loss.matryoshka
        pairs, documents = vectors[: len(drawn.queries)], vectors[len(drawn.queries) :]
        parts = {}
        if settings.contrast and len(pairs) > 1:
            queries = torch.from_numpy(self.teacher.at(drawn.queries))
            same = torch.from_numpy(drawn.same)
            parts["contrast"] = contrast(queries, pairs, same, widths, settings.temperature)
        if len(documents) and (settings.cosine or settings.likeness):
            right = torch.from_numpy(self.teacher.at(drawn.documents))
            if settings.cosine:
                parts["cosine"] = cosine_distance(right, documents, widths)
            if settings.likeness and len(documents) > 1:
                parts["likeness"] = likeness_gap(right, documents, widths)
        return parts

    def step(self, before: Progress, optimizer: AdamW) -> tuple[StepMetrics, Progress]:
        """Change the parameters once; return the step's numbers, and how far the run is then.

        Raises:
            GembError: the loss or the gradient is not finite; no parameter was changed by it.
        """
        settings, number = self.recipe.optimizer, before.step + 1
        begun = time.perf_counter()
        drawn = self.drawn(number)
        drawn_at = time.perf_counter()
        ids, places = np.unique(drawn.bags.ids.astype(np.int64), return_inverse=True)
        rows = optimizer.leaf(ids)
        assert rows is not None, "the table is trained by its rows"
        vectors = self.model(rows, torch.from_numpy(places), drawn.bags)
        parts = self.losses(drawn, vectors)
        loss = sum(
            (getattr(self.settings, name) * part for name, part in parts.items()), torch.zeros(())
        )
        if not math.isfinite(float(loss.detach())):
            refuse(number, "the loss", [drawn.source])
        loss.backward()
        gradients = list(optimizer.gradients(rows.grad))
        norm = clip(gradients, settings.max_grad_norm)
        if not math.isfinite(norm):
            refuse(number, "the gradient", [drawn.source])
        factor = rate(settings, before.step, self.steps)
        optimizer.step(factor, ids, gradients[-1])
        tokens = int(drawn.bags.counts.sum())
        seconds = time.perf_counter() - begun
        count = len(drawn.queries)
        progress = before.after({}, tokens=tokens, pairs=count, seconds=seconds)
        metrics = StepMetrics(
            step=number,
            loss=float(loss.detach()),
            parts={name: float(part.detach()) for name, part in parts.items()},
            tokens=progress.tokens,
            tokens_per_s=tokens / seconds,
            step_s=seconds,
            data_s=drawn_at - begun,
            lr=settings.lr * factor,
            grad_norm=norm,
        )
        return metrics, progress

    # Checkpoints, and the end

    def _restored(self, checkpoint: Path | None) -> tuple[Progress, AdamW]:
        """Bring model and optimizer to where a checkpoint stands; None: the beginning."""
        if checkpoint is None:
            self.begin()
            return Progress(step=0, order={}), AdamW(self.model, self.recipe.optimizer)
        progress = read_progress(checkpoint)
        stored = read_header(checkpoint / "state" / _WEIGHTS)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in stored.items()}:
            raise UsageError(f"{checkpoint} is of another draft; resume from another checkpoint")
        self.model.load_state_dict(
            {name: torch.from_numpy(tensor.float32().copy()) for name, tensor in stored.items()}
        )
        optimizer = AdamW(self.model, self.recipe.optimizer)
        restore_optimizer(checkpoint, optimizer, progress.step)
        note(f"resumed at step {progress.step} of {self.steps}, from {checkpoint}")
        return progress, optimizer

    def _write_checkpoint(self, keeper: Keeper, optimizer: AdamW, folder: Path) -> None:
        self._write_model(folder / "model", keeper.progress)
        write_state(folder / "state", optimizer, keeper.progress)
        tensors = {
            name: NewTensor(
                "F32",
                tuple(tensor.shape),
                [tensor.numpy().astype("<f4").reshape(-1).view(np.uint8)],
            )
            for name, tensor in self.model.state_dict().items()
        }
        write_file(folder / "state" / _WEIGHTS, tensors)

    def _write_model(self, target: Path, progress: Progress) -> None:
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_static(
            part,
            self.model.embed_tokens.weight.detach().numpy(),
            self.model.head(),
            matryoshka_dims=_widths(self.recipe.loss.matryoshka, self.taught_by.dim),
            draft_of=[self.taught_by.fingerprint],
        )
        copy_file(self.tokenizer_path, part / "tokenizer.json")
        sources = ", ".join(source.name for source in self.sources)
        change = (
            f"Made by gemb as a draft of {self.recipe.init.model} ({self.taught_by.fingerprint}): "
            f"a table of token vectors and a head, {progress.step} steps, {progress.tokens} tokens "
            f"of {sources}."
        )
        write_card(part, self.taught_by.licence, change)
        part.replace(target)


def _widths(trained: Sequence[int], dim: int) -> list[int]:
    return sorted({*trained, dim}, reverse=True)


def _tokenizer(source: Path, work: Path) -> Path:
    """Return the teacher's tokenizer.json; that of a GGUF file is written into `work`."""
    if source.is_dir():
        from gemb.models.adapter import file_of

        return file_of(source, "tokenizer.json")
    from gemb.models.from_gguf import tokenizer_files
    from gemb.models.gguf import open_gguf

    model = open_gguf(source)
    work.mkdir(parents=True, exist_ok=True)
    target = work / "tokenizer.json"
    text = json.dumps(
        tokenizer_files(model.header, model.max_tokens)["tokenizer.json"], ensure_ascii=False
    )
    target.write_text(text, encoding="utf-8")
    return target
