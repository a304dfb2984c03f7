"""What a recipe's `loss` makes of the vectors of a step: its parts, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gemb.recipe.schema import Distill, Loss
from gemb_torch.train.losses import contrastive, distill, prefixes, similarity_gap, spread_out


class StepVectors(NamedTuple):
    """The vectors of a step: B pairs, N hard negatives, width D of the student, D' of a teacher."""

    queries: Tensor  # unit rows [B, D]
    positives: Tensor  # unit rows [B, D]
    negatives: Tensor | None = None  # unit rows [N, D]
    negative_rows: Tensor | None = None  # whose each is, int64 [N]
    same: Tensor | None = None  # bool [B, B]: equal queries, or equal positives
    teacher_queries: Tensor | None = None  # unit rows [B, D']; None where it is not asked for
    teacher_positives: Tensor | None = None  # [B, D']
    teacher_negatives: Tensor | None = None  # [N, D']


class Part(NamedTuple):
    """One term of the sum."""

    name: str  # contrastive@768, spread_out@768, distill/query, similarity
    weight: float
    value: Tensor  # scalar, without the weight


def trains_widths(loss: Loss) -> bool:
    """Return whether a term of the loss is there for each width of `matryoshka`."""
    return loss.contrastive is not None or loss.spread_out is not None


def objective(loss: Loss, texts: StepVectors) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the scalar to minimise, and by name its parts without their weights, detached.

    As in the paper, contrastive loss and spread-out are added up over the Matryoshka widths, which
    count alike; distillation is at full width alone, and its sides count alike.
    """
    terms = list(parts(loss, texts))
    assert terms, "a recipe without a loss is refused before training"
    total = torch.stack([term.weight * term.value for term in terms]).sum()
    return total, {term.name: term.value.detach() for term in terms}


def parts(loss: Loss, texts: StepVectors) -> Iterator[Part]:
    """Yield the terms one by one, so that only one term's arrays need be in memory."""
    B, D = texts.queries.shape
    assert texts.positives.shape == (B, D), "every query has one positive"
    for d in loss.matryoshka if trains_widths(loss) else ():
        queries, positives = (prefixes(x, (d,))[0] for x in (texts.queries, texts.positives))
        if loss.contrastive is not None:
            negatives = None if texts.negatives is None else prefixes(texts.negatives, (d,))[0]
            value = contrastive(
                queries,
                positives,
                negatives,
                texts.negative_rows,
                temperature=loss.contrastive.temperature,
                hardness=loss.contrastive.hardness,
                same=texts.same if loss.contrastive.mask_duplicates else None,
            )
            yield Part(f"contrastive@{d}", loss.contrastive.weight, value)
        if loss.spread_out is not None:
            value = spread_out(queries, positives)
            yield Part(f"spread_out@{d}", loss.spread_out.weight, value)
    if loss.distill is not None:
        yield from _distillation(loss.distill, texts)


def _distillation(recipe: Distill, texts: StepVectors) -> Iterator[Part]:
    both = {
        "query": (texts.queries, texts.teacher_queries),
        "positive": (texts.positives, texts.teacher_positives),
        "negative": (texts.negatives, texts.teacher_negatives),
    }
    pairs = []
    for side in recipe.sides:
        student, teacher = both[side]
        if student is None or not len(student):  # a step may have no hard negatives
            assert side == "negative", f"every step has a {side} side"
            continue
        assert teacher is not None, f"the teacher's vectors of the {side} side are missing"
        assert len(teacher) == len(student), f"{side}: a teacher's vector for each text"
        pairs.append((student, teacher))
        if recipe.weight:
            value = distill(student, teacher, distance=recipe.distance)
            yield Part(f"distill/{side}", recipe.weight, value)
    if recipe.similarity_weight and pairs:
        students, teachers = (torch.cat(sides) for sides in zip(*pairs, strict=True))
        value = similarity_gap(students, teachers)
        yield Part("similarity", recipe.similarity_weight, value)
