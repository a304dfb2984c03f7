"""`gemb quantize`: the numbers in the file, what is measured of it, what is refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from gemb.backend import Rule, Runtime
from gemb.cli import gemb as command
from gemb.errors import GembError, NegativeAnswer, UsageError
from gemb.evaluation.agreement import bar_for
from gemb.models.from_gguf import unpack
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import TENSORS
from gemb.models.qat import gguf_types
from gemb.weights import measure as quantize_measure
from gemb.weights import mix as quantize_search
from gemb.weights.types import FILE_TYPES, WANTS_IMPORTANCE, quantization, rule
from gemb_llamacpp import export as export_module
from gemb_llamacpp.export import export
from gemb_llamacpp.importance import importance
from gemb_llamacpp.quantize import quantize
from tiny_model import TinyShape, write_tiny_model

REFERENCED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "mxfp4")
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "what is the planet known as the red planet in the sky of night",
    "der die das und ist nicht ein",
    "как что это она они",
]


@pytest.fixture(autouse=True)
def _no_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_measure, "_SECONDS", 0.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F32 file whose rows K types fit, but for those of ffn_down, as in the real model."""
    folder = tmp_path_factory.mktemp("wide")
    shape = TinyShape(
        hidden_size=256,
        intermediate_size=288,
        num_attention_heads=4,
        head_dim=64,
        dense_middle=512,
    )
    export(write_tiny_model(folder / "model", shape), folder / "wide.gguf", "f32")
    return folder / "wide.gguf"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(TEXTS * 3))
    return path


def _gemb(*arguments: object) -> tuple[str, str]:
    """Run in this process; return stdout and stderr, or raise what the command raises."""
    done = CliRunner().invoke(
        command, ["quantize", *map(str, arguments)], catch_exceptions=False, standalone_mode=False
    )
    return done.stdout, done.stderr


def _tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _made(source: Path, target: Path, name: str, **more) -> Path:
    from dataclasses import replace

    quantize(source, target, replace(quantization(name), **more), 2)
    return target


@pytest.mark.parametrize("name", REFERENCED)
def test_blocks_are_those_of_gguf_s_quantizers(tiny_gguf: Path, tmp_path: Path, name: str):
    written = _tensors(_made(tiny_gguf, tmp_path / "a.gguf", name))
    for key, source in _tensors(tiny_gguf).items():
        found = written[key]
        if "norm" in key:
            assert found.data.tobytes() == source.data.tobytes()
            continue
        assert found.tensor_type.name == name.upper(), key
        right = gguf.quantize(source.data, found.tensor_type)
        assert found.data.tobytes() == right.tobytes(), key


def test_a_folder_gives_the_tensors_that_its_file_and_export_give(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
):
    export(tiny_model, tmp_path / "right.gguf", "q4_0")
    right = _tensors(tmp_path / "right.gguf")
    for source in (tiny_model, tiny_gguf):
        _gemb(source, "-t", "Q4_0", "-o", tmp_path / "a.gguf", "-f")
        found = _tensors(tmp_path / "a.gguf")
        assert found.keys() == right.keys()
        for name, tensor in right.items():
            assert tensor.data.tobytes() == found[name].data.tobytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "right.gguf"]


def test_metadata_goes_with_the_file(tiny_gguf: Path, tmp_path: Path):
    _made(tiny_gguf, tmp_path / "a.gguf", "q5_0")
    before, after = (open_gguf(path).header for path in (tiny_gguf, tmp_path / "a.gguf"))
    own = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in after.metadata.items() if k not in own}.keys() == {
        k: v for k, v in before.metadata.items() if k not in own
    }.keys()
    assert after.metadata["general.file_type"] == 8  # LLAMA_FTYPE_MOSTLY_Q5_0
    assert open_gguf(tmp_path / "a.gguf").prompts == open_gguf(tiny_gguf).prompts
    assert open_gguf(tmp_path / "a.gguf").matryoshka_dims == (96, 48)


