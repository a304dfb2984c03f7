"""The folder of a chain's run: what each stage was made from, and what is to be done.

    RUN/chain.yaml            the chain, every key of its recipes
    RUN/stages/NAME.yaml      the recipe that a stage was given
    RUN/stages/NAME.json      what a stage was made from, and what came of it
    RUN/stages/NAME.txt       what it printed
    RUN/NAME/                 what it made; of a recipe, the folder of `gemb train`

A stage is done when it ended well, with these settings and these inputs. What changes no number of
a model (`run_folder.FREE`) changes no stage. Who wants a stage again removes its NAME.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemb.errors import Missing, UsageError
from gemb.io.atomic import new_file
from gemb.models import references as models
from gemb.models.fingerprint import path_fingerprint
from gemb.recipe.chain import Chain, Stage, by_setting, references, resolved
from gemb.recipe.names import resolve_data
from gemb.recipe.run_folder import FREE


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
