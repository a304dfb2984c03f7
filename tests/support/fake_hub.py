"""A hub on this machine: the few addresses of the real one that pulling a model uses.

huggingface_hub itself talks to it, in a process of its own with HF_ENDPOINT set.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest


@dataclass
class FakeHub:
    """One repository, `org/model`; its files may be changed while it runs."""

    files: dict[str, bytes]
    licence: str = "gemma"
    gated: bool = False
    commit: str = "c" * 40
    lie: str = ""  # the name of a file whose digest is given wrong
    stall_after: int = 0  # bytes of a file after which no more come; 0: never
    break_after: int = 0  # bytes of an answer after which the connection ends; 0: never
    total: int = 0  # bytes of a file beyond which no answer has any; 0: no limit
    go_on: Event = field(default_factory=Event)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    url: str = ""

    def info(self) -> dict:
        siblings = []
        for name, data in self.files.items():
            told = b"something else" if name == self.lie else data
            git = hashlib.sha1(f"blob {len(told)}\0".encode() + told).hexdigest()
            entry = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith((".safetensors", ".gguf")):
                digest = hashlib.sha256(told).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "_id": "1",
            "id": "org/model",
            "modelId": "org/model",
            "sha": self.commit,
            "private": False,
            "gated": "manual" if self.gated else False,
            "tags": [f"license:{self.licence}"] if self.licence else [],
            "siblings": siblings,
        }

    def tree(self) -> list[dict]:
        entries = []
        for sibling in self.info()["siblings"]:
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"]}
            entry["oid"] = sibling["blobId"]
            if "lfs" in sibling:
                entry["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
            entries.append(entry)
        return entries


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub that a subclass names."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            stop = self.hub.stall_after or self.hub.break_after
            self.wfile.write(body[: self.room(stop, headers or {})])
            if stop and len(body) > stop:
                if self.hub.stall_after:
                    self.hub.go_on.wait()
                self.close_connection = True

    def room(self, stop: int, headers: dict[str, str]) -> int | None:
        """Return how many bytes of an answer are sent; None: all."""
        begin = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        if begin and self.hub.total:
            return min(stop, self.hub.total - int(begin[1]))
        return stop or None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if re.fullmatch(r"/api/models/org/model(/revision/[^/]+)?", path):
            body = json.dumps(self.hub.info()).encode()
            self.answer(200, body, {"Content-Type": "application/json"})
            return
        if re.fullmatch(r"/api/models/org/model/tree/[^/]+", path):
            body = json.dumps(self.hub.tree()).encode()
            self.answer(200, body, {"Content-Type": "application/json"})
            return
        match = re.fullmatch(r"/org/model/resolve/([^/]+)/(.+)", path)
        if not match:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif self.hub.gated:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif match[2] not in self.hub.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.file(self.hub.files[match[2]])

    def file(self, data: bytes) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], headers)
        else:
            self.answer(200, data, headers)


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on a free port of this machine; `hub.url` says where."""
    handler = type("HandlerOfOne", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        _skip_without_loopback(server.server_port)
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _skip_without_loopback(port: int) -> None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError as error:
        pytest.skip(f"the loopback interface is not up: {error}")