def test_k_types_are_near_and_what_they_do_not_fit_is_said(wide: Path, tmp_path: Path):
    out, err = _gemb(wide, "-t", "q4_k_m", "-o", tmp_path / "a.gguf")
    assert re.search(r"q5_0 instead of q4_k in 2 of 43 tensors: q4_k packs 256 .* has 288\n", err)
    assert re.search(r"q8_0 instead of q6_k in 1 of 43 tensors: q6_k packs 256 .* has 288\n", err)
    written, source = _tensors(tmp_path / "a.gguf"), _tensors(wide)
    # Not Q6_K, which llama-quantize gives a table that it takes for an output, too.
    assert written["token_embd.weight"].tensor_type.name == "Q4_K"
    assert written["blk.0.ffn_gate.weight"].tensor_type.name == "Q4_K"
    # Root mean square of normal weights: 0.073 with Q4_K, 0.018 with Q6_K, 0.044 with Q5_0.
    for name, tensor in written.items():
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        error = np.sqrt(
            ((values - source[name].data) ** 2).mean() / (source[name].data ** 2).mean()
        )
        assert error < 0.085, name
    assert "q4_k_m" in out


def test_a_mix_is_llama_quantize_s_but_for_the_table(wide: Path, tmp_path: Path):
    """llama.cpp is told nothing but the type, as its llama-quantize does by default."""
    from gemb_llamacpp.native import llama

    parameters = llama().llama_model_quantize_default_params()
    for name in ("q4_k_m", "q5_k_s", "q3_k_l", "q2_k", "iq4_xs", "iq3_s"):
        parameters.ftype = FILE_TYPES[name].number
        right = tmp_path / "right.gguf"
        assert not llama().llama_model_quantize(bytes(wide), bytes(right), parameters)
        found = _tensors(_made(wide, tmp_path / "a.gguf", name))
        for key, tensor in _tensors(right).items():
            if key != "token_embd.weight":
                assert tensor.data.tobytes() == found[key].data.tobytes(), (name, key)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_type_makes_a_file_that_runs(wide: Path, tmp_path: Path, name: str):
    from gemb.plugins import for_model

    matters = importance(wide, TEXTS, Runtime(threads=2))
    target = _made(wide, tmp_path / "a.gguf", name, importance=matters)
    plan = quantize(wide, None, quantization(name), 2) if name in REFERENCED else None
    header = open_gguf(target).header
    if plan:
        assert {one.name: one.type for one in plan} == {
            one.name: one.type.lower() for one in header.tensors.values()
        }
    encoder = for_model(target).open(target, Runtime(threads=1))
    assert np.isfinite(encoder.encode(encoder.tokenize(TEXTS))).all()


def test_a_type_that_wants_an_importance_says_so(wide: Path, tmp_path: Path, corpus: Path):
    with pytest.raises(
        UsageError, match=r"iq2_xxs for \S+ requires an importance .* --imatrix CORPUS"
    ):
        _gemb(wide, "-t", "iq2_xxs", "-o", tmp_path / "a.gguf")
    with pytest.raises(UsageError, match=r"a table that is only looked up in has none"):
        _gemb(wide, "-t", "q8_0", "--tensor", "token_embd=iq2_xxs", "-o", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())
    _gemb(wide, "-t", "iq2_xxs", "-o", tmp_path / "a.gguf", "--imatrix", corpus, "--min-cosine", -1)
    assert _tensors(tmp_path / "a.gguf")["blk.0.ffn_up.weight"].tensor_type.name == "IQ2_XXS"
    assert WANTS_IMPORTANCE


def test_importance_is_the_mean_square_of_each_column_s_input(tiny_gguf: Path):
    """Of the first layer it can be written out: the scaled row of the table, normed."""
    from gemb_llamacpp import LlamaCppBackend

    found = importance(tiny_gguf, TEXTS, Runtime(threads=1))
    weights = {name: tensor.data for name, tensor in _tensors(tiny_gguf).items()}
    encoder = LlamaCppBackend().open(tiny_gguf, Runtime(threads=1))
    ids = np.concatenate(encoder.tokenize(TEXTS))
    rows = weights["token_embd.weight"][ids].astype(np.float64) * np.sqrt(96)
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    given = normed * weights["blk.0.attn_norm.weight"]
    right = (given**2).mean(axis=0)
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], right, rtol=1e-4)
    matrices = {name for name, values in weights.items() if values.ndim > 1}
    assert found.keys() == matrices - {"token_embd.weight"}
    assert all(len(values) == weights[name].shape[1] for name, values in found.items())


