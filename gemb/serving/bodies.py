"""The body of a request: read within its bounds, and checked against a form; and its client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gemb.serving.limits import Limits
from gemb.serving.refusals import ClientGone, Refused

T = TypeVar("T")
SMALL = 65_536  # bytes: a body up to this is read however much is held


@dataclass
class Told:
    """What is known of a request while it is answered: for the log, and to let go of it."""

    texts: int = 0
    tokens: int = 0
    held: int = 0  # bytes of its body and of its answer


class Bodies:
    """Reads bodies. The bytes of all, and of their answers, are bounded: small ones are exempt.

    A small body may have a large answer, so that both are looked at.
    """

    def __init__(self, limits: Limits) -> None:
        """Hold none."""
        self._limits = limits
        self._held = 0  # bytes

    async def read_json(self, request: Request, form: type[T]) -> T:
        """Return the JSON of a request's body as a value of the form; it is held until `release`.

        Raises:
            Refused: 400 no such JSON, 408 too slow, 413 too long, 415 of another type, 429 too
                many at once.
            ClientGone: the client closed the connection.
        """
        limits = self._limits
        _check_headers(request, limits)
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    body += chunk
                    self.hold(request.state.told, len(chunk))
                    if len(body) > limits.body_bytes:
                        raise _too_long(limits)
                    self.check_room(len(body))
        except TimeoutError:
            message = f"the body was not whole within {limits.body_s:g} s"
            raise Refused(408, message, code="timeout") from None
        except ClientDisconnect:
            raise ClientGone from None
        return parsed(bytes(body), form)

    def check_room(self, count: int) -> None:
        """Refuse a body or an answer of so many bytes where too much is held.

        Raises:
            Refused: 429.
        """
        if count > SMALL and self._held > self._limits.held_bytes:
            raise _too_many()

    def hold(self, told: Told, count: int) -> None:
        """Count bytes of a request or of its answer."""
        told.held += count
        self._held += count

    def release(self, told: Told) -> None:
        """Let go of a request whose client has its answer."""
        self._held -= told.held


async def unless_gone(request: Request, result: asyncio.Future[T]) -> T:
    """Return a result as soon as it is there; it is cancelled if the client goes away.

    Raises:
        ClientGone: nobody waits for it any more.
    """
    gone = asyncio.create_task(_gone(request))
    try:
        waiting: set[asyncio.Future[Any]] = {result, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientGone
        return result.result()
    finally:
        gone.cancel()
        result.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parsed(body: bytes, form: type[T]) -> T:
    """Return JSON as a value of the form.

    Raises:
        Refused: 400: it is no JSON, or has another form.
    """
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = place.strip(".`") or None
        where = f"{param}: " if param else ""
        raise Refused(400, f"{where}{message}", code="invalid_value", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is no valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deep", code="invalid_json") from None


def _check_headers(request: Request, limits: Limits) -> None:
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(
            415,
            f"the content type is {kind or 'not given'}; send JSON: "
            "-H 'content-type: application/json'",
            code="unsupported_media_type",
        )
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused(
            415,
            "the body is compressed; send it as it is, without content-encoding",
            code="unsupported_media_type",
        )
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:18]) > limits.body_bytes:
        raise _too_long(limits)


def _too_many() -> Refused:
    return Refused(
        429,
        "too many large requests are in memory; try again in 1 s",
        code="queue_full",
        headers={"retry-after": "1"},
    )


def _too_long(limits: Limits) -> Refused:
    return Refused(
        413,
        f"the body is longer than {limits.body_bytes:,} bytes; split the request",
        code="body_too_long",
    )
