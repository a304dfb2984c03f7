"""What a GGUF file of EmbeddingGemma must hold, and the line that refuses each other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from changed_gguf import ABSENT, KEY, changed
from gemb.errors import UsageError
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import read_header
from gemb_llamacpp.export import export
from tiny_model import PROMPTS


def test_an_unchanged_copy_is_the_same_model(tiny_gguf: Path, tmp_path: Path):
    copy = open_gguf(changed(tiny_gguf, tmp_path / "copy.gguf", {}))
    assert copy.description().types == open_gguf(tiny_gguf).description().types
    assert copy.fingerprint() == open_gguf(tiny_gguf).fingerprint()


U32, F32, STRING = (gguf.GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_2.weight": ABSENT}, "dense layers .* are missing.* gemb export-gguf FOLDER"),
        (
            {"dense_2.weight": ABSENT, "dense_3.weight": ABSENT, f"{KEY}dense_2_feat_out": ABSENT},
            "dense layers .* are missing",
        ),
        ({f"{KEY}dense_2_feat_in": 64}, "dense_2_feat_in is 64 .*, not 96"),
        ({f"{KEY}dense_3_feat_out": 64}, "dense_3_feat_out is 64 .*, not 96"),
        ({f"{KEY}dense_3_feat_in": 96}, "dense_3_feat_in is 96 .*, not 160"),
        ({f"{KEY}embedding_length": 64, "gemb.matryoshka_dims": [64]}, "feat_in is 96 .*, not 64"),
        ({f"{KEY}embedding_length": (96.0, F32)}, r"embedding_length is 96.0 \(float32\)"),
        ({f"{KEY}embedding_length": ABSENT}, r"embedding_length is None \(absent\)"),
        ({f"{KEY}block_count": 0}, "block_count is 0"),
        ({f"{KEY}block_count": 600}, "block_count is 600"),
        (
            {f"{KEY}block_count": 2, f"{KEY}attention.sliding_window_pattern": [True, False]},
            "blk.2",
        ),
        ({f"{KEY}attention.head_count": 0}, "head_count is 0"),
        ({f"{KEY}attention.head_count_kv": 2}, "3 heads of 32 on 2 key heads"),
        ({f"{KEY}attention.key_length": 33}, "3 heads of 33"),
        ({f"{KEY}attention.value_length": 16}, "value_length is 16 .*, not 32"),
        ({f"{KEY}attention.layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0"),
        ({f"{KEY}rope.freq_base": float("nan")}, "freq_base is nan"),
        ({f"{KEY}attention.sliding_window": ABSENT}, "sliding_window is None"),
        ({f"{KEY}attention.sliding_window_pattern": [True, False]}, "pattern has 2 bool items"),
        ({f"{KEY}attention.sliding_window_pattern": [True] * 3}, "is sliding in every layer"),
        ({f"{KEY}attention.sliding_window_pattern": [False] * 3}, "is global in every layer"),
        ({f"{KEY}pooling_type": 4}, "pooling_type is 4 .*, none of 1 .mean., 2 .first., 3"),
        ({f"{KEY}expert_count": (4, U32)}, "expert_count is not EmbeddingGemma's"),
        ({f"{KEY}rope.scaling.type": ("yarn", STRING)}, "rope.scaling.type is not"),
        ({"split.count": (2, U32)}, "one part of a split file"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer gpt2"),
        ({"tokenizer.ggml.add_eos_token": ABSENT}, "add_eos_token is None"),
        ({"tokenizer.ggml.add_bos_token": False}, "add_bos_token is False"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is True"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000 of 369 tokens"),
        ({"tokenizer.ggml.scores": [0.0, 1.0]}, "scores is not one float32 for each token"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type is not one int32 for each token"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "not one float32 for each token"),
        ({"gemb.matryoshka_dims": [48, 96]}, "matryoshka_dims"),
        ({"output_norm.weight": np.zeros(96, np.float16)}, "output_norm.weight is f16; norms"),
        ({"output_norm.weight": np.zeros(64, np.float32)}, r"shape \[64\], not \[96\]"),
        ({"blk.1.ffn_up.weight": ABSENT}, "tensor blk.1.ffn_up.weight is missing"),
    ],
)
def test_a_wrong_file_is_refused(
    tiny_gguf: Path, tmp_path: Path, changes: dict[str, Any], message: str
):
    path = changed(tiny_gguf, tmp_path / "wrong.gguf", changes)
    with pytest.raises(UsageError, match=message) as error:
        open_gguf(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("bad", [("the▁", "th"), ("<0x41>", "other"), ("the▁", "t\0")])
def test_tokens_that_llama_cpp_would_abort_on_are_refused(
    tiny_gguf: Path, tmp_path: Path, bad: tuple[str, str]
):
    tokens = list(read_header(tiny_gguf).metadata["tokenizer.ggml.tokens"].values)  # type: ignore[union-attr]
    tokens[tokens.index(bad[0])] = bad[1]
    path = changed(tiny_gguf, tmp_path / "wrong.gguf", {"tokenizer.ggml.tokens": tokens})
    with pytest.raises(UsageError, match=r"1 tokens occur twice|byte tokens .* <0x41> first|NUL"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("gemma-embedding2", "EmbeddingGemma 2, which the installed llama.cpp cannot load"),
        (
            "gemma3",
            "Gemma 3 itself, of which gemb train adapt .* Ollama's layout .* export-gguf FOLDER",
        ),
        ("llama", "gemb runs gemma-embedding files"),
    ],
)
def test_another_architecture_is_refused_with_what_it_is(
    tiny_gguf: Path, tmp_path: Path, arch: str, message: str
):
    with pytest.raises(UsageError, match=f"architecture {arch}: {message}"):
        open_gguf(changed(tiny_gguf, tmp_path / "other.gguf", {}, arch))


def test_the_profile_says_how_to_use_the_model(tiny_gguf: Path):
    profile = open_gguf(tiny_gguf).profile()
    assert (profile.dim, profile.matryoshka_dims) == (96, (96, 48))
    assert (profile.max_tokens, profile.closing_tokens) == (256, 1)
    assert profile.prompts == PROMPTS
    assert profile.dtype == "f32"


def test_a_file_of_another_converter_has_the_cards_prompts(tiny_gguf: Path, tmp_path: Path):
    absent = {f"gemb.prompt.{name}": ABSENT for name in PROMPTS} | {"gemb.matryoshka_dims": ABSENT}
    model = open_gguf(changed(tiny_gguf, tmp_path / "plain.gguf", absent))
    assert model.prompts["query"] == "task: search result | query: "
    assert model.prompts["fact"] == "task: fact checking | query: "
    assert model.matryoshka_dims == (96,)


def test_the_description_counts_what_is_there(tiny_gguf: Path, tiny_model: Path, tmp_path: Path):
    export(tiny_model, tmp_path / "q4_0.gguf", "q4_0")
    description = open_gguf(tmp_path / "q4_0.gguf").description()
    kinds = ("token_embd", "attention", "ffn", "dense")
    assert description.types == {"norm": "f32"} | dict.fromkeys(kinds, "q4_0")
    reader = gguf.GGUFReader(tiny_gguf)
    assert description.parameters == sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert description.vocabulary == 369
    assert description.dense == ((96, 160), (160, 96))


def test_the_fingerprint_tells_weights_and_prompts_apart_but_not_names(
    tiny_gguf: Path, tiny_model: Path, tmp_path: Path
):
    export(tiny_model, tmp_path / "again.gguf", "f32")
    export(tiny_model, tmp_path / "bf16.gguf", "bf16")
    right = open_gguf(tiny_gguf).fingerprint()
    assert open_gguf(tmp_path / "again.gguf").fingerprint() == right
    renamed = changed(tiny_gguf, tmp_path / "renamed.gguf", {"general.name": "other"})
    assert open_gguf(renamed).fingerprint() == right
    prompt = changed(tiny_gguf, tmp_path / "prompt.gguf", {"gemb.prompt.query": "q: "})
    norm = np.zeros(96, np.float32)
    weight = changed(tiny_gguf, tmp_path / "weight.gguf", {"output_norm.weight": norm})
    others = {open_gguf(path).fingerprint() for path in (prompt, weight, tmp_path / "bf16.gguf")}
    assert len(others | {right}) == 4