def test_importance_of_the_dense_layers_is_of_texts_not_tokens(tiny_gguf: Path):
    """The last layer gives vectors: their lengths follow from what goes in."""
    one = importance(tiny_gguf, TEXTS[:1], Runtime(threads=1))
    two = importance(tiny_gguf, TEXTS[:1] * 2, Runtime(threads=1))
    other = importance(tiny_gguf, TEXTS[1:2], Runtime(threads=1))
    both = importance(tiny_gguf, TEXTS[:2], Runtime(threads=1))
    for name in ("dense_2.weight", "dense_3.weight"):
        np.testing.assert_allclose(one[name], two[name], rtol=2e-2, atol=1e-5)
        np.testing.assert_allclose((one[name] + other[name]) / 2, both[name], rtol=2e-2, atol=1e-5)


def test_with_importance_columns_that_matter_are_nearer(tiny_gguf: Path, tmp_path: Path):
    name = "blk.1.ffn_up.weight"
    source = _tensors(tiny_gguf)[name].data
    matters = importance(tiny_gguf, TEXTS, Runtime(threads=1))
    # Ten columns matter much more, so that there is something to gain.
    matters = {key: np.array(values) for key, values in matters.items()}
    matters[name][:10] *= 1000

    def error(path: Path) -> float:
        tensor = _tensors(path)[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        return float(((values - source) ** 2 * matters[name]).sum())

    plain = _made(tiny_gguf, tmp_path / "plain.gguf", "q4_0")
    heeding = _made(tiny_gguf, tmp_path / "heeding.gguf", "q4_0", importance=matters)
    assert error(heeding) < 0.8 * error(plain)


def test_rules_come_before_the_type_and_the_first_counts(tiny_gguf: Path, tmp_path: Path):
    _gemb(
        *(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "a.gguf"),
        *("--tensor", r"blk\.0\.attn_v=bf16", "--tensor", "attn_v=q8_0", "--tensor", "^dense=Q5_1"),
    )
    found = {
        name: tensor.tensor_type.name for name, tensor in _tensors(tmp_path / "a.gguf").items()
    }
    expected = {
        "blk.0.attn_v.weight": "BF16",
        "blk.1.attn_v.weight": "Q8_0",
        "blk.1.attn_q.weight": "Q4_0",
        "dense_2.weight": "Q5_1",
        "token_embd.weight": "Q4_0",
        "blk.0.attn_norm.weight": "F32",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "types"),
    [  # of token_embd, attn_q, attn_v, attn_output, ffn_up, ffn_down, dense_3
        ("small", "q4_0 q4_0 q8_0 q4_0 q4_0 q4_0 q8_0"),
        ("medium", "q4_0 q4_0 q8_0 q8_0 q4_0 q8_0 q8_0"),
        ("large", "q4_0 q8_0 q8_0 q8_0 q8_0 q8_0 q8_0"),
        ("e4_a8_f4_p4", "q4_0 q8_0 q8_0 q8_0 q4_0 q4_0 q4_0"),
    ],
)
def test_a_preset_is_what_its_rules_say_and_yields_to_the_users(
    tiny_gguf: Path, tmp_path: Path, name: str, types: str
):
    places = ("token_embd", "attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down", "dense_3")
    plan = quantize(tiny_gguf, tmp_path / "a.gguf", quantization(name), 2)
    for place, type_ in zip(places, types.split(), strict=True):
        assert {one.type for one in plan if f"{place}." in one.name} == {type_}, place
    own = quantization(name, [Rule("^dense", "bf16")])
    plan = quantize(tiny_gguf, None, own, 2)
    assert {one.type for one in plan if one.name.startswith("dense")} == {"bf16"}
    assert own.label == f"{name} ^dense=bf16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q4_km", r"no type 'q4_km' \(did you mean 'q4_k_m'\?\); gemb quantize --types"),
        ("int4", "no type 'int4'"),
        ("f16", "f16 overflows"),
    ],
)
def test_a_type_that_is_none_is_refused(tiny_gguf: Path, tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError, match=message):
        _gemb(tiny_gguf, "-t", text, "-o", tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_v", "is not REGEX=TYPE"),
        ("=q8_0", "is not REGEX=TYPE"),
        ("attn_(v=q8_0", "unterminated subpattern"),
        ("attn_v=q8", r"no type of a tensor is named 'q8' \(did you mean 'q8_0'\?\)"),
        ("attn_v=q4_k_m", "it is a mix; of a tensor: q4_k"),
        ("attn_v=f16", "f16 overflows"),
        ("attention=q8_0", "no tensor has such a name; names are token_embd.weight"),
    ],
)
def test_a_rule_that_is_none_is_refused(tiny_gguf: Path, tmp_path: Path, text: str, message: str):
    with pytest.raises(UsageError, match=message):
        _gemb(tiny_gguf, "-t", "q4_0", "--tensor", text, "-o", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_quantized_file_is_refused_unless_asked_for(tiny_gguf: Path, tmp_path: Path):
    _made(tiny_gguf, tmp_path / "q8.gguf", "q8_0")
    arguments = (tmp_path / "q8.gguf", "-t", "q4_0", "-o", tmp_path / "a.gguf")
    with pytest.raises(
        UsageError, match=r"quantized already \(dense_2.weight is q8_0\).*bf16 file"
    ):
        _gemb(*arguments)
    assert not (tmp_path / "a.gguf").exists()
    _gemb(*arguments, "--requantize")
    assert _tensors(tmp_path / "a.gguf")["dense_2.weight"].tensor_type.name == "Q4_0"


def test_a_file_that_is_too_far_away_gets_no_name(tiny_gguf: Path, tmp_path: Path):
    with pytest.raises(
        NegativeAnswer, match=r"not written: q4_0: least cosine 0\.\d+, below 0.999"
    ):
        _gemb(tiny_gguf, "-t", "q8_0,q4_0", "-o", tmp_path / "out", "--min-cosine", 0.999)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny-q8_0.gguf"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_bar_is_that_of_the_coarsest_type():
    assert bar_for("f32", "bf16+q8_0") == 0.995
    assert bar_for("f32", "q6_K+q8_0") == 0.96
    for type_ in TENSORS:
        if 8 * TENSORS[type_][2] / TENSORS[type_][1] < 6:
            assert bar_for("f32", f"f32+q8_0+{type_}") == 0.8, type_


def test_the_table_is_of_the_vectors_that_the_files_give(tiny_gguf: Path, tmp_path: Path):
    from gemb.evaluation.agreement import VERIFICATION_TEXTS, compare
    from gemb.plugins import for_model

    out, _ = _gemb(tiny_gguf, "-t", "q8_0,q4_0", "-o", tmp_path, "--json")
    found = json.loads(out)
    assert [one["type"] for one in found["files"]] == ["q8_0", "q4_0"]
    for one in found["files"]:
        path = Path(one["file"])
        models = [for_model(file).open(file, Runtime(threads=1)) for file in (tiny_gguf, path)]
        right = compare(*models, VERIFICATION_TEXTS)
        assert one["size_bytes"] == path.stat().st_size
        assert one["min_cosine"] == pytest.approx(right.min_cosine, abs=1e-5)
        assert one["mean_cosine"] == pytest.approx(right.mean_cosine, abs=1e-6)
        assert one["kept_at_10"] == pytest.approx(right.rank_agreement, abs=1e-3)
        assert one["tokens_per_s"] > 0
    assert found["source"]["min_cosine"] == pytest.approx(1)


def test_scores_are_those_of_gemb_eval(tiny_gguf: Path, tmp_path: Path):
    out, _ = _gemb(
        tiny_gguf, "-t", "q4_0", "-o", tmp_path / "a.gguf", "--eval", "builtin:tiny", "--json"
    )
    found = json.loads(out)
    for model, scores in ((tiny_gguf, found["source"]), (tmp_path / "a.gguf", found["files"][0])):
        done = CliRunner().invoke(command, ["eval", str(model), "--json"], standalone_mode=False)
        right = json.loads(done.stdout)["means"]
        assert [row["value"] for row in scores["scores"]["means"]] == pytest.approx(
            [row["value"] for row in right], abs=1e-6
        )
    change = found["files"][0]["change"]
    means = [one["scores"]["means"][0]["value"] for one in (found["source"], found["files"][0])]
    assert change["difference"] == pytest.approx(means[1] - means[0])
    text, _ = _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "b.gguf", "--eval", "builtin:tiny")
    assert f"{100 * change['difference']:+.2f} ±" in text


