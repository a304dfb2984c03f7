"""LoRA adapters: merged as PEFT merges them, in every command; other kinds are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemb.backend import Cut, Runtime
from gemb.errors import Missing, UsageError
from gemb.models.adapter import MergedTensor
from gemb.models.checkpoint import describe_folder, open_checkpoint
from gemb.models.from_decoder import write_encoder
from gemb.models.gguf import open_gguf
from gemb.models.hub_cache import HubName, cached_names, find
from gemb.recipe.schema import Init
from gemb.weights.ingredients import IngredientSpec, mismatches, open_ingredients
from gemb.weights.soup import write_soup
from gemb_llamacpp.export import export
from gemb_torch import TorchBackend
from gemb_torch.cut.cut import cut_folder
from gemb_torch.model.save import write_checkpoint
from gemb_torch.model.weights import load
from gemb_torch.train.start import starting_folder
from model_files import rewritten
from tiny_decoder import write_tiny_decoder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK, ALPHA = 4, 8
PREFIX = "base_model.model."
MODULES = ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj")
CONFIG_OF_PEFT: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": None,
    "r": RANK,
    "lora_alpha": ALPHA,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ["q_proj"],
    "use_dora": False,
    "use_rslora": False,
}


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the stored weights of a folder, by their names in a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    for head in ("2_Dense", "3_Dense"):
        if (folder / head).is_dir():
            tensors[f"{head}.linear.weight"] = load_file(folder / head / "model.safetensors")[
                "linear.weight"
            ]
    return {name.removeprefix("model."): values for name, values in tensors.items()}


def factors(base: Path, modules: dict[str, int], seed: int = 1) -> dict[str, np.ndarray]:
    """Return random A and B of each module of the base, by PEFT's names; rank by module."""
    random = np.random.default_rng(seed)
    known = weights(base)
    tensors = {}
    for module, rank in modules.items():
        rows, columns = known[f"{module}.weight"].shape
        shapes = {"lora_A.weight": (rank, columns), "lora_B.weight": (rows, rank)}
        if module == "embed_tokens":
            shapes = {"lora_embedding_A": (rank, rows), "lora_embedding_B": (columns, rank)}
        for part, shape in shapes.items():
            values = random.normal(0, 0.3, shape).astype(np.float32)
            tensors[f"{PREFIX}{module}.{part}"] = values
    return tensors


def write_adapter(
    folder: Path, base: Path, tensors: dict[str, np.ndarray] | None = None, **config: object
) -> Path:
    """Write an adapter of the base into the folder, and return the folder."""
    folder.mkdir(exist_ok=True)
    if tensors is None:
        tensors = factors(base, dict.fromkeys(MODULES, RANK))
    settings = CONFIG_OF_PEFT | {"base_model_name_or_path": str(base.absolute())} | config
    (folder / CONFIG).write_text(json.dumps(settings))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def expected(base: Path, tensors: dict[str, np.ndarray], scales: dict[str, float]) -> dict:
    """Return what the merged weights must be: the formula, in 64 bits."""
    merged = {name: values.astype(np.float64) for name, values in weights(base).items()}
    for module, scale in scales.items():
        if module == "embed_tokens":
            a, b = (tensors[f"{PREFIX}{module}.lora_embedding_{part}"] for part in "AB")
            merged[f"{module}.weight"] += scale * (b.astype(float) @ a).T
        else:
            a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"] for part in "AB")
            merged[f"{module}.weight"] += scale * (b.astype(float) @ a)
    return merged


def assert_equal(folder: Path, right: dict[str, np.ndarray]) -> None:
    opened = open_checkpoint(folder).tensors
    assert opened.keys() == right.keys()
    for name, values in right.items():
        np.testing.assert_allclose(opened[name].float32(), values, rtol=0, atol=1e-6, err_msg=name)


def vectors(folder: Path, precision: str = "fp32") -> np.ndarray:
    encoder = TorchBackend().open(folder, Runtime(device="cpu", precision=precision))
    try:
        return encoder.encode(encoder.tokenize(["the quick brown fox", "red planet"]))
    finally:
        encoder.close()


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that holds an adapter of the tiny model, and nothing else."""
    return write_adapter(tmp_path / "adapter", tiny_model)


def right(tiny_model: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Return the weights of the fixture's model, merged by the formula."""
    return expected(tiny_model, load_file(adapter / WEIGHTS), dict.fromkeys(MODULES, ALPHA / RANK))


