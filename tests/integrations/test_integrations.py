"""The classes for other libraries: each with the real one, and importable without it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fake_backend import write_model
from gemb import Model
from gemb.errors import Missing, UsageError

TEXTS = ["the cat sleeps on the mat", "a dog barks", "declare your income"]
NAMES = ("chroma", "langchain", "llama_index", "llm", "sklearn")


@pytest.fixture
def model(fake_backend, tmp_path) -> Model:
    return Model(write_model(tmp_path / "m.fake", is_bag=True, prompts={"query": "q: "}))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported_without_its_library(name):
    libraries = ("chromadb", "langchain_core", "llama_index", "llm", "sklearn")
    program = (
        "import sys\n"
        f"for name in {libraries}: sys.modules[name] = None\n"
        f"import gemb.integrations.{name} as module\n"
        "assert module.__doc__\n"
        f"assert '{name}' != 'llm' or 'numpy' not in sys.modules\n"  # llm loads it at each start
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_each_is_short():
    folder = Path(sys.modules["gemb"].__file__).parent / "integrations"
    for name in NAMES:
        lines = (folder / f"{name}.py").read_text().splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 60, name


def test_langchain(model):
    embeddings = pytest.importorskip("langchain_core.embeddings")
    from langchain_core.vectorstores import InMemoryVectorStore

    from gemb.integrations.langchain import GembEmbeddings

    mine = GembEmbeddings(model)
    assert isinstance(mine, embeddings.Embeddings)
    assert np.array_equal(
        np.array(mine.embed_documents(TEXTS), np.float32), model.encode_document(TEXTS)
    )
    assert np.array_equal(
        np.array(GembEmbeddings(model, dim=128).embed_query("x"), np.float32),
        model.encode_query("x", dim=128),
    )
    store = InMemoryVectorStore.from_texts(TEXTS, GembEmbeddings(model.reference))
    assert store.similarity_search("the cat sleeps", k=1)[0].page_content == TEXTS[0]


def test_llama_index(model):
    pytest.importorskip("llama_index.core")
    from llama_index.core import Document, VectorStoreIndex

    from gemb.integrations.llama_index import GembEmbedding

    mine = GembEmbedding(model_name=model.reference)
    assert np.array_equal(
        np.array(mine.get_text_embedding_batch(TEXTS), np.float32), model.encode_document(TEXTS)
    )
    assert np.array_equal(
        np.array(mine.get_query_embedding("x"), np.float32), model.encode_query("x")
    )
    narrow = GembEmbedding(model_name=model.reference, dim=128)
    assert len(narrow.get_text_embedding("x")) == 128
    documents = [Document(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=mine)
    hits = index.as_retriever(similarity_top_k=1).retrieve("the cat sleeps")
    assert hits[0].node.get_content() == TEXTS[0]


def test_chroma(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")
    chromadb = pytest.importorskip("chromadb")
    from gemb.integrations.chroma import GembEmbeddingFunction

    mine = GembEmbeddingFunction(model.reference)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    collection = client.create_collection("docs", embedding_function=mine)
    collection.add(ids=["a", "b", "c"], documents=TEXTS)
    answer = collection.query(query_texts=["the cat sleeps"], n_results=3)
    assert answer["ids"][0][0] == "a"
    cosines = model.similarity(model.encode_query("the cat sleeps"), model.encode_document(TEXTS))
    assert np.allclose(sorted(answer["distances"][0]), sorted(1 - cosines), atol=1e-4)
    again = client.get_collection("docs")  # by the name that is kept with it
    assert again.query(query_texts=["the cat sleeps"], n_results=1)["ids"] == [["a"]]


def test_a_collection_of_somebody_else_downloads_nothing(monkeypatch):
    from gemb.integrations.chroma import GembEmbeddingFunction

    config = GembEmbeddingFunction("somebody/model").get_config()
    with pytest.raises(Missing, match=r"somebody/model: .*it has not been pulled"):
        GembEmbeddingFunction.build_from_config(config)(["x"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_opens_a_model_of_its_own(model):
    from gemb.integrations.shared import shared

    expected = shared(model.reference).encode(TEXTS)
    child = os.fork()
    if not child:
        is_same = np.array_equal(shared(model.reference).encode(TEXTS), expected)
        os._exit(7 if is_same else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert shared(model.reference) is shared(model.reference)


def test_sklearn(model):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from gemb.integrations.sklearn import GembVectorizer

    mine = GembVectorizer(model.reference, dim=128)
    assert np.array_equal(mine.fit_transform(TEXTS), model.encode(TEXTS, "classification", dim=128))
    pipeline = make_pipeline(clone(mine), LogisticRegression())
    pipeline.fit(["cat one", "cat two", "dog one", "dog two"], [0, 0, 1, 1])
    assert pipeline.predict(["cat three", "dog three"]).tolist() == [0, 1]
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.predict(["cat three"]).tolist() == [0]
    assert mine.get_params() == {"model": model.reference, "task": "classification", "dim": 128}
    with pytest.raises(UsageError, match="X is a table; give one column of texts"):
        mine.transform(np.array([["a"], ["b"]]))


def test_llm(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm")
    from click.testing import CliRunner
    from llm.cli import cli
    from llm.plugins import pm

    from gemb.integrations import llm as mine

    assert llm
    if not pm.is_registered(mine):
        pm.register(mine, "gemb")

    def run(*words: str, stdin: str = "") -> str:
        done = CliRunner().invoke(cli, words, input=stdin, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    model = Model("mini")
    vector = json.loads(run("embed", "-m", "gemb-mini", "-c", TEXTS[0]))
    assert np.allclose(vector, model.encode_document(TEXTS[0]), atol=1e-6)
    vector = json.loads(run("embed", "-m", "gemb-mini-query", "-c", "a cat"))
    assert np.allclose(vector, model.encode_query("a cat"), atol=1e-6)
    rows = json.dumps([{"id": str(n), "content": text} for n, text in enumerate(TEXTS)])
    (tmp_path / "rows.json").write_text(rows)
    run("embed-multi", "docs", str(tmp_path / "rows.json"), "-m", "gemb-mini", "--store")
    question = "where is the cat"
    hit = json.loads(run("similar", "docs", "-c", question, "-n", "1"))
    assert hit["id"] == "0"
    documents = model.encode_document(TEXTS[0])
    assert np.isclose(hit["score"], model.encode_query(question) @ documents, atol=1e-5)
    run("embed", "docs", "one", "-m", "gemb-mini", "-c", "the cat sleeps", "--store")
    hit = json.loads(run("similar", "docs", "one", "-n", "1"))  # of two documents
    expected = model.encode_document("the cat sleeps") @ documents
    assert np.isclose(hit["score"], expected, atol=1e-5)


def test_the_entry_point_of_llm_names_the_hook():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["llm"] == {"gemb": "gemb.integrations.llm"}
    from gemb.integrations import llm

    seen = []
    llm.register_embedding_models(lambda model: seen.append(model.model_id))
    assert seen == ["gemb-mini", "gemb-mini-query"]
