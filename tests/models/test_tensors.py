"""Names and classes of tensors: one answer for a folder's, a GGUF file's and a module's names."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from gemb.models.tensors import (
    CLASS_PATTERNS,
    CLASSES,
    MATRICES,
    QAT_TYPES,
    folder_name,
    gguf_name,
    tensor_class,
)
from gemb.recipe.schema import QatType

# Folder's name, GGUF file's name, class.
NAMES = [
    ("embed_tokens.weight", "token_embd.weight", "token_embd"),
    ("norm.weight", "output_norm.weight", "norm"),
    ("2_Dense.linear.weight", "dense_2.weight", "dense"),
    ("3_Dense.linear.weight", "dense_3.weight", "dense"),
    ("layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", "norm"),
    ("layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", "attention"),
    ("layers.2.self_attn.k_proj.weight", "blk.2.attn_k.weight", "attention"),
    ("layers.3.self_attn.v_proj.weight", "blk.3.attn_v.weight", "attention"),
    ("layers.23.self_attn.o_proj.weight", "blk.23.attn_output.weight", "attention"),
    ("layers.4.self_attn.q_norm.weight", "blk.4.attn_q_norm.weight", "norm"),
    ("layers.5.self_attn.k_norm.weight", "blk.5.attn_k_norm.weight", "norm"),
    ("layers.6.post_attention_layernorm.weight", "blk.6.post_attention_norm.weight", "norm"),
    ("layers.7.pre_feedforward_layernorm.weight", "blk.7.ffn_norm.weight", "norm"),
    ("layers.8.mlp.gate_proj.weight", "blk.8.ffn_gate.weight", "ffn"),
    ("layers.9.mlp.up_proj.weight", "blk.9.ffn_up.weight", "ffn"),
    ("layers.10.mlp.down_proj.weight", "blk.10.ffn_down.weight", "ffn"),
    ("layers.11.post_feedforward_layernorm.weight", "blk.11.post_ffw_norm.weight", "norm"),
]


@pytest.mark.parametrize(("folder", "gguf", "kind"), NAMES)
def test_a_tensor_has_one_class_under_both_names(folder: str, gguf: str, kind: str):
    assert (gguf_name(folder), folder_name(gguf)) == (gguf, folder)
    assert tensor_class(folder) == tensor_class(gguf) == kind
    matrices = [name for name, pattern in MATRICES.items() if re.search(pattern, gguf)]
    assert len(matrices) == (kind != "norm"), "each matrix is of one kind, and a norm of none"
    # A class's pattern alone finds its matrices in a GGUF file: quantization is told so.
    found = [one for one in CLASSES if re.search(CLASS_PATTERNS[one], gguf)]
    assert found == ([kind] if kind in CLASSES else [])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("1_Pooling.queries", "pooling"),
        ("pool_queries", "pooling"),
        ("dense.0.weight", "dense"),
        ("dense.1.weight", "dense"),
    ],
)
def test_names_of_a_module_and_of_attention_pooling(name: str, kind: str):
    assert tensor_class(name) == kind


def test_another_models_tensor_has_no_class():
    with pytest.raises(ValueError, match=r"no tensor of EmbeddingGemma is called lm_head\.weight"):
        tensor_class("lm_head.weight")


def test_a_recipe_takes_the_types_that_may_be_trained_for():
    assert set(get_args(QatType)) == set(QAT_TYPES)
