"""The runner of all campaigns: cases made at random until a time is spent, and their outcomes.

A campaign is a file `fuzz_NAME.py` beside this one, with

    def campaign(folder: Path) -> Case     `folder` is empty, for what all cases share
    if __name__ == "__main__":
        main(__file__, campaign)

A case is a function of a random generator and an empty folder. It makes an input in the folder,
tries it, and returns the kind of the outcome in a word or two ("taken", "refused"); where gemb did
what it must not it raises `Fault`. All that it draws comes from the generator: a number makes the
case again. Of the faults of one kind the case with the smallest folder is kept.

    python tests/fuzz/fuzz_gguf.py                           for GEMB_FUZZ_S seconds, or 5
    python tests/fuzz/fuzz_gguf.py --seconds 3600 --first 1000000
    python tests/fuzz/fuzz_gguf.py --only 17                 one case, by its number
    python tests/fuzz/fuzz_gguf.py --cases 10000 --keep DIR

`test_fuzz.py` runs every campaign, each for GEMB_FUZZ_S seconds.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

for beside in ("tests/support", "backends", "."):  # as a script: what pytest has on its path
    sys.path.append(str(Path(__file__).parents[2] / beside))

Case = Callable[[random.Random, Path], str]
Campaign = Callable[[Path], Case]

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else that package warns of each fork

SECONDS = float(os.environ.get("GEMB_FUZZ_S", "5"))  # for each campaign
EXIT_CODES = (0, 1, 2, 3, 4, 5)  # of `gemb.errors`, without those of signals
MEMORY = 6 << 30  # bytes of address space that a child may have
RESIDENT = 2 << 30  # bytes that it may use
BESIDE = ("gemb: note: ", "gemb: warning: ")  # lines on stderr that are no error


class Fault(Exception):
    """gemb did what it must not: the kind in a few words that many cases share, then details."""

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = str(detail)


@dataclass
class Kept:
    """The smallest case of one kind of fault."""

    number: int  # of the case
    folder: Path  # a copy of what it made
    size_bytes: int
    detail: str


@dataclass
class Report:
    """What came of a campaign."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Kept] = field(default_factory=dict)  # kind of fault -> its smallest case
    seconds: float = 0.0

    def __str__(self) -> str:
        cases = self.outcomes.total() + self.faults.total()
        outcomes = ", ".join(f"{count} {kind}" for kind, count in self.outcomes.most_common())
        lines = [f"{self.name}: {cases} cases in {self.seconds:.0f} s: {outcomes or 'none right'}"]
        for kind, count in self.faults.most_common():
            smallest = self.kept[kind]
            detail = smallest.detail.strip().replace("\n", "\n      ")
            lines += [
                f"  {count} x FAULT {kind}",
                f"    python tests/fuzz/fuzz_{self.name}.py --only {smallest.number}",
                f"    {smallest.folder} ({smallest.size_bytes} bytes)",
                *([f"      {detail}"] if detail else []),
            ]
        return "\n".join(lines)


def run(
    name: str,
    campaign: Campaign,
    *,
    seconds: float = SECONDS,
    numbers: Sequence[int] = range(1 << 62),
    keep: Path | None = None,
) -> Report:
    """Run cases until the time is spent, at least one, or the numbers are.

    Args:
        name: of the campaign; with a case's number it is the seed of the case.
        campaign: makes the case.
        seconds: after which no other case begins.
        numbers: of the cases, in order.
        keep: where the smallest case of each kind of fault is copied; None: a temporary folder.
    """
    report = Report(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"gemb-fuzz-{name}-") as scratch:
        shared = Path(scratch, "shared")
        shared.mkdir()
        case = campaign(shared)
        began = time.monotonic()
        for number in numbers:
            folder = Path(scratch, "case")
            folder.mkdir()
            _try(report, case, number, folder, keep)
            shutil.rmtree(folder)
            report.seconds = time.monotonic() - began
            if report.seconds > seconds:
                break
    return report


def _try(report: Report, case: Case, number: int, folder: Path, keep: Path | None) -> None:
    try:
        report.outcomes[case(random.Random(f"{report.name} {number}"), folder)] += 1
        return
    except Fault as fault:
        kind, detail = fault.kind, fault.detail
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        detail = "".join(traceback.format_exception(error))
    report.faults[kind] += 1
    size_bytes = sum(path.lstat().st_size for path in folder.rglob("*"))
    if kind in report.kept and report.kept[kind].size_bytes <= size_bytes:
        return
    keep = keep or Path(tempfile.gettempdir(), f"gemb-fuzz-{os.getuid()}")
    copy = keep / f"{report.name}-{number}"
    shutil.rmtree(copy, ignore_errors=True)
    keep.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, copy, symlinks=True, copy_function=_copied)
    if kind in report.kept:
        shutil.rmtree(report.kept[kind].folder, ignore_errors=True)
    report.kept[kind] = Kept(number, copy, size_bytes, detail)


