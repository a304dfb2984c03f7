"""One server for all tests of a file that do not end it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from fake_backend import Gemb, write_model
from file_trees import write
from served import Served

if find_spec("starlette") is None:  # gemb[serve] is not installed
    collect_ignore_glob = ["test_*.py"]
DOCS = {
    "docs/cat.md": "# Pets\n\nThe cat sleeps on the mat all day.\n\nIt eats fish.\n",
    "docs/dog.md": "# Pets\n\nThe dog barks at the postman.\n",
    "docs/tax.txt": "Declare your income by the end of July.\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemb]:
    """`gemb` in a folder with an index of three files and a model of words."""
    folder = tmp_path_factory.mktemp("served") / "work"
    folder.mkdir()
    gemb = Gemb(folder)
    write_model(folder / "model.fake", is_bag=True, prompts={"query": "query: "})
    write(folder, DOCS)
    assert gemb("index", "build", "-q", "docs.gemb", "docs").returncode == 0
    yield gemb
    gemb.close()


@pytest.fixture(scope="module")
def served(home: Gemb) -> Iterator[Served]:
    """A server that must be as well after the tests as before them."""
    server = Served(home, "--index", "docs=docs.gemb", "--log-json")
    yield server
    assert server.embed("still here").status == 200
    assert server.ask("/health").status == 200
    assert server.metric("gemb_queue_tokens") == 0
    assert server.end() == 0
