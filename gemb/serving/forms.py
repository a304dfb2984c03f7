"""The bodies of requests, as other servers define them; unknown fields are ignored, as they do.

Sources: openai-python `resources/embeddings.py`; text-embeddings-inference
`router/src/http/types.rs`; Ollama `docs/api.md`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class OpenAIEmbeddings(msgspec.Struct):
    """`POST /v1/embeddings`."""

    input: str | list[Any]
    model: str
    dimensions: int | None = None
    encoding_format: str = "float"
    prompt_name: str | None = None  # not OpenAI's
    input_type: str | None = None  # Cohere's, Voyage's and NVIDIA's
    truncate: bool | str = True  # not OpenAI's


class TEIEmbed(msgspec.Struct):
    """`POST /embed` of text-embeddings-inference."""

    inputs: str | list[Any]
    truncate: bool | None = None
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: int | None = None


class TEIRerank(msgspec.Struct):
    """`POST /rerank` of text-embeddings-inference."""

    query: str
    texts: list[Any]
    truncate: bool | None = None
    raw_scores: bool = False
    return_text: bool = False


class OllamaEmbed(msgspec.Struct):
    """`POST /api/embed` of Ollama."""

    model: str
    input: str | list[Any]
    truncate: bool = True
    dimensions: int | None = None


class Search(msgspec.Struct):
    """`POST /v1/search`: gemb's own."""

    query: str
    index: str | None = None  # may be left out where there is one
    k: int = 10
    where: str | None = None
    min_score: float | None = None
    weak: bool = False
    hybrid: bool = False