def test_the_smallest_file_within_the_drop_is_kept(tiny_gguf: Path, tmp_path: Path):
    common = (tiny_gguf, "-t", "bf16,q4_0,q8_0", "--eval", "builtin:tiny", "--min-cosine", -1)
    out, _ = _gemb(*common, "-o", tmp_path / "any.gguf", "--max-drop", 100, "--json")
    assert [one["type"] for one in json.loads(out)["files"]] == ["q4_0"]
    assert _tensors(tmp_path / "any.gguf")["dense_2.weight"].tensor_type.name == "Q4_0"
    out, _ = _gemb(*common, "-o", tmp_path / "most.gguf", "--max-drop", 0.3, "--json")
    tried = json.loads(out)["files"]
    assert [one["type"] for one in tried] == ["q4_0", "q8_0", "bf16"][: len(tried)]
    assert all(one["refused"] for one in tried[:-1])
    assert -100 * tried[-1]["change"]["difference"] <= 0.3
    assert tried[-1]["file"] == str(tmp_path / "most.gguf")
    with pytest.raises(UsageError, match="--max-drop requires evaluation sets: --eval SET"):
        _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "x.gguf", "--max-drop", 1)


@pytest.mark.parametrize("options", ["--max-drop 50 --min-cosine -1 -o few.gguf", "--sensitivity"])
def test_a_change_of_too_few_units_is_said(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
):
    monkeypatch.chdir(tmp_path)
    pairs = "sentence1\tsentence2\tscore\na fox\ta dog\t1\na\tb\t0\nc\tc\t2\n"
    (tmp_path / "few.tsv").write_text(pairs)
    _, told = _gemb(tiny_gguf, "-t", "q4_0", "--eval", "few.tsv", *options.split())
    assert told.count("n=3 is too few for a verdict") == 1


