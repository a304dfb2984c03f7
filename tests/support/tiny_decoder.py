"""Write a tiny random Gemma 3 language model, as transformers saves it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tiny_model import TinyShape, write_tiny_model

MARKS = 40  # <unused0>, <unused1>, ...


def write_tiny_decoder(folder: Path, shape: TinyShape | None = None) -> Path:
    """Write the folder and return it: the tiny encoder's weights and tokens, and more marks."""
    write_tiny_model(folder, shape or TinyShape())
    for path in ("1_Pooling", "2_Dense", "3_Dense"):
        for file in (folder / path).iterdir():
            file.unlink()
        (folder / path).rmdir()
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    tokenizer = _json(folder / "tokenizer.json")
    vocab, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    for number in range(1, MARKS):
        added.append(added[-1] | {"content": f"<unused{number}>", "id": len(vocab)})
        vocab[f"<unused{number}>"] = len(vocab)
    # As a language model's: BOS alone.
    tokenizer["post_processor"]["single"] = tokenizer["post_processor"]["single"][:2]
    _write(folder / "tokenizer.json", tokenizer)
    settings = _json(folder / "tokenizer_config.json") | {"add_eos_token": False}
    _write(folder / "tokenizer_config.json", settings)
    config = _json(folder / "config.json") | {
        "architectures": ["Gemma3ForCausalLM"],
        "use_bidirectional_attention": False,
        "vocab_size": len(vocab),
        "tie_word_embeddings": True,
    }
    _write(folder / "config.json", config)
    weights = load_file(folder / "model.safetensors")
    table = weights["embed_tokens.weight"]
    more = np.random.default_rng(1).normal(
        0, table.std(), (len(vocab) - len(table), table.shape[1])
    )
    weights["embed_tokens.weight"] = np.concatenate([table, more]).astype(np.float32)
    save_file({f"model.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