@pytest.mark.parametrize(
    ("ranks", "config", "scales"),
    [
        ({}, {}, {}),
        ({}, {"use_rslora": True}, dict.fromkeys(MODULES, ALPHA / math.sqrt(RANK))),
        ({}, {"lora_alpha": 2.5}, dict.fromkeys(MODULES, 2.5 / RANK)),
        ({}, {"fan_in_fan_out": True}, {}),  # PEFT: of nn.Linear it is false
        ({}, {"target_modules": "all-linear"}, {}),
        ({}, {"target_modules": r".*\.q_proj"}, {}),
        (
            {MODULES[0]: 2, MODULES[2]: 7},
            {"rank_pattern": {MODULES[0]: 2, r"layers\.2\..*": 7}},
            {MODULES[0]: ALPHA / 2, MODULES[2]: ALPHA / 7},
        ),
        (
            {MODULES[1]: 9},
            {"rank_pattern": {MODULES[1]: 9}, "use_rslora": True},
            {MODULES[0]: 4.0, MODULES[1]: ALPHA / 3, MODULES[2]: 4.0},
        ),
        ({}, {"alpha_pattern": {"layers.1.self_attn.q_proj": 10}}, {MODULES[1]: 2.5}),
        ({}, {"alpha_pattern": {"q_proj": 1, "layers.1": 100}}, dict.fromkeys(MODULES, 0.25)),
        (
            {"embed_tokens": 4, "layers.1.mlp.down_proj": 4},
            {"target_modules": ["q_proj", "embed_tokens", "layers.1.mlp.down_proj"]},
            {"embed_tokens": 2.0, "layers.1.mlp.down_proj": 2.0},
        ),
    ],
)
def test_the_weights_are_the_sum(tiny_model, tmp_path, ranks, config, scales):
    modules = dict.fromkeys(MODULES, RANK) | ranks
    tensors = factors(tiny_model, modules)
    folder = write_adapter(tmp_path / "adapter", tiny_model, tensors, **config)
    merged = expected(tiny_model, tensors, dict.fromkeys(MODULES, ALPHA / RANK) | scales)
    assert_equal(folder, merged)


def test_only_the_layers_that_are_named_change(tiny_model, tmp_path, capsys):
    tensors = factors(tiny_model, dict.fromkeys(MODULES, RANK))
    folder = write_adapter(tmp_path / "a", tiny_model, tensors, layers_to_transform=[0, 2])
    assert_equal(folder, expected(tiny_model, tensors, {MODULES[0]: 2.0, MODULES[2]: 2.0}))
    assert f"1 modules whose tensors the adapter holds, {MODULES[1]} first" in (
        capsys.readouterr().err
    )
    folder = write_adapter(tmp_path / "b", tiny_model, tensors, exclude_modules=[MODULES[0]])
    assert_equal(folder, expected(tiny_model, tensors, {MODULES[1]: 2.0, MODULES[2]: 2.0}))


def test_modules_that_were_trained_whole_are_exchanged(tiny_model, tmp_path):
    tensors = factors(tiny_model, dict.fromkeys(MODULES, RANK))
    own = {"norm.weight": np.full(96, 0.5, np.float32), "layers.0.input_layernorm.weight": None}
    own["layers.0.input_layernorm.weight"] = np.arange(96, dtype=np.float32)
    saved = {f"{PREFIX}{name}": values for name, values in own.items()}
    folder = write_adapter(
        tmp_path / "a", tiny_model, tensors | saved, modules_to_save=["norm", "input_layernorm"]
    )
    assert_equal(folder, expected(tiny_model, tensors, dict.fromkeys(MODULES, 2.0)) | own)


def test_a_module_that_was_trained_whole_and_is_not_there_is_named(tiny_model, tmp_path):
    tensors = factors(tiny_model, dict.fromkeys(MODULES, RANK))
    path = write_adapter(tmp_path / "a", tiny_model, tensors, modules_to_save=["norm", "lm_head"])
    with pytest.raises(UsageError, match="no tensors of norm, which modules_to_save names"):
        open_checkpoint(path)


