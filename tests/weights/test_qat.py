"""Weights rounded in training are the numbers of the file: block by block, and in a whole run."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors.numpy import load_file, save_file

from gemb.backend import Runtime, Training
from gemb.errors import UsageError
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.from_gguf import unpack
from gemb.models.gguf import open_gguf
from gemb.models.tensors import gguf_name, tensor_class
from gemb.plugins import able, for_model
from gemb.recipe.file import load as load_recipe
from gemb_llamacpp.export import export
from gemb_torch.model.ranks import Ranks
from gemb_torch.model.rounding import Rounding, round_to
from gemb_torch.model.sharding import full, shard
from gemb_torch.train.objective import objective
from gemb_torch.train.run import TrainingRun
from gradient_cases import (
    CASES,
    TABLE,
    batch_of,
    difference,
    gradients_by,
    model_of,
    one_thread,
    part_of,
    plain_gradients,
)
from processes import in_processes
from tiny_model import TinyShape, write_tiny_model
from triplets import write_pairs

TYPES = {"token_embd": "q4_0", "attention": "q8_0", "ffn": "q4_0", "dense": "bf16"}
STEPS = 4


def of_gguf(x: np.ndarray, type_: str) -> np.ndarray:
    """Return what gguf's own quantizer makes of the rows."""
    kind = gguf.GGMLQuantizationType[type_.upper()]
    with np.errstate(all="ignore"):
        return gguf.dequantize(gguf.quantize(x, kind), kind).reshape(x.shape)


