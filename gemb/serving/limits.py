"""How much a server takes at once, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

REQUEST_TOKENS = 300_000  # of all texts, estimated: as OpenAI's
BYTES_A_TOKEN = 4  # of English; other scripts have fewer tokens than this says
PROMPT_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds; a request beyond one is refused with the status that says so."""

    body_bytes: int = 16_000_000  # 413
    held_bytes: int = 256_000_000  # of all bodies and answers, in memory: 429
    inputs: int = 2048  # texts of a request, as OpenAI's: 413
    request_tokens: int = REQUEST_TOKENS  # estimated: 413
    queued_tokens: int = 65_536  # estimated, that come before a new request's own: 429
    batch_tokens: int = 4096  # estimated, computed together
    window_s: float = 0.003  # a batch waits no longer for requests that come at the same time
    searches: int = 16  # at once, or waiting: 429
    where_s: float = 30.0  # that a search's filter may take: 400
    question: int = 100_000  # characters of a search's question, which is read for its words: 413
    connections: int = 1024  # 503
    head_s: float = 10.0  # until a request's head is whole: the connection is closed
    body_s: float = 30.0  # until its body is: 408
    send_s: float = 30.0  # in which a client takes some of its answer: the connection is closed
    drain_s: float = 30.0  # after SIGTERM, for requests that have begun


def estimated_tokens(text: str, max_tokens: int) -> int:
    """Return about how many tokens a text has, with its prompt, after any cut."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return min(max_tokens, size // BYTES_A_TOKEN + PROMPT_TOKENS)
