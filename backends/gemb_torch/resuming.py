"""Where a run goes on from, and what is left to do of one that has ended."""

from __future__ import annotations

from pathlib import Path

from gemb.errors import UsageError
from gemb.evaluation.scores import Scores
from gemb.evaluation.verdict import Verdict, verdict
from gemb.io.notes import note
from gemb.recipe.run_folder import RunFolder
from gemb.training.report import write_report
from gemb_torch.training_state import checkpoints, read_progress


def check_resume(run: RunFolder, resume: str) -> None:
    """Refuse the path of a checkpoint that is not this run's.

    Args:
        run: the run's folder, which need not exist.
        resume: never, auto or the path.

    Raises:
        UsageError: it is no checkpoint, or another run's.
    """
    if resume in ("never", "auto"):
        return
    named, own = Path(resume), run.path / "checkpoints"
    read_progress(named)  # or refuse
    if named.resolve().parent != own.resolve():
        raise UsageError(
            f"--resume {named} is no checkpoint of {run.path}: name a folder in {own}; "
            f"to start from those weights, init.from={named / 'model'}"
        )


def resumed(run: RunFolder, resume: str) -> Path | None:
    """Return the checkpoint to go on from, None to begin at the beginning; `resume` as above."""
    if resume == "never":
        return None
    if resume != "auto":
        return Path(resume)
    found = checkpoints(run.path)
    return found[-1] if found else None


def ended(run: RunFolder) -> Verdict | None:
    """Return what became of the scores in a run that has ended, and see that it has its page.

    Raises:
        UsageError: a file in the folder is not what its name says.
        OSError: the page cannot be written.
    """
    note(f"{run.path} has ended; its model is {run.model}")
    if not run.report.is_file():
        write_report(run.path)
    before, after = run.scores("baseline"), run.scores("final")
    if before.is_file() and after.is_file():
        return verdict(Scores.load(before), Scores.load(after))
    return None
