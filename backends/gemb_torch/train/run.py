"""How good the model in training is: on the evaluation sets, and by the cosines of pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.backend import Training
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores
from gemb.evaluation.similarities import similarities
from gemb.evaluation.verdict import verdict
from gemb.io import notes
from gemb.io.notes import note
from gemb.models.card import LICENCE as GEMMA
from gemb.models.checkpoint import open_checkpoint
from gemb.models.qat import in_words
from gemb.recipe.schema import Recipe
from gemb.training.report import write_report
from gemb_torch.model.encode import TorchEncoder, live_encoder
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.rounding import Rounding
from gemb_torch.model.save import write_checkpoint
from gemb_torch.model.weights import restore
from gemb_torch.train.batches import Lesson, prepared
from gemb_torch.train.keeper import Keeper, run_folder
from gemb_torch.train.look import look
from gemb_torch.train.objective import trains_widths
from gemb_torch.train.session import Session, open_session
from gemb_torch.train.state import (
    Progress,
    checkpoint_path,
    read_progress,
    restore_optimizer,
    restore_unrounded,
    resumed,
    tell_ended,
    write_state,
    write_unrounded,
)
from gemb_torch.train.steps import StepDone, training_steps
from gemb_torch.train.stop import EarlyStop, StopRequest

if TYPE_CHECKING:
    from gemb.arrays import TokenIds


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


# A training run from end to end: look, measure, train, measure again, judge.


def train(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Train; see `gemb.backend.Backend.train`."""
    ranks = Ranks()
    if training.dry_run:
        look(open_session(recipe, training, ranks))
        return
    with run_folder(recipe, training, ranks) as run:
        if run.model.is_dir() and training.resume != "never":
            if ranks.is_first:
                tell_ended(run)
            return
        begin = resumed(run, training.resume)
        session = open_session(recipe, training, ranks)
        early.check()
        look(session)
        early.check()
        ranks.first_then_all(partial(_teach, session))
        _Run(session, early, begin).go()


def _teach(session: Session) -> None:
    """See to it that the teacher's vectors of the whole run are on the disk."""
    if session.teacher is not None:
        batches = session.steps * session.recipe.batch.accumulate
        lesson = Lesson(maker=session.maker, order=session.order, batches=batches)
        session.teacher.fill(lesson)


