"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = {path.name for path in (ROOT / "backends").iterdir() if (path / "__init__.py").is_file()}
FILES = sorted([*(ROOT / "gemb").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])
# These are loaded by every `gemb`, so their tops hold nothing that takes time to import.
LIGHT = {
    "gemb/__init__.py",
    "gemb/__main__.py",
    "gemb/backend.py",
    "gemb/cli.py",
    "gemb/errors.py",
    "gemb/models/hub_cache.py",
    "gemb/models/references.py",
    "gemb/io/notes.py",
    "gemb/plugins.py",
    "gemb/models/prompts.py",
    "gemb/recipe/names.py",
}
HEAVY = {
    "numpy",
    "torch",
    "yaml",
    "gguf",
    "llama_cpp",
    "orjson",
    "tqdm",
    "huggingface_hub",
    "faiss",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Yield the dotted name of each import; at the top, those for types alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_are_backends_to_look_at():
    assert {"gemb_torch", "gemb_llamacpp"} <= BACKENDS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_gemb_names_no_backend_and_a_backend_no_other(path):
    package = path.relative_to(ROOT / "backends").parts[0] if "backends" in path.parts else "gemb"
    named = {name.partition(".")[0] for name in imports(path)} & BACKENDS
    assert named <= {package}
    if package == "gemb":
        source = path.read_text(encoding="utf-8")
        assert not any(backend in source for backend in BACKENDS), "a backend is named in text"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_imports_the_command_line(path):
    name = name_of(path)
    targets = {found for found in imports(path) if found.startswith(("gemb.cli", "gemb.commands"))}
    if name == "gemb/__main__.py":
        assert targets == {"gemb.cli", "gemb.cli.main"}
    elif name == "gemb/cli.py" or name.startswith("gemb/commands/"):
        assert not any(found.startswith("gemb.cli") for found in targets)
    else:
        assert targets == set()


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if name_of(path) in LIGHT or "commands" in path.parts],
    ids=name_of,
)
def test_what_every_command_loads_is_light_at_its_top(path):
    heavy = {name.partition(".")[0] for name in imports(path, top_only=True)} & HEAVY
    assert heavy == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_reads_pickles_or_runs_a_shell(path):
    names = set(imports(path))
    assert not names & {"pickle", "dill", "joblib", "shelve"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "shell":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
