"""`gemb soup`: the numbers are the average, the folder is whole, and what cannot be is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.optim.swa_utils import AveragedModel

from gemb.errors import GembError, UsageError
from gemb.models.card import history_of, write_card
from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import NewTensor, decoded, encoded, read_header, write_file
from gemb.weights import soup
from gemb.weights.ingredients import IngredientSpec, open_ingredients
from gemb.weights.soup import MANIFEST, plan, write_soup
from model_files import WEIGHTS, contents, numbers, rewritten
from rewritten import rewrite
from tiny_model import TinyShape, write_tiny_model


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    """Three models that differ in their numbers alone."""
    folder = tmp_path_factory.mktemp("three")
    return [write_tiny_model(folder / f"m{i}", TinyShape(seed=i)) for i in range(3)]


def cook(folders, target: Path, weights=None, method="mean") -> Path:
    weights = weights or [None] * len(folders)
    named = [
        IngredientSpec(str(path), weight) for path, weight in zip(folders, weights, strict=True)
    ]
    write_soup(open_ingredients(named), target, method)
    return target


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5], [1.0, 20.0, 3.0]])
def test_the_numbers_are_the_naive_average(three, tmp_path, weights):
    after = numbers(cook(three, tmp_path / "s", weights))
    before = [numbers(folder) for folder in three]
    assert after.keys() == before[0].keys()
    for name, values in after.items():
        parts = [one[name].astype(np.float64) for one in before]
        right = np.average(parts, axis=0, weights=weights)
        # Rounded once to float32: half of its last place, 6e-8 of the value.
        np.testing.assert_allclose(values, right, rtol=1e-7, atol=0)


def test_it_is_the_average_of_torchs_swa_utils(three, tmp_path):
    def module(folder: Path) -> torch.nn.Module:
        tensors = {k.replace(".", "_"): torch.tensor(v) for k, v in numbers(folder).items()}
        return torch.nn.ParameterDict(tensors)

    averaged = AveragedModel(module(three[0]))
    for folder in three:
        averaged.update_parameters(module(folder))
    for name, values in numbers(cook(three, tmp_path / "s")).items():
        theirs = averaged.module[name.replace(".", "_")].detach().numpy()
        # A running mean in float32 rounds twice a model, at the size of the largest.
        np.testing.assert_allclose(values, theirs, rtol=1e-6, atol=1e-6)


def test_every_file_is_the_same_in_whatever_order_the_models_are_named(three, tmp_path):
    weights = [0.1, 0.7, 0.2]
    right = contents(cook(three, tmp_path / "right", weights))
    for i, order in enumerate(itertools.permutations(range(3))):
        target = tmp_path / str(i)
        cook([three[k] for k in order], target, [weights[k] for k in order])
        assert contents(target) == right


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_soup_of_one_model_is_that_model_bit_for_bit(three, tmp_path, dtype, copies):
    def change(name, values):
        flat = values.reshape(-1)
        flat[:4] = [-0.0, 0.0, 6e-8, -6e-8]  # half precision's least; and zeros keep their sign
        return dtype, values

    one = rewritten(three[0], tmp_path / "one", change)
    bits = [read_header(one / file) for file in WEIGHTS]
    for weights in (None, [0.3] * copies):
        made = cook([one] * copies, tmp_path / f"s{weights}", weights)
        for file, before in zip(WEIGHTS, bits, strict=True):
            after = read_header(made / file)
            assert after.keys() == before.keys()
            for name, tensor in before.items():
                assert after[name].dtype == dtype
                assert bytes(after[name].raw()) == bytes(tensor.raw()), name
        assert open_checkpoint(made).fingerprint() == open_checkpoint(one).fingerprint()


def test_all_but_the_numbers_is_taken_over(three, tmp_path):
    (three[0] / "tokenizer.model").write_bytes(b"sentencepiece")
    (three[0] / "pytorch_model.bin").write_bytes(b"stale")
    made = contents(cook([three[0], three[0]], tmp_path / "s"))
    before = contents(three[0])
    assert "pytorch_model.bin" not in made
    added = {MANIFEST, "README.md"}
    assert made.keys() == before.keys() - {"pytorch_model.bin"} | added
    assert all(made[name] == before[name] for name in made.keys() - added - set(WEIGHTS))
    for name in ("tokenizer.model", "pytorch_model.bin"):
        (three[0] / name).unlink()


def test_the_manifest_says_what_is_in_it(three, tmp_path):
    made = cook(three[:2], tmp_path / "s", [3.0, 1.0])
    manifest = json.loads((made / MANIFEST).read_bytes())
    found = {one["model"]: (one["fingerprint"], one["weight"]) for one in manifest["ingredients"]}
    prints = [open_checkpoint(folder).fingerprint() for folder in three]
    assert found == {str(three[0]): (prints[0], 0.75), str(three[1]): (prints[1], 0.25)}
    assert manifest["method"] == "mean"
    assert prints[1] in (made / "README.md").read_text()


def test_the_card_says_what_was_done_to_each_and_to_all_before_they_parted(three, tmp_path):
    shared = "Modified from base by `gemb cut`: 2 of 4 layers."
    own = [f"Modified from base by `gemb train`: {number} steps." for number in range(3)]
    trained = [shutil.copytree(folder, tmp_path / "of" / folder.name) for folder in three]
    for folder, step in zip(trained, own, strict=True):
        write_card(folder, "gemma", step, [shared])
    names = [f"of/{folder.name}" for folder in trained]
    of_two = [f"Of {name}: {step}" for name, step in zip(names[:2], own, strict=False)]
    (tmp_path / "mean").mkdir()
    first = cook(trained[:2], tmp_path / "mean" / "two")
    made, *before = history_of(first)
    assert made.startswith(f"Average of models, by `gemb soup`: {names[0]} (")
    assert before == [*of_two, shared]
    # A soup of a soup: what was done to a part of a part has both names.
    parts = sorted(
        [
            *(f"Of mean/two: {step}" for step in (made, *of_two)),
            f"Of {names[2]}: {own[2]}",
        ]
    )
    again = history_of(cook([first, trained[2]], tmp_path / "all"))
    assert (sorted(again[1:-1]), again[-1]) == (parts, shared)


def test_a_shared_model_is_read_from_all_its_files(three, tmp_path):
    sharded = shutil.copytree(three[0], tmp_path / "sharded")
    tensors = read_header(three[0] / "model.safetensors")
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        write_file(
            sharded / file,
            {
                f"model.{name}": NewTensor(tensor.dtype, tensor.shape, [tensor.raw()])
                for name, tensor in tensors.items()
                if places[name] == file
            },
        )
    (sharded / "model.safetensors").unlink()
    index = {"weight_map": {f"model.{name}": file for name, file in places.items()}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    made = numbers(cook([sharded, three[1]], tmp_path / "s"))
    right = numbers(cook([three[0], three[1]], tmp_path / "t"))
    assert made.keys() == right.keys()
    assert all((made[name] == right[name]).all() for name in right)


def test_the_size_is_predicted_to_the_byte(three, tmp_path):
    ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in three])
    made = cook(three, tmp_path / "s")
    own = sum((made / name).stat().st_size for name in (MANIFEST, "README.md"))
    assert plan(ingredients).size_bytes == sum(map(len, contents(made).values())) - own


def test_a_tensor_is_never_whole_in_memory(tmp_path):
    count = 24 << 20  # numbers: 96 MB
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        zeros = (np.zeros(1 << 22, np.uint8) for _ in range(24))
        write_file(path, {"x": NewTensor("F32", (count,), zeros)})
    stored = [read_header(path)["x"] for path in paths]
    with paths[0].open("rb", buffering=0) as a, paths[1].open("rb", buffering=0) as b:
        tensors = [
            soup._OpenTensor("x", one, file) for one, file in zip(stored, (a, b), strict=True)
        ]
        tracemalloc.start()
        length = sum(len(part) for part in soup._averaged(tensors, [1.0, 2.0], "mean"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert length == 4 * count
    assert peak < 40 << 20


@given(arrays(np.uint32, 200))
def test_numbers_are_rounded_to_the_nearest_as_torch_and_numpy_do(bits):
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]  # not beyond bf16's largest
    theirs = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    ours = decoded(encoded(values.astype(np.float64), "BF16"), "BF16")
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()
    small = values[np.abs(values) < 65504]
    ours = decoded(encoded(small.astype(np.float64), "F16"), "F16")
    assert (ours == small.astype(np.float16).astype(np.float32)).all()


def _slerped(a, b, share: float):
    """Return the same by other means: a rotation of the unit vectors in their plane."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    x = a / np.linalg.norm(a)
    y = b / np.linalg.norm(b)
    across = y - x * (x @ y)
    across /= np.linalg.norm(across)
    angle = np.arctan2(y @ across, y @ x)
    # p(t) = A a + B b with A, B such that the unit vectors go along the arc.
    direction = np.cos(share * angle) * x + np.sin(share * angle) * across
    factors = np.linalg.lstsq(np.stack([x, y], axis=1), direction, rcond=None)[0]
    return factors[0] * a + factors[1] * b


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_slerp_goes_along_the_arc(three, tmp_path, share):
    made = numbers(cook(three[:2], tmp_path / "s", [1 - share, share], "slerp"))
    before = [numbers(folder) for folder in three[:2]]
    for name, values in made.items():
        right = _slerped(before[0][name], before[1][name], share)
        np.testing.assert_allclose(values.ravel(), right, rtol=1e-6, atol=1e-9)
    again = cook(three[1::-1], tmp_path / "t", [share, 1 - share], "slerp")
    assert contents(again) == contents(tmp_path / "s")


