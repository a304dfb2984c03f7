"""A GGUF file unpacked into a folder: the same tokens, numbers, settings and vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from changed_gguf import ABSENT, KEY, changed
from gemb.backend import Cut, Runtime
from gemb.errors import UsageError
from gemb.evaluation.agreement import VERIFICATION_TEXTS
from gemb.models.checkpoint import open_checkpoint
from gemb.models.from_gguf import tokenizer_files, unpack
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import strings
from gemb.models.references import bundled
from gemb.plugins import able, for_model
from gemb_llamacpp.export import export
from gguf_tokens import differences
from tiny_model import PROMPTS
from token_lines import token_lines


def _unpacked(path: Path, target: Path) -> Path:
    target.mkdir()
    unpack(open_gguf(path), target)
    return target


@pytest.fixture(scope="module")
def folder(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a way through an F32 GGUF file."""
    return _unpacked(tiny_gguf, tmp_path_factory.mktemp("unpacked") / "model")


def _ids(folder: Path, lines: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(lines)]


def _vectors(model: Path) -> np.ndarray:
    precision = "fp32" if model.is_dir() else "auto"
    encoder = for_model(model).open(model, Runtime(precision=precision))
    most = encoder.profile.max_tokens
    return encoder.encode([ids[:most] for ids in encoder.tokenize(VERIFICATION_TEXTS)])


def test_the_tokenizer_is_the_one_that_the_file_was_made_from(tiny_model: Path, folder: Path):
    lines = token_lines(20_000)
    assert _ids(folder, lines) == _ids(tiny_model, lines)
    before, after = (
        json.loads((model / "tokenizer.json").read_text("utf-8")) for model in (tiny_model, folder)
    )
    assert after["added_tokens"] == before["added_tokens"]
    assert after["model"]["vocab"] == before["model"]["vocab"]


def test_the_bundled_file_gives_llama_cpps_tokens(tmp_path: Path):
    path = bundled()
    if not path.is_file():
        pytest.skip("the bundled model is not in this checkout")
    header = open_gguf(path).header
    for name, value in tokenizer_files(header, 2048).items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    size = len(strings(header, "tokenizer.ggml.tokens"))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
    assert differences(path, tmp_path, token_lines(20_000)) == []


def test_of_equal_scores_a_run_grows_as_far_as_it_can(tiny_gguf: Path, tmp_path: Path):
    """Runs of newlines share a score; llama.cpp joins the leftmost, so the run grows from there."""
    folder = _unpacked(tiny_gguf, tmp_path / "model")
    lines = ["\n" * count for count in range(1, 20)] + [" " * count for count in range(1, 20)]
    assert differences(tiny_gguf, folder, lines) == []


def test_weights_are_the_same_and_norms_give_the_same_factor(tiny_model: Path, folder: Path):
    before, after = (open_checkpoint(model) for model in (tiny_model, folder))
    assert before.tensors.keys() == after.tensors.keys()
    one = np.float32(1)
    for name, tensor in before.tensors.items():
        old, new = tensor.float32(), after.tensors[name].float32()
        if len(tensor.shape) == 1:
            old, new = one + old, one + new  # the 1 + w that the model multiplies by
        np.testing.assert_array_equal(old, new, err_msg=name)


def test_settings_come_back(tiny_model: Path, folder: Path):
    before, after = (open_checkpoint(model) for model in (tiny_model, folder))
    assert after.config == before.config
    assert after.prompts == before.prompts == PROMPTS
    assert (after.matryoshka_dims, after.max_tokens) == ((96, 48), 256)
    assert after.pooling == "mean"


def test_vectors_are_bit_for_bit_those_of_the_folder_and_llama_cpps(
    tiny_model: Path, tiny_gguf: Path, folder: Path
):
    ours = _vectors(folder)
    np.testing.assert_array_equal(ours, _vectors(tiny_model))
    # F32 on both sides; llama.cpp adds in another order.
    assert (ours * _vectors(tiny_gguf)).sum(1).min() > 0.99999


def test_sentence_transformers_opens_the_folder_and_agrees(folder: Path):
    from sentence_transformers import SentenceTransformer

    texts = ["the quick brown fox", "日本 é 🙂", "def main(args): return\n\n\n  x"]
    theirs = SentenceTransformer(str(folder), device="cpu")
    encoder = able("cut").open(folder, Runtime(precision="fp32"))
    ids = encoder.tokenize(texts)
    assert [row.tolist() for row in ids] == theirs.tokenizer(texts)["input_ids"]
    # fp32 on both sides, other orders of addition: 1e-5 as between any two right programs.
    np.testing.assert_allclose(encoder.encode(ids), theirs.encode(texts), atol=1e-5)


