"""The body of a request: read within its bounds, and checked against a form."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gemb.serving.limits import Limits
from gemb.serving.refusals import ClientGone, Refused

T = TypeVar("T")


async def read_json(request: Request, form: type[T], limits: Limits) -> T:
    """Return the JSON of a request's body as a value of the form.

    Raises:
        Refused: 400 no such JSON, 408 too slow, 413 too long, 415 of another type.
        ClientGone: the client closed the connection.
    """
    _check_headers(request, limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_long(limits)
    except TimeoutError:
        message = f"the body was not whole within {limits.body_s:g} s"
        raise Refused(408, message, code="timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    return parsed(bytes(body), form)


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


def _too_long(limits: Limits) -> Refused:
    return Refused(
        413,
        f"the body is longer than {limits.body_bytes:,} bytes; split the request",
        code="body_too_long",
    )
