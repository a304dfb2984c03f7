"""Two-stage search of a million rows and of ten million: recall, time, memory.

    python tests/bench/bench_search.py make VECTORS FOLDER [rows] [dtype]
    python tests/bench/bench_search.py recall FOLDER [queries]
    python tests/bench/bench_search.py speed FOLDER
    python tests/bench/bench_search.py fresh FOLDER

VECTORS is an .npy file, or a vectors.f16 of 768 components, of real texts, unit rows, some 50,000.
`make` holds 500 of them back as queries, and enlarges the rest: each copy of all of them is turned
by a rotation of its own, so that within a copy the vectors lie as real ones do. `speed` prints
`ranked` beside faiss's IndexBinaryFlat alone, in turns; `fresh` what a process of its own takes
for one query, the files in memory and on the disk: for the ranking alone (once), and with the
bundled model, opened for it (whole).

The bars: at a million rows twice IndexBinaryFlat at recall@10 of 0.99, memory the codes and 200 MB;
at ten million 40 ms a query.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import gemb.models.references
from gemb.embedding.vectors import packed
from gemb.index.codes import Coder
from gemb.index.mapped import read_ahead
from gemb.index.ranking import Plan, StoredVectors, exact, plan, ranked

QUERIES = 500
TYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}
SPREAD = (0.1, 0.4)  # radians of each of three turns: cosines of 0.99 to 0.78 to the original


def read(path: Path) -> np.ndarray:
    """Return unit rows, each once, shuffled."""
    vectors = np.load(path) if path.suffix == ".npy" else np.fromfile(path, "<f2").reshape(-1, 768)
    vectors = np.unique(vectors.astype(np.float32), axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.random.default_rng(0).permutation(vectors)


def rotation(dim: int, random: np.random.Generator) -> np.ndarray:
    """Return [dim, dim]: three turns of components in pairs drawn by lot."""
    matrix = np.eye(dim, dtype=np.float32)
    for _ in range(3):
        order = random.permutation(dim)
        a, b = order[: dim // 2], order[dim // 2 : dim // 2 * 2]
        angle = random.uniform(*SPREAD)
        turn = np.eye(dim, dtype=np.float32)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = np.sin(angle), -np.sin(angle)
        matrix = matrix @ turn
    return matrix


def make(source: Path, folder: Path, count: int, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vectors = read(source)
    queries, real = vectors[:QUERIES], vectors[QUERIES:]
    np.save(folder / "queries.npy", queries)
    dim = real.shape[1]
    coder = Coder.fit(real[:20_000])
    random = np.random.default_rng(1)
    made = 0
    with (folder / "vectors").open("wb") as stored, (folder / "codes.bin").open("wb") as codes:
        while made < count:
            turn = rotation(dim, random) if made else np.eye(dim, dtype=np.float32)
            for first in range(0, min(len(real), count - made), 4096):
                some = real[first : min(first + 4096, count - made)] @ turn
                packed(some, dtype, dim).tofile(stored)
                coder.codes(some).tofile(codes)
            made += len(real)
    described = {"dtype": dtype, "dim": dim, "coder": coder.to_json(), "rows": count}
    (folder / "about.json").write_text(json.dumps(described))


class Corpus:
    """What `make` made, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.dtype, count = about["dtype"], about["rows"]
        self.coder = Coder.from_json(about["coder"])
        shape = count, about["dim"]
        self.stored = np.memmap(folder / "vectors", TYPES[self.dtype], "r", shape=shape)
        codes = folder / "codes.bin"
        self.codes = np.memmap(codes, np.uint8, "r", shape=(count, self.coder.bytes))
        self.queries = np.load(folder / "queries.npy")

    def search(self, queries: np.ndarray, candidates: int) -> np.ndarray:
        stored = StoredVectors(self.stored, self.dtype, self.codes, self.coder)
        return ranked(queries, stored, Plan(candidates), k=10).rows


def recall(corpus: Corpus, count: int) -> None:
    queries = corpus.queries[:count]
    whole = exact(queries, StoredVectors(corpus.stored, corpus.dtype), k=10).rows
    for candidates in (200, 400, 800, 1600, 3200, 6400):
        found = corpus.search(queries, candidates)
        shared = [len(np.intersect1d(a, b)) / 10 for a, b in zip(whole, found, strict=True)]
        print(f"{candidates:5} candidates: recall@10 {np.mean(shared):.4f}", flush=True)


