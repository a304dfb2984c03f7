"""The torch encoder through the backend's door: order, packing, isolation, refusals, tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.backend import Runtime
from gemb.errors import Missing, UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.gguf import open_gguf
from gemb.plugins import candidates, named
from reference import Reference

torch = pytest.importorskip("torch")

from gemb_torch.model.encode import (  # noqa: E402
    TorchEncoder,
    open_encoder,
    passes,
)

FP32 = Runtime(device="cpu", threads=2)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> TorchEncoder:
    return open_encoder(open_checkpoint(tiny_model), FP32)


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with keys of one JSON file changed."""

    def change(name: str, **values: object) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder)
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(raw | values))
        return folder

    return change


def random_ids(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(9, 360, n).astype(np.int32) for n in lengths]


def test_importing_the_backend_loads_no_torch_and_no_numpy():
    code = (
        "import sys, gemb_torch; gemb_torch.TorchBackend(); "
        "print([m for m in ('torch', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_profile_is_what_the_files_say(tiny_model):
    profile = named("torch").open(tiny_model, FP32).profile
    assert profile.dim == 96
    assert profile.matryoshka_dims == (96, 48)
    assert profile.max_tokens == 256
    assert profile.closing_tokens == 1
    assert profile.prompts["query"] == "task: search result | query: "
    assert profile.dtype == "fp32"
    assert profile.fingerprint == open_checkpoint(tiny_model).fingerprint()


def test_rows_come_back_in_order_and_are_the_oracles(encoder, tiny_model):
    batch = random_ids([3, 50, 1, 9, 256, 9, 30, 2, 1, 120])
    got = encoder.encode(batch)
    reference = Reference(tiny_model)
    expected = np.stack([reference.vector(ids.tolist()) for ids in batch])
    assert got.dtype == np.float32
    # fp32 against fp64; the wrong row would be off by about 1.
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_sentence_transformers_gives_the_same_vectors_for_texts(encoder, tiny_model):
    from sentence_transformers import SentenceTransformer

    texts = ["the quick brown fox", "", "日本語 😀", "a  b\n\n\nc", "fox " * 60]
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(texts)
    got = encoder.encode(encoder.tokenize(texts))
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_a_gguf_file_gives_the_folders_vectors_under_its_own_name(encoder, tiny_gguf):
    unpacked = named("torch").open(tiny_gguf, FP32)
    ids = random_ids([3, 40, 17])
    # The file holds each norm weight plus 1, rounded once more.
    assert np.abs(unpacked.encode(ids) - encoder.encode(ids)).max() < 1e-6
    profile = open_gguf(tiny_gguf).profile()
    assert unpacked.profile == replace(profile, dtype="fp32")
    assert [kind.name for kind in candidates(tiny_gguf)] == ["llamacpp", "torch"]


def test_a_vector_does_not_depend_on_its_neighbours(encoder):
    batch = random_ids([20, 20, 7, 256, 1, 40, 20, 33] * 20, seed=1)
    together = encoder.encode(batch)
    alone = np.concatenate([encoder.encode([ids]) for ids in batch])
    # Another number of rows in a matrix product may sum in another order, and nothing else.
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    np.testing.assert_allclose(encoder.encode(batch[::-1])[::-1], together, atol=1e-6, rtol=0)


def test_one_thread_and_three_give_the_same_vectors(encoder, tiny_model):
    batch = random_ids(list(range(1, 120)), seed=2)
    for threads in (1, 3):
        other = open_encoder(open_checkpoint(tiny_model), Runtime(device="cpu", threads=threads))
        np.testing.assert_allclose(other.encode(batch), encoder.encode(batch), atol=1e-6, rtol=0)


def test_the_plain_model_encodes_as_the_frozen_one(encoder, tiny_model, monkeypatch, capsys):
    """Where oneDNN's operators are absent, the plain model runs, and says so when asked."""
    monkeypatch.setattr("gemb_torch.model.encode.can_freeze", lambda dtype: False)
    runtime = Runtime(device="cpu", threads=2, verbose=True)
    plain = open_encoder(open_checkpoint(tiny_model), runtime)
    assert "torch runs the plain model on cpu" in capsys.readouterr().err
    batch = random_ids([1, 30, 64, 9, 200])
    np.testing.assert_allclose(plain.encode(batch), encoder.encode(batch), atol=2e-6, rtol=0)
    half = open_encoder(open_checkpoint(tiny_model), Runtime(device="cpu", precision="bf16"))
    cosines = (half.encode(batch) * encoder.encode(batch)).sum(axis=1)
    assert 0.999 < cosines.min() < 1 - 1e-7  # bf16 has been used, and rightly


def test_bf16_is_near_fp32_and_says_so(encoder, tiny_model):
    half = open_encoder(open_checkpoint(tiny_model), Runtime(device="cpu", precision="bf16"))
    assert half.profile.dtype == "bf16"
    batch = random_ids([1, 30, 64, 9, 200])
    cosines = (half.encode(batch) * encoder.encode(batch)).sum(axis=1)
    assert 0.999 < cosines.min() < 1 - 1e-7


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(tiny_model, monkeypatch, is_frozen):
    from gemb_torch.model import encode

    real_load = encode.load

    def load_with_bad_token(*args: object, **kwargs: object) -> object:
        model = real_load(*args, **kwargs)
        with torch.no_grad():
            model.embed_tokens.weight[7] = float("nan")
            model.embed_tokens.weight[8] = float("inf")
        return model

    monkeypatch.setattr(encode, "load", load_with_bad_token)
    if not is_frozen:
        monkeypatch.setattr(encode, "can_freeze", lambda dtype: False)
        monkeypatch.setattr(encode, "CUDA_PADDING", 0.99)
    bad = open_encoder(open_checkpoint(tiny_model), FP32)
    monkeypatch.undo()
    good = open_encoder(open_checkpoint(tiny_model), FP32)
    batch = random_ids([20, 20, 7, 20, 40, 41, 1])
    expected = good.encode(batch)
    batch[1][3], batch[4][39], batch[6][0] = 7, 8, 7
    got = bad.encode(batch)
    assert np.isnan(got[[1, 4, 6]]).all()
    keep = [0, 2, 3, 5]
    np.testing.assert_allclose(got[keep], expected[keep], atol=1e-6, rtol=0)


def test_padding_in_attention_keeps_a_bad_row_to_itself(tiny_model):
    """The rectangle of a padded group is filled from the row's own tokens, never a neighbour's."""
    from gemb_torch.model.packing import pack
    from gemb_torch.model.weights import load

    model = load(open_checkpoint(tiny_model))
    with torch.no_grad():
        model.embed_tokens.weight[7] = float("nan")
    batch = random_ids([12, 30, 5])
    lengths, packing = [12, 30, 5], pack([12, 30, 5], window=16, max_padding=0.99)
    assert len(packing.groups) == 1
    for bad in range(3):
        ids = torch.from_numpy(np.concatenate(batch))
        ids[sum(lengths[: bad + 1]) - 1] = 7
        with torch.inference_mode():
            is_finite = model(ids, packing).isfinite().all(dim=1).tolist()
        assert is_finite == [row != bad for row in range(3)]


def test_an_empty_batch_gives_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 96)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 300), max_size=80),
    st.integers(1, 600),
    st.integers(1, 4),
)
def test_passes_hold_each_row_once_and_no_more_than_the_budget(lengths, budget, workers):
    found = passes(np.array(lengths, np.int64), budget, workers)
    assert sorted(int(row) for rows in found for row in rows) == list(range(len(lengths)))
    for rows in found:
        sizes = [lengths[row] for row in rows]
        assert sum(sizes) <= budget + max(sizes)
        assert sizes == sorted(sizes, reverse=True)