def test_sensitivity_raises_one_class_at_a_time(tiny_gguf: Path, tmp_path: Path):
    out, _ = _gemb(tiny_gguf, "--sensitivity", "-t", "q4_0", "--json")
    found = json.loads(out)
    assert [one["class"] for one in found["classes"]] == list(quantize_search.MATRICES)
    for one in found["classes"]:
        assert one["tensors"]["q8_0"] == (3 if "_q" in one["class"] else one["tensors"]["q8_0"])
        assert one["bytes_more"] == one["size_bytes"] - found["base"]["size_bytes"] > 0
        raised = one["mean_cosine"] - found["base"]["mean_cosine"]
        assert one["error_less"] == pytest.approx(raised)
    # All raised at once is all of the error, nearly: that is what a mix is predicted by.
    assert sum(one["share"] for one in found["classes"]) == pytest.approx(1, abs=0.35)
    text, _ = _gemb(tiny_gguf, "--sensitivity")
    assert text.splitlines()[0].startswith("q4_0 everywhere: 0.2 MB")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [200_000, 250_000, 330_000])
def test_a_size_gets_the_best_mix_that_fits(tiny_gguf: Path, tmp_path: Path, size: int):
    out, err = _gemb(
        tiny_gguf, "--target-size", f"{size // 1000}K", "-o", tmp_path / "a.gguf", "--json"
    )
    found = json.loads(out)["files"][0]
    assert 0.98 * size < found["size_bytes"] <= size
    again = re.findall(r"--tensor '([^']+)'", err)
    more = [word for text in again for word in ("--tensor", text)]
    _gemb(tiny_gguf, "-t", "q8_0", *more, "-o", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_mix_that_did_not_fit_would_not_be_put_in_place(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantize_search, "_best", lambda sizes, *_: {k: "bf16" for k, _ in sizes})
    with pytest.raises(NegativeAnswer, match=r"bytes larger than 200,000 \(--target-size\)"):
        _gemb(tiny_gguf, "--target-size", "200K", "-o", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_size_that_nothing_fits_is_answered(tiny_gguf: Path, tmp_path: Path):
    with pytest.raises(NegativeAnswer, match=r"nothing fits into 0.05 MB: .* gemb cut --vocab N"):
        _gemb(tiny_gguf, "--target-size", "50K", "-o", tmp_path / "a.gguf")
    with pytest.raises(UsageError, match="--target-size finds the types itself"):
        _gemb(tiny_gguf, "--target-size", "1M", "-t", "q4_0", "-o", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1, 9_973])
def test_the_mix_is_the_best_of_all(monkeypatch: pytest.MonkeyPatch, scale: int):
    monkeypatch.setattr(quantize_search, "MATRICES", {"a": "", "b": "", "c": "", "d": ""})
    monkeypatch.setattr(quantize_search, "MIXED", ("x", "y", "z"))
    random = np.random.default_rng(0)
    for _ in range(50):
        keys = list(itertools.product("abcd", "xyz"))
        drawn = random.integers(1, 50 * scale, 12)
        sizes = {key: int(size) for key, size in zip(keys, drawn, strict=True)}
        errors = dict(zip(keys, random.random(12).tolist(), strict=True))
        room = int(random.integers(60 * scale, 150 * scale))
        mixes = [
            dict(zip("abcd", types, strict=True)) for types in itertools.product("xyz", repeat=4)
        ]
        fitting = [mix for mix in mixes if sum(sizes[one] for one in mix.items()) <= room]
        if not fitting:
            continue
        right = min(sum(errors[one] for one in mix.items()) for mix in fitting)
        found = quantize_search._best(sizes, errors, room)
        assert sum(sizes[one] for one in found.items()) <= room
        assert sum(errors[one] for one in found.items()) == pytest.approx(right)


def _trained(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    target: Path,
    types: object,
    outtype: str = "f32",
) -> Path:
    """Export with the mark of a model that was trained for types."""
    add = export_module._add_metadata

    def marked(writer, *rest):
        add(writer, *rest)
        writer.add_string("gemb.qat", types if isinstance(types, str) else json.dumps(types))

    monkeypatch.setattr(export_module, "_add_metadata", marked)
    export(model, target, outtype)
    monkeypatch.setattr(export_module, "_add_metadata", add)
    return target


QAT = {"token_embd": "q4_0", "attention": "q8_0", "ffn": "q4_0", "dense": "bf16"}


def test_a_model_trained_for_types_gets_them_exactly(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
):
    source = _trained(monkeypatch, tiny_model, tmp_path / "a.gguf", QAT)
    _gemb(source, "-o", tmp_path / "b.gguf")
    written = _tensors(tmp_path / "b.gguf")
    for name, tensor in _tensors(source).items():
        if "norm" in name:
            continue
        kind = next(
            type_
            for part, type_ in (
                ("token", "q4_0"),
                ("attn", "q8_0"),
                ("ffn", "q4_0"),
                ("de", "bf16"),
            )
            if part in name
        )
        right = gguf.quantize(tensor.data, gguf.GGMLQuantizationType[kind.upper()])
        found = written[name]
        assert found.tensor_type.name == kind.upper()
        np.testing.assert_array_equal(
            gguf.dequantize(found.data, found.tensor_type),
            gguf.dequantize(right, found.tensor_type),
        )


def test_a_folder_trained_for_types_gives_what_its_export_gives(tiny_model: Path, tmp_path: Path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"gemb_qat": QAT}))
    export(model, tmp_path / "right.gguf", "auto")
    _gemb(model, "-o", tmp_path / "a.gguf")
    right, found = (_tensors(tmp_path / name) for name in ("right.gguf", "a.gguf"))
    assert found.keys() == right.keys()
    for name, tensor in right.items():
        assert tensor.data.tobytes() == found[name].data.tobytes(), name


