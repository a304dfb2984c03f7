"""Names of tensors, in a model folder and in a GGUF file (gguf `tensor_mapping.py`); classes."""

from __future__ import annotations

import re

# Without `.weight`, and those of a layer without its `layers.N.` or `blk.N.`; in a file's order.
_GGUF_NAMES = {
    "embed_tokens": "token_embd",
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
    "norm": "output_norm",
    "2_Dense.linear": "dense_2",
    "3_Dense.linear": "dense_3",
}
_FOLDER_NAMES = {name: stem for stem, name in _GGUF_NAMES.items()}


def gguf_name(name: str) -> str:
    """Return what a GGUF file calls a tensor of a folder."""
    return _translated(name, "layers", "blk", _GGUF_NAMES)


def folder_name(name: str) -> str:
    """Return what a folder calls a tensor of a GGUF file."""
    return _translated(name, "blk", "layers", _FOLDER_NAMES)


def _translated(name: str, from_layers: str, to_layers: str, names: dict[str, str]) -> str:
    stem = name.removesuffix(".weight")
    if layer := re.fullmatch(rf"{from_layers}\.(\d+)\.(.+)", stem):
        return f"{to_layers}.{layer[1]}.{names[layer[2]]}.weight"
    return f"{names[stem]}.weight"


# Class of tensors -> a pattern that finds their names: in a folder, in a GGUF file, in a module of
# PyTorch. Of several that find a name the first counts.
CLASS_PATTERNS = {
    "norm": r"norm\.weight$",  # always f32
    "token_embd": r"^(embed_tokens|token_embd)\.",
    "attention": r"\.(self_attn|attn_(q|k|v|output))\.",
    "ffn": r"\.(mlp|ffn_(gate|up|down))\.",
    "dense": r"^(\d_Dense|dense)[._]",
    "pooling": r"^(1_Pooling\.queries|pool_queries)$",  # of attention pooling; no GGUF file has it
}
_CLASS_PATTERNS = {kind: re.compile(pattern) for kind, pattern in CLASS_PATTERNS.items()}
CLASSES = ("token_embd", "attention", "ffn", "dense")  # those that may be quantized
# Sources of the figure: vLLM #24318, transformers #37226.
FP16_OVERFLOW = "EmbeddingGemma's activations reach 800,000, and fp16 ends at 65,504"
QAT_TYPES = ("q4_0", "q8_0", "bf16", "f32")  # that they may be trained for
BLOCK = 32  # numbers of a row that q4_0 and q8_0 pack together

# The matrices of a GGUF file, of all layers together -> a pattern that finds their names.
MATRICES = {name: rf"\b{name}\." for name in _GGUF_NAMES.values() if not name.endswith("norm")}


def tensor_class(name: str) -> str:
    """Return the class of a tensor, a key of `CLASS_PATTERNS`, by its name.

    Raises:
        ValueError: no tensor of EmbeddingGemma has such a name.
    """
    for kind, pattern in _CLASS_PATTERNS.items():
        if pattern.search(name):
            return kind
    raise ValueError(f"no tensor of EmbeddingGemma is called {name}")
