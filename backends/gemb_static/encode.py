"""Token ids to unit vectors: sums of rows, then the head, on the thread that asks.

NumPy's BLAS spreads a product over all cores, and its threads spin while they wait for each other:
where other work runs, as it does beside a search, that costs ten times the product. It keeps small
products to itself, so the head goes through it in small ones. Each has the same shape: a text's
vector is the same to the last bit in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gemb.models.piece_tokenizer import PieceTokenizer
from gemb.models.safetensors import StoredTensor, not_finite
from gemb.models.static import DenseLayer, StaticModel
from gemb.models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds

BLOCK_TEXTS = 256  # whose vectors go through the head together

ROWS = 4  # of a product
SMALL = 1 << 18  # OpenBLAS threads a product of more multiplications (interface/gemm.c)

LEAST_LENGTH = 1e-12  # a mean of zeros goes through the head as zeros, as in PyTorch

_ACTIVATIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "Identity": lambda values: values,
    "ReLU": lambda values: np.maximum(values, 0),
    "Tanh": np.tanh,
}


class StaticEncoder:
    """An open model; see `gemb.backend.Encoder`."""

    def __init__(self, model: StaticModel) -> None:
        """Read the tokenizer, the table and the head.

        Raises:
            UsageError: the tokenizer is missing or broken, or not the table's, or a number of the
                model is not finite.
        """
        self.profile = model.profile()
        self._tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.table.shape[0])
        self._pieces = PieceTokenizer.of(self._tokenizer)
        self._table = _rows(model)
        self._head = [layer and _Dense(layer) for layer in model.head]

    def narrowed(self, dim: int) -> StaticEncoder:
        """Return the model with vectors of the first `dim` components, of length one again."""
        widths = tuple(width for width in self.profile.matryoshka_dims if width <= dim)
        narrow = copy(self)
        narrow.profile = replace(self.profile, dim=dim, default_dim=dim, matryoshka_dims=widths)
        narrow._head = [*self._head]
        last = max((at for at, layer in enumerate(self._head) if layer), default=None)
        if last is not None and (layer := self._head[last]):
            narrow._head[last] = layer.first(dim)
        return narrow

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], at least one; nothing is cut."""
        if self._pieces:
            ids = self._pieces.tokenize(texts)
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return [own if len(own) else np.zeros(1, np.int32) for own in ids]

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences of one id or more. A row of zeros, which has no direction, is
        returned as NaN; it spoils no other row.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)
        with np.errstate(all="ignore"):
            for begin in range(0, len(batch), BLOCK_TEXTS):
                block = slice(begin, begin + BLOCK_TEXTS)
                vectors[block] = self._block(batch[block])
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors

    def _block(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        states = self.pooled(batch)
        for layer in self._head:
            states = layer(states) if layer else _units(states, least=LEAST_LENGTH)
        return _units(states[:, : self.profile.dim], least=0.0)

    def pooled(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return the mean of each text's rows, float32 [len(batch), width of the table]."""
        means = np.empty((len(batch), self._table.shape[1]), np.float32)
        for mean, ids in zip(means, batch, strict=True):
            np.mean(self._table[ids], axis=0, out=mean)
        return means


class _Dense:
    def __init__(self, layer: DenseLayer) -> None:
        weight = _finite(layer.weight)
        self._size, size_in = weight.shape
        width = max(1, SMALL // (ROWS * size_in))
        parts = -(-self._size // width)
        padded = np.zeros((parts * width, size_in), np.float32)
        padded[: self._size] = weight
        split = padded.reshape(parts, width, size_in)
        self._parts = np.ascontiguousarray(split.transpose(0, 2, 1))  # [parts, in, width]
        self._bias = _finite(layer.bias) if layer.bias else np.zeros(self._size, np.float32)
        self._activation = _ACTIVATIONS[layer.activation]

    def first(self, size: int) -> _Dense:
        """Return what computes the first components alone."""
        narrow = copy(self)
        narrow._size, narrow._bias = size, self._bias[..., :size]
        narrow._parts = self._parts[: -(-size // self._parts.shape[2])]
        return narrow

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        groups = -(-len(states) // ROWS)
        padded = np.zeros((groups * ROWS, states.shape[1]), np.float32)
        padded[: len(states)] = states
        products = padded.reshape(groups, 1, ROWS, -1) @ self._parts  # [groups, parts, ROWS, width]
        whole = products.transpose(0, 2, 1, 3).reshape(len(padded), -1)
        return self._activation(whole[: len(states), : self._size] + self._bias)


def _rows(model: StaticModel) -> NDArray[np.float32]:
    """Return the table, float32 [tokens, width]: to widen whole numbers takes longer than to add.

    The scales are in it.
    """
    rows = _finite(model.table)
    return rows if model.scales is None else rows * _finite(model.scales)[:, None]


def _finite(tensor: StoredTensor) -> NDArray[np.float32]:
    values = tensor.float32()
    if not np.isfinite(values).all():
        raise not_finite(tensor.path, "a tensor")
    return values


def _units(states: NDArray[np.float32], *, least: float) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(states, axis=1, keepdims=True), least)
    result: NDArray[np.float32] = states / lengths
    return result
