"""What a draft's vectors are drawn to, at every width of `loss.matryoshka`; means over the widths.

contrast   InfoNCE between the teacher's query vectors, which are frozen, and the documents
cosine     1 - cosine to the teacher's vector of the same document
likeness   KL divergence of the documents' likenesses to each other, as the teacher has them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LIKENESS_TEMPERATURE = 0.05
_NEVER = -1e4  # a logit that takes no part


def contrast(
    queries: Tensor, documents: Tensor, same: Tensor, widths: Iterable[int], temperature: float
) -> Tensor:
    """Return InfoNCE, both ways.

    Args:
        queries: vectors of the teacher, [N, dim].
        documents: vectors of the draft, [N, dim]; of any length.
        same: [N, N], True where another pair has an equal query or document: no negative.
        widths: of the vectors.
        temperature: of the cosines.
    """
    labels = torch.arange(len(queries))
    values = []
    for query, document in _cut(queries, documents, widths):
        logits = (query @ document.T / temperature).masked_fill(same, _NEVER)
        values.append(F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    return torch.stack(values).mean()


def cosine_distance(taught: Tensor, documents: Tensor, widths: Iterable[int]) -> Tensor:
    """Return the mean of 1 - cosine; both [N, dim]."""
    pairs = _cut(taught, documents, widths)
    return torch.stack([1 - (right * own).sum(1).mean() for right, own in pairs]).mean()


def likeness_gap(taught: Tensor, documents: Tensor, widths: Iterable[int]) -> Tensor:
    """Return the mean KL divergence of each document's likenesses to the others; both [N, dim]."""
    itself = torch.eye(len(taught), dtype=torch.bool)
    values = []
    for pair in _cut(taught, documents, widths):
        right, own = (
            F.log_softmax((x @ x.T / LIKENESS_TEMPERATURE).masked_fill(itself, _NEVER), dim=-1)
            for x in pair
        )
        values.append(F.kl_div(own, right, log_target=True, reduction="batchmean"))
    return torch.stack(values).mean()


def _cut(first: Tensor, second: Tensor, widths: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for width in widths:
        yield F.normalize(first[:, :width], dim=-1), F.normalize(second[:, :width], dim=-1)