@pytest.mark.parametrize("outtype", ["bf16", "q8_0", "q4_0"])
def test_packed_weights_are_what_ggufs_own_reader_makes_of_them(
    tiny_model: Path, tmp_path: Path, outtype: str
):
    path = tmp_path / "packed.gguf"
    export(tiny_model, path, outtype)
    folder = _unpacked(path, tmp_path / "model")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = load_file(folder / "model.safetensors")
    assert {values.dtype for values in ours.values()} == {np.dtype(np.float32)}
    for theirs, name in (
        ("token_embd.weight", "embed_tokens.weight"),
        ("blk.2.ffn_down.weight", "layers.2.mlp.down_proj.weight"),
        ("blk.0.attn_q.weight", "layers.0.self_attn.q_proj.weight"),
    ):
        tensor = tensors[theirs]
        np.testing.assert_array_equal(
            ours[name], gguf.dequantize(tensor.data, tensor.tensor_type), err_msg=name
        )
    dense = load_file(folder / "2_Dense" / "model.safetensors")["linear.weight"]
    packed = tensors["dense_2.weight"]
    np.testing.assert_array_equal(dense, gguf.dequantize(packed.data, packed.tensor_type))


def test_there_and_back_is_the_same_file(folder: Path, tiny_model: Path, tmp_path: Path):
    """Exporting the unpacked folder gives each byte again: nothing was lost on the way."""
    assert folder.name == tiny_model.name  # general.name is the folder's
    export(tiny_model, tmp_path / "first.gguf", "f32")
    export(folder, tmp_path / "second.gguf", "f32")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_layers_keep_their_kinds_and_the_licence_is_said(tiny_model: Path, tmp_path: Path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "README.md").write_text("---\nlicense: gemma\n---\n")
    able("cut").cut(model, tmp_path / "cut", Cut(layers=(1, 2)))  # global, then sliding
    export(tmp_path / "cut", tmp_path / "cut.gguf", "bf16")
    after = open_checkpoint(_unpacked(tmp_path / "cut.gguf", tmp_path / "unpacked"))
    assert after.config.is_sliding == (False, True)
    assert after.licence() == "gemma"
    card = (tmp_path / "unpacked" / "README.md").read_text()
    assert "Unpacked by gemb from cut.gguf, whose weights are bf16, f32." in card
    assert "Gemma Terms of Use found at ai.google.dev/gemma/terms" in card


def test_a_file_of_another_converter_gets_the_cards_prompts(tiny_gguf: Path, tmp_path: Path):
    absent = {f"gemb.prompt.{name}": ABSENT for name in PROMPTS} | {"gemb.matryoshka_dims": ABSENT}
    path = changed(tiny_gguf, tmp_path / "plain.gguf", absent)
    after = open_checkpoint(_unpacked(path, tmp_path / "model"))
    assert after.prompts["query"] == "task: search result | query: "
    assert after.matryoshka_dims == (96,)


def test_another_pooling_comes_back(tiny_gguf: Path, tmp_path: Path):
    path = changed(tiny_gguf, tmp_path / "last.gguf", {f"{KEY}pooling_type": 3})
    assert open_checkpoint(_unpacked(path, tmp_path / "model")).pooling == "last"


def test_what_no_folder_can_hold_is_refused(tiny_gguf: Path, tmp_path: Path):
    odd = changed(tiny_gguf, tmp_path / "a.gguf", {f"{KEY}attention.sliding_window": 15})
    with pytest.raises(UsageError, match=r"a.gguf: the sliding window is 15, an odd number"):
        _unpacked(odd, tmp_path / "a")
    scores = gguf.GGUFReader(tiny_gguf).fields["tokenizer.ggml.scores"].contents()
    scores[300] = float("nan")
    bad = changed(tiny_gguf, tmp_path / "b.gguf", {"tokenizer.ggml.scores": scores})
    with pytest.raises(UsageError, match=r"b.gguf: a token has a score that is no number"):
        _unpacked(bad, tmp_path / "b")


def test_a_token_that_is_no_utf8_is_refused(tiny_gguf: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        "gemb.models.gguf_header.LONG", 16
    )  # longer arrays are read when they are used
    raw = tiny_gguf.read_bytes()
    place = raw.index("▁the".encode())
    (tmp_path / "c.gguf").write_bytes(raw[:place] + b"\xff" + raw[place + 1 :])
    with pytest.raises(UsageError, match=r"c.gguf: the token b'.+' is no UTF-8"):
        _unpacked(tmp_path / "c.gguf", tmp_path / "c")
