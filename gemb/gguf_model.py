"""A GGUF file of EmbeddingGemma: opened, checked and described from its header alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemb.backend import ModelDescription, ModelProfile
from gemb.fingerprint import fingerprint
from gemb.gguf_checks import (
    ARCHITECTURE,
    MOST_LAYERS,
    check_architecture,
    check_both_kinds,
    check_tensors,
    check_tokenizer,
    equal,
    matryoshka,
    number,
    pattern,
    pooling,
    positive,
    wrong,
)
from gemb.gguf_header import Array, GgufHeader, read_header
from gemb.prompts import CARD


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """The numbers of a checked file; the tensors are not read."""

    header: GgufHeader
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    pooling: str  # mean, first or last
    dense: tuple[tuple[int, int], tuple[int, int]]  # (in, out) of the two dense layers
    is_sliding: tuple[bool, ...]  # by layer
    max_tokens: int
    vocabulary: int
    matryoshka_dims: tuple[int, ...]  # widest first
    prompts: Mapping[str, str]  # the file's own, or the model card's

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense[1][1]

    def profile(self) -> ModelProfile:
        """Return what a caller must know to use the open model."""
        return ModelProfile(
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=self.max_tokens,
            closing_tokens=1,
            prompts=self.prompts,
            dtype=self.types()["attention"],
            fingerprint=self.fingerprint(),
        )

    def description(self) -> ModelDescription:
        """Return what `gemb models show` prints."""
        from gemb.qat import gguf_types

        return ModelDescription(
            path=self.header.path,
            format="gguf",
            architecture=ARCHITECTURE,
            layers=self.layers,
            hidden=self.hidden,
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=self.max_tokens,
            vocabulary=self.vocabulary,
            parameters=sum(math.prod(tensor.shape) for tensor in self.header.tensors.values()),
            pooling=self.pooling,
            dense=self.dense,
            prompts=self.prompts,
            types=self.types(),
            size_bytes=self.header.size_bytes,
            fingerprint=self.fingerprint(),
            licence=str(self.header.metadata.get("general.license", "")),
            trained_types=gguf_types(self),
        )

    def types(self) -> dict[str, str]:
        """Return the types in each class of tensors: token_embd, attention, ffn, norm, dense."""
        found: dict[str, set[str]] = {}
        for name, tensor in self.header.tensors.items():
            found.setdefault(class_of(name), set()).add(tensor.type)
        return {kind: "+".join(sorted(types)) for kind, types in found.items()}

    def fingerprint(self) -> str:
        """Return the 16 hex digits of `gemb.fingerprint`; `general.*` (names) is left out."""
        header = self.header
        parts = []
        with header.path.open("rb") as file:
            for key, value in sorted(header.metadata.items()):
                if key.startswith("general."):
                    continue
                parts.append(key.encode())
                if isinstance(value, Array):
                    file.seek(value.begin)
                    parts.append(file.read(value.end - value.begin))
                else:
                    parts.append(repr(value).encode())
        tensors = sorted(header.tensors.values(), key=lambda tensor: tensor.name)
        return fingerprint(parts, ((header.path, t.offset, t.size_bytes) for t in tensors))


def open_gguf(path: Path) -> GgufModel:
    """Return the checked file.

    Raises:
        UsageError: it is broken, no EmbeddingGemma, or one that llama.cpp would compute wrongly.
    """
    header = read_header(path)
    check_architecture(header)
    layers = number(header, "block_count", most=MOST_LAYERS)
    hidden = number(header, "embedding_length")
    middle = number(header, "dense_2_feat_out", optional=True)
    heads = number(header, "attention.head_count")
    kv_heads = number(header, "attention.head_count_kv")
    head_dim = number(header, "attention.key_length")
    if heads % kv_heads or head_dim % 2:
        raise wrong(header, f"{heads} heads of {head_dim} on {kv_heads} key heads")
    equal(header, "attention.value_length", head_dim)
    equal(header, "rope.dimension_count", head_dim, optional=True)
    number(header, "attention.sliding_window")
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa"):
        positive(header, key)
    is_sliding = pattern(header, layers)
    check_both_kinds(header, is_sliding)
    vocabulary = check_tokenizer(header)
    model = GgufModel(
        header=header,
        layers=layers,
        hidden=hidden,
        feed_forward=number(header, "feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pooling=pooling(header),
        dense=((hidden, middle), (middle, hidden)),
        is_sliding=is_sliding,
        max_tokens=number(header, "context_length"),
        vocabulary=vocabulary,
        matryoshka_dims=matryoshka(header, hidden),
        prompts=_prompts(header),
    )
    check_tensors(header, hidden, middle, expected_shapes(model))
    return model


def _prompts(header: GgufHeader) -> dict[str, str]:
    own = {
        key.removeprefix("gemb.prompt."): words
        for key, words in header.metadata.items()
        if key.startswith("gemb.prompt.") and isinstance(words, str)
    }
    return own or {task: words for task, words in CARD.items() if words}


def expected_shapes(model: GgufModel) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor, the innermost dimension first."""
    D, F, E = model.hidden, model.feed_forward, model.head_dim
    H, K = model.heads, model.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (D, model.vocabulary),
        "output_norm": (D,),
        "dense_2": model.dense[0],
        "dense_3": model.dense[1],
    }
    layer = {
        "attn_norm": (D,),
        "attn_q": (D, H * E),
        "attn_k": (D, K * E),
        "attn_v": (D, K * E),
        "attn_output": (H * E, D),
        "attn_q_norm": (E,),
        "attn_k_norm": (E,),
        "post_attention_norm": (D,),
        "ffn_norm": (D,),
        "ffn_gate": (D, F),
        "ffn_up": (D, F),
        "ffn_down": (F, D),
        "post_ffw_norm": (D,),
    }
    for i in range(model.layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def class_of(name: str) -> str:
    """Return the class of a tensor: token_embd, attention, ffn, norm or dense."""
    if name.startswith(("token_embd", "dense")):
        return name.partition(".")[0].partition("_2")[0].partition("_3")[0]
    if "norm" in name:
        return "norm"
    return "ffn" if ".ffn_" in name else "attention"