def _copied(source: str, target: str) -> None:
    if Path(source).is_file():  # no pipe: it would wait for ever
        shutil.copy2(source, target, follow_symlinks=False)


def main(file: str, campaign: Campaign) -> NoReturn:
    """Run a campaign as a command: print its counts, and exit with 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=f"Run the campaign of {Path(file).name}.")
    parser.add_argument("--seconds", type=float, help="how long (default: GEMB_FUZZ_S, or 5)")
    parser.add_argument("--cases", type=int, help="how many, instead of how long")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="number of the one case to run")
    parser.add_argument("--keep", type=Path, help="folder for the smallest case of each fault")
    chosen = parser.parse_args()
    first = chosen.first if chosen.only is None else chosen.only
    cases = chosen.cases if chosen.only is None else 1
    seconds = chosen.seconds or (SECONDS if cases is None else float("inf"))
    report = run(
        Path(file).stem.removeprefix("fuzz_"),
        campaign,
        seconds=seconds,
        numbers=range(first, first + (1 << 62 if cases is None else cases)),
        keep=chosen.keep,
    )
    print(report)
    sys.exit(bool(report.faults))


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None  # None: by a signal
    signal: int | None
    late: bool  # it was killed, for it took too long
    stdout: bytes
    stderr: str
    seconds: float
    resident: int  # bytes, at most


def gemb(*arguments: str | Path, folder: Path, stdin: bytes = b"", seconds: float = 30) -> Ended:
    """Run `gemb` with these arguments in a fork of this process, which is fast.

    Args:
        arguments: of the command line.
        folder: where it runs.
        stdin: what it may read.
        seconds: after which it is killed.
    """
    from gemb import cli

    def work() -> None:
        sys.argv = ["gemb", *map(str, arguments)]
        cli.main()

    return forked(work, folder=folder, stdin=stdin, seconds=seconds)


def forked(
    work: Callable[[], object], *, folder: Path, stdin: bytes = b"", seconds: float = 30
) -> Ended:
    """Run a function in a fork of this process, with its own streams; its exit code is 0.

    An exception is exit code 70, with the traceback on stderr.
    """
    began = time.monotonic()
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin)
        given.seek(0)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _be_child(work, folder, (given.fileno(), out.fileno(), err.fileno()))
        late, status, usage = _awaited(child, seconds)
        out.seek(0)
        err.seek(0)
        return Ended(
            code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            late=late,
            stdout=out.read(),
            stderr=err.read().decode("utf-8", "replace"),
            seconds=time.monotonic() - began,
            resident=usage.ru_maxrss * 1024,
        )


def _be_child(work: Callable[[], object], folder: Path, streams: tuple[int, int, int]) -> NoReturn:
    code = 70
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww")
        faulthandler.disable()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _awaited(child: int, seconds: float) -> tuple[bool, int, resource.struct_rusage]:
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    late = not poll.poll(seconds * 1000)
    os.close(descriptor)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return late, status, usage


def refused(work: Callable[[], object], seconds: float = 10) -> str:
    """Call a function of gemb here; return its refusal, or nothing where it is content.

    For what computes nothing in a library, and may run without a fork of its own.

    Raises:
        Fault: it hangs, or raises anything but an error of exit code 2.
    """
    from gemb.errors import UsageError

    def late(_signal: int, _frame: object) -> NoReturn:
        raise Fault("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        work()
    except UsageError as error:
        return str(error) or "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return ""


def judge(ended: Ended, codes: Collection[int] = EXIT_CODES, *, table: bool = False) -> int:
    """Return the exit code of a run of gemb that ended as it should; stderr is one line, or empty.

    Args:
        ended: what `gemb` returned.
        codes: that are right here.
        table: whether it may print a table before the line.

    Raises:
        Fault: it hung, was killed, had a traceback or "a bug in gemb", another code or more lines,
            or took too much memory.
    """
    said = ended.stderr
    if ended.late:
        raise Fault("hangs", said)
    if ended.code is None:
        raise Fault(f"killed by {signal.Signals(ended.signal or 0).name}", said)
    if "a bug in gemb" in said:
        raise Fault("a bug in gemb: " + said.partition("a bug in gemb: ")[2].split(":")[0], said)
    if "Traceback" in said:
        raise Fault("traceback", said)
    if ended.code not in codes:
        raise Fault(f"exit code {ended.code}", said)
    _judge_lines(ended, table)
    if ended.resident > RESIDENT:
        raise Fault("too much memory", f"{ended.resident:,} bytes\n{said}")
    return ended.code


def _judge_lines(ended: Ended, table: bool) -> None:
    said = ended.stderr
    lines = [line for line in said.splitlines() if not line.startswith(BESIDE)]
    if table:
        lines = lines[-1:]
    if any(not line.startswith("gemb: ") for line in lines) or len(lines) > 1:
        raise Fault("more than gemb's line on stderr", said)
    if ended.code and not lines:
        raise Fault(f"exit code {ended.code} without a line", said)
    if not said.replace("\n", "").isprintable():
        raise Fault("control characters on stderr", repr(said))
