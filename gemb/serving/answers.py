"""Vectors and hits as the JSON of an answer."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from gemb.arrays import Vectors

if TYPE_CHECKING:
    from gemb.search.interface import SearchHit

ROWS_AT_A_TIME = 64  # are written before other requests have their turn


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The vectors of a request."""

    vectors: Vectors  # [n, dim]
    tokens: int  # that were computed: those of a cut text alone
    cut: int  # texts


async def rows_as_json(vectors: Vectors, *, is_base64: bool = False) -> list[bytes]:
    """Return each vector as JSON: an array of numbers, or the base64 of little-endian float32."""
    rows: list[bytes] = []
    for index, vector in enumerate(vectors):
        if is_base64:
            rows.append(b'"%s"' % base64.b64encode(vector.astype("<f4").tobytes()))
        else:
            rows.append(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
        if index % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1:
            await asyncio.sleep(0)
    return rows


def as_json(body: bytes, *, task: str = "", answer: Answer | None = None) -> Response:
    """Return an answer in JSON; its headers say which prompt was used, and how much was cut."""
    headers = {"x-gemb-prompt": task} if task else {}
    if answer and answer.cut:
        headers["x-gemb-truncated"] = str(answer.cut)
    return Response(body, headers=headers, media_type="application/json")


def hit_fields(rank: int, hit: SearchHit) -> dict[str, Any]:
    """Return a hit as `/v1/search` gives it."""
    path = hit.path and hit.path.encode(errors="surrogateescape").decode(errors="replace")
    return {
        "rank": rank,
        "score": round(hit.score, 6),
        "id": hit.id,
        "path": path,
        "line": hit.line,
        "last_line": hit.last_line,
        "best_line": hit.best_line,
        "title": hit.title,
        "text": hit.text,
        "stale": hit.stale,
        "estimated": hit.is_estimate,
        "copies": hit.copies,
        "kept": dict(hit.kept),
    }
