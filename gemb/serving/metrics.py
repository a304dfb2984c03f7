"""What `/metrics` shows, in the form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gemb.serving.batching import Batch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Counts of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queued_tokens: Callable[[], int]) -> None:
        """Begin at zero; `queued_tokens` is asked when the numbers are shown."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gemb_requests", "Requests", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "gemb_request_seconds",
            "Time of a request",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._texts = Counter("gemb_texts", "Texts computed", registry=self._registry)
        self._tokens = Counter("gemb_tokens", "Tokens computed", registry=self._registry)
        self._batch_tokens = Histogram(
            "gemb_batch_tokens", "Tokens of a batch", buckets=TOKENS, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "gemb_batch_seconds", "Time of a batch", buckets=SECONDS, registry=self._registry
        )
        queue = Gauge("gemb_queue_tokens", "Tokens that wait, estimated", registry=self._registry)
        queue.set_function(queued_tokens)

    def batch(self, batch: Batch) -> None:
        """Count a batch; called in the thread that computes."""
        self._texts.inc(batch.texts)
        self._tokens.inc(batch.tokens)
        self._batch_tokens.observe(batch.tokens)
        self._batch_seconds.observe(batch.seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a known one, or 'other'."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)
