"""What version 0.1.0 wrote still opens and gives the same answers: see tests/data/v0.1.0."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemb.embedding.formats.read import read_vectors

DATA = Path(__file__).parent / "data" / "v0.1.0"
FIELDS = ("--title-field", "title", "--id-field", "id", "--dim", "128")
ANSWERS = [json.loads(line) for line in (DATA / "answers.jsonl").read_bytes().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of all that 0.1.0 made."""
    copy = tmp_path / "made"
    shutil.copytree(DATA, copy)
    return copy


def gemb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "gemb", *arguments],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )


def answers(folder: Path, *arguments: str) -> list[dict[str, object]]:
    result = gemb(folder, "search", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


# Scores to 2e-3, of which 1.3e-3 was seen: llama.cpp's arithmetic in 4 bits differs between
# processors; a wrong prompt, width or row moves them by fifty times as much.
def same(found: list[dict[str, object]], before: dict[str, object]) -> None:
    (hit,) = found
    assert hit.pop("score") == pytest.approx(before["score"], abs=2e-3)
    # The path of a hit starts at the folder of the command, which is another one here.
    assert str(hit.pop("path")).endswith(str(before["path"]))
    assert hit.pop("stale", "gone") == "gone"  # so is the file, which was in another folder
    assert hit == {name: value for name, value in before.items() if name not in ("score", "path")}


def test_an_index_of_passages_answers_as_before(folder):
    same(answers(folder, "when is my money back", "docs.gemb", "-k", "1"), ANSWERS[0])


def test_an_index_of_rows_answers_as_before(folder):
    question = ("Red Planet", "rows.gemb", "-k", "1", "--where", "lang='en' and year>=2024")
    same(answers(folder, *question), ANSWERS[1])


def test_an_index_of_vectors_answers_as_before(folder):
    same(answers(folder, "Red Planet", "taken.gemb", "-k", "1"), ANSWERS[2])


@pytest.mark.parametrize("index", ["docs.gemb", "rows.gemb"])
def test_an_index_verifies(folder, index):
    result = gemb(folder, "index", "verify", index)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_cache_of_a_search_is_used_as_it_is(folder):
    (keys,) = folder.glob("cache/gemb/search/*/keys.bin")
    before = keys.read_bytes()
    same(answers(folder, "when is my money back", "docs", "-k", "1"), ANSWERS[3])
    assert keys.read_bytes() == before  # a passage that was embedded again would add its key


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """float32 [5, 128]: the texts' vectors as this version computes them; the fourth is NaN."""
    copy = tmp_path_factory.mktemp("new")
    made = gemb(copy, "embed", str(DATA / "texts.jsonl"), *FIELDS, "-o", "new.npy")
    assert made.returncode == 3, made.stderr  # one text is empty
    return np.load(copy / "new.npy")


FILES = sorted(
    path.name
    for path in (DATA / "vectors").iterdir()
    if path.suffix not in (".json", ".csv", ".base64")  # for other programs: gemb reads none
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_vectors_is_read_as_what_it_is(name, vectors):
    stored = read_vectors(DATA / "vectors" / name)
    dtype = "f32" if name == "kept.jsonl" else name.partition(".")[0]
    if not name.endswith(".jsonl"):  # a line says its fingerprint alone
        assert (stored.dtype, stored.spec.dtype, stored.spec.dim) == (dtype, dtype, 128)
    here = np.isfinite(stored.vectors).all(axis=1) & stored.vectors.any(axis=1)
    assert list(np.flatnonzero(~here)) == [3]
    lengths = np.linalg.norm(stored.vectors[here], axis=1) * np.linalg.norm(vectors[here], axis=1)
    cosines = (stored.vectors[here] * vectors[here]).sum(axis=1) / lengths
    # One bit a number keeps sqrt(2 / pi) = 0.80 of the cosine, and 0.03 more or less in 128.
    assert cosines.min() > {"f32": 0.999, "f16": 0.999, "int8": 0.998, "ubinary": 0.7}[dtype]


@pytest.mark.parametrize("suffix", ["csv", "base64"])
def test_lines_for_other_programs_keep_their_form(folder, suffix):
    made = gemb(folder, "embed", "texts.jsonl", *FIELDS, "-o", f"new.{suffix}")
    assert made.returncode == 3, made.stderr
    before = (folder / "vectors" / f"f32.{suffix}").read_text().splitlines()
    after = (folder / f"new.{suffix}").read_text().splitlines()
    assert [len(line.split(",")) for line in before] == [len(line.split(",")) for line in after]


@pytest.mark.slow
def test_a_stopped_run_goes_on(folder, tiny_model):
    pytest.importorskip("torch")
    shutil.copytree(tiny_model, folder / "tiny")
    result = gemb(folder, "train", "stopped.yaml", "-o", "stopped", "--resume", "auto")
    assert result.returncode == 0, result.stderr
    steps = [
        json.loads(line) for line in (folder / "stopped/metrics.jsonl").read_bytes().splitlines()
    ]
    losses = {entry["step"]: entry["loss"] for entry in steps if "loss" in entry}
    assert sorted(losses) == list(range(1, 61))
    assert losses[60] == pytest.approx(12.245, abs=0.01)  # fp32 on another processor: 1e-3 or less
    assert np.isfinite(list(losses.values())).all()
