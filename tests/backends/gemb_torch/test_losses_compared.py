"""The losses against sentence-transformers': where both are the same, and where not, and why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gemb.recipe.schema import Contrastive, Distill, Loss, SpreadOut
from gemb_torch.train.losses import contrastive, distill, prefixes, spread_out
from gemb_torch.train.objective import StepVectors, objective

st = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

B, D = 6, 8


class Columns(nn.Module):
    """Stands where a model would: its vectors are given."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return D


def unit(count, *, seed, width=D):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return F.normalize(x + 0.3, dim=1).requires_grad_()


@pytest.fixture
def step():
    return unit(B, seed=0), unit(B, seed=1), unit(B, seed=2)


def theirs(loss, *columns, labels=None):
    return loss([{"vectors": column} for column in columns], labels)


def ranking(temperature=0.05, **settings):
    return st.MultipleNegativesRankingLoss(Columns(), scale=1 / temperature, **settings)


def same_value_and_gradients(ours, right, vectors):
    assert ours.item() == pytest.approx(right.item(), rel=1e-12)
    both = (torch.autograd.grad(loss, vectors, retain_graph=True) for loss in (ours, right))
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def over_widths(loss, dims):
    """Their wrapper, which shortens what its own model gives: so both have one model."""
    return st.MatryoshkaLoss(loss.model, loss, dims)


def along_sphere(x):
    # Theirs makes unit rows of all that it is given: a gradient along the sphere alone.
    return F.normalize(x, dim=1)


def test_without_hard_negatives_contrastive_is_multiple_negatives_ranking(step):
    queries, positives, _ = step
    ours = contrastive(along_sphere(queries), along_sphere(positives), temperature=0.05)
    same_value_and_gradients(ours, theirs(ranking(), queries, positives), (queries, positives))


def test_with_one_pair_hardness_is_that_of_multiple_negatives_ranking(step):
    vectors = [x[:1].detach().requires_grad_() for x in step]
    ours = contrastive(
        *map(along_sphere, vectors), torch.tensor([0]), temperature=0.05, hardness=5.0
    )
    loss = ranking(hardness_mode="hard_negatives", hardness_strength=5.0)
    same_value_and_gradients(ours, theirs(loss, *vectors), vectors)


def test_theirs_has_the_hard_negatives_of_other_rows_and_eq_2_has_not(step):
    queries, positives, negatives = step
    rows = torch.arange(B)
    settings = {"temperature": 0.05, "hardness": 0.0}
    ours = contrastive(*step, rows, **settings)
    right = theirs(ranking(), *step)
    assert ours < right - 0.01
    # Theirs again, when each row is given the negatives of all rows as its own.
    everywhere = contrastive(
        queries, positives, negatives.repeat(B, 1), rows.repeat_interleave(B), **settings
    )
    assert everywhere.item() == pytest.approx(right.item(), rel=1e-12)


def test_theirs_weighs_own_hard_negatives_alone_as_eq_2_does(step):
    queries, positives, negatives = step
    loss = ranking(hardness_mode="hard_negatives", hardness_strength=5.0)
    weighted = theirs(loss, *step)
    # Other rows' negatives stand in theirs without a weight: take them out of its sum, by hand.
    logits = queries @ torch.cat([positives, negatives]).T / 0.05
    own = (queries * negatives).sum(1)
    logits = logits + torch.cat([torch.zeros(B, B), torch.diag(5.0 * own.detach())], 1)
    total = weighted - (logits.logsumexp(1) - logits.diagonal()).mean()
    assert total.item() == pytest.approx(0, abs=1e-12)
    mask = torch.cat([torch.zeros(B, B), 1 - torch.eye(B)], 1).bool()
    restricted = logits.masked_fill(mask, -torch.inf)
    right = (restricted.logsumexp(1) - logits.diagonal()).mean()
    ours = contrastive(*step, torch.arange(B), temperature=0.05, hardness=5.0)
    assert ours.item() == pytest.approx(right.item(), rel=1e-12)