def test_weights_of_an_adapter_without_its_settings_are_not_passed_over(
    tiny_model, adapter, tmp_path
):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "beside"))
    shutil.copy(adapter / "adapter_model.safetensors", folder)
    with pytest.raises(UsageError, match=r"adapter_model.safetensors without adapter_config"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "wrapper", ["model.", "0.auto_model.", "0.model.", "model.language_model."]
)
def test_names_may_begin_as_the_wrapped_model_has_them(tiny_model, tmp_path, wrapper):
    tensors = factors(tiny_model, dict.fromkeys(MODULES, RANK))
    wrapped = {name.replace(PREFIX, PREFIX + wrapper): values for name, values in tensors.items()}
    folder = write_adapter(tmp_path / "a", tiny_model, wrapped)
    assert_equal(folder, expected(tiny_model, tensors, dict.fromkeys(MODULES, 2.0)))


def test_the_dense_layers_may_have_an_adapter(tiny_model, tmp_path):
    modules = {**dict.fromkeys(MODULES, RANK), "2_Dense.linear": RANK}
    tensors = factors(tiny_model, modules)
    wrapped = {name.replace("2_Dense", "2"): values for name, values in tensors.items()}
    folder = write_adapter(
        tmp_path / "a", tiny_model, wrapped, target_modules=["q_proj", "2.linear"]
    )
    merged = expected(tiny_model, tensors, dict.fromkeys(modules, 2.0))
    assert_equal(folder, merged)
    cut_folder(folder, tmp_path / "cut", Cut(layers=(0, 1)))
    dense = load_file(tmp_path / "cut" / "2_Dense" / "model.safetensors")["linear.weight"]
    np.testing.assert_allclose(dense, merged["2_Dense.linear.weight"], atol=1e-6)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_base_of_16_bits_is_merged_in_32(tiny_model, tmp_path, dtype):
    base = rewritten(tiny_model, tmp_path / "base", lambda name, values: (dtype, values))
    folder = write_adapter(
        tmp_path / "a", base, factors(tiny_model, {MODULES[0]: RANK}), target_modules=[MODULES[0]]
    )
    tensor = open_checkpoint(folder).tensors[f"{MODULES[0]}.weight"]
    stored = open_checkpoint(base).tensors[f"{MODULES[0]}.weight"]
    a, b = (load_file(folder / WEIGHTS)[f"{PREFIX}{MODULES[0]}.lora_{p}.weight"] for p in "AB")
    assert (tensor.dtype, stored.dtype) == ("F32", dtype)
    np.testing.assert_allclose(
        tensor.float32(), stored.float32() + 2.0 * (b.astype(float) @ a), atol=1e-6
    )


def test_parts_of_a_tensor_are_those_of_the_whole(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("gemb.models.adapter._ROWS", 7)
    tensors = factors(tiny_model, {"embed_tokens": RANK, **dict.fromkeys(MODULES, RANK)})
    folder = write_adapter(
        tmp_path / "a", tiny_model, tensors, target_modules=["q_proj", "embed_tokens"]
    )
    for name in ("embed_tokens.weight", f"{MODULES[0]}.weight"):
        tensor = open_checkpoint(folder).tensors[name]
        assert isinstance(tensor, MergedTensor)
        np.testing.assert_array_equal(tensor.float32(5, 30), tensor.float32()[5:30])
        assert tensor.raw().tobytes() == tensor.float32().tobytes()
        assert len(tensor.raw()) == tensor.size_bytes


# Where the base is


def test_the_base_may_be_beside_the_adapter(tiny_model, adapter, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "both"))
    write_adapter(folder, tiny_model, base_model_name_or_path="google/embeddinggemma-300m")
    assert_equal(folder, right(tiny_model, adapter))
    assert (
        f"both: its LoRA adapter (rank 4, 3 matrices) is merged into the weights of {folder}"
        in capsys.readouterr().err
    )
    assert open_checkpoint(folder).fingerprint() != open_checkpoint(tiny_model).fingerprint()


def test_the_base_may_be_named_from_the_folder_or_from_here(
    tiny_model, adapter, tmp_path, monkeypatch
):
    shutil.copytree(tiny_model, tmp_path / "base")
    for name, here in (("../base", "/"), ("base", tmp_path), (str(tmp_path / "base"), "/")):
        monkeypatch.chdir(here)
        write_adapter(adapter, tiny_model, base_model_name_or_path=name)
        assert_equal(adapter, right(tiny_model, adapter))