# Tokens


def test_the_ids_are_those_of_the_tokenizers_file(encoder, tiny_model):
    from tokenizers import Tokenizer

    texts = [
        "the quick brown fox",
        "",
        " ",
        "<eos> literal <bos>",
        "日本 \x00 😀\n\n\nx",
        "a" * 5000,
    ]
    expected = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode_batch(texts)
    got = encoder.tokenize(texts)
    assert [ids.tolist() for ids in got] == [encoding.ids for encoding in expected]
    assert {ids.dtype for ids in got} == {np.dtype(np.int32)}
    assert got[1].tolist() == [2, 1]
    assert len(got[5]) > 256  # longer than the model's context: cutting is the caller's to do


def test_truncation_and_padding_in_the_file_are_off(changed):
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    folder = changed("tokenizer.json", truncation=truncation, padding=padding)
    lengths = [len(ids) for ids in named("torch").open(folder, FP32).tokenize(["a", "fox " * 9])]
    assert lengths[0] == 3
    assert lengths[1] > 9


def test_an_added_token_beyond_the_table_is_plain_text(encoder, tiny_model, changed):
    raw = json.loads((tiny_model / "tokenizer.json").read_text())
    beyond = raw["added_tokens"][-1] | {
        "id": open_checkpoint(tiny_model).config.vocab_size,
        "content": "<image_soft_token>",
    }
    folder = changed("tokenizer.json", added_tokens=[*raw["added_tokens"], beyond])
    got = named("torch").open(folder, FP32)
    texts = ["see <image_soft_token> here", "<h1> is an added token"]
    assert [a.tolist() for a in got.tokenize(texts)] == [
        a.tolist() for a in encoder.tokenize(texts)
    ]
    assert len(got.tokenize(texts)[0]) > 8
    assert np.isfinite(got.encode(got.tokenize(texts))).all()


