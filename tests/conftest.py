"""Fixtures that every test file may use: a tiny random model folder, and the real one if named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_backend import Gemb, install
from gemb import plugins
from gemb.io import notes
from tiny_model import TinyShape, write_tiny_model

# Which engine is the best depends on the processor, and so would the last digits of many tests.
os.environ["GEMB_BACKEND"] = "-onnx"


@pytest.fixture(autouse=True)
def lines_on_stderr() -> None:
    """What is said comes on stderr, as in a command."""
    notes.speak()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random EmbeddingGemma: 3 layers, width 96, window 16, about 600 tokens."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", TinyShape())


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an F32 GGUF file."""
    from gemb_llamacpp.export import export

    target = tmp_path_factory.mktemp("tiny_gguf") / "tiny.gguf"
    export(tiny_model, target, "f32")
    return target


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of the real google/embeddinggemma-300m."""
    folder = os.environ.get("GEMB_TEST_MODEL")
    if not folder:
        pytest.skip("GEMB_TEST_MODEL does not name the folder of google/embeddinggemma-300m")
    return Path(folder)


@pytest.fixture
def gemb(tmp_path: Path) -> Iterator[Gemb]:
    """`gemb` as a process in an empty folder, with a plugin whose model is the default."""
    folder = tmp_path / "work"
    folder.mkdir()
    gemb = Gemb(folder)
    yield gemb
    gemb.close()


@pytest.fixture
def fake_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin of `fake_backend`, installed in this process; caches in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.syspath_prepend(str(install(tmp_path / "plugins")))
    plugins.backends.cache_clear()
    yield
    plugins.backends.cache_clear()
