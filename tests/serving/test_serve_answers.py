"""What `gemb serve` answers, in each of the languages that clients speak."""

from __future__ import annotations

import base64
import json
import os
import re
import sys

import numpy as np
import openai
import pytest

import gemb
from fake_backend import write_model
from gemb import Model, plugins
from gemb.serving.answers import hit_fields
from gemb.serving.page import PAGE

TEXTS = ["the cat sleeps", "a dog barks at night", "x"]


@pytest.fixture(scope="module")
def model(home, tmp_path_factory):
    """The model that is served, in this process."""
    plugin = home.environment["PYTHONPATH"].split(os.pathsep)[0]
    sys.path.insert(0, plugin)
    plugins.backends.cache_clear()
    yield Model(home.folder / "model.fake")
    sys.path.remove(plugin)
    plugins.backends.cache_clear()


def vectors(reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    data = reply.json["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return np.array([row["embedding"] for row in data], np.float32)


def test_vectors_are_those_of_model_encode(served, model):
    assert np.array_equal(vectors(served.embed(TEXTS)), model.encode_document(TEXTS))
    assert np.array_equal(
        vectors(served.embed(TEXTS, model="model.fake:query", dimensions=128)),
        model.encode_query(TEXTS, dim=128),
    )
    reply = served.embed(TEXTS, encoding_format="base64")
    rows = [base64.b64decode(row["embedding"]) for row in reply.json["data"]]
    assert b"".join(rows) == model.encode_document(TEXTS).astype("<f4").tobytes()


def test_an_answer_has_the_form_of_openais(served):
    reply = served.embed("one text")
    answer = reply.json
    assert answer["object"] == "list"
    assert answer["model"] == "model.fake"
    assert answer["data"][0]["object"] == "embedding"
    assert len(answer["data"][0]["embedding"]) == 768
    tokens = 8  # BOS, title:, none, |, text:, one, text, EOS
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-gemb-prompt"] == "document"


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "document"),
        ({"model": "model.fake:latest"}, "document"),
        ({"model": "model.fake:query"}, "query"),
        ({"model": "model.fake:similarity"}, "similarity"),
        ({"prompt_name": "query"}, "query"),
        ({"prompt_name": "passage", "model": "model.fake:query"}, "document"),
        ({"prompt_name": "STS"}, "similarity"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "search_document", "model": "model.fake:query"}, "document"),
        ({"input_type": "classification"}, "classification"),
    ],
)
def test_the_prompt_is_the_requests_or_the_model_names(served, model, fields, task):
    reply = served.embed(TEXTS, **fields)
    assert reply.headers["x-gemb-prompt"] == task
    assert np.array_equal(vectors(reply), model.encode(TEXTS, task))


def test_a_prompt_that_the_model_has_under_a_name_of_its_own(home, model):
    from served import Served

    prompts = {"query": "query: ", "Retrieval": "search: ", "BitextMining": "mine: ", "späť": "x"}
    write_model(home.folder / "own.fake", prompts=prompts)
    server = Served(home, model="own.fake")
    with Model(home.folder / "own.fake") as own:
        for fields in ({"prompt_name": "BitextMining"}, {"prompt_name": "Retrieval"}):
            reply = server.ask("/embed", {"inputs": TEXTS, **fields})
            assert reply.headers["x-gemb-prompt"] == fields["prompt_name"]
            prompt = prompts[fields["prompt_name"]] + "{text}"
            expected = own.encode(TEXTS, prompt=prompt)
            assert np.array_equal(np.array(reply.json, np.float32), expected)
        reply = server.ask("/embed", {"inputs": TEXTS, "prompt_name": "search_query"})
        assert np.array_equal(np.array(reply.json, np.float32), own.encode_query(TEXTS))
    refused = server.ask("/embed", {"inputs": "x", "prompt_name": "späť"})
    assert refused.status == 400
    assert "none, Retrieval, BitextMining" in refused.json["error"]
    assert server.end() == 0


def test_the_default_prompt_is_set_at_the_start_and_said(home, model):
    from served import Served

    server = Served(home, "--default-prompt", "query", "--name", "mine")
    assert "requests that name no prompt get that of query" in server.said
    reply = server.embed(TEXTS, model="mine")
    assert np.array_equal(vectors(reply), model.encode_query(TEXTS))
    assert server.embed(TEXTS).status == 404
    assert server.ask("/").status == 404  # no index, no page
    assert server.ask("/v1/search", {"query": "cat"}).json["error"]["message"] == (
        "name an index; here are none: gemb serve --index NAME=INDEX"
    )
    assert server.end() == 0


def test_a_text_that_is_cut_is_counted(served, model):
    texts = ["w " * 100, "short"]
    reply = served.embed(texts)
    assert reply.headers["x-gemb-truncated"] == "1"
    assert np.array_equal(vectors(reply), model.encode_document(texts))
    assert reply.json["usage"]["prompt_tokens"] == 32 + 7
    assert "x-gemb-truncated" not in served.embed("short").headers
    refused = served.embed(texts, truncate=False)
    assert refused.status == 400
    assert refused.json["error"]["code"] == "context_length_exceeded"
    assert "input[0] is longer than the 32 tokens that the model takes" in refused.body.decode()


