"""The socket and the signals of `gemb serve`, and connections that keep it waiting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import stat
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemb.errors import UsageError
from gemb.io.notes import warn
from gemb.io.text import visible
from gemb.serving.app import Service
from gemb.serving.limits import Limits

KEEP_ALIVE_S = 75  # as nginx: longer than what clients keep a connection in their pool
BACKLOG = 512
SWITCH_S = 0.001  # of Python's threads: the loop is not to wait five milliseconds for the encoder


@contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens on an address of this machine; who connects waits.

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
            sock.listen(BACKLOG)  # now: two may bind one port, and one of them may listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"port {port} of {host} is in use; --port 0 takes a free one"
                ) from None
            raise UsageError(f"{host}:{port}: {error.strerror}") from None
        yield sock


@contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """Yield a socket that listens on a path of its owner alone; it is removed at the end.

    Raises:
        UsageError: something is there that is no socket, or a server listens on it.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        _bind(sock, path)
        own = path.lstat().st_ino
        try:
            yield sock
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ino == own:
                    path.unlink()


def _bind(sock: socket.socket, path: Path) -> None:
    """Bind a socket to a path, and listen; one server at a time looks whether another is there.

    Raises:
        UsageError: something is there that is no socket, or a server listens on it.
    """
    shown = visible(str(path))
    before = os.umask(0o177)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            _remove_dead(path)
            sock.bind(str(path))
            sock.listen(BACKLOG)
        finally:
            os.close(folder)
    except OSError as error:
        raise UsageError(f"--uds {shown}: {error.strerror or error}") from None
    finally:
        os.umask(before)


def _remove_dead(path: Path) -> None:
    """Remove the socket of a server that was killed.

    Raises:
        UsageError: something is there that is no socket, or a server listens on it.
    """
    shown = visible(str(path))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"--uds {shown}: a file of this name is there, and no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:  # it is busy
                pass
        raise UsageError(f"--uds {shown} is in use; choose another path")


class PatientProtocol(H11Protocol):
    """HTTP that closes connections which keep it waiting.

    A head, or the rest of a body that was refused, has `wait_s` seconds as a whole. A client that
    reads its answer may be slow, but in every `send_s` seconds it must take something.
    """

    wait_s: float = Limits.head_s
    send_s: float = Limits.send_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request's head."""
        self._timer: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._untaken = 0  # bytes of answers, when this clock was set
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
        self._watch_taking()

    def pause_writing(self) -> None:
        """Wait for the client to take what is sent."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Go on: it has taken it."""
        super().resume_writing()
        self._watch_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._stop()
        if self._taking is not None:
            self._taking.cancel()
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

    def _watch_taking(self) -> None:
        """Set the clock of a client that has not taken all of its answers; it may be closing."""
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
        if not self.transport.get_write_buffer_size():
            return
        self._untaken = _untaken(self.transport)
        self._taking = self.loop.call_later(self.send_s, self._check_taking)

    def _check_taking(self) -> None:
        """Close the connection of a client that has taken nothing since the clock was set."""
        if _untaken(self.transport) >= self._untaken:
            self.transport.abort()
        else:
            self._watch_taking()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def _untaken(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not taken: of this process, and of its system."""
    sock = transport.get_extra_info("socket")
    sent = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(sent, sys.byteorder)


class Server(uvicorn.Server):
    """uvicorn, with signals that end it with exit code 0."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has begun, and say how much was not."""
        await super().shutdown(sockets)
        if count := len(self.server_state.tasks):
            warn(f"{count} requests were not answered before the end (--drain)")

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
    # It would print a line for all that is no HTTP; what matters is in the answers and the log.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
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
