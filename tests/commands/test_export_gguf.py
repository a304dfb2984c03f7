"""The written file: its numbers, its metadata, and the refusals."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.gguf import open_gguf
from gemb_llamacpp.export import export
from tiny_model import PROMPTS, TinyShape, write_tiny_model


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemb", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _copy(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


def _with_weight(model: Path, folder: Path, name: str, change) -> Path:
    """Copy the model with one tensor changed in place."""
    copy = _copy(model, folder)
    tensors = load_file(copy / "model.safetensors")
    change(tensors[name])
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_f32_holds_the_same_numbers_and_norms_plus_one(tiny_gguf: Path, tiny_model: Path):
    written = _tensors(tiny_gguf)
    weights = load_file(tiny_model / "model.safetensors")
    pairs = {
        "token_embd": "embed_tokens",
        "blk.1.attn_q": "layers.1.self_attn.q_proj",
        "blk.2.attn_output": "layers.2.self_attn.o_proj",
        "blk.0.ffn_down": "layers.0.mlp.down_proj",
    }
    for name, source in pairs.items():
        found = written[f"{name}.weight"].data
        np.testing.assert_array_equal(found, weights[f"{source}.weight"])
    norms = {
        "output_norm": "norm",
        "blk.0.attn_norm": "layers.0.input_layernorm",
        "blk.0.attn_q_norm": "layers.0.self_attn.q_norm",
        "blk.1.attn_k_norm": "layers.1.self_attn.k_norm",
        "blk.1.post_attention_norm": "layers.1.post_attention_layernorm",
        "blk.2.ffn_norm": "layers.2.pre_feedforward_layernorm",
        "blk.2.post_ffw_norm": "layers.2.post_feedforward_layernorm",
    }
    for name, source in norms.items():
        found = written[f"{name}.weight"].data
        np.testing.assert_array_equal(found, weights[f"{source}.weight"] + np.float32(1))
    dense = load_file(tiny_model / "3_Dense" / "model.safetensors")["linear.weight"]
    np.testing.assert_array_equal(written["dense_3.weight"].data, dense)
    assert len(written) == 2 + 13 * 3 + 2


@pytest.mark.parametrize("outtype", ["bf16", "q8_0", "q4_0"])
def test_every_matrix_has_the_type_and_ggml_s_bytes(tiny_model: Path, tmp_path: Path, outtype: str):
    export(tiny_model, tmp_path / "a.gguf", outtype)
    weights = load_file(tiny_model / "model.safetensors")
    kind = gguf.GGMLQuantizationType[outtype.upper()]
    for name, tensor in _tensors(tmp_path / "a.gguf").items():
        is_norm = "norm" in name
        assert tensor.tensor_type == (gguf.GGMLQuantizationType.F32 if is_norm else kind), name
    table = _tensors(tmp_path / "a.gguf")["token_embd.weight"].data
    right = gguf.quantize(weights["embed_tokens.weight"], kind)
    assert table.tobytes() == right.tobytes()


def test_q4_0_is_the_arithmetic_of_ggml_s_reference(tiny_model: Path, tmp_path: Path):
    """Against the formula of ggml-quants.c written out, not against gguf's own code."""
    export(tiny_model, tmp_path / "a.gguf", "q4_0")
    weights = load_file(tiny_model / "model.safetensors")["layers.0.mlp.up_proj.weight"]
    raw = _tensors(tmp_path / "a.gguf")["blk.0.ffn_up.weight"].data.reshape(-1, 18)
    for block, packed in zip(weights.reshape(-1, 32)[:200], raw[:200], strict=True):
        scale = block[np.argmax(np.abs(block))] / np.float32(-8)
        inverse = np.float32(1) / scale
        codes = np.minimum(15, (block * inverse + np.float32(8.5)).astype(np.int8)).astype(np.uint8)
        assert packed[:2].tobytes() == scale.astype(np.float16).tobytes()
        assert packed[2:].tolist() == (codes[:16] | codes[16:] << 4).tolist()


