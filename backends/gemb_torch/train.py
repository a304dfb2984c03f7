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
from gemb.errors import Stopped, UsageError
from gemb.metrics_log import MetricsLog
from gemb.notes import note
from gemb.recipe import Recipe
from gemb.run_folder import RunFolder
from gemb.run_report import write_report
from gemb.scores import Scores
from gemb.training_progress import TrainingProgress
from gemb.verdict import Verdict, verdict
from gemb_torch.judging import Judge, logged
from gemb_torch.looking import look
from gemb_torch.ranks import Ranks
from gemb_torch.save import write_checkpoint
from gemb_torch.session import Session, open_session
from gemb_torch.step_batches import Lesson, prepared
from gemb_torch.stop_request import StopRequest, usr1_stops
from gemb_torch.training_state import (
    Progress,
    checkpoint_path,
    checkpoints,
    read_progress,
    remove_others,
    remove_parts,
    restore_optimizer,
    write_state,
)
from gemb_torch.training_steps import StepDone, training_steps
from gemb_torch.weights import restore


@usr1_stops()
def train(recipe: Recipe, training: Training) -> Verdict | None:
    """Train; see `gemb.backend.Backend.train`."""
    ranks, run = Ranks(), RunFolder(training.run)
    resumed = None if training.dry_run else _resumed(run, training)
    if ranks.is_first and not training.dry_run:
        run.begin(recipe, resumes=training.resume != "never")
        remove_parts(run.path)
    if run.model.is_dir() and training.resume != "never" and not training.dry_run:
        if ranks.is_first:
            note(f"{run.path} has ended; its model is {run.model}")
        return None
    session = open_session(recipe, training, ranks)
    look(session)
    if training.dry_run:
        return None
    session.ranks.first_then_all(partial(_teach, session))
    progress = Progress(step=0, order=session.order().state())
    if resumed:
        progress = read_progress(resumed)
        restore(session.model, open_checkpoint(resumed / "model"))
        session.spread()
        restore_optimizer(resumed, session.optimizer, progress.step)
        if ranks.is_first:
            note(f"resumed at step {progress.step} of {session.steps}, from {resumed}")
    return _Run(session, progress).go()


def _teach(session: Session) -> None:
    """See to it that the teacher's vectors of the whole run are on the disk."""
    if session.teacher is not None:
        batches = session.steps * session.recipe.batch.accumulate
        lesson = Lesson(maker=session.maker, order=session.order, batches=batches)
        session.teacher.fill(lesson, quiet=session.training.quiet)


def _resumed(run: RunFolder, training: Training) -> Path | None:
    """Return the checkpoint to go on from."""
    if training.resume == "never":
        return None
    if training.resume != "auto":
        named = Path(training.resume)
        read_progress(named)  # or refuse
        own = run.path / "checkpoints"
        if named.resolve().parent != own.resolve():
            raise UsageError(
                f"--resume {named} is no checkpoint of {run.path}: name a folder in {own}; "
                f"to start from those weights, init.from={named / 'model'}"
            )
        return named
    found = checkpoints(run.path)
    return found[-1] if found else None


class _Run:
    """The time between the first step and the verdict."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self.session = session
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
            begin=self.progress.step,
            steps=session.steps,
        )
        with StopRequest() as request:
            for done in steps:
                self._count(done)
                self._evaluate_if_due(done.step)
                is_stopped = session.ranks.any(bool(request.name))
                if is_stopped or self._is_time_to_save(done.step):
                    self._save()
                if is_stopped and done.step < session.steps:
                    self._stop(request.name)
        return self._end()

    def _first_look(self) -> None:
        """Measure the model that training starts from."""
        session = self.session
        if session.training.baseline:
            scores = self.judge.scores()
            if scores is not None:
                scores.save(session.run.scores("baseline"))
                self._log(0, eval=logged(scores))
                self.bar.note(f"baseline: {_words(scores)}")
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
            self.progress = replace(self.progress, best=value, best_step=step)
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
            remove_others(session.run.path, step, session.recipe.checkpoint.keep)
        session.optimizer.forget()
        session.ranks.wait()
        self.saved_at = time.monotonic()
        self.bar.skip_pause()

    def _write_model(self, target: Path) -> None:
        session, progress = self.session, self.progress
        sources = ", ".join(rows.name for rows in session.sources)
        write_checkpoint(
            session.start,
            target,
            session.model.state_dict(),
            pooling=session.recipe.pooling,
            note=f"{session.recipe.stage}, {progress.step} steps, {progress.pairs} pairs "
            f"of {sources}",
            matryoshka_dims=session.recipe.loss.matryoshka if _trains_widths(session) else None,
        )

    def _stop(self, signal: str) -> None:
        self.bar.close()
        run = self.session.run.path
        if self.is_first:
            write_report(run)
        raise Stopped(
            f"stopped by {signal or 'a signal'} after step {self.progress.step} of "
            f"{self.session.steps}; saved; the same command with --resume auto goes on"
        )

    def _end(self) -> Verdict | None:
        """Save the model, measure it, and judge."""
        session, run = self.session, self.session.run
        session.collect()
        judged = self._judged() if self.is_first else None
        self.bar.close()
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
            scores.save(run.scores("final"))
            if run.scores("baseline").is_file():
                judged = verdict(Scores.load(run.scores("baseline")), scores)
                run.write_json(run.verdict, judged.to_json())
        self._write_model(run.model)
        return judged


def _trains_widths(session: Session) -> bool:
    loss = session.recipe.loss
    return loss.contrastive is not None or loss.spread_out is not None


def _words(scores: Scores) -> str:
    """Return `ndcg@10 0.412 at 768, 0.401 at 128`."""
    each = (f"{scores.mean(*size):.3f} at {size.dim}" for size in scores.sizes)
    return f"{scores.metric} {', '.join(each)}"
