"""The program `llm`: `llm embed -m gemb-mini`, `llm similar`; it finds this by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gemb.integrations.shared import shared

try:
    from llm import EmbeddingModel, hookimpl
except ImportError:  # then nobody looks for the hook
    EmbeddingModel = object

    def hookimpl(function: Any) -> Any:  # noqa: ANN401
        """Return the function."""
        return function


class GembModel(EmbeddingModel):
    """A model with the prompt of one task: `llm` has no word for the difference."""

    supports_text = True
    batch_size = 64

    def __init__(self, model_id: str, task: str) -> None:
        """Take the name in `llm`, and the task."""
        self.model_id, self.task = model_id, task

    def embed(self, item: str | bytes, *, key: str | None = None) -> list[float]:
        """Return the vector of a text: for `llm similar`, whose collection asks, of a question."""
        is_question = sys._getframe(1).f_code.co_name == "similar"
        (vector,) = self._vectors([item], "query" if is_question else self.task)
        return vector

    def embed_batch(
        self, items: Iterable[str | bytes], *, key: str | None = None
    ) -> Iterator[list[float]]:
        """Yield the vector of each text."""
        yield from self._vectors(items, self.task)

    @staticmethod
    def _vectors(items: Iterable[str | bytes], task: str) -> list[list[float]]:
        texts = [item if isinstance(item, str) else item.decode() for item in items]
        vectors: list[list[float]] = shared("mini").encode(texts, task).tolist()
        return vectors


@hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Register the bundled model for documents, and for questions."""
    register(GembModel("gemb-mini", "document"))
    register(GembModel("gemb-mini-query", "query"))