def test_slerp_between_equal_models_or_to_zero_is_a_straight_line(three, tmp_path):
    made = cook([three[0], three[0]], tmp_path / "same", [0.3, 0.7], "slerp")
    assert contents(made)["model.safetensors"] == contents(three[0])["model.safetensors"]
    zero = rewritten(three[0], tmp_path / "zero", lambda name, values: ("F32", values * 0))
    made = numbers(cook([three[0], zero], tmp_path / "half", [0.3, 0.7], "slerp"))
    for name, values in numbers(three[0]).items():
        np.testing.assert_allclose(made[name], 0.3 * values, rtol=2e-7)


@pytest.mark.parametrize("scale", [2.0**-1074, 2.0**-990, 2.0**1023])
def test_weights_are_relative_whatever_their_size(three, tmp_path, scale):
    right = numbers(cook(three[:2], tmp_path / "right"))
    made = numbers(cook(three[:2], tmp_path / "s", [scale, scale]))
    assert all((made[name] == right[name]).all() for name in right)
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_bytes())
    assert [one["weight"] for one in manifest["ingredients"]] == [0.5, 0.5]


def test_slerp_between_opposite_tensors_has_no_path(three, tmp_path):
    other = rewritten(three[0], tmp_path / "other", lambda name, values: ("F32", -values))
    with pytest.raises(UsageError, match=r"^tensor \S+ points opposite ways .* take the mean$"):
        cook([three[0], other], tmp_path / "s", None, "slerp")
    assert not (tmp_path / "s").exists()


