"""EmbeddingGemma, whole: bidirectional Gemma 3 blocks, pooling, two dense layers, L2.

Sequences are packed: their tokens stand one after the other in one row, so no arithmetic is spent
on padding; only attention and pooling know where a sequence ends (`packing.py`).

    T tokens of all sequences    D width of a token         F inner width of the feed-forward
    B sequences                  H query heads              M width of a vector
    L tokens of a sequence       K key/value heads          E width of a head

Parameters are named as in the files of the checkpoint (`weights.py`). They are fp32; for bf16, run
the model under autocast: the residual stream, the norms and the dense layers stay fp32.

Sources: EmbeddingGemma, arXiv 2509.20354; Gemma 3, arXiv 2503.19786; transformers
`models/gemma3/modeling_gemma3.py`; sentence-transformers `Dense` and `Pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemb.models.checkpoint import ATTENTION_HEADS
from gemb.models.config import GemmaConfig
from gemb_torch.model.fused import (
    add_rms_norm,
    gated,
    product_dtype,
    products,
    rms_norm,
    rotated_norm,
)
from gemb_torch.model.packing import Packing
from gemb_torch.model.pooling import pool


class Rotation(NamedTuple):
    """Cosine and sine of each token's position, fp32 [T, 1, E/2] each."""

    cos: Tensor
    sin: Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last axis, in fp32.

    The stored weight is the distance from one (transformers `Gemma3RMSNorm`).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the normed rows of x [T, D] in this type."""
        return rms_norm(x, self.weight, self.eps, dtype)

    def added(self, x: Tensor, update: Tensor) -> Tensor:
        """Return x plus the normed rows of the update, [T, D] both."""
        return add_rms_norm(x, update, self.weight, self.eps)


class Attention(nn.Module):
    """Each token looks at all tokens of its sequence, or at those within the window."""

    def __init__(self, config: GemmaConfig, *, is_sliding: bool) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.width = E
        self.scale = config.query_pre_attn_scalar**-0.5
        self.is_sliding = is_sliding
        self.q_proj = nn.Linear(D, self.heads * E, bias=False)
        self.k_proj = nn.Linear(D, self.key_heads * E, bias=False)
        self.v_proj = nn.Linear(D, self.key_heads * E, bias=False)
        self.o_proj = nn.Linear(self.heads * E, D, bias=False)
        self.q_norm = RMSNorm(E, config.rms_norm_eps)
        self.k_norm = RMSNorm(E, config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, packing: Packing) -> Tensor:
        """Return what each token of x [T, D] takes from the others, [T, D]."""
        H, K, E = self.heads, self.key_heads, self.width
        qkv = products(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q, k, v = torch.split(qkv.view(len(x), H + 2 * K, E), [H, K, K], 1)  # [T, H, E], ...
        q = rotated_norm(q, self.q_norm.weight, *rotation, self.q_norm.eps)
        k = rotated_norm(k, self.k_norm.weight, *rotation, self.k_norm.eps)
        attended = attend(q, k, v, packing, scale=self.scale, is_sliding=self.is_sliding)
        return products(attended.flatten(-2), self.o_proj.weight)


class FeedForward(nn.Module):
    """down(gelu(gate(x)) * up(x)), with the tanh form of gelu."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, inner, bias=False)
        self.up_proj = nn.Linear(D, inner, bias=False)
        self.down_proj = nn.Linear(inner, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [T, D] for x [T, D]."""
        inner = gated(products(x, self.gate_proj.weight, self.up_proj.weight))
        return products(inner, self.down_proj.weight)


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before and a norm after."""

    def __init__(self, config: GemmaConfig, *, is_sliding: bool) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, is_sliding=is_sliding)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(D, eps)
        self.post_attention_layernorm = RMSNorm(D, eps)
        self.pre_feedforward_layernorm = RMSNorm(D, eps)
        self.post_feedforward_layernorm = RMSNorm(D, eps)

    def forward(self, x: Tensor, rotation: Rotation, packing: Packing) -> Tensor:
        """Return the residual stream after this layer, [T, D]."""
        return self.fed(self.attended(x, rotation, packing))

    def attended(self, x: Tensor, rotation: Rotation, packing: Packing) -> Tensor:
        """Return the residual stream after the first half, attention, [T, D]."""
        attended = self.self_attn(self.input_layernorm(x, product_dtype(x)), rotation, packing)
        return self.post_attention_layernorm.added(x, attended)

    def fed(self, x: Tensor) -> Tensor:
        """Return the residual stream after the second half, the feed-forward, [T, D]."""
        inner = self.mlp(self.pre_feedforward_layernorm(x, product_dtype(x)))
        return self.post_feedforward_layernorm.added(x, inner)