# Refusals


@pytest.mark.parametrize(
    ("runtime", "error", "message"),
    [
        (Runtime(precision="fp16"), UsageError, "reach 800,000, and fp16 ends at 65,504; use bf16"),
        (Runtime(precision="int8"), UsageError, "precision 'int8'; torch has auto, fp32, bf16"),
        (Runtime(device="tpu"), UsageError, "device 'tpu'; torch has auto, cpu, cuda, cuda:0"),
        (Runtime(device="cpu:1"), UsageError, "device 'cpu:1'; torch has"),
        (Runtime(device="cuda:x"), UsageError, "device 'cuda:x'; torch has"),
        (Runtime(device="cuda:99"), Missing, r"device 'cuda:99': torch sees \d CUDA devices; use"),
    ],
)
def test_a_runtime_that_cannot_be_is_refused(tiny_model, runtime, error, message):
    with pytest.raises(error, match=message):
        named("torch").open(tiny_model, runtime)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "bert"}, "model_type is 'bert'"),
        ("config.json", {"use_bidirectional_attention": False}, "use_bidirectional_attention is"),
        ("config.json", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("config.json", {"intermediate_size": 64}, r"has shape \[128, 96\]; config.json makes it"),
        (
            "config.json",
            {"num_key_value_heads": 2},
            "3 query heads do not share 2 key heads evenly",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is not supported"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length must be a posi"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"document": 5}},
            "prompts must map names to texts",
        ),
        (
            "config_sentence_transformers.json",
            {"matryoshka_dims": [48, 32]},
            "must be widths up to 96, and 96 itself",
        ),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling cls, mean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt False"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Tanh"},
            "activation torch.nn.modules.activation.Tanh; gemb has Identity alone",
        ),
        ("3_Dense/config.json", {"bias": True}, "a bias; EmbeddingGemma's dense layers have none"),
        ("tokenizer.json", {"model": {}}, "tokenizer.json: no tokenizer that can be read"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changed, name, values, message):
    with pytest.raises(UsageError, match=message):
        named("torch").open(changed(name, **values), FP32)


def test_a_tokenizer_larger_than_the_table_is_refused(tiny_model, tmp_path):
    raw = json.loads((tiny_model / "tokenizer.json").read_text())
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    size = len(raw["model"]["vocab"])
    raw["model"]["vocab"]["one more"] = size
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=rf"has {size + 1} tokens, config.json a vocabulary of"):
        named("torch").open(folder, FP32)


def test_a_folder_without_its_tokenizer_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer.json: missing from the model folder"):
        named("torch").open(folder, FP32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("file", ["model.safetensors", "3_Dense/model.safetensors"])
def test_weights_that_are_not_finite_are_refused(tiny_model, tmp_path, bad, file):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[3] = bad
    save_file(tensors, folder / file)
    with pytest.raises(UsageError, match=rf"{name} holds numbers that are not finite"):
        named("torch").open(folder, FP32)


def test_a_model_is_opened_without_the_compiler(tiny_model: Path):
    """`torch._dynamo` takes more than a second to import; random numbers on meta import it."""
    script = (
        "import sys; from pathlib import Path; from gemb.backend import Runtime;"
        "from gemb_torch import TorchBackend;"
        "model = TorchBackend().open(Path(sys.argv[1]), Runtime(device='cpu'));"
        "model.encode(model.tokenize(['the quick brown fox']));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, tiny_model], check=False).returncode == 0
