"""Clients of other libraries, unmodified, against `gemb serve`; each where it is installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from served import Served

TEXTS = ["the cat sleeps on the mat", "a dog barks"]


def told(served, model: str, texts: list[str]) -> np.ndarray:
    reply = served.embed(texts, model=model)
    return np.array([row["embedding"] for row in reply.json["data"]], np.float32)


def test_langchains_openai_embeddings(served):
    module = pytest.importorskip("langchain_openai")
    base = f"http://{served.host}:{served.port}/v1"
    mine = module.OpenAIEmbeddings(
        model="model.fake:document",
        base_url=base,
        api_key="none",
        check_embedding_ctx_length=False,
    )
    assert np.array_equal(
        np.array(mine.embed_documents(TEXTS), np.float32),
        told(served, "model.fake:document", TEXTS),
    )


def test_langchain_as_it_is_set_up_is_told_what_to_change(served):
    """It would send the ids of another tokenizer, which it downloads: the refusal is in the id."""
    module = pytest.importorskip("langchain_openai")
    base = f"http://{served.host}:{served.port}/v1"
    mine = module.OpenAIEmbeddings(model="model.fake", base_url=base, api_key="none")
    assert mine.check_embedding_ctx_length is True  # what the message names
    reply = served.embed([[464, 3797, 18]])
    assert reply.status == 400
    assert "OpenAIEmbeddings(check_embedding_ctx_length=False)" in reply.body.decode()


def test_llama_indexs_openai_like_embedding(served):
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    mine = module.OpenAILikeEmbedding(
        model_name="model.fake:query",
        api_base=f"http://{served.host}:{served.port}/v1",
        api_key="none",
    )
    assert np.array_equal(
        np.array(mine.get_text_embedding_batch(TEXTS), np.float32),
        told(served, "model.fake:query", TEXTS),
    )


def test_the_program_llm_asks_it_in_openais_place(home, tmp_path, monkeypatch):
    pytest.importorskip("llm")
    from click.testing import CliRunner
    from llm.cli import cli

    server = Served(home, "--name", "text-embedding-3-small")
    for name, value in (
        ("LLM_USER_PATH", str(tmp_path)),
        ("OPENAI_BASE_URL", f"http://{server.host}:{server.port}/v1"),
        ("OPENAI_API_KEY", "none"),
    ):
        monkeypatch.setenv(name, value)

    def run(*words: str, stdin: str = "") -> str:
        done = CliRunner().invoke(cli, words, input=stdin, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    vector = json.loads(run("embed", "-m", "3-small", "-c", TEXTS[0]))
    assert np.allclose(vector, told(server, "text-embedding-3-small", TEXTS)[0], atol=1e-7)
    narrow = json.loads(run("embed", "-m", "3-small-512", "-c", TEXTS[0]))
    assert len(narrow) == 512
    run("embed-multi", "docs", "-m", "3-small", "--format", "nl", "-", stdin=as_lines(TEXTS))
    hit = json.loads(run("similar", "docs", "-c", TEXTS[1], "-n", "1"))
    assert hit["id"] == "1"
    assert server.end() == 0


def as_lines(texts: list[str]) -> str:
    rows = ({"id": str(number), "text": text} for number, text in enumerate(texts))
    return "".join(json.dumps(row) + "\n" for row in rows)
