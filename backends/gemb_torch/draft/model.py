"""A draft in PyTorch: the mean of a text's rows, of length one, through two layers.

The first rows are the teacher's vectors of single tokens, their principal components, weighted by
how rare a token is (Model2Vec; SIF). The head begins as the linear map from these components back
to the teacher's space: x is ReLU(x) - ReLU(-x). The rest of its width begins without effect.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gemb.models.static import NewLayer
from gemb_torch.draft.texts import Bags

MEAN = 0.3  # of the tokens' mean vector, where the head begins: texts have less of it than tokens


class DraftModel(nn.Module):
    """The parameters: `embed_tokens.weight`, and of the head `dense.0` and `dense.1`."""

    def __init__(self, tokens: int, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens, width)
        layers = [nn.Linear(width, hidden), nn.Linear(hidden, dim)]
        self.dense = nn.ModuleList(layers)
        self._layers = tuple(layers)  # the same, with their type

    def forward(self, rows: Tensor, places: Tensor, bags: Bags) -> Tensor:
        """Return the vectors before they are normalized, [texts, dim].

        Args:
            rows: of the tokens in use, [R, width].
            places: in `rows`, of each entry of the bags.
            bags: the texts.
        """
        begins = torch.from_numpy(bags.ends - np.diff(bags.ends, prepend=0))
        counts = torch.from_numpy(bags.counts).to(rows)
        pooled = F.embedding_bag(places, rows, begins, mode="sum", per_sample_weights=counts)
        first, second = self._layers
        states: Tensor = second(F.relu(first(F.normalize(pooled, dim=-1))))
        return states

    def begin(
        self, vectors: NDArray[np.float32], has: NDArray[np.bool_], weights: NDArray[np.float64]
    ) -> float:
        """Give the parameters their first values; return the share of variance that the rows hold.

        Args:
            vectors: of the tokens alone, [tokens, dim].
            has: which tokens have one.
            weights: of the tokens' rows.
        """
        tokens, width = self.embed_tokens.weight.shape
        kept = min(width, vectors.shape[1])  # a narrow teacher has no more components
        mean = vectors[has].mean(axis=0)
        centred = np.where(has[:, None], vectors - mean, 0)
        values, components = np.linalg.eigh(centred.T @ centred)
        basis = components[:, ::-1][:, :kept].astype(np.float32)  # [dim, kept]
        # An element is near 1, as the optimizer's steps are.
        rows = np.zeros((tokens, width), np.float32)
        rows[:, :kept] = (centred @ basis) * weights[:, None] * width**0.5
        first, second = self._layers
        with torch.no_grad():
            self.embed_tokens.weight.copy_(torch.from_numpy(rows))
            first.weight[:width] = torch.eye(width)
            first.weight[width : 2 * width] = -torch.eye(width)
            first.bias.zero_()
            second.weight.zero_()
            second.weight[:, :kept] = torch.from_numpy(basis)
            second.weight[:, width : width + kept] = -torch.from_numpy(basis)
            second.bias.copy_(torch.from_numpy(mean * MEAN))
        return float(values[::-1][:kept].sum() / values.sum())

    def head(self) -> list[NewLayer]:
        """Return the layers as a folder has them."""
        return [
            NewLayer(
                weight=layer.weight.detach().numpy(),
                bias=layer.bias.detach().numpy(),
                activation=activation,
            )
            for layer, activation in zip(self._layers, ("ReLU", "Identity"), strict=True)
        ]


def sif_weights(bags: Bags, tokens: int, a: float) -> NDArray[np.float64]:
    """Return what each token's row is multiplied with, a / (a + its share), float64 [tokens].

    A token that the texts lack counts as one that stands in them once.
    """
    counts = 1 + np.bincount(bags.ids, bags.counts, minlength=tokens)
    weights: NDArray[np.float64] = a / (a + counts / counts.sum())
    return weights
