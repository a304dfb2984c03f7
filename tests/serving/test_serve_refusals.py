"""What `gemb serve` refuses: each with a status, a message and a code; the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from gemb.serving.bodies import Bodies, Told
from gemb.serving.forms import OpenAIEmbeddings
from gemb.serving.guard import Access, Guard
from gemb.serving.limits import Limits
from gemb.serving.metrics import Metrics
from gemb.serving.refusals import Refused

MODEL = "model.fake"
EMBED = "/v1/embeddings"


def embed(**fields):
    return {"model": MODEL, "input": "x", **fields}


@pytest.mark.parametrize(
    ("path", "value", "status", "message"),
    [
        (EMBED, embed(input=[]), 400, "input is empty; send a text"),
        (EMBED, embed(input=""), 400, "input: the text is empty"),
        (EMBED, embed(input=["a", " \n"]), 400, "input[1]: the text is empty"),
        (EMBED, embed(input=["a", None]), 400, "input[1] is null, not a string"),
        (EMBED, embed(input=["a", {}]), 400, "input[1] is dict, not a string"),
        (EMBED, embed(input=None), 400, "input: Expected `str | array`, got `null`"),
        (EMBED, embed(input=[1, 2]), 400, "input is token ids; send texts"),
        (EMBED, embed(input=[[1, 2]]), 400, "check_embedding_ctx_length=False"),
        (EMBED, embed(input=["a"] * 2049), 413, "input has 2,049 texts; the most is 2,048"),
        (EMBED, embed(input=["a"] * 10_000), 413, "input has 10,000 texts; the most is 2,048"),
        (EMBED, embed(dimensions=300), 400, "300 dimensions: the model was trained for 768, 512"),
        (EMBED, embed(dimensions=0), 400, "0 dimensions: the model was trained for"),
        (EMBED, embed(dimensions=-1), 400, "-1 dimensions: the model was trained for"),
        (EMBED, embed(dimensions="big"), 400, "dimensions: Expected `int | null`, got `str`"),
        (EMBED, embed(encoding_format="hex"), 400, "encoding_format 'hex'; it is float or base64"),
        (EMBED, embed(model="gpt-9"), 404, "no model 'gpt-9'; here are model.fake, model.fake:q"),
        (EMBED, embed(model="model.fake:poem"), 404, "no model 'model.fake:poem'"),
        (EMBED, embed(model=3), 400, "model: Expected `str`, got `int`"),
        (EMBED, {"input": "x"}, 400, "Object missing required field `model`"),
        (EMBED, embed(prompt_name="poem"), 400, "prompt_name 'poem': the prompts are document"),
        (EMBED, embed(input_type="poem"), 400, "input_type 'poem': the prompts are document"),
        (EMBED, [], 400, "Expected `object`, got `array`"),
        (EMBED, embed(input="poison"), 500, "input[0]: the model gives no vector: failed"),
        (EMBED, embed(input=["a", "notfinite"]), 500, "input[1]: the model gives no vector: not_f"),
        ("/embed", {"inputs": []}, 400, "inputs is empty"),
        ("/rerank", {"query": "", "texts": ["a"]}, 400, "query: the text is empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "texts is empty"),
        ("/rerank", {"query": "a", "texts": ["b", None]}, 400, "texts[1] is null, not a string"),
        ("/embed", {"inputs": ["b", "c", None]}, 400, "inputs[2] is null, not a string"),
        ("/api/embed", {"model": MODEL, "input": [3]}, 400, "input is token ids"),
        ("/v1/search", {"query": "a", "k": -1}, 400, "k is -1; it is 1 to 1000"),
        ("/v1/search", {"query": "a", "k": 10**9}, 400, "k is 1000000000; it is 1 to 1000"),
        ("/v1/search", {"query": ""}, 400, "query: the text is empty"),
        ("/v1/search", {"query": "a", "index": "nosuch"}, 404, "no index 'nosuch'; here are docs"),
        ("/v1/search", {"query": "a", "where": "nosuch = 1"}, 400, "nosuch"),
        ("/v1/search", {"query": "a", "where": "1; drop table rows"}, 400, ""),
        ("/v1/search", {"query": "a_b " * 30_000}, 413, "query has 120,000 characters"),
        ("/v1/search", {"query": "a", "min_score": 7}, 400, "min_score=7.0; it is a cosine"),
        ("/nosuch", {}, 404, "no such path; here are "),
        ("/health", {}, 405, "/health takes GET"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_wrong(served, path, value, status, message):
    reply = served.ask(path, value)
    assert reply.status == status, reply.body
    error = reply.json["error"]
    text = error if isinstance(error, str) else error["message"]
    assert message in text
    if path.startswith("/v1"):
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no valid JSON"),
        (b"{", "the body is no valid JSON"),
        (b'{"model": "model.fake", "input": "\xff"}', "the body is no valid JSON"),
        (b'{"model": "model.fake", "input": "\\ud800"}', "the body is no valid JSON"),
        (b'{"model": "model.fake", "input": NaN}', "the body is no valid JSON"),
        (b"[" * 100_000, ""),
        (b'{"model": "model.fake", "input": "x", "a": ' + b"[" * 100_000, ""),
    ],
)
def test_a_body_that_is_no_json_is_refused(served, body, message):
    reply = served.ask(EMBED, body=body)
    assert reply.status == 400
    assert message in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"content-type": "text/plain"}, b"{}", 415, "the content type is text/plain; send JSON"),
        ({"content-type": ""}, b"{}", 415, "the content type is not given; send JSON"),
        (
            {"content-encoding": "gzip"},
            gzip.compress(b"0" * 50_000_000),
            415,
            "the body is compressed; send it as it is",
        ),
        ({}, b"0" * 100_000_000, 413, "the body is longer than 16,000,000 bytes"),
    ],
)
def test_a_body_that_is_too_much_is_refused(served, headers, body, status, message):
    before = served.memory_kb()
    reply = served.ask(EMBED, body=body, headers=headers)
    assert reply.status == status
    assert message in reply.json["error"]["message"]
    assert served.memory_kb() < before + 40_000


def test_a_body_in_chunks_is_counted_too(served):
    with served.raw() as connection:
        head = f"POST {EMBED} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"0" * (1 << 20) + b"\r\n"
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100:
                connection.sendall(chunk)
                sent += 1
        assert b" 413 " in connection.recv(100)


def test_bodies_and_answers_in_memory_are_bounded_in_sum():
    size = 100_000
    bodies = Bodies(Limits(held_bytes=3 * size))

    async def read(count: int, told: Told) -> OpenAIEmbeddings:
        body = json.dumps({"model": "m", "input": "x" * count}).encode()

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "headers": headers, "state": {"told": told}}
        return await bodies.read_json(Request(scope, receive), OpenAIEmbeddings)

    async def run() -> None:
        told = [Told() for _ in range(6)]
        await read(size - 100, told[0])
        bodies.hold(told[0], 2 * size - 10_000)  # its answer
        with pytest.raises(Refused, match="too many large requests are in memory"):
            await read(size, told[1])
        bodies.release(told[1])
        for number in (2, 3, 4):
            await read(50_000, told[number])  # small ones are read all the same
        for number in (0, 2, 3, 4):
            bodies.release(told[number])
        await read(2 * size, told[5])
        bodies.release(told[5])
        assert bodies._held == 0

    asyncio.run(run())


def test_a_large_answer_to_a_small_request_is_refused_where_too_much_is_held():
    """Clients that ask for much in few bytes, and do not take it, would fill the memory."""
    bodies = Bodies(Limits(held_bytes=1_000_000))
    sent: list[dict] = []

    async def large(request):
        return Response(b"x" * 100_000)

    async def send(message):
        sent.append(message)

    async def ask() -> int:
        sent.clear()
        scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost")], "state": {}}
        guard = Guard({("GET", "/metrics"): large}, Access(), bodies, Metrics(lambda: 0))
        await guard(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 200
    told = Told()
    bodies.hold(told, 1_000_001)  # answers that nobody takes
    assert asyncio.run(ask()) == 429
    assert b"too many large requests are in memory" in sent[1]["body"]
    bodies.release(told)
    assert asyncio.run(ask()) == 200
    assert bodies._held == 0


def test_texts_that_are_too_many_together_are_refused(served):
    reply = served.embed(["word " * 4000] * 2048)
    assert reply.status == 413
    assert "the body is longer" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\nx\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n"
        b"content-length: 2\r\n\r\n",
        b"GET /" + b"a" * 500_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(served, head):
    with served.raw() as connection:
        connection.sendall(head)
        answer = connection.recv(1000)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), answer


def test_what_is_no_http_leaves_no_line_in_the_log(served):
    for _ in range(3):
        with served.raw() as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            connection.recv(1000)
    served.ask("/health", headers={"x-request-id": "the-next"})
    served.line("the-next")
    assert all(json.loads(line) for line in served.log)  # its notes, too


def test_no_header_can_be_smuggled_into_an_answer(served):
    with served.raw() as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
            b"x-request-id: a%0d%0aset-cookie:%20b=1\r\nconnection: close\r\n\r\n"
        )
        answer = b""
        while part := connection.recv(1000):
            answer += part
    assert b"set-cookie" not in answer.lower()


@pytest.mark.slow
def test_a_head_that_never_ends_is_cut_off(served):
    with served.raw() as slow, served.raw() as silent:
        began = time.monotonic()
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
        slow.settimeout(30)
        for number in range(200):
            try:
                slow.sendall(b"x-%d: y\r\n" % number)
                time.sleep(0.2)
            except OSError:
                break
        assert 5 < time.monotonic() - began < 20
        silent.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(10) == b""
        assert served.embed("meanwhile").status == 200


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = (
    "input inputs model dimensions encoding_format prompt_name input_type truncate normalize query "
    "texts index k where min_score weak hybrid return_text"
)
NAMES = st.sampled_from(FIELDS.split())
PATHS = st.sampled_from(["/v1/embeddings", "/embed", "/rerank", "/api/embed", "/v1/search"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, fields=st.dictionaries(NAMES, VALUES), has_basics=st.booleans())
def test_no_json_is_a_bug(served, path, fields, has_basics):
    basics = {"model": MODEL, "input": "x", "inputs": "x", "query": "cat", "texts": ["a"]}
    reply = served.ask(path, {**basics, **fields} if has_basics else fields)
    assert reply.status in (200, 400, 404, 413), (path, fields, reply.body)
    assert reply.json is not None


def test_errors_in_json_are_short(served):
    reply = served.embed("x", model="m" * 100_000)
    assert len(reply.body) < 1000
    assert json.loads(reply.body)


@pytest.mark.parametrize("log_json", [False, True])
def test_a_bug_is_logged_without_what_a_terminal_obeys(log_json: bool, capsys) -> None:
    async def broken(_request: Request) -> Response:
        raise ValueError("of the request: \x1b]0;PWNED\x07 \x9b \ud800")

    guard = Guard(
        {("GET", "/health"): broken},
        Access(),
        Bodies(Limits()),
        Metrics(lambda: 0),
        log_json=log_json,
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/health",
        "state": {},
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
    }
    statuses = []

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    asyncio.run(guard(scope, None, send))
    assert statuses[0] == 500
    said = capsys.readouterr().err
    assert said.replace("\n", "").isascii()
    assert said.replace("\n", "").isprintable()
    assert "PWNED" in said
    if log_json:
        assert "\x1b]0;PWNED\x07 \x9b" in json.loads(said)["error"]


def test_a_log_that_nobody_reads_does_not_cost_the_answer(monkeypatch) -> None:
    class Gone:
        def write(self, _text: str) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    guard = Guard({}, Access(), Bodies(Limits()), Metrics(lambda: 0))
    guard._log({"method": "GET", "path": "/"}, "1", 500, 0.0, Told(), "Traceback")
