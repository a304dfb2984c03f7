"""Model folders as transformers and sentence-transformers leave them: which file says what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from changed_gguf import changed
from gemb.backend import Runtime
from gemb.embedding.pipeline import Embedder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import UsageError
from gemb.evaluation.evaluate import _sizes
from gemb.models.checkpoint import backbone_tensors, describe_folder, open_checkpoint
from gemb.models.gguf import open_gguf
from gemb.models.hub_cache import missing_files
from gemb.models.profile import ModelProfile
from gemb.models.prompts import for_task
from gemb.models.safetensors import read_header
from gemb.plugins import describe
from gemb.texts.records import Record
from gemb_llamacpp.export import export
from gemb_torch import TorchBackend
from lfs_pointer import OLD_POINTER, POINTER

TRUNCATED = "config_sentence_transformers.json"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, **entries: object) -> None:
    """Set entries of a JSON file; None removes one."""
    raw = json.loads(path.read_text()) if path.exists() else {}
    raw |= entries
    path.write_text(json.dumps({key: raw[key] for key in raw if raw[key] is not None}))


def profile(folder: Path) -> ModelProfile:
    """Return the profile of the folder when PyTorch runs it."""
    encoder = TorchBackend().open(folder, Runtime(device="cpu"))
    try:
        return encoder.profile
    finally:
        encoder.close()


def in_shards(folder: Path) -> dict[str, np.ndarray]:
    """Write the folder's weights as two shards with their index, and return them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_a_whole_file_of_weights_comes_before_an_index(model):
    tensors = in_shards(model)
    newer = tensors | {"norm.weight": tensors["norm.weight"] + 1}
    save_file(newer, model / "model.safetensors")
    opened = open_checkpoint(model).tensors
    assert {tensor.path.name for tensor in backbone_tensors(model).values()} == {
        "model.safetensors"
    }
    np.testing.assert_array_equal(opened["norm.weight"].float32(), newer["norm.weight"])
    for shard in model.glob("model-0*"):
        shard.unlink()
    assert open_checkpoint(model).tensors.keys() == opened.keys()
    assert missing_files(model) == []


def test_an_index_counts_where_there_is_no_whole_file(model):
    tensors = in_shards(model)
    (model / "model.safetensors").unlink()
    opened = open_checkpoint(model).tensors
    np.testing.assert_array_equal(opened["norm.weight"].float32(), tensors["norm.weight"])
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model-00002-of-00002.safetensors: missing"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("module", "tokenizer", "tokens"),
    [
        ({"max_seq_length": 100}, {"model_max_length": 50}, 100),
        ({"max_seq_length": None}, {"model_max_length": 50}, 50),
        ({"max_seq_length": None}, {"model_max_length": 1e30}, 256),
        ({"max_seq_length": None}, {"model_max_length": 10**30}, 256),
        ({"max_seq_length": None}, {"model_max_length": None}, 256),
        ({"max_seq_length": 9999}, {}, 256),
        ({"max_seq_length": 100, "tokenizer_args": {"model_max_length": 30}}, {}, 30),
        ({"max_seq_length": None, "processor_kwargs": {"model_max_length": 30}}, {}, 30),
    ],
)
def test_the_longest_text_is_found_where_sentence_transformers_finds_it(
    model, module, tokenizer, tokens
):
    edit(model / "sentence_bert_config.json", **module)
    edit(model / "tokenizer_config.json", **tokenizer)
    assert open_checkpoint(model).max_tokens == tokens
    assert profile(model).max_tokens == tokens


def test_the_settings_of_the_module_may_have_an_older_name(model):
    (model / "sentence_bert_config.json").rename(model / "sentence_roberta_config.json")
    edit(model / "sentence_roberta_config.json", max_seq_length=77)
    assert open_checkpoint(model).max_tokens == 77


@pytest.mark.parametrize("length", ["512", -1, 0, 12.5, True])
def test_a_length_that_is_none_is_refused(model, length):
    edit(model / "sentence_bert_config.json", max_seq_length=None)
    edit(model / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UsageError, match=r"tokenizer_config.json: model_max_length must be"):
        open_checkpoint(model)


def test_a_file_holds_the_longest_text_and_the_width_of_its_folder(model, tmp_path):
    edit(model / "sentence_bert_config.json", max_seq_length=None)
    edit(model / "tokenizer_config.json", model_max_length=50)
    edit(model / TRUNCATED, truncate_dim=40)
    export(model, tmp_path / "a.gguf", "f32")
    file = open_gguf(tmp_path / "a.gguf")
    assert file.header.metadata["gemma-embedding.context_length"] == 50
    assert file.profile().width == file.description().default_dim == 40
    assert file.profile().matryoshka_dims == (96, 48, 40)
    with pytest.raises(UsageError, match=r"gemb.truncate_dim is 97 of 96"):
        open_gguf(changed(tmp_path / "a.gguf", tmp_path / "b.gguf", {"gemb.truncate_dim": 97}))


