"""Run a chain: stage by stage, each in a process of its own, and none that is done already."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gemb.chain_process import Signals, run_process
from gemb.chain_state import ChainRun, Status, settings
from gemb.errors import GembError, Missing, NegativeAnswer, SomeRowsFailed, Stopped, UsageError
from gemb.io import locks
from gemb.io.atomic import new_file
from gemb.io.notes import note
from gemb.io.text import duration
from gemb.recipe.chain import Chain, Stage, dump_chain, resolved, resolved_recipe
from gemb.recipe.file import dump

_ERRORS: dict[int, type[GembError]] = {
    error.exit_code: error
    for error in (NegativeAnswer, UsageError, SomeRowsFailed, Missing, Stopped)
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the stages are run."""

    program: tuple[str, ...]  # what starts gemb
    train: tuple[str, ...] = ()  # options of every `gemb train`
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of the other commands
    quiet: bool = False


def run_chain(chain: Chain, path: Path, options: Options) -> list[tuple[str, ...]]:
    """Run the stages that are not done; return the rows of a table of all, its head first.

    Raises:
        UsageError: the folder is no chain's, or another process runs one in it.
        Missing: an input is not here.
        Stopped: a signal came; the same command goes on.
        GembError: a stage failed; of the class that its exit code says.
    """
    run = ChainRun(chain, path)
    _check_folder(path)
    run.check_inputs(run.statuses())
    (path / "stages").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = [("STAGE", "KIND", "WAS", "TIME", "MADE")]
    with locks.locked_run(path), Signals() as signals:
        with new_file(path / "chain.yaml") as part:
            part.write_text(dump_chain(chain), encoding="utf-8")
        for number, stage in enumerate(chain.stages, 1):
            signals.check(stage.name)
            status = run.status(stage)
            if not options.quiet:
                why = f" ({status.why})" if status.why else ""
                note(f"stage {number} of {len(chain.stages)}: {stage.name}: {status.word}{why}")
            if status.word != "done":
                _run_stage(run, stage, status, options, signals)
            seconds = run.record(stage).get("seconds", 0.0)
            made = str(run.output(stage)) if stage.output or stage.words.is_folder else "-"
            rows.append((stage.name, stage.kind, status.word, duration(seconds), made))
    return rows


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; name a folder for the chain's run")
    others = (
        [each for each in path.iterdir() if each.name != locks.RUN_LOCK] if path.exists() else []
    )
    if others and not (path / "chain.yaml").is_file():
        raise UsageError(f"{path} is no run of a chain and not empty; name another folder")


def _run_stage(
    run: ChainRun, stage: Stage, status: Status, options: Options, signals: Signals
) -> None:
    """Run a stage to its end, and write that down."""
    folder = run.path / stage.name
    if folder.exists() and not (stage.recipe and status.word == "unfinished"):
        _put_away(folder, stage)
    before = run.record(stage) if status.word == "unfinished" else {}
    record = {"settings": settings(stage), "inputs": run.inputs(stage), "ended": False}
    seconds = before.get("seconds", 0.0)
    run.write_record(stage, record | {"seconds": seconds})
    began = time.monotonic()
    words = [*options.program, *_words(run, stage, options)]
    code = run_process(words, run.path / "stages" / f"{stage.name}.txt", signals)
    seconds += time.monotonic() - began
    if code == 1 and stage.goes_on_if_worse and (not stage.output or run.output(stage).exists()):
        note(f"stage {stage.name} ended with exit code 1, and if_worse is go_on")
        code = 0
    run.write_record(stage, record | {"seconds": seconds, "ended": code == 0})
    if code:
        signals.check(stage.name)
        raise _failure(stage, code, run)


def _put_away(folder: Path, stage: Stage) -> None:
    """Make room: what was trained is kept under another name, what a command wrote is not."""
    if not stage.recipe:
        shutil.rmtree(folder)
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(kept)
    note(f"{folder}: the run that was there is kept as {kept}; remove it when nothing wants it")


def _words(run: ChainRun, stage: Stage, options: Options) -> list[str]:
    if stage.recipe:
        file = run.path / "stages" / f"{stage.name}.yaml"
        with new_file(file) as part:
            part.write_text(dump(resolved_recipe(stage.recipe, run.place)), encoding="utf-8")
        output = ["-o", str(run.path / stage.name), "--resume", "auto"]
        return ["train", str(file), *output, *options.train]
    (run.path / stage.name).mkdir()
    words = [resolved(word, run.place) for word in stage.command]
    output = [] if stage.command[0] == "verify" else ["-o", str(run.output(stage))]
    return [*words, *output, *options.commands.get(stage.command[0], ())]


def _failure(stage: Stage, code: int, run: ChainRun) -> GembError:
    if code < 0:
        name = signal.Signals(-code).name
        return GembError(
            f"stage {stage.name} was killed by {name}, as a system without memory does; the same "
            "command goes on there"
        )
    if code == 1:
        return NegativeAnswer(
            f"stage {stage.name} says no, see above and {run.path / 'stages' / stage.name}.txt; "
            f"{stage.name}.if_worse: go_on in the chain takes what it made"
        )
    error = _ERRORS.get(code, GembError)
    return error(
        f"stage {stage.name} ended with exit code {code}, for what stands above; the same command "
        "goes on there"
    )