def test_other_types_than_those_trained_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path, corpus: Path
):
    source = _trained(monkeypatch, tiny_model, tmp_path / "a.gguf", QAT)
    target = tmp_path / "b.gguf"
    with pytest.raises(UsageError, match=r"trained to be token_embd q4_0, attention q8_0.*as q4_0"):
        _gemb(source, "-t", "q4_0", "-o", target)
    with pytest.raises(UsageError, match="which --imatrix changes"):
        _gemb(source, "--imatrix", corpus, "-o", target)
    assert not target.exists()
    _gemb(source, "-t", "q4_0", "-o", target, "--ignore-qat")
    assert _tensors(target)["blk.0.attn_q.weight"].tensor_type.name == "Q4_0"
    for wrong in ({"ffn": "q4_0"}, QAT | {"ffn": "q9"}, "q4_0", [1]):
        bad = _trained(monkeypatch, tiny_model, tmp_path / "bad.gguf", wrong)
        with pytest.raises(UsageError, match=r"bad.gguf: gemb.qat(?: is |: not JSON)"):
            _gemb(bad, "-o", target, "-f")


def test_numbers_that_bf16_has_changed_are_not_those_trained(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
):
    source = _trained(monkeypatch, tiny_model, tmp_path / "a.gguf", QAT, "bf16")
    _, err = _gemb(source, "-t", "q4_0", "-o", tmp_path / "b.gguf")
    assert "a.gguf was trained for its types, but its numbers are bf16 by now" in err


