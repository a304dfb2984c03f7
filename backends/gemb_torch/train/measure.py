"""What is measured of the model in training: pairs to compare, and scores as they are logged."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from gemb.datasets.batches import BatchOrder
from gemb.evaluation.scores import Scores
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.batches import BatchMaker

if TYPE_CHECKING:
    from gemb.arrays import TokenIds


def first_pairs(
    maker: BatchMaker, order: BatchOrder, count: int
) -> tuple[list[TokenIds], list[TokenIds]]:
    """Return the token ids of the first pairs: queries and positives, no positive twice.

    A pair whose positive is an earlier one's would have a wrong partner.
    """
    # Of whole batches, however many processes share them.
    alone = replace(maker, teacher=None, ranks=Ranks(alone=True))
    queries: list[TokenIds] = []
    positives: list[TokenIds] = []
    for batch in map(alone.make, islice(order, -(-count // order.pairs))):
        queries += batch.texts[: batch.pairs]
        positives += batch.texts[batch.pairs : 2 * batch.pairs]
    first: dict[bytes, int] = {}  # positive -> the pair that has it first
    for pair, ids in enumerate(positives[:count]):
        first.setdefault(ids.tobytes(), pair)
    pairs = sorted(first.values())
    return [queries[pair] for pair in pairs], [positives[pair] for pair in pairs]


def logged(scores: Scores) -> dict[str, Any]:
    """Return the scores as a line of metrics.jsonl has them."""
    return {
        str(size.dim): {
            "mean": scores.mean(*size),
            "sets": {set_.name: scores.main(set_.name, *size).value for set_ in scores.sets},
        }
        for size in scores.sizes
    }


def in_line(scores: Scores) -> str:
    """Return `ndcg@10 0.412 at 768, 0.401 at 128`."""
    means = (f"{scores.mean(*size):.3f} at {size.dim}" for size in scores.sizes)
    return f"{scores.metric} {', '.join(means)}"
