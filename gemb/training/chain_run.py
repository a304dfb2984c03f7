"""Run a chain stage by stage, each in its own process; stages that are done are left out.

    RUN/chain.yaml            the chain, every key of its recipes
    RUN/stages/NAME.yaml      the recipe that a stage was given
    RUN/stages/NAME.json      the settings and inputs of a stage, and whether it ended well
    RUN/stages/NAME.txt       what it printed
    RUN/NAME/                 its output; of a recipe, the folder of `gemb train`

As with make, a stage is done if its output is complete and was made from the present inputs with
the present settings. Contents are compared, not times. Settings that do not change the model
(`run_folder.FREE`) are ignored.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from gemb.errors import GembError, Missing, NegativeAnswer, SomeRowsFailed, Stopped, UsageError
from gemb.io import locks
from gemb.io.atomic import is_unused, new_file
from gemb.io.notes import answer, note
from gemb.io.signals import SignalContext
from gemb.io.text import duration
from gemb.models import hub_cache
from gemb.models import references as models
from gemb.models.config import read_json
from gemb.models.fingerprint import path_fingerprint
from gemb.recipe.chain import (
    RUN_MODELS,
    Chain,
    Stage,
    dump_chain,
    references,
    resolved,
    resolved_recipe,
)
from gemb.recipe.file import dump
from gemb.recipe.names import resolve_data

_ERRORS: dict[int, type[GembError]] = {
    error.exit_code: error
    for error in (NegativeAnswer, UsageError, SomeRowsFailed, Missing, Stopped)
}
# An argument of a command that can only be a file or a folder, and must exist.
_PATH = re.compile(
    r"(~|\.{0,2})/.*|[^:]*/|[^:]*\.(jsonl|csv|tsv|parquet|txt|json|gguf|npy)(\.gz)?", re.DOTALL
)


@dataclass(frozen=True)
class Status:
    """The state of a stage, and the reason."""

    word: Literal["done", "new", "unfinished", "again", "waits"]
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The command lines of the stages."""

    program: tuple[str, ...]  # what starts gemb
    train: tuple[str, ...] = ()  # options of every `gemb train`
    commands: tuple[str, ...] = ()  # options of the commands that run a model


