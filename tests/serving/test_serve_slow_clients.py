"""Clients that take their answers slowly, or not at all: what becomes of their connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import uvicorn

from gemb.serving.limits import Limits
from gemb.serving.server import PatientProtocol

SIZE = 8_000_000  # bytes of an answer: more than the system's buffers take


async def answer(scope, receive, send):
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % SIZE)],
        }
    )
    for first in range(0, SIZE, 1 << 18):
        part = bytes(min(1 << 18, SIZE - first))
        more = first + len(part) < SIZE
        await send({"type": "http.response.body", "body": part, "more_body": more})


class Clocks:
    """The loop, but that the clock of clients which take an answer goes off when a test says so."""

    def __init__(self, loop):
        self._loop = loop
        self.timers = []

    def call_later(self, seconds, work):
        handle = self._loop.call_later(3600, work)
        if work.__name__ == "_check_taking":
            self.timers.append((handle, work))
        return handle

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def due(self):
        """Return those that are set now."""
        timers, self.timers = self.timers, []
        return timers

    @staticmethod
    def go_off(timers):
        for handle, work in timers:
            if not handle.cancelled():
                handle.cancel()
                work()


class Connection:
    """A client on a pair of sockets, and the protocol that answers it."""

    def __init__(self, head: bytes) -> None:
        self.head = head

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.clocks = Clocks(loop)
        mine, self.client = socket.socketpair()
        for end in (mine, self.client):
            end.setblocking(False)
        config = uvicorn.Config(answer, lifespan="off", log_config=None, timeout_keep_alive=3600)
        config.load()
        state = uvicorn.server.ServerState()

        def protocol():
            return PatientProtocol(config, state, {}, self.clocks)

        self.transport, self.protocol = await loop.connect_accepted_socket(protocol, mine)
        await loop.sock_sendall(self.client, self.head)
        await self.until(lambda: self.transport.get_write_buffer_size() > 0)
        return self

    async def __aexit__(self, *_):
        self.client.close()
        self.transport.abort()
        await self.until(lambda: not self.protocol.connections)

    async def until(self, is_so):
        end = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < end
            await asyncio.sleep(0)

    async def take(self, most: int) -> int:
        """Read until so many bytes have come, or no more do; return how many."""
        taken = 0
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while taken < most and (part := await loop.sock_recv(self.client, most - taken)):
                taken += len(part)
        return taken

    @property
    def is_open(self) -> bool:
        return bool(self.protocol.connections) and not self.protocol.transport._conn_lost


KEPT = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def test_a_client_that_reads_slowly_has_its_whole_answer():
    async def run():
        async with Connection(KEPT) as connection:
            taken = 0
            while taken < SIZE:  # some bytes each time before the clock goes off
                timers = connection.clocks.due()
                taken += await connection.take(100_000)
                connection.clocks.go_off(timers)
                assert connection.is_open
            return taken

    assert asyncio.run(run()) >= SIZE


def test_a_client_that_has_stopped_reading_is_cut_off():
    async def run(head: bytes):
        async with Connection(head) as connection:
            timers = connection.clocks.due()
            await connection.take(100_000)
            connection.clocks.go_off(timers)
            assert connection.is_open
            connection.clocks.go_off(connection.clocks.due())
            await connection.until(lambda: not connection.is_open)
            await connection.until(lambda: connection.protocol.cycle.disconnected)

    asyncio.run(run(KEPT))
    asyncio.run(run(CLOSING))


def test_a_client_that_never_reads_the_end_of_its_last_answer_is_cut_off():
    """The server has said that it closes the connection, and cannot: the client takes nothing."""

    async def run():
        async with Connection(CLOSING) as connection:
            await connection.until(lambda: connection.protocol.cycle.response_started)
            protocol = connection.protocol
            taken = 0
            while not protocol.cycle.response_complete:  # all is written, some of it waits here
                taken += await connection.take(50_000)
            assert taken < SIZE
            assert connection.transport.is_closing()
            assert connection.transport.get_write_buffer_size()
            connection.clocks.go_off(connection.clocks.due())
            await connection.until(lambda: not protocol.connections)

    asyncio.run(run())


def test_the_clock_is_that_of_the_limits():
    assert PatientProtocol.send_s == Limits.send_s
