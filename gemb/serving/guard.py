"""What stands before every route: who may ask, request ids, the log, the metrics.

A page in a browser can reach a server on this machine. It is kept out in three ways: the Host
header must name this server, so that a foreign name that leads here (DNS rebinding) is refused; a
request with a foreign Origin is refused; and bodies must be JSON by their type, which a foreign
page may not send without being allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response

from gemb.errors import UsageError
from gemb.io.notes import warn
from gemb.io.text import visible, visible_lines
from gemb.serving.bodies import Bodies, Told
from gemb.serving.metrics import Metrics
from gemb.serving.refusals import ClientGone, Refused

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
OPEN_ROUTES = ("/", "/health")  # without a key: they tell nothing but that it is there
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORTEST_KEY = 16
EXPOSED = "retry-after, x-gemb-prompt, x-gemb-truncated, x-request-id"  # to pages elsewhere
PART = 1 << 18  # bytes of an answer
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask."""

    key_digests: tuple[bytes, ...] = ()  # SHA-256; empty: no key is needed
    hosts: Collection[str] | None = LOOPBACK  # of the Host header; None: any
    any_address: bool = False  # a Host of digits, too: no foreign name can lead to it
    origins: Collection[str] = ()  # of pages elsewhere that may ask

    def check_caller(self, headers: Headers) -> None:
        """Refuse a request that another page in a browser may have sent.

        Raises:
            Refused: 403 another host or origin.
        """
        host = headers.get("host", "")
        if not self._is_host(host):
            raise Refused(
                403,
                f"the host {visible(host, 80)} is not this server's; --allow-host NAME allows it",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_origin(origin, host):
            raise Refused(
                403,
                f"pages of {visible(origin, 80)} may not ask; --cors ORIGIN allows it",
                code="wrong_origin",
            )

    def check_key(self, headers: Headers, path: str) -> None:
        """Refuse a request without a key, where one is needed.

        Raises:
            Refused: 401.
        """
        if self.key_digests and path not in OPEN_ROUTES and not self._has_key(headers):
            raise Refused(
                401,
                "no key, or a wrong one: authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _is_host(self, host: str) -> bool:
        if self.hosts is None:
            return True
        name = _name(host)
        return name in self.hosts or (self.any_address and _is_address(name))

    def _is_origin(self, origin: str, host: str) -> bool:
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # it is none
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def _has_key(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in constant time: the time tells nothing of any key.
        matches = [hmac.compare_digest(digest, known) for known in self.key_digests]
        return kind.lower() == "bearer" and any(matches)


def _name(host: str) -> str:
    """Return the name in a Host header, in small letters, without the port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the digests of the keys in a file, one a line; # begins a comment.

    Raises:
        UsageError: there is no such file, no key in it, or one that is too short.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"--api-key-file {visible(str(path))}: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise UsageError(f"--api-key-file {visible(str(path))} has no key; write one on a line")
    if any(len(key) < SHORTEST_KEY or " " in key or not key.isascii() for key in keys):
        raise UsageError(
            f"--api-key-file {visible(str(path))}: a key has {SHORTEST_KEY} characters or more, "
            "and no space, all in ASCII: openssl rand -hex 32 makes one"
        )
    if mode & 0o077:
        warn(f"{visible(str(path))} can be read by others: chmod 600 {visible(str(path))}")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


@dataclass
class Guard:
    """The application: routes, and what stands before them."""

    routes: Mapping[tuple[str, str], Handler]  # method and path
    access: Access
    bodies: Bodies
    metrics: Metrics
    log_json: bool = False
    prefixes: Sequence[str] = field(default=())  # of GET routes that go on: /v1/models/

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"]["told"] = told = Told()
        status = 499  # as nginx logs a client that went away

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), headers, request_id)
            for part in _parts(message):
                await send(part)

        failure = ""
        response: Response | None = None
        try:
            response = await self._response(Request(scope, receive), headers)
        except ClientGone:
            pass
        except asyncio.CancelledError:  # the time to drain is over
            refusal = Refused(503, "the server ends; ask another, or again", code="not_ready")
            response = _refused(refusal, scope["path"])
        except Exception:  # the client is told nothing of it
            failure = traceback.format_exc()
            refusal = Refused(500, f"a bug in gemb; request {request_id}", code="internal")
            response = _refused(refusal, scope["path"])
        try:
            if response is not None:
                self.bodies.hold(told, len(response.body))
                await response(scope, receive, sending)
        finally:
            self.bodies.release(told)
        seconds = time.monotonic() - began
        self.metrics.request(self._route(scope), status, seconds)
        self._log(scope, request_id, status, seconds, told, failure)

    async def _response(self, request: Request, headers: Headers) -> Response:
        # Not of request.url, which is made of the Host header, too.
        path, method = request.scope["path"], request.method
        try:
            self.access.check_caller(headers)
            if method == "OPTIONS" and headers.get("origin") in self.access.origins:
                return Response(status_code=204)  # browsers ask before, without the key
            self.access.check_key(headers, path)
            response = await self._handler(method, path)(request)
            self.bodies.check_room(len(response.body))
            return response
        except Refused as refusal:
            return _refused(refusal, path)

    def _handler(self, method: str, path: str) -> Handler:
        """Return what answers a route.

        Raises:
            Refused: 404 no such path, 405 another method.
        """
        method = "GET" if method == "HEAD" else method
        path = next((prefix for prefix in self.prefixes if path.startswith(prefix)), path)
        if handler := self.routes.get((method, path)):
            return handler
        allowed = [other for other, known in self.routes if known == path]
        if allowed:
            raise Refused(
                405,
                f"{path} takes {' or '.join(allowed)}",
                code="method_not_allowed",
                headers={"allow": ", ".join(allowed)},
            )
        paths = ", ".join(sorted({known for _, known in self.routes}))
        raise Refused(404, f"no such path; here are {paths}", code="not_found")

    def _route(self, scope: Scope) -> str:
        known = {path for _, path in self.routes}
        return scope["path"] if scope["path"] in known else "other"

    def _add_headers(self, response: MutableHeaders, headers: Headers, request_id: str) -> None:
        response["x-request-id"] = request_id
        response["x-content-type-options"] = "nosniff"
        origin = headers.get("origin")
        if origin in self.access.origins and origin is not None:
            response["access-control-allow-origin"] = origin
            response["access-control-allow-methods"] = "GET, POST"
            response["access-control-expose-headers"] = EXPOSED
            if asked := headers.get("access-control-request-headers"):
                response["access-control-allow-headers"] = asked  # each client has its own
                response["access-control-max-age"] = "600"
            response["vary"] = "origin"

    def _log(
        self,
        scope: Scope,
        request_id: str,
        status: int,
        seconds: float,
        told: Told,
        failure: str,
    ) -> None:
        if not self.log_json:
            if failure:
                self._write(visible_lines(failure))  # it may quote the request
            return
        entries: dict[str, object] = {
            "time": round(time.time(), 3),
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"].encode("utf-8", "replace").decode(),
            "status": status,
            "ms": round(1000 * seconds, 3),
            "texts": told.texts,
            "tokens": told.tokens,
        }
        if failure:
            entries["error"] = failure
        self._write(json.dumps(entries, separators=(",", ":")) + "\n")  # all of it in ASCII

    @staticmethod
    def _write(lines: str) -> None:
        with contextlib.suppress(OSError):  # who reads the log may have gone
            sys.stderr.write(lines)
            sys.stderr.flush()


def _parts(message: Message) -> Iterator[Message]:
    """Yield a message in parts, so that each waits until the client has taken those before it."""
    body: bytes = message.get("body", b"")
    yield {**message, "body": body[:PART], "more_body": len(body) > PART} if body else message
    for first in range(PART, len(body), PART):
        yield {**message, "body": body[first : first + PART], "more_body": first + PART < len(body)}


def _refused(refusal: Refused, path: str) -> Response:
    body = orjson.dumps(refusal.body(path))
    return Response(body, refusal.status, headers=refusal.headers, media_type="application/json")
