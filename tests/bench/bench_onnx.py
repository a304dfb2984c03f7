"""Tokens a second of the ONNX backend beside the other one that opens the model, and its vectors.

    python tests/bench/bench_onnx.py --texts FILE|FOLDER|--varied [MODEL]

The engines take turns (A B C A B C ...) on the same token ids, texts of about 22 and about 200
tokens: llama.cpp and ONNX Runtime on a GGUF file, PyTorch and ONNX Runtime on a model folder. Speed
is tokens a second of processor time, of all threads, which other work on the machine disturbs
least, and a second of the clock; a ratio is the median of those of each turn. Cosines are to the
vectors of the ONNX backend in fp32. `of the limit` is the share of the integer operations that
onnxruntime's own product of 512 x 768 by 768 x 1152 does in a second of processor time.

With --varied the cosines alone are printed, of the 200 texts of tests/support/varied_texts.py
(code, many scripts, single signs). With --passes the tokens of a pass vary instead, with --threads
1 and 2 their speeds by the clock can be compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from bench_llamacpp import KINDS, choose

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import gemb_onnx.encode
from gemb.backend import Encoder, Runtime
from gemb.models.references import bundled
from gemb.plugins import named
from gemb_onnx.protobuf import Graph
from gemb_onnx.runtime import session
from varied_texts import VARIED_TEXTS

FILE_ENGINES = (("llamacpp", "auto"), ("onnx", "fp32"), ("onnx", "int8"))
FOLDER_ENGINES = (("torch", "bf16"), ("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))
PASSES = (128, 256, 512, 1024, 2048)  # tokens


def processor() -> str:
    """Return the processor's name, and which integer instructions it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    entries = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    flags = set(entries["flags"].split())
    known = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2") if flag in flags]
    return f"{entries['model name']}: {' '.join(known)}"


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of processor time and of the clock that a call takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - clock


def limit(rows: int = 512, width: int = 768, columns: int = 1152) -> float:
    """Return the integer operations a second of one thread, in products alone."""
    chance = np.random.default_rng(0)
    weights = chance.integers(-127, 128, (width, columns), np.int8)
    graph = Graph()
    states = graph.input("states", "uint8", ["N", width])
    zero = graph.constant(np.asarray(np.uint8(128)))
    product = graph.add("MatMulInteger", states, graph.constant(weights), zero)[0]
    graph.output(product, "int32", ["N", columns])
    opened = session(graph.file())
    feed = {"states": chance.integers(0, 256, (rows, width), np.uint8)}
    seconds = [timed(lambda: opened.run(None, feed))[0] for _ in range(300)]
    return 2 * rows * width * columns / statistics.median(seconds)


def operations(encoder: Encoder) -> int:
    """Return the operations of a token's products in all layers, attention left out."""
    shape = encoder._numbers.shape  # type: ignore[attr-defined]
    heads = (shape.heads + 2 * shape.key_heads) * shape.head_dim
    attention = shape.hidden * (heads + shape.heads * shape.head_dim)
    return 2 * shape.layers * (attention + 3 * shape.hidden * shape.inner)


def compare(encoders: dict[str, Encoder], texts: dict[str, list[str]], turns: int) -> None:
    """Print the table of all engines."""
    products = limit()
    int8 = encoders["onnx int8"]
    print(f"limit: {products / 1e9:,.0f} billion operations a second and core")
    print(
        "| texts | engine | tokens a CPU-second | ratio | by the clock | mean cosine | least |",
        end="",
    )
    print(" of the limit |\n|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        batch = int8.tokenize(texts[kind])
        tokens = sum(map(len, batch))
        vectors = {engine: encoder.encode(batch) for engine, encoder in encoders.items()}
        seconds = defaultdict(list)
        for _ in range(turns):
            for engine, encoder in encoders.items():
                seconds[engine].append(timed(partial(encoder.encode, batch)))
        base = np.array(next(iter(seconds.values())))
        for engine, spent in seconds.items():
            speed = tokens / statistics.median(cpu for cpu, _ in spent)
            ratios = np.median(base / np.array(spent), axis=0)
            cosines = (vectors[engine] * vectors["onnx fp32"]).sum(1)
            share = f"{speed * operations(int8) / products:.0%}" if engine == "onnx int8" else ""
            print(
                f"| {kind} | {engine} | {speed:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
                f"| {cosines.mean():.4f} | {cosines.min():.4f} | {share} |"
            )


def agree(encoders: dict[str, Encoder]) -> None:
    """Print the cosines to fp32 of 200 varied texts."""
    vectors = {
        engine: encoder.encode(
            [ids[: encoder.profile.max_tokens] for ids in encoder.tokenize(VARIED_TEXTS)]
        )
        for engine, encoder in encoders.items()
    }
    print("| 200 varied texts | mean cosine | least |\n|---|---|---|")
    for engine, rows in vectors.items():
        cosines = (rows * vectors["onnx fp32"]).sum(1)
        print(f"| {engine} | {cosines.mean():.4f} | {cosines.min():.4f} |")


def vary_passes(encoder: Encoder, texts: dict[str, list[str]], turns: int) -> None:
    """Print the speed of int8 by how many tokens a pass has."""
    print("| texts | " + " | ".join(map(str, PASSES)) + " |\n|---|" + "---|" * len(PASSES))
    for kind in KINDS:
        batch = encoder.tokenize(texts[kind])
        seconds = defaultdict(list)
        for _ in range(turns):
            for tokens in PASSES:
                gemb_onnx.encode.TOKENS_A_PASS = tokens
                seconds[tokens].append(timed(partial(encoder.encode, batch))[0])
        speeds = (sum(map(len, batch)) / statistics.median(spent) for spent in seconds.values())
        print(f"| {kind} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="a file of texts, or a folder of such")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--passes", action="store_true")
    parser.add_argument("--varied", action="store_true")
    parser.add_argument("model", type=Path, nargs="?", default=bundled())
    options = parser.parse_args()
    if not options.varied and not options.texts:
        parser.error("--texts or --varied")
    print(processor())
    engines = FOLDER_ENGINES if options.model.is_dir() else FILE_ENGINES
    encoders = {
        f"{name} {precision}": named(name).open(
            options.model, Runtime(precision=precision, threads=options.threads)
        )
        for name, precision in engines
        if not options.passes or precision == "int8"
    }
    if options.varied:
        agree(encoders)
        return
    texts = choose(options.texts, bundled(), {"short": 200, "long": 30})
    if options.passes:
        vary_passes(encoders["onnx int8"], texts, options.turns)
    else:
        compare(encoders, texts, options.turns)


if __name__ == "__main__":
    main()