@dataclass(frozen=True)
class ChainRun:
    """A chain and its folder; the stages in `redone` are run even if they are done."""

    chain: Chain
    path: Path
    redone: Collection[str] = ()

    def output(self, name: str, subpath: str = "") -> Path:
        """Return the path of a reference `stage:NAME/FILE`; `subpath` is `/FILE` or empty.

        Raises:
            UsageError: the stage has made several files, and the reference names none of them.
        """
        folder = self.path / name
        pattern = subpath[1:] or self.chain[name].output
        if "*" not in pattern:
            return folder / pattern
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UsageError(f"stage:{name} is several files, {names}: name one, stage:{name}/FILE")
        return files[0] if files else folder / pattern

    def has_output(self, stage: Stage) -> bool:
        """Return whether the output of the stage exists; it gets its name when it is complete."""
        folder = self.path / stage.name
        return any(folder.glob(stage.output)) if stage.output else folder.is_dir()

    def record(self, stage: Stage) -> dict[str, Any]:
        """Return the record of the stage's last run; empty: there is none."""
        file = self._record_file(stage.name)
        if stage.name in self.redone or not file.is_file():
            return {}
        try:
            record = read_json(file)
        except UsageError:
            record = {}
        if not _is_record(record):
            raise UsageError(f"{file} is no JSON of gemb's; remove it, and its stage is run again")
        return record

    def write_record(self, stage: Stage, record: Mapping[str, Any]) -> None:
        """Write the record of a stage, complete or not at all."""
        with new_file(self._record_file(stage.name)) as part:
            part.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")

    def _record_file(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def source(self, stage: Stage, text: str) -> Path | None:
        """Return the path of an input; None if it is no file, or only on the hub."""
        if references(text):
            return Path(resolved(text, self.output))
        if text in stage.models or text in models.names():
            return _model(text)
        try:
            path = resolve_data(text)
        except UsageError:
            return None
        is_path = _PATH.fullmatch(text) if stage.command else not text.startswith("builtin:")
        if path.exists() or is_path:
            return path
        return _model(text) if stage.command else None

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Return the fingerprints of the stage's inputs that exist."""
        paths = {text: self.source(stage, text) for text in stage.inputs}
        return {
            text: path_fingerprint(path) for text, path in paths.items() if path and path.exists()
        }

    def status(self, stage: Stage, waiting: Collection[str] = ()) -> Status:
        """Return the state of the stage, if those of `waiting` are run before it."""
        record = self.record(stage)
        if not record:
            return Status("new")
        before, now = record["settings"], stage.settings
        if changed := [key for key in sorted(before | now) if before.get(key) != now.get(key)]:
            settings = (f"{key} is {now.get(key)}, was {before.get(key)}" for key in changed[:3])
            return Status("again", "; ".join(settings))
        if makers := [name for name in waiting if name in stage.sources()]:
            return Status("waits", f"for {', '.join(makers)}")
        inputs = self.inputs(stage)
        for text, fingerprint in record["inputs"].items():
            if inputs.get(text, fingerprint) != fingerprint:  # a missing input counts as unchanged
                return Status("again", f"{text} is another one now")
        if not record.get("ended"):
            return Status("unfinished")
        is_read = any(stage.name in reader.sources() for reader in self.chain.values())
        if not is_read and not self.has_output(stage):  # else its reader misses it
            return Status("again", f"{self.path / stage.name / stage.output} is gone")
        return Status("done")

    def statuses(self) -> dict[str, Status]:
        """Return the state of each stage, as far as it is known before the run."""
        statuses: dict[str, Status] = {}
        for name, stage in self.chain.items():
            waiting = [maker for maker, status in statuses.items() if status.word != "done"]
            statuses[name] = self.status(stage, waiting)
        return statuses

    def absent_inputs(self, statuses: Mapping[str, Status]) -> str:
        """Return a line about missing inputs of stages that will run; empty: none is missing."""
        absent: dict[Path, str] = {}  # path -> message
        for name, stage in self.chain.items():
            for text in stage.inputs if statuses[name].word != "done" else ():
                makers = [maker for maker, _ in references(text)]
                if any(statuses[maker].word != "done" for maker in makers):
                    continue
                path = self.source(stage, text)
                if path and not path.exists():
                    remedy = "put it there, or name another"
                    if makers:
                        remedy = f"put it back, or make it again with --from {makers[0]}"
                    message = f"stage {name} needs it, and it is not there; {remedy}"
                    absent.setdefault(path, message)
        if not absent:
            return ""
        path, message = next(iter(absent.items()))
        others_note = f" (the first of {len(absent)} that are not there)" if len(absent) > 1 else ""
        return f"{path}{others_note}: {message}"


def _model(reference: str) -> Path | None:
    """Return the path of a model, which may not exist; None: on the hub, or no model."""
    try:
        target = models.locate(reference)
    except UsageError:
        return None
    return target if isinstance(target, Path) else hub_cache.find(target)


def run_chain(run: ChainRun, options: StageOptions) -> list[tuple[str, ...]]:
    """Run the stages that are not done; return the rows of a table of all stages, head first.

    Raises:
        UsageError: the folder is no run of a chain, or another process uses it.
        Missing: an input is missing.
        Stopped: a signal came; the same command continues.
        GembError: a stage failed; the class follows from its exit code.
    """
    path = run.path
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; name a folder for the chain's run")
    if path.exists() and not (path / "chain.yaml").is_file() and not is_unused(path):
        raise UsageError(f"{path} is no run of a chain and not empty; name another folder")
    if absent := run.absent_inputs(run.statuses()):
        raise Missing(absent)
    path.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = [("STAGE", "KIND", "WAS", "TIME", "MADE")]
    with locks.locked_run(path), Signals() as signals:
        with new_file(path / "chain.yaml") as part:
            part.write_text(dump_chain(run.chain), encoding="utf-8")
        (path / "stages").mkdir(exist_ok=True)
        for name in run.redone:
            (path / "stages" / f"{name}.json").unlink(missing_ok=True)
        run = ChainRun(run.chain, path)
        for number, stage in enumerate(run.chain.values(), 1):
            signals.check(stage.name)
            status = run.status(stage)
            why = f" ({status.why})" if status.why else ""
            note(f"stage {number} of {len(run.chain)}: {stage.name}: {status.word}{why}")
            if status.word != "done":
                _run_stage(run, stage, status, options, signals)
            seconds = run.record(stage).get("seconds", 0.0)
            name = "" if "*" in stage.output else stage.output
            output = str(run.path / stage.name / name) if stage.output else "-"
            rows.append((stage.name, stage.kind, status.word, duration(seconds), output))
    return rows


def _run_stage(
    run: ChainRun, stage: Stage, status: Status, options: StageOptions, signals: Signals
) -> None:
    """Run a stage, and record its state before and after."""
    folder = run.path / stage.name
    is_resumed = stage.recipe is not None and status.word == "unfinished"
    if folder.exists() and not is_resumed:
        _put_away(folder, stage)
    seconds = run.record(stage).get("seconds", 0.0) if status.word == "unfinished" else 0.0
    record = {"settings": stage.settings, "inputs": run.inputs(stage), "ended": False}
    run.write_record(stage, record | {"seconds": seconds})
    began = time.monotonic()
    command = _command(run, stage, options)
    code = signals.run(command, run.path / "stages" / f"{stage.name}.txt")
    seconds += time.monotonic() - began
    if code == 1 and stage.goes_on_if_worse and run.has_output(stage):
        note(f"stage {stage.name} ended with exit code 1, and if_worse is go_on")
        code = 0
    run.write_record(stage, record | {"seconds": seconds, "ended": code == 0})
    if code:
        signals.check(stage.name)
        raise _failure(stage, code, run)


def _is_record(record: Mapping[str, object]) -> bool:
    """Return whether it has what `_run_stage` writes."""
    seconds = record.get("seconds", 0.0)
    are_objects = all(isinstance(record.get(key), dict) for key in ("settings", "inputs"))
    return are_objects and isinstance(seconds, int | float) and 0 <= seconds < math.inf


def _put_away(folder: Path, stage: Stage) -> None:
    """Rename the folder of a training run, or remove the output of a command."""
    if not stage.recipe:
        shutil.rmtree(folder)
        return
    number = 1
    while (renamed := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(renamed)
    note(f"{folder}: the run that was there is kept as {renamed}; remove it if nobody needs it")


def _command(run: ChainRun, stage: Stage, options: StageOptions) -> list[str]:
    """Return the command line of a stage, after writing its recipe or making its folder."""
    folder = run.path / stage.name
    if stage.recipe:
        file = run.path / "stages" / f"{stage.name}.yaml"
        with new_file(file) as part:
            part.write_text(dump(resolved_recipe(stage.recipe, run.output)), encoding="utf-8")
        output = ["-o", str(folder), "--resume", "auto"]
        return [*options.program, "train", str(file), *output, *options.train]
    folder.mkdir()
    arguments = [resolved(word, run.output) for word in stage.command]
    if stage.output:  # of a pattern the folder
        arguments += ["-o", f"{folder}/{'' if '*' in stage.output else stage.output}"]
    shared = options.commands if stage.command[0] in RUN_MODELS else ()
    return [*options.program, *arguments, *shared]


def _failure(stage: Stage, code: int, run: ChainRun) -> GembError:
    goes_on = "the same command goes on there"
    if code < 0:
        name = signal.Signals(-code).name
        return GembError(
            f"stage {stage.name} was killed by {name}, as a system without memory does; {goes_on}"
        )
    if code == 1:
        return NegativeAnswer(
            f"stage {stage.name} says no, see above and {run.path / 'stages' / stage.name}.txt; "
            f"{stage.name}.if_worse: go_on in the chain takes what it made"
        )
    error = _ERRORS.get(code, GembError)
    return error(
        f"stage {stage.name} ended with exit code {code}, for what stands above; {goes_on}"
    )


class Signals(SignalContext):
    """Runs the processes of stages, forwards signals to them, and remembers the first signal."""

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def check(self, stage: str) -> None:
        """Raise Stopped if a signal came."""
        if self._number:
            name = signal.Signals(self._number).name
            raise Stopped(f"stopped by {name} at stage {stage}; the same command goes on there")

    def run(self, command: list[str], printed: Path) -> int:
        """Return the exit code of a process; negative: the signal that killed it.

        Its output goes to the file `printed`, which is copied to stdout when the process has ended.

        Raises:
            OSError: the process cannot be started, or its output cannot be written.
        """
        with printed.open("wb") as file:
            # Its own process group: Ctrl-C reaches it once, forwarded from here.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, process_group=0
            )
        try:
            if self._number:  # a signal came while the process started
                self._hand_on(self._number)
            code = self._process.wait()
        finally:
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait()
            self._process = None
        answer(printed.read_text("utf-8", "replace"), nl=False)
        return code

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
