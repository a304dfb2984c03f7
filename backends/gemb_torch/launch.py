"""One run by several processes: this one starts them, or is one of them, or works alone.

Each process knows its part by torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE.
A torchrun of the user's may start them as well. The process that starts them hands signals on, so
that they save; when one fails, it gives the others a second to say what they saw and ends them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not exported

from gemb.backend import Training
from gemb.errors import GembError, Missing, NegativeAnswer, Stopped, UsageError
from gemb.io import notes
from gemb.io.atomic import scratch_folder
from gemb.io.machine import cores
from gemb.io.signals import SignalContext
from gemb.training.outcome import FOLDER, Outcome, outcomes
from gemb_torch.adapt.run import adapt
from gemb_torch.draft.run import draft
from gemb_torch.model.encode import device_of
from gemb_torch.model.ranks import OtherProcessFailed
from gemb_torch.train.run import train

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe
    from gemb_torch.train.stop import EarlyStop


_STARTER = "GEMB_STARTER"  # environment variable: the process that started this one
# The others wait while the first process evaluates, or a teacher embeds the whole data.
_PATIENCE = timedelta(days=2)
_GRACE_S = 1.0  # for the others to say what they saw, when one has failed
_POLL_S = 0.05
_MEETING_S = 900  # for all machines to come
_LEAVING_S = 300  # for the other machines' processes to end, when this machine's have ended well
_ERRORS = {error.exit_code: error for error in (NegativeAnswer, UsageError, Missing, Stopped)}


def run(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    """Train, in as many processes as asked for; see `gemb.backend.Backend.train`.

    A process that torchrun started, by gemb or by the user, knows it by torchrun's variables RANK
    and WORLD_SIZE, and joins the others.

    Raises:
        UsageError: so many processes cannot be.
        Stopped: a signal came, and the processes have saved.
        GembError: a process failed: the line names it.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _train(recipe, _joined(recipe, training), early)
        return
    count = 1 if training.launch == "none" else _count(training)
    if training.launch != "torchrun" and count * training.nodes == 1:
        _train(recipe, training, early)
        return
    if training.nodes > 1 and not training.meeting:
        raise UsageError("--nnodes needs --rdzv HOST:PORT, a free port of one of the machines")
    _check_pairs(recipe, count * training.nodes)
    _start(training, count)


