"""A training run from end to end: look, measure, train, measure again, judge."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemb.atomic import new_folder
from gemb.backend import Training
from gemb.checkpoint import open_checkpoint
from gemb.errors import GembError, Stopped
from gemb.metrics_log import MetricsLog
from gemb.notes import note
from gemb.qat import in_words
from gemb.recipe import Recipe
from gemb.run_folder import RunFolder
from gemb.run_report import write_report
from gemb.scores import Scores
from gemb.training_progress import TrainingProgress
from gemb.verdict import Verdict, verdict
from gemb_torch.judging import Judge, logged
from gemb_torch.looking import look
from gemb_torch.objective import trains_widths
from gemb_torch.ranks import Ranks
from gemb_torch.resuming import check_resume, ended, resumed
from gemb_torch.save import write_checkpoint
from gemb_torch.session import Session, open_session
from gemb_torch.step_batches import Lesson, prepared
from gemb_torch.stop_request import EarlyStop, StopRequest
from gemb_torch.training_state import (
    Progress,
    checkpoint_path,
    read_progress,
    remove_others,
    remove_parts,
    restore_optimizer,
    restore_unrounded,
    write_state,
    write_unrounded,
)
from gemb_torch.training_steps import StepDone, training_steps
from gemb_torch.weights import restore


def train(recipe: Recipe, training: Training, early: EarlyStop) -> Verdict | None:
    """Train; see `gemb.backend.Backend.train`."""
    ranks, run = Ranks(), RunFolder(training.run)
    if training.dry_run:
        look(open_session(recipe, training, ranks))
        return None
    check_resume(run, training.resume)
    if not ranks.is_first:
        return _train(recipe, training, ranks, early)
    with run.begun(recipe, resumes=training.resume != "never"):
        remove_parts(run.path)
        return _train(recipe, training, ranks, early)


def _train(recipe: Recipe, training: Training, ranks: Ranks, early: EarlyStop) -> Verdict | None:
    run = RunFolder(training.run)
    if run.model.is_dir() and training.resume != "never":
        return ended(run) if ranks.is_first else None
    begin = resumed(run, training.resume)
    session = open_session(recipe, training, ranks)
    early.check()
    look(session)
    early.check()
    session.ranks.first_then_all(partial(_teach, session))
    progress = Progress(step=0, order=session.order().state())
    if begin:
        progress = read_progress(begin)
        restore(session.model, open_checkpoint(begin / "model"))
        restore_unrounded(begin, session.model)
        session.spread()
        restore_optimizer(begin, session.optimizer, progress.step)
        if ranks.is_first:
            note(f"resumed at step {progress.step} of {session.steps}, from {begin}")
    return _Run(session, progress, early).go()


def _teach(session: Session) -> None:
    """See to it that the teacher's vectors of the whole run are on the disk."""
    if session.teacher is not None:
        batches = session.steps * session.recipe.batch.accumulate
        lesson = Lesson(maker=session.maker, order=session.order, batches=batches)
        session.teacher.fill(lesson, quiet=session.training.quiet)


