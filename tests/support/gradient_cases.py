"""Batches and losses of many kinds, and the gradients that a plain backward pass gives of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from gemb.models.checkpoint import open_checkpoint
from gemb.recipe.schema import Contrastive, Distill, Loss, SpreadOut
from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.packing import pack
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.weights import load
from gemb_torch.train.batches import row_ids
from gemb_torch.train.gradients import Gradients, TokenBatch
from gemb_torch.train.objective import StepVectors, objective

TABLE = "embed_tokens.weight"
WIDTH = 96
TEACHER_WIDTH = 128
# A temperature that leaves every logit some gradient.
NCE = Contrastive(temperature=0.1)


@dataclass(frozen=True)
class Case:
    """A kind of step."""

    loss: Loss
    negatives: bool = True
    pooling: str = "mean"
    recomputes: bool = False


EVERYTHING = Loss(
    matryoshka=(96, 48, 16),
    contrastive=NCE,
    spread_out=SpreadOut(),
    distill=Distill(teacher="t", sides=("query", "positive", "negative"), similarity_weight=0.5),
)
CASES = {
    "pairs": Case(Loss(matryoshka=(96,), contrastive=NCE), negatives=False),
    "hard negatives": Case(Loss(matryoshka=(96,), contrastive=NCE)),
    "matryoshka": Case(Loss(matryoshka=(96, 48, 16), contrastive=NCE)),
    "spread-out": Case(Loss(matryoshka=(96, 48), contrastive=NCE, spread_out=SpreadOut())),
    "distillation": Case(structs.replace(EVERYTHING, contrastive=None, spread_out=None)),
    "activation checkpointing": Case(EVERYTHING, recomputes=True),
    "attention pooling": Case(EVERYTHING, pooling="attention"),
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: for tiny products several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(folder: Path, case: Case) -> EmbeddingGemma:
    """Return the model in training mode, its weights memory of its own."""
    model = load(open_checkpoint(folder), pooling=case.pooling).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    if model.pool_queries is not None:  # zeros would leave out a part of the formula
        torch.manual_seed(5)
        model.pool_queries.data.normal_()
    model.recomputes = case.recomputes
    return model


def batch_of(pairs: int, case: Case, seed: int = 0, vocabulary: int = 360) -> TokenBatch:
    """Return a batch with 0 to 3 negatives a pair; the last pair repeats the first one's query.

    Every third pair's positive has the identity of its neighbour's, too.
    """
    random = np.random.default_rng(seed)
    owners = np.repeat(np.arange(pairs), random.integers(0, 4, pairs) * case.negatives)
    count = 2 * pairs + len(owners)
    texts = [
        random.integers(5, vocabulary, random.integers(3, 40)).astype(np.int32)
        for _ in range(count)
    ]
    texts[pairs - 1] = texts[0]
    query_ids = np.arange(pairs) + 1000 * seed
    query_ids[-1] = query_ids[0]
    positive_ids = np.arange(pairs) + 500 * seed
    positive_ids[2::3] = positive_ids[1::3][: len(positive_ids[2::3])]
    taught = random.standard_normal((count, TEACHER_WIDTH)).astype(np.float32)
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    return TokenBatch(
        source="a",
        places=[f"a:{row}" for row in range(pairs)],
        texts=texts,
        negative_rows=owners,
        query_ids=query_ids,
        positive_ids=positive_ids,
        teacher=taught if case.loss.distill else None,
    )


def part_of(batch: TokenBatch, mine: slice) -> TokenBatch:
    """Return the pairs of a slice, with their negatives."""
    B = batch.pairs
    owned = np.flatnonzero((batch.negative_rows >= mine.start) & (batch.negative_rows < mine.stop))
    pairs = np.arange(mine.start, mine.stop)
    texts = np.concatenate([pairs, B + pairs, 2 * B + owned])
    return TokenBatch(
        source=batch.source,
        places=batch.places[mine],
        texts=[batch.texts[text] for text in texts],
        negative_rows=batch.negative_rows[owned] - mine.start,
        query_ids=batch.query_ids[mine],
        positive_ids=batch.positive_ids[mine],
        teacher=None if batch.teacher is None else batch.teacher[texts],
    )


def gradients_by(model: EmbeddingGemma, case: Case, ranks: Ranks, micro_tokens: int) -> Gradients:
    """Return what is tested."""
    return Gradients(
        model=model,
        objective=partial(objective, case.loss),
        ranks=ranks,
        micro_tokens=micro_tokens,
        autocast=nullcontext,
        device=torch.device("cpu"),
        width=WIDTH,
    )


def found_gradients(
    model: EmbeddingGemma, made: Gradients, batches: Sequence[TokenBatch]
) -> dict[str, Tensor]:
    """Return the sum over batches and processes by name, of the whole token table."""
    table = model.get_parameter(TABLE)
    ids = made.ranks.union(row_ids(batches))
    rows = table.detach()[torch.from_numpy(ids)].requires_grad_()
    for batch in batches:
        made.add(batch, rows, ids)
    found = {
        name: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in model.named_parameters()
        if name != TABLE
    }
    assert rows.grad is not None
    made.ranks.sum([*found.values(), rows.grad])
    found[TABLE] = torch.zeros_like(table).index_add_(0, torch.from_numpy(ids), rows.grad)
    return {name: gradient.detach().clone() for name, gradient in found.items()}


def plain_gradients(
    model: EmbeddingGemma,
    batches: Sequence[TokenBatch],
    loss: Callable[[StepVectors], tuple[Tensor, dict[str, Tensor]]],
) -> dict[str, Tensor]:
    """Return the same by one backward pass through everything, the table a parameter."""
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_()
    for batch in batches:
        packing = pack(
            [len(ids) for ids in batch.texts],
            window=model.config.sliding_window,
            device=torch.device("cpu"),
            max_padding=0.0,
        )
        ids = torch.from_numpy(np.concatenate(batch.texts).astype(np.int64))
        vectors = model(ids, packing)
        B = batch.pairs
        taught = None if batch.teacher is None else torch.from_numpy(batch.teacher)
        same = torch.zeros(B, B, dtype=torch.bool)
        for i in range(B):
            for j in range(B):
                same[i, j] = bool(
                    batch.query_ids[i] == batch.query_ids[j]
                    or batch.positive_ids[i] == batch.positive_ids[j]
                )
        total, _ = loss(
            StepVectors(
                queries=vectors[:B],
                positives=vectors[B : 2 * B],
                negatives=vectors[2 * B :],
                negative_rows=torch.from_numpy(batch.negative_rows),
                same=same,
                teacher_queries=None if taught is None else taught[:B],
                teacher_positives=None if taught is None else taught[B : 2 * B],
                teacher_negatives=None if taught is None else taught[2 * B :],
            )
        )
        total.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the length of the difference over the length of what is expected."""
    assert found.keys() == expected.keys()
    gap = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    size = sum(float(expected[name].double().square().sum()) for name in expected)
    return float((gap / size) ** 0.5)