def in_turns(*calls: object, rounds: int = 31) -> list[list[tuple[float, float]]]:
    """Return milliseconds of each call, by the clock and of all cores."""
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    for number in range(rounds):
        for call, own in zip(calls, times, strict=True):
            began, cpu_began = time.perf_counter(), time.process_time()
            call(number)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
            own.append((wall * 1000, cpu * 1000))
    return times


def speed(corpus: Corpus) -> None:
    import faiss

    index = faiss.IndexBinaryFlat(8 * corpus.coder.bytes)
    index.add(np.asarray(corpus.codes))
    queries, bits = corpus.queries, corpus.coder.codes(corpus.queries)
    sizes = (400, 1600, 3200)
    calls = [lambda n: index.search(bits[n : n + 1], 10)]
    calls += [lambda n, c=c: corpus.search(queries[n : n + 1], c) for c in sizes]
    for name, own in zip(
        ["IndexBinaryFlat", *(f"two_stage {size}" for size in sizes)], in_turns(*calls), strict=True
    ):
        wall, cpu = zip(*own, strict=True)
        print(
            f"{name:16} median {statistics.median(wall):6.1f} ms, least {min(wall):6.1f} ms; "
            f"of CPU median {statistics.median(cpu):6.1f} ms"
        )


def fresh(folder: Path) -> None:
    """Print what one query takes in a process of its own, the files in memory and not."""
    script = Path(__file__).resolve()
    mapped = [folder / "vectors", folder / "codes.bin", gemb.models.references.resolve("mini")]
    for what in ("once", "whole"):
        for where in ("in memory", "on the disk"):
            times = []
            for _ in range(5):
                if where == "on the disk":
                    for path in mapped:
                        with path.open("rb") as file:
                            os.fsync(file.fileno())
                            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                before, began = os.times(), time.perf_counter()
                command = [sys.executable, script, what, folder]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                after = os.times()
                cpu = sum(after[2:4]) - sum(before[2:4])
                times.append((time.perf_counter() - began, cpu, said.strip()))
            wall, cpu, said = min(times)
            print(f"{what}, files {where}: {wall:.2f} s, of CPU {cpu:.2f} s; {said}", flush=True)


def once(folder: Path, queries: np.ndarray | None = None) -> None:
    """Print what one query takes here, and the most memory that this process held."""
    corpus = Corpus(folder)
    began = time.perf_counter()
    corpus.search(
        corpus.queries[:1] if queries is None else queries,
        plan("auto", len(corpus.codes), 10).candidates or 1600,
    )
    took = (time.perf_counter() - began) * 1000
    # Not ru_maxrss, in which a child begins with its parent's.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    codes = corpus.codes.nbytes / 2**20
    print(f"ranking {took:.0f} ms, peak memory {peak:.0f} MB, of which codes {codes:.0f} MB")


def whole(folder: Path) -> None:
    """As `gemb search`: open the rows, then the model, embed a query, rank."""
    from gemb.backend import Runtime
    from gemb.models.prompts import for_task
    from gemb.plugins import for_model

    corpus = Corpus(folder)
    read_ahead(corpus.codes)
    path = gemb.models.references.resolve("mini")
    runtime = Runtime(device="auto", threads=0, precision="auto", verbose=False)
    encoder = for_model(path, "auto").open(path, runtime)
    prompt = for_task("query", encoder.profile.prompts)
    text = prompt.render("how do I cancel an order", None)
    once(folder, np.asarray(encoder.encode(encoder.tokenize([text]))))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", source, folder, *more]:
            make(
                Path(source),
                Path(folder),
                int(more[0]) if more else 1_000_000,
                more[1] if len(more) > 1 else "f16",
            )
        case ["recall", folder, *more]:
            recall(Corpus(Path(folder)), int(more[0]) if more else QUERIES)
        case ["speed", folder]:
            speed(Corpus(Path(folder)))
        case ["fresh", folder]:
            fresh(Path(folder))
        case ["once", folder]:
            once(Path(folder))
        case ["whole", folder]:
            whole(Path(folder))
        case _:
            sys.exit(__doc__)