def test_metadata_says_what_the_folder_says(tiny_gguf: Path, tiny_model: Path):
    found = {k: f.contents() for k, f in gguf.GGUFReader(tiny_gguf).fields.items()}
    config = json.loads((tiny_model / "config.json").read_text())
    expected = {
        "general.architecture": "gemma-embedding",
        "general.file_type": 0,
        "gemma-embedding.context_length": 256,
        "gemma-embedding.block_count": 3,
        "gemma-embedding.attention.sliding_window": config["sliding_window"],
        "gemma-embedding.rope.freq_base": 1e6,
        "gemma-embedding.rope.freq_base_swa": 1e4,
        "gemma-embedding.pooling_type": 1,
        "gemma-embedding.dense_2_feat_out": 160,
        "gemb.matryoshka_dims": [96, 48],
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert {k[12:]: v for k, v in found.items() if k.startswith("gemb.prompt.")} == PROMPTS


def test_the_layers_pattern_is_written_where_it_is_not_every_sixth(tmp_path: Path):
    odd = write_tiny_model(tmp_path / "odd", TinyShape())
    usual = write_tiny_model(
        tmp_path / "usual", TinyShape(num_hidden_layers=6, sliding_window_pattern=6)
    )
    for folder, flags in ((odd, [True, False, True]), (usual, None)):
        export(folder, tmp_path / "a.gguf", "bf16")
        fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
        field = fields.get("gemma-embedding.attention.sliding_window_pattern")
        assert (field and field.contents()) == flags
        kinds = open_checkpoint(folder).config.is_sliding
        assert open_gguf(tmp_path / "a.gguf").is_sliding == kinds


def test_the_licence_of_the_folder_goes_with_the_file(tiny_model: Path, tmp_path: Path):
    copy = _copy(tiny_model, tmp_path / "model")
    (copy / "README.md").write_text("---\nlicense: gemma\ntags: [a]\n---\n\nlicense: none\n")
    export(copy, tmp_path / "a.gguf", "q8_0")
    assert open_gguf(tmp_path / "a.gguf").description().licence == "gemma"


def test_f16_is_refused_with_the_reason(tiny_model: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_model, "-o", tmp_path / "a.gguf", "--outtype", "f16")
    assert done.returncode == 2
    assert "f16 overflows" in done.stderr
    assert "use bf16" in done.stderr
    with pytest.raises(UsageError, match="f16 overflows"):
        export(tiny_model, tmp_path / "a.gguf", "f16")


def test_rows_that_no_block_fits_are_refused(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model", TinyShape(intermediate_size=100))
    with pytest.raises(UsageError, match=r"rows of 100 values; q4_0 packs 32 .*--outtype bf16"):
        export(model, tmp_path / "a.gguf", "q4_0")
    assert not (tmp_path / "a.gguf").exists()
    export(model, tmp_path / "a.gguf", "bf16")


@pytest.mark.parametrize("outtype", ["f32", "bf16", "q4_0"])
def test_numbers_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path, outtype: str):
    def change(weights):
        weights[5, 7] = np.nan

    bad = _with_weight(tiny_model, tmp_path / "bad", "layers.1.mlp.gate_proj.weight", change)
    with pytest.raises(
        UsageError, match=r"blk.1.ffn_gate.weight holds numbers that are not finite"
    ):
        export(bad, tmp_path / "a.gguf", outtype)


def test_a_scale_beyond_fp16_is_refused_and_zeros_stay_zeros(tiny_model: Path, tmp_path: Path):
    def too_large(weights):
        weights[3, 4] = 1e6

    def nothing(weights):
        weights[:4] = 0
        weights[4] = 1e-39  # 1 / scale overflows: ggml's blocks are zeros, too

    name = "layers.1.mlp.gate_proj.weight"
    large = _with_weight(tiny_model, tmp_path / "large", name, too_large)
    with pytest.raises(UsageError, match="too large for q4_0's fp16 scales"):
        export(large, tmp_path / "a.gguf", "q4_0")
    zeros = _with_weight(tiny_model, tmp_path / "zeros", name, nothing)
    for outtype in ("q4_0", "q8_0"):
        export(zeros, tmp_path / "a.gguf", outtype)
        tensor = _tensors(tmp_path / "a.gguf")["blk.1.ffn_gate.weight"]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert not values[:5].any()
        assert values[5:].any()


def test_another_scale_of_attention_is_refused(tiny_model: Path, tmp_path: Path):
    copy = _copy(tiny_model, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text()) | {"query_pre_attn_scalar": 96}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="query_pre_attn_scalar 96 is not head_dim 32"):
        export(copy, tmp_path / "a.gguf", "bf16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["model"].update(type="Unigram"), "a Unigram model"),
        (lambda raw: raw["model"].update(byte_fallback=False), "no byte fallback"),
        (lambda raw: raw.update(normalizer={"type": "NFKC"}), "normalizer NFKC"),
        (lambda raw: raw["post_processor"]["single"].pop(), "tokens around a text"),
        (lambda raw: raw["model"]["merges"].pop(), r"has \d splits and \d merges"),
        (lambda raw: raw["model"]["vocab"].popitem(), "368 tokens, but .* 369 rows"),
        (lambda raw: raw["added_tokens"][4].update(lstrip=True), "takes white space with it"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_run_otherwise_is_refused(
    tiny_model: Path, tmp_path: Path, change, message: str
):
    copy = _copy(tiny_model, tmp_path / "model")
    raw = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    change(raw)
    (copy / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        export(copy, tmp_path / "a.gguf", "bf16")


def test_an_added_token_beyond_the_table_is_left_out(tiny_model: Path, tmp_path: Path):
    copy = _copy(tiny_model, tmp_path / "model")
    raw = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"].append(raw["added_tokens"][4] | {"id": 369, "content": "<image>"})
    (copy / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    export(copy, tmp_path / "a.gguf", "bf16")
    assert open_gguf(tmp_path / "a.gguf").vocabulary == 369


def test_the_command_verifies_and_says_so(tiny_model: Path, tmp_path: Path):
    target = tmp_path / "a.gguf"
    done = _run("export-gguf", tiny_model, "-o", target, "--outtype", "f32", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verified"] is True
    assert found["min_cosine"] > 0.99999
    assert found["size_bytes"] == target.stat().st_size


def test_a_file_below_the_bar_gets_no_name_and_exit_1(tiny_model: Path, tmp_path: Path):
    target = tmp_path / "a.gguf"
    command = ("export-gguf", tiny_model, "-o", target, "--outtype", "q4_0")
    done = _run(*command, "--min-cosine", "0.99999")
    assert done.returncode == 1, done.stderr
    assert "not written: its vectors are not the model's: least cosine 0." in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_kept_without_force(tiny_model: Path, tmp_path: Path):
    target = tmp_path / "a.gguf"
    target.write_text("mine")
    done = _run("export-gguf", tiny_model, "-o", target, "--no-verify")
    assert (done.returncode, target.read_text()) == (2, "mine")
    assert "a.gguf exists; -f overwrites it" in done.stderr
    assert _run("export-gguf", tiny_model, "-o", target, "--no-verify", "-f").returncode == 0
    assert open_gguf(target).layers == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_dry_run_writes_nothing(tiny_model: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_model, "-o", tmp_path / "a.gguf", "-n")
    assert done.returncode == 0
    assert "would write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tiny_model: Path, tmp_path: Path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "gemb", "export-gguf", tiny_model, "-o", tmp_path / "a.gguf"]
    done = subprocess.run(
        [*map(str, command), "--no-verify"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith(f"gemb: {tmp_path / 'a.gguf'}: file too large")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_slash_at_the_end_of_the_output_is_no_file(tiny_model: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_model, "-o", f"{tmp_path}/new/")
    assert done.returncode == 2
    assert f"{tmp_path}/new/ is a folder; name a file in it" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_to_be_made_is_named_as_a_shell_takes_it(tiny_model: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_model, "-o", tmp_path / "my models" / "a.gguf")
    folder = tmp_path / "my models"
    assert done.stderr == f"gemb: no such folder: {folder}; make it first: mkdir -p '{folder}'\n"


def test_a_gguf_or_nothing_as_the_source_is_refused(tiny_gguf: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_gguf, "-o", tmp_path / "a.gguf")
    assert (done.returncode, "takes a model folder" in done.stderr) == (2, True)
    done = _run("export-gguf", tmp_path / "nothing", "-o", tmp_path / "a.gguf")
    assert done.returncode == 4
    done = _run("export-gguf", tmp_path, "-o", tmp_path / "a.gguf", "--no-verify")
    assert (done.returncode, "has no config.json" in done.stderr) == (2, True)


def test_what_is_no_file_of_its_own_is_refused_as_the_target(tiny_model: Path, tmp_path: Path):
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    for target, message in (
        ("-", "cannot go to standard output"),
        ("", "the name is empty"),
        (tmp_path / "out", "is no regular file"),
    ):
        done = _run("export-gguf", tiny_model, "-o", target, "--no-verify", "-f")
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "out").is_symlink()


def test_a_link_is_followed_and_permissions_stay(tiny_model: Path, tmp_path: Path):
    (tmp_path / "old.gguf").write_text("old")
    (tmp_path / "old.gguf").chmod(0o640)
    for name, force in (("old.gguf", ["-f"]), ("new.gguf", [])):
        link = tmp_path / f"to-{name}"
        link.symlink_to(name)
        done = _run("export-gguf", tiny_model, "-o", link, "--no-verify", *force)
        assert done.returncode == 0, done.stderr
        assert link.is_symlink()
        assert open_gguf(tmp_path / name).layers == 3
    assert (tmp_path / "old.gguf").stat().st_mode & 0o777 == 0o640


def test_one_kind_of_attention_is_refused_before_writing_by_the_models_name(tmp_path: Path):
    shape = TinyShape(num_hidden_layers=2, sliding_window_pattern=6)
    model = write_tiny_model(tmp_path / "model", shape)
    for more in ([], ["-n"], ["--no-verify"]):
        done = _run("export-gguf", model, "-o", tmp_path / "a.gguf", *more)
        assert done.returncode == 2
        assert done.stderr.startswith(f"gemb: {model}: its attention is sliding in every layer (2)")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_dry_run_prints_json(tiny_model: Path, tmp_path: Path):
    done = _run("export-gguf", tiny_model, "-o", tmp_path / "a.gguf", "-n", "--json")
    found = json.loads(done.stdout)
    assert found["dry_run"] is True
    assert _run("export-gguf", tiny_model, "-o", tmp_path / "a.gguf").returncode == 0
    size = (tmp_path / "a.gguf").stat().st_size
    assert 0.5 * size < found["about_bytes"] < size  # the tokens and the norms come on top
