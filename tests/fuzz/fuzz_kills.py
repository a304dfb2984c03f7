"""Runs that are killed by SIGKILL, at a random moment or just before any change of a name.

Whatever moment it is: the name of the output holds the old thing, the new one, or nothing where
there was nothing; the same command again makes what an uninterrupted run makes, and leaves no part.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaign import Case, Ended, Fault, forked, judge, main

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
LATE_S = 280.0
RECIPE = """
stage: finetune
init: {{from: {model}}}
data: [{{path: pairs.csv}}]
batch: {{pairs: 8, max_tokens: 64}}
loss: {{matryoshka: [96, 32], contrastive: {{}}}}
run: {{steps: 3, log_every: 1, precision: fp32}}
checkpoint: {{every_steps: 1}}
"""
BUILD = "index build z.gemb d -m {gguf}"


@dataclass(frozen=True)
class Command:
    """A command that writes something, and what there is before it runs."""

    words: str
    name: str  # of what it writes
    before: tuple[str, ...] = ()  # commands, each after which `d` gets another text
    weight: int = 4


COMMANDS = {
    "embed": Command("embed rows.txt -m {gguf} -o v.npy --resume", "v.npy"),
    "embed jsonl": Command("embed rows.txt -m {gguf} -o v.jsonl --resume", "v.jsonl"),
    "build": Command(BUILD, "z.gemb"),
    "build -f": Command(f"{BUILD} -f", "z.gemb", (BUILD,)),
    "sync": Command("index sync z.gemb", "z.gemb", (BUILD,)),
    "compact": Command("index compact z.gemb", "z.gemb", (BUILD, "index rm z.gemb d/0.md --yes")),
    "cut": Command("cut {model} -o c --keep-layers 0,2", "c", weight=2),
    "cut -f": Command(
        "cut {model} -o c --keep-layers 0,2 -f", "c", ("cut {model} -o c --keep-layers 0,1",), 2
    ),
    "soup": Command("soup {model} {other} -o s", "s"),
    "soup -f": Command("soup {model} {other} -o s -f", "s", ("soup {other} {third} -o s",)),
    "export": Command("export-gguf {model} -o e.gguf", "e.gguf"),
    "export -f": Command(
        "export-gguf {model} -o e.gguf -f", "e.gguf", ("export-gguf {other} -o e.gguf",)
    ),
    "quantize": Command("quantize {model} -o q.gguf -t q8_0 --min-cosine 0", "q.gguf", weight=2),
    "train": Command("train recipe.yaml -o run --resume auto", "run", weight=1),
}


@dataclass(frozen=True)
class Uninterrupted:
    """What a command makes that nobody kills."""

    before: Path  # a copy of the folder before it
    old: str  # what the name held; empty: nothing
    new: str
    points: int  # changes of names
    seconds: float


def campaign(shared: Path) -> Case:
    from gemb_llamacpp.export import export
    from tiny_model import TinyShape, write_tiny_model

    models = {name: write_tiny_model(shared / name, TinyShape()) for name in ("model",)}
    for number, name in enumerate(("other", "third"), 1):
        models[name] = _moved(models["model"], shared / name, number)
    models["gguf"] = shared / "model.gguf"

    done = forked(lambda: export(models["model"], models["gguf"], "f32"), folder=shared)
    assert done.code == 0, done.stderr
    known: dict[str, Uninterrupted] = {}

    def case(rng: random.Random, folder: Path) -> str:
        weights = [command.weight for command in COMMANDS.values()]
        kind = rng.choices(list(COMMANDS), weights)[0]
        command = COMMANDS[kind]
        os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
        if kind not in known:
            known[kind] = _uninterrupted(command, models, folder, shared / f"before {kind}")
            _clear(folder)
        right = known[kind]
        shutil.copytree(right.before, folder, dirs_exist_ok=True)
        words = command.words.format(**models)
        kills = 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            at_change = rng.random() < 0.7
            point = rng.randint(1, right.points) if at_change else 0
            after = 0.0 if at_change else rng.uniform(0, right.seconds)
            ended = _run(words, folder, point=point, after=after)
            if ended.signal != signal.SIGKILL:
                _check_code(ended, kind)
                break
            kills += 1
            held = _result(command, folder)
            moment = f"change {point}, {after:.3f} s\n{ended.stderr}"
            if right.old and not held:
                raise Fault(f"{kind}: nothing has the name", moment)
            # A sync commits its rows a few at a time, and a run grows.
            if kind not in ("sync", "train") and held not in (right.old, right.new):
                raise Fault(f"{kind}: half of it has the name", moment)
        ended = _run(words, folder)
        _check_code(ended, kind)
        if _result(command, folder) != right.new:
            raise Fault(f"{kind}: the next run makes something else", ended.stderr)
        if ended.code != 2:  # one that is refused removes nothing
            _check_names(command, folder, right.before, kind)
        return f"{kind}, {kills} kills"

    return case


def _check_code(ended: Ended, kind: str) -> None:
    lines = [line for line in ended.stderr.splitlines() if line.startswith("gemb: ")]
    plain = Ended(**{**vars(ended), "stderr": "\n".join(lines[-1:]) if ended.code else ""})
    code = judge(plain, (0, 2, 3))
    # A run that was killed after its last rename has made it all.
    if code == 2 and not ("exists" in ended.stderr or "is an index already" in ended.stderr):
        raise Fault(f"{kind}: the next run is refused", ended.stderr)


def _check_names(command: Command, folder: Path, before: Path, kind: str) -> None:
    """Find what is there beside the output, and hidden names within it."""
    names = {path.name for path in folder.iterdir()} - {path.name for path in before.iterdir()}
    names -= {command.name, f"{command.name}.json"}
    target = folder / command.name
    if target.is_dir():
        names |= {path.name for path in target.rglob(".*")}
    if names:
        raise Fault(f"{kind}: the next run leaves something", sorted(names))


def _uninterrupted(
    command: Command, models: dict[str, Path], folder: Path, before: Path
) -> Uninterrupted:
    texts = folder / "d"
    texts.mkdir()
    rng = random.Random(0)
    words = ["lamp", "order", "cancel", "delivery", "paper", "river", "stone"]
    lines = ["\n\n".join(" ".join(rng.choices(words, k=9)) for _ in range(30)) for _ in range(4)]
    (folder / "rows.txt").write_text("\n".join(lines).replace("\n\n", "\n"))
    (texts / "0.md").write_text(lines[0])
    pairs = [
        f"{number} {line},{line} {number}" for number, line in enumerate(lines[0].split("\n\n"))
    ]
    (folder / "pairs.csv").write_text("\n".join(["query,positive", *pairs]))
    (folder / "recipe.yaml").write_text(RECIPE.format(**models))
    for number, earlier in enumerate(command.before, 1):
        ended = _run(earlier.format(**models), folder)
        assert ended.code == 0, ended.stderr
        (texts / f"{number}.md").write_text(lines[number])
    shutil.copytree(folder, before)
    old = _result(command, folder)
    began = time.monotonic()
    counts = folder.parent / "count"
    ended = _run(command.words.format(**models), folder, counts=counts)
    assert ended.code == 0, ended.stderr
    seconds = time.monotonic() - began
    new = _result(command, folder)
    assert new != old or "compact" in command.words, command
    return Uninterrupted(before, old, new, int(counts.read_text()), seconds)


def _result(command: Command, folder: Path) -> str:
    """Return a digest of what has the name; of an index the answers to a search."""
    target = folder / command.name
    if not os.path.lexists(target):
        return ""
    if command.name == "z.gemb":
        verified = _run("index verify z.gemb", folder)
        if verified.code:
            raise Fault("index verify finds fault", verified.stdout + verified.stderr.encode())
        found = _run("search order z.gemb --json -k 0 --weak", folder)
        return hashlib.sha256(b"\n".join(sorted(found.stdout.splitlines()))).hexdigest()
    if command.name == "run":
        files = [target / "model/model.safetensors"]
    else:
        files = sorted(path for path in target.rglob("*") if path.is_file()) or [target]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _run(
    words: str, folder: Path, *, point: int = 0, after: float = 0.0, counts: Path | None = None
) -> Ended:
    """Run a command.

    Args:
        words: of the command line.
        folder: where it runs.
        point: it is killed before so many-th change of a name in the folder; 0: it is not.
        after: it is killed after so many seconds; 0: it is not.
        counts: a file that gets the number of changes.
    """

    def work() -> None:
        from gemb import cli
        from gemb.io import atomic

        changes = _Changes(folder, point)
        sys.addaudithook(changes.seen)
        exchanged = atomic.exchanged

        def counted(first: Path, second: Path) -> bool:
            changes.count()
            return exchanged(first, second)

        atomic.exchanged = counted
        if after:
            kill: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            timer = threading.Timer(after, kill)
            timer.daemon = True
            timer.start()
        if counts:
            leave = os._exit

            def tell(code: int) -> None:
                counts.write_text(str(changes.number))
                leave(code)

            os._exit = tell
        sys.argv = ["gemb", *words.split()]
        cli.main()

    return forked(work, folder=folder, seconds=LATE_S)


class _Changes:
    """Counts the changes of names in a folder, and kills the process before one of them."""

    def __init__(self, folder: Path, point: int) -> None:
        self.number = 0
        self._folder, self._point = os.fspath(folder), point

    def seen(self, event: str, args: tuple[object, ...]) -> None:
        is_change = event in CHANGES
        if event == "open":
            is_change = isinstance(args[2], int) and bool(args[2] & WRITES)
        if not is_change or isinstance(args[0], int) or args[0] is None:
            return
        name = os.fsdecode(args[0])  # type: ignore[arg-type]
        if not name.startswith("/") or name.startswith(self._folder):
            self.count()

    def count(self) -> None:
        self.number += 1
        if self.number == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _moved(model: Path, target: Path, number: int) -> Path:
    """Write a model with other weights, as a second run of training makes it."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, target)
    rng = np.random.default_rng(number)
    path = target / "model.safetensors"
    weights = load_file(path)
    for name, values in weights.items():
        noise = rng.standard_normal(values.shape).astype(values.dtype)
        weights[name] = values + noise * np.asarray(1e-3, values.dtype)
    save_file(weights, path, {"format": "pt"})
    return target


if __name__ == "__main__":
    main(__file__, campaign)
