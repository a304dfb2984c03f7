"""torchrun's agent, which starts this machine's processes; here with gemb's signals and ends.

torchrun's own answer to SIGTERM and Ctrl-C is to end the processes; here they are told, and save.
Its own answer to a process that failed waits up to 30 s for each of the others.

Source: `torch.distributed.elastic.agent.server`, whose documentation tells what to override.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from gemb.backend import Training
from gemb.errors import GembError, Missing, NegativeAnswer, Stopped, UsageError
from gemb.io import notes
from gemb.io.machine import cores
from gemb.training.outcome import FOLDER, Outcome, outcomes
from gemb_torch.adapt.run import adapt
from gemb_torch.model.encode import device_of
from gemb_torch.model.ranks import OtherProcessFailed
from gemb_torch.train.run import train

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe
    from gemb_torch.train.stop import EarlyStop


_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_GRACE_S = 1.0  # for the others to say what they saw, when one has failed
_POLL_S = 0.05
_MEETING_S = 900  # for all machines to come: torchrun's own
_LEAVING_S = 300  # for the others' last words, when this machine's processes have ended well


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What is to run on this machine."""

    command: Sequence[str]
    count: int
    machines: int
    meeting: str  # HOST:PORT of the first machine
    environment: Mapping[str, str]  # of all of them, beside this process's own
    logs: Path  # what all but the first say
    name: str  # the same on all machines


@dataclass
class Ended:
    """How they ended."""

    failed: dict[int, int] = field(default_factory=dict)  # rank -> code, -signal; not ended by us
    asked: int = 0  # the signal that came first; 0: none
    local: dict[int, int] = field(default_factory=dict)  # rank -> number on this machine


def run_processes(processes: Processes) -> Ended:
    """Run them to their end, which is one for all.

    Raises:
        RendezvousError: the machines did not find each other.
    """
    meeting = RendezvousParameters(
        backend="c10d",
        endpoint=processes.meeting,
        run_id=processes.name,
        min_nodes=processes.machines,
        max_nodes=processes.machines,
        local_addr="localhost" if processes.machines == 1 else None,
        timeout=_MEETING_S,
    )
    handler = get_rendezvous_handler(meeting)
    # Nothing is to be done twice: a run goes on from its checkpoints.
    spec = WorkerSpec(
        role="gemb",
        local_world_size=processes.count,
        entrypoint=processes.command[0],
        args=tuple(processes.command[1:]),
        rdzv_handler=handler,
        max_restarts=0,
        monitor_interval=_POLL_S,
    )
    logs = DefaultLogsSpecs(
        log_dir=str(processes.logs), redirects=dict.fromkeys(range(1, processes.count), Std.ALL)
    )
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    os.environ.update(processes.environment)
    agent = _Agent(spec, logs)
    try:
        agent.run()
    finally:
        for number, was in before.items():
            signal.signal(number, was)
        handler.shutdown()
    return agent.ended


class _Agent(LocalElasticAgent):
    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=_LEAVING_S)
        self.ended = Ended()
        self._running: dict[int, int] = {}  # rank -> process

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        for worker in worker_group.workers:
            self.ended.local[worker.global_rank] = worker.local_rank
            self._running[worker.global_rank] = started[worker.local_rank]
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._see_failures()
        if self.ended.failed:
            until = time.monotonic() + _GRACE_S
            while time.monotonic() < until and self._alive():
                time.sleep(_POLL_S)
            self._see_failures()
            for process in self._alive():
                os.killpg(process, signal.SIGKILL)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _see_failures(self) -> None:
        for rank, process in self._running.items():
            code = _code(process)
            if code:
                self.ended.failed.setdefault(rank, code)

    def _alive(self) -> list[int]:
        return [process for process in self._running.values() if _code(process) is None]

    def _forward(self, number: int, frame: FrameType | None) -> None:
        # Each process has a session of its own: nothing else tells it of Ctrl-C.
        self.ended.asked = self.ended.asked or number
        for process in self._alive():
            os.kill(process, number)


def _code(process: int) -> int | None:
    """Return a child's exit code, negative for a signal, and None while it runs.

    The child is left for the agent to collect; one that was collected has ended well.
    """
    try:
        seen = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if seen is None:
        return None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


# One run by several processes: this one starts them, or is one of them, or works alone.


# The others wait while the first process evaluates, or a teacher embeds the whole data.
_PATIENCE = timedelta(days=2)
_ERRORS = {error.exit_code: error for error in (NegativeAnswer, UsageError, Missing, Stopped)}
_STARTER = "GEMB_STARTER"  # environment variable: the process that started this one


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
    _start(training, count, early)


def _train(recipe: Recipe, training: Training, early: EarlyStop) -> None:
    (adapt if recipe.stage == "adapt" else train)(recipe, training, early)


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
    dist.init_process_group(backend, timeout=_PATIENCE)
    threads = max(1, (training.runtime.threads or cores()) // here)
    return replace(training, runtime=replace(training.runtime, device=str(device), threads=threads))


def _end_with(starter: int) -> None:
    """End this process when the one that started it has gone: nobody would end it else."""
    while os.getppid() == starter:
        time.sleep(1)
    os._exit(1)


def _start(training: Training, count: int, early: EarlyStop) -> None:
    """Start the processes, wait for their end, and end as they did."""
    with early.leaving():
        from torch.distributed.elastic.rendezvous import RendezvousError

    threads = max(1, (training.runtime.threads or cores()) // count)
    with tempfile.TemporaryDirectory(prefix="gemb-processes-") as folder:
        processes = Processes(
            command=training.command,
            count=count,
            machines=training.nodes,
            meeting=training.meeting or "localhost:0",
            environment={
                FOLDER: folder,
                _STARTER: str(os.getpid()),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            },
            logs=Path(folder) / "logs",
            name=os.environ.get("SLURM_JOB_ID", "gemb"),
        )
        try:
            logging.disable(logging.CRITICAL)  # the agent's own words
            ended = run_processes(processes)
        except RendezvousError as error:
            raise GembError(
                f"the {training.nodes} machines did not meet at {training.meeting}: {error}; the "
                "same command must run on each, and one of them must have this name"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
        end_as(ended, outcomes(Path(folder)), processes.logs)


def end_as(ended: Ended, told: dict[int, Outcome], logs: Path) -> None:
    """Return or raise as the processes did.

    Args:
        ended: how those ended that the agent did not end.
        told: what processes said of their end.
        logs: what they printed.
    """
    if not ended.failed:
        for _, outcome in sorted(told.items()):
            raise _ERRORS[outcome.code](outcome.line)
        return
    by_signal = (128 + ended.asked, -ended.asked, Stopped.exit_code)
    if ended.asked and all(
        code in by_signal or _is_echo(told.get(rank)) for rank, code in ended.failed.items()
    ):
        _end_by(ended.asked)
    rank = min(ended.failed, key=lambda rank: _guilt(rank, ended.failed[rank], told.get(rank)))
    code, cause = ended.failed[rank], told.get(rank)
    if cause is None:
        raise GembError(_unsaid(rank, code, _last_line(logs, ended.local[rank])))
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


def _last_line(logs: Path, number: int) -> str:
    """Return the last line on stderr of this machine's process of this number."""
    lines = [
        line
        for log in logs.rglob(f"{number}/stderr.log")
        for line in log.read_text("utf-8", "replace").splitlines()
        if line.strip()
    ]
    return lines[-1] if lines else ""


def _end_by(number: int) -> NoReturn:
    """End as one process does that the signal meets before the first step."""
    signal.raise_signal(number)
    raise GembError(f"ended by {signal.Signals(number).name}")
