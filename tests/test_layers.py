"""What the contracts of import-linter (pyproject.toml) cannot say of imports, read from the source.

They know no top of a file from an import in a function, and no circle of a package's own file with
the files in it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Container, Iterator, Mapping
from graphlib import TopologicalSorter
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
    "gemb/io/notes.py",
    "gemb/models/gguf_header.py",
    "gemb/models/hub_cache.py",
    "gemb/models/profile.py",
    "gemb/models/prompts.py",
    "gemb/models/references.py",
    "gemb/models/tensors.py",
    "gemb/plugins.py",
    "gemb/recipe/layers.py",
    "gemb/recipe/names.py",
    "gemb/recipe/run_folder.py",
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
    "msgspec",
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


def module_of(path: Path) -> str:
    inside = path.relative_to(ROOT / "backends" if "backends" in path.parts else ROOT)
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, known: Container[str]) -> Iterator[str]:
    """Yield the modules, of those that are known, that a file imports anywhere, for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if (name := full if full in known else node.module) in known:
                    yield name


def test_there_are_backends_to_look_at():
    assert {"gemb_torch", "gemb_llamacpp", "gemb_onnx", "gemb_static"} <= BACKENDS


@pytest.mark.parametrize(
    "path", [path for path in FILES if "backends" not in path.parts], ids=name_of
)
def test_gemb_names_no_backend_even_in_text(path):
    source = path.read_text(encoding="utf-8")
    assert not any(backend in source for backend in BACKENDS)


def test_there_is_no_circle_of_files():
    modules = {module_of(path): path for path in FILES}
    graph = {name: set(imported_modules(path, modules)) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(FILES), "the imports are not found"
    TopologicalSorter(graph).prepare()  # CycleError names the circle


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


# Dotted names that are not of modules: a group of entry points, keys in a GGUF file's header.
KEYS = {"gemb.backends", "gemb.qat"}
NAME_IN_PROSE = re.compile(r"`((?:gemb|" + "|".join(sorted(BACKENDS)) + r")(?:\.\w+)+)`")


def prose(source: str) -> Iterator[str]:
    """Yield the comments and the strings of a file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.string


def names_something(dotted: str, files: Mapping[str, Path]) -> bool:
    """Return whether it is a module, or a name at the top of one, with or without an attribute."""
    module = dotted
    while module not in files:
        if "." not in module:
            return False
        module = module.rpartition(".")[0]
    rest = dotted[len(module) + 1 :].split(".")[0]
    tree = ast.parse(files[module].read_text(encoding="utf-8"))
    return not rest or rest in {name for node in tree.body for name in top_names(node)}


def top_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement defines."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Assign():
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def test_a_name_that_is_nowhere_is_seen():
    files = {module_of(path): path for path in FILES}
    assert names_something("gemb.texts.walk", files)
    assert names_something("gemb.io.atomic.write_all", files)
    assert not names_something("gemb.texts.no_such_module", files)
    assert not names_something("gemb.io.atomic.no_such_function", files)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_in_docstrings_and_comments_exist(path):
    files = {module_of(path): path for path in FILES}
    names = {
        name
        for text in prose(path.read_text(encoding="utf-8"))
        for name in NAME_IN_PROSE.findall(text)
    }
    assert {name for name in names - KEYS if not names_something(name, files)} == set()
