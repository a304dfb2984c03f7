"""The losses against a numpy oracle, closed forms, finite differences, and their symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import reference
from gemb.errors import UsageError
from gemb.recipe.schema import Contrastive, Distill, Loss, SpreadOut
from gemb_torch.train.losses import (
    check_widths,
    contrastive,
    distill,
    prefixes,
    similarity_gap,
    spread_out,
)
from gemb_torch.train.objective import StepVectors, objective, parts

ROWS = torch.tensor([0, 2, 2, 5])  # row 2 has two hard negatives, rows 1, 3 and 4 none


def unit(count, width, *, seed=0, spread=1.0, dtype=torch.float64):
    """Random unit rows; a small spread makes them alike, as texts of one language are."""
    generator = torch.Generator().manual_seed(1000 * count + seed)
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return F.normalize(spread * noise + (1 - spread), dim=1).to(dtype)


def step():
    """Vectors of 6 pairs, 4 hard negatives, and two rows with equal positives."""
    same = torch.eye(6, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    return unit(6, 8), unit(6, 8, seed=1), unit(4, 8, seed=2), ROWS, same


# Contrastive.


@pytest.mark.parametrize("hardness", [0.0, 5.0])
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_contrastive_is_the_oracles(temperature, hardness):
    queries, positives, negatives, rows, same = step()
    settings = {"temperature": temperature, "hardness": hardness}
    found = contrastive(queries, positives, negatives, rows, **settings, same=same)
    right = reference.contrastive(
        queries.numpy(),
        positives.numpy(),
        negatives.numpy(),
        rows.tolist(),
        **settings,
        same=same.numpy(),
    )
    assert found.item() == pytest.approx(right, rel=1e-12)
    assert found.dtype == torch.float64


def test_the_positive_stays_in_the_denominator_where_a_query_equals_itself():
    queries, positives, *_ = step()
    itself = contrastive(queries, positives, temperature=0.1, same=torch.eye(6, dtype=torch.bool))
    assert itself == contrastive(queries, positives, temperature=0.1)
    everything = torch.ones(6, 6, dtype=torch.bool)
    # Only the positive is left, so its probability is 1; the literal mask would have log(x / 0).
    assert contrastive(queries, positives, temperature=0.1, same=everything) == 0
    assert everything.all()  # the caller's mask is the caller's


def test_a_masked_pair_is_out_of_the_rows_sum():
    queries, positives, *_, same = step()
    queries.requires_grad_()
    (masked,) = torch.autograd.grad(
        6 * contrastive(queries, positives, temperature=0.1, same=same), queries
    )
    others = torch.tensor([0, 1, 2, 3, 5])  # without row 4, whose positive is row 1's
    (without,) = torch.autograd.grad(
        5 * contrastive(queries[others], positives[others], temperature=0.1), queries
    )
    torch.testing.assert_close(masked[1], without[1], rtol=0, atol=1e-14)
    assert (masked[0] - without[0]).abs().max() > 1e-3  # row 0 has pair 4 for a negative


def test_more_rows_than_a_block_are_those_of_one_softmax():
    queries, positives = unit(1100, 8), unit(1100, 8, seed=1)
    same = torch.rand(1100, 1100, generator=torch.Generator().manual_seed(0)) < 0.1
    found = contrastive(queries, positives, temperature=0.1, same=same)
    mask = same & ~torch.eye(1100, dtype=torch.bool)
    logits = (queries @ positives.T / 0.1).masked_fill(mask, -torch.inf)
    right = F.cross_entropy(logits, torch.arange(1100))
    assert found.item() == pytest.approx(right.item(), rel=1e-12)


def test_another_rows_hard_negative_changes_nothing():
    queries, positives, negatives, rows, _ = step()
    queries.requires_grad_()
    loss = contrastive(queries, positives, negatives, rows, temperature=0.1, hardness=5.0)
    other = contrastive(queries, positives, negatives[1:], rows[1:], temperature=0.1, hardness=5.0)
    (before,) = torch.autograd.grad(loss, queries)
    (after,) = torch.autograd.grad(other, queries)
    assert loss > other
    torch.testing.assert_close(before[1:], after[1:], rtol=0, atol=1e-15)
    assert (before[0] - after[0]).abs().max() > 1e-3


def test_no_hard_negatives_and_an_empty_list_of_them_are_the_same():
    queries, positives, negatives, rows, _ = step()
    empty = contrastive(queries, positives, negatives[:0], rows[:0], temperature=0.1, hardness=5.0)
    assert empty == contrastive(queries, positives, temperature=0.1, hardness=5.0)


def test_the_order_of_the_pairs_does_not_matter():
    queries, positives, negatives, rows, same = step()
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    places = order.argsort()
    settings = {"temperature": 0.1, "hardness": 5.0}
    before = contrastive(queries, positives, negatives, rows, **settings, same=same)
    after = contrastive(
        queries[order],
        positives[order],
        negatives.flip(0),
        places[rows].flip(0),
        **settings,
        same=same[order][:, order],
    )
    assert after.item() == pytest.approx(before.item(), rel=1e-14)


def test_contrastive_has_the_gradient_of_its_finite_differences():
    queries, positives, negatives, rows, same = step()

    def loss(*vectors):
        return contrastive(*vectors, rows, temperature=0.1, same=same)

    vectors = [x.requires_grad_() for x in (queries, positives, negatives)]
    assert torch.autograd.gradcheck(loss, vectors)


def test_the_hardness_weight_is_a_number_to_the_gradient():
    queries, positives, negatives, rows, same = step()
    settings = {"temperature": 0.1, "hardness": 5.0}
    vectors = [x.requires_grad_() for x in (queries, positives, negatives)]
    contrastive(*vectors, rows, **settings, same=same).backward()
    arrays = [x.detach().numpy() for x in vectors]
    stopped = (arrays[0][rows] * arrays[2]).sum(1)

    def oracle():
        return reference.contrastive(
            *arrays, rows.tolist(), **settings, same=same.numpy(), hardness_cosines=stopped
        )

    for tensor, array in zip(vectors, arrays, strict=True):
        assert tensor.grad is not None
        for place in np.ndindex(array.shape):
            value = array[place]
            array[place] = value + 1e-6
            above = oracle()
            array[place] = value - 1e-6
            below = oracle()
            array[place] = value
            # Central differences of a loss with curvature 1 / t²: an error of about 1e-12 * 100.
            assert tensor.grad[place].item() == pytest.approx((above - below) / 2e-6, abs=1e-7)


def test_contrastive_is_stable_at_the_smallest_temperature():
    queries = unit(64, 16, spread=0.2, dtype=torch.float32).requires_grad_()
    wrong = -queries.detach().flip(0)
    negatives = queries.detach().clone()  # each its own hard negative: the hardest there are
    loss = contrastive(queries, wrong, negatives, torch.arange(64), temperature=1e-3, hardness=9.0)
    loss.backward()
    right = contrastive(
        queries.double(), wrong.double(), negatives.double(), torch.arange(64), temperature=1e-3,
        hardness=9.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)  # logits of 2,000 in fp32
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize("loss", [
    lambda x, y: contrastive(x, y, x, torch.arange(len(x)), temperature=0.02, hardness=5.0),
    spread_out,
    lambda x, y: distill(x, y, distance="l2"),
    similarity_gap,
])  # fmt: skip
def test_half_precision_and_autocast_are_computed_in_fp32(loss):
    x, y = (unit(40, 16, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(x, y)
    assert found.dtype == torch.float32
    assert found == loss(x.float(), y.float())


# Spread-out.


@pytest.mark.parametrize("count", [2, 8, 9, 40])  # up to 8 and above 8 are computed differently
def test_spread_out_is_the_oracles(count):
    queries, positives = unit(count, 8, spread=0.5), unit(count, 8, seed=1)
    right = reference.spread_out(queries.numpy(), positives.numpy())
    assert spread_out(queries, positives).item() == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("width", [16, 128])
def test_spread_out_of_random_directions_is_two_over_the_width(width):
    found = spread_out(unit(4000, width), unit(4000, width, seed=1)).item()
    # The mean of 8 million pairs has a standard error of about sqrt(2) / width / 2800 a term.
    assert found == pytest.approx(2 / width, rel=0.003)


def test_spread_out_of_equal_rows_is_two_and_of_orthogonal_rows_zero():
    equal = unit(1, 8).expand(20, 8)
    assert spread_out(equal, equal).item() == pytest.approx(2, rel=1e-12)
    assert spread_out(equal[:5], equal[:5]).item() == pytest.approx(2, rel=1e-12)
    orthogonal = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    assert spread_out(orthogonal, orthogonal).item() == pytest.approx(0, abs=1e-12)


def test_spread_out_of_one_pair_is_zero_and_has_a_gradient():
    x = unit(1, 8).requires_grad_()
    loss = spread_out(x, x)
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("count", [5, 20])
def test_spread_out_has_the_gradient_of_its_finite_differences(count):
    vectors = [unit(count, 8, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(spread_out, vectors)


def test_spread_out_keeps_its_digits_in_fp32():
    wide = unit(3000, 64).requires_grad_()
    narrow = wide.detach().float().requires_grad_()
    right, found = spread_out(wide, wide), spread_out(narrow, narrow)
    assert found.item() == pytest.approx(right.item(), rel=2e-5)
    right.backward()
    found.backward()
    assert wide.grad is not None
    assert narrow.grad is not None
    gap = (narrow.grad - wide.grad).norm() / wide.grad.norm()
    assert gap < 1e-5


# Distillation.


@pytest.mark.parametrize("teacher_width", [8, 20])
@pytest.mark.parametrize("distance", ["l2", "squared", "cosine"])
def test_distillation_is_the_oracles_on_the_teachers_first_numbers(distance, teacher_width):
    student, teacher = unit(7, 8), unit(7, teacher_width, seed=1)
    found = distill(student, teacher, distance=distance)
    right = reference.distill(student.numpy(), teacher.numpy(), distance)
    assert found.item() == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("distance", ["l2", "squared", "cosine"])
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient_that_is_not_a_number(distance):
    student = unit(7, 8).requires_grad_()
    loss = distill(student, F.pad(student.detach(), (0, 4)), distance=distance)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("distance", ["l2", "squared", "cosine"])
def test_distillation_has_the_gradient_of_its_finite_differences(distance):
    teacher = unit(7, 12, seed=1)
    assert torch.autograd.gradcheck(
        lambda student: distill(student, teacher, distance=distance), [unit(7, 8).requires_grad_()]
    )


# 16 texts: products of rows; 17: products of columns, with the widths made equal.
@pytest.mark.parametrize("count", [5, 16, 17, 60])
@pytest.mark.parametrize("widths", [(8, 8), (8, 5), (5, 8)])
def test_the_gap_of_similarities_is_the_oracles(count, widths):
    student, teacher = unit(count, widths[0], spread=0.5), unit(count, widths[1], seed=1)
    right = reference.similarity_gap(student.numpy(), teacher.numpy())
    assert similarity_gap(student, teacher).item() == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("count", [5, 20])
def test_the_gap_of_similarities_has_the_gradient_of_its_finite_differences(count):
    teacher = unit(count, 6, seed=1)
    assert torch.autograd.gradcheck(
        lambda student: similarity_gap(student, teacher), [unit(count, 8).requires_grad_()]
    )


def test_a_small_gap_of_similarities_keeps_its_digits_in_fp32():
    teacher = unit(2000, 32, spread=0.4)
    student = F.normalize(teacher + 1e-3 * unit(2000, 32, seed=1), dim=1)
    right = similarity_gap(student, teacher)
    found = similarity_gap(student.float(), teacher.float())
    # The difference of sums of squares would be off by 1e-7 of 0.1, as large as the gap itself.
    assert right < 1e-6
    assert found.item() == pytest.approx(right.item(), rel=1e-3)


def test_a_narrow_teacher_is_refused_with_both_widths():
    check_widths(768, 768, "a")
    check_widths(768, 3072, "a")
    with pytest.raises(UsageError, match=r"teacher mini has vectors of 384 .* the student of 768"):
        check_widths(768, 384, "mini")


# Matryoshka, and the sum.


def test_prefixes_are_unit_rows_in_the_direction_of_the_first_numbers():
    x = unit(5, 8)
    found = prefixes(x, (8, 4, 1))
    for width, rows in zip((8, 4, 1), found, strict=True):
        assert rows.shape == (5, width)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5, dtype=torch.float64))
        torch.testing.assert_close((rows * x[:, :width]).sum(1), x[:, :width].norm(dim=1))


def whole_step():
    queries, positives, negatives, rows, same = step()
    teachers = [unit(len(x), 12, seed=9) for x in (queries, positives, negatives)]
    return StepVectors(queries, positives, negatives, rows, same, *teachers)


def test_the_objective_is_the_weighted_sum_of_its_parts():
    texts = whole_step()
    loss = Loss(
        matryoshka=(8, 3),
        contrastive=Contrastive(weight=2.0, temperature=0.05, hardness=4.0),
        spread_out=SpreadOut(weight=0.5),
        distill=Distill(teacher="t", weight=3.0, distance="squared", similarity_weight=7.0),
    )
    total, found = objective(loss, texts)
    right = {}
    for d in (8, 3):
        queries, positives, negatives = (prefixes(x, (d,))[0] for x in texts[:3])
        right[f"contrastive@{d}"] = contrastive(
            queries, positives, negatives, ROWS, temperature=0.05, hardness=4.0, same=texts.same
        )
        right[f"spread_out@{d}"] = spread_out(queries, positives)
    for side, student, teacher in zip(("query", "positive", "negative"), texts[:3], texts[5:]):  # noqa: B905
        right[f"distill/{side}"] = distill(student, teacher, distance="squared")
    right["similarity"] = similarity_gap(torch.cat(texts[:3]), torch.cat(texts[5:]))
    assert list(found) == list(right)
    for name, value in right.items():
        torch.testing.assert_close(found[name], value)
    weights = {"c": 2.0, "s": 0.5, "d": 3.0}
    weighted = [weights[name[0]] * value for name, value in right.items() if name != "similarity"]
    torch.testing.assert_close(total, sum(weighted) + 7.0 * right["similarity"])


def test_the_objective_passes_gradients_to_every_side():
    texts = whole_step()
    students = [x.clone().requires_grad_() for x in texts[:3]]
    loss = Loss(matryoshka=(8,), contrastive=Contrastive(), distill=Distill(teacher="t"))
    total, found = objective(loss, StepVectors(*students, *texts[3:]))
    total.backward()
    assert all(x.grad is not None and x.grad.any(dim=1).all() for x in students)
    assert not any(value.requires_grad for value in found.values())


def test_duplicates_are_masked_only_where_the_recipe_says_so():
    texts = whole_step()
    masked, plain = (
        objective(Loss(matryoshka=(8,), contrastive=Contrastive(mask_duplicates=mask)), texts)[0]
        for mask in (True, False)
    )
    assert masked < plain
    assert plain == objective(
        Loss(matryoshka=(8,), contrastive=Contrastive()), texts._replace(same=None)
    )[0]  # fmt: skip


def test_a_step_without_hard_negatives_has_no_part_of_theirs():
    texts = whole_step()._replace(negatives=None, negative_rows=None, teacher_negatives=None)
    _, found = objective(Loss(matryoshka=(8,), distill=Distill(teacher="t")), texts)
    assert list(found) == ["distill/query", "distill/positive"]
    sides = Distill(teacher="t", sides=("positive",), weight=0.0, similarity_weight=1.0)
    _, found = objective(Loss(matryoshka=(8,), distill=sides), texts)
    assert list(found) == ["similarity"]
    assert texts.teacher_positives is not None
    right = similarity_gap(texts.positives, texts.teacher_positives)
    torch.testing.assert_close(found["similarity"], right)


def test_parts_come_one_by_one():
    loss = Loss(matryoshka=(8, 4), spread_out=SpreadOut())
    names = [part.name for part in parts(loss, whole_step())]
    assert names == ["spread_out@8", "spread_out@4"]