def test_what_the_adapter_lacks_is_its_bases(tiny_model, adapter):
    prompts = open_checkpoint(tiny_model).prompts
    assert open_checkpoint(adapter).prompts == prompts
    (adapter / "config_sentence_transformers.json").write_text('{"prompts": {"query": "own: "}}')
    opened = open_checkpoint(adapter)
    assert opened.prompts == {"query": "own: "}
    assert opened.pooling == "mean"
    # transformers takes config.json from where the weights are.
    (adapter / "config.json").write_text('{"quantization_config": {"quant_method": "bnb"}}')
    assert_equal(adapter, right(tiny_model, adapter))


def test_a_base_that_is_not_here_is_named(adapter, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("org/base", "/workspace/base", "base"):
        write_adapter(adapter, tiny_model, base_model_name_or_path=name)
        with pytest.raises(Missing, match=rf"{CONFIG}: the adapter's base is not here: .*{name}"):
            open_checkpoint(adapter)
    write_adapter(adapter, tiny_model, base_model_name_or_path="org/base")
    with pytest.raises(Missing, match=r"gemb models pull org/base; or put its files beside"):
        open_checkpoint(adapter)
    write_adapter(adapter, tiny_model, base_model_name_or_path=None)
    with pytest.raises(UsageError, match="base_model_name_or_path names no base"):
        open_checkpoint(adapter)


def test_an_adapter_of_an_adapter_and_of_itself_are_refused(adapter, tiny_model, tmp_path):
    outer = write_adapter(tmp_path / "outer", tiny_model, base_model_name_or_path=str(adapter))
    with pytest.raises(UsageError, match=r"base .*/adapter is an adapter itself"):
        open_checkpoint(outer)
    write_adapter(adapter, tiny_model, base_model_name_or_path=".")
    with pytest.raises((UsageError, Missing), match=CONFIG):
        open_checkpoint(adapter)


def test_the_base_may_be_in_the_hubs_cache(adapter, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for repo, folder in (("org/base", tiny_model), ("org/lora", adapter)):
        home = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("c1")
        shutil.copytree(folder, home / "snapshots" / "c1")
    snapshot = find(HubName("org/lora"))
    assert snapshot is not None
    write_adapter(snapshot, tiny_model, base_model_name_or_path="org/base")
    assert_equal(snapshot, right(tiny_model, adapter))
    assert HubName("org/lora") in list(cached_names())
    (snapshot / WEIGHTS).unlink()
    assert find(HubName("org/lora")) is None


# What is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, r"use_dora is True \(DoRA\), which gemb does not merge; merge it wi"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; gemb merges LoRA alone"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"bias": "all"}, r"bias is 'all' \(biases\)"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"trainable_token_indices": [1, 2]}, r"trainable_token_indices is \[1, 2\]"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is"),
        ({"megatron_config": {"a": 1}}, "megatron_config is"),
        ({"of_tomorrow": True}, "of_tomorrow is True, which gemb does not merge"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base's weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"r": 5}, r"has lora_A \[4, 96\] and lora_B \[96, 4\]; rank 5 and the base's weights"),
        ({"r": 0}, "r must be a positive whole number, not 0"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number, not nan"),
        ({"rank_pattern": {"(a+)+": 3}}, r"rank_pattern: '\(a\+\)\+' is too involved"),
        ({"alpha_pattern": {"(a|a)" * 30: 3}}, "alpha_pattern: .* is too involved"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern: '\(': "),
        ({"target_modules": [1]}, r"target_modules must be a list of names, not \[1\]"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be numbers"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(tiny_model, tmp_path, config, message):
    folder = write_adapter(tmp_path / "a", tiny_model, **config)
    with pytest.raises(UsageError, match=message):
        open_checkpoint(folder)


def test_a_broken_adapter_is_refused(tiny_model, adapter):
    whole = load_file(adapter / WEIGHTS)
    name = f"{PREFIX}{MODULES[1]}.lora_B.weight"
    some = {key: values for key, values in whole.items() if key != name}
    cases = [
        (some, "module layers.1.self_attn.q_proj has no lora_B"),
        ({k: v for k, v in whole.items() if MODULES[1] not in k}, f"no tensors of {MODULES[1]}"),
        ({}, "holds no tensor of LoRA"),
        ({name.replace("base_model.model.", "x."): whole[name]}, "is no part of this model"),
        (
            whole | {f"{PREFIX}norm.weight": np.zeros(5, np.float32)},
            r"shape \[5\], the base's \[96",
        ),
        (
            {key.replace("layers.2", "layers.7"): values for key, values in whole.items()},
            "layers.7.self_attn.q_proj is no part of this model",
        ),
    ]
    for tensors, message in cases:
        save_file(tensors, adapter / WEIGHTS)
        with pytest.raises(UsageError, match=message):
            open_checkpoint(adapter)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(UsageError, match=rf"{WEIGHTS}: missing, and {CONFIG} says"):
        open_checkpoint(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match=r"adapter_model.bin: a pickle, which gemb does not read"):
        open_checkpoint(adapter)


def test_a_quantized_base_is_refused_by_name(tiny_model, tmp_path):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    raw = json.loads((base / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(raw))
    folder = write_adapter(tmp_path / "a", tiny_model, base_model_name_or_path=str(base))
    with pytest.raises(UsageError, match=r"base/config.json: quantization_config: weights of bits"):
        open_checkpoint(folder)


# Every command that opens a folder


def test_the_fingerprint_follows_the_adapter_and_its_base(tiny_model, adapter, tmp_path):
    prints = {open_checkpoint(tiny_model).fingerprint(), open_checkpoint(adapter).fingerprint()}
    write_adapter(adapter, tiny_model, lora_alpha=9)
    prints.add(open_checkpoint(adapter).fingerprint())
    write_adapter(adapter, tiny_model, factors(tiny_model, dict.fromkeys(MODULES, RANK), seed=2))
    prints.add(open_checkpoint(adapter).fingerprint())
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"norm.weight": tensors["norm.weight"] + 1}, base / "model.safetensors")
    write_adapter(adapter, base)
    prints.add(open_checkpoint(adapter).fingerprint())
    assert len(prints) == 5


def plain_folder(tiny_model: Path, adapter: Path, target: Path) -> Path:
    """Write the merged weights as a folder without an adapter, by the package safetensors."""
    shutil.copytree(tiny_model, target)
    merged = {k: v.astype(np.float32) for k, v in right(tiny_model, adapter).items()}
    backbone = {name: values for name, values in merged.items() if "Dense" not in name}
    save_file(backbone, target / "model.safetensors")
    return target


def test_vectors_are_those_of_the_merged_folder(tiny_model, adapter, tmp_path):
    plain = plain_folder(tiny_model, adapter, tmp_path / "plain")
    np.testing.assert_allclose(vectors(adapter), vectors(plain), atol=2e-6)
    assert np.abs(vectors(adapter) - vectors(tiny_model)).max() > 1e-2


def test_a_file_of_the_adapter_holds_the_merged_weights(tiny_model, adapter, tmp_path):
    plain = plain_folder(tiny_model, adapter, tmp_path / "plain")
    export(adapter, tmp_path / "a.gguf", "f32")
    export(plain, tmp_path / "b.gguf", "f32")
    a, b = (open_gguf(tmp_path / f"{name}.gguf").header for name in "ab")
    for name, tensor in a.tensors.items():
        values = [
            np.fromfile(header.path, "<f4", tensor.size_bytes // 4, offset=part.offset)
            for header, part in ((a, tensor), (b, b.tensors[name]))
        ]
        np.testing.assert_allclose(*values, atol=1e-6, err_msg=name)
    assert "/model with the adapter adapter" in open_checkpoint(adapter).known_as()


def test_soups_cuts_and_training_begin_with_the_merged_weights(tiny_model, adapter, tmp_path):
    merged = right(tiny_model, adapter)
    ingredients = open_ingredients(
        [IngredientSpec(str(adapter), None), IngredientSpec(str(tiny_model), None)]
    )
    assert mismatches(ingredients) == []
    write_soup(ingredients, tmp_path / "soup")
    mean = {name: (merged[name] + values) / 2 for name, values in weights(tiny_model).items()}
    assert_equal(tmp_path / "soup", mean)
    cut_folder(adapter, tmp_path / "cut", Cut(layers=(0, 1)))
    assert_equal(tmp_path / "cut", {k: v for k, v in merged.items() if "layers.2." not in k})
    start = starting_folder(
        Init(model=str(adapter)), tmp_path / "work", texts=[], runtime=Runtime(device="cpu")
    )
    assert_equal(start, merged)
    for folder in ("soup", "cut"):
        assert not (tmp_path / folder / CONFIG).exists()
        assert open_checkpoint(tmp_path / folder).prompts == open_checkpoint(tiny_model).prompts


def test_an_adapter_of_a_decoder_is_in_the_encoder_that_is_made_of_it(tmp_path):
    decoder = write_tiny_decoder(tmp_path / "decoder")
    tensors = factors(decoder, dict.fromkeys(MODULES, RANK))
    wrapped = {name.replace(PREFIX, f"{PREFIX}model."): v for name, v in tensors.items()}
    folder = write_adapter(tmp_path / "adapter", decoder, wrapped)
    (tmp_path / "encoder").mkdir()
    write_encoder(folder, tmp_path / "encoder", seed=0)
    merged = expected(decoder, tensors, dict.fromkeys(MODULES, 2.0))
    opened = open_checkpoint(tmp_path / "encoder").tensors
    for name, values in merged.items():
        np.testing.assert_allclose(opened[name].float32(), values, atol=1e-6, err_msg=name)


def test_what_quantization_aware_training_left_is_gone(tiny_model, tmp_path):
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    raw = json.loads((base / "config.json").read_text())
    types = dict.fromkeys(("token_embd", "attention", "ffn", "dense"), "q4_0")
    (base / "config.json").write_text(json.dumps(raw | {"gemb_qat": types, "dtype": "bfloat16"}))
    folder = write_adapter(tmp_path / "a", base)
    assert describe_folder(base).trained_types == types
    assert describe_folder(folder).trained_types == {}
    cut_folder(folder, tmp_path / "cut", Cut(layers=(0, 1)))
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert "gemb_qat" not in config
    assert config["dtype"] == "float32"


def test_models_show_names_the_adapter(gemb, tiny_model, adapter):
    answer = gemb("models", "show", str(adapter))
    assert answer.returncode == 0, answer.stderr
    lines = dict(line.split(maxsplit=1) for line in answer.stdout.decode().splitlines())
    assert lines["adapter"] == f"LoRA, rank 4, of {tiny_model}"
    assert json.loads(gemb("models", "show", "--json", str(adapter)).stdout)["adapter"]


def test_an_adapters_base_is_not_written_over(gemb, tiny_model, adapter):
    base = Path(shutil.copytree(tiny_model, gemb.folder / "base"))
    write_adapter(adapter, base)
    before = (base / "config.json").read_bytes()
    for command in (
        ("cut", str(adapter), "--keep-layers", "0,1", "-o", "base", "-f"),
        ("soup", str(adapter), str(tiny_model), "-o", "base", "-f"),
    ):
        answer = gemb(*command)
        assert answer.returncode == 2
        assert b"base is the model itself; write elsewhere" in answer.stderr
    assert (base / "config.json").read_bytes() == before


def test_numbers_that_are_not_finite_are_the_adapters(tiny_model, adapter):
    tensors = load_file(adapter / WEIGHTS)
    tensors[f"{PREFIX}{MODULES[0]}.lora_B.weight"][3, 2] = np.nan
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(UsageError, match=rf"{WEIGHTS}: the adapter holds numbers that are not"):
        vectors(adapter)


def test_a_trained_model_begins_with_the_merged_weights(tiny_model, adapter, tmp_path):
    source = open_checkpoint(adapter)
    write_checkpoint(
        source, tmp_path / "trained", load(source).state_dict(), pooling="mean", note="nothing"
    )
    assert_equal(tmp_path / "trained", right(tiny_model, adapter))
    assert open_checkpoint(tmp_path / "trained").prompts == open_checkpoint(tiny_model).prompts
    card = (tmp_path / "trained" / "README.md").read_text()
    assert "Modified from" in card
    assert "with the adapter adapter by `gemb train`: nothing" in card


def test_onnx_runtime_computes_with_the_merged_weights(adapter):
    pytest.importorskip("onnxruntime")
    from gemb_onnx import OnnxBackend

    encoder = OnnxBackend().open(adapter, Runtime(device="cpu", precision="fp32"))
    try:
        own = encoder.encode(encoder.tokenize(["the quick brown fox", "red planet"]))
    finally:
        encoder.close()
    np.testing.assert_allclose(own, vectors(adapter), atol=5e-6)
