"""The backend of backends/README.md: as it stands there, installed beside gemb, it embeds."""

from __future__ import annotations

import json
import os
import re
import string
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gemb.models.safetensors import NewTensor, write_file

README = Path(__file__).parents[2] / "backends" / "README.md"
WORDS = ("[PAD]", "[UNK]", "cat", "kitten", "purrs", "ship", "harbour", "sails", "the", "a")
LETTERS = [f"{begin}{letter}" for begin in ("", "##") for letter in string.ascii_lowercase[1:]]
TOKENS = (*WORDS, *LETTERS, "##a", *string.digits, *string.punctuation, "¤")
VECTORS = np.concatenate(
    [
        np.array([[0, 0, 0], [0.1, 0.1, 0.1]], np.float32),
        np.array([[2, 0, 0], [1.9, 0.2, 0], [1.5, 0, 0.3]], np.float32),
        np.array([[0, 2, 0], [0, 1.8, 0.3], [0.2, 1.6, 0]], np.float32),
        np.array([[0, 0, 0.2], [0, 0, 0.1]], np.float32),
        np.random.default_rng(0).standard_normal((len(TOKENS) - len(WORDS), 3), np.float32) / 9,
    ]
)
VECTORS[-1] = 0
Gemb = Callable[..., subprocess.CompletedProcess[str]]


def block(language: str) -> str:
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    return code


def install(folder: Path) -> None:
    """Write the module, and what pip would make of its pyproject.toml."""
    project = tomllib.loads(block("toml"))["project"]
    name, version = project["name"], project["version"]
    (folder / "gemb_model2vec.py").write_text(block("python"))
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def gemb(tmp_path_factory) -> Gemb:
    work = tmp_path_factory.mktemp("work")
    plugins = tmp_path_factory.mktemp("plugins")
    install(plugins)
    model = work / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "model2vec"}))
    table = NewTensor("F32", VECTORS.shape, [VECTORS.reshape(-1).view(np.uint8)])
    write_file(model / "model.safetensors", {"embeddings": table})
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(model / "tokenizer.json"))
    docs = work / "docs"
    docs.mkdir()
    (docs / "animals.txt").write_text("the kitten purrs\n")
    (docs / "sea.txt").write_text("a ship sails\n")
    path = os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(work / "cache")}

    def gemb(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gemb", *arguments],
            input=stdin,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return gemb


def test_it_embeds(gemb: Gemb):
    texts = ["the cat", "harbour", "the kitten purrs a cat", "¤"]
    done = gemb("embed", "-m", "model", "-q", stdin="\n".join(texts) + "\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    means = [
        VECTORS[[WORDS.index(word) for word in text.split()]].mean(axis=0) for text in texts[:3]
    ]
    expected = np.array([mean / np.linalg.norm(mean) for mean in means])
    got = np.array([row["embedding"] for row in rows[:3]])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # A mean of zeros has no direction: that text alone fails.
    assert "not finite" in rows[3]["error"]["message"]
    assert done.returncode == 3


def test_it_searches_by_meaning(gemb: Gemb):
    for query, first in (("cat", "animals.txt"), ("the harbour", "sea.txt")):
        done = gemb("search", "-m", "model", "--json", query, "docs")
        assert done.returncode == 0, done.stderr
        hits = [json.loads(line) for line in done.stdout.splitlines()]
        assert hits[0]["path"].endswith(first), done.stdout


def test_it_describes_its_models_and_stands_in_doctor(gemb: Gemb):
    shown = json.loads(gemb("models", "show", "--json", "model").stdout)
    assert (shown["format"], shown["dim"], shown["vocabulary"]) == ("model2vec", 3, len(TOKENS))
    assert re.search(r"ok +model2vec: tokenizers: \d+\.\d+", gemb("doctor", "-m", "model").stdout)
    refused = gemb("train", "--backend", "model2vec", "smoke", "-o", "run")
    assert refused.returncode == 2
    assert "backend 'model2vec' cannot train; use --backend torch" in refused.stderr
