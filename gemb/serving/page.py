"""The page that searches the indexes: one file, which runs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import orjson
from starlette.responses import Response

PAGE = Path(__file__).parents[1] / "data" / "serve.html"
MARK = "[]/*indexes*/"


@cache
def _parts() -> tuple[str, str, str]:
    """Return the page, and the hashes of its style and of its script without the indexes."""
    text = PAGE.read_text(encoding="utf-8")
    return text, _part(text, "style"), _part(text, "script")


def _part(text: str, name: str) -> str:
    match = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    assert match, name
    return match[1]


def page(indexes: Sequence[str]) -> Response:
    """Return the page.

    Its policy allows no script, style or address but its own: what a hostile file might smuggle
    into a hit has nothing to run, and nowhere to send to. Hits are set as text, never as HTML.
    """
    text, style, script = _parts()
    names = orjson.dumps(list(indexes)).decode().replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; "
        f"script-src {_digest(script.replace(MARK, names))}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(
        text.replace(MARK, names),
        media_type="text/html",
        headers={
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        },
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
