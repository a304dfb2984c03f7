"""Tokens a second of the ONNX backend beside llama.cpp on the same GGUF file, and its vectors.

    python tests/bench/bench_onnx.py --texts FILE|FOLDER [MODEL.gguf]

The engines take turns (A B C A B C ...) on the same token ids, texts of about 22 and about 200
tokens. Speed is tokens a second of processor time, of all threads, which other work on the machine
disturbs least, and a second of the clock; a ratio is the median of those of each turn. Cosines are
to the vectors of the ONNX backend in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from bench_llamacpp import KINDS, choose

from gemb.backend import Encoder, Runtime
from gemb.models.references import bundled
from gemb.plugins import named

ENGINES = (("llamacpp", "auto"), ("onnx", "fp32"), ("onnx", "int8"))


def processor() -> str:
    """Return the processor's name, and which integer instructions it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    entries = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    flags = set(entries["flags"].split())
    known = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2") if flag in flags]
    return f"{entries['model name']}: {' '.join(known)}"


def timed(encoder: Encoder, batch: list[np.ndarray]) -> tuple[float, float]:
    """Return the seconds of processor time and of the clock that a batch takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    encoder.encode(batch)
    return time.process_time() - cpu, time.perf_counter() - clock


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("model", type=Path, nargs="?", default=bundled())
    options = parser.parse_args()
    texts = choose(options.texts, options.model, {"short": 200, "long": 30})
    encoders = {
        f"{name} {precision}": named(name).open(
            options.model, Runtime(precision=precision, threads=options.threads)
        )
        for name, precision in ENGINES
    }
    print(processor())
    print("| texts | engine | tokens a CPU-second | ratio | by the clock | mean cosine | least |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        batch = encoders["onnx fp32"].tokenize(texts[kind])
        tokens = sum(map(len, batch))
        vectors = {engine: encoder.encode(batch) for engine, encoder in encoders.items()}
        seconds = defaultdict(list)
        for _ in range(options.turns):
            for engine, encoder in encoders.items():
                seconds[engine].append(timed(encoder, batch))
        base = np.array(seconds["llamacpp auto"])
        for engine, turns in seconds.items():
            speed = tokens / statistics.median(cpu for cpu, _ in turns)
            ratios = np.median(base / np.array(turns), axis=0)
            cosines = (vectors[engine] * vectors["onnx fp32"]).sum(1)
            print(
                f"| {kind} | {engine} | {speed:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
                f"| {cosines.mean():.4f} | {cosines.min():.4f} |"
            )


if __name__ == "__main__":
    main()
