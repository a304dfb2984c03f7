"""Pooling: what becomes of the tokens' states, in both models, in files, and elsewhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gemb.backend import Cut, Runtime
from gemb.errors import UsageError
from gemb.models.checkpoint import check_heads, open_checkpoint
from gemb.models.from_gguf import unpack
from gemb.models.gguf import open_gguf
from gemb.plugins import named
from gemb.weights.export import export_gguf
from gemb_torch.cut.cut import cut_folder
from gemb_torch.model.packing import pack
from gemb_torch.model.pooling import pool
from gemb_torch.model.save import write_checkpoint
from gemb_torch.model.weights import load
from reference import Reference

TEXTS = ["the quick brown fox", "what", "def main(args): return sum(x for x in args if x)", "é"]
LENGTHS = [3, 3, 1, 5, 2]
FP32 = Runtime(device="cpu", threads=2, precision="fp32")


@pytest.fixture(params=["mean", "first", "last", "attention"])
def pooled_model(request, tiny_model, tmp_path):
    """The tiny model with each pooling, that of attention with random queries."""
    source = open_checkpoint(tiny_model)
    state = load(source, pooling=request.param).state_dict()
    if request.param == "attention":
        generator = torch.Generator().manual_seed(5)
        state["pool_queries"] = torch.randn(4, 96, generator=generator)
    folder = tmp_path / "pooled"
    write_checkpoint(source, folder, state, pooling=request.param, note="a test")
    return folder


def states(width=8):
    return torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(1))


def by_hand(x, pooling, queries):
    """The pooling of one sequence x [L, D], token by token, fp64."""
    if pooling == "mean":
        return x.sum(0) / len(x)
    if pooling in ("first", "last"):
        return x[0 if pooling == "first" else len(x) - 1]
    heads, width = queries.shape
    result = np.zeros(width)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = np.array([token @ queries[head] / np.sqrt(width) for token in x])
        weights = np.exp(scores) / np.exp(scores).sum()
        for weight, token in zip(weights, x, strict=True):
            result[part] += weight * token[part]
    return result


@pytest.mark.parametrize("max_padding", [0.0, 1.0])
@pytest.mark.parametrize("pooling", ["mean", "first", "last", "attention"])
def test_each_sequence_is_pooled_alone_with_and_without_padding(pooling, max_padding):
    x, queries = states(), torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    packing = pack(LENGTHS, window=4, max_padding=max_padding)
    found = pool(x, packing, pooling, queries)
    parts = np.split(x.double().numpy(), np.cumsum(LENGTHS)[:-1])
    right = np.stack([by_hand(part, pooling, queries.double().numpy()) for part in parts])
    np.testing.assert_allclose(found.numpy(), right, atol=2e-6)  # fp32 sums of a few numbers of 1


def test_queries_of_zero_are_the_mean():
    packing = pack(LENGTHS, window=4)
    attended = pool(states(), packing, "attention", torch.zeros(4, 8))
    torch.testing.assert_close(attended, pool(states(), packing, "mean"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_padding", [0.0, 1.0])
def test_attention_pooling_has_the_gradient_of_its_finite_differences(max_padding):
    x = states().double().requires_grad_()
    queries = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    packing = pack(LENGTHS, window=4, max_padding=max_padding)

    def pooled(x, queries):
        return pool(x, packing, "attention", queries)

    assert torch.autograd.gradcheck(pooled, (x, queries))


def test_the_model_pools_as_the_oracle_does(pooled_model):
    encoder = named("torch").open(pooled_model, FP32)
    plain = load(open_checkpoint(pooled_model))
    reference = Reference(pooled_model)
    ids = encoder.tokenize(TEXTS)
    right = np.stack([reference.vector(row.tolist()) for row in ids])
    np.testing.assert_allclose(encoder.encode(ids), right, atol=2e-5)
    packing = pack([len(row) for row in ids], window=16, max_padding=1.0)
    with torch.inference_mode():
        found = plain(torch.from_numpy(np.concatenate(ids)), packing)
    np.testing.assert_allclose(found.numpy(), right, atol=2e-5)


def test_sentence_transformers_pools_alike(pooled_model):
    from sentence_transformers import SentenceTransformer

    if open_checkpoint(pooled_model).pooling == "attention":
        with pytest.raises(ValueError, match="Invalid pooling mode: 'attention'"):
            SentenceTransformer(str(pooled_model), device="cpu")
        return
    right = SentenceTransformer(str(pooled_model), device="cpu").encode(TEXTS)
    encoder = named("torch").open(pooled_model, FP32)
    np.testing.assert_allclose(encoder.encode(encoder.tokenize(TEXTS)), right, atol=2e-5)


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("cls", "first"), (["lasttoken"], "last"), ("mean", "mean"), ("attention", "attention")],
)
def test_the_newer_form_of_a_pooling_is_read(pooled_model, mode, pooling):
    path = pooled_model / "1_Pooling" / "config.json"
    raw = {"embedding_dimension": 96, "pooling_mode": mode, "include_prompt": True}
    path.write_text(json.dumps(raw))
    weights = pooled_model / "1_Pooling" / "model.safetensors"
    if pooling == "attention" and not weights.exists():
        with pytest.raises(UsageError, match=r"1_Pooling/model.safetensors: missing"):
            open_checkpoint(pooled_model)
        save_file({"queries": np.zeros((4, 96), np.float32)}, weights)
    assert open_checkpoint(pooled_model).pooling == pooling


def test_queries_of_another_shape_are_refused(pooled_model):
    (pooled_model / "1_Pooling" / "config.json").write_text('{"pooling_mode": "attention"}')
    save_file(
        {"queries": np.zeros((3, 96), np.float32)}, pooled_model / "1_Pooling/model.safetensors"
    )
    with pytest.raises(UsageError, match=r"1_Pooling.queries has shape \[3, 96\]"):
        open_checkpoint(pooled_model)


def test_a_width_that_the_heads_do_not_share_is_refused():
    check_heads(96, "small")
    with pytest.raises(UsageError, match=r"small: attention pooling has 4 heads, .* width of 98"):
        check_heads(98, "small")


def test_a_gguf_file_pools_as_its_folder(pooled_model, tmp_path):
    target = tmp_path / "a.gguf"
    pooling = open_checkpoint(pooled_model).pooling
    if pooling == "attention":
        with pytest.raises(UsageError, match=r"pooled: attention pooling: .* mean, first, last"):
            named("llamacpp").export_gguf(pooled_model, target, outtype="f32")
        return
    assert export_gguf(pooled_model, target, outtype="f32").agreement is not None
    encoder = named("llamacpp").open(target, Runtime(device="cpu", threads=1))
    # Many texts a batch, so that llama.cpp must find each one's first and last token.
    ids = [ids for _ in range(3) for ids in encoder.tokenize(TEXTS)]
    right = np.stack([Reference(pooled_model).vector(row.tolist()) for row in ids])
    # ggml looks GELU up in a table of fp16: some 1e-4 of a component.
    np.testing.assert_allclose(encoder.encode(ids), right, atol=3e-4)
    assert named("llamacpp").describe(target).pooling == pooling
    assert named("torch").describe(pooled_model).pooling == pooling


def test_a_gguf_file_is_unpacked_with_its_pooling(pooled_model, tmp_path):
    if open_checkpoint(pooled_model).pooling == "attention":
        pytest.skip("there is no such file")
    named("llamacpp").export_gguf(pooled_model, tmp_path / "a.gguf", outtype="f32")
    (tmp_path / "unpacked").mkdir()
    unpack(open_gguf(tmp_path / "a.gguf"), tmp_path / "unpacked")
    raw = json.loads((tmp_path / "unpacked" / "1_Pooling" / "config.json").read_text())
    assert raw["word_embedding_dimension"] == 96
    after, before = (open_checkpoint(x) for x in (tmp_path / "unpacked", pooled_model))
    assert after.pooling == before.pooling


def test_a_cut_model_pools_as_before(pooled_model, tmp_path):
    cut_folder(pooled_model, tmp_path / "cut", Cut(layers=(0, 1)))
    before, after = open_checkpoint(pooled_model), open_checkpoint(tmp_path / "cut")
    assert after.pooling == before.pooling
    if before.pooling == "attention":
        assert torch.equal(load(after).pool_queries, load(before).pool_queries)


def test_models_show_names_the_pooling(gemb, pooled_model):
    shown = gemb("models", "show", str(pooled_model)).stdout.decode()
    assert f"pooling       {open_checkpoint(pooled_model).pooling}, dense 96 to 160" in shown


def test_another_pooling_is_another_fingerprint(tiny_model, tmp_path):
    source = open_checkpoint(tiny_model)
    found = set()
    for pooling in ("mean", "first", "last", "attention"):
        model = load(source, pooling=pooling)
        folder = tmp_path / pooling
        write_checkpoint(source, folder, model.state_dict(), pooling=pooling, note="a test")
        found.add(open_checkpoint(folder).fingerprint())
    assert len(found) == 4


def test_saved_weights_come_back_bit_for_bit(pooled_model, tmp_path):
    source = open_checkpoint(pooled_model)
    model = load(source)
    state = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    target = tmp_path / "again"
    write_checkpoint(source, target, state, pooling=source.pooling, note="two steps")
    again = load(open_checkpoint(target)).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_saved_folder_keeps_what_is_not_trained_and_says_what_was(tiny_model, tmp_path):
    source_folder = tmp_path / "licensed"
    shutil.copytree(tiny_model, source_folder)
    (source_folder / "README.md").write_text("---\nlicense: gemma\n---\nA card.\n")
    config = json.loads((source_folder / "config.json").read_text())
    (source_folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    source = open_checkpoint(source_folder)
    target = tmp_path / "trained"
    write_checkpoint(
        source,
        target,
        load(source).state_dict(),
        pooling="mean",
        note="finetune, 100 steps",
        matryoshka_dims=(48, 24),
    )
    after = open_checkpoint(target)
    assert after.matryoshka_dims == (96, 48, 24)
    assert after.prompts == source.prompts
    assert after.licence() == "gemma"
    card = (target / "README.md").read_text()
    assert "Modified from licensed by `gemb train`: finetune, 100 steps." in card
    assert "subject to the Gemma Terms of Use" in card
    assert json.loads((target / "config.json").read_text()) == config | {"dtype": "float32"}
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (target / name).read_bytes() == (source_folder / name).read_bytes()
    stored = load_file(target / "2_Dense" / "model.safetensors")["linear.weight"]
    right = load_file(tiny_model / "2_Dense" / "model.safetensors")["linear.weight"]
    assert np.array_equal(stored, right)


def test_a_folder_that_cannot_be_written_whole_leaves_the_old_one(tiny_model, tmp_path):
    source = open_checkpoint(tiny_model)
    state = load(source).state_dict()
    target = tmp_path / "model"
    write_checkpoint(source, target, state, pooling="mean", note="whole")
    before = (target / "model.safetensors").read_bytes()
    broken = {name: x + 1 for name, x in state.items() if name != "norm.weight"}
    with pytest.raises(UsageError, match=r"no tensor norm\.weight"):
        write_checkpoint(source, target, broken, pooling="mean", note="broken")
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
