"""Model folders that are broken, or somebody's trap: refused in one line by whatever opens them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gemb.backend import Runtime
from gemb.errors import UsageError
from gemb.io.foreign import json_value, read_bytes
from gemb.models.checkpoint import describe_folder, open_checkpoint
from gemb.models.config import whole_number
from gemb.models.hub_cache import missing_files
from gemb.models.safetensors import read_header
from gemb.models.tokenizer import load_tokenizer
from gemb.models.tokenizer_json import read_tokenizer
from gemb.plugins import named

NORM = "layers.1.post_attention_layernorm.weight"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def change_json(path: Path, **changes: object) -> None:
    raw = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


# JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "its JSON is nested too deeply to be read"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "its JSON is nested too deeply to be read"),
        (b'{"a": "\\ud800"}', "its JSON holds half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "its JSON holds half of a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "not JSON: 'utf-8' codec can't decode"),
        (b"{", "not JSON: Expecting property name"),
        (b"", "not JSON: Expecting value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
    ],
)
def test_json_that_python_does_not_survive_is_refused(text: bytes, message: str):
    assert refusal(lambda: json_value(text, "x.json")).startswith(f"x.json: {message}")


def test_a_pair_of_surrogates_is_a_character_and_a_key_twice_an_error_where_it_counts():
    assert json_value(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\N{GRINNING FACE}"}
    assert json_value(b'{"a": 1, "a": 2}', "x") == {"a": 2}
    said = refusal(lambda: json_value(b'{"b": {"a": 1, "a": 2}}', "x", unique=True))
    assert said == "x: not JSON: the key 'a' occurs twice in one object"


@pytest.mark.parametrize(
    "value", [True, 0, -1, 1.0, 2**31, 10**400, "1", None, [1], {"a": 1}, float("nan")]
)
def test_a_whole_number_is_one(value: object):
    assert "must be a positive whole number" in refusal(
        lambda: whole_number(Path("x.json"), {"n": value}, "n")
    )


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"num_hidden_layers": 10**9, "layer_types": None}, "up to 512, not 10000"),
        ("config.json", {"hidden_size": 10**400}, "hidden_size must be a positive whole number"),
        ("config.json", {"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number"),
        ("config.json", {"layer_types": [{}, [], 1]}, "layer_types must name 3"),
        (
            "config.json",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": []},
                    "sliding_attention": {"rope_type": 1},
                }
            },
            r"rope_type \[\[\], 1\]; EmbeddingGemma has 'default'",
        ),
        ("config.json", {"rope_parameters": 5}, "rope_parameters lacks"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling 5, include_prompt"),
        ("1_Pooling/config.json", {"pooling_mode": [{}]}, "pooling {}, include_prompt"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "max_seq_length must be a posit"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts must map"),
        ("config_sentence_transformers.json", {"matryoshka_dims": [True, 96]}, "must be widths"),
    ],
)
def test_values_of_other_types_are_named(folder: Path, file: str, changes: Any, message: str):
    change_json(folder / file, **changes)
    with pytest.raises(UsageError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder / file) in str(error.value)


@pytest.mark.parametrize("modules", [[1], [[]], {"a": 1}, None, [{"type": 1, "path": ""}], "x"])
def test_modules_that_are_no_list_of_modules(folder: Path, modules: object):
    (folder / "modules.json").write_text(json.dumps(modules))
    assert str(folder / "modules.json") in refusal(lambda: open_checkpoint(folder))


# Nothing outside


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/dev/zero", "a/../../b", "", 5, {}, [], None, "x" * 300, "y/" * 3000],
)
def test_weights_outside_the_folder_are_refused(folder: Path, name: object):
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{name!r} is no file in the model folder" in refusal(lambda: open_checkpoint(folder))


@pytest.mark.parametrize("name", ["x" * 300, "\N{SNOWMAN}" * 90, "y/" * 2000 + "z"])
def test_a_file_whose_name_no_disk_takes_is_missing(folder: Path, name: str):
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_files(folder) == [name]


def test_a_module_outside_the_folder_is_missing(folder: Path):
    modules = json.loads((folder / "modules.json").read_bytes())
    modules[2]["path"] = "../model/2_Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "../model/2_Dense/config.json" in missing_files(folder)
    assert "modules in 1_Pooling, ../model/2_Dense" in refusal(lambda: open_checkpoint(folder))


def test_links_to_regular_files_are_followed_as_in_the_hubs_cache(folder: Path, tmp_path: Path):
    right = open_checkpoint(folder).fingerprint()
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(filter(Path.is_file, folder.rglob("*")))):
        blob = path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(blob)
    assert open_checkpoint(folder).fingerprint() == right


# Files without an end

FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "model.safetensors",
    "2_Dense/model.safetensors",
    "model.safetensors.index.json",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "zero", "hole", "folder", "circle"])
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_regular_file_of_a_right_size_is_not_read(folder: Path, file: str, kind: str):
    path = folder / file
    if kind == "circle" and file.endswith("index.json"):
        pytest.skip("then there is none")
    path.unlink(missing_ok=True)
    if file.endswith("index.json"):  # it is read where there is no whole file
        (folder / "model.safetensors").rename(folder / "part.safetensors")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "circle":
            path.symlink_to(path.name)
        case "hole":
            with path.open("wb") as hole:
                hole.truncate(1 << 36)
    said = refusal(lambda: named("torch").describe(folder))
    assert file.rpartition("/")[2] in said


@pytest.mark.parametrize("file", ["README.md", "LICENSE-x"])
def test_a_pipe_beside_the_weights_hangs_nothing(folder: Path, file: str):
    os.mkfifo(folder / file)
    assert describe_folder(folder).licence == ""


def test_a_file_is_read_up_to_its_bound(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    assert "5 B, and such a file has at most 4 B" in refusal(lambda: read_bytes(path, 4))


@pytest.mark.timeout(60)
def test_a_normalizer_that_makes_texts_longer_and_longer_is_refused(folder: Path):
    path = folder / "tokenizer.json"
    right = json.loads(path.read_bytes())["normalizer"]
    doubling = {"type": "Replace", "pattern": {"String": "Q"}, "content": "QQ"}
    change_json(path, normalizer={"type": "Sequence", "normalizers": [doubling] * 40 + [right]})
    said = refusal(lambda: load_tokenizer(path, 10**6))
    assert "a normalizer that makes texts longer, over 64 times" in said


def test_a_token_of_a_megabyte_is_refused(folder: Path):
    path = folder / "tokenizer.json"
    model = json.loads(path.read_bytes())["model"]
    token = next(token for token in model["vocab"] if len(token) > 2)
    model["vocab"]["a" * (1 << 20)] = model["vocab"].pop(token)
    change_json(path, model=model)
    assert "model.vocab" in refusal(lambda: read_tokenizer(path))


# Tensors


def broken_header(path: Path, change: Callable[[dict[str, Any]], None], more: bytes = b"") -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + more)


def moved(step: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[NORM]["data_offsets"] = [n + step for n in header[NORM]["data_offsets"]]

    return change


def entry(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[NORM].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(-4), f"tensor {NORM} overlaps the one before it"),
        (moved(-1), f"tensor {NORM} overlaps the one before it"),
        (moved(384), f"tensor {NORM} follows a hole|overlaps"),
        (lambda header: header.pop(NORM), "follows a hole"),
        (entry(dtype={"a": 1}), "is {'a': 1}; gemb reads"),
        (entry(dtype="I64"), "is I64; gemb reads"),
        (entry(shape=[96, True]), "is broken; fetch"),
        (entry(shape=[1 << 60]), "is broken; fetch"),
        (entry(shape=[1] * 2000), "is broken; fetch"),
        (entry(shape=[95]), "not its shape's"),
        (entry(data_offsets=[0]), "is broken; fetch"),
        (entry(data_offsets=["0", "384"]), "is broken; fetch"),
        (lambda header: header.update({NORM: 5}), "is broken; fetch"),
        (lambda header: header.update(__metadata__={"a": 1}), "must map names to texts"),
        (lambda header: header.update(__metadata__=[]), "must map names to texts"),
    ],
)
def test_a_header_is_read_as_strictly_as_by_the_package(folder: Path, change, message: str):
    path = folder / "model.safetensors"
    broken_header(path, change)
    with pytest.raises(UsageError, match=message):
        read_header(path)
    with pytest.raises((SafetensorError, ValueError, TypeError, KeyError)):
        load_file(path)


def test_bytes_behind_the_last_tensor_are_refused(folder: Path):
    path = folder / "model.safetensors"
    broken_header(path, lambda header: None, b"12345")
    assert "5 bytes follow the last tensor" in refusal(lambda: read_header(path))
    with pytest.raises(SafetensorError):
        load_file(path)


def test_a_tensor_twice_is_refused(folder: Path):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    again = json.dumps(json.loads(header)[NORM])
    header = header.replace("{", f'{{"{NORM}":{again},', 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[8 + length :])
    assert f"the key {NORM!r} occurs twice" in refusal(lambda: read_header(path))


def test_a_model_whose_numbers_are_zero_gives_failed_rows(folder: Path, tmp_path: Path):
    from gemb.embedding.pipeline import Embedder
    from gemb.texts.records import Record

    path = folder / "3_Dense" / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:start] + bytes(len(data) - start))
    encoder = named("torch").open(folder, Runtime(device="cpu"))
    assert np.isnan(encoder.encode(encoder.tokenize(["hello"]))).all()
    window = Embedder.of(encoder, "none").window([Record(1, "row 1", text="hello")])
    assert window.rows[0].error is not None
    assert window.rows[0].error.code == "not_finite"
    assert np.isnan(window.vectors).all()


# Tokenizers


def without(key: str, value: object = ...) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw.pop(key) if value is ... else raw.update({key: value})


def in_model(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["model"].update(changes)


def flagged(flag: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: [token.update({flag: True}) for token in raw["added_tokens"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("post_processor"), "it puts nothing around a text, not <bos> and <eos>"),
        (
            lambda raw: raw["post_processor"]["single"].pop(),
            "it puts <bos> around a text, not <bos> and <eos>",
        ),
        (
            lambda raw: raw["post_processor"]["special_tokens"]["<eos>"].update(ids=[7]),
            "it puts <bos> .* around a text",
        ),
        (without("normalizer"), "are not its characters, with U.2581 for a space"),
        (without("normalizer", {"type": "Lowercase"}), "are not its characters"),
        (
            without(
                "normalizer",
                {
                    "type": "Sequence",
                    "normalizers": [
                        {"type": "NFKC"},
                        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                    ],
                },
            ),
            "are not its characters",
        ),
        (without("added_tokens", []), "'<.*>' is not found as one token"),
        (
            lambda raw: raw["added_tokens"].pop(5),
            "'<unused0>' is not found as one token",
        ),
        (in_model(merges=[]), "it finds 0 of .* of its words: merges are missing"),
        (in_model(byte_fallback=False), "is not cut into its bytes"),
        (flagged("lstrip"), "are not its characters"),
        (flagged("rstrip"), "are not its characters"),
        (flagged("single_word"), "not found as one token|not its characters"),
    ],
)
def test_a_tokenizer_is_tried_before_its_model_is_used(folder: Path, change, message: str):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=f"not Gemma's tokenizer: .*{message}") as error:
        named("torch").open(folder, Runtime(device="cpu"))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_tokenizer_of_the_right_kind_is_taken_with_another_pre_tokenizer(folder: Path):
    """That it splits at spaces says nothing: they are U+2581 by then."""
    path = folder / "tokenizer.json"
    right = load_tokenizer(path, 369).encode("the quick <h1> brown").ids
    raw = json.loads(path.read_bytes()) | {"pre_tokenizer": None}
    path.write_text(json.dumps(raw))
    assert load_tokenizer(path, 369).encode("the quick <h1> brown").ids == right


def test_a_prefix_of_subwords_never_reaches_the_library(folder: Path):
    """It would end the process (tokenizers 0.23)."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_bytes())
    raw["model"]["continuing_subword_prefix"] = "##"
    path.write_text(json.dumps(raw))
    message = "continuing_subword_prefix, which Gemma's tokenizer does not have"
    assert message in refusal(lambda: load_tokenizer(path, 369))
    path.write_text(path.read_text().replace("continuing_sub", "\\u0063ontinuing_sub"))
    assert message in refusal(lambda: load_tokenizer(path, 369))
    for nothing in (None, ""):
        raw["model"]["continuing_subword_prefix"] = nothing
        path.write_text(json.dumps(raw))
        load_tokenizer(path, 369)


