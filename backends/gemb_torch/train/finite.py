"""Numbers of a step that are not finite: refused before they change a parameter, by their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from gemb.errors import GembError
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.gradients import Computed, TokenBatch

_NAMED = 3  # rows that a message names


def check_loss(step: int, batch: TokenBatch, computed: Computed, ranks: Ranks) -> None:
    """Refuse a loss that is not finite: it is the same in all processes, which call this together.

    Raises:
        GembError: and it names the rows whose vectors are not finite, or those of the batch.
    """
    if math.isfinite(float(computed.loss)):
        return
    broken = (~computed.vectors.isfinite().all(1)).nonzero().flatten().tolist()
    pairs = batch.pairs
    owners = [
        text % pairs if text < 2 * pairs else int(batch.negative_rows[text - 2 * pairs])
        for text in broken
    ]
    places = ranks.words([batch.places[owner] for owner in dict.fromkeys(owners)])
    if places:
        refuse(step, "a vector", places)
    refuse(step, "the loss", ranks.words(batch.places))


def check_gradient(step: int, norm: float, batches: Sequence[TokenBatch], ranks: Ranks) -> None:
    """Refuse a gradient whose norm is not finite. All processes call this together.

    Raises:
        GembError: and it names rows of the batches.
    """
    if not math.isfinite(norm):
        places = ranks.words([place for batch in batches for place in batch.places])
        refuse(step, "the gradient", places)


def refuse(step: int, what: str, places: Sequence[str]) -> NoReturn:
    """Raise GembError: what is not finite in a step, and in which of its rows."""
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    raise GembError(
        f"step {step}: {what} is not finite; rows {', '.join(places[:_NAMED])}{more}; nothing was "
        "changed by it: lower optimizer.lr, or use run.precision=fp32, and resume"
    )
