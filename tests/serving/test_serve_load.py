"""Many clients at once, too many, some that vanish; signals, kills and files that change."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.requests import Request

from fake_backend import write_model
from file_trees import write
from gemb.serving.app import Service
from gemb.serving.bodies import Told
from gemb.serving.refusals import ClientGone
from index_cases import error
from served import Served


def rows(reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.array([row["embedding"] for row in reply.json["data"]], np.float32)


def until_busy(server: Served) -> None:
    """Wait until a request is in the queue, or is being computed."""
    until = time.monotonic() + 60
    while not server.metric("gemb_queue_tokens"):
        assert time.monotonic() < until
        time.sleep(0.01)


def until_refused(server: Served) -> None:
    """Wait until nobody can connect any more."""
    until = time.monotonic() + 60
    with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
        while True:
            server.raw().close()
            assert time.monotonic() < until
            time.sleep(0.01)


def test_clients_at_once_get_what_one_client_gets(served):
    texts = [
        [f"text {client} {number}" for number in range(1 + client % 5)] for client in range(40)
    ]
    alone = [rows(served.embed(part)) for part in texts]
    barrier = threading.Barrier(20)

    def ask(part: list[str]) -> np.ndarray:
        barrier.wait()
        return rows(served.embed([f"{text}" for text in part]))

    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, texts))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_requests_at_once_share_batches(home):
    write_model(home.folder / "slow.fake", sleep_s=0.05, log="batches.txt", max_tokens=32)
    log = home.folder / "batches.txt"
    server = Served(home, model="slow.fake")
    log.write_text("")
    with ThreadPoolExecutor(32) as pool:
        statuses = list(
            pool.map(lambda n: server.embed(f"text {n}", model="slow.fake").status, range(96))
        )
    assert statuses == [200] * 96
    batches = list(map(int, log.read_text().split()))
    assert sum(batches) == 96
    assert len(batches) < 30, batches  # not one by one
    assert server.end() == 0


def test_a_large_request_holds_up_no_small_one(home):
    write_model(home.folder / "steady.fake", sleep_s=0.05)
    server = Served(home, "--batch-tokens", "256", "--queue-tokens", "100000", model="steady.fake")
    large = [f"word {number}" for number in range(1000)]  # some 60 batches
    done = {}

    def ask_large() -> None:
        done["status"] = server.embed(large, model="steady.fake").status

    thread = threading.Thread(target=ask_large)
    thread.start()
    until_busy(server)
    assert server.embed("small", model="steady.fake").status == 200
    assert server.metric("gemb_queue_tokens") > 1000  # the large one is far from its end
    assert not done
    thread.join()
    assert done["status"] == 200
    assert server.end() == 0


def test_beyond_the_queue_the_answer_is_429_at_once_and_others_keep_their_time(home):
    write_model(home.folder / "busy.fake", sleep_s=0.1)
    server = Served(home, "--batch-tokens", "128", "--queue-tokens", "1024", model="busy.fake")
    took: dict[int, list[float]] = {200: [], 429: []}
    lock = threading.Lock()
    waits = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        for turn in range(6):
            value = {"model": "busy.fake", "input": [f"t {number} {turn} {n}" for n in range(8)]}
            began = time.monotonic()
            reply = server.ask_on(connection, "/v1/embeddings", value)
            with lock:
                took[reply.status].append(time.monotonic() - began)
                if reply.status == 429:
                    assert reply.json["error"]["code"] == "queue_full"
                    waits.append(int(reply.headers["retry-after"]))
            time.sleep(0.02)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took[200]) + len(took[429]) == 240
    assert len(took[429]) > 40
    assert statistics.median(took[429]) < statistics.median(took[200])
    assert all(1 <= wait <= 60 for wait in waits)
    assert server.metric("gemb_queue_tokens") == 0
    assert server.end() == 0


def test_a_request_larger_than_the_queue_is_served_and_others_beside_it(home):
    write_model(home.folder / "steady.fake", sleep_s=0.05)
    options = ("--batch-tokens", "256", "--queue-tokens", "300")
    server = Served(home, *options, model="steady.fake")
    statuses = []

    def ask(count: int) -> None:
        texts = [f"{count} {number}" for number in range(count)]
        statuses.append((server.embed(texts, model="steady.fake").status, count))

    large = threading.Thread(target=ask, args=(1000,))  # some 50 batches
    large.start()
    until_busy(server)
    for _ in range(3):
        ask(1)
    ask(500)
    large.join()
    assert statuses == [(200, 1), (200, 1), (200, 1), (429, 500), (200, 1000)]
    assert server.end() == 0


def test_a_client_that_goes_away_frees_its_place(home):
    write_model(home.folder / "slow.fake", sleep_s=0.2)
    server = Served(home, "--batch-tokens", "128", "--log-json", model="slow.fake")
    body = json.dumps({"model": "slow.fake", "input": [f"t {n}" for n in range(2000)]}).encode()
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"x-request-id: gone\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    connection = server.raw()
    connection.sendall(head + body)
    until_busy(server)
    assert server.metric("gemb_queue_tokens") > 10_000
    connection.close()
    until = time.monotonic() + 60
    while server.metric("gemb_queue_tokens") and time.monotonic() < until:
        time.sleep(0.05)
    assert server.metric("gemb_queue_tokens") == 0
    assert json.loads(server.line('"gone"'))["status"] == 499
    assert server.embed("next", model="slow.fake").status == 200
    half = server.raw()  # and one that goes in the middle of its body
    half.sendall(head + body[:100])
    half.close()
    assert server.embed("next", model="slow.fake").status == 200
    assert server.end() == 0


def test_a_search_whose_client_has_gone_frees_its_place(home, monkeypatch):
    """What has not begun is not begun; a search that has begun keeps its place until it ends."""
    begun, ends = threading.Semaphore(0), threading.Event()

    class Index:
        def search(self, question, k, **_):
            begun.release()
            ends.wait(60)
            return []

    async def ask(service, until):
        async def receive():
            await until.wait()
            return {"type": "http.disconnect"}

        request = Request({"type": "http", "state": {"told": Told()}}, receive)
        with pytest.raises(ClientGone):
            await service._searched(request, lambda: Index().search("x", 1))

    async def run():
        service = Service.__new__(Service)
        service._searchers = ThreadPoolExecutor(1)
        service._searching = 0
        gone = asyncio.Event()
        asking = [asyncio.create_task(ask(service, gone)) for _ in range(3)]
        await asyncio.to_thread(begun.acquire)
        assert service._searching == 3
        gone.set()
        await asyncio.gather(*asking)
        while service._searching != 1:
            await asyncio.sleep(0)
        ends.set()
        while service._searching:
            await asyncio.sleep(0)
        service._searchers.shutdown()
        assert not begun.acquire(blocking=False)  # the two that waited were not begun

    asyncio.run(run())


def test_sigterm_answers_what_has_begun_and_takes_nothing_new(home):
    write_model(home.folder / "slow.fake", sleep_s=1.0)
    server = Served(home, model="slow.fake")
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(server.embed("begun", model="slow.fake"))
    )
    idle = http.client.HTTPConnection(server.host, server.port, timeout=30)
    assert server.ask_on(idle, "/health").status == 200  # it stays open
    thread.start()
    until_busy(server)
    server.process.send_signal(signal.SIGTERM)
    until_refused(server)
    thread.join()
    assert replies[0].status == 200
    assert server.process.wait(60) == 0
    idle.close()


def test_ctrl_c_ends_it_too_and_the_second_at_once(home):
    write_model(home.folder / "slow.fake", sleep_s=3.0)
    server = Served(home, model="slow.fake")
    threading.Thread(
        target=lambda: _quiet(lambda: server.embed("begun", model="slow.fake")), daemon=True
    ).start()
    until_busy(server)
    server.process.send_signal(signal.SIGINT)
    until_refused(server)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0


def test_what_is_not_answered_in_time_is_told_so_in_one_line(home):
    write_model(home.folder / "slow.fake", sleep_s=4.0)
    server = Served(home, "--drain", "0", "--log-json", model="slow.fake")
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(server.embed("begun", model="slow.fake"))
    )
    thread.start()
    until_busy(server)
    assert server.end() == 0
    thread.join()
    assert replies[0].status == 503
    assert replies[0].json["error"]["message"] == "the server ends; ask another, or again"
    assert "1 requests were not answered before the end (--drain)" in server.line("--drain")
    server.line('"status":503')
    server.lines.put("")
    while line := server.lines.get(timeout=60):
        server.log.append(line)
    for line in server.log:  # no traceback, no note that is no JSON
        assert json.loads(line)


def _quiet(work) -> None:
    with contextlib.suppress(OSError):
        work()


def test_a_kill_is_a_clean_error_for_clients_and_the_restart_is_quick(home):
    write_model(home.folder / "slow.fake", sleep_s=2.0)
    server = Served(home, model="slow.fake")
    errors = []

    def ask() -> None:
        try:
            server.embed("x", model="slow.fake")
        except (OSError, http.client.HTTPException) as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until_busy(server)
    server.process.kill()
    for thread in threads:
        thread.join()
    assert len(errors) == 8
    server.process.wait()
    again = Served(home, "--port", str(server.port))  # at the same port, at once
    assert again.embed("x").status == 200
    assert again.end() == 0


def test_an_index_that_is_replaced_and_a_model_that_is_removed_while_served(home):
    write_model(home.folder / "own.fake", is_bag=True)
    assert home("index", "build", "-q", "own.gemb", "docs", "-m", "own.fake").returncode == 0
    server = Served(home, "--index", "own=own.gemb", model="own.fake")
    question = {"query": "the cat sleeps on the mat", "k": 1}
    assert server.ask("/v1/search", question).json["hits"][0]["path"] == "docs/cat.md"
    write(home.folder, {"dogs/dog.md": "The dog barks at the postman.\n"})
    words = ("index", "build", "-q", "-f", "own.gemb", "dogs", "-m", "own.fake")
    assert home(*words).returncode == 0
    weak = {**question, "weak": True}
    hits = server.ask("/v1/search", weak).json["hits"]
    assert [hit["path"] for hit in hits] == ["dogs/dog.md"]
    write_model(home.folder / "other.fake", name="other", is_bag=True)
    other = ("index", "build", "-q", "-f", "own.gemb", "docs", "-m", "other.fake")
    assert home(*other).returncode == 0
    hits = server.ask("/v1/search", question).json["hits"]  # with the model of the new index
    assert [hit["path"] for hit in hits] == ["docs/cat.md"]
    write_model(home.folder / "third.fake", name="third", is_bag=True)
    third = ("index", "build", "-q", "-f", "own.gemb", "docs", "-m", "third.fake")
    assert home(*third).returncode == 0
    (home.folder / "third.fake").unlink()
    refused = server.ask("/v1/search", question)
    assert refused.status == 503
    assert "own.gemb was built with the model" in refused.body.decode()
    assert "third.fake, which is not here" in refused.body.decode()
    shutil.rmtree(home.folder / "own.gemb")
    refused = server.ask("/v1/search", question)
    assert refused.status == 503
    assert "the index own cannot be searched: no index own.gemb" in refused.body.decode()
    (home.folder / "own.fake").unlink()
    assert server.embed("x", model="own.fake").status == 200
    assert server.end() == 0


def test_an_index_of_another_model_is_searched_with_its_own(home):
    write_model(home.folder / "second.fake", name="second", is_bag=True)
    server = Served(home, "--index", "d=docs.gemb", model="second.fake")
    hits = server.ask("/v1/search", {"query": "the cat sleeps on the mat", "k": 1}).json["hits"]
    assert [hit["path"] for hit in hits] == ["docs/cat.md"]
    assert server.end() == 0
    write_model(home.folder / "gone.fake", name="gone", is_bag=True)
    assert home("index", "build", "-q", "gone.gemb", "docs", "-m", "gone.fake").returncode == 0
    (home.folder / "gone.fake").unlink()
    words = ("serve", "-m", "second.fake", "--port", "0", "--index", "d=gone.gemb")
    assert "gone.gemb was built with the model" in error(home, *words, code=4)


def test_a_model_that_mixes_texts_of_a_batch_fails_the_self_test(home):
    write_model(home.folder / "leaky.fake", is_leaky=True)
    line = error(home, "serve", "-m", "leaky.fake", "--port", "0", code=5)
    assert "the self-test failed: a text's vector depends on the texts beside it" in line


def test_a_client_that_does_not_read_holds_up_nobody(served):
    body = json.dumps({"model": "model.fake", "input": [f"t {n}" for n in range(2000)]}).encode()
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((served.host, served.port))
    connection.sendall(head + body)
    time.sleep(0.5)
    assert served.embed("meanwhile").status == 200
    connection.close()


@pytest.mark.slow
def test_memory_is_flat_under_good_and_bad_requests(served):
    def some(count: int) -> None:
        for number in range(count):
            served.embed([f"{number} {n}" for n in range(50)])
            served.ask("/v1/embeddings", body=b"{")
            served.ask("/v1/search", {"query": f"cat {number}"})
            with served.raw() as connection:
                connection.sendall(b"POST / HTTP/1.1\r\n")

    some(180)  # the vectors of 8,192 texts are kept for repeats
    before = served.memory_kb()
    some(150)
    assert served.memory_kb() < before + 8000


def test_nothing_is_left_running(home):
    server = Served(home)
    assert server.end() == 0
    done = subprocess.run(["ps", "-p", str(server.process.pid)], capture_output=True, check=False)
    assert done.returncode == 1
