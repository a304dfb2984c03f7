"""What a GGUF file of EmbeddingGemma must hold, and the line that refuses each other one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from changed_gguf import ABSENT, KEY, changed
from gemb.backend import Runtime
from gemb.errors import UsageError
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import read_header
from gemb.plugins import named
from gemb_llamacpp.export import export
from tiny_model import PROMPTS


def test_an_unchanged_copy_is_the_same_model(tiny_gguf: Path, tmp_path: Path):
    copy = open_gguf(changed(tiny_gguf, tmp_path / "copy.gguf", {}))
    assert copy.description().types == open_gguf(tiny_gguf).description().types
    assert copy.fingerprint() == open_gguf(tiny_gguf).fingerprint()


U16, U32, F32, STRING, BOOL = (
    gguf.GGUFValueType[name] for name in ("UINT16", "UINT32", "FLOAT32", "STRING", "BOOL")
)


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
        ({"split.count": (2, U16)}, "one part of a split file"),
        ({"split.count": (1, U32)}, "split.count is 1 .uint32., not uint16"),
        ({f"{KEY}rope.dimension_count_swa": (16, U32)}, "dimension_count_swa is 16 .*, not 32"),
        ({f"{KEY}rope.dimension_count_swa": (0, U32)}, "dimension_count_swa is 0 .*, not 32"),
        ({f"{KEY}attention.key_length_swa": (32, U32)}, "key_length_swa is not EmbeddingGemma's"),
        ({f"{KEY}attention.scale": (0.5, F32)}, "attention.scale is not EmbeddingGemma's"),
        ({f"{KEY}a\nb": (1, U32)}, "a⏎b is not EmbeddingGemma's"),
        ({"general.tensor_extra.prec_a4": (1, U32)}, "prec_a4 is not EmbeddingGemma's"),
        ({f"{KEY}vocab_size": (368, U32)}, "vocab_size is 368 .*, not 369"),
        ({f"{KEY}attention.causal": (True, BOOL)}, "causal is True, and EmbeddingGemma reads both"),
        ({f"{KEY}attention.causal": (0, U32)}, "causal is 0 .uint32., not bool"),
        ({"general.alignment": (16, U32)}, "general.alignment is 16"),
        ({"general.name": (1, U32)}, "general.name is 1 .uint32., not string"),
        ({"general.file_type": ("x", STRING)}, "general.file_type is 'x' .string., not uint32"),
        ({"gemb.prompt.query": (1, U32)}, "gemb.prompt.query is 1 .uint32., not string"),
        ({"tokenizer.ggml.add_sep_token": (1.0, F32)}, "add_sep_token is 1.0 .float32., not bool"),
        ({"tokenizer.ggml.add_sep_token": (True, BOOL)}, "add_sep_token is set"),
        ({"tokenizer.ggml.pre": (1, U32)}, "tokenizer.ggml.pre is 1 .uint32., not string"),
        ({"tokenizer.ggml.precompiled_charsmap": ("x", STRING)}, "charsmap is not Embedding"),
        ({"tokenizer.ggml.eot_token_id": (369, U32)}, "eot_token_id is 369 of 369 tokens"),
        ({"tokenizer.ggml.bos_token_id": 1}, "bos_token_id is 1, which is not <bos>"),
        ({"tokenizer.ggml.padding_token_id": 5}, "padding_token_id is 5, which is not <pad>"),
        ({"general.type": ("adapter", STRING)}, "is adapter: a LoRA adapter, .*: merge it into"),
        ({"general.type": ("imatrix", STRING)}, "is imatrix: an importance matrix, which is no"),
        ({"general.type": ("mmproj", STRING)}, "general.type is mmproj: the part of a model that"),
        ({"general.type": ("\33[2J", STRING)}, r"general.type is \\x1b\[2J: it is no model"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer gpt2"),
        ({"tokenizer.ggml.add_eos_token": ABSENT}, "add_eos_token is None"),
        ({"tokenizer.ggml.add_bos_token": False}, "add_bos_token is False"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is True"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000 of 369 tokens"),
        ({"tokenizer.ggml.scores": [0.0, 1.0]}, "scores is not one float32 for each token"),
        ({"tokenizer.ggml.scores": [math.nan] * 369}, "a token has a score that is no number"),
        ({"tokenizer.ggml.scores": [*range(368), math.inf]}, "a score that is no number"),
        ({"tokenizer.ggml.scores": [0.0] * 369}, "all tokens have one score"),
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{KEY}rope.dimension_count", (32, U32)),
        (f"{KEY}rope.dimension_count_swa", (32, U32)),
        (f"{KEY}vocab_size", (369, U32)),
        (f"{KEY}attention.causal", (False, BOOL)),
        ("general.author", (7, U32)),
        ("general.type", ("model", STRING)),
        ("split.count", (1, U16)),
        ("tokenizer.ggml.eot_token_id", (5, U32)),
        ("quantize.imatrix.file", ("x", STRING)),
    ],
)
def test_a_key_that_changes_nothing_may_be_there(
    tiny_gguf: Path, tmp_path: Path, key: str, value: tuple[Any, Any]
):
    """The vectors are the same, too."""
    path = changed(tiny_gguf, tmp_path / "more.gguf", {key: value})
    right, other = (named("llamacpp").open(file, Runtime()) for file in (tiny_gguf, path))
    ids = right.tokenize(["the quick brown fox", "<h1> a  b\n\n"])
    assert [row.tolist() for row in other.tokenize(["the quick brown fox", "<h1> a  b\n\n"])] == [
        row.tolist() for row in ids
    ]
    np.testing.assert_array_equal(other.encode(ids), right.encode(ids))


def test_added_tokens_that_are_not_marked_are_no_tokenizer(tiny_gguf: Path, tmp_path: Path):
    kinds = list(read_header(tiny_gguf).metadata["tokenizer.ggml.token_type"].values)  # type: ignore[union-attr]
    plain = changed(
        tiny_gguf,
        tmp_path / "plain.gguf",
        {"tokenizer.ggml.token_type": [1 if kind in (3, 4) else kind for kind in kinds]},
    )
    with pytest.raises(UsageError, match="the token <pad> has the type 1, a word's"):
        open_gguf(plain)


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
