"""The element-wise steps of a layer, with gradients written by hand.

Where matrix units make the products fast, a layer's time is that of its walks over memory, and
autograd walks many times: once for each step of a formula, and once more for each step back. These
functions compute the same numbers in fewer walks, and keep less for the way back. Nothing here has
second derivatives.

    T tokens    D width of a token    F inner width of the feed-forward
    H query heads    K key/value heads    E width of a head

Arithmetic is fp32 or wider, whatever the type of what goes in.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of matrix products with x: autocast's, where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return x / rms(x) * (1 + weight) over the last axis of x [T, D], in this type."""
    result: Tensor = _applied(_Norm, x, weight, eps, dtype)
    return result


def add_rms_norm(x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x + update / rms(update) * (1 + weight), both [T, D]; the result has x's type."""
    result: Tensor = _applied(_AddNorm, x, update, weight, eps)
    return result


def products(x: Tensor, *weights: Tensor) -> Tensor:
    """Return x Wᵀ for each W [n, D], side by side, [T, sum of n]; x [T, D] has the products' type.

    The gradient of a weight is a product of x's type, and has the weight's type.
    """
    result: Tensor = _applied(_Products, x, *weights)
    return result


def rotated_norm(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Return the heads x [T, H, E], normed over E and rotated; the result has x's type.

        n = x / rms(x) * (1 + weight)    a, b = halves of n    [a cos - b sin, b cos + a sin]

    Args:
        x: of queries or keys.
        weight: of the norm, [E].
        cos: of each token's angles, [T, 1, E/2].
        sin: the same.
        eps: added to the mean square.
    """
    result: Tensor = _applied(_RotatedNorm, x, weight, cos, sin, eps)
    return result


def gated(both: Tensor) -> Tensor:
    """Return gelu(a) * b, with the tanh form of gelu, for a and b side by side, [T, 2F]."""
    result: Tensor = _applied(_Gated, both)
    return result


def take(x: Tensor, places: Tensor, back: Tensor) -> Tensor:
    """Return x[places], where no gradient comes but to the places `back` of the result.

    So the gradient of x is gradient[back]: x[places[back]] is x. For padding, which repeats rows
    whose copies no result depends on.
    """
    result: Tensor = _applied(_Take, x, places, back)
    return result


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def _applied(function: type[Function], *inputs: object) -> Any:  # noqa: ANN401
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


class _Norm(Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(1 + _wide(weight)).to(dtype)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        to_x, to_weight = _norm_gradients(_wide(gradient), _wide(x), inverse, 1 + _wide(weight))
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None, None


class _AddNorm(Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(update)
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(update, weight, inverse)
        return torch.addcmul(_wide(x), wide * inverse, 1 + _wide(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        update, weight, inverse = ctx.saved_tensors
        to_update, to_weight = _norm_gradients(
            _wide(gradient), _wide(update), inverse, 1 + _wide(weight)
        )
        return gradient, to_update.to(update.dtype), to_weight.to(weight.dtype), None


class _Products(Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return x @ _matrix(weights, x.dtype).T

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        to_x = gradient @ _matrix(weights, x.dtype) if ctx.needs_input_grad[0] else None
        parts = torch.split(gradient, [len(weight) for weight in weights], 1)
        return to_x, *(
            (part.T @ x).to(weight.dtype) if wanted else None
            for part, weight, wanted in zip(parts, weights, ctx.needs_input_grad[1:], strict=True)
        )


class _RotatedNorm(Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        wide = _wide(x)
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, weight, cos, sin, inverse)
        normed = (wide * inverse).mul_(1 + _wide(weight))
        return _rotated(normed, cos, sin).to(x.dtype)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, inverse = ctx.saved_tensors
        to_normed = _rotated(_wide(gradient), cos, -sin)
        to_x, to_weight = _norm_gradients(to_normed, _wide(x), inverse, 1 + _wide(weight))
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None, None, None


class _Gated(Function):
    @staticmethod
    def forward(ctx: _Context, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, 1)
        active = F.gelu(gate, approximate="tanh")
        ctx.save_for_backward(both, active)
        return active * up

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> Tensor:
        both, active = ctx.saved_tensors
        gate, up = both.chunk(2, 1)
        result = torch.empty_like(both)
        to_gate, to_up = result.chunk(2, 1)
        torch.mul(gradient, active, out=to_up)
        torch.ops.aten.gelu_backward(gradient * up, gate, approximate="tanh", grad_input=to_gate)
        return result


class _Take(Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _matrix(weights: tuple[Tensor, ...] | list[Tensor], dtype: torch.dtype) -> Tensor:
    if len(weights) == 1:
        return weights[0].to(dtype)
    return torch.cat([weight.to(dtype) for weight in weights])


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / rms of the rows of x [..., width], [..., 1]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_gradients(
    gradient: Tensor, x: Tensor, inverse: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x r w, r = 1 / rms(x) [..., 1], to x [..., D] and to w [D].

        to w  sum over rows of g x r        to x  r g w - r³ x sum(g w x) / D

    Layer norm's backward pass does both in one walk. With a mean of zero its gradient to x is
    r g w - r³ x sum(g w x) / D - r sum(g w) / D, whose last part is what the mean would cost.
    """
    width = [x.shape[-1]]
    to_x, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
        gradient, x, width, torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
    )
    sums = (gradient @ weight).unsqueeze(-1)
    return to_x.add_(sums * inverse / x.shape[-1]), to_weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    result = torch.empty_like(x)
    first, second = result.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return result
