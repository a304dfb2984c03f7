"""Token ids to unit vectors: a product of counts and rows for each block, then the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemb.models.safetensors import StoredTensor, not_finite
from gemb.models.static import DenseLayer, StaticModel
from gemb.models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds

# Of a block. More texts have more different tokens, and counts, [texts, different tokens], are
# nearly all zero.
BLOCK_TEXTS = 64
BLOCK_TOKENS = 1 << 15

LEAST_LENGTH = 1e-12  # a mean of zeros goes through the head as zeros, as in PyTorch

_ACTIVATIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "Identity": lambda values: values,
    "ReLU": lambda values: np.maximum(values, 0),
    "Tanh": np.tanh,
}


class StaticEncoder:
    """An open model; see `gemb.backend.Encoder`."""

    def __init__(self, model: StaticModel) -> None:
        """Read the tokenizer and the head; the table stays in the file's map.

        Raises:
            UsageError: the tokenizer is missing or broken, or not the table's, or a number of the
                model is not finite.
        """
        self.profile = model.profile()
        self._tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.table.shape[0])
        self._table = _rows(model)
        self._scales = None if model.scales is None else _finite(model.scales)[:, None]
        self._head = [layer and _Dense(layer) for layer in model.head]

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], at least one; nothing is cut."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids or [0], np.int32) for encoding in encodings]

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences of one id or more. A row of zeros, which has no direction, is
        returned as NaN; it spoils no other row.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)
        with np.errstate(all="ignore"):
            for begin, end in blocks([len(ids) for ids in batch]):
                vectors[begin:end] = self._block(batch[begin:end])
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors

    def _block(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        states = self.pooled(batch)
        for layer in self._head:
            states = layer(states) if layer else _units(states, least=LEAST_LENGTH)
        return _units(states, least=0.0)

    def pooled(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return the mean of each text's rows, float32 [len(batch), width of the table]."""
        lengths = np.array([len(ids) for ids in batch])
        ids, places = np.unique(np.concatenate(batch), return_inverse=True)
        cells = np.repeat(np.arange(len(batch)) * len(ids), lengths) + places
        counts = np.bincount(cells, minlength=len(batch) * len(ids)).astype(np.float32)
        rows = self._table[ids].astype(np.float32)
        if self._scales is not None:
            rows *= self._scales[ids]
        means: NDArray[np.float32] = counts.reshape(len(batch), len(ids)) @ rows
        means /= lengths[:, None]
        return means


class _Dense:
    def __init__(self, layer: DenseLayer) -> None:
        self._weight = np.ascontiguousarray(_finite(layer.weight).T)  # [in, out]
        self._bias = _finite(layer.bias) if layer.bias else np.float32(0)
        self._activation = _ACTIVATIONS[layer.activation]

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._activation(states @ self._weight + self._bias)


def blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each block of texts of these lengths, in their order."""
    begin = tokens = 0
    for at, length in enumerate(lengths):
        if at > begin and (at - begin == BLOCK_TEXTS or tokens + length > BLOCK_TOKENS):
            yield begin, at
            begin, tokens = at, 0
        tokens += length
    if begin < len(lengths):
        yield begin, len(lengths)


def _rows(model: StaticModel) -> NDArray[np.int8] | NDArray[np.float32]:
    """Return the table as it is stored, [tokens, width]: whole numbers are read where needed."""
    if model.table.dtype != "I8":
        return _finite(model.table)
    return model.table.raw().view(np.int8).reshape(model.table.shape)


def _finite(tensor: StoredTensor) -> NDArray[np.float32]:
    values = tensor.float32()
    if not np.isfinite(values).all():
        raise not_finite(tensor.path, "a tensor")
    return values


def _units(states: NDArray[np.float32], *, least: float) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(states, axis=1, keepdims=True), least)
    result: NDArray[np.float32] = states / lengths
    return result
