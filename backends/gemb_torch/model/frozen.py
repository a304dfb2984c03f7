"""The arithmetic of `model.py`, arranged for speed on a CPU where nothing is trained.

On a CPU with bf16 matrix units the products are so fast that most of the plain model's time goes
to element-wise steps, each a walk over memory, and to laying out the weights anew at each product.
So here:

    - weights are laid out for oneDNN once, by the operators that torch.compile's freezing uses;
    - q, k and v are one product; gelu, and the product with `up`, happen inside the products;
    - the (1 + w) of a norm before a product is part of the product's weight;
    - rotary pairs stand side by side, so that a rotation is one complex product: the rows of the q
      and k weights are reordered alike, which leaves every q·k as it was;
    - the two dense layers and the last norm's (1 + w) are one matrix, multiplied in fp64; the
      queries of attention pooling hold that (1 + w), too.

With bf16 products the residual stream and the norms are fp32 still. Letters as in `model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gemb_torch.model.model import Block, EmbeddingGemma, attend, rotation
from gemb_torch.model.packing import Packing
from gemb_torch.model.pooling import pool

Rotations = tuple[Tensor, Tensor]  # of global and of sliding layers, complex [T, 1, E/2] each

_ROWS_HINT = 512  # tokens a product is laid out for; any number works


@dataclass(frozen=True, kw_only=True)
class FrozenBlock:
    """One layer: matrices in oneDNN's layout, vectors fp32."""

    is_sliding: bool
    query_key_value: Tensor  # [(H + 2K) E, D]
    head_weights: Tensor  # 1 + w of the q and k norms, [H + K, E]
    output: Tensor  # [D, H E]
    after_attention: Tensor  # 1 + w, [D]
    gate: Tensor  # [F, D]
    up: Tensor  # [F, D]
    down: Tensor  # [D, F]
    after_feed_forward: Tensor  # 1 + w, [D]