class _Run:
    """The time between the first step and the verdict."""

    def __init__(self, session: Session, progress: Progress, early: EarlyStop) -> None:
        self.session = session
        self.early = early
        self.progress = progress
        self.judge = Judge(session)
        self.is_first = session.ranks.is_first
        self.log: MetricsLog | None = None
        if self.is_first:
            self.log = MetricsLog(session.run.metrics, after_step=progress.step or -1)
        self.bar = TrainingProgress(
            session.steps, progress.step, quiet=session.training.quiet or not self.is_first
        )
        self.saved_at = time.monotonic()

    def go(self) -> Verdict | None:
        """Train to the end, and return what became of the scores.

        Raises:
            Stopped: a signal came, and the run is saved.
        """
        try:
            self._steps()
            return self._end()
        finally:
            self._close()

    def _steps(self) -> None:
        session = self.session
        if self.is_first and self.progress.step == 0:
            self._first_look()
        session.ranks.wait()
        order = session.order()
        order.restore(self.progress.order)
        batches = prepared(order, session.maker, session.recipe.run.workers)
        steps = training_steps(
            session.recipe,
            session.gradients,
            session.optimizer,
            batches,
            session.rounding,
            begin=self.progress.step,
            steps=session.steps,
        )
        self.early.check()
        with StopRequest() as request:
            for done in steps:
                self._count(done)
                self._evaluate_if_due(done.step)
                is_stopped = session.ranks.any(bool(request.name))
                if is_stopped or self._is_time_to_save(done.step):
                    self._save()
                if is_stopped and done.step < session.steps:
                    self._stop(request.name)

    def _first_look(self) -> None:
        """Measure the model that training starts from."""
        session = self.session
        if session.training.baseline:
            scores = self.judge.scores()
            if scores is not None:
                scores.save(session.run.scores("baseline"))
                self._log(0, eval=logged(scores))
                types = session.rounding.types
                rounded = f", rounded to {in_words(types)}" if types else ""
                self.bar.note(f"baseline{rounded}: {_words(scores)}")
        session.run.write_json(session.run.similarities, {"before": self.judge.similarities()})
        self.bar.skip_pause()

    def _count(self, done: StepDone) -> None:
        before = self.progress
        self.progress = replace(
            before,
            step=done.step,
            order=done.order,
            tokens=before.tokens + done.tokens,
            pairs=before.pairs + done.pairs,
            seconds=before.seconds + done.seconds,
        )
        self.bar.step(done.step, done.loss, done.tokens)
        if done.step % self.session.recipe.run.log_every and done.step != self.session.steps:
            return
        self._log(
            done.step,
            loss=done.loss,
            parts=done.parts,
            lr=done.lr,
            grad_norm=done.grad_norm,
            tokens=self.progress.tokens,
            tokens_per_s=done.tokens / done.seconds,
            pairs_per_s=done.pairs / done.seconds,
            data_s=done.data_s,
            step_s=done.seconds,
            source=done.source,
            cut=done.cut,
        )

    def _log(self, step: int, **fields: object) -> None:
        if self.log is not None:
            self.log.write(step=step, **fields)

    def _evaluate_if_due(self, step: int) -> None:
        every = self.session.recipe.eval.every_steps
        if not every or step % every or step == self.session.steps:
            return
        self.session.collect()
        if self.is_first:
            self._evaluate()
        self.session.ranks.wait()
        self.bar.skip_pause()

    def _evaluate(self) -> Scores | None:
        scores = self.judge.scores()
        if scores is None:
            return None
        step = self.progress.step
        self._log(step, eval=logged(scores))
        self.bar.note(f"step {step}: {_words(scores)}")
        value = scores.mean(*scores.sizes[0])
        if self.progress.best is None or value > self.progress.best:
            self.progress = replace(self.progress, best=value)
            self._write_model(self.session.run.best)
        return scores

    def _is_time_to_save(self, step: int) -> bool:
        saving = self.session.recipe.checkpoint
        # The last step is saved before it is measured, which may take longer than a signal leaves.
        if step == self.session.steps or (saving.every_steps and step % saving.every_steps == 0):
            return True
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.session.ranks.any(bool(saving.every_minutes) and minutes > saving.every_minutes)

    def _save(self) -> None:
        session, step = self.session, self.progress.step
        session.collect(moments=True)
        if self.is_first:
            target = checkpoint_path(session.run.path, step)
            target.parent.mkdir(exist_ok=True)
            with new_folder(target) as part:
                self._write_model(part / "model")
                write_state(part / "state", session.optimizer, self.progress)
                if session.rounding.types:
                    write_unrounded(part / "state", session.model)
            remove_others(session.run.path, step, session.recipe.checkpoint.keep)
        session.optimizer.forget()
        session.ranks.wait()
        self.saved_at = time.monotonic()
        self.bar.skip_pause()

    def _write_model(self, target: Path) -> None:
        session, progress, loss = self.session, self.progress, self.session.recipe.loss
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
        )

    def _close(self) -> None:
        self.bar.close()
        if self.log is not None:
            self.log.close()

    def _stop(self, signal: str) -> None:
        self._close()
        if self.is_first:
            try:
                write_report(self.session.run.path)
            except (GembError, OSError) as error:  # the run is saved, and that is what counts
                note(f"no report: {error}")
        raise Stopped(
            f"stopped by {signal or 'a signal'} after step {self.progress.step} of "
            f"{self.session.steps}; saved; the same command with --resume auto goes on"
        )

    def _end(self) -> Verdict | None:
        """Save the model, measure it, and judge."""
        session, run = self.session, self.session.run
        session.collect()
        judged = self._judged() if self.is_first else None
        self._close()
        if self.is_first:
            report = write_report(run.path)
            if not session.training.quiet:
                note(f"model {run.model}, report {report}")
        session.ranks.wait()
        return judged

    def _judged(self) -> Verdict | None:
        run = self.session.run
        # Scored before it has its name: a run with a model has ended.
        scores = self._evaluate()
        if run.similarities.is_file():
            told = json.loads(run.similarities.read_bytes())
            run.write_json(run.similarities, {**told, "after": self.judge.similarities()})
        judged = None
        if scores is not None:
            # The last step's checkpoint holds the model that is written below.
            saved = checkpoint_path(run.path, self.progress.step) / "model"
            scores = replace(scores, model=open_checkpoint(saved).fingerprint())
            scores.save(run.scores("final"))
            if run.scores("baseline").is_file():
                judged = verdict(Scores.load(run.scores("baseline")), scores)
                run.write_json(run.verdict, judged.to_json())
        self._write_model(run.model)
        return judged


def _words(scores: Scores) -> str:
    """Return `ndcg@10 0.412 at 768, 0.401 at 128`."""
    each = (f"{scores.mean(*size):.3f} at {size.dim}" for size in scores.sizes)
    return f"{scores.metric} {', '.join(each)}"
