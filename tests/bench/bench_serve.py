"""What `gemb serve` costs beside its encoder, on loopback, in bounded measurements.

    python tests/bench/bench_serve.py [start one load over mixed rival] [-m MODEL] [-j N]
                                      [--seconds S]

start   from the command to its line that it serves, when all routes answer; and `import gemb`
one     a short text at a time: latency over the encoder's own time, median and p99, by turns
load    64 clients at once: tokens a second beside `Model.encode` of the same texts, by turns
over    four times as many requests as it can answer: times of refusals and of answers
mixed   good, bad, slow and vanishing clients for --seconds: memory, and each answer compared
rival   64 clients: tokens a second beside llama_cpp.server on the same GGUF file (needs its extra)
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gemb import Model
from gemb.models.references import resolve

CLIENTS = 64
TEXT = (
    "the order was sent on monday and has not come yet please tell me how i can cancel it or get "
    "my money back when a parcel is late the invoice shows another address than the one that we "
    "gave for our new office in the old harbour where ferries leave at dawn"
)


def texts(count: int, words: int, seed: int) -> list[str]:
    """Return texts of about so many words, none twice."""
    dice = random.Random(seed)
    return [
        f"{seed} {number} "
        + " ".join(dice.choices(TEXT.split(), k=dice.randint(words // 2, 3 * words // 2)))
        for number in range(count)
    ]


def processor_seconds(process: int) -> float:
    """Return the processor time of a process, of all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """A server on a free port of this machine."""

    def __init__(self, command: Sequence[str], port: int, path: str, model: str) -> None:
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.port, self.path, self.model = port, path, model
        self.ready_at = self.processor_s = 0.0  # where it says so itself
        if not port:
            for line in self.process.stderr:
                if match := re.search(r"http://127.0.0.1:(\d+)", line):
                    self.port = int(match[1])
                    self.ready_at = time.monotonic()
                    self.processor_s = processor_seconds(self.process.pid)
                    break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                self.ask(self.connection(), ["warm"])
                return
            except (OSError, http.client.HTTPException, AssertionError):
                time.sleep(0.2)
        raise SystemExit("the server does not answer")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, connection: http.client.HTTPConnection, batch: Sequence[str]) -> list[np.ndarray]:
        status, body = self.post(connection, {"model": self.model, "input": list(batch)})
        assert status == 200, body[:200]
        return [np.array(row["embedding"], np.float32) for row in json.loads(body)["data"]]

    def post(self, connection: http.client.HTTPConnection, value: object) -> tuple[int, bytes]:
        body = json.dumps(value).encode()
        connection.request("POST", self.path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def metric(self, name: str) -> float:
        connection = self.connection()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def gemb_server(model: str, threads: int, *options: str) -> Iterator[Server]:
    command = [
        sys.executable,
        "-m",
        "gemb",
        "serve",
        "-m",
        model,
        "-j",
        str(threads),
        "--port",
        "0",
    ]
    server = Server([*command, "--name", "m", *options], 0, "/v1/embeddings", "m")
    try:
        yield server
    finally:
        server.end()


def start(model: str, threads: int, rounds: int = 5) -> None:
    """Time a start, whole, and the import of the package."""
    took, busy, imports = [], [], []
    for _ in range(rounds):
        began = time.monotonic()
        with gemb_server(model, threads) as server:
            took.append(server.ready_at - began)
            busy.append(server.processor_s)
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare = time.monotonic() - began
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import gemb"], check=True)
        imports.append(time.monotonic() - began - bare)
    shown = ", ".join(f"{seconds:.2f}" for seconds in took)
    print(
        f"start: ready after {shown} s, of which {statistics.median(busy):.2f} s of processor time "
        f"at the median; import gemb {1000 * statistics.median(imports):.0f} ms "
        "over python alone, at the median"
    )


def at_once(server: Server, batches: Sequence[Sequence[str]], clients: int) -> float:
    """Return the seconds in which clients have asked for all batches."""
    waiting = iter(batches)
    lock = threading.Lock()

    def client() -> None:
        connection = server.connection()
        while True:
            with lock:
                batch = next(waiting, None)
            if batch is None:
                return
            value = {"model": server.model, "input": list(batch), "encoding_format": "base64"}
            status, body = server.post(connection, value)
            assert status == 200, body[:200]

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def one(server: Server, model: Model, count: int = 150) -> None:
    served, own = [], []
    connection = server.connection()
    for text in texts(count, 8, seed=int(time.time())):
        began = time.perf_counter()
        server.ask(connection, [text])
        served.append(time.perf_counter() - began)
        began = time.perf_counter()
        model.encode_document([text + " again"])
        own.append(time.perf_counter() - began)
    middle, late = (
        1000 * (np.quantile(served, share) - np.quantile(own, share)) for share in (0.5, 0.99)
    )
    print(
        f"one: {1000 * statistics.median(served):.1f} ms, Model.encode "
        f"{1000 * statistics.median(own):.1f} ms; over it {middle:+.1f} ms at the median, "
        f"{late:+.1f} ms at p99"
    )


def load(server: Server, model: Model, rounds: int = 3, count: int = 320) -> None:
    ratios, busy = [], []
    for turn in range(rounds):
        batch = texts(count, 24, seed=turn + int(time.time()))
        before = server.metric("gemb_batch_seconds_sum")
        seconds = at_once(server, [[text] for text in batch], CLIENTS)
        busy.append((server.metric("gemb_batch_seconds_sum") - before) / seconds)
        began = time.monotonic()
        model.encode_document([f"{text} ." for text in batch])
        ratios.append((time.monotonic() - began) / seconds)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    shares = ", ".join(f"{share:.0%}" for share in busy)
    print(
        f"load: {CLIENTS} clients, tokens/s over Model.encode's: {shown}; the encoder is at work "
        f"{shares} of the time"
    )


def over(model: str, threads: int, seconds: float = 10) -> None:
    """Ask four times as much as can be answered."""
    with gemb_server(model, threads, "--queue-tokens", "4096") as server:
        at_once(server, [[text] for text in texts(64, 24, 0)], 16)  # warm
        capacity = 256 / at_once(server, [[text] for text in texts(256, 24, 1)], 16)
        took = asyncio.run(overloaded(server, 4 * capacity, seconds))
    refused, answered = (1000 * np.array(took[status] or [0]) for status in (429, 200))
    print(
        f"over: {len(answered)} answered, p99 {np.quantile(answered, 0.99):.0f} ms; "
        f"{len(refused)} refused, median {np.median(refused):.1f} ms, "
        f"p99 {np.quantile(refused, 0.99):.1f} ms; capacity {capacity:.0f} requests/s"
    )


async def overloaded(server: Server, rate: float, seconds: float) -> dict[int, list[float]]:
    """Send so many requests a second on 128 connections; return the seconds by status.

    One loop and no threads: on two cores 128 threads of a client would measure one another.
    """
    took: dict[int, list[float]] = {200: [], 429: []}
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    asking: set[asyncio.Task[None]] = set()
    bodies = [
        json.dumps({"model": "m", "input": text, "encoding_format": "base64"}).encode()
        for text in texts(int(rate * seconds), 24, 2)
    ]

    async def ask(body: bytes) -> None:
        reader, writer = (
            idle.pop() if idle else await asyncio.open_connection("127.0.0.1", server.port)
        )
        head = f"POST {server.path} HTTP/1.1\r\nhost: localhost\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        start = time.perf_counter()
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        await reader.readexactly(int(re.search(r"content-length: (\d+)", answer)[1]))
        took[int(answer.split()[1])].append(time.perf_counter() - start)
        idle.append((reader, writer))

    began = time.monotonic()
    for number, body in enumerate(bodies):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        if idle or len(asking) < 128:  # else all of them wait for an answer
            task = asyncio.create_task(ask(body))
            asking.add(task)
            task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    for _, writer in idle:
        writer.close()
    return took


class Mixed:
    """Good, bad, slow and vanishing clients that ask at once; answers are compared."""

    def __init__(self, server: Server, model: Model, seconds: float) -> None:
        self.server, self.model = server, model
        self.until = time.monotonic() + seconds
        self.counts = dict.fromkeys(("right", "wrong", "refused", "lost", "slow"), 0)
        self.farthest = 0.0  # 1 - cosine of an answer and what Model.encode says
        self._lock = threading.Lock()

    def good(self, seed: int) -> None:
        connection, dice = self.server.connection(), random.Random(seed)
        for turn in itertools.count():
            if time.monotonic() > self.until:
                return
            batch = texts(dice.randint(1, 12), dice.choice((4, 24, 80)), seed * 100_000 + turn)
            try:
                rows = self.server.ask(connection, batch)
            except (OSError, http.client.HTTPException):
                self.counts["lost"] += 1
                connection = self.server.connection()
                continue
            if turn % 4 == 0:  # not all, so that the others have processors, too
                self._compare(batch, np.stack(rows))

    def _compare(self, batch: Sequence[str], rows: np.ndarray) -> None:
        far = 1 - float((rows * self.model.encode_document(batch)).sum(axis=1).min())
        with self._lock:
            self.farthest = max(self.farthest, far)
            self.counts["right" if far < 1e-3 else "wrong"] += 1

    def bad(self, seed: int) -> None:
        dice = random.Random(seed)
        bodies = (b"{", b"[]", b'{"model":"m","input":[]}', b'{"model":"x","input":"a"}', b"\xff")
        while time.monotonic() < self.until:
            connection = self.server.connection()
            headers = {"content-type": "application/json"}
            connection.request("POST", self.server.path, dice.choice(bodies), headers)
            assert 400 <= connection.getresponse().status < 500
            connection.close()
            self.counts["refused"] += 1
            time.sleep(0.05)

    def vanishing(self, seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < self.until:
            body = json.dumps({"model": "m", "input": texts(50, 40, dice.randint(0, 1 << 30))})
            head = f"POST {self.server.path} HTTP/1.1\r\nhost: localhost\r\n"
            head += f"content-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
            data = (head + body).encode()
            with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
                connection.sendall(data[: dice.randint(1, len(data))])
                time.sleep(dice.random() / 5)

    def slow(self, seed: int) -> None:
        """Read a large answer in small pieces, with a small buffer, for seconds."""
        for turn in itertools.count():
            if time.monotonic() > self.until:
                return
            batch = texts(100, 4, 90_000_000 + seed * 100_000 + turn)
            body = json.dumps({"model": "m", "input": batch}).encode()
            head = f"POST {self.server.path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            head += f"content-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
            answer = b""
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", self.server.port))
                connection.sendall(head.encode() + body)
                while part := connection.recv(4096):
                    answer += part
                    time.sleep(0.02)
            try:
                data = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
            except ValueError:  # it was cut off
                self.counts["lost"] += 1
                continue
            self.counts["slow"] += 1
            self._compare(batch, np.array([row["embedding"] for row in data], np.float32))


def mixed(server: Server, model: Model, seconds: float) -> None:
    load = Mixed(server, model, seconds)
    memory = [server.memory_mb()]
    jobs: list[tuple[Callable[[int], None], int]] = [
        (load.good, 6),
        (load.bad, 2),
        (load.vanishing, 2),
        (load.slow, 2),
    ]
    threads = [
        threading.Thread(target=job, args=(seed,)) for job, count in jobs for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(10, max(1, seconds / 10)))
        memory.append(server.memory_mb())
    half = memory[len(memory) // 2 :]
    print(
        f"mixed: {seconds:.0f} s, {load.counts}, farthest answer 1 - {load.farthest:.1e}; memory "
        f"{memory[0]:.0f} MB at the start, {half[0]:.0f} half-way, {half[-1]:.0f} at the end"
    )


def rival(server: Server, file: Path, threads: int, rounds: int = 3, count: int = 320) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(file),
        "--embedding",
        "true",
    ]
    words = ["--port", str(port), "--n_ctx", "2048", "--n_gpu_layers", "0", "--verbose", "false"]
    count_of = str(threads or os.cpu_count())
    words += ["--n_threads", count_of, "--n_threads_batch", count_of]
    other = Server([*command, *words], port, "/v1/embeddings", "m")
    ratios = []
    try:
        for turn in range(rounds):
            batch = [[text] for text in texts(count, 24, 77 + turn)]
            mine, theirs = at_once(server, batch, CLIENTS), at_once(other, batch, CLIENTS)
            ratios.append(theirs / mine)
    finally:
        other.end()
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"rival: {CLIENTS} clients, tokens/s over llama_cpp.server's: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = ("start", "one", "load", "over", "mixed", "rival")
    parser.add_argument("what", nargs="*", default=["one", "load", "over"])
    parser.add_argument("-m", "--model", default="mini")
    parser.add_argument("-j", "--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    assert set(options.what) <= set(names), f"choose of {names}"
    if "start" in options.what:
        start(options.model, options.threads)
    model = Model(options.model, threads=options.threads)
    with gemb_server(options.model, options.threads) as server:
        if "one" in options.what:
            one(server, model)
        if "load" in options.what:
            load(server, model)
        if "mixed" in options.what:
            mixed(server, model, options.seconds)
        if "rival" in options.what:
            rival(server, resolve(options.model), options.threads)
    if "over" in options.what:
        over(options.model, options.threads)


if __name__ == "__main__":
    main()