class _Run:
    """The time between the first step and the verdict."""

    def __init__(self, session: Session, early: EarlyStop, begin: Path | None) -> None:
        self.session = session
        self.early = early
        self.judge = Judge(session)
        self.is_first = session.ranks.is_first
        self.keeper = Keeper(
            session.recipe,
            session.training,
            session.ranks,
            steps=session.steps,
            progress=_restored(session, begin),
        )

    def go(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        try:
            self._steps()
            self._end()
        finally:
            self.keeper.close()

    def _steps(self) -> None:
        session = self.session
        if self.is_first and self.keeper.progress.step == 0:
            self._first_look()
        session.ranks.wait()
        order = session.order()
        order.restore(self.keeper.progress.order)
        batches = prepared(order, session.maker, session.recipe.run.workers)
        steps = training_steps(
            session.recipe,
            session.gradients,
            session.optimizer,
            batches,
            session.rounding,
            begin=self.keeper.progress.step,
            steps=session.steps,
        )
        self.early.check()
        with StopRequest() as request:
            for done in steps:
                self._count(done)
                self._evaluate_if_due(done.step)
                self.keeper.end_step(request, self._save)

    def _first_look(self) -> None:
        """Measure the model that training starts from."""
        session = self.session
        if session.training.baseline:
            scores = self.judge.scores()
            if scores is not None:
                scores.save(session.run.scores("baseline"))
                self.keeper.log(0, eval=logged(scores))
                types = session.rounding.types
                rounded = f", rounded to {in_words(types)}" if types else ""
                notes.tell(f"baseline{rounded}: {_words(scores)}")
        session.run.write_json(session.run.similarities, {"before": self.judge.similarities()})
        self.keeper.bar.skip_pause()

    def _count(self, done: StepDone) -> None:
        self.keeper.count(
            done.step,
            done.order,
            loss=done.loss,
            tokens=done.tokens,
            pairs=done.pairs,
            seconds=done.seconds,
            parts=done.parts,
            lr=done.lr,
            grad_norm=done.grad_norm,
            pairs_per_s=done.pairs / done.seconds,
            data_s=done.data_s,
            source=done.source,
            cut=done.cut,
        )

    def _evaluate_if_due(self, step: int) -> None:
        every = self.session.recipe.eval.every_steps
        if not every or step % every or step == self.session.steps:
            return
        self.session.collect()
        if self.is_first:
            self._evaluate()
        self.session.ranks.wait()
        self.keeper.bar.skip_pause()

    def _evaluate(self) -> Scores | None:
        scores = self.judge.scores()
        if scores is None:
            return None
        keeper, step = self.keeper, self.keeper.progress.step
        keeper.log(step, eval=logged(scores))
        notes.tell(f"step {step}: {_words(scores)}")
        value = scores.value
        if keeper.progress.best is None or value > keeper.progress.best:
            keeper.progress = replace(keeper.progress, best=value)
            self._write_model(self.session.run.best)
        return scores

    def _save(self) -> None:
        self.session.collect(moments=True)
        self.keeper.save_checkpoint(self._write_checkpoint)
        self.session.optimizer.forget()

    def _write_checkpoint(self, folder: Path) -> None:
        session = self.session
        self._write_model(folder / "model")
        write_state(folder / "state", session.optimizer, self.keeper.progress)
        if session.rounding.types:
            write_unrounded(folder / "state", session.model)

    def _write_model(self, target: Path) -> None:
        session, progress = self.session, self.keeper.progress
        loss = session.recipe.loss
        sources = ", ".join(rows.name for rows in session.sources)
        write_checkpoint(
            session.start,
            target,
            session.model.state_dict(),
            pooling=session.recipe.pooling,
            note=f"{session.recipe.stage}, {progress.step} steps, {progress.pairs} pairs "
            f"of {sources}",
            matryoshka_dims=loss.matryoshka if trains_widths(loss) else None,
            types=session.rounding.types,
            licence=self._licence(),
        )

    def _licence(self) -> str:
        """A student of a Gemma is a derivative of it, whatever it started from (terms, 1.1 e)."""
        start, teacher = self.session.start.licence(), self.session.teacher
        return GEMMA if teacher and teacher.licence == GEMMA else start

    def _end(self) -> None:
        """Save the model, measure it, and judge."""
        session, run = self.session, self.session.run
        session.collect()
        if self.is_first:
            self._judge()
        self.keeper.close()
        if self.is_first:
            report = write_report(run.path)
            note(f"model {run.model}, report {report}")
        session.ranks.wait()

    def _judge(self) -> None:
        run = self.session.run
        # Scored before it has its name: a run with a model has ended.
        scores = self._evaluate()
        if run.similarities.is_file():
            told = json.loads(run.similarities.read_bytes())
            run.write_json(run.similarities, {**told, "after": self.judge.similarities()})
        if scores is not None:
            # The last step's checkpoint holds the model that is written below.
            saved = checkpoint_path(run.path, self.keeper.progress.step) / "model"
            scores = replace(scores, model=open_checkpoint(saved).fingerprint())
            scores.save(run.scores("final"))
            if run.scores("baseline").is_file():
                judged = verdict(Scores.load(run.scores("baseline")), scores)
                run.write_json(run.verdict, judged.to_json())
        self._write_model(run.model)


def _restored(session: Session, begin: Path | None) -> Progress:
    """Bring the session to where a checkpoint stands; None: it is at the beginning."""
    if begin is None:
        return Progress(step=0, order=session.order().state())
    progress = read_progress(begin)
    restore(session.model, open_checkpoint(begin / "model"))
    restore_unrounded(begin, session.model)
    session.spread()
    restore_optimizer(begin, session.optimizer, progress.step)
    if session.ranks.is_first:
        note(f"resumed at step {progress.step} of {session.steps}, from {begin}")
    return progress


def _words(scores: Scores) -> str:
    """Return `ndcg@10 0.412 at 768, 0.401 at 128`."""
    each = (f"{scores.mean(*size):.3f} at {size.dim}" for size in scores.sizes)
    return f"{scores.metric} {', '.join(each)}"
