"""A language model by its form: what transformers makes of it, and that adaptation takes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from gemb.cli import gemb as root
from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.decoder_folder import MARKS, write_decoder
from gemb.models.from_decoder import write_encoder
from tiny_model import TEXT


@pytest.mark.parametrize("source", ["tiny_model", "tiny_gguf"])
def test_it_is_a_causal_gemma_3_with_the_model_s_own_numbers(request, tmp_path, source):
    write_decoder(request.getfixturevalue(source), tmp_path / "decoder")
    before = open_checkpoint(request.getfixturevalue("tiny_model"))
    weights = load_file(tmp_path / "decoder/model.safetensors")
    for name, tensor in before.tensors.items():
        if "Dense" not in name:
            # A norm in a GGUF file holds 1 more, which costs it its last bits.
            close = 1e-7 if source == "tiny_gguf" and "norm" in name else 0
            found = weights[f"model.{name}"][: tensor.shape[0]]
            np.testing.assert_allclose(found, tensor.float32(), atol=close, rtol=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decoder").eval()
    assert type(model).__name__ == "Gemma3ForCausalLM"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "decoder")
    ids = tokenizer("the quick brown<unused7> fox").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<unused7>") in ids
    with torch.no_grad():
        whole, begun = (model(torch.tensor([each])).logits[0] for each in (ids, ids[:4]))
    torch.testing.assert_close(whole[:4], begun)  # what comes later is not seen
    assert whole.isfinite().all()


def test_marks_are_added_where_they_lack_and_differ(tmp_path, tiny_model):
    write_decoder(tiny_model, tmp_path / "decoder")
    before = open_checkpoint(tiny_model).config.vocab_size
    table = load_file(tmp_path / "decoder/model.safetensors")["model.embed_tokens.weight"]
    assert len(table) == before + MARKS - 1, "the tiny tokenizer has <unused0>"
    assert len(np.unique(table[before:], axis=0)) == MARKS - 1
    # As long as the model's own, else a mark would be the likeliest token or none.
    own, added = (np.linalg.norm(rows, axis=1).mean() for rows in (table[:before], table[before:]))
    assert added == pytest.approx(own, rel=0.2)


def test_layers_are_kept_in_their_order(tmp_path, tiny_model):
    write_decoder(tiny_model, tmp_path / "decoder", (1, 2))
    before = open_checkpoint(tiny_model)
    weights = load_file(tmp_path / "decoder/model.safetensors")
    name = "self_attn.q_proj.weight"
    for new, old in enumerate((1, 2)):
        found = weights[f"model.layers.{new}.{name}"]
        assert (found == before.tensors[f"layers.{old}.{name}"].float32()).all()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    with pytest.raises(UsageError, match="cannot keep layer 3: it has 0 to 2"):
        write_decoder(tiny_model, tmp_path / "other", (0, 3))
    assert not (tmp_path / "other").exists()


def test_adaptation_takes_it(tmp_path, tiny_model):
    root.main(
        ["cut", str(tiny_model), "-o", str(tmp_path / "decoder"), "--as-decoder"],
        standalone_mode=False,
    )
    (tmp_path / "encoder").mkdir()
    write_encoder(tmp_path / "decoder", tmp_path / "encoder", seed=0)
    encoder = open_checkpoint(tmp_path / "encoder")
    name = "layers.0.mlp.up_proj.weight"
    before = open_checkpoint(tiny_model)
    assert (encoder.tensors[name].float32() == before.tensors[name].float32()).all()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "encoder")
    old = transformers.AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer(TEXT).input_ids == old(TEXT).input_ids


def test_it_keeps_all_tokens(tmp_path, tiny_model):
    words = ["--as-decoder", "--vocab", "9", "--vocab-from", "x.txt"]
    with pytest.raises(UsageError, match="--as-decoder keeps all tokens"):
        root.main(
            ["cut", str(tiny_model), "-o", str(tmp_path / "decoder"), *words],
            standalone_mode=False,
        )
