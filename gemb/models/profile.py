"""What is known of a model: of an open one by its profile, of its files by their description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import UsageError

if TYPE_CHECKING:
    from gemb.arrays import TokenIds

CARD_DIMS = (768, 512, 256, 128)  # the sizes EmbeddingGemma-300M was trained for (model card)
CLOSING_TOKENS = 1  # Gemma's tokenizer ends a text with EOS


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """What a caller must know of an open model to use it rightly."""

    dim: int  # width of a vector
    matryoshka_dims: tuple[int, ...]  # widths that were trained, widest first; holds `dim`
    max_tokens: int  # trained context, the tokenizer's own tokens included
    closing_tokens: int  # how many of the tokenizer's own tokens end a text (EOS: 1)
    prompts: Mapping[str, str]  # prompt name -> the words before the text, as sentence-transformers
    dtype: str  # of the arithmetic or the weights: fp32, bf16, q4_0, ...
    fingerprint: str  # 16 hex digits of the weights, tokenizer and configuration
    default_dim: int = 0  # width where none is asked for, one of `matryoshka_dims`; 0: `dim`
    engine: str = ""  # what runs it: "onnx int8 (onnxruntime 1.32.0)"; empty: it is not told
    draft_of: tuple[str, ...] = ()  # fingerprints of models in whose space the vectors lie, too

    @property
    def width(self) -> int:
        """Width of a vector where none is asked for."""
        return self.default_dim or self.dim

    @property
    def widths(self) -> tuple[int, ...]:
        """The trained widths up to `width`, widest first."""
        return tuple(dim for dim in self.matryoshka_dims if dim <= self.width)

    def cut(self, ids: TokenIds) -> TokenIds:
        """Return the ids of a text, cut to what the model takes: see `cut_ids`."""
        return cut_ids(ids, self.max_tokens, self.closing_tokens)


def cut_ids(ids: TokenIds, max_tokens: int, closing_tokens: int) -> TokenIds:
    """Return at most `max_tokens` ids: the first ones, then the last `closing_tokens` of the text.

    A model that was trained on texts that end with EOS gives another vector to one without it.

    Args:
        ids: of one text, int32 [tokens].
        max_tokens: at least `closing_tokens`.
        closing_tokens: how many ids at the end stay: `ModelProfile.closing_tokens`.
    """
    if len(ids) <= max_tokens:
        return ids
    import numpy as np

    return np.concatenate([ids[: max_tokens - closing_tokens], ids[len(ids) - closing_tokens :]])


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What a model's files say of it: `gemb models show` prints this."""

    path: Path
    format: str  # gguf or sentence-transformers
    architecture: str  # as the files name it: gemma-embedding, gemma3_text
    layers: int
    hidden: int  # width inside the network
    dim: int  # width of a vector
    matryoshka_dims: tuple[int, ...]  # widths that were trained, widest first; holds `dim`
    max_tokens: int  # trained context, the tokenizer's own tokens included
    vocabulary: int  # tokens
    parameters: int  # numbers in all tensors
    pooling: str  # mean, first, last or attention
    dense: tuple[tuple[int, int], ...]  # (in, out) of each dense layer after the pooling, in order
    prompts: Mapping[str, str]  # prompt name -> the words before the text
    types: Mapping[str, str]  # token_embd, attention, ffn, norm, dense -> q4_0, f32+bf16, ...
    size_bytes: int  # of the files that a run needs
    fingerprint: str  # as `ModelProfile.fingerprint`
    licence: str  # as the files say it: gemma; empty where they say nothing
    trained_types: Mapping[str, str] = field(default_factory=dict)  # QAT: class -> q4_0, ...
    default_dim: int = 0  # as `ModelProfile.default_dim`

    @property
    def width(self) -> int:
        """Return the width of a vector where none is asked for."""
        return self.default_dim or self.dim

    adapter: str = ""  # that is merged: LoRA, rank 16, of BASE; empty: none
    draft_of: tuple[str, ...] = ()  # as `ModelProfile.draft_of`


def check_dims(dims: Sequence[int], trained: Sequence[int]) -> None:
    """Refuse a width that a model was not trained for.

    Raises:
        UsageError: one of `dims` is not among the `trained` ones.
    """
    for dim in dims:
        if dim not in trained:
            widths = ", ".join(map(str, trained))
            raise UsageError(f"{dim} dimensions: the model was trained for {widths}")
