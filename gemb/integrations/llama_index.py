"""LlamaIndex: `Settings.embed_model = GembEmbedding(model_name="mini")`."""

from __future__ import annotations

from gemb.integrations.shared import shared

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
except ImportError:  # without it there is nothing to give the class to
    BaseEmbedding = object


class GembEmbedding(BaseEmbedding):
    """The vectors of a model as lists of numbers."""

    model_name: str = "mini"  # any reference that `gemb embed -m` takes
    embed_batch_size: int = 64
    dim: int | None = None

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores it."""
        return "GembEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = shared(self.model_name).encode_query(query, dim=self.dim).tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        model = shared(self.model_name)
        vectors: list[list[float]] = model.encode_document(texts, dim=self.dim).tolist()
        return vectors
