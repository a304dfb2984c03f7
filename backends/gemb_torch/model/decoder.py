"""Gemma 3's decoder, and the same with cross-attention, as T5Gemma has it.

Between a layer's two halves a third looks at the encoder's states, with norms before and after it
like the others. Queries and keys of cross-attention are normed as Gemma 3 norms its own, and not
rotated: positions in two texts are not comparable. Without an encoder's states this is Gemma 3.

T5Gemma (arXiv 2504.06225; transformers `models/t5gemma`) has the same layers of Gemma 2: no norms
of queries and keys, capped logits, one rotation for all layers, a table for each side. T5Gemma 2
(arXiv 2512.14856; `models/t5gemma2`) is of Gemma 3 and shares the table, as here, but merges
cross-attention into self-attention. EmbeddingGemma's paper names the first, and is older than the
second.

    T tokens of all targets    S tokens of all inputs    D width of a token
    H query heads    K key/value heads    E width of a head
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemb.models.config import GemmaConfig
from gemb_torch.model.fused import product_dtype, products
from gemb_torch.model.model import Block, RMSNorm, Rotation, rotation
from gemb_torch.model.packing import Packing


class Memory(NamedTuple):
    """What a decoder sees of the encoder."""

    states: Tensor  # of the inputs' tokens, [S, D]
    targets: Packing  # the targets, in groups
    inputs: Packing  # the inputs, in groups of as many


class CrossAttention(nn.Module):
    """Each token of a target looks at all tokens of its input."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.width = E
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(D, self.heads * E, bias=False)
        self.k_proj = nn.Linear(D, self.key_heads * E, bias=False)
        self.v_proj = nn.Linear(D, self.key_heads * E, bias=False)
        self.o_proj = nn.Linear(self.heads * E, D, bias=False)
        self.q_norm = RMSNorm(E, config.rms_norm_eps)
        self.k_norm = RMSNorm(E, config.rms_norm_eps)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Return what each token of x [T, D] takes from its input, [T, D]."""
        H, K, E = self.heads, self.key_heads, self.width
        q = products(x, self.q_proj.weight).view(len(x), H, E)
        both = products(memory.states, self.k_proj.weight, self.v_proj.weight)
        k, v = torch.split(both.view(len(memory.states), 2 * K, E), [K, K], 1)  # [S, K, E]
        q, k = self.q_norm(q, q.dtype), self.k_norm(k, k.dtype)
        return products(attend_across(q, k, v, memory, self.scale).flatten(-2), self.o_proj.weight)


class DecoderBlock(nn.Module):
    """A layer of Gemma 3 with cross-attention between its halves."""

    def __init__(self, config: GemmaConfig, *, is_sliding: bool) -> None:
        super().__init__()
        self.own = Block(config, is_sliding=is_sliding)
        self.cross_attn = CrossAttention(config)
        self.pre_cross_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_cross_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotation: Rotation, packing: Packing, memory: Memory | None
    ) -> Tensor:
        """Return the residual stream after this layer, [T, D]."""
        x = self.own.attended(x, rotation, packing)
        if memory is not None:
            normed = self.pre_cross_attn_layernorm(x, product_dtype(x))
            x = self.post_cross_attn_layernorm.added(x, self.cross_attn(normed, memory))
        return self.own.fed(x)

    def copy_self_attention(self) -> None:
        """Let cross-attention begin as self-attention, its norms too (T5Gemma)."""
        self.cross_attn.load_state_dict(self.own.self_attn.state_dict())
        for new, old in (
            (self.pre_cross_attn_layernorm, self.own.input_layernorm),
            (self.post_cross_attn_layernorm, self.own.post_attention_layernorm),
        ):
            new.load_state_dict(old.state_dict())


class Decoder(nn.Module):
    """Embedded tokens in, states out; the token table belongs to the encoder, too."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.recomputes = False  # layers again in the backward pass, for less memory
        self.layers = nn.ModuleList(
            DecoderBlock(config, is_sliding=is_sliding) for is_sliding in config.is_sliding
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, packing: Packing, memory: Memory | None = None) -> Tensor:
        """Return the last layer's normed states, [T, D].

        Args:
            x: rows of the token table, [T, D].
            packing: of the targets; causal.
            memory: the inputs; None: a language model without any.
        """
        config = self.config
        x = x * config.hidden_size**0.5
        everywhere = rotation(packing.positions, config.head_dim, config.rope_theta)
        nearby = rotation(packing.positions, config.head_dim, config.rope_local_theta)
        for block, is_sliding in zip(self.layers, config.is_sliding, strict=True):
            turns = nearby if is_sliding else everywhere
            if self.recomputes:
                x = checkpoint(block, x, turns, packing, memory, use_reentrant=False)
            else:
                x = block(x, turns, packing, memory)
        return self.norm(x, x.dtype)  # type: ignore[no-any-return]

    def cross_attentions(self) -> nn.ModuleList:
        """Return all that no decoder has alone, as one module."""
        modules = nn.ModuleList()
        for block in self.layers:
            assert isinstance(block, DecoderBlock)
            modules += [
                block.cross_attn,
                block.pre_cross_attn_layernorm,
                block.post_cross_attn_layernorm,
            ]
        return modules


def attend_across(q: Tensor, k: Tensor, v: Tensor, memory: Memory, scale: float) -> Tensor:
    """Return softmax(q k^T scale) v of each target and its input.

    Args:
        q: queries of the targets, [T, H, E]; the result has its shape.
        k: keys of the inputs, [S, K, E].
        v: values of the inputs, [S, K, E].
        memory: where both stand.
        scale: of the products.
    """
    H, K, E = q.shape[1], k.shape[1], q.shape[2]
    results = []
    for target, source, *ours in zip(
        memory.targets.groups,
        memory.inputs.groups,
        memory.targets.parts(q),
        memory.inputs.parts(k),
        memory.inputs.parts(v),
        strict=True,
    ):
        n, L, per_key = target.count, target.longest, H // K
        queries = target.padded(ours[0]).view(n, L, K, per_key, E).transpose(1, 2).flatten(2, 3)
        keys, values = (source.padded(part).transpose(1, 2) for part in ours[1:])  # [n, K, L', E]
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=source.mask, scale=scale
        )
        attended = attended.view(n, K, L, per_key, E).transpose(1, 2).reshape(n, L, H, E)
        results.append(target.packed(attended))
    return torch.cat(results)
