"""`gemb serve` as a process with the fake backend, and what asks it."""

from __future__ import annotations

import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fake_backend import Gemb


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    headers: Mapping[str, str]  # names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running server; it is ended as a service is, and must end with 0."""

    def __init__(self, gemb: Gemb, *options: str, model: str = "model.fake") -> None:
        """Start it, and wait until it says where it is."""
        words = ("serve", "-m", model, *options)
        if "--uds" not in options and "--port" not in options:
            words = (*words, "--port", "0")
        self.process = gemb.start(*words)
        self.lines: queue.Queue[str] = queue.Queue()
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.said = self.line("serving ")
        address = re.search(r"http://(\[.*\]|[^:]+):(\d+)", self.said)
        self.host = address[1].strip("[]") if address else ""
        self.port = int(address[2]) if address else 0

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.put(line.decode())
        self.lines.put("")

    def line(self, part: str, timeout_s: float = 120) -> str:
        """Return the next line on stderr that has this part."""
        until = time.monotonic() + timeout_s
        while True:
            line = self.lines.get(timeout=max(0.01, until - time.monotonic()))
            self.log.append(line)
            if part in line:
                return line
            assert line, "".join(self.log)

    def ask(
        self,
        path: str,
        value: object = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """Send one request on a connection of its own; `value` is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            return self.ask_on(connection, path, value, method=method, headers=headers, body=body)
        finally:
            connection.close()

    def ask_on(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        value: object = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        if value is not None:
            body = json.dumps(value).encode()
        sent = {"content-type": "application/json"} if body is not None else {}
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, {**sent, **(headers or {})})
        response = connection.getresponse()
        names = {name.lower(): text for name, text in response.getheaders()}
        return Reply(response.status, names, response.read())

    def embed(self, texts: object, model: str = "model.fake", **fields: object) -> Reply:
        return self.ask("/v1/embeddings", {"model": model, "input": texts, **fields})

    def raw(self) -> socket.socket:
        """Return an open connection, to send what no client would."""
        return socket.create_connection((self.host, self.port), timeout=60)

    def metric(self, name: str) -> float:
        """Return a number of /metrics."""
        for line in self.ask("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise AssertionError(name)

    def memory_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
