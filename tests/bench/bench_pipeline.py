"""What `gemb embed` costs beside the encoder: 100,000 short lines through an instantaneous one.

    python tests/bench/bench_pipeline.py [ROWS]

For each format: CPU time a row of all threads, the encoder's taken off; and the peak memory of the
process. The targets: a tenth of what a real encoder takes (about 10 ms for a short line on two
cores), and 300 MB beside the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM = 768
TOKENS = 22
FORMATS = ("jsonl", "npy", "npz", "parquet", "csv", "base64")


class Instant:
    """An encoder whose own time is measured, so that it can be taken off."""

    def __init__(self) -> None:
        from gemb.models.profile import ModelProfile

        self.profile = ModelProfile(
            dim=DIM,
            matryoshka_dims=(DIM,),
            max_tokens=2048,
            closing_tokens=1,
            prompts={},
            dtype="fp32",
            fingerprint="0" * 16,
        )
        random = np.random.default_rng(0).standard_normal((1024, DIM)).astype(np.float32)
        self._table = random / np.linalg.norm(random, axis=1, keepdims=True)
        self._ids = np.arange(TOKENS, dtype=np.int32)
        self._count = 0
        self.seconds = 0.0

    def tokenize(self, texts: list[str]) -> list[np.ndarray]:
        began = time.thread_time()
        tokens = []
        for _ in texts:
            self._count += 1
            ids = self._ids.copy()
            ids[0] = self._count
            tokens.append(ids)
        self.seconds += time.thread_time() - began
        return tokens

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        began = time.thread_time()
        rows = self._table[np.array([ids[0] for ids in batch]) % 1024]
        self.seconds += time.thread_time() - began
        return rows


def measure(form: str, count: int, folder: Path) -> dict[str, float]:
    """Run one format in this process."""
    from gemb.embedding.formats.table import FORMATS
    from gemb.embedding.output import Target
    from gemb.embedding.pipeline import Embedder
    from gemb.embedding.run import EmbedJob, run
    from gemb.texts import inputs
    from gemb.texts.records import Fields

    source = folder / "lines.txt"
    if not source.exists():
        source.write_text(
            "".join(f"line {number} of a log that says what happened\n" for number in range(count))
        )
    encoder = Instant()
    reading = inputs.Reading()
    target = Target.of(str(folder / f"v.{form}"), FORMATS[form])
    job = EmbedJob(
        target=target,
        task="document",
        on_error="inline",
        fields=Fields(),
        text_ids=False,
        resume=False,
        backend="instant",
        total=None,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu_began = time.perf_counter(), time.process_time()
    run(job, inputs.read([str(source)], reading), Embedder.of(encoder, "document"))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_ms": (cpu - encoder.seconds) / count * 1000,
        "wall_ms": wall / count * 1000,
        "growth_mb": (peak - before) / 1024,
        "peak_mb": peak / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int, nargs="?", default=100_000, help="default: 100,000")
    parser.add_argument("--only", choices=FORMATS, help="print one format's figures as JSON")
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.only, options.rows, Path(folder))))
        return
    print(f"{options.rows} lines, {TOKENS} tokens each, {DIM} dims")
    for form in FORMATS:  # a process each: peak memory is of a process
        command = [sys.executable, __file__, str(options.rows), "--only", form]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        used = json.loads(answer)
        print(
            f"{form:8} {used['cpu_ms']:.3f} ms of CPU a row, {used['wall_ms']:.3f} ms in all; "
            f"peak {used['peak_mb']:.0f} MB, of which the run {used['growth_mb']:.0f} MB"
        )


if __name__ == "__main__":
    main()