def _train(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    {"adapt": adapt, "draft": draft}.get(recipe.stage, train)(recipe, training, early)


def _count(training: Training) -> int:
    """Return how many processes this machine is to have."""
    device = device_of(training.runtime.device)
    is_choice = device.type == "cuda" and device.index is None
    count = training.processes
    if not count:
        return torch.cuda.device_count() if is_choice else 1
    if count > 1 and device.index is not None:
        raise UsageError(f"--nproc {count}: --device {device} is one; take --device cuda")
    if is_choice and count > torch.cuda.device_count():
        raise UsageError(f"--nproc {count}: torch sees {torch.cuda.device_count()} CUDA devices")
    return count


def _check_pairs(recipe: Recipe, processes: int) -> None:
    if recipe.batch.pairs < processes:
        raise UsageError(
            f"batch.pairs={recipe.batch.pairs} is less than the {processes} processes that share it"
        )


def _joined(recipe: Recipe, training: Training) -> Training:
    """Join the other processes, and return how this one is to run."""
    _check_pairs(recipe, int(os.environ["WORLD_SIZE"]))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = device_of(training.runtime.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if os.environ["RANK"] != "0":
        notes.speak(quiet=True)  # the first process speaks for all
    starter = os.environ.get(_STARTER)
    if starter:
        threading.Thread(target=_end_with, args=[int(starter)], daemon=True).start()
    # What processes tell each other of their work are CPU tensors, on a GPU too.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = None
    if starter:  # which holds the store already, or a starter on another machine does
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, timeout=_PATIENCE, wait_for_workers=False)
    dist.init_process_group(
        backend,
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=_PATIENCE,
    )
    threads = max(1, (training.runtime.threads or cores()) // here)
    return replace(training, runtime=replace(training.runtime, device=str(device), threads=threads))


def _end_with(starter: int) -> None:
    """End this process when the one that started it has gone: nobody would end it else."""
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(1)


def _start(training: Training, count: int) -> None:
    """Start the processes, wait for their end, and end as they did."""
    threads = max(1, (training.runtime.threads or cores()) // count)
    meeting = meet(training.meeting or "localhost:0", training.nodes, count)
    with scratch_folder("processes") as folder:
        os.environ.update(
            {
                FOLDER: str(folder),
                _STARTER: str(os.getpid()),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
                "MASTER_ADDR": meeting.host,
                "MASTER_PORT": str(meeting.port),
                "WORLD_SIZE": str(meeting.world_size),
                "LOCAL_WORLD_SIZE": str(count),
            }
        )
        ranks = range(meeting.first_rank, meeting.first_rank + count)
        ended = run_processes(training.command, ranks, folder)
        if not ended.failed:
            meeting.leave(training.nodes)
        end_as(ended, outcomes(folder), folder)


class Meeting(NamedTuple):
    """Where the processes of all machines find each other."""

    host: str
    port: int
    first_rank: int  # on this machine
    world_size: int  # processes of all machines
    store: TCPStore
    is_host: bool  # whether the store is in this process

    def leave(self, machines: int) -> None:
        """Keep the store until every machine's processes have ended: they may need it."""
        self.store.add("ended", 1)
        until = time.monotonic() + _LEAVING_S
        while self.is_host and self.store.add("ended", 0) < machines and time.monotonic() < until:
            time.sleep(_POLL_S)


def meet(address: str, machines: int, count: int) -> Meeting:
    """Meet the starters on the other machines, which are numbered as they come.

    The machine that has the address holds a store, by which they learn of each other; of several
    starters on it, the first one.

    Args:
        address: HOST:PORT; port 0 is a free one.
        machines: that are expected.
        count: processes of this machine.

    Raises:
        UsageError: the address is none.
        GembError: the machines did not come.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--rdzv {address!r}: HOST:PORT, a free port of one of the machines")
    until = time.monotonic() + _MEETING_S
    try:
        store, is_host = _store(host, int(port), until)
        machine = store.add("machines", 1) - 1
        store.set(f"processes/{machine}", str(count))
        keys = [f"processes/{number}" for number in range(machines)]
        while not store.check(keys):
            if time.monotonic() > until:
                raise TimeoutError(f"{store.add('machines', 0)} of them came")
            time.sleep(_POLL_S)
        counts = [int(store.get(key)) for key in keys]
    except (OSError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        raise GembError(
            f"the {machines} machines did not meet at {address}: {error}; the same command must "
            "run on each, and one of them must have this name"
        ) from error
    if machine >= machines:
        raise GembError(f"{machines} machines met at {address} before this one came")
    return Meeting(host, store.port, sum(counts[:machine]), sum(counts), store, is_host)


def _store(host: str, port: int, until: float) -> tuple[TCPStore, bool]:
    """Return the store of the meeting, and whether this process holds it."""
    listener = _listener(host, port)
    if listener is not None:
        port, descriptor = listener.getsockname()[1], listener.detach()
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
        )
        return store, True
    while True:  # in Python, where a signal is heard meanwhile
        try:
            socket.create_connection((host, port), timeout=1).close()
            return TCPStore(host, port, wait_for_workers=False), False
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(_POLL_S)


def _listener(host: str, port: int) -> socket.socket | None:
    """Listen; None where the host is another machine, or another process here has the port."""
    for family, kind, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with suppress(OSError):
            with socket.socket(family, kind) as probe:
                probe.bind(address)  # fails where the address is another machine's
            is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            return socket.create_server(("", port), family=family, dualstack_ipv6=is_dual)
    return None


@dataclass
class Ended:
    """How the processes of this machine ended."""

    failed: dict[int, int] = field(default_factory=dict)  # rank -> code, -signal; not ended by us
    signal: int = 0  # that came first; 0: none


class _Processes(SignalContext):
    """The processes of this machine. Each has a session of its own, and is told of signals."""

    def __init__(self) -> None:
        super().__init__()
        self.by_rank: dict[int, subprocess.Popen[bytes]] = {}
        self.signal = 0

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for process in list(self.by_rank.values()):
            process.send_signal(number)

    def start(self, rank: int, command: Sequence[str], local: int, log: Path | None) -> None:
        with log.open("wb") if log else nullcontext() as errors:
            self.by_rank[rank] = subprocess.Popen(
                command,
                env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(local)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if log else None,
                stderr=errors,
                start_new_session=True,
            )
        if self.signal:  # the signal came before this one was there to be told
            self.by_rank[rank].send_signal(self.signal)

    def failed(self) -> dict[int, int]:
        """Return the codes of those that ended otherwise than well, by rank."""
        return {rank: code for rank, process in self.by_rank.items() if (code := process.poll())}

    def running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.by_rank.values() if process.poll() is None]


def run_processes(command: Sequence[str], ranks: range, logs: Path) -> Ended:
    """Run the processes of this machine to their end; one that fails ends the others.

    Args:
        command: of each.
        ranks: theirs. The first one's output is this process's.
        logs: where RANK.log holds what another one says on stderr.
    """
    with _Processes() as processes:
        try:
            for local, rank in enumerate(ranks):
                processes.start(rank, command, local, logs / f"{rank}.log" if local else None)
            while processes.running() and not processes.failed():
                time.sleep(_POLL_S)
            until = time.monotonic() + _GRACE_S
            while processes.running() and time.monotonic() < until:
                time.sleep(_POLL_S)
            return Ended(processes.failed(), processes.signal)
        finally:
            for process in processes.running():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def end_as(ended: Ended, told: dict[int, Outcome], logs: Path) -> None:
    """Return or raise as the processes did.

    Args:
        ended: how those ended that were not ended from here.
        told: what processes said of their end.
        logs: the folder of RANK.log, what they printed on stderr.
    """
    if not ended.failed:
        for _, outcome in sorted(told.items()):
            raise _ERRORS[outcome.code](outcome.line)
        return
    by_signal = (128 + ended.signal, -ended.signal, Stopped.exit_code)
    if ended.signal and all(
        code in by_signal or _is_echo(told.get(rank)) for rank, code in ended.failed.items()
    ):
        _end_by(ended.signal)
    rank = min(ended.failed, key=lambda rank: _guilt(rank, ended.failed[rank], told.get(rank)))
    code, cause = ended.failed[rank], told.get(rank)
    if cause is None:
        raise GembError(_unsaid(rank, code, _last_line(logs / f"{rank}.log")))
    error = _ERRORS.get(cause.code, GembError)
    # What is wrong with the command is no process's own.
    words = cause.line if error in (UsageError, Missing) else f"rank {rank} failed: {cause.line}"
    raise error(words)


def _guilt(rank: int, code: int, told: Outcome | None) -> tuple[int, float, int]:
    """Return a key by which the process comes first whose end made the others end."""
    if told is None:
        return (0 if code < 0 else 2), 0.0, rank
    return (3 if _is_echo(told) else 1), told.at, rank


def _is_echo(told: Outcome | None) -> bool:
    return told is not None and told.kind == OtherProcessFailed.__name__


def _unsaid(rank: int, code: int, last: str) -> str:
    if code >= 0:
        return f"rank {rank} failed: {last or f'exit code {code}'}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"rank {rank} was killed by {signal.Signals(-code).name}{hint}; --resume auto goes on"


def _last_line(log: Path) -> str:
    """Return the last line of a process that has a log."""
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _end_by(number: int) -> NoReturn:
    """End as one process does that the signal meets before the first step."""
    signal.raise_signal(number)
    raise GembError(f"ended by {signal.Signals(number).name}")
