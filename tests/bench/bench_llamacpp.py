"""Tokens a second of the llama.cpp backend beside what one would otherwise run.

    python tests/bench/bench_llamacpp.py --texts FILE|FOLDER [--model FOLDER] MODEL.gguf...

`gemb`: the backend as `gemb embed` uses it. `one context`: stock llama.cpp as `llama-embedding`
drives it: one context, all threads, n_batch = n_ubatch = 2048, texts packed in the order of the
input. `sentence-transformers`: fp32 at its defaults, with --model. All get the same texts, about 22
and about 200 tokens long, and the ids are made beforehand (sentence-transformers makes its own).

Each engine is a process of its own; they take turns (A B C A B C ...), and the ratio is of the
medians. Where the library's AMX is miscompiled the stock engine would end in a segmentation fault,
so AMX is left out for it, too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = {"short": (12, 32), "long": (150, 250)}  # tokens
N_BATCH = 2048
PROMPT = "title: none | text: "


def lines(path: Path) -> Iterator[str]:
    """Yield texts: lines of a text file, string values of JSON lines, of all files of a folder."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.name.endswith((".txt", ".jsonl", ".jsonl.gz")):
                yield from lines(file)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            if ".jsonl" not in path.name:
                yield line.strip()
                continue
            values = json.loads(line).values()
            yield from (value for value in values if isinstance(value, str))


def choose(path: Path, gguf: Path, count: dict[str, int]) -> dict[str, list[str]]:
    """Return texts of each kind, drawn evenly from all that fit."""
    from gemb.backend import Runtime
    from gemb.plugins import named

    encoder = named("llamacpp").open(gguf, Runtime(threads=1))
    generator = np.random.default_rng(0)
    pool = [text for text in lines(path) if 20 < len(text) < 2000]
    chosen: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for place in generator.permutation(len(pool)):
        text = PROMPT + pool[place]
        length = len(encoder.tokenize([text])[0])
        for kind, (least, most) in KINDS.items():
            if least <= length <= most and len(chosen[kind]) < count[kind]:
                chosen[kind].append(text)
        if all(len(chosen[kind]) == count[kind] for kind in KINDS):
            break
    return chosen


# The engines: each takes texts once, then computes them as often as it is asked.


def gemb_engine(gguf: str, texts: dict[str, list[str]]) -> dict[str, object]:
    from gemb.backend import Runtime
    from gemb.plugins import named

    encoder = named("llamacpp").open(Path(gguf), Runtime())
    ids = {kind: encoder.tokenize(some) for kind, some in texts.items()}
    return {kind: (lambda some=some: encoder.encode(some)) for kind, some in ids.items()}


def stock_engine(gguf: str, texts: dict[str, list[str]]) -> dict[str, object]:
    os.environ.setdefault("GOMP_SPINCOUNT", "300000")  # OpenMP's own default: gemb sets another
    from gemb.backend import Runtime
    from gemb.plugins import named
    from gemb_llamacpp import native

    tokenizer = named("llamacpp").open(Path(gguf), Runtime(threads=1))
    ids = {kind: tokenizer.tokenize(some) for kind, some in texts.items()}
    library = native.llama()
    model = library.llama_model_load_from_file(gguf.encode(), library.llama_model_default_params())
    parameters = library.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = N_BATCH
    parameters.n_seq_max = 256
    parameters.kv_unified = True
    parameters.embeddings = True
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count()
    context = library.llama_init_from_model(model, parameters)
    dim = library.llama_model_n_embd(model)
    batch = library.llama_batch_init(N_BATCH, 0, 1)

    def flush(sequences: list[np.ndarray], out: list[np.ndarray]) -> None:
        place = 0
        for number, sequence in enumerate(sequences):
            size = len(sequence)
            for at in range(size):
                batch.n_seq_id[place + at] = 1
                batch.seq_id[place + at][0] = number
            np.ctypeslib.as_array(batch.token, (N_BATCH,))[place : place + size] = sequence
            np.ctypeslib.as_array(batch.pos, (N_BATCH,))[place : place + size] = np.arange(size)
            np.ctypeslib.as_array(batch.logits, (N_BATCH,))[place : place + size] = 1
            place += size
        batch.n_tokens = place
        assert library.llama_encode(context, batch) == 0
        for number in range(len(sequences)):
            address = library.llama_get_embeddings_seq(context, number)
            vector = np.ctypeslib.as_array(address, (dim,)).copy()
            out.append(vector / np.linalg.norm(vector))

    def run(some: list[np.ndarray]) -> np.ndarray:
        out: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for sequence in some:
            if sum(map(len, waiting)) + len(sequence) > N_BATCH or len(waiting) == 256:
                flush(waiting, out)
                waiting = []
            waiting.append(sequence)
        flush(waiting, out)
        return np.stack(out)

    return {kind: (lambda some=some: run(some)) for kind, some in ids.items()}


