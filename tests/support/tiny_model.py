"""Write a tiny random EmbeddingGemma folder, as transformers and sentence-transformers read it.

The tokenizer is built as Gemma's is: BPE with byte fallback, spaces as U+2581, merges that are all
the splits of each token in the order of the token's score, newline runs as added tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gemb.models.checkpoint import dense_size, expected_shapes, open_checkpoint
from gemb.models.config import read_config

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
ADDED = ["<unused0>", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "<h1>"]
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
}
TEXT = """the quick brown fox jumps over the lazy dog while title none text task search result
query sentence similarity and what is the planet known as the red planet in the sky of night
def main(args): return sum(x for x in args if x) # 0123456789 der die das und ist nicht ein
le la les des est dans une pour el los que en del por con para
как что это она они 日本語 中文 한국어"""


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes that keep every rule of the real model: grouped heads, a window, both layer kinds."""

    hidden_size: int = 96
    intermediate_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int = 32
    dense_middle: int = 160
    sliding_window: int = 16
    sliding_window_pattern: int = 2
    max_tokens: int = 256
    seed: int = 0


def write_tiny_model(folder: Path, shape: TinyShape) -> Path:
    """Write the folder and return it."""
    for name in ("1_Pooling", "2_Dense", "3_Dense"):
        (folder / name).mkdir(parents=True)
    vocab_size = _write_tokenizer(folder)
    _write_configs(folder, shape, vocab_size)
    generator = np.random.default_rng(shape.seed)
    _write_weights(folder, generator)
    return folder


def _write_configs(folder: Path, shape: TinyShape, vocab_size: int) -> None:
    D, M = shape.hidden_size, shape.dense_middle
    layers = range(1, shape.num_hidden_layers + 1)
    kinds = ["full" if i % shape.sliding_window_pattern == 0 else "sliding" for i in layers]
    _json(
        folder / "config.json",
        {
            "architectures": ["Gemma3TextModel"],
            "model_type": "gemma3_text",
            "_sliding_window_pattern": shape.sliding_window_pattern,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "dtype": "float32",
            "head_dim": shape.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": D,
            "intermediate_size": shape.intermediate_size,
            "layer_types": [f"{kind}_attention" for kind in kinds],
            "max_position_embeddings": shape.max_tokens,
            "num_attention_heads": shape.num_attention_heads,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_key_value_heads": shape.num_key_value_heads,
            "query_pre_attn_scalar": shape.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": shape.sliding_window,
            "use_bidirectional_attention": True,
            "vocab_size": vocab_size,
        },
    )
    kinds_of_module = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds_of_module, paths, strict=True))
    ]
    _json(folder / "modules.json", modules)
    _json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": D,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "include_prompt": True,
        },
    )
    for path, size_in, size_out in (("2_Dense", D, M), ("3_Dense", M, D)):
        _json(
            folder / path / "config.json",
            {
                "in_features": size_in,
                "out_features": size_out,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "matryoshka_dims": [D, D // 2],
        },
    )
    _json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": shape.max_tokens, "do_lower_case": False},
    )


def _write_weights(folder: Path, generator: np.random.Generator) -> None:
    config = read_config(folder / "config.json")
    dense = [dense_size(folder / path / "config.json") for path in ("2_Dense", "3_Dense")]
    backbone, heads = {}, {}
    for name, shape in expected_shapes(config, dense).items():
        if len(shape) == 1:
            values = generator.normal(0, 0.2, shape)  # norms: 1 + w
        elif name.startswith("embed"):
            values = generator.normal(0, 1 / np.sqrt(shape[1]), shape)
        else:
            values = generator.normal(0, 1.5 / np.sqrt(shape[1]), shape)
        target = heads if "linear" in name else backbone
        target[name] = values.astype(np.float32)
    save_file(backbone, folder / "model.safetensors", {"format": "pt"})
    for path in ("2_Dense", "3_Dense"):
        weight = heads[f"{path}.linear.weight"]
        save_file({"linear.weight": weight}, folder / path / "model.safetensors")
    open_checkpoint(folder)


def _write_tokenizer(folder: Path) -> int:
    """Write tokenizer.json and tokenizer_config.json; return the number of tokens."""
    vocab = SPECIAL + ADDED + [f"<0x{byte:02X}>" for byte in range(256)]
    learned = _learn(TEXT.replace(" ", "▁"), merges=300)
    characters = [*sorted(set(TEXT.replace(" ", "▁")) - {"\n"}), "\n"]
    vocab += [token for token in learned if token not in vocab] + characters
    ids = {token: i for i, token in enumerate(vocab)}
    added = [(name, name in SPECIAL[:4]) for name in SPECIAL + ADDED]
    _json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": ids[name],
                    "content": name,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": special,
                }
                for name, special in added
            ],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<eos>", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    "<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]},
                    "<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]},
                },
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": ids,
                "merges": _merges(ids, learned),
            },
        },
    )
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": True,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "padding_side": "right",
            "model_max_length": 1000000,
        },
    )
    return len(vocab)


def _learn(text: str, merges: int) -> list[str]:
    """Return the tokens of plain byte-pair encoding, in the order in which they were found."""
    words = [list(line) for line in text.split("\n")]
    found: list[str] = []
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs or pairs.most_common(1)[0][1] < 2:
            break
        (left, right), _count = pairs.most_common(1)[0]
        if left + right not in found:
            found.append(left + right)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return found


def _merges(ids: dict[str, int], learned: list[str]) -> list[list[str]]:
    """Return every split of every learned token, in the order of the tokens, as Gemma's are."""
    merges = []
    for token in ["▁▁", "▁▁▁", "\n\n", "\n\n\n", *learned]:
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        merges += [list(split) for split in sorted(known, key=lambda s: (ids[s[0]], ids[s[1]]))]
    return merges


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
