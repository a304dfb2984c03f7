"""Chroma: `create_collection("docs", embedding_function=GembEmbeddingFunction("mini"))`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemb.arrays import Vectors
from gemb.integrations.shared import shared

if TYPE_CHECKING:
    from gemb.embedding.model import Model

try:
    from chromadb.api.types import EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError:  # without it there is nothing to give the class to
    EmbeddingFunction = object

    def register_embedding_function(function: Any) -> Any:  # noqa: ANN401
        """Return the class."""
        return function


@register_embedding_function
class GembEmbeddingFunction(EmbeddingFunction):
    """The vectors of a model; a collection that is opened again finds it by its name."""

    def __init__(self, model: str = "mini", dim: int | None = None) -> None:
        """Take a reference, which is kept with the collection; `dim` is the width."""
        self.model, self.dim, self._download = model, dim, True

    def __call__(self, input: list[str]) -> list[Vectors]:  # noqa: A002 - Chroma's name
        """Return the vectors of documents."""
        return list(self._opened().encode_document(input, dim=self.dim))

    def embed_query(self, input: list[str]) -> list[Vectors]:  # noqa: A002
        """Return the vectors of questions."""
        return list(self._opened().encode_query(input, dim=self.dim))

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma stores it."""
        return "gemb"

    def default_space(self) -> str:
        """Return the distance that the vectors are for."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return what `build_from_config` takes."""
        return {"model": self.model, "dim": self.dim}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> GembEmbeddingFunction:
        """Return the function of a stored collection, which may be somebody else's: no download."""
        stored = GembEmbeddingFunction(**config)
        stored._download = False
        return stored

    def _opened(self) -> Model:
        return shared(self.model, download=self._download)
