"""Round weights to the numbers that a GGUF file of a type gives back, bit for bit by value.

Blocks are 32 neighbours of a row. Arithmetic is fp32; the codes come from the scale as it was
computed, the numbers from the scale as the file stores it, fp16:

    q4_0    m: the number farthest from 0, the first of equals    scale m / -8
            code min(15, trunc(x * (1 / scale) + 8.5))            number (code - 8) * scale
    q8_0    scale max|x| / 127
            code round(x * (1 / scale)), half away from zero      number code * scale
    bf16    the nearest, ties to even

Numbers that a type gave are given back by it unchanged. Source: llama.cpp `ggml/src/ggml-quants.c`,
`quantize_row_q4_0_ref` and `quantize_row_q8_0_ref`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gemb.models.qat import Types
from gemb.models.tensors import BLOCK, tensor_class
from gemb_torch.model.sharding import local

TABLE = "embed_tokens.weight"
_CPU_NUMBERS = 1 << 17  # that are rounded at a time: they stay in a CPU's cache
_CUDA_NUMBERS = 1 << 24
_BELOW_HALF = 0.5 - 2**-25  # trunc(|x| + this) rounds half away from zero below 2**22


def round_to(x: Tensor, type_: str) -> None:
    """Replace each number by what a file of this type gives back.

    A block whose scale is beyond fp16 becomes infinities and NaN.

    Args:
        x: fp32, contiguous; of q4_0 and q8_0 the last axis a multiple of 32.
        type_: q4_0, q8_0, bf16 or f32.
    """
    assert x.dtype == torch.float32, x.dtype
    assert x.is_contiguous(), "a copy would be rounded instead"
    if type_ == "f32" or not x.numel():
        return
    numbers = _CPU_NUMBERS if x.device.type == "cpu" else _CUDA_NUMBERS
    with torch.no_grad():
        for part in torch.split(x.view(-1), numbers):
            if type_ == "bf16":
                part.copy_(part.bfloat16())
            else:
                assert x.shape[-1] % BLOCK == 0, x.shape
                _ROUND[type_](part.view(-1, BLOCK))


def _round_q4_0(blocks: Tensor) -> None:
    scale = _farthest(blocks) / _number(-8.0, blocks)
    codes = (blocks * _inverse(scale)).add_(8.5).trunc_().clamp_max_(15).sub_(8)
    _give_back(blocks, codes, scale)


def _round_q8_0(blocks: Tensor) -> None:
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = torch.maximum(high, -low) / _number(127.0, blocks)
    codes = blocks * _inverse(scale)
    codes = codes.abs().add_(_BELOW_HALF).floor_().copysign_(codes)
    _give_back(blocks, codes, scale)


_ROUND = {"q4_0": _round_q4_0, "q8_0": _round_q8_0}


def _number(value: float, like: Tensor) -> Tensor:
    """Return a divisor: CUDA multiplies by the inverse of a plain number, which rounds twice."""
    return torch.full((), value, device=like.device)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, scale.reciprocal())


def _farthest(blocks: Tensor) -> Tensor:
    """Return each block's number farthest from 0, with its sign, [blocks, 1]."""
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    farthest = torch.where(high > -low, high, low)
    ties = (high == -low).flatten().nonzero().flatten()
    if len(ties):
        tied = blocks[ties]
        first = tied.abs().argmax(-1, keepdim=True)
        farthest[ties] = tied.gather(1, first)
    return farthest


def _give_back(blocks: Tensor, codes: Tensor, scale: Tensor) -> None:
    stored = scale.half().float()
    torch.mul(codes, stored, out=blocks)
    # Of a scale that fp16 does not tell from 0 the inverse may be infinite, and codes NaN.
    nothing = (stored == 0).flatten().nonzero().flatten()
    blocks[nothing] = 0


class Rounding:
    """Rounds the weights of a model as its GGUF file will, and gives them back.

    Quantization-aware training: each step is computed with rounded weights, and its gradients
    change the weights as they are: the rounding counts as the identity (straight-through, arXiv
    1308.3432; for integers arXiv 1712.05877, section 3). Weights are rounded once a step, not once
    a micro-batch; of the token table, only the rows that the step uses. Without types it does
    nothing.
    """

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