def test_vectors_have_the_width_that_the_folder_names(model):
    edit(model / TRUNCATED, truncate_dim=48)
    known = profile(model)
    prompt = for_task("document", known.prompts)
    assert known.dim == 96
    assert VectorSpec.of(known, prompt).dim == 48
    assert VectorSpec.of(known, prompt, dim=96).dim == 96
    assert [size.dim for size in _sizes(known, (), ("f32",))] == [48]
    assert [size.dim for size in _sizes(known, (96, 48), ("f32",))] == [96, 48]
    assert describe_folder(model).default_dim == 48


def test_a_width_that_is_wider_than_the_vectors_changes_nothing(model):
    edit(model / TRUNCATED, truncate_dim=4096)
    assert open_checkpoint(model).default_dim == 96
    assert open_checkpoint(model).matryoshka_dims == (96, 48)
    edit(model / TRUNCATED, truncate_dim="48")
    with pytest.raises(UsageError, match="truncate_dim must be a positive whole number, not '48'"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "2_Dense/model.safetensors",
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ],
)
def test_a_pointer_of_git_lfs_is_named(model, name):
    if name == "model.safetensors.index.json":
        (model / "model.safetensors").unlink()
    (model / name).write_text(POINTER)
    with pytest.raises(UsageError, match=rf"{name}: a Git LFS pointer, .* git lfs pull"):
        profile(model)


def test_a_pointer_in_place_of_a_file_is_named(tmp_path):
    for name in ("a.gguf", "model.bin"):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(UsageError, match=rf"{name}: a Git LFS pointer, .* git lfs pull"):
            describe(tmp_path / name)
    (tmp_path / "model.bin").write_text(OLD_POINTER)
    with pytest.raises(UsageError, match=r"model.bin: a Git LFS pointer"):
        read_header(tmp_path / "model.bin")


def test_an_odd_window_is_refused_in_a_file_as_in_a_folder(tiny_gguf, tmp_path):
    window = "gemma-embedding.attention.sliding_window"
    with pytest.raises(UsageError, match=r"b.gguf: the sliding window is 17, an odd number"):
        open_gguf(changed(tiny_gguf, tmp_path / "b.gguf", {window: 17}))
    assert open_gguf(changed(tiny_gguf, tmp_path / "c.gguf", {window: 18})).layers == 3


def test_a_folder_that_sentence_transformers_saved_gives_its_vectors(model, tmp_path):
    """With a limit and a width of its own, on a text that is longer than the limit."""
    from sentence_transformers import SentenceTransformer

    saved = SentenceTransformer(str(model), device="cpu")
    saved.max_seq_length, saved.truncate_dim = 20, 48
    folder = tmp_path / "saved"
    saved.save_pretrained(str(folder))
    assert "max_seq_length" not in json.loads((folder / "sentence_bert_config.json").read_text())
    texts = ["the quick brown fox", "the planet known as the red planet in the sky " * 8]
    expected = SentenceTransformer(str(folder), device="cpu").encode(
        texts, prompt_name="document", normalize_embeddings=True
    )
    encoder = TorchBackend().open(folder, Runtime(device="cpu", precision="fp32"))
    try:
        records = [Record(id=number, place="", text=text) for number, text in enumerate(texts)]
        vectors = Embedder.of(encoder, "document").window(records).vectors
    finally:
        encoder.close()
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("2_Dense/config.json", "use_residual", True),
        ("2_Dense/config.json", "module_input_name", "token_embeddings"),
        ("3_Dense/config.json", "module_output_name", "other"),
    ],
)
def test_a_dense_layer_that_computes_otherwise_is_refused(
    model: Path, file: str, key: str, value: object
) -> None:
    edit(model / file, **{key: value})
    with pytest.raises(UsageError, match=f"{file}: {key} is {value!r}"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "its_own.Transformer"}, "its_own.Transformer is code of its own"),
        ({"path": "0_Transformer"}, "the Transformer is in 0_Transformer"),
    ],
)
def test_a_transformer_of_its_own_code_or_folder_is_refused(
    model: Path, entry: dict[str, str], words: str
) -> None:
    modules = json.loads((model / "modules.json").read_text())
    modules[0] |= entry
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match=words):
        open_checkpoint(model)


def test_a_tensor_that_stands_twice_is_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    twice = tensors | {"model.norm.weight": -tensors["norm.weight"]}
    save_file(twice, model / "model.safetensors")
    with pytest.raises(UsageError, match=r"tensor norm.weight stands twice, in model.safetensors"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle.* save it again"),
        ("model.fp16.safetensors", "model.fp16.safetensors is there: name it model.safetensors"),
        ("model-00001-of-00002.safetensors", r"fetch model.safetensors.index.json"),
    ],
)
def test_weights_under_another_name_are_named_with_the_way_out(
    model: Path, name: str, words: str
) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(UsageError, match=f"model.safetensors: missing .*{words}"):
        open_checkpoint(model)


def test_a_tokenizer_that_cuts_the_beginning_is_refused(model: Path) -> None:
    edit(model / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(UsageError, match=r"tokenizer_config.json: truncation_side is 'left'"):
        open_checkpoint(model)
    edit(model / "tokenizer_config.json", truncation_side="right")
    open_checkpoint(model)