def test_theirs_takes_a_duplicate_for_a_negative_and_eq_3_masks_it(step):
    queries, positives, _ = (x.detach().clone() for x in step)
    positives[1] = positives[4]
    same = torch.eye(B, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    right = theirs(ranking(), queries, positives)
    assert contrastive(queries, positives, temperature=0.05, same=same) < right - 0.005
    unmasked = contrastive(queries, positives, temperature=0.05)
    assert unmasked.item() == pytest.approx(right.item(), rel=1e-12)


def orthogonal_regularisation(*columns):
    loss = st.GlobalOrthogonalRegularizationLoss(Columns(), mean_weight=0.0, aggregation="sum")
    return theirs(loss, *columns)["gor_second_moment"]


def test_spread_out_is_their_second_moment_where_that_is_above_its_threshold(step):
    queries, positives, _ = step
    ours = spread_out(along_sphere(queries), along_sphere(positives))
    assert ours > 2 / D
    # Theirs is less by the constant 1/d a column, so that the gradients are the same.
    right = orthogonal_regularisation(queries, positives) + 2 / D
    same_value_and_gradients(ours, right, (queries, positives))


def test_theirs_stops_at_one_over_d_and_eq_4_has_no_threshold():
    # The corners of a simplex: cosines of -1/8, whose square is below 1/8.
    corners = torch.eye(9, dtype=torch.float64) - 1 / 9
    basis = torch.linalg.svd(corners)[2][:8]
    x = F.normalize(corners @ basis.T, dim=1).requires_grad_()
    assert orthogonal_regularisation(x, x) == 0
    assert spread_out(x, x).item() == pytest.approx(2 / 64, rel=1e-12)


def test_theirs_spreads_the_hard_negatives_too_and_eq_4_does_not(step):
    queries, positives, negatives = step
    with_negatives = orthogonal_regularisation(queries, positives, negatives)
    assert with_negatives > orthogonal_regularisation(queries, positives) + 1e-3
    texts = StepVectors(queries, positives, negatives, torch.arange(B))
    total, _ = objective(Loss(matryoshka=(D,), spread_out=SpreadOut()), texts)
    assert total.item() == pytest.approx(spread_out(queries, positives).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("distance", "metric", "factor"),
    # Their mse is a mean over the numbers of a vector, too.
    [("l2", "l2", 1), ("cosine", "cosine", 1), ("squared", "mse", D)],
)
def test_distances_to_a_teacher_are_those_of_embed_distill(step, distance, metric, factor):
    student, teacher = step[0], unit(B, seed=7).detach()
    right = factor * theirs(st.EmbedDistillLoss(Columns(), metric), student, labels=teacher)
    ours = distill(student, teacher, distance=distance)
    assert ours.item() == pytest.approx(right.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, right)]
    # Along the sphere: their cosine divides by a length that is one, and so pulls across it.
    found, expected = (g - (g * student).sum(1, keepdim=True) * student for g in gradients)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_theirs_averages_over_the_sides_and_eq_5_adds_them_up(step):
    teachers = [unit(B, seed=seed).detach() for seed in (7, 8, 9)]
    loss = st.EmbedDistillLoss(Columns(), "l2")
    mean = theirs(loss, *step, labels=torch.stack(teachers, 1))
    texts = StepVectors(*step, torch.arange(B), None, *teachers)
    total, _ = objective(Loss(distill=Distill(teacher="t"), matryoshka=()), texts)
    assert total.item() == pytest.approx(3 * mean.item(), rel=1e-12)


def test_contrastive_over_matryoshka_widths_is_their_wrapped_loss(step):
    queries, positives, _ = step
    right = theirs(over_widths(ranking(), [8, 4, 2]), queries, positives)
    loss = Loss(matryoshka=(8, 4, 2), contrastive=Contrastive(temperature=0.05))
    ours, _ = objective(loss, StepVectors(queries, positives))
    same_value_and_gradients(ours, right, (queries, positives))


def test_their_wrapper_distils_every_width_and_the_paper_the_full_one_alone(step):
    queries, teacher = step[0], unit(B, seed=7).detach()
    wrapped = over_widths(st.EmbedDistillLoss(Columns(), "l2"), [8, 4])
    right = theirs(wrapped, queries, labels=teacher)
    loss = Loss(matryoshka=(8, 4), distill=Distill(teacher="t", sides=("query",)))
    ours, found = objective(loss, StepVectors(queries, step[1], teacher_queries=teacher))
    assert list(found) == ["distill/query"]
    # Theirs cuts the teacher's vectors, too, but leaves them shorter than one.
    short = (prefixes(queries, (4,))[0] - teacher[:, :4]).norm(dim=1).mean()
    assert right.item() == pytest.approx((ours + short).item(), rel=1e-12)