def test_blocks_that_another_compiler_rounds_otherwise_are_mended(tiny_gguf: Path, tmp_path: Path):
    from gemb.models.gguf_header import read_header
    from gemb_llamacpp.quantize import make_exact

    plan = quantize(tiny_gguf, tmp_path / "a.gguf", quantization("q8_0"), 2)
    right = (tmp_path / "a.gguf").read_bytes()
    place = read_header(tmp_path / "a.gguf").tensors["blk.1.ffn_down.weight"].offset
    wrong = bytearray(right)
    wrong[place + 2] ^= 1
    (tmp_path / "a.gguf").write_bytes(wrong)
    make_exact(read_header(tiny_gguf), tmp_path / "a.gguf", plan)
    assert (tmp_path / "a.gguf").read_bytes() == right


def test_without_a_type_there_is_none(tiny_gguf: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"-t TYPE is missing: .* gemb quantize --types"):
        _gemb(tiny_gguf, "-o", tmp_path / "a.gguf")
    with pytest.raises(Exception, match="-o FILE is missing"):
        _gemb(tiny_gguf, "-t", "q4_0")


def test_what_exists_is_kept_without_force(tiny_gguf: Path, tmp_path: Path):
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(UsageError, match=r"a.gguf exists; -f overwrites it"):
        _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "a.gguf")
    with pytest.raises(UsageError, match="several types require a folder"):
        _gemb(tiny_gguf, "-t", "q4_0,q8_0", "-o", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    with pytest.raises(UsageError, match="several types require a folder"):
        _gemb(tiny_gguf, "-t", "q4_0,q8_0", "-o", tmp_path / "new.gguf")
    with pytest.raises(UsageError, match="is the model itself; write elsewhere"):
        _gemb(tiny_gguf, "-t", "q4_0", "-o", tiny_gguf, "-f")
    with pytest.raises(UsageError, match=r"a.gguf exists; -f overwrites it"):
        _gemb(tiny_gguf, "-n", "-t", "q4_0", "-o", tmp_path / "a.gguf")
    (tmp_path / "tiny-q8_0.gguf").write_text("mine, too")
    with pytest.raises(UsageError, match=r"tiny-q8_0.gguf exists; -f overwrites it"):
        _gemb(tiny_gguf, "-t", "q4_0,q8_0", "-o", tmp_path)
    with pytest.raises(UsageError, match=r"no such folder|does not exist|is not there"):
        _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "no" / "a.gguf")


def test_a_dry_run_writes_nothing_and_knows_the_size(tiny_model: Path, wide: Path, tmp_path: Path):
    out, err = _gemb(wide, "-n", "-t", "q4_k_m,q8_0", "-o", tmp_path / "out")
    assert "q5_0" in err
    assert len(out.splitlines()) == 2
    assert not list(tmp_path.iterdir())
    found = json.loads(_gemb(tiny_model, "-n", "-t", "q4_0", "--json")[0])["files"][0]
    _gemb(tiny_model, "-t", "q4_0", "-o", tmp_path / "a.gguf")
    assert found["about_bytes"] == pytest.approx((tmp_path / "a.gguf").stat().st_size, rel=0.01)


def test_texts_that_are_not_there_are_refused(tiny_gguf: Path, tmp_path: Path):
    for option in ("--texts", "--imatrix"):
        with pytest.raises(UsageError, match=r"none\.txt: no such file of texts"):
            _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "a.gguf", option, tmp_path / "none.txt")


def test_the_users_own_texts_are_compared(tiny_gguf: Path, tmp_path: Path, corpus: Path):
    out, _ = _gemb(tiny_gguf, "-t", "q4_0", "-o", tmp_path / "a.gguf", "--texts", corpus, "--json")
    assert json.loads(out)["files"][0]["worst_text"] in TEXTS


def test_types_are_listed():
    out, _ = _gemb("--types")
    listed = {line.split()[0]: line for line in out.splitlines()}
    assert set(FILE_TYPES) < set(listed)
    assert "4.5 bits" in listed["q4_0"]


