"""The socket and the signals of `gemb serve`, and connections that keep it waiting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.serving.app import Service
from gemb.serving.limits import Limits

KEEP_ALIVE_S = 75  # as nginx: longer than what clients keep a connection in their pool
BACKLOG = 512
SWITCH_S = 0.001  # of Python's threads: the loop is not to wait five milliseconds for the encoder


@contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that is bound to an address of this machine, and not listening yet.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {visible(host)}: {getattr(error, 'strerror', error)}") from None
    # With its protocol: asyncio sends small answers at once (TCP_NODELAY) only where it knows it.
    with socket.socket(*address[:3]) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address[4])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} of {host} is in use; --port 0 takes a free one"
                ) from None
            raise UsageError(f"{host}:{port}: {error.strerror}") from None
        yield sock


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """Yield a socket bound to a path that its owner alone can reach; it is removed at the end.

    Raises:
        UsageError: something is there that is no socket, or a server listens on it.
    """
    shown = visible(str(path))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"--uds {shown}: a file of this name is there, and no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:  # of a server that was killed
                path.unlink()
            else:
                raise UsageError(f"--uds {shown} is in use; choose another path")
    with socket.socket(socket.AF_UNIX) as sock:
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        except OSError as error:
            raise UsageError(f"--uds {shown}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


class PatientProtocol(H11Protocol):
    """HTTP that closes connections which take too long: to send a head, or the rest of a body."""

    wait_s: float = Limits.head_s
    send_s: float = Limits.send_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request's head."""
        self._timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for what is left of a body that was refused, or for the next request."""
        super().on_response_complete()
        self._watch()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.send_s, self._check_taken)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start or stop the clock; more bytes of the same head do not set it back."""
        state = self.conn.their_state
        is_answered = self.cycle is not None and self.cycle.response_complete
        is_waiting = (state is h11.IDLE and self.timeout_keep_alive_task is None) or (
            state is h11.SEND_BODY and is_answered
        )
        if not is_waiting:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.wait_s, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_taken(self) -> None:
        """Close the connection of a client that does not read its answer."""
        if self.transport.get_write_buffer_size():
            self._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn, with signals that end it with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first SIGTERM or Ctrl-C, end at the second."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in set(numbers) - set(ignored):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in set(numbers) - set(ignored):
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])


def serve(
    new_service: Callable[[], Service],
    sock: socket.socket,
    limits: Limits,
    on_ready: Callable[[], None],
) -> None:
    """Serve until a signal comes, then answer what has begun.

    Args:
        new_service: opens the model; called once the socket is bound.
        sock: bound, not listening.
        limits: of connections and times.
        on_ready: called when requests are answered.

    Raises:
        GembError: the self-test failed.
    """
    # Of what is no HTTP it would print a line each; what matters is in the answers and the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        asyncio.run(_serve(new_service, sock, limits, on_ready))
    finally:
        sys.setswitchinterval(before)


async def _serve(
    new_service: Callable[[], Service],
    sock: socket.socket,
    limits: Limits,
    on_ready: Callable[[], None],
) -> None:
    service = new_service()
    try:
        await service.self_test()
        server = Server(_config(service, limits))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        if not task.done():
            on_ready()
        stopping = asyncio.create_task(_watch_end(server, service))
        await task
        stopping.cancel()
    finally:
        service.close()


async def _watch_end(server: Server, service: Service) -> None:
    """Be unhealthy as soon as the server is to end, so that nothing new is sent here."""
    while not server.should_exit:
        await asyncio.sleep(0.02)
    service.is_ready = False


def _config(service: Service, limits: Limits) -> uvicorn.Config:
    protocol: Any = type(
        "Protocol", (PatientProtocol,), {"wait_s": limits.head_s, "send_s": limits.send_s}
    )
    return uvicorn.Config(
        service.app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(limits.drain_s),
    )
