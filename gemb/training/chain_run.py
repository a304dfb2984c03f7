"""The process of a stage: its output passed through and kept, signals handed on to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from gemb.errors import GembError, Missing, NegativeAnswer, SomeRowsFailed, Stopped, UsageError
from gemb.io import locks
from gemb.io.atomic import new_file
from gemb.io.notes import note
from gemb.io.signals import SignalContext
from gemb.io.text import duration
from gemb.models import references as models
from gemb.models.fingerprint import path_fingerprint
from gemb.recipe.chain import (
    Chain,
    Stage,
    by_setting,
    dump_chain,
    references,
    resolved,
    resolved_recipe,
)
from gemb.recipe.file import dump
from gemb.recipe.names import resolve_data
from gemb.recipe.run_folder import FREE


def run_process(command: Sequence[str], kept: Path, signals: Signals) -> int:
    """Return the exit code of a process; negative: the signal that killed it.

    Args:
        command: program and arguments.
        kept: the file to which its standard output goes, beside ours.
        signals: what hands signals on to it.

    Raises:
        OSError: it cannot be started, or its output goes nowhere.
    """
    with kept.open("wb") as printed:
        # A group of its own: Ctrl-C comes to it once, from here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        try:
            signals.follow(process)
            assert process.stdout, "it is a pipe"
            while part := process.stdout.read1():  # type: ignore[attr-defined]
                printed.write(part)
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
            return process.wait()
        finally:
            signals.child = None
            if process.poll() is None:
                process.terminate()
                process.wait()


class Signals(SignalContext):
    """A context that hands signals on to the stage's process, and remembers the first."""

    def __init__(self) -> None:
        """Begin without a process."""
        super().__init__()
        self.child: subprocess.Popen[bytes] | None = None
        self._name = ""

    def follow(self, child: subprocess.Popen[bytes]) -> None:
        """Hand on to this process what comes, and what has come while it was started."""
        self.child = child
        if self._name:
            self._hand_on(signal.Signals[self._name])

    def check(self, stage: str) -> None:
        """Raise Stopped if a signal came."""
        if self._name:
            raise Stopped(
                f"stopped by {self._name} at stage {stage}; the same command goes on there"
            )

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._name = self._name or signal.Signals(number).name
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self.child is not None and self.child.poll() is None:
            os.kill(self.child.pid, number)


# The folder of a chain's run: what each stage was made from, and what is to be done.
#
#     RUN/chain.yaml            the chain, every key of its recipes
#     RUN/stages/NAME.yaml      the recipe that a stage was given
#     RUN/stages/NAME.json      what a stage was made from, and what came of it
#     RUN/stages/NAME.txt       what it printed
#     RUN/NAME/                 what it made; of a recipe, the folder of `gemb train`
#
# A stage is done when it ended well, with these settings and these inputs. What changes no number
# of a model (`run_folder.FREE`) changes no stage. Who wants a stage again removes its NAME.json.


@dataclass(frozen=True)
class Status:
    """What is to be done for a stage."""

    word: Literal["done", "new", "unfinished", "again", "waits"]
    why: str = ""


