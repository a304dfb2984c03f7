"""Seconds of a second search of a tree, and of its parts.

    python tests/bench/bench_tree.py FOLDER [--copies N] [--runs N]

The files of FOLDER are copied until there are so many (5,000 by default), and each passage gets a
random vector in a cache of its own: what a search finds does not change how long it takes. Then
`gemb search` is run as a process, and walk, look-up and scan once more in this one.

`cpu` is user and system time: on a machine with other work it is what says something.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gemb.backend import Runtime
from gemb.embedding.vectors import VectorSpec
from gemb.models.prompts import for_task
from gemb.models.references import resolve
from gemb.plugins import for_model
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Corpus, Sources, gather
from gemb.texts.walk import Skipped

QUERY = "how is the header of a file parsed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "tree", Path(name) / "cache"
        files = [path for path in sorted(options.folder.rglob("*")) if path.is_file()]
        for number, path in zip(range(options.copies), itertools.cycle(files), strict=False):
            target = root / str(number // 50) / f"{number}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        spec = fill(root, cache / "gemb" / "search")
        whole(root, cache, options.runs)
        parts(root, cache / "gemb" / "search", spec, options.runs)


def fill(root: Path, cache: Path) -> VectorSpec:
    """Give each passage a random vector."""
    path = resolve("mini")
    profile = for_model(path).open(path, Runtime()).profile
    prompt = for_task("document", profile.prompts).template
    spec = VectorSpec(
        model=profile.fingerprint,
        prompt=prompt,
        dim=profile.dim,
        dtype="f16",
        max_tokens=profile.max_tokens,
    )
    began = time.perf_counter()
    corpus = gathered(root, cache)
    took = time.perf_counter() - began
    size = sum(entry.size for entry in corpus.files)
    print(f"{len(corpus.files):,} files, {size / 1e6:.0f} MB, {len(corpus):,} passages")
    print(f"first walk and split: {took:.2f} s")
    keys = list(dict.fromkeys(corpus.keys))
    random = np.random.default_rng(0)
    for first in range(0, len(keys), 8192):
        some = keys[first : first + 8192]
        vectors = random.standard_normal((len(some), spec.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        VectorCache(cache, spec).add(some, vectors)
    return spec


def gathered(root: Path, cache: Path) -> Corpus:
    """Walk the tree, and split what is new."""
    return gather(Sources(paths=(str(root),)), PassageTable(cache, "auto"), Skipped())


def whole(root: Path, cache: Path, runs: int) -> None:
    """Time the whole process."""
    command = [sys.executable, "-m", "gemb", "search", "-q", "--weak", QUERY, str(root)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    rows = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows.append((time.perf_counter() - began, cpu))
    say("gemb search, whole process", rows)


def parts(root: Path, cache: Path, spec: VectorSpec, runs: int) -> None:
    """Time walk and look-up, and the scan."""
    query = np.full((1, spec.dim), spec.dim**-0.5, np.float32)
    walks, scans = [], []
    for _ in range(runs):
        times = [(time.perf_counter(), time.process_time())]
        corpus = gathered(root, cache)
        times.append((time.perf_counter(), time.process_time()))
        vectors = VectorCache(cache, spec)
        vectors.scores(vectors.find(corpus.keys), query)
        times.append((time.perf_counter(), time.process_time()))
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(times)]
        walks.append(steps[0])
        scans.append(steps[1])
    say("walk and look-up", walks)
    say("scan", scans)


def say(what: str, rows: list[tuple[float, float]]) -> None:
    wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{what}: {wall:.3f} s (best {min(row[0] for row in rows):.3f}), cpu {cpu:.3f} s")


if __name__ == "__main__":
    main()
