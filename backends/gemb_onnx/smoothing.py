"""Even out the channels of normed states before they are rounded to int8 (SmoothQuant).

An activation has one scale for each token, which its largest channel decides. So a channel that
reaches far is divided by a factor in the norm's weight, and the matrices that the normed state is
multiplied with have it in their columns: the product is the same, and what is rounded is flatter.
The factor is the root of how far the channel reaches, over that of the median channel.

How far a channel reaches hardly depends on the text: it is measured in fp32, layer by layer, on
tokens drawn at random, so it needs no data and is the same each time.

Source: arXiv 2211.10438, there with texts, and a factor that looks at the weights, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gemb_onnx.encode import first_inputs
from gemb_onnx.graph import layer_graph
from gemb_onnx.runtime import session

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from gemb_onnx.numbers import Numbers

    Floats = NDArray[np.float32]

TOKENS = 64  # of the text at random
_BOS = 2  # of every model of this kind; its states are unlike all others
# Rows with the bytes of every vocabulary of this kind (EmbeddingGemma: 238 to 493, mini: 40 to
# 295), into which signs are cut that have no token: their states are unlike those of words.
_BYTES = (40, 512)
_MOST = 16  # of a factor, and one over it of the least
_NORM_BEFORE = {  # of the matrices of a layer that multiply a normed state
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "pre_feedforward_layernorm",
    "mlp.up_proj": "pre_feedforward_layernorm",
}


class Smoothed:
    """The numbers of a model, evened out; see `gemb_onnx.numbers.Numbers`.

    A layer is measured when a number of it is asked for; its matrices are unpacked once for that
    and for those that ask.
    """

    def __init__(self, numbers: Numbers) -> None:
        """Take a model's numbers."""
        self._layers = _Layers(numbers)
        self._factors: dict[str, Floats] = {}  # by the norm's name
        # By the graph's bytes: all sliding layers have the same graph, and all others.
        self._sessions: dict[bytes, onnxruntime.InferenceSession] = {}
        self._measured = 0  # layers
        self.shape, self.tokens = numbers.shape, numbers.tokens
        self.token_rows = numbers.token_rows
        ids = _text(numbers.tokens)
        self._inputs = first_inputs(numbers, ids)

    def matrix(self, name: str) -> Floats:
        """Return a matrix, float32 [out, in], its columns times the factors."""
        values = self._layers.matrix(name)
        layer, part = _place(name)
        norm = _NORM_BEFORE.get(part)
        return values if norm is None else values * self._factor(layer, norm)

    def norm(self, name: str) -> Floats:
        """Return what a norm multiplies with, float32 [width], over the factors."""
        values = self._layers.norm(name)
        layer, part = _place(name)
        return values / self._factor(layer, part) if part in _NORM_BEFORE.values() else values

    def _factor(self, layer: int, norm: str) -> Floats:
        while self._measured <= layer:
            self._measure(self._measured)
            self._measured += 1
        return self._factors[f"{layer}.{norm}"]

    def _measure(self, layer: int) -> None:
        graph, weights = layer_graph(self._layers, layer)
        if graph not in self._sessions:
            self._sessions[graph] = session(graph, is_tuned=True)
        outputs = self._sessions[graph].run(None, self._inputs | weights)
        self._inputs["states"], *reaches = outputs
        for norm, reach in zip(dict.fromkeys(_NORM_BEFORE.values()), reaches, strict=True):
            self._factors[f"{layer}.{norm}"] = _factors(reach)


class _Layers:
    """The numbers of a model as they are; the matrices of one layer are kept."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._kept: dict[str, Floats] = {}
        self._layer = -1
        self.shape = replace(numbers.shape, max_tokens=TOKENS)
        self.norm, self.token_rows = numbers.norm, numbers.token_rows
        self.tokens = numbers.tokens

    def matrix(self, name: str) -> Floats:
        layer, _ = _place(name)
        if layer != self._layer:
            self._kept, self._layer = {}, layer
        if name not in self._kept:
            self._kept[name] = self._numbers.matrix(name)
        return self._kept[name]


def _text(tokens: int) -> NDArray[np.int32]:
    """Return ids [1, TOKENS] of a vocabulary of so many tokens: BOS, bytes for a quarter, words."""
    chance = np.random.default_rng(0)
    ids = chance.integers(tokens, size=(1, TOKENS), dtype=np.int32)
    first, end = min(_BYTES[0], tokens - 1), min(_BYTES[1], tokens)
    ids[0, 1 : 1 + TOKENS // 4] = chance.integers(first, end, size=TOKENS // 4)
    ids[0, 0] = _BOS
    return ids


def _place(name: str) -> tuple[int, str]:
    """Return the layer of a number, -1 for one of none, and its name there."""
    first, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    return (int(layer), part) if first == "layers" else (-1, name)


def _factors(reach: Floats) -> Floats:
    """Return the factor of each channel, from how far each reaches, float32 [D] both."""
    with np.errstate(all="ignore"):
        factors = np.sqrt(reach / np.median(reach)).clip(1 / _MOST, _MOST)
    return np.where(np.isfinite(factors), factors, np.float32(1))
