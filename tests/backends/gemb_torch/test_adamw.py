"""AdamW over the rows in use is AdamW over the whole table; its schedule, and clipping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import Tensor, nn

from gemb.errors import UsageError
from gemb.recipe.schema import Optimizer
from gemb_torch.train.adamw import AdamW, clip, rate

VOCABULARY, WIDTH, STEPS = 50, 8, 12
TABLE = "embed_tokens.weight"
RECIPE = Optimizer(lr=1e-2, head_lr=3e-2, weight_decay=0.1, warmup_fraction=0.25, beta2=0.98)


class Small(nn.Module):
    """A parameter of each kind that the optimizer tells apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.dense = nn.ModuleList([nn.Linear(WIDTH, 4, bias=False)])
        self.pool_queries = nn.Parameter(torch.randn(2, WIDTH))


def ids_at(step: int) -> np.ndarray:
    """Return the tokens of a step: few at first, more as steps pass, some never."""
    random = np.random.default_rng(step)
    return np.unique(random.integers(0, 10 + 2 * step, 12)).astype(np.int64)


def gradients_at(step: int, model: Small) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    found = {
        name: torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
    }
    unused = np.setdiff1d(np.arange(VOCABULARY), ids_at(step))
    found[TABLE][unused] = 0
    return found


def take(optimizer: AdamW, model: Small, step: int) -> None:
    """Do a step, with the rows' gradient as the optimizer requires it."""
    found, ids = gradients_at(step, model), ids_at(step)
    for name, parameter in optimizer.parameters.items():
        parameter.grad = found[name]
    of_rows = None if optimizer.rows is None else found[TABLE][ids]
    optimizer.step(rate(RECIPE, step, STEPS), ids, of_rows)


def by_torch(steps: int) -> Small:
    """Return the model after torch's own AdamW with the groups written out."""
    model = Small()
    inner = torch.optim.AdamW(
        [
            {"params": [model.layer.weight], "lr": 1e-2, "weight_decay": 0.1},
            {"params": [model.norm.weight, model.embed_tokens.weight], "lr": 1e-2},
            {
                "params": [model.dense[0].weight, model.pool_queries],
                "lr": 3e-2,
                "weight_decay": 0.1,
            },
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    peaks = [group["lr"] for group in inner.param_groups]
    for step in range(steps):
        factor = min((step + 1) / 3, 1 - (step - 3) / 8) if step >= 3 else (step + 1) / 3
        for group, peak in zip(inner.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        for name, gradient in gradients_at(step, model).items():
            model.get_parameter(name).grad = gradient
        inner.step()
    return model


def assert_alike(model: Small, other: Small) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), other.get_parameter(name).detach(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("whole_table", [False, True])
def test_it_is_torchs_adamw_with_the_whole_table(whole_table):
    model = Small()
    optimizer = AdamW(model, RECIPE, whole_table=whole_table)
    for step in range(STEPS):
        take(optimizer, model, step)
    assert_alike(model, by_torch(STEPS))
    used = np.unique(np.concatenate([ids_at(step) for step in range(STEPS)]))
    assert optimizer.row_ids.tolist() == used.tolist()
    assert len(used) < VOCABULARY  # else nothing is told of rows that were never used
    unused = np.setdiff1d(np.arange(VOCABULARY), used)
    assert (model.embed_tokens.weight[unused] == Small().embed_tokens.weight[unused]).all()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_what_is_kept_goes_on_in_either_form(before, after):
    model = Small()
    optimizer = AdamW(model, RECIPE, whole_table=before)
    for step in range(5):
        take(optimizer, model, step)
    moments = {name: values.clone() for name, values in optimizer.moments().items()}
    second = AdamW(model, RECIPE, whole_table=after)
    second.restore(moments, optimizer.row_ids, 5)
    for step in range(5, STEPS):
        take(second, model, step)
    assert_alike(model, by_torch(STEPS))


@pytest.mark.parametrize("whole_table", [False, True])
def test_moments_of_another_model_are_refused(whole_table):
    model = Small()
    optimizer = AdamW(model, RECIPE, whole_table=whole_table)
    take(optimizer, model, 0)
    moments, ids = optimizer.moments(), optimizer.row_ids
    with pytest.raises(UsageError, match=r"does not fit embed_tokens.weight \[\d+, 8\]"):
        optimizer.restore(moments, ids[1:], 1)
    short = {name: values for name, values in moments.items() if "norm" not in name}
    with pytest.raises(UsageError, match=r"does not fit norm.weight \[8\]"):
        optimizer.restore(short, ids, 1)


@pytest.mark.parametrize("size", [0.1, 100.0])
@pytest.mark.parametrize("longest", [0.0, 1.0, 7.5])
def test_clipping_is_torchs(size, longest):
    torch.manual_seed(0)
    gradients = [torch.randn(5, 3) * size, torch.randn(7) * size, torch.tensor(2.0)]
    parameters = [nn.Parameter(torch.zeros_like(each)) for each in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, longest or math.inf)
    assert clip(gradients, longest) == pytest.approx(float(expected), rel=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stay_as_they_are(wrong):
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([wrong])]
    assert not math.isfinite(clip(gradients, 1.0))
    assert gradients[0].tolist() == [3.0, 4.0]


def rates(steps: int, **changed: object) -> list[float]:
    recipe = structs.replace(Optimizer(), **changed)
    return [rate(recipe, step, steps) for step in range(steps)]


def test_the_rate_rises_and_falls_as_the_formulas_say():
    assert rates(5, warmup_fraction=0.0, decay="none") == [1.0] * 5
    assert rates(5, warmup_fraction=0.0, decay="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    half = math.sqrt(0.5) / 2
    cosine = [1, 0.5 + half, 0.5, 0.5 - half, 0]
    assert rates(5, warmup_fraction=0.0, decay="cosine") == pytest.approx(cosine)
    risen = [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(9, warmup_fraction=4 / 9, decay="linear") == pytest.approx(risen)
    left = rates(5, warmup_fraction=0.0, decay="linear", final_lr_fraction=0.2)
    assert left == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(4, warmup_fraction=1.0) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(1) == [1.0]
