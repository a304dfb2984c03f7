"""How good the model in training is: on the evaluation sets, and by the cosines of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores
from gemb.evaluation.similarities import similarities
from gemb_torch.encode import TorchEncoder, live_encoder
from gemb_torch.ranks import Ranks
from gemb_torch.rounding import Rounding
from gemb_torch.session import Session

if TYPE_CHECKING:
    from gemb.backend import TokenIds

LOOKED_AT = 512  # pairs whose cosines are told before and after


@dataclass(frozen=True)
class Judge:
    """Evaluates the model of a session as it is at that moment. For the first process alone.

    What is trained to be rounded is rounded.
    """

    session: Session

    @property
    def dims(self) -> tuple[int, ...]:
        """The widths that are evaluated, widest first."""
        recipe = self.session.recipe
        ends = recipe.loss.matryoshka[0], recipe.loss.matryoshka[-1]
        # Of a loss without widths they are the default's, and the model may be narrower.
        dims = recipe.eval.dims or {min(width, self.session.start.dim) for width in ends}
        return tuple(sorted(dims, reverse=True))

    def scores(self) -> Scores | None:
        """Return the scores on the recipe's sets, None where it has none.

        Their fingerprint is that of the model that training started from.
        """
        suite = self.session.suite
        if suite is None:
            return None
        with self._encoder() as encoder:
            return evaluate(suite, encoder, dims=self.dims)

    def similarities(self) -> dict[str, Any]:
        """Return the cosines of some pairs of the training data, for the report."""
        queries, positives = self._pairs()
        with self._encoder() as encoder:
            return similarities(encoder.encode(queries), encoder.encode(positives))

    def _pairs(self) -> tuple[list[TokenIds], list[TokenIds]]:
        # Of whole batches, however many processes share them.
        maker = replace(self.session.maker, teacher=None, ranks=Ranks(alone=True))
        batches = -(-LOOKED_AT // self.session.recipe.batch.pairs)
        queries: list[TokenIds] = []
        positives: list[TokenIds] = []
        for batch in map(maker.make, islice(self.session.order(), batches)):
            queries += batch.texts[: batch.pairs]
            positives += batch.texts[batch.pairs : 2 * batch.pairs]
        return _distinct(queries[:LOOKED_AT], positives[:LOOKED_AT])

    @contextmanager
    def _encoder(self) -> Iterator[TorchEncoder]:
        session = self.session
        model = session.model.eval()
        # A new one, for the session's keeps its memory, and this one's is as big as the table.
        with Rounding(model, session.rounding.types, table=True).applied():
            encoder = live_encoder(model, session.start, session.device, session.dtype)
            # A width that is trained now is measured before, too.
            encoder.profile = replace(encoder.profile, matryoshka_dims=self.dims)
            try:
                yield encoder
            finally:
                encoder.close()
                model.train()


def _distinct(
    queries: Sequence[TokenIds], positives: Sequence[TokenIds]
) -> tuple[list[TokenIds], list[TokenIds]]:
    """Return the pairs whose positive is not an earlier one's: it would be a wrong partner."""
    seen: dict[bytes, int] = {}
    for place, ids in enumerate(positives):
        seen.setdefault(ids.tobytes(), place)
    kept = sorted(seen.values())
    return [queries[place] for place in kept], [positives[place] for place in kept]


def logged(scores: Scores) -> dict[str, Any]:
    """Return the scores as a line of metrics.jsonl has them."""
    return {
        str(size.dim): {
            "mean": scores.mean(*size),
            "sets": {one.name: scores.main(one.name, *size).value for one in scores.sets},
        }
        for size in scores.sizes
    }