def test_the_models_are_listed_with_their_prompts(served):
    entries = served.ask("/v1/models").json["data"]
    assert [entry["id"] for entry in entries] == [
        "model.fake",
        "model.fake:query",
        "model.fake:document",
    ]
    assert served.ask("/v1/models/model.fake:query").json["id"] == "model.fake:query"
    assert served.ask("/v1/models/gpt-9").status == 404
    info = served.ask("/info").json
    assert info["dimensions"] == [768, 512, 256, 128]
    assert info["indexes"] == ["docs"]
    assert len(info["fingerprint"]) == 16


def test_openais_client_gets_the_vectors(served, model):
    client = openai.OpenAI(
        base_url=f"http://{served.host}:{served.port}/v1", api_key="none", max_retries=0
    )
    answer = client.embeddings.create(model="model.fake", input=TEXTS)  # it asks for base64
    got = np.array([row.embedding for row in answer.data], np.float32)
    assert np.array_equal(got, model.encode_document(TEXTS))
    answer = client.embeddings.create(
        model="model.fake:query", input="one", dimensions=256, encoding_format="float"
    )
    got = np.array(answer.data[0].embedding, np.float32)
    assert np.array_equal(got, model.encode_query("one", dim=256))
    assert answer.usage.total_tokens == 4
    assert next(iter(client.models.list())).id == "model.fake"
    with pytest.raises(openai.NotFoundError, match=r"no model 'gpt-9'; here are model\.fake"):
        client.embeddings.create(model="gpt-9", input="x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="model.fake", input=[[1, 2], [3]])
    assert refused.value.code == "token_ids"
    assert "check_embedding_ctx_length=False" in refused.value.message


def test_text_embeddings_inferences_routes(served, model):
    rows = served.ask("/embed", {"inputs": TEXTS, "prompt_name": "query"}).json
    assert np.array_equal(np.array(rows, np.float32), model.encode_query(TEXTS))
    assert len(served.ask("/embed", {"inputs": "one", "dimensions": 256}).json[0]) == 256
    hits = served.ask("/rerank", {"query": "cat", "texts": TEXTS, "return_text": True}).json
    cosines = model.similarity(model.encode_query("cat"), model.encode_document(TEXTS))
    assert [hit["index"] for hit in hits] == np.argsort(-cosines).tolist()
    assert np.allclose([hit["score"] for hit in hits], np.sort(cosines)[::-1], atol=1e-6)
    assert hits[0]["text"] == "the cat sleeps"
    refused = served.ask("/embed", {"inputs": "x", "normalize": False})
    assert (refused.status, set(refused.json)) == (400, {"error", "error_type"})


def test_ollamas_route(served, model):
    answer = served.ask(
        "/api/embed",
        {"model": "model.fake:latest", "input": TEXTS, "keep_alive": "5m", "options": {"a": 1}},
    ).json
    got = np.array(answer["embeddings"], np.float32)
    assert np.array_equal(got, model.encode_document(TEXTS))
    assert answer["total_duration"] > 0
    assert answer["prompt_eval_count"] > 3
    assert set(served.ask("/api/embed", {"model": "no", "input": "x"}).json) == {"error"}


def test_hits_are_those_of_gemb_search(served, home):
    question = "the cat sleeps on the mat"
    told = home("search", question, "docs.gemb", "-k", "2", "--json").stdout.decode()
    answer = served.ask("/v1/search", {"query": question, "k": 2}).json
    assert answer["index"] == "docs"
    names = ("rank", "score", "path", "line", "last_line", "best_line", "text")
    assert [[hit[name] for name in names] for hit in answer["hits"]] == [
        [json.loads(line)[name] for name in names] for line in told.splitlines()
    ]
    assert answer["hits"][0]["path"] == "docs/cat.md"
    where = {"query": question, "index": "docs", "where": "path like '%tax%'", "weak": True}
    assert [hit["path"] for hit in served.ask("/v1/search", where).json["hits"]] == ["docs/tax.txt"]
    assert served.ask("/v1/search", {"query": "quantum"}).json["hits"] == []


def test_a_hit_says_that_it_is_a_draft_and_in_how_many_places_it_stands():
    hit = gemb.SearchHit(score=0.5, text="a", path="a.md", is_estimate=True, copies=3)
    fields = hit_fields(1, hit)
    assert (fields["estimated"], fields["copies"]) == (True, 3)
    fields = hit_fields(1, gemb.SearchHit(score=0.5, text="a"))
    assert (fields["estimated"], fields["copies"]) == (False, 1)
    assert set(re.findall(r"\bhit\.(\w+)", PAGE.read_text("utf-8"))) <= set(fields)


def test_a_request_has_an_id_and_a_line_in_the_log(served):
    reply = served.ask(
        "/v1/embeddings",
        {"model": "model.fake", "input": ["a", "b"]},
        headers={"X-Request-Id": "my-id.7"},
    )
    assert reply.headers["x-request-id"] == "my-id.7"
    entry = json.loads(served.line("my-id.7"))
    assert entry["path"] == "/v1/embeddings"
    assert (entry["status"], entry["texts"], entry["tokens"]) == (200, 2, 14)
    assert 0 < entry["ms"] < 60_000
    forged = served.ask("/health", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert len(forged) == 32


def test_the_metrics_count(served):
    before = served.metric("gemb_texts_total")
    served.embed(["new text one", "new text two"])
    assert served.metric("gemb_texts_total") == before + 2
    text = served.ask("/metrics").body.decode()
    assert 'gemb_requests_total{route="/v1/embeddings",status="200"}' in text
    served.ask("/no/such/path")
    assert 'route="other",status="404"' in served.ask("/metrics").body.decode()
    assert "/no/such/path" not in served.ask("/metrics").body.decode()
