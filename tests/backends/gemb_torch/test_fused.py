"""The hand-written gradients against autograd's of the plain formulas, and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gemb.models.checkpoint import open_checkpoint

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812

from gemb_torch.model.fused import (  # noqa: E402
    add_rms_norm,
    gated,
    product_dtype,
    products,
    rms_norm,
    rotated_norm,
    take,
)
from gemb_torch.model.packing import pack  # noqa: E402
from gemb_torch.model.pooling import pool  # noqa: E402
from gemb_torch.model.weights import load  # noqa: E402

EPS = 0.03  # large enough to be seen
PLACES = torch.tensor([0, 1, 1, 1, 2, 3, 4, 4])  # rows 1 and 4 are repeated: padding
BACK = torch.tensor([0, 1, 4, 5, 6])


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * (1 + weight)


def plain_rotated_norm(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    a, b = plain_norm(x, weight).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def plain_gated(both: torch.Tensor) -> torch.Tensor:
    a, b = both.chunk(2, -1)
    return F.gelu(a, approximate="tanh") * b


ANGLES = torch.arange(7)[:, None, None] * torch.linspace(0.1, 1.0, 4)


def angles(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return ANGLES.cos().to(dtype), ANGLES.sin().to(dtype)


# name: the fused function, the plain formula, shapes of what has a gradient
CASES: dict[str, tuple[Callable[..., object], Callable[..., object], list[tuple[int, ...]]]] = {
    "norm": (
        lambda x, w: rms_norm(x, w, EPS, x.dtype),
        plain_norm,
        [(7, 12), (12,)],
    ),
    "norm and add": (
        lambda x, update, w: add_rms_norm(x, update, w, EPS),
        lambda x, update, w: x + plain_norm(update, w),
        [(7, 12), (7, 12), (12,)],
    ),
    "one product": (products, lambda x, w: x @ w.T, [(7, 12), (5, 12)]),
    "three products": (
        products,
        lambda x, *weights: torch.cat([x @ w.T for w in weights], 1),
        [(7, 12), (5, 12), (1, 12), (4, 12)],
    ),
    "norm and rotation": (
        lambda x, w: rotated_norm(x, w, *angles(x), EPS),
        lambda x, w: plain_rotated_norm(x, w, *angles(x)),
        [(7, 3, 8), (8,)],
    ),
    "norm and rotation of a slice": (
        lambda x, w: rotated_norm(x[:, 1:4], w, *angles(x), EPS),
        lambda x, w: plain_rotated_norm(x[:, 1:4], w, *angles(x)),
        [(7, 5, 8), (8,)],
    ),
    "gate": (gated, plain_gated, [(7, 10)]),
}


def leaves(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    each = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in each]


def results_and_gradients(
    function: Callable[..., object], inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    made = function(*inputs)
    outputs = list(made) if isinstance(made, tuple) else [made]
    generator = torch.Generator().manual_seed(4)
    up = [torch.randn(x.shape, generator=generator).bfloat16().to(x.dtype) for x in outputs]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, inputs, up)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    fused, _, shapes = CASES[case]
    assert torch.autograd.gradcheck(fused, leaves(shapes, torch.float64))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_autograds_of_the_plain_formula(case: str) -> None:
    fused, plain, shapes = CASES[case]
    found = results_and_gradients(fused, leaves(shapes, torch.float32))
    wanted = results_and_gradients(plain, leaves(shapes, torch.float32))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("case", ["norm", "norm and rotation"])
def test_in_bf16_the_arithmetic_is_still_fp32(case: str) -> None:
    fused, plain, shapes = CASES[case]
    x = leaves(shapes[:1], torch.bfloat16)[0]
    weight = leaves(shapes, torch.float32)[1]
    found = results_and_gradients(fused, [x, weight])
    wanted = results_and_gradients(plain, [x.detach().double().requires_grad_(), weight])
    types = [torch.bfloat16, torch.bfloat16, torch.float32]
    assert [each.dtype for each in found] == types
    for ours, theirs in zip(found, wanted, strict=True):
        # Only the result is rounded to bf16's 8 bits: by 2^-9 of itself.
        rounding = 2**-8 if ours.dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(ours.double(), theirs.double(), rtol=rounding, atol=1e-5)


def test_a_weights_gradient_has_its_own_type_though_products_are_bf16() -> None:
    x, weight = leaves([(7, 12)], torch.bfloat16) + leaves([(5, 12)], torch.float32)
    products(x, weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    wanted = x.detach().double().sum(0).expand(5, 12)
    assert torch.allclose(weight.grad.double(), wanted, rtol=2**-8)


def test_a_weight_that_is_not_trained_gets_no_gradient() -> None:
    x, first, second = leaves([(7, 12), (5, 12), (5, 12)], torch.float32)
    first.requires_grad_(False)
    products(x, first, second).sum().backward()
    assert first.grad is None
    assert second.grad is not None
    assert x.grad is not None


def test_padding_gives_the_rows_it_repeats_no_gradient() -> None:
    (x,) = leaves([(5, 3)], torch.float32)
    taken = take(x, PLACES, BACK)
    assert torch.equal(taken, x.detach()[PLACES])
    (gradient,) = torch.autograd.grad(taken, x, torch.arange(24.0).view(8, 3))
    assert torch.equal(gradient, torch.arange(24.0).view(8, 3)[BACK])


def test_products_have_autocasts_type_where_it_is_on() -> None:
    x = torch.zeros(1)
    assert product_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert product_dtype(x) == torch.float32


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "attention"])
def test_pooling_of_padded_groups_has_the_gradient_of_pooling_without_padding(
    pooling: str,
) -> None:
    lengths = [3, 5, 4, 5]
    hidden, queries = leaves([(sum(lengths), 8), (4, 8)], torch.float64)
    found = [
        torch.autograd.grad(
            pool(hidden, pack(lengths, window=16, max_padding=padding), pooling, queries)
            .square()
            .sum(),
            hidden,
        )[0]
        for padding in (0.0, 0.9)
    ]
    assert torch.allclose(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [0.0, 0.9])
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_models_gradient_is_the_slope_of_its_vectors(
    tiny_model: Path, padding: float, recomputes: bool
) -> None:
    """Along a direction in all parameters, in fp64, beyond the window and within it."""
    lengths = [9, 12, 40, 2]
    model = load(open_checkpoint(tiny_model)).double().train()
    model.recomputes = recomputes
    ids = torch.arange(sum(lengths)) % (model.config.vocab_size - 1)
    packing = pack(lengths, window=model.config.sliding_window, max_padding=padding)
    generator = torch.Generator().manual_seed(5)
    parameters = list(model.parameters())
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().abs().mean()
        for p in parameters
    ]
    weights = torch.randn(len(lengths), model(ids, packing).shape[1], generator=generator)

    def value() -> torch.Tensor:
        return (model(ids, packing) * weights).sum()

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            torch._foreach_add_(parameters, direction, alpha=step)
            values.append(float(value()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
