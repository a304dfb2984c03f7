"""The gradients of one step, in the memory of a micro-batch however big the batch is.

A contrastive loss needs the vectors of the whole batch at once, but not their graphs (GradCache,
arXiv 2101.06983): the vectors are computed without graphs, the loss gives the gradient of each
vector, and each micro-batch is computed again to pass it on. The last micro-batch keeps its graph,
so a batch that fits in one is computed once, as in plain training.

Token rows are gathered from the table once a step, so that gradients are as big as the step's
distinct tokens and not as the vocabulary.

    T tokens of a micro-batch    B pairs of the batch, of all processes    M width of a vector
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.packing import pack
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.objective import StepVectors

if TYPE_CHECKING:
    from gemb.arrays import TokenIds


Objective = Callable[[StepVectors], tuple[Tensor, dict[str, Tensor]]]

CPU_PADDING = 0.1  # how much of attention's rectangle may be padding
CUDA_PADDING = 0.2


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """This process's part of a contrastive batch."""

    source: str
    places: list[str]  # of each pair, for messages
    texts: list[TokenIds]  # queries, then positives, then negatives
    negative_rows: NDArray[np.int64]  # the pair of each negative
    query_ids: NDArray[np.int64]  # equal where the texts are, [pairs]
    positive_ids: NDArray[np.int64]
    teacher: NDArray[np.float32] | None = None  # a unit vector for each text, [texts, M']
    cut: int = 0  # texts that were longer than `max_tokens`

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.places)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a batch gave beside its gradients."""

    loss: Tensor  # fp32 []
    parts: dict[str, Tensor]  # each term, before its weight
    vectors: Tensor  # of this process's texts, fp32 [texts, M]


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Computes gradients into the parameters' `.grad`."""

    model: EmbeddingGemma
    objective: Objective
    ranks: Ranks
    micro_tokens: int
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device
    width: int  # of a vector: M
    is_sharded: bool = False  # each pass through the model is one of all processes together

    def add(self, batch: TokenBatch, rows: Tensor | None, row_ids: NDArray[np.int64]) -> Computed:
        """Add the gradients of the loss, of this process's part of the batch.

        Args:
            batch: of this process; all processes call this together.
            rows: the token rows that the batch needs, [R, D], a leaf; None: the table is used.
            row_ids: the tokens of these rows, ascending.
        """
        micros = micro_batches([len(ids) for ids in batch.texts], self.micro_tokens)
        spare = 0  # passes without a use, so that all processes have as many
        if self.is_sharded:
            spare = self.ranks.most(len(micros)) - len(micros)
        vectors = torch.empty(len(batch.texts), self.width, device=self.device)

        def forward(micro: NDArray[np.int64]) -> Tensor:
            ids = np.concatenate([batch.texts[text] for text in micro]).astype(np.int64)
            if rows is not None:
                ids = np.searchsorted(row_ids, ids)
            padding = CPU_PADDING if self.device.type == "cpu" else CUDA_PADDING
            packing = pack(
                [len(batch.texts[text]) for text in micro],
                window=self.model.config.sliding_window,
                device=self.device,
                max_padding=padding,
            )
            made: Tensor = self.model(torch.from_numpy(ids).to(self.device), packing, rows)
            return made

        # Autocast keeps the weights that it has cast until its end. Those of a pass without graphs
        # would pass no gradient on in the next, so each has its own.
        with torch.no_grad(), self.autocast():
            for micro in micros[:-1]:
                vectors[micro] = forward(micro)
            for _ in range(spare):
                forward(micros[0])
        with self.autocast():
            last = forward(micros[-1])
            vectors[micros[-1]] = last.detach()
        computed, gradient = self._loss(batch, vectors)
        last.backward(gradient[micros[-1]])  # type: ignore[no-untyped-call]
        del last
        for micro in micros[:-1]:
            with self.autocast():
                again = forward(micro)
            again.backward(gradient[micro])  # type: ignore[no-untyped-call]
        for _ in range(spare):
            with self.autocast():
                again = forward(micros[0])
            again.backward(torch.zeros_like(again))  # type: ignore[no-untyped-call]
        return computed

    def _loss(self, batch: TokenBatch, vectors: Tensor) -> tuple[Computed, Tensor]:
        """Return the whole batch's loss, and its gradient to this process's vectors."""
        leaf = vectors.detach().requires_grad_()
        with torch.enable_grad():
            loss, parts = self.objective(self._everybody(batch, leaf))
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        detached = {name: part.detach() for name, part in parts.items()}
        return Computed(loss=loss.detach(), parts=detached, vectors=vectors), gradient

    def _everybody(self, batch: TokenBatch, leaf: Tensor) -> StepVectors:
        """Return the vectors of all processes' parts, this one's with gradients."""
        B, ranks = batch.pairs, self.ranks

        def joined(x: Tensor) -> Tensor:
            parts = ranks.gather(x)
            parts[ranks.rank] = x
            return torch.cat(parts)

        def sides(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return joined(x[:B]), joined(x[B : 2 * B]), joined(x[2 * B :])

        def told(x: NDArray[np.int64]) -> list[Tensor]:
            return ranks.gather(torch.from_numpy(x).to(self.device))

        queries, positives, negatives = sides(leaf)
        query_ids, positive_ids = told(batch.query_ids), told(batch.positive_ids)
        first = np.cumsum([0, *(len(part) for part in query_ids)])  # pair of each process's first
        owners = [
            rows + int(begin)
            for rows, begin in zip(told(batch.negative_rows), first[:-1], strict=True)
        ]
        same = _equal(torch.cat(query_ids)) | _equal(torch.cat(positive_ids))
        teacher: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        if batch.teacher is not None:
            teacher = sides(torch.from_numpy(batch.teacher).to(self.device))
        return StepVectors(
            queries=queries,
            positives=positives,
            negatives=negatives,
            negative_rows=torch.cat(owners),
            same=same,
            teacher_queries=teacher[0],
            teacher_positives=teacher[1],
            teacher_negatives=teacher[2],
        )


def _equal(ids: Tensor) -> Tensor:
    return ids[:, None] == ids


def micro_batches(lengths: Sequence[int], tokens: int) -> list[NDArray[np.int64]]:
    """Return the texts of each micro-batch, neighbours in length, the longest last.

    The last is the one that is computed once, and what did not fill a micro-batch is the first.

    Args:
        lengths: tokens of each text.
        tokens: of a micro-batch at most; a longer text is one of its own.
    """
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(-sizes, kind="stable")
    micros: list[list[int]] = []
    filled = tokens
    for text in order.tolist():
        if filled + sizes[text] > tokens or not micros:
            micros.append([])
            filled = 0
        micros[-1].append(text)
        filled += int(sizes[text])
    return [np.array(micro, np.int64) for micro in reversed(micros)]


def passes(lengths: Sequence[int], tokens: int, *, recomputes: bool) -> float:
    """Return how many forward passes a batch costs.

    A backward pass counts as two (arXiv 2001.08361, section 2.1). The gradient cache adds one, of
    all but the last micro-batch; layers that are computed again for the backward pass, one.

    Args:
        lengths: tokens of each text.
        tokens: of a micro-batch at most.
        recomputes: whether the layers are computed again.
    """
    micros = micro_batches(lengths, tokens)
    last: int = sum(lengths[text] for text in micros[-1].tolist())
    return 3 + recomputes + 1 - last / sum(lengths)