@dataclass(frozen=True)
class ChainRun:
    """A chain and its folder."""

    chain: Chain
    path: Path

    def place(self, name: str, rest: str) -> str:
        """Return the path that a reference means."""
        stage = self.chain.stage(name)
        return str(self.path / name / (rest[1:] or stage.output))

    def output(self, stage: Stage) -> Path:
        """Return where the stage's output is, or its folder."""
        return self.path / stage.name / stage.output

    def record(self, stage: Stage) -> dict[str, Any]:
        """Return what is known of the stage's last run; empty: nothing."""
        path = self.path / "stages" / f"{stage.name}.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"{path} is no JSON of gemb's; remove it, and its stage is run again")
        return found

    def write_record(self, stage: Stage, record: Mapping[str, Any]) -> None:
        """Write it, whole or not at all."""
        with new_file(self.path / "stages" / f"{stage.name}.json") as part:
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")

    def source(self, stage: Stage, text: str) -> Path | None:
        """Return the path of an input; None where it is no file's name, or is on the hub alone."""
        if references(text):
            return Path(resolved(text, self.place))
        if text in stage.models():
            try:
                return models.resolve(text, download=False)
            except Missing:
                found = models.locate(text)
                return found if isinstance(found, Path) else None
        try:
            path = resolve_data(text)
        except UsageError:
            return None
        is_file = stage.recipe is not None or text in stage.words.files
        is_wanted = is_file and not text.startswith("builtin:")
        return path if is_wanted or path.exists() else None

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Return the fingerprints of the stage's inputs, of those that are there."""
        found = {}
        for text in stage.inputs():
            path = self.source(stage, text)
            if path is not None and path.exists():
                found[text] = path_fingerprint(path)
        return found

    def status(self, stage: Stage, waiting: Sequence[str] = ()) -> Status:
        """Return what is to be done for the stage, if those of `waiting` are run before it."""
        record = self.record(stage)
        if not record:
            return Status("new")
        changes = by_setting(record["settings"], settings(stage))
        if changes:
            return Status("again", "; ".join(changes[:3]))
        sources = {name for text in stage.inputs() for name, _ in references(text)}
        if found := [name for name in waiting if name in sources]:
            return Status("waits", f"for {', '.join(found)}")
        before, now = record["inputs"], self.inputs(stage)
        for text, known in before.items():
            if now.get(text, known) != known:  # what is gone is taken to be as it was
                return Status("again", f"{text} is another one now")
        if not record.get("ended"):
            return Status("unfinished")
        is_last = stage.output and not any(
            name == stage.name
            for other in self.chain.stages
            for text in other.inputs()
            for name, _ in references(text)
        )
        if is_last and not self.output(stage).exists():
            return Status("again", f"{self.output(stage)} is gone")
        return Status("done")

    def statuses(self) -> dict[str, Status]:
        """Return what is to be done for each stage, as far as it can be known before."""
        found: dict[str, Status] = {}
        for stage in self.chain.stages:
            waiting = [name for name, status in found.items() if status.word != "done"]
            found[stage.name] = self.status(stage, waiting)
        return found

    def check_inputs(self, statuses: Mapping[str, Status]) -> None:
        """Refuse to begin what would end for want of an input that is not here.

        Raises:
            Missing: an input is gone, or was never there.
        """
        if said := self.absent_inputs(statuses):
            raise Missing(said)

    def absent_inputs(self, statuses: Mapping[str, Status]) -> str:
        """Return which inputs are not here, in a line; empty: none."""
        absent: dict[Path, str] = {}  # what is said of it
        for stage in self.chain.stages:
            if statuses[stage.name].word == "done":
                continue
            for text in stage.inputs():
                makers = [name for name, _ in references(text)]
                if any(statuses[name].word != "done" for name in makers):
                    continue
                path = self.source(stage, text)
                if path is None or path.exists():
                    continue
                do = "put it there, or name another"
                if makers:
                    record = self.path / "stages" / f"{makers[0]}.json"
                    do = f"put it back, or remove {record}, and {makers[0]} is run again"
                absent.setdefault(path, f"stage {stage.name} needs it, and it is not there; {do}")
        if not absent:
            return ""
        path, said = next(iter(absent.items()))
        more = f" (the first of {len(absent)} that are not there)" if len(absent) > 1 else ""
        return f"{path}{more}: {said}"


def settings(stage: Stage) -> dict[str, Any]:
    """Return what makes the stage another one."""
    # A search of mixtures compares its trials by the evaluation.
    free = FREE - {"eval"} if stage.recipe and stage.recipe.mixtures else FREE
    return {
        key: value
        for key, value in stage.settings().items()
        if key not in free and key.partition(".")[0] not in free
    }


# Run a chain: stage by stage, each in a process of its own, and none that is done already.


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
    others = [each for each in path.iterdir() if each.name != locks.LOCK] if path.exists() else []
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
