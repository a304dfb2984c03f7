"""The losses of EmbeddingGemma: pure functions of vectors.

    B pairs of the batch    N own hard negatives, of all rows    D width of a vector

Vectors are unit rows, so that a product is a cosine. Half precision is widened to fp32 first, and
autocast is off: the exponents of small temperatures have no use for eight bits. A result is a
scalar of the widened type. Source, where no other is named: EmbeddingGemma, arXiv 2509.20354,
equations 2 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gemb.errors import UsageError

_ROWS = 512  # of [B, B] at a time, so that what a step of the arithmetic leaves behind is small

Distance = Literal["l2", "squared", "cosine"]


def contrastive(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    negative_rows: Tensor | None = None,
    *,
    temperature: float,
    hardness: float = 0.0,
    same: Tensor | None = None,
) -> Tensor:
    """Return NCE with in-batch negatives and own hard negatives (eq. 2 and 3).

        1/B sum_i -log( e^(q_i·p_i/t) / ( sum_j m_ij e^(q_i·p_j/t) + sum_n w_n e^(q_i·n/t) ) )

    n runs over the hard negatives of row i alone: another row's are no negatives of this one.
    Their weight w_n = e^(a sg(q_i·n)), with sg the stopped gradient, is a bias a sg(q_i·n) that the
    temperature does not divide. m_ij = 0 where `same` says that p_j may well answer q_i, and
    m_ii = 1: taken literally, eq. 3 would drop the positive, too, for q_i = q_i.

    Memory: about one array [B, B], for the gradient.

    Args:
        queries: unit rows [B, D].
        positives: unit rows [B, D]; row i answers query i.
        negatives: unit rows [N, D], or None. The paper has at most one a row.
        negative_rows: whose each is, int64 [N]; a row may have none, or several.
        temperature: t above 0.
        hardness: a; the paper has 5.0 (the idea is LLaVE's, arXiv 2503.04812).
        same: bool [B, B], true where q_i = q_j or p_i = p_j; the diagonal is ignored.
    """
    assert temperature > 0, "a temperature is above 0"
    with _full_precision(queries):
        queries, positives = _wide(queries), _wide(positives)
        answers, total = _in_batch(queries / temperature, positives, same)
        if negatives is not None and len(negatives):
            assert negative_rows is not None, "hard negatives belong to rows"
            cosines = (queries[negative_rows] * _wide(negatives)).sum(1)
            own = cosines / temperature + hardness * cosines.detach()
            # log(e^total + sum of e^own of the row), by the greatest of them
            greatest = total.detach().scatter_reduce(0, negative_rows, own.detach(), "amax")
            ratios = (total - greatest).exp()
            ratios = ratios.index_add(0, negative_rows, (own - greatest[negative_rows]).exp())
            total = greatest + ratios.log()
        return (total - answers).mean()


def _in_batch(queries: Tensor, positives: Tensor, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return q_i·p_i and log(sum_j m_ij e^(q_i·p_j)), [B] each; the temperature is in q."""
    answers, totals = [], []
    for start in range(0, len(queries), _ROWS):
        logits = queries[start : start + _ROWS] @ positives.T
        if same is not None:
            mask = same[start : start + _ROWS].clone()
            mask.diagonal(start).fill_(False)
            logits.masked_fill_(mask, -torch.inf)
        answers.append(logits.diagonal(start))
        totals.append(logits.logsumexp(1))
    return torch.cat(answers), torch.cat(totals)


def spread_out(queries: Tensor, positives: Tensor) -> Tensor:
    """Return the mean squared cosine of two queries, plus that of two positives (eq. 4).

        1/(B (B - 1)) sum_(i≠j) (q_i·q_j)² + 1/(B (B - 1)) sum_(i≠j) (p_i·p_j)²

    Rows [B, D] each. The expected value of rows spread evenly over the sphere is 2/D, and of equal
    rows 2. One row gives 0. The paper's vectors are "uniform on the unit sphere" in words and not
    normalised in eq. 1; here they are unit rows, for others could obey by shrinking.
    """
    with _full_precision(queries):
        return _mean_squared_cosine(_wide(queries)) + _mean_squared_cosine(_wide(positives))


def _mean_squared_cosine(x: Tensor) -> Tensor:
    count, width = x.shape
    if count < 2:
        return x.sum() * 0
    if count > width:
        # ||x xᵀ||² = ||xᵀ x||², and the latter is smaller.
        total = (x.T @ x).square().sum() - x.square().sum(1).square().sum()
    else:
        products = x @ x.T
        total = (products - products.diag().diag()).square().sum()
    return total / (count * (count - 1))


def distill(student: Tensor, teacher: Tensor, *, distance: Distance) -> Tensor:
    """Return the mean distance of each vector to the teacher's of the same text (eq. 5).

        l2       ||s - t||          squared  ||s - t||² = 2 - 2 s·t          cosine  1 - s·t

    The paper names no distance: it cites EmbedDistill (arXiv 2301.12005, eq. 7 and 8), whose is l2.
    Nor does it say how a wide teacher meets a narrow student. Here t is the teacher's first D
    numbers, made a unit row: what a Matryoshka teacher, as the paper's is, was trained for. The
    gradient of l2 where s = t is 0.

    Args:
        student: unit rows [n, D].
        teacher: rows [n, D'] of the same texts, D' at least D (`check_widths`).
        distance: l2, squared or cosine.
    """
    with _full_precision(student):
        student = _wide(student)
        teacher = F.normalize(_wide(teacher)[:, : student.shape[1]], dim=1)
        assert teacher.shape == student.shape, "check_widths was to see to it"
        match distance:
            case "l2":
                distances: Tensor = torch.linalg.vector_norm(student - teacher, dim=1)
                return distances.mean()
            case "squared":
                return (student - teacher).square().sum(1).mean()
            case "cosine":
                return 1 - (student * teacher).sum(1).mean()


def similarity_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference between two models' cosines of n texts.

        1/n² sum_ij (s_i·s_j - t_i·t_j)²

    All of the teacher's width counts. The paper has no such term; it is that of similarity-
    preserving distillation (arXiv 1907.09682, eq. 4) on cosines.

    Args:
        student: unit rows [n, D].
        teacher: rows [n, D'] of the same texts, of any width.
    """
    with _full_precision(student):
        student, teacher = _wide(student), F.normalize(_wide(teacher), dim=1)
        width = max(student.shape[1], teacher.shape[1])
        if len(student) <= 2 * width:
            return (student @ student.T - teacher @ teacher.T).square().mean()
        # With a = s + t and b = s - t, s sᵀ - t tᵀ = (a bᵀ + b aᵀ) / 2, whose square needs
        # products of the width alone, and loses no digits where s is close to t.
        student, teacher = (F.pad(x, (0, width - x.shape[1])) for x in (student, teacher))
        a, b = student + teacher, student - teacher
        cross = a.T @ b
        total = ((a.T @ a) * (b.T @ b)).sum() + (cross * cross.T).sum()
        return total / 2 / len(student) ** 2


def prefixes(x: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Return the first d numbers of each row of x [n, D] as unit rows [n, d], for each d of dims.

    Source: Matryoshka representation learning, arXiv 2205.13147.
    """
    assert all(0 < d <= x.shape[1] for d in dims), f"{dims} are no widths up to {x.shape[1]}"
    with _full_precision(x):
        return [F.normalize(_wide(x)[:, :d], dim=1) for d in dims]


def check_widths(student: int, teacher: int, name: str) -> None:
    """Refuse a teacher whose vectors are narrower than the student's.

    Args:
        student: width of the student's vectors.
        teacher: width of the teacher's.
        name: the teacher, for the message.

    Raises:
        UsageError: the teacher is the narrower one.
    """
    if teacher < student:
        raise UsageError(
            f"the teacher {name} has vectors of {teacher} numbers, the student of {student}: "
            f"take a teacher of {student} or more, or set loss.distill.weight=0 and "
            "loss.distill.similarity_weight=1, which needs no equal widths"
        )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
