"""torchrun's agent, which starts this machine's processes; here with gemb's signals and ends.

torchrun's own answer to SIGTERM and Ctrl-C is to end the processes; here they are told, and save.
Its own answer to a process that failed waits up to 30 s for each of the others.

Source: `torch.distributed.elastic.agent.server`, whose documentation tells what to override.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

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
