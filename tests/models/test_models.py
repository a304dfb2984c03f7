"""Model references, and the hub's cache read without the hub's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemb.errors import Missing, UsageError
from gemb.models import references as models
from gemb.models.hub_cache import HubName, cache_folder, cached_names, find, missing_files

FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "modules.json": json.dumps(
        [
            {"type": "x.models.Transformer", "path": ""},
            {"type": "x.models.Dense", "path": "2_Dense"},
        ]
    ).encode(),
    "model.safetensors": b"weights",
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": b"weights",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, an empty cache, and a working folder of one's own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "GEMB_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def cached(repo: str, files: dict[str, bytes], revision: str = "main", commit: str = "c1") -> Path:
    """Put files into the cache in the hub's layout, and return the snapshot."""
    folder = cache_folder() / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    if revision:
        (folder / "refs" / revision).write_text(commit)
    snapshot = folder / "snapshots" / commit
    for name, data in files.items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return snapshot


def test_mini_is_the_file_inside_the_package(monkeypatch, tmp_path):
    assert models.bundled() == Path(models.__file__).parents[1] / "data" / "mini.gguf"
    monkeypatch.setattr(models, "bundled", lambda: tmp_path / "mini.gguf")
    with pytest.raises(Missing, match=r"the bundled model is not in this install .*; install gemb"):
        models.resolve("mini")
    (tmp_path / "mini.gguf").touch()
    assert models.resolve("mini") == tmp_path / "mini.gguf"


def test_a_name_wins_over_a_path_and_says_how_to_mean_the_path(capsys):
    Path("embeddinggemma-300m").mkdir()
    assert models.locate("embeddinggemma-300m") == HubName("google/embeddinggemma-300m")
    assert "write ./embeddinggemma-300m" in capsys.readouterr().err
    assert models.resolve("./embeddinggemma-300m") == Path("embeddinggemma-300m")


def test_a_path_that_exists_wins_over_the_hub():
    assert models.locate("org/repo") == HubName("org/repo")
    Path("org/repo").mkdir(parents=True)
    assert models.locate("org/repo") == Path("org/repo")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo:a/b.gguf", HubName("org/repo", "a/b.gguf")),
        ("org/repo@v1", HubName("org/repo", "", "v1")),
        ("org/repo@v1:b.gguf", HubName("org/repo", "b.gguf", "v1")),
    ],
)
def test_hub_references_are_read_and_written_alike(reference, name):
    assert models.locate(reference) == name
    assert str(name) == reference


@pytest.mark.parametrize(
    "path", ["./a/b", "/no/such", "~/x", "runs/m.gguf", "a.gguf", "a/b/c", ".."]
)
def test_what_can_only_be_a_path_never_goes_to_the_hub(path):
    assert models.locate(path) == Path(path).expanduser()


def test_a_path_that_is_not_there_is_missing():
    with pytest.raises(Missing, match=r"^runs/m.gguf: no such file or folder$"):
        models.resolve("runs/m.gguf")


def test_a_bare_word_gets_the_nearest_name():
    with pytest.raises(UsageError, match="no model 'minni' and no such path; did you mean 'mini'"):
        models.resolve("minni")
    with pytest.raises(UsageError, match="did you mean 'embeddinggemma-300m:q4_0'"):
        models.resolve("embeddinggemma-300m:q4_1")
    with pytest.raises(
        UsageError, match=r"no model 'zzz' and no such path \(a model is one of mini"
    ):
        models.resolve("zzz")
    with pytest.raises(UsageError, match="no model ''"):
        models.resolve("")


def test_a_typed_name_is_a_file_made_here_and_says_how(home):
    made = home / "share" / "gemb" / "models" / "embeddinggemma-300m-q4_0.gguf"
    with pytest.raises(Missing) as caught:
        models.resolve("embeddinggemma-300m:q4_0")
    assert f"gemb export-gguf embeddinggemma-300m --outtype q4_0 -o {made}" in str(caught.value)
    made.parent.mkdir(parents=True)
    made.touch()
    assert models.resolve("embeddinggemma-300m:q4_0") == made


def test_a_folder_in_the_cache_is_found_with_no_network():
    snapshot = cached("google/embeddinggemma-300m", FOLDER)
    assert models.resolve("embeddinggemma-300m") == snapshot
    assert models.resolve("google/embeddinggemma-300m") == snapshot
    assert models.resolve("google/embeddinggemma-300m@c1") == snapshot
    assert models.resolve("google/embeddinggemma-300m:config.json") == snapshot / "config.json"


@pytest.mark.parametrize("name", [name for name in FOLDER if name != "modules.json"])
def test_offline_the_missing_file_is_named(name):
    files = {key: value for key, value in FOLDER.items() if key != name}
    cached("org/repo", files)
    with pytest.raises(Missing) as caught:
        models.resolve("org/repo")
    assert str(caught.value) == (
        f"org/repo: no such path, not in the hub cache (no {name}), and HF_HUB_OFFLINE forbids to "
        "fetch it: HF_HUB_OFFLINE=0 gemb models pull org/repo"
    )


def test_an_embedding_model_needs_its_modules_and_a_decoder_has_none():
    files = {key: value for key, value in FOLDER.items() if key != "modules.json"}
    assert missing_files(cached("org/decoder", files)) == []
    files["config.json"] = b'{"use_bidirectional_attention": true}'
    assert missing_files(cached("org/encoder", files)) == ["modules.json"]


def test_the_parts_of_divided_weights_are_all_needed():
    files = {key: value for key, value in FOLDER.items() if key != "model.safetensors"}
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["model-1.safetensors"] = b"weights"
    assert missing_files(cached("org/repo", files)) == ["model-2.safetensors"]


def test_without_download_a_hub_model_that_is_not_here_is_missing(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(Missing, match=r"\(no config.json\), and it has not been pulled: gemb"):
        models.resolve("org/repo", download=False)


def test_the_models_that_are_here_are_listed_by_the_names_that_find_them(home):
    cached("google/embeddinggemma-300m", FOLDER)
    cached("org/half", {"config.json": b"{}"})
    cached("org/files", {"q/a.gguf": b"", "b.gguf": b"", "c.txt": b""})
    cached("org/pinned", FOLDER, revision="", commit="c9")
    made = home / "share" / "gemb" / "models"
    made.mkdir(parents=True)
    (made / "embeddinggemma-300m-bf16.gguf").touch()
    listed = [name for name in models.local_references() if name not in ("mini", "draft")]
    assert listed == [
        "embeddinggemma-300m:bf16",
        "embeddinggemma-300m",
        "org/files:b.gguf",
        "org/files:q/a.gguf",
        "org/pinned@c9",
    ]
    for name in listed:
        assert models.resolve(name).exists()


def test_an_empty_or_absent_cache_lists_nothing():
    assert list(cached_names()) == []
    assert find(HubName("org/repo")) is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"HF_HOME": "/x/$USER_DIR"},
        {"HF_HOME": "~/hf"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HUB_CACHE": "/h", "HF_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(settings, monkeypatch, home):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("USER_DIR", "someone")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    line = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    answer = subprocess.run(
        [sys.executable, "-c", line], capture_output=True, text=True, check=True, env=os.environ
    )
    assert str(cache_folder()) == answer.stdout.strip()
