"""An index beside what it is made with: building and syncing beside `gemb embed`; a cold search.

    python tests/bench/bench_index.py build TEXTS [rounds]
    python tests/bench/bench_index.py cold INDEX QUERY [rounds]
    python tests/bench/bench_index.py memory INDEX QUERY
    python tests/bench/bench_index.py warm INDEX QUERIES.npy [copies]

`build` embeds the lines of TEXTS with the default model three ways, in turns: to a file, into an
index that is built, into one that is synced from a single line to all of them. `cold` drops the
system's cache of files first (as root), and runs the whole process; without root it does not drop
them, and says so. `memory` prints what one search of the INDEX holds at most: its own, and pages of
files that are mapped. `warm` ranks each of the vectors in QUERIES.npy by itself, first without
faiss, then with it, beside its IndexBinaryFlat; with `copies` it only scans so many copies of the
INDEX's codes, each with other bits turned over: 10 make ten million of one million.

The bars: 95 % of the speed of `embed`; 0.8 s for a million rows; codes and 200 MB.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GEMB = (sys.executable, "-m", "gemb")
MEMORY = """
import sys
from pathlib import Path
from gemb.cli import gemb
try:
    gemb.main(sys.argv[1:], standalone_mode=False)
finally:
    status = Path("/proc/self/status").read_text()
    for name in ("VmHWM", "RssAnon", "RssFile"):
        print(name, status.split(name + ":")[1].split()[0], "kB", file=sys.stderr)
"""


def timed(*arguments: object) -> tuple[float, float]:
    """Return seconds of a run by the clock, and of all cores."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([*GEMB, *map(str, arguments)], capture_output=True, text=True)
    wall, after = time.perf_counter() - began, os.times()
    assert done.returncode in (0, 1), done.stderr
    return wall, sum(after[2:4]) - sum(before[2:4])


def say(name: str, times: list[tuple[float, float]]) -> None:
    wall, cpu = zip(*times, strict=True)
    print(
        f"{name:7} median {statistics.median(wall):.2f} s, least {min(wall):.2f} s; "
        f"of CPU median {statistics.median(cpu):.2f} s, least {min(cpu):.2f} s",
        flush=True,
    )


def build(texts: Path, rounds: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {"embed": [], "build": [], "sync": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "texts.txt"
        lines = texts.read_text().splitlines(keepends=True)
        for number in range(rounds):
            source.write_text("".join(lines))
            index = folder / f"{number}.gemb"
            times["embed"].append(timed("embed", "-q", source, "-o", folder / f"{number}.npy"))
            times["build"].append(timed("index", "build", "-q", index, source))
            source.write_text(lines[0])
            synced = folder / f"{number}s.gemb"
            timed("index", "build", "-q", synced, source)
            source.write_text("".join(lines))
            times["sync"].append(timed("index", "sync", "-q", synced))
    for name, own in times.items():
        say(name, own)


def drop_caches() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("the files stay in memory: only root can drop them", flush=True)


def cold(index: Path, query: str, rounds: int) -> None:
    def runs(before: Callable[[], object]) -> list[tuple[float, float]]:
        found = []
        for _ in range(rounds):
            before()
            found.append(timed("search", query, index, "--weak", "-k", 3))
        return found

    say("cold", runs(drop_caches))
    say("warm", runs(lambda: None))


def memory(index: Path, query: str) -> None:
    command = [sys.executable, "-c", MEMORY, "search", query, str(index), "--weak", "-k", "3"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stderr, end="")


def milliseconds(name: str, work: Callable[[int], object], queries: int) -> None:
    times = []
    for number in range(queries):
        began, cpu_began = time.perf_counter(), time.process_time()
        work(number)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        times.append((1000 * wall, 1000 * cpu))
    wall, cpu = zip(*times, strict=True)
    print(
        f"{name:24} median {statistics.median(wall):.1f} ms, least {min(wall):.1f} ms; "
        f"of CPU least {min(cpu):.1f} ms",
        flush=True,
    )


def warm(folder: Path, vectors: Path, copies: int) -> None:
    import numpy as np

    from gemb.index.codes import nearest_codes
    from gemb.index.ranking import plan, ranked
    from gemb.index.reader import Index

    with Index.open(folder) as index:
        assert index.coder, "an index with codes"
        queries = np.load(vectors)
        bits = index.coder.codes(queries)
        codes = np.asarray(index.codes)
        if copies > 1:
            random = np.random.default_rng(0)
            turned = np.packbits(random.random((copies, 8 * codes.shape[1])) < 0.05, axis=1)
            codes = np.concatenate([codes ^ one for one in turned])
        how = plan("balanced", len(codes), 10)
        candidates = how.candidates or 0

        def rank(number: int) -> object:
            if copies > 1:
                return nearest_codes(bits[number : number + 1], codes, count=candidates)
            return ranked(queries[number : number + 1], index.vectors, how, k=10)

        what = "scan of codes" if copies > 1 else "two_stage"
        milliseconds(f"{what}, no faiss", rank, len(queries))
        import faiss

        flat = faiss.IndexBinaryFlat(8 * codes.shape[1])
        flat.add(codes)
        milliseconds(f"{what}, faiss", rank, len(queries))
        milliseconds(
            "IndexBinaryFlat",
            lambda number: flat.search(bits[number : number + 1], 10),
            len(queries),
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build", texts, *more]:
            build(Path(texts), int(more[0]) if more else 5)
        case ["cold", index, query, *more]:
            cold(Path(index), query, int(more[0]) if more else 5)
        case ["memory", index, query]:
            memory(Path(index), query)
        case ["warm", index, vectors, *more]:
            warm(Path(index), Path(vectors), int(more[0]) if more else 1)
        case _:
            sys.exit(__doc__)