@pytest.mark.parametrize("text", ['["\\u0041"]', '"\\u0041"', "[" * 100_000 + '"\\u0041"'])
def test_a_tokenizer_that_is_no_object_is_refused(folder: Path, text: str):
    path = folder / "tokenizer.json"
    path.write_text(text)
    assert refusal(lambda: load_tokenizer(path, 369)).startswith(f"{path}: ")


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_a_regular_expression_in_a_tokenizer_is_not_run(folder: Path, part: str):
    pattern = {"Regex": "(a*)*b"}
    kinds = {
        "normalizer": {"type": "Replace", "pattern": pattern, "content": "x"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": pattern,
            "behavior": "Isolated",
            "invert": False,
        },
    }
    change_json(folder / "tokenizer.json", **{part: kinds[part]})
    said = refusal(lambda: load_tokenizer(folder / "tokenizer.json", 369))
    assert "a regular expression, which Gemma's tokenizer does not have" in said


LONGER = {
    "normalizer": [
        {"type": "Replace", "pattern": {"String": " "}, "content": "z" * 1_000_000},
        {"type": "Replace", "pattern": {"String": ""}, "content": "z"},
        {"type": "Prepend", "prepend": "z" * 1_000_000},
    ],
    "pre_tokenizer": [
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    ],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("part", "step"), [(p, step) for p in LONGER for step in LONGER[p]])
def test_a_step_that_makes_texts_longer_is_not_run(folder: Path, part: str, step: dict):
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
    right = json.loads((folder / "tokenizer.json").read_text())[part]
    for value in (step, {"type": "Sequence", names[part]: [right, *[step] * 30]}):
        change_json(folder / "tokenizer.json", **{part: value})
        said = refusal(lambda: load_tokenizer(folder / "tokenizer.json", 369))
        assert "that makes texts longer" in said
    change_json(folder / "tokenizer.json", **{part: {"type": "Sequence", names[part]: [right]}})
    load_tokenizer(folder / "tokenizer.json", 369)


