"""From a language model's files to an encoder's folder: the same numbers, and what is refused."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.from_decoder import write_encoder
from gemb.models.prompts import DICTIONARY
from gemb.models.tensors import gguf_name
from tiny_decoder import write_tiny_decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return write_tiny_decoder(tmp_path_factory.mktemp("decoder") / "model")


def made(source, target, seed=0):
    target.mkdir()
    write_encoder(source, target, seed=seed)
    return open_checkpoint(target)


def write_gguf(folder, path, *, architecture="gemma3"):
    """Write the folder as llama.cpp's converter writes a Gemma 3, with the gguf package."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
    writer.add_array(f"{architecture}.attention.sliding_window_pattern", kinds)
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(True)
    names = sorted(tokens, key=tokens.get)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([name.encode() for name in names])
    writer.add_token_scores([-float(i) for i in range(len(names))])
    control = gguf.TokenType.CONTROL
    types = [
        gguf.TokenType.BYTE if name.startswith("<0x") else control if name[0] == "<" else 1
        for name in names
    ]
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    for name, values in load_file(folder / "model.safetensors").items():
        plain = name.removeprefix("model.")
        writer.add_tensor(gguf_name(plain), values + 1 if values.ndim == 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_weights_are_the_decoders_and_the_settings_an_encoders(decoder, tmp_path):
    checkpoint = made(decoder, tmp_path / "m")
    stored = load_file(decoder / "model.safetensors")
    kept = load_file(tmp_path / "m" / "model.safetensors")
    assert {f"model.{name}" for name in kept} == set(stored)
    assert all((kept[name] == stored[f"model.{name}"]).all() for name in kept)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["use_bidirectional_attention"] is True
    assert checkpoint.dense == ((96, 384), (384, 96))
    assert checkpoint.prompts == DICTIONARY
    assert checkpoint.matryoshka_dims == (96,)


def test_a_text_has_bos_and_eos_from_now_on(decoder, tmp_path):
    before = Tokenizer.from_file(str(decoder / "tokenizer.json")).encode("the red planet").ids
    made(decoder, tmp_path / "m")
    after = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json")).encode("the red planet").ids
    assert before[0] == 2
    assert after == [*before, 1]


def test_sentence_transformers_opens_the_folder_and_agrees(decoder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from gemb.backend import Runtime
    from gemb_torch import TorchBackend

    made(decoder, tmp_path / "m")
    texts = ["the red planet in the sky", "lazy dog"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    encoder = TorchBackend().open(tmp_path / "m", Runtime(device="cpu", precision="fp32"))
    ours = encoder.encode(encoder.tokenize(texts))
    assert np.abs(ours - theirs.encode(texts)).max() < 1e-5


def test_the_dense_layers_are_random_and_follow_the_seed(decoder, tmp_path):
    first, same, other = (
        load_file(made(decoder, tmp_path / str(i), seed).folder / "2_Dense" / "model.safetensors")
        for i, seed in enumerate((0, 0, 1))
    )
    one = first["linear.weight"]
    assert (one == same["linear.weight"]).all()
    assert not np.allclose(one, other["linear.weight"])
    # Variance 1 / in: a length comes out as it went in. 384 x 96 draws: 2 % is 4 standard errors.
    assert one.std() == pytest.approx(96**-0.5, rel=0.02)


def test_a_gguf_of_a_decoder_is_the_same_model(decoder, tmp_path):
    made(decoder, tmp_path / "folder")
    checkpoint = made(write_gguf(decoder, tmp_path / "m.gguf"), tmp_path / "gguf")
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("folder", "gguf"))
    assert set(one) == set(two)
    for name in one:
        # A norm's 1 + w was rounded to fp32 in the file; all else is bit for bit.
        tolerance = 1.2e-7 if one[name].ndim == 1 else 0
        assert np.abs(one[name] - two[name]).max() <= tolerance, name
    assert checkpoint.config.is_sliding == (True, False, True)
    a, b = (Tokenizer.from_file(str(tmp_path / x / "tokenizer.json")) for x in ("folder", "gguf"))
    assert a.encode("<unused3>").ids == b.encode("<unused3>").ids


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; adaptation begins with a Gemma 3 text"),
        ({"model_type": "gemma3"}, "whose text model is a part: save that alone"),
        ({"use_bidirectional_attention": True}, "it is an encoder already; the stages pretrain"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is not null"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"num_hidden_layers": 2, "layer_types": None}, "an unknown tensor layers.2."),
        ({"head_dim": 16}, "has shape"),
        ({"rope_scaling": {"factor": 8}}, "rope_scaling is"),
    ],
)
def test_what_is_no_gemma_3_is_one_line_about_the_users_file(decoder, tmp_path, changes, message):
    folder = shutil.copytree(decoder, tmp_path / "copy")
    change(folder, **changes)
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError) as refusal:
        write_encoder(folder, tmp_path / "m", seed=0)
    line = str(refusal.value)
    assert message in line
    assert line.startswith(str(folder))
    assert "\n" not in line


def test_other_files_are_refused(decoder, tiny_gguf, tmp_path):
    cases = [
        (tiny_gguf, "architecture gemma-embedding already, and no decoder"),
        (
            write_gguf(decoder, tmp_path / "a.gguf", architecture="llama"),
            "architecture llama; adap",
        ),
        (decoder / "config.json", "no model folder and no GGUF file"),
        (tmp_path, "config.json: missing"),
    ]
    for number, (source, message) in enumerate(cases):
        (tmp_path / f"m{number}").mkdir()
        with pytest.raises(UsageError, match=message):
            write_encoder(source, tmp_path / f"m{number}", seed=0)