def can_freeze(dtype: torch.dtype) -> bool:
    """Return whether this torch and this CPU have the operators, for this dtype of products."""
    if not torch._C._has_mkldnn:
        return False
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class FrozenEncoder:
    """An EmbeddingGemma that only encodes. Threads may share it."""

    @torch.inference_mode()
    def __init__(self, model: EmbeddingGemma, dtype: torch.dtype) -> None:
        """Take the weights of the model; matrix products are computed in `dtype`."""
        self.config = model.config
        self.dtype = dtype
        self.embeddings = model.embed_tokens.weight
        self.blocks = [_freeze(block, dtype) for block in model.blocks()]
        self.pooling = model.pooling
        queries = model.pool_queries
        last_norm = _one_plus(model.norm.weight)
        self.pool_queries = None if queries is None else queries.float() * last_norm
        first, second = (layer.state_dict()["weight"].double() for layer in model.dense)
        self.dense = (second @ first * last_norm.double()).float()  # [M, D]

    @torch.inference_mode()
    def __call__(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return unit vectors, fp32 [B, M], for token ids [T] packed as `packing` says."""
        x, rotations = self.begin(ids, packing)
        for layer in range(len(self.blocks)):
            self.step(layer, x, rotations, packing)
        return self.end(x, packing)

    @torch.inference_mode()
    def begin(self, ids: Tensor, packing: Packing) -> tuple[Tensor, Rotations]:
        """Return the residual stream before the first layer, fp32 [T, D], and the rotations."""
        config = self.config
        x = F.embedding(ids, self.embeddings).float() * config.hidden_size**0.5
        everywhere, nearby = (
            torch.complex(*rotation(packing.positions, config.head_dim, base))
            for base in (config.rope_theta, config.rope_local_theta)
        )
        return x, (everywhere, nearby)

    @torch.inference_mode()
    def step(self, layer: int, x: Tensor, rotations: Rotations, packing: Packing) -> Tensor:
        """Let a layer act on the residual stream x [T, D], in place, and return it."""
        block = self.blocks[layer]
        self._attention(x, block, rotations[block.is_sliding], packing)
        self._feed_forward(x, block)
        return x

    @torch.inference_mode()
    def end(self, x: Tensor, packing: Packing) -> Tensor:
        """Return unit vectors, fp32 [B, M], of the residual stream x [T, D], which is used up."""
        x *= self._inverse_rms(x)
        pooled = pool(x, packing, self.pooling, self.pool_queries)
        return F.normalize(F.linear(pooled, self.dense), dim=-1)

    def _attention(self, x: Tensor, block: FrozenBlock, turns: Tensor, packing: Packing) -> None:
        config = self.config
        H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv = _product(self._normed(x), block.query_key_value).view(len(x), -1, E)
        v = qkv[:, H + K :]
        heads = qkv[:, : H + K].float()
        heads *= self._inverse_rms(heads)
        heads *= block.head_weights
        pairs = torch.view_as_complex(heads.view(len(x), H + K, E // 2, 2))
        pairs *= turns
        rotated = heads.to(self.dtype)
        q, k = rotated[:, :H], rotated[:, H:]
        scale = config.query_pre_attn_scalar**-0.5
        attended = attend(q, k, v, packing, scale=scale, is_sliding=block.is_sliding)
        update = _product(attended.flatten(-2), block.output)
        self._add_normed(x, update, block.after_attention)

    def _feed_forward(self, x: Tensor, block: FrozenBlock) -> None:
        normed = self._normed(x)
        gate = torch.ops.mkldnn._linear_pointwise(normed, block.gate, None, "gelu", [], "tanh")
        inner = torch.ops.mkldnn._linear_pointwise.binary(normed, gate, block.up, None, "mul")
        self._add_normed(x, _product(inner, block.down), block.after_feed_forward)

    def _normed(self, x: Tensor) -> Tensor:
        return (x * self._inverse_rms(x)).to(self.dtype)

    def _add_normed(self, x: Tensor, update: Tensor, weight: Tensor) -> None:
        update = update.float()
        update *= self._inverse_rms(update)
        x.addcmul_(update, weight)

    def _inverse_rms(self, x: Tensor) -> Tensor:
        """Return 1 / rms of the rows of x [..., width], fp32 [..., 1]."""
        norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return norms.square_().div_(x.shape[-1]).add_(self.config.rms_norm_eps).rsqrt_()


def _product(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def _freeze(block: Block, dtype: torch.dtype) -> FrozenBlock:
    attention, mlp = block.self_attn, block.mlp
    E = attention.width
    side_by_side = torch.arange(E).view(2, E // 2).t().flatten()  # 0, E/2, 1, E/2 + 1, ...
    q, k = (
        weight.view(-1, E, weight.shape[1])[:, side_by_side].flatten(0, 1)
        for weight in (attention.q_proj.weight, attention.k_proj.weight)
    )
    qkv = torch.cat([q, k, attention.v_proj.weight])
    head_weights = torch.cat(
        [
            _one_plus(attention.q_norm.weight)[side_by_side].expand(attention.heads, E),
            _one_plus(attention.k_norm.weight)[side_by_side].expand(attention.key_heads, E),
        ]
    )
    before_attention = _one_plus(block.input_layernorm.weight)
    before_feed_forward = _one_plus(block.pre_feedforward_layernorm.weight)

    def laid_out(weight: Tensor, norm: Tensor | None = None) -> Tensor:
        weight = weight.float() if norm is None else weight.float() * norm
        result: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            weight.to(dtype).contiguous(), _ROWS_HINT
        )
        return result

    return FrozenBlock(
        is_sliding=attention.is_sliding,
        query_key_value=laid_out(qkv, before_attention),
        head_weights=head_weights,
        output=laid_out(attention.o_proj.weight),
        after_attention=_one_plus(block.post_attention_layernorm.weight),
        gate=laid_out(mlp.gate_proj.weight, before_feed_forward),
        up=laid_out(mlp.up_proj.weight, before_feed_forward),
        down=laid_out(mlp.down_proj.weight),
        after_feed_forward=_one_plus(block.post_feedforward_layernorm.weight),
    )


def _one_plus(weight: Tensor) -> Tensor:
    return 1 + weight.float()