# What happens to a model while it is read.


def _meanwhile(monkeypatch, harm) -> None:
    """Do harm after all models have been opened, and before a number is read."""
    copy = soup.copy_files

    def copy_then_harm(*arguments):
        copy(*arguments)
        harm()

    monkeypatch.setattr(soup, "copy_files", copy_then_harm)


def test_a_model_that_vanishes_while_it_is_read_does_no_harm(three, tmp_path, monkeypatch):
    right = numbers(cook(three[:2], tmp_path / "right"))
    gone = [shutil.copytree(folder, tmp_path / folder.name) for folder in three[:2]]
    _meanwhile(monkeypatch, lambda: [shutil.rmtree(folder) for folder in gone])
    made = numbers(cook(gone, tmp_path / "s"))
    assert all((made[name] == right[name]).all() for name in right)


def test_a_model_that_is_cut_short_while_it_is_read_is_an_error(three, tmp_path, monkeypatch):
    short = shutil.copytree(three[0], tmp_path / "short")
    weights = short / "model.safetensors"
    _meanwhile(monkeypatch, lambda: os.truncate(weights, 5000))
    with pytest.raises(GembError, match=r"model.safetensors: it became shorter while it was read"):
        cook([short, three[1]], tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]


def test_a_model_that_is_written_to_while_it_is_read_is_an_error(three, tmp_path, monkeypatch):
    model = shutil.copytree(three[0], tmp_path / "model")

    def write():
        with (model / "model.safetensors").open("rb+") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")

    _meanwhile(monkeypatch, write)
    with pytest.raises(GembError, match=r"model.safetensors: it was written to while it was read"):
        cook([model, three[1]], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_model_whose_time_was_set_back_was_written_to_all_the_same(three, tmp_path, monkeypatch):
    model = shutil.copytree(three[0], tmp_path / "model")
    weights = model / "model.safetensors"
    end = weights.read_bytes()[-8:]
    _meanwhile(monkeypatch, lambda: rewrite(weights, end, bytes(8)))
    with pytest.raises(GembError, match=r"model.safetensors: it was written to while it was read"):
        cook([model, three[1]], tmp_path / "s")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf")])
def test_what_is_no_number_is_refused_with_its_tensor_and_place(three, tmp_path, value, word):
    def change(name, values):
        if name == "layers.1.mlp.up_proj.weight":
            values[3, 7] = value
        return "F32", values

    bad = rewritten(three[0], tmp_path / "bad", change)
    named = rf"bad/model.safetensors: tensor layers.1.mlp.up_proj.weight has {word} at \[3, 7\]"
    with pytest.raises(UsageError, match=named):
        cook([three[1], bad], tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_shares_sum_to_one(weights):
    class One:
        def __init__(self, weight):
            self.weight = weight

    found = soup.shares([One(weight) for weight in weights])
    assert sum(found) == pytest.approx(1)
    assert found[0] / found[-1] == pytest.approx(weights[0] / weights[-1])
