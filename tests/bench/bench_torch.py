"""Tokens a second of the torch backend and of sentence-transformers, in one run, by turns.

    python tests/bench/bench_torch.py MODEL [--texts FILE] [--precision bf16] [--rounds 5]

FILE holds one text a line (for JSONL, its `query` and `positive`); without it the texts of
tests/support/varied_texts.py are used. Lines of 12 to 36 tokens are the short texts (about 22),
those of 120 to 300 the long ones (about 200). Each contender first encodes a quarter of the texts,
then all of them in turn, `rounds` times; the medians are compared. Tokenizing counts on both
sides.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from gemb.backend import Runtime
from gemb.models.checkpoint import open_checkpoint
from gemb_torch.model.encode import open_encoder
from varied_texts import VARIED_TEXTS

BATCH_SIZES = (8, 16, 32, 64)
KINDS = {"short": (12, 36), "long": (120, 300)}
TOKENS = {"fp32": 3_000, "bf16": 20_000}  # of one turn
DEFAULT = "sentence-transformers, defaults"

Encode = Callable[[list[str]], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--precision", choices=TOKENS, action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    texts = read_texts(options.texts)
    for precision in options.precision or TOKENS:
        runtime = Runtime(device="cpu", threads=options.threads, precision=precision)
        ours = open_encoder(open_checkpoint(options.model), runtime)
        contenders = {"gemb": lambda some, ours=ours: ours.encode(ours.tokenize(some))}
        contenders |= sentence_transformers(options.model, precision)
        for kind in options.kind or KINDS:
            chosen, tokens = choose(ours, texts, KINDS[kind], TOKENS[precision])
            mean = tokens / len(chosen)
            print(f"\n{precision}, {kind}: {len(chosen)} texts, {mean:.0f} tokens each")
            report(race(contenders, chosen, options.rounds), tokens)


def read_texts(path: Path | None) -> list[str]:
    if path is None:
        return [line for text in VARIED_TEXTS for line in [text, *text.splitlines()]]
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    if ".jsonl" not in path.name:
        return lines
    return [json.loads(line)[key] for line in lines for key in ("query", "positive")]


def choose(
    encoder: open_encoder, texts: list[str], span: tuple[int, int], budget: int
) -> tuple[list[str], int]:
    """Return texts of so many tokens each, with about `budget` tokens, and their tokens."""
    chosen: list[str] = []
    total = 0
    for text, ids in zip(texts, encoder.tokenize(texts[:50_000]), strict=False):
        if span[0] <= len(ids) <= span[1] and total < budget:
            chosen.append(text)
            total += len(ids)
    while total < budget:  # few texts: again
        chosen, total = chosen * 2, total * 2
    return chosen, total


def sentence_transformers(model: Path, precision: str) -> dict[str, Encode]:
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": dtype})
    found: dict[str, Encode] = {
        f"sentence-transformers, batch {size}": lambda some, size=size: peer.encode(
            some, batch_size=size, show_progress_bar=False
        )
        for size in BATCH_SIZES
    }
    if precision == "fp32":
        found[DEFAULT] = lambda some: peer.encode(some, show_progress_bar=False)
    return found


def race(contenders: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender's turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for encode in contenders.values():
        encode(texts[: len(texts) // 4])
    for _ in range(rounds):
        for name, encode in contenders.items():
            start = time.perf_counter()
            encode(texts)
            times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], tokens: int) -> None:
    rates = {name: tokens / median(seconds) for name, seconds in times.items()}
    best = max((name for name in rates if name != "gemb"), key=rates.__getitem__)
    for name, rate in rates.items():
        ratio = f"gemb is {rates['gemb'] / rate:.2f} x" if name != "gemb" else ""
        mark = " (its best)" if name == best else ""
        spread = f"{tokens / max(times[name]):.0f}-{tokens / min(times[name]):.0f}"
        print(f"  {name + mark:42} {rate:7.0f} tokens/s  ({spread:>11})  {ratio}", flush=True)


if __name__ == "__main__":
    main()