BROKEN = [
    ({"model": 5}, "model"),
    ({"model": {"type": "Unigram"}}, "a Unigram model; Gemma's tokenizer is BPE"),
    ({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, "model.vocab"),
    ({"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}}, "model.vocab"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": ["a b c"]}}, "model.merges"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": [[1, 2]]}}, "model.merges"),
    ({"added_tokens": 5}, "added_tokens"),
    ({"added_tokens": [{"id": "x", "content": "y"}]}, "added_tokens"),
    ({"added_tokens": [{"id": 5}]}, "added_tokens"),
    ({"normalizer": 1.5}, "normalizer"),
    ({"post_processor": 7}, "post_processor"),
    ({"post_processor": {"single": [5]}}, "post_processor"),
    ({"post_processor": {"single": [{}]}}, "post_processor"),
    ({"post_processor": {"special_tokens": {"a": 1}}}, "post_processor"),
    ({"post_processor": {"special_tokens": {"a": {"ids": ["x"]}}}}, "post_processor"),
]


@pytest.mark.parametrize(("changes", "key"), BROKEN)
def test_a_tokenizer_with_other_types_in_it_is_refused(folder: Path, changes: Any, key: str):
    path = folder / "tokenizer.json"
    change_json(path, **changes)
    assert key in refusal(lambda: read_tokenizer(path))
    for work in (
        lambda: named("torch").open(folder, Runtime(device="cpu")),
        lambda: named("llamacpp").export_gguf(folder, None, outtype="auto"),
    ):
        assert str(path) in refusal(work)


@pytest.mark.parametrize("tokens", [..., [], None])
def test_an_export_without_the_added_tokens_is_refused(folder: Path, tokens: object):
    change_json(folder / "tokenizer.json", added_tokens=tokens)
    said = refusal(lambda: named("llamacpp").export_gguf(folder, None, outtype="auto"))
    assert "added" in said


def test_an_absent_flag_is_false(folder: Path):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_bytes())
    right = read_tokenizer(path)
    for token in raw["added_tokens"]:
        del token["lstrip"], token["single_word"]
    path.write_text(json.dumps(raw))
    assert read_tokenizer(path) == right
