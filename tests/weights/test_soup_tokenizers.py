"""Which tokenizers give the same ids, and soups of models whose numbers are of different types."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import encoded
from gemb.weights.ingredients import IngredientSpec, Mismatch, mismatches, open_ingredients
from gemb.weights.soup import plan, widened, write_soup
from model_files import rewritten
from tiny_model import TinyShape, write_tiny_model


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of one start."""
    return tuple(
        write_tiny_model(tmp_path / name, TinyShape(seed=i)) for i, name in enumerate("ab")
    )


def differing(*folders: Path) -> list[Mismatch]:
    return mismatches(open_ingredients([IngredientSpec(str(folder), None) for folder in folders]))


def retokenized(folder: Path, change) -> None:
    """Change the folder's tokenizer.json, which is written as another program writes it."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw, indent=3))


def token(raw: dict[str, Any], content: str) -> dict[str, Any]:
    return next(token for token in raw["added_tokens"] if token["content"] == content)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: token(raw, "<mask>").update(special=True),
        lambda raw: raw["added_tokens"].reverse(),
        lambda raw: raw.update(truncation={"max_length": 5}, padding={"strategy": "BatchLongest"}),
        lambda raw: raw.update(decoder={"type": "ByteFallback"}),
        lambda raw: raw["post_processor"].update(pair=[]),
        lambda raw: raw["model"].update(merges=[" ".join(pair) for pair in raw["model"]["merges"]]),
        lambda raw: raw["model"].pop("ignore_merges"),
        lambda raw: raw["model"].update(vocab=dict(reversed(raw["model"]["vocab"].items()))),
        lambda raw: raw["added_tokens"].append(
            {**raw["added_tokens"][0], "id": 369, "content": "x"}
        ),
    ],
)
def test_what_no_ids_depend_on_may_differ(pair, tmp_path, change):
    retokenized(pair[1], change)
    assert differing(*pair) == []
    ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in pair])
    assert open_checkpoint(write_soup(ingredients, tmp_path / "soup").folder).dim == 96


@pytest.mark.parametrize(
    ("change", "first", "second"),
    [
        (
            lambda raw: raw["model"]["merges"].pop(),
            "merges 50, number 50 is",
            "merges 49",
        ),
        (
            lambda raw: raw["model"]["merges"].insert(0, raw["model"]["merges"].pop(1)),
            "number 1 is",
            "number 1 is",
        ),
        (
            lambda raw: raw["normalizer"].update(content="_"),
            'normalizer {"content":"▁","pattern":{"String":" "},"type":"Replace"}',
            'normalizer {"content":"_"',
        ),
        (
            lambda raw: token(raw, "<h1>").update(content="<h2>"),
            "added tokens 11, with '<h1>'=10",
            "added tokens 11, with '<h2>'=10",
        ),
        (
            lambda raw: token(raw, "<mask>").update(lstrip=True, normalized=True),
            "'<mask>'=4",
            "'<mask>'=4 lstrip normalized",
        ),
        (
            lambda raw: raw["model"]["vocab"].update({"日": 355, "本": 354}),
            "vocabulary 369, with '日'=",
            "vocabulary 369, with '日'=355, '本'=354",
        ),
        (lambda raw: raw["model"].update(dropout=0.1), "model ", "model "),
        (lambda raw: raw.update(pre_tokenizer=None), "pre_tokenizer ", "pre_tokenizer null"),
        (
            lambda raw: raw["post_processor"]["single"].pop(),
            "post_processor ",
            "post_processor ",
        ),
    ],
)
def test_what_ids_depend_on_is_named_as_far_as_it_differs(pair, change, first, second):
    retokenized(pair[1], change)
    (mismatch,) = differing(*pair)
    assert mismatch.setting == "tokenizer.json"
    assert first in mismatch.values[0]
    assert second in mismatch.values[1]
    assert mismatch.values[0] != mismatch.values[1]


def test_a_model_that_sentence_transformers_saved_can_be_averaged(pair, tmp_path):
    from sentence_transformers import SentenceTransformer

    saved = tmp_path / "saved"
    SentenceTransformer(str(pair[0]), device="cpu").save_pretrained(str(saved))
    assert "matryoshka_dims" not in (saved / "config_sentence_transformers.json").read_text()
    for order in ((saved, pair[1]), (pair[1], saved)):
        assert differing(*order) == []
        ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in order])
        assert write_soup(ingredients, tmp_path / "soup").matryoshka_dims == (96, 48)


@pytest.mark.parametrize(
    ("types", "result", "words"),
    [
        (("F32", "BF16"), "F32", "BF16 and F32"),
        (("F16", "F32"), "F32", "F16 and F32"),
        (("F16", "BF16"), "F32", "BF16 and F16"),
        (("BF16", "BF16"), "BF16", ""),
    ],
)
def test_numbers_of_different_types_are_averaged_in_f32(pair, tmp_path, types, result, words):
    folders = [
        rewritten(folder, tmp_path / f"{folder.name}-{dtype}", lambda _, v, dtype=dtype: (dtype, v))
        for folder, dtype in zip(pair, types, strict=True)
    ]
    for folder in folders:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"dtype": "bfloat16"}))
    ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in folders])
    assert mismatches(ingredients) == []
    assert widened(ingredients) == words
    size = plan(ingredients).size_bytes
    soup = write_soup(ingredients, tmp_path / "soup")
    stored = [open_checkpoint(folder).tensors for folder in folders]
    for name, tensor in soup.tensors.items():
        mean = sum(part[name].float32().astype(np.float64) for part in stored) / 2
        assert tensor.dtype == result
        assert tensor.raw().tobytes() == encoded(mean.ravel(), result).tobytes()
    dtype = json.loads((soup.folder / "config.json").read_text())["dtype"]
    assert dtype == ("float32" if words else "bfloat16")
    written = sum(
        path.stat().st_size
        for path in soup.folder.rglob("*")
        if path.is_file() and path.name not in ("README.md", "gemb_soup.json")
    )
    assert abs(written - size) < 2000


def test_only_tensors_whose_types_differ_are_widened(pair, tmp_path):
    half = rewritten(
        pair[1], tmp_path / "half", lambda name, v: ("F16" if "norm" in name else "F32", v)
    )
    both = rewritten(
        pair[0], tmp_path / "both", lambda name, v: ("F16" if "input" in name else "F32", v)
    )
    ingredients = open_ingredients([IngredientSpec(str(folder), None) for folder in (half, both)])
    soup = write_soup(ingredients, tmp_path / "soup")
    assert soup.tensors["layers.0.input_layernorm.weight"].dtype == "F16"
    assert soup.tensors["norm.weight"].dtype == "F32"


def test_models_do_not_mix_where_shapes_differ(pair, tmp_path):
    deep = write_tiny_model(tmp_path / "deep", TinyShape(num_hidden_layers=4))
    settings = [mismatch.setting for mismatch in differing(pair[0], deep)]
    assert "num_hidden_layers" in settings
    assert Path(shutil.copytree(pair[0], tmp_path / "copy")).is_dir()
    assert differing(pair[0], tmp_path / "copy") == []