def test_a_full_disk_is_named_while_a_folder_is_exported(tiny_model: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "gemb", "quantize", tiny_model, "-t", "q8_0", "-o", "a.gguf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (5, f"gemb: {tmp_path}: file too large\n")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_folder_plans_without_its_weights(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_module, "_blocks", lambda *_: pytest.fail("a weight was read"))
    common = ("-t", "q4_k_m,small,q8_0", "-n", "--json")
    out, _ = _gemb(tiny_model, *common, "-o", tmp_path / "files")
    right, _ = _gemb(tiny_gguf, *common)
    assert json.loads(out) == json.loads(right)
    assert not list(tmp_path.iterdir())


REFUSED = [
    ("--sensitivity -o x.gguf", "--sensitivity measures, and writes nothing; leave out -o"),
    ("--sensitivity --ladder -n", "writes nothing; leave out -n, --ladder"),
    ("--sensitivity --target-size 1M", "writes nothing; leave out --target-size"),
    ("--sensitivity -t q4_0,q5_0", "the classes of one type to more bits: not of q4_0, q5_0"),
    ("--sensitivity -t f32", "the classes of one type to more bits: not of f32"),
    ("--target-size 1M -o x.gguf -n", "finds the types by measuring, which -n does not"),
    ("-t q4_0 -o x.gguf --dims 48", "--dims requires evaluation sets: --eval SET"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=[row[0] for row in REFUSED])
def test_options_that_do_not_go_together_are_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, line: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        _gemb(tiny_gguf, *words.split())
    assert line in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_class_that_has_its_bits_already_gains_nothing(tiny_gguf: Path):
    out, _ = _gemb(tiny_gguf, "--sensitivity", "-t", "small")
    lines = {line.split()[0]: line.split() for line in out.splitlines()[2:]}
    assert lines["attn_v"][1:4] == lines["dense_2"][1:4] == ["0.0", "0.0%", "-"]
    assert lines["token_embd"][3].endswith("%")


def test_a_slash_at_the_end_is_a_folder_of_one_type_too(tiny_gguf: Path, tmp_path: Path):
    _gemb(tiny_gguf, "-t", "q8_0", "-o", f"{tmp_path}/new/")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny-q8_0.gguf"]


def test_a_home_folder_that_no_shell_has_put_in_is_found(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    _gemb(tiny_gguf, "-t", "q8_0", "--output=~/a.gguf")
    assert (tmp_path / "a.gguf").is_file()


def test_texts_may_come_through_a_pipe(tiny_gguf: Path, tmp_path: Path):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write("the quick brown fox\n")
    try:
        _gemb(tiny_gguf, "-t", "q8_0", "-o", tmp_path / "a.gguf", "--texts", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert (tmp_path / "a.gguf").is_file()
    with pytest.raises(UsageError, match=r"^/dev/null: no text in it$"):
        _gemb(tiny_gguf, "-t", "q8_0", "-o", tmp_path / "b.gguf", "--texts", "/dev/null")


@pytest.mark.parametrize("limit", [1_000, 100_000])
def test_a_full_disk_leaves_nothing_behind(tiny_gguf: Path, tmp_path: Path, limit: int):
    """llama.cpp itself goes on after a write that failed, and calls the file done."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gemb",
            "quantize",
            tiny_gguf,
            "-t",
            "q8_0",
            "-o",
            tmp_path / "a.gguf",
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr == f"gemb: {tmp_path}: file too large\n"
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_too_large_for_a_scale_are_refused(tiny_model: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(copy / "model.safetensors")
    tensors["layers.1.mlp.gate_proj.weight"][3, 4] = 1e6
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(GembError, match="does not quantize it: quantized data validation failed"):
        _gemb(copy, "-t", "q4_0", "-o", tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_type_that_cannot_be_unpacked_is_refused_where_training_would_start(
    tiny_gguf: Path, tmp_path: Path
):
    shape = TinyShape(hidden_size=128, head_dim=64, num_attention_heads=2, dense_middle=128)
    export(write_tiny_model(tmp_path / "model", shape), tmp_path / "f32.gguf", "f32")
    for name in ("q1_0", "q2_0"):
        _made(tmp_path / "f32.gguf", tmp_path / "a.gguf", name)
        with pytest.raises(UsageError, match=rf"is {name}, which gemb cannot unpack"):
            unpack(open_gguf(tmp_path / "a.gguf"), tmp_path)


def test_rules_and_types_are_read_in_any_case():
    assert rule("a=b=Q8_0") == Rule("a=b", "q8_0")
    assert quantization(" Q4_K ").type == "q4_k_m"
    assert quantization("E4_A8_F4_P4").type == "q4_0"
    assert set(TENSORS) >= {kind.base for kind in FILE_TYPES.values()}


@pytest.mark.parametrize("stated", ["[" * 100_000, "[" * 900 + "]" * 900, "{", 5, "\ud800"])
def test_a_mark_that_names_no_types_is_refused(stated: object):
    with pytest.raises(UsageError, match=r"^m.gguf: gemb.qat") as error:
        gguf_types({}, stated, Path("m.gguf"))
    assert len(str(error.value)) < 500