def torch_engine(folder: str, texts: dict[str, list[str]]) -> dict[str, object]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return {kind: (lambda some=some: model.encode(some)) for kind, some in texts.items()}


ENGINES = {"gemb": gemb_engine, "one context": stock_engine, "sentence-transformers": torch_engine}


def worker(engine: str, model: str) -> None:
    """Read texts, then kinds, from stdin; answer each kind with its seconds."""
    texts = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = ENGINES[engine](model, texts)
    rows = {kind: run() for kind, run in work.items()}  # the first run is not timed
    print(json.dumps({kind: np.asarray(v)[:, :8].tolist() for kind, v in rows.items()}), file=out)
    out.flush()
    for line in sys.stdin:
        started = time.perf_counter()
        work[line.strip()]()
        print(time.perf_counter() - started, file=out, flush=True)


class Worker:
    """One engine in a process of its own."""

    def __init__(self, engine: str, model: Path, texts: dict[str, list[str]]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", engine, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = json.loads(self.ask(json.dumps(texts)))

    def ask(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the engine ended"
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(models: list[tuple[str, Path]], texts: dict[str, list[str]], rounds: int) -> None:
    """Print one table: tokens a second of each engine, and gemb's ratio to it."""
    from gemb.backend import Runtime
    from gemb.plugins import named

    encoder = named("llamacpp").open(models[0][1], Runtime(threads=1))
    tokens = {kind: sum(map(len, encoder.tokenize(some))) for kind, some in texts.items()}
    del encoder
    workers = {engine: Worker(engine, model, texts) for engine, model in models}
    for kind in texts:
        reference = np.array(workers["gemb"].first[kind])
        for engine, other in workers.items():
            apart = float(np.abs(np.array(other.first[kind]) - reference).max())
            assert apart < 0.1, f"{engine} computes other vectors: {apart}"
        seconds: dict[str, list[float]] = {engine: [] for engine in workers}
        for _ in range(rounds):
            for engine, one in workers.items():
                seconds[engine].append(float(one.ask(kind)))
        mine = statistics.median(seconds["gemb"])
        mean = tokens[kind] / len(texts[kind])
        print(f"{models[0][1].name}: {len(texts[kind])} texts of {mean:.0f} tokens")
        for engine, all_seconds in seconds.items():
            middle = statistics.median(all_seconds)
            spread = f"{tokens[kind] / max(all_seconds):.0f}-{tokens[kind] / min(all_seconds):.0f}"
            ratios = [b / a for a, b in zip(seconds["gemb"], all_seconds, strict=True)]
            print(
                f"  {engine:22} {tokens[kind] / middle:6.0f} tokens/s ({spread})"
                f"   gemb is {middle / mine:.2f} x (by turns {min(ratios):.2f}-{max(ratios):.2f})",
                flush=True,
            )
    for one in workers.values():
        one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", nargs="+", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="folder, for sentence-transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", type=int, default=200, help="how many short texts")
    parser.add_argument("--long", type=int, default=24, help="how many long texts")
    options = parser.parse_args()
    texts = choose(options.texts, options.gguf[0], {"short": options.short, "long": options.long})
    for gguf in options.gguf:
        models = [("gemb", gguf), ("one context", gguf)]
        if options.model:
            models.append(("sentence-transformers", options.model))
        compare(models, texts, options.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
