"""LangChain: `GembEmbeddings("mini")` wherever an `Embeddings` is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemb.integrations.shared import shared

if TYPE_CHECKING:
    from gemb.embedding.model import Model

try:
    from langchain_core.embeddings import Embeddings
except ImportError:  # the class does the same without it
    Embeddings = object


class GembEmbeddings(Embeddings):
    """The vectors of a model as lists of numbers; its threads may be several."""

    def __init__(self, model: Model | str = "mini", *, dim: int | None = None) -> None:
        """Take an open model, or a reference; `dim` is the width of the vectors."""
        self.model, self.dim = model, dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents, with the prompt of documents."""
        vectors: list[list[float]] = (
            shared(self.model).encode_document(texts, dim=self.dim).tolist()
        )
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question, with the prompt of questions."""
        vector: list[float] = shared(self.model).encode_query(text, dim=self.dim).tolist()
        return vector
