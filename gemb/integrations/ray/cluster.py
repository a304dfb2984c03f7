"""Ray, started here or joined, and its errors as lines of gemb."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemb.errors import GembError, Missing, UsageError

ANSWER_S = 5.0  # that an address has to take a connection
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Which cluster, and what a worker gets of it."""

    address: str  # empty: Ray is started here, and ends with the run
    workers: int  # 0: as many as there is room for
    cpus: int  # for each worker
    gpus: float  # for each worker


def import_ray() -> Any:  # noqa: ANN401 - it has no types that help
    """Return the module ray, which says nothing and tells nobody.

    Raises:
        Missing: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++: else lines on stderr
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Missing(f"--engine ray needs Ray ({error}): pip install 'gemb[ray]'") from None
    return ray


@contextmanager
def connected(options: ClusterOptions) -> Iterator[int]:
    """Start Ray, or join a cluster; yield how many workers a run has. It ends with the block.

    Raises:
        Missing: Ray is not installed, or no cluster is at the address.
        UsageError: the cluster is too small for a worker.
    """
    ray = import_ray()
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not options.address:
        cpus = max(os.cpu_count() or 1, options.workers * options.cpus)
        store = (256 + 32 * cpus) * _MIB  # parts wait here, of some MiB each
        start: dict[str, Any] = {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": store,
            "include_dashboard": False,
        }
    else:
        _check_answer(options.address)
        start = {"address": options.address}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        with _silent_stderr():
            ray.init(**start, **quiet)
        signal.signal(signal.SIGTERM, on_term)  # Ray's would leave with 15
    except Exception as error:  # of many kinds
        where = options.address or "this machine"
        raise Missing(f"no Ray at {where}: {_first_line(error)}") from None
    # Ray prints there what befalls its nodes; a run prints its own lines on stderr.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        try:
            _be_quiet(ray)
            yield _workers(ray.cluster_resources(), options)
        finally:
            with contextlib.suppress(Exception):  # the nodes may be gone
                ray.shutdown()


def _check_answer(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes.

    Raises:
        UsageError: it is no address of a cluster.
        Missing: nothing takes a connection.
    """
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Data does not work through Ray's client; run this on a node "
            "of the cluster, with --address auto"
        )
    if not colon or not port.isdecimal():
        raise UsageError(f"--address {address}: write auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Missing(
            f"--address {address}: nobody answers ({reason}); is the cluster up? ray status"
        ) from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Swallow what C++ prints while the block runs: Ray's tells of its log level."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _be_quiet(ray: Any) -> None:  # noqa: ANN401
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray's notes to its own programmers: how many tasks there are, what a later version drops.
    warnings.filterwarnings("ignore", module=r"ray\.")


def _workers(resources: dict[str, float], options: ClusterOptions) -> int:
    """Return how many workers a run has.

    Raises:
        UsageError: there is no room for as many as were asked for, or for one.
    """
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    room = int(cpus // options.cpus)
    if options.gpus:
        room = min(room, int(gpus / options.gpus + 1e-6))
    needed = max(1, options.workers)
    if room < needed:
        room_of_one = f"{options.cpus} CPUs" + (
            f" and {options.gpus:g} GPUs" if options.gpus else ""
        )
        raise UsageError(
            f"{needed} workers of {room_of_one} each do not fit: the cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs; give fewer --workers, -j or --gpus"
        )
    return options.workers or room


def as_gemb_error(error: Exception) -> GembError:
    """Return what an error of Ray itself means; those of workers come as rows."""
    import ray

    causes = list(_causes(error))
    if any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes):
        return GembError(f"a worker ran out of memory; {FEWER}")
    if any(isinstance(cause, ModuleNotFoundError) for cause in causes):
        return Missing(f"a worker lacks a module: {_last_line(error)}; install it on all nodes")
    if any(isinstance(cause, ray.exceptions.ActorDiedError) for cause in causes):
        return GembError(f"a worker was killed; {FEWER}")
    return GembError(f"Ray: {_last_line(error)}")


FEWER = "fewer --workers, a smaller model or --part-rows need less memory"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, across processes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__


def _last_line(error: BaseException) -> str:
    """Return what a traceback of another process ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # a traceback of a server follows
        return lines[-1]
    return lines[0] if lines else type(error).__name__
