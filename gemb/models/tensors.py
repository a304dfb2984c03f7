"""Names of tensors: in a model folder, and in a GGUF file (gguf `tensor_mapping.py`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_OUTER = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "2_Dense.linear": "dense_2",
    "3_Dense.linear": "dense_3",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OUTER_BACK = {name: plain for plain, name in _OUTER.items()}
_INNER_BACK = {name: plain for plain, name in _INNER.items()}


def gguf_name(name: str) -> str:
    """Return what the file calls a tensor of the folder."""
    stem = name.removesuffix(".weight")
    if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", stem):
        return f"blk.{layer[1]}.{_INNER[layer[2]]}.weight"
    return f"{_OUTER[stem]}.weight"


def folder_name(name: str) -> str:
    """Return what the folder calls a tensor of the file."""
    stem = name.removesuffix(".weight")
    if layer := re.fullmatch(r"blk\.(\d+)\.(.+)", stem):
        return f"layers.{layer[1]}.{_INNER_BACK[layer[2]]}.weight"
    return f"{_OUTER_BACK[stem]}.weight"


CLASSES = ("token_embd", "attention", "ffn", "dense")
BLOCK = 32  # numbers of a row that q4_0 and q8_0 pack together


def tensor_class(name: str) -> str:
    """Return which of `CLASSES` a tensor of a folder is of, by its name; norm, or pooling."""
    if name.endswith("norm.weight"):
        return "norm"
    if name.startswith("embed_tokens."):
        return "token_embd"
    if name in ("1_Pooling.queries", "pool_queries"):
        return "pooling"
    if ".self_attn." in name:
        return "attention"
    return "ffn" if ".mlp." in name else "dense"
