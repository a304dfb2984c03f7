"""EmbeddingGemma as an ONNX graph: token states in, sums before the last normalization out.

    B sequences of one length L   D width of a token     F inner width of the feed-forward
    N = B L tokens                H query heads          M width of a vector
    K key/value heads             E width of a head

All sequences of a run have the same length, so nothing is padded: tokens are rows [N, D], but where
attention parts them by sequence. A text's numbers do not depend on its neighbours: integer products
are exact, every other operation acts on one token or one sequence of a length that is its own.

In int8 a weight has one scale for each row, and an activation one for each token: its largest
number becomes 127, and 128 is added, since the processors' instruction multiplies unsigned by
signed bytes (`smoothing` evens the channels out before). Attention, norms and pooling are fp32.

A sliding layer adds the input `mask` [L, L]: 0 within the window, -inf beyond it.

Sources: EmbeddingGemma, arXiv 2509.20354; Gemma 3, arXiv 2503.19786; the operators,
https://onnx.ai/onnx/operators and onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb_onnx.numbers import Numbers
from gemb_onnx.protobuf import Attribute, Graph

if TYPE_CHECKING:
    from typing import BinaryIO

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

WEIGHTS = "weights.bin"
VERSION = 6  # of the graph: one more where the same model would be written otherwise
FULL_RANGE = 127  # of int8 weights
HALF_RANGE = 63  # where two products of a full byte overflow the sum of 16 bits (AVX2)

_ALIGNMENT = 4096  # of a weight in its file: whole pages can be mapped
_MICROSOFT = "com.microsoft"


def write_graph(numbers: Numbers, graph: Path, weight_range: int | None) -> None:
    """Write the graph, and its weights into the file `WEIGHTS` beside it.

    Args:
        numbers: of the model.
        graph: the file to write.
        weight_range: the largest int8 weight; None: products are fp32.

    Raises:
        UsageError: the model's numbers are not finite.
        OSError: the folder cannot be written.
    """
    with graph.with_name(WEIGHTS).open("wb") as weights:
        nodes = _Encoder(numbers, weights, weight_range).graph()
    graph.write_bytes(nodes.file())


def layer_graph(numbers: Numbers, layer: int) -> tuple[bytes, dict[str, NDArray[np.generic]]]:
    """Return the ONNX file of one layer in fp32, and its weights, which are inputs.

    From `states` and `mask` it computes the states after the layer, [B, L, D], then how far each
    channel of a normed state is from 0 at most, [D]: where attention begins, and the feed-forward.
    """
    encoder = _Encoder(numbers, None, None)
    return encoder.graph_of_layer(layer).file(), encoder.given


class _Encoder:
    """The graph as it grows."""

    def __init__(
        self, numbers: Numbers, weights: BinaryIO | None, weight_range: int | None
    ) -> None:
        self._numbers, self._weights = numbers, weights
        self.given: dict[str, NDArray[np.generic]] = {}  # weights, where they go into no file
        self._shape = numbers.shape
        self._range = weight_range
        self._graph = Graph()
        self._norm = {"axis": -1, "epsilon": self._shape.eps}

    def graph(self) -> Graph:
        """Return the whole graph; the weights are in the file."""
        x = self._begun()
        for layer in range(self._shape.layers):
            x = self._layer(x, layer)[0]
        dense, pooled = self._pooled(x)
        self._graph.output(pooled, "float32", ["B", dense])
        return self._graph

    def graph_of_layer(self, layer: int) -> Graph:
        """Return the graph of `layer_graph`."""
        hidden = self._shape.hidden
        x, *normed = self._layer(self._begun(), layer)
        states = self._reshaped(x, self._batch, self._length, [hidden])
        self._graph.output(states, "float32", ["B", "L", hidden])
        for rows in normed:
            reach = self._add("ReduceMax", self._add("Abs", rows), self._ints([0]), keepdims=0)
            self._graph.output(reach, "float32", [hidden])
        return self._graph

    def _begun(self) -> str:
        """Return the input states [N, D] of a graph that has its inputs and constants."""
        shape = self._shape
        x = self._graph.input("states", "float32", ["B", "L", shape.hidden])
        self._mask = self._graph.input("mask", "float32", ["L", "L"])
        self._batch = self._add("Shape", x, end=1)
        self._length = self._add("Shape", x, start=1, end=2)
        self._largest = self._constant(np.float32(127))
        self._tiny = self._constant(np.float32(1e-30))  # the scale of a token of zeros is no zero
        self._middle = self._constant(np.uint8(128))
        self._one = self._constant(np.float32(1))
        self._turns = {
            is_sliding: self._rotation(shape.local_theta if is_sliding else shape.theta)
            for is_sliding in (True, False)
        }
        return self._reshaped(x, [-1, shape.hidden])

    def _layer(self, x: str, layer: int) -> tuple[str, str, str]:
        """Return the residual stream after a layer, and its two normed states, all [N, D]."""
        prefix = f"layers.{layer}"
        before = self._normed(x, f"{prefix}.input_layernorm")
        attended = self._attention(before, f"{prefix}.self_attn", self._shape.is_sliding[layer])
        update = self._normed(attended, f"{prefix}.post_attention_layernorm")
        between, _, _, x = self._graph.add(
            "SkipSimplifiedLayerNormalization",
            x,
            update,
            self._stored(self._numbers.norm(f"{prefix}.pre_feedforward_layernorm")),
            domain=_MICROSOFT,
            outputs=4,
            attributes={"epsilon": self._shape.eps},
        )
        fed = self._feed_forward(between, f"{prefix}.mlp")
        x = self._add("Add", x, self._normed(fed, f"{prefix}.post_feedforward_layernorm"))
        return x, before, between

    def _attention(self, normed: str, prefix: str, is_sliding: bool) -> str:
        shape = self._shape
        H, K, E = shape.heads, shape.key_heads, shape.head_dim
        q, k, v = self._products(normed, [f"{prefix}.{part}_proj" for part in "qkv"])
        q, k, v = self._parted(q, H), self._parted(k, K), self._parted(v, K)
        q_norm = self._numbers.norm(f"{prefix}.q_norm") * np.float32(shape.scale)
        q = self._rotated(self._normalized(q, q_norm), is_sliding)
        k = self._rotated(self._normalized(k, self._numbers.norm(f"{prefix}.k_norm")), is_sliding)
        # The query heads of one key head are so many more queries: [B, K, H/K L, E].
        q = self._reshaped(q, self._batch, [K, -1, E])
        scores = self._add("MatMul", q, self._add("Transpose", k, perm=[0, 1, 3, 2]))
        if is_sliding:
            squares = self._reshaped(scores, self._batch, [H, -1], self._length)
            scores = self._reshaped(
                self._add("Add", squares, self._mask), self._batch, [K, -1], self._length
            )
        attended = self._add("MatMul", self._add("Softmax", scores, axis=-1), v)
        attended = self._reshaped(attended, self._batch, [H, -1, E])
        attended = self._add("Transpose", attended, perm=[0, 2, 1, 3])
        return self._products(self._reshaped(attended, [-1, H * E]), [f"{prefix}.o_proj"])[0]

    def _parted(self, rows: str, heads: int) -> str:
        """Return rows [N, heads E] by sequence and head, [B, heads, L, E]."""
        width = self._shape.head_dim
        if heads == 1:
            return self._reshaped(rows, self._batch, [1], self._length, [width])
        parts = self._reshaped(rows, self._batch, self._length, [heads, width])
        return self._add("Transpose", parts, perm=[0, 2, 1, 3])

    def _feed_forward(self, normed: str, prefix: str) -> str:
        gate, up = self._products(normed, [f"{prefix}.gate_proj", f"{prefix}.up_proj"])
        gated = self._add("Mul", self._add("Gelu", gate, approximate="tanh"), up)
        return self._products(gated, [f"{prefix}.down_proj"])[0]

    def _pooled(self, x: str) -> tuple[int, str]:
        """Return the width M of a vector, and the vectors before they are normalized, [B, M]."""
        numbers, shape = self._numbers, self._shape
        states = self._normalized(x, np.ones(shape.hidden, np.float32))
        states = self._reshaped(states, self._batch, self._length, [shape.hidden])
        # Of one sequence alone onnxruntime adds in another order: so there are two at least.
        states = self._add("Concat", states, states, axis=0)
        last_norm = numbers.norm("norm").astype(np.float64)
        match shape.pooling:
            case "mean":
                state = self._add("ReduceMean", states, self._ints([1]), keepdims=0)
            case "first":
                state = self._add("Gather", states, self._int(0), axis=1)
            case "last":
                state = self._add("Gather", states, self._int(-1), axis=1)
            case _:
                state = self._attention_pooled(states, last_norm)
        first, second = (
            numbers.matrix(f"{part}_Dense.linear").astype(np.float64) for part in (2, 3)
        )
        dense = (second @ first * last_norm).astype(np.float32)
        products = self._add("MatMul", state, self._stored(dense.T))
        return len(dense), self._add("Slice", products, self._ints([0]), self._batch)

    def _attention_pooled(self, states: str, last_norm: NDArray[np.float64]) -> str:
        """Return the states [B, D] that attention's queries choose (`gemb_torch.model.pooling`)."""
        queries = self._numbers.matrix("1_Pooling.queries")
        heads, width = queries.shape
        scaled = (queries * last_norm * width**-0.5).astype(np.float32)
        scores = self._add("MatMul", states, self._stored(scaled.T))  # [B, L, heads]
        shares = self._add("Softmax", scores, axis=1)
        shares = self._add("Transpose", shares, perm=[0, 2, 1])
        shares = self._add("Unsqueeze", shares, self._ints([2]))  # [B, heads, 1, L]
        parts = self._reshaped(states, [-1], self._length, [heads, width // heads])
        parts = self._add("Transpose", parts, perm=[0, 2, 1, 3])
        return self._reshaped(self._add("MatMul", shares, parts), [-1, width])

    # Products

    def _products(self, rows: str, names: Sequence[str]) -> list[str]:
        """Return rows [N, in] times each of the matrices, [N, out] of it."""
        matrices = [self._numbers.matrix(name) for name in names]
        if self._range is None:
            return [self._add("Gemm", rows, self._stored(matrix), transB=1) for matrix in matrices]
        high = self._add("ReduceMax", rows, self._ints([1]))
        low = self._add("Neg", self._add("ReduceMin", rows, self._ints([1])))
        scale = self._add("Div", self._add("Max", high, low, self._tiny), self._largest)  # [N, 1]
        scales = self._reshaped(scale, [-1])
        middles = self._add("Expand", self._middle, self._add("Shape", scales))
        rounded = self._add("QuantizeLinear", rows, scales, middles, axis=0)
        weights = (rounded_rows(matrix, self._range) for matrix in matrices)
        return [self._add("Mul", self._product(rounded, *pair), scale) for pair in weights]

    def _product(self, rounded: str, scales: Floats, integers: NDArray[np.int8]) -> str:
        """Return bytes [N, in] times rows of integers [out, in], each times its scale, [N, out]."""
        return self._graph.add(
            "MatMulIntegerToFloat",
            rounded,
            self._stored(integers.T),
            self._one,
            self._stored(scales),
            self._middle,
            domain=_MICROSOFT,
        )[0]

    # Nodes

    def _add(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        return self._graph.add(operator, *inputs, attributes=attributes)[0]

    def _normed(self, x: str, name: str) -> str:
        return self._normalized(x, self._numbers.norm(name))

    def _normalized(self, x: str, weight: Floats) -> str:
        return self._add("SimplifiedLayerNormalization", x, self._stored(weight), **self._norm)

    def _rotation(self, base: float) -> tuple[str, str]:
        """Return cosine and sine of each position's angles, [max tokens, E/2]."""
        exponents = np.arange(0, self._shape.head_dim, 2) / self._shape.head_dim
        angles = np.arange(self._shape.max_tokens)[:, None] / base**exponents
        return self._stored(np.cos(angles)), self._stored(np.sin(angles))

    def _rotated(self, heads: str, is_sliding: bool) -> str:
        begin = self._ints([0])  # the position of the first token
        turns = self._turns[is_sliding]
        return self._graph.add("RotaryEmbedding", heads, begin, *turns, domain=_MICROSOFT)[0]

    def _reshaped(self, x: str, *sizes: str | list[int]) -> str:
        """Return x in another shape: names of sizes in the graph, and numbers."""
        parts = [size if isinstance(size, str) else self._ints(size) for size in sizes]
        shape = parts[0] if len(parts) == 1 else self._add("Concat", *parts, axis=0)
        return self._add("Reshape", x, shape)

    def _ints(self, numbers: Sequence[int]) -> str:
        return self._constant(np.array(numbers, np.int64))

    def _int(self, number: int) -> str:
        return self._constant(np.int64(number))

    def _constant(self, values: NDArray[np.generic] | np.generic) -> str:
        return self._graph.constant(np.asarray(values))

    def _stored(self, values: NDArray[np.generic]) -> str:
        """Return the name of a weight, whose bytes are appended to the file of weights, if any."""
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        values = np.ascontiguousarray(values)
        if self._weights is None:
            name = self._graph.input(f"given{len(self.given)}", str(values.dtype), values.shape)
            self.given[name] = values
            return name
        self._weights.write(bytes(-self._weights.tell() % _ALIGNMENT))
        name = self._graph.stored(WEIGHTS, self._weights.tell(), values)
        self._weights.write(values.data)
        return name


def rounded_rows(weight: Floats, largest: int) -> tuple[Floats, NDArray[np.int8]]:
    """Return each row's scale, float32 [out], and the rows in int8: weight = scale * integers."""
    scales = np.abs(weight).max(1) / np.float32(largest)
    scales[scales == 0] = 1
    return scales, np.rint(weight / scales[:, None]).astype(np.int8)
