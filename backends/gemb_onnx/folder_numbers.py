"""The numbers of a model folder; see `gemb_onnx.numbers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemb.models.safetensors import decoded
from gemb_onnx.numbers import Shape, finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.models.checkpoint import Checkpoint

    Floats = NDArray[np.float32]


class FolderNumbers:
    """The numbers of a model folder."""

    def __init__(self, model: Checkpoint) -> None:
        """Take a checked folder; the token table alone is mapped now."""
        self._tensors = model.tensors
        self._table = model.tensors["embed_tokens.weight"]
        self._rows = self._table.raw().reshape(self._table.shape[0], -1)
        config = model.config
        self.shape = Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            scale=config.query_pre_attn_scalar**-0.5,
            window=config.sliding_window,
            is_sliding=config.is_sliding,
            theta=config.rope_theta,
            local_theta=config.rope_local_theta,
            max_tokens=model.max_tokens,
            pooling=model.pooling,
        )

    @property
    def tokens(self) -> int:
        """See `Numbers`."""
        return len(self._rows)

    def matrix(self, name: str) -> Floats:
        """See `Numbers`."""
        stored = self._tensors[name if name in self._tensors else f"{name}.weight"]
        return finite(stored.float32(), stored.path, name)

    def norm(self, name: str) -> Floats:
        """See `Numbers`."""
        return self.matrix(name) + np.float32(1)

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """See `Numbers`."""
        values = decoded(self._rows[ids].reshape(-1), self._table.dtype)
        return values.reshape(len(ids), self.shape.hidden)
