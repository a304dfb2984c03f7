"""The numbers of a model, alike for a GGUF file and a model folder: float32, read when asked for.

Names are those of a model folder (`gemb.models.checkpoint`). A norm's weight is what the normed
state is multiplied with: a GGUF file stores it so, a folder stores it less one.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gemb.errors import UsageError
from gemb.models.checkpoint import Checkpoint
from gemb.models.gguf import GgufModel
from gemb.models.gguf_keys import ARCHITECTURE
from gemb.models.safetensors import decoded, not_finite
from gemb.models.tensors import gguf_name

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the arithmetic depends on beside the numbers; letters as in `graph.py`."""

    layers: int
    hidden: int  # D
    inner: int  # F
    heads: int  # H
    key_heads: int  # K
    head_dim: int  # E
    eps: float  # of the norms
    scale: float  # of q k^T
    window: int  # both sides together
    is_sliding: tuple[bool, ...]  # by layer
    theta: float  # base of RoPE in the global layers
    local_theta: float  # and in the sliding ones
    max_tokens: int
    pooling: str  # mean, first, last or attention


class Numbers(Protocol):
    """An open model's numbers."""

    shape: Shape

    @property
    def tokens(self) -> int:
        """How many rows the token table has."""

    def matrix(self, name: str) -> Floats:
        """Return a matrix, float32 [out, in]; the queries of attention pooling, too.

        Raises:
            UsageError: it holds numbers that are not finite, or is of a type that the package gguf
                cannot unpack.
        """

    def norm(self, name: str) -> Floats:
        """Return what a norm multiplies with, float32 [width]."""

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """Return rows of the token table, float32 [tokens, D], for ids [tokens]."""


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
        return _finite(stored.float32(), stored.path, name)

    def norm(self, name: str) -> Floats:
        """See `Numbers`."""
        return self.matrix(name) + np.float32(1)

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """See `Numbers`."""
        values = decoded(self._rows[ids].reshape(-1), self._table.dtype)
        return values.reshape(len(ids), self.shape.hidden)


class GgufNumbers:
    """The numbers of a GGUF file, as its types round them."""

    def __init__(self, model: GgufModel) -> None:
        """Take a checked file, and map it."""
        self._header = model.header
        with model.header.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = self._packed("embed_tokens")
        self._type = self._header.tensors["token_embd.weight"].type
        metadata = model.header.metadata

        def number(key: str, absent: float | None = None) -> Any:  # noqa: ANN401
            return metadata.get(f"{ARCHITECTURE}.{key}", absent)

        self.shape = Shape(
            layers=model.layers,
            hidden=model.hidden,
            inner=model.feed_forward,
            heads=model.heads,
            key_heads=model.kv_heads,
            head_dim=model.head_dim,
            eps=number("attention.layer_norm_rms_epsilon"),
            scale=model.head_dim**-0.5,
            window=number("attention.sliding_window"),
            is_sliding=model.is_sliding,
            theta=number("rope.freq_base"),
            local_theta=number("rope.freq_base_swa", 1e4),
            max_tokens=model.max_tokens,
            pooling=model.pooling,
        )

    @property
    def tokens(self) -> int:
        """See `Numbers`."""
        return len(self._rows)

    def matrix(self, name: str) -> Floats:
        """See `Numbers`."""
        kind = self._header.tensors[gguf_name(name)].type
        values = self._unpacked(self._packed(name), kind, name)
        return _finite(values, self._header.path, name)

    def norm(self, name: str) -> Floats:
        """See `Numbers`."""
        return _finite(self._packed(name).reshape(-1).view("<f4"), self._header.path, name)

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """See `Numbers`."""
        return self._unpacked(self._rows[ids], self._type, "token_embd")

    def _packed(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, uint8 [rows, bytes of a row]."""
        info = self._header.tensors[gguf_name(name)]
        raw = np.frombuffer(self._data, np.uint8, info.size_bytes, info.offset)
        return raw.reshape(info.shape[1] if len(info.shape) > 1 else 1, -1)

    def _unpacked(self, packed: NDArray[np.uint8], kind: str, name: str) -> Floats:
        import gguf

        try:
            return gguf.dequantize(packed, gguf.GGMLQuantizationType[kind.upper()])
        except (NotImplementedError, KeyError) as error:
            raise UsageError(
                f"{self._header.path}: tensor {name} is {kind}, which this backend cannot unpack; "
                "use --backend llamacpp"
            ) from error


def _finite(values: Floats, path: Path, name: str) -> Floats:
    if not np.isfinite(values.sum(dtype=np.float32)):
        raise not_finite(path, f"tensor {name}")
    return values
