"""A model's weights as its GGUF file will hold them, for a while: quantization-aware training.

Each step is computed with rounded weights, and its gradients change the weights as they are: the
rounding counts as the identity (straight-through, arXiv 1308.3432; for integers arXiv 1712.05877,
section 3). Weights are rounded once a step, not once a micro-batch; of the token table, only the
rows that the step uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gemb.models.qat import Types
from gemb.models.tensors import tensor_class
from gemb_torch.blocks import round_to
from gemb_torch.sharding import local

TABLE = "embed_tokens.weight"


class Rounding:
    """Rounds the weights of a model, and gives them back; without types it does nothing."""

    def __init__(self, model: nn.Module, types: Types, *, table: bool) -> None:
        """Take the model as it is.

        Args:
            model: its weights may be spread over processes: each rounds its own rows.
            types: of the classes of tensors.
            table: with the token table; else its rows come by `rows`.
        """
        self.model = model
        self.types = types
        self.table = table
        self._kept: dict[str, Tensor] = {}  # memory that the next step needs again

    def rows(self, rows: Tensor | None) -> None:
        """Round token rows [R, D] where they stand."""
        if rows is not None and self.types:
            round_to(rows, self.types[tensor_class(TABLE)])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Round the weights, and put them back at the end."""
        weights = dict(self._weights())
        with torch.no_grad():
            for name, weight in weights.items():
                self._kept.setdefault(name, torch.empty_like(weight)).copy_(weight)
                round_to(weight, self.types[tensor_class(name)])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(self._kept[name])

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            is_rounded = self.types.get(tensor_class(name), "f32") != "f32"
            if is_rounded and (self.table or name != TABLE):
                yield name, local(parameter.detach())