def of_ggml(x: np.ndarray, type_: str) -> np.ndarray:
    """Return what llama.cpp's compiled quantizer makes of the rows."""
    # The package is not imported: it would take the library's log away from gemb.
    package = find_spec("llama_cpp")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "lib"
    (path, *_) = [*folder.glob("libggml-base.so"), *folder.glob("libggml-base.dylib")]
    quantize = ctypes.CDLL(str(path)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    kind = gguf.GGMLQuantizationType[type_.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    x = np.ascontiguousarray(x)
    packed = np.empty((len(x), x.shape[1] // block * size), np.uint8)
    written = quantize(int(kind), x.ctypes.data, packed.ctypes.data, 0, *x.shape, None)
    assert written == packed.nbytes
    with np.errstate(all="ignore"):
        return gguf.dequantize(packed, kind)


def ours(x: np.ndarray, type_: str) -> np.ndarray:
    rounded = torch.from_numpy(x.copy())
    round_to(rounded, type_)
    return rounded.numpy()


def adversarial() -> dict[str, np.ndarray]:
    """Blocks of 32 on which wrong arithmetic shows."""
    random = np.random.default_rng(0)
    normal = (random.standard_normal((2000, 96)) * 0.03).astype(np.float32)
    magnitudes = 10.0 ** random.integers(-46, 9, (2000, 3))
    special = np.zeros((16, 32), np.float32)
    special[1] = -0.0
    special[2, :2] = 1, -1  # of equals the first decides the sign of the scale
    special[3, :2] = -1, 1
    special[4, 5], special[4, 9] = -3, 3
    special[5] = 1e-7  # a scale that fp16 takes for 0
    special[6] = 1e-5 * np.linspace(-1, 1, 32)  # one that is subnormal in fp16
    special[7] = 1e6 * np.linspace(-1, 1, 32)  # one beyond fp16, of q4_0
    special[8] = 1e-38 * np.linspace(-1, 1, 32)  # 1 / scale is infinite
    special[9] = 1e-45
    special[10] = 3e38 * np.linspace(-1, 1, 32)
    special[11, 31] = 5e-40
    special[12] = np.float32(65504 * 8) * np.linspace(-1, 1, 32)
    special[13] = np.nextafter(np.arange(32, dtype=np.float32) + np.float32(0.5), np.float32(0))
    special[13, 31] = 127  # codes of q8_0 just below a half
    special[14] = 7.5 / 127 * np.arange(32)
    special[15] = 1
    return {
        "normal": normal,
        "bf16": torch.from_numpy(normal).bfloat16().float().numpy(),
        "fp16": normal.astype(np.float16).astype(np.float32),
        "on the codes and between": (random.integers(-16, 17, (2000, 96)) / 16).astype(np.float32),
        "halves": (random.integers(-254, 255, (2000, 96)) / 2).astype(np.float32),
        "all magnitudes": (normal * magnitudes.repeat(32, 1)).astype(np.float32),
        "special": special,
    }


@pytest.mark.parametrize("type_", ["q4_0", "q8_0", "bf16", "f32"])
@pytest.mark.parametrize("name", adversarial())
def test_numbers_are_those_of_gguf_and_of_llama_cpp(name, type_):
    x = adversarial()[name]
    found = ours(x, type_)
    np.testing.assert_array_equal(found, of_gguf(x, type_))  # NaN where NaN is
    if type_ in ("q4_0", "q8_0"):
        np.testing.assert_array_equal(found, of_ggml(x, type_))
    if type_ == "q8_0" or name != "special":
        assert np.isfinite(found).any()


@settings(max_examples=200, deadline=None)
@given(
    st_numpy.arrays(
        np.float32, (2, 32), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
    ),
    st.sampled_from(["q4_0", "q8_0", "bf16"]),
)
def test_any_block_and_what_was_rounded_stays(x, type_):
    once = ours(x, type_)
    np.testing.assert_array_equal(once, of_gguf(x, type_))
    np.testing.assert_array_equal(ours(once, type_), once)
    np.testing.assert_array_equal(of_gguf(once, type_), once)


def rounded_state(model: torch.nn.Module, types: dict[str, str]) -> dict[str, torch.Tensor]:
    """Return the weights as gguf's quantizers round them."""
    return {
        name: torch.from_numpy(of_gguf(p.detach().numpy(), types[tensor_class(name)]))
        if tensor_class(name) in types
        else p.detach().clone()
        for name, p in model.named_parameters()
    }


def quantized_gradients(model, case, ranks, batches) -> dict[str, torch.Tensor]:
    """Return what a step of training computes, of the whole table."""
    from gemb_torch.train.batches import row_ids

    rounding = Rounding(model, TYPES, table=False)
    made = gradients_by(model, case, ranks, 64)
    table = model.get_parameter(TABLE)
    ids = ranks.union(row_ids(batches))
    rows = table.detach()[torch.from_numpy(ids)].requires_grad_()
    rounding.rows(rows)
    with rounding.applied():
        for batch in batches:
            made.add(batch, rows, ids)
    found = {name: p.grad for name, p in model.named_parameters() if name != TABLE}
    assert rows.grad is not None
    ranks.sum([*found.values(), rows.grad])
    whole = torch.zeros_like(table).index_add_(0, torch.from_numpy(ids), rows.grad)
    return {**found, TABLE: whole}


@pytest.mark.parametrize("name", ["hard negatives", "activation checkpointing"])
def test_gradients_go_straight_through_from_the_rounded_weights(name, tiny_model):
    case = CASES[name]
    batch = batch_of(12, case)
    with one_thread():
        model = model_of(tiny_model, case)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        found = quantized_gradients(model, case, Ranks(), [batch])
        rounded = model_of(tiny_model, replace(case, recomputes=False))
        rounded.load_state_dict(rounded_state(rounded, TYPES))
        expected = plain_gradients(rounded, [batch], partial(objective, case.loss))
        plain = plain_gradients(model_of(tiny_model, case), [batch], partial(objective, case.loss))
    assert difference(found, expected) < 1e-6
    assert difference(found, plain) > 1e-2, "the rounding does not show"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_weights_come_back_after_an_error(tiny_model):
    model = model_of(tiny_model, CASES["pairs"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = rounded_state(model, TYPES)
    with pytest.raises(OSError), Rounding(model, TYPES, table=True).applied():  # noqa: PT011, PT012
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected[name]), name
        raise OSError
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def write_quantized(tiny_model: Path, ranks: Ranks, folder: Path) -> None:
    case = CASES["hard negatives"]
    batch = batch_of(14, case)
    part = part_of(batch, ranks.part(14))
    found = {"whole": quantized_gradients(model_of(tiny_model, case), case, ranks, [part])}
    model = model_of(tiny_model, case)
    shard(model, ranks, torch.device("cpu"))
    rounding = Rounding(model, TYPES, table=True)
    made = replace(gradients_by(model, case, ranks, 64), is_sharded=True)
    with rounding.applied():
        made.add(part, None, np.empty(0, np.int64))
    # FSDP's are the mean over the processes.
    found["shards"] = {name: full(p.grad) * ranks.count for name, p in model.named_parameters()}
    found["weights"] = {name: full(p.detach()) for name, p in model.named_parameters()}
    if ranks.is_first:
        torch.save(found, folder / "found.pt")


@pytest.mark.slow
def test_gradients_of_several_processes_are_those_of_one(tiny_model, tmp_path):
    in_processes(2, tmp_path, partial(write_quantized, tiny_model))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    case = CASES["hard negatives"]
    with one_thread():
        alone = quantized_gradients(model_of(tiny_model, case), case, Ranks(), [batch_of(14, case)])
    assert difference(found["whole"], alone) < 1e-6
    assert difference(found["shards"], alone) < 1e-6
    before = model_of(tiny_model, case)
    for name, parameter in before.named_parameters():
        assert torch.equal(found["weights"][name], parameter), name


RECIPE = """
stage: distill
init: {{from: {model}}}
data: [{{path: {pairs}}}]
batch: {{pairs: 8, max_tokens: 32, micro_tokens: 64, accumulate: 2}}
loss: {{matryoshka: [96, 48], distill: {{teacher: {model}, distance: cosine}}}}
qat: {{token_embd: q4_0, attention: q8_0, ffn: q4_0, dense: bf16}}
optimizer: {{lr: 1e-3}}
run: {{steps: {steps}, log_every: 1, precision: fp32}}
eval: {{data: 'builtin:tiny', every_steps: 2}}
checkpoint: {{every_steps: 2, keep: 9}}
"""


def gemb(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gemb", *map(str, words)],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and its run of four steps."""
    folder = tmp_path_factory.mktemp("qat")
    pairs = write_pairs(folder / "pairs.jsonl", 100)
    text = RECIPE.format(model=tiny_model, pairs=pairs, steps=STEPS)
    (folder / "recipe.yaml").write_text(text)
    done = gemb(folder, "train", "recipe.yaml", "-o", "run", "-q")
    assert done.returncode in (0, 1), done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The model of that run."""
    return place / "run" / "model"


def stored(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: tensor.float32() for name, tensor in checkpoint.tensors.items()}


def unrounded(run: Path, step: int) -> dict[str, np.ndarray]:
    """Return the weights that training goes on from, by the names of the folder."""
    heads = {"dense.0.weight": "2_Dense.linear.weight", "dense.1.weight": "3_Dense.linear.weight"}
    path = run / "checkpoints" / f"step-{step:06d}" / "state" / "unrounded.safetensors"
    return {heads.get(name, name): values for name, values in load_file(path).items()}


def test_the_folder_holds_the_rounded_weights_and_the_run_the_others(place, trained):
    assert json.loads((trained / "config.json").read_text())["gemb_qat"] == TYPES
    assert "q4_0 (token_embd, ffn), q8_0 (attention), bf16" in (trained / "README.md").read_text()
    latent = unrounded(place / "run", STEPS)
    for folder in (trained, place / "run" / "checkpoints" / "step-000004" / "model"):
        found = stored(open_checkpoint(folder))
        assert found.keys() == latent.keys()
        for name, values in found.items():
            kind = tensor_class(name)
            if kind == "norm":
                np.testing.assert_array_equal(values, latent[name])
                continue
            np.testing.assert_array_equal(values, of_gguf(latent[name], TYPES[kind]))
            assert (values != latent[name]).mean() > 0.5, name


def test_the_file_holds_the_folders_weights_and_their_types(place, trained, tmp_path):
    done = gemb(place, "export-gguf", trained, "-o", tmp_path / "a.gguf", "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert json.loads(done.stdout)["types"] == TYPES
    # Weights alike, what is left is llama.cpp's rounding of the states between the layers.
    assert json.loads(done.stdout)["min_cosine"] > 0.999
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert json.loads(reader.fields["gemb.qat"].contents()) == TYPES
    written = {tensor.name: tensor for tensor in reader.tensors}
    weights = stored(open_checkpoint(trained))
    assert len(written) == len(weights)
    for name, values in weights.items():
        tensor = written[gguf_name(name)]
        kind = tensor_class(name)
        assert tensor.tensor_type.name.lower() == TYPES.get(kind, "f32"), name
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        right = values + np.float32(1) if kind == "norm" else values
        assert (found == right).all(), name


def test_adversarial_weights_are_written_as_they_were_rounded(trained, tmp_path):
    odd = Path(shutil.copytree(trained, tmp_path / "odd"))
    blocks = adversarial()
    finite = np.isfinite(ours(blocks["special"], "q4_0")).all(1)
    rows = [
        x.reshape(-1, 32) for name, x in blocks.items() if name not in ("special", "all magnitudes")
    ]
    rows.append(blocks["special"][finite])
    tensors = load_file(odd / "model.safetensors")
    for name, type_ in (
        ("layers.0.mlp.up_proj.weight", "q4_0"),
        ("layers.1.self_attn.q_proj.weight", "q8_0"),
    ):
        flat = tensors[name].reshape(-1, 32)
        each = len(flat) // len(rows)
        for i, some in enumerate(rows):
            count = min(each, len(some))
            flat[i * each : i * each + count] = ours(some[:count], type_)
        tensors[name] = flat.reshape(tensors[name].shape)
    save_file(tensors, odd / "model.safetensors")
    export(odd, tmp_path / "a.gguf", "auto")
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name in tensors:
        if tensor_class(name) in TYPES:
            tensor = written[gguf_name(name)]
            found = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert (found == tensors[name]).all(), name


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(place, trained):
    whole = unrounded(place / "run", STEPS)
    again = Path(shutil.copytree(place / "run", place / "again"))
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "step-000004")
    done = gemb(place, "train", "recipe.yaml", "-o", "again", "-q", "--resume", "auto")
    assert done.returncode in (0, 1), done.stderr
    for name, values in unrounded(again, STEPS).items():
        np.testing.assert_array_equal(values, whole[name])
    for file in ("model.safetensors", "2_Dense/model.safetensors", "config.json"):
        assert (again / "model" / file).read_bytes() == (trained / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("run.shard=fsdp2",)])
def test_a_run_of_several_processes_and_its_continuation(place, more):
    run = f"two{len(more)}"
    words = ("train", "recipe.yaml", "-q", "--nproc", "2", *more)
    done = gemb(place, *words, "-o", run)
    assert done.returncode in (0, 1), done.stderr
    # One step of 1e-3 for each weight, in the direction of its gradient: not far, if not alike
    # where a rounding fell to the other side.
    alone = unrounded(place / "run", 2)
    for name, values in unrounded(place / run, 2).items():
        assert np.abs(values - alone[name]).mean() < 2e-5, name
    again = Path(shutil.copytree(place / run, place / f"{run}-again"))
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "step-000004")
    done = gemb(place, *words, "-o", again.name, "--resume", "auto")
    assert done.returncode in (0, 1), done.stderr
    for name, values in unrounded(again, STEPS).items():
        np.testing.assert_array_equal(values, unrounded(place / run, STEPS)[name])
    for name, values in stored(open_checkpoint(again / "model")).items():
        type_ = TYPES.get(tensor_class(name), "f32")
        assert (ours(values.copy(), type_) == values).all(), name


def test_what_is_measured_in_the_run_is_the_rounded_model(place, trained, tiny_model, tmp_path):
    scores = json.loads((place / "run" / "scores-final.json").read_bytes())
    assert scores["model"] == open_checkpoint(trained).fingerprint()
    rounded = Path(shutil.copytree(tiny_model, tmp_path / "rounded"))
    for file in sorted(rounded.rglob("*.safetensors")):
        folder = "" if file.parent == rounded else f"{file.parent.name}."
        classes = {name: tensor_class(f"{folder}{name}") for name in load_file(file)}
        tensors = {
            name: of_gguf(x, TYPES[classes[name]]) if classes[name] in TYPES else x
            for name, x in load_file(file).items()
        }
        save_file(tensors, file)
    recipe = load_recipe(place / "recipe.yaml")
    training = Training(run=tmp_path / "look", runtime=Runtime(device="cpu"))
    with TrainingRun(recipe, training, Ranks(alone=True)).encoder() as encoder:
        ids = encoder.tokenize(["the red planet", "quick brown fox"])
        found = encoder.encode(ids)
    right, wrong = (
        for_model(model).open(model, Runtime(device="cpu", precision="fp32")).encode(ids)
        for model in (rounded, tiny_model)
    )
    np.testing.assert_allclose(found, right, atol=1e-6)
    assert np.abs(found - wrong).max() > 1e-3, "the rounding does not show"


@pytest.mark.parametrize(("outtype", "share"), [("bf16", 0.5), ("q8_0", 0.3), ("q4_0", 0.1)])
def test_another_type_is_written_and_what_is_lost_is_said(
    trained, tmp_path, capsys, outtype, share
):
    export(trained, tmp_path / "a.gguf", outtype)
    (line,) = capsys.readouterr().err.strip().splitlines()
    said = re.search(
        rf"model was trained as q4_0 \(token_embd, ffn\), q8_0 \(attention\), bf16 \(dense\); as "
        rf"{outtype} (\d+\.\d)% of the weights change, by [\d.e-]+ of their root mean square; "
        r"without --outtype they are kept",
        line,
    )
    assert said, line
    weights = stored(open_checkpoint(trained))
    matrices = [values for name, values in weights.items() if tensor_class(name) != "norm"]
    changed = sum(np.count_nonzero(of_gguf(x, outtype) != x) for x in matrices)
    assert float(said[1]) == pytest.approx(100 * changed / sum(x.size for x in matrices), abs=0.06)
    assert float(said[1]) > 100 * share
    assert open_gguf(tmp_path / "a.gguf").trained_types() == {}


def test_f32_keeps_every_weight_and_a_way_through_it_the_types(trained, tmp_path, capsys):
    export(trained, tmp_path / "a.gguf", "f32")
    assert capsys.readouterr().err == ""
    for name in ("a.gguf", "b.gguf"):  # by way of a folder, then of the types' own file
        assert open_gguf(tmp_path / name).trained_types() == TYPES
        folder = tmp_path / name.replace(".gguf", "")
        folder.mkdir()
        unpack(open_gguf(tmp_path / name), folder)
        assert json.loads((folder / "config.json").read_text())["gemb_qat"] == TYPES
        for key, values in stored(open_checkpoint(trained)).items():
            if tensor_class(key) != "norm":
                assert (stored(open_checkpoint(folder))[key] == values).all(), key
        export(folder, tmp_path / "b.gguf", "auto")
    assert capsys.readouterr().err == ""


def test_weights_that_were_changed_since_are_rounded_and_it_is_said(trained, tmp_path, capsys):
    changed = Path(shutil.copytree(trained, tmp_path / "changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors["layers.0.mlp.up_proj.weight"] *= np.float32(1.1)
    save_file(tensors, changed / "model.safetensors")
    export(changed, tmp_path / "a.gguf", "auto")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "changed says that it was trained as q4_0 (token_embd, ffn)" in line
    assert "but its weights are others now and were rounded again: " in line


def test_training_on_without_types_forgets_them(place, trained):
    words = ("qat=null", f"init.from={trained}", "run.steps=1", "eval.data=")
    done = gemb(place, "train", "recipe.yaml", *words, "-o", "plain", "-q")
    assert done.returncode == 0, done.stderr
    assert "gemb_qat" not in json.loads((place / "plain" / "model" / "config.json").read_text())
    state = place / "plain" / "checkpoints" / "step-000001" / "state"
    assert not (state / "unrounded.safetensors").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"ffn": "q4_0"},
            r'gemb_qat is {"ffn": "q4_0"}; it must give token_embd, attention, ffn, ',
        ),
        ({**TYPES, "ffn": "q6_k"}, r"dense one of q4_0, q8_0, bf16, f32 each"),
        ("q4_0", r'gemb_qat is "q4_0"; it must'),
    ],
)
def test_a_folder_that_names_other_types_is_refused(trained, tmp_path, said, message):
    odd = Path(shutil.copytree(trained, tmp_path / "odd"))
    raw = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**raw, "gemb_qat": said}))
    with pytest.raises(UsageError, match=message):
        export(odd, tmp_path / "a.gguf", "auto")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("qat.ffn=q4_k_m",),
            "qat.ffn must be one of q4_0, q8_0, bf16, f32, not 'q4_k_m': the search",
        ),
        (("qat.dense=f16",), "qat.dense must be one of q4_0, q8_0, bf16, f32, not 'f16': Embeddi"),
        (("qat.ffn=int4",), "not 'int4': a GGUF file's int4 is q4_0"),
        (("qat.ffn=q4_1",), "not 'q4_1'; did you mean 'q4_0'?"),
        (("qat.norm=q4_0",), "unknown key 'qat.norm'"),
        (("pooling=attention",), "qat trains for a GGUF file, which has no attention pooling"),
        (tuple(f"qat.{name}=f32" for name in TYPES), "qat rounds nothing: every type is f32"),
    ],
)
def test_a_recipe_whose_types_no_file_has_is_refused_in_one_line(place, words, message):
    with pytest.raises(UsageError) as error:
        load_recipe(place / "recipe.yaml", words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_no_block_fits_are_refused_and_the_type_that_fits_is_said(place, tmp_path):
    model = write_tiny_model(tmp_path / "narrow", TinyShape(intermediate_size=100))
    export(model, tmp_path / "narrow.gguf", "bf16")
    for source in (model, tmp_path / "narrow.gguf"):
        for more in (("-n",), ("-o", tmp_path / "run")):
            done = gemb(place, "train", "recipe.yaml", f"init.from={source}", *more)
            assert done.returncode == 2
            (line,) = done.stderr.strip().splitlines()
            assert line.startswith("gemb: qat.ffn: q4_0 packs 32 numbers of a row together, and ")
            assert f"layers.0.mlp.down_proj.weight of {source} has rows of 100;" in line
            assert line.endswith("; qat.ffn=bf16 packs none")
    done = gemb(
        place, "train", "recipe.yaml", f"init.from={model}", "qat.ffn=bf16", "run.steps=1",
        "eval.data=", "-q", "-o", tmp_path / "fits",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    able("export_gguf").export_gguf(
        tmp_path / "fits" / "model", tmp_path / "fits.gguf", outtype="auto"
    )
    assert open_gguf(tmp_path / "fits.gguf").trained_types()["ffn"] == "bf16"