class EmbeddingGemma(nn.Module):
    """Token ids in, unit vectors out."""

    def __init__(
        self,
        config: GemmaConfig,
        dense: tuple[tuple[int, int], tuple[int, int]],
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.config = config
        self.pooling = pooling
        self.recomputes = False  # layers again in the backward pass, for less memory (training)
        # `nn.Embedding(V, D)` draws numbers, which on the meta device imports the compiler: 1.3 s.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(
            Block(config, is_sliding=is_sliding) for is_sliding in config.is_sliding
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pool_queries: nn.Parameter | None = None
        if pooling == "attention":
            self.pool_queries = nn.Parameter(torch.zeros(ATTENTION_HEADS, config.hidden_size))
        self.dense = nn.ModuleList(nn.Linear(*size, bias=False) for size in dense)

    def forward(self, ids: Tensor, packing: Packing, rows: Tensor | None = None) -> Tensor:
        """Return unit vectors, fp32 [B, M], for token ids [T] packed as `packing` says.

        Where `rows` [R, D] are given, ids are places in them, not in the token table: training
        gathers a step's rows once, so that no gradient is as big as the table.
        """
        hidden = self.hidden(ids, packing, rows)
        with torch.autocast(ids.device.type, enabled=False):  # little work, and the last rounding
            pooled = pool(hidden, packing, self.pooling, self.pool_queries)
            for layer in self.dense:
                pooled = layer(pooled)
        return F.normalize(pooled, dim=-1)

    def hidden(self, ids: Tensor, packing: Packing, rows: Tensor | None = None) -> Tensor:
        """Return the last layer's normed states [T, D]."""
        config = self.config
        x = self.embed_tokens(ids) if rows is None else F.embedding(ids, rows)
        x = x * config.hidden_size**0.5
        everywhere = rotation(packing.positions, config.head_dim, config.rope_theta)
        nearby = rotation(packing.positions, config.head_dim, config.rope_local_theta)
        for block in self.blocks():
            turns = nearby if block.self_attn.is_sliding else everywhere
            if self.recomputes:
                x = checkpoint(block, x, turns, packing, use_reentrant=False)
            else:
                x = block(x, turns, packing)
        return self.norm(x, x.dtype)  # type: ignore[no-any-return]

    def blocks(self) -> Iterator[Block]:
        """Yield the layers in order; `layers` says the same with a looser type."""
        for layer in self.layers:
            assert isinstance(layer, Block)
            yield layer


def rotation(positions: Tensor, width: int, base: float) -> Rotation:
    """Return the angles position / base^(2i / E) of i in 0 .. E/2 (RoFormer, arXiv 2104.09864)."""
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    angles = positions.float()[:, None] / base**exponents  # [T, E/2]
    return Rotation(angles.cos()[:, None], angles.sin()[:, None])


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, scale: float, is_sliding: bool
) -> Tensor:
    """Return softmax(q k^T scale) v within each sequence.

    Args:
        q: queries [T, H, E]; the result has its shape.
        k: keys [T, K, E].
        v: values [T, K, E].
        packing: where the sequences stand.
        scale: of the products.
        is_sliding: whether the window holds.
    """
    H, K, E = q.shape[1], k.shape[1], q.shape[2]
    results = []
    for group, *ours in zip(packing.groups, *map(packing.parts, (q, k, v)), strict=True):
        n, L, per_key = group.count, group.longest, H // K
        queries, keys, values = map(group.padded, ours)
        # The query heads of one key head are so many more queries: no copies of the keys.
        queries = queries.view(n, L, K, per_key, E).transpose(1, 2)  # [n, K, L, H/K, E]
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # [n, K, L, E]
        parts = []
        for span in group.spans(is_sliding=is_sliding):
            mask = span.mask
            if mask is not None and mask.shape[-2] > 1:
                mask = mask.repeat_interleave(per_key, -2)
            attended = F.scaled_dot_product_attention(
                queries[:, :, span.queries].flatten(2, 3),
                keys[:, :, span.keys],
                values[:, :, span.keys],
                attn_mask=mask,
                scale=scale,
            )
            parts.append(attended.view(n, K, -1, per_key, E))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        results.append(group.packed(attended.transpose(1, 2).reshape(n, L, H, E)))
    return torch.cat(results)
