"""Tokens a second of gemb's trainer and of sentence-transformers' gradient cache, in one run.

    python tests/bench/bench_training.py MODEL PAIRS [--precision bf16] [--pairs 32] [--rounds 5]
    python tests/bench/bench_training.py MODEL PAIRS --memory [--pairs 2048] [--max-tokens 32]

The same model, rows, batches, loss (in-batch negatives, temperature 0.05), AdamW, clipping and type
of products. The peer is CachedMultipleNegativesRankingLoss in a plain loop, which is what its
trainer runs, with micro-batches of 8, 16 and 32 texts: its best counts. Contenders take turns, a
step each, and the medians are compared; reading and tokenizing count on both sides, padding is no
token. `cpu` is seconds of all cores, which other work on the machine changes less.

`--memory` makes one step of gemb's alone, and tells the peak beyond weights, gradients and
optimizer state.

Exit code 1: a bar is missed. They are 1.5 times the peer's tokens a second; 5 % of a step for the
data, 10 % for all that is neither data nor passes through the model; 8 GiB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as gemb train does

import torch

from gemb.backend import Runtime, Training
from gemb.recipe.file import find, load
from gemb_torch.model.ranks import Ranks
from gemb_torch.train.batches import Prepared
from gemb_torch.train.gradients import TokenBatch
from gemb_torch.train.run import ContrastiveMetrics, TrainingRun
from gemb_torch.train.state import Progress

MICRO_BATCHES = (8, 16, 32)
RATIO, DATA_SHARE, REST_SHARE, GIB = 1.5, 0.05, 0.10, 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--precision", choices=("bf16", "fp32"), action="append")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=0)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, action="append", help="of the peer, texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        sys.exit(not memory(options, (options.precision or ["bf16"])[0]))
    met = [speed(options, precision) for precision in options.precision or ("bf16", "fp32")]
    sys.exit(not all(met))


@dataclass
class Turns:
    """What a contender took for each of its steps."""

    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, *, counts: bool) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        if counts:
            self.seconds.append(time.perf_counter() - wall)
            self.cpu.append(time.process_time() - cpu)


class Ours:
    """gemb's own steps, and how long each was in the model."""

    def __init__(self, run: TrainingRun) -> None:
        self.passes: list[float] = []
        self.peak = 0  # bytes, up to the end of the last passes
        self.metrics: list[ContrastiveMetrics] = []
        self.tokens: list[int] = []  # of each step
        self.progress = Progress(step=0, order=run.order().state())
        self.run = run
        self.batches = prepared(run)
        self.gradients = run.gradients
        run.gradients = self  # type: ignore[assignment]

    def add(self, batch: TokenBatch, *rows: Any) -> Any:
        started = time.perf_counter()
        computed = self.gradients.add(batch, *rows)
        self.passes.append(time.perf_counter() - started)
        self.peak = status("VmHWM")
        return computed

    def step(self) -> None:
        metrics, progress = self.run.step(self.progress, self.batches)
        self.metrics.append(metrics)
        self.tokens.append(progress.tokens - self.progress.tokens)
        self.progress = progress


def prepared(run: TrainingRun) -> Iterator[Prepared]:
    """Yield batches, each made when it is wanted: no thread may work in another's turn."""
    order = run.order()
    for batch in order:
        yield Prepared(run.maker.make(batch), order.state())


def speed(options: argparse.Namespace, precision: str) -> bool:
    pairs, max_tokens = options.pairs or 32, options.max_tokens or 256
    with tempfile.TemporaryDirectory() as run:
        training_run = open_ours(options, precision, pairs, max_tokens, Path(run))
        ours = Ours(training_run)
        turns = {"gemb": Turns(ours.step)}
        for size in options.micro_batch or MICRO_BATCHES:
            name = f"sentence-transformers, {size} texts"
            turns[name] = Turns(peer(training_run, options.model, precision, size, max_tokens))
        for turn in range(options.rounds + 1):
            for contender in turns.values():
                contender.take(counts=turn > 0)
        return report(precision, pairs, ours, turns)


def open_ours(
    options: argparse.Namespace, precision: str, pairs: int, max_tokens: int, run: Path
) -> TrainingRun:
    recipe = load(
        find("finetune"),
        [
            f"init.from={options.model.resolve()}",
            f"data.0.path={options.data.resolve()}",
            f"batch.pairs={pairs}",
            "batch.negatives=0",
            f"batch.max_tokens={max_tokens}",
            f"batch.micro_tokens={options.micro_tokens}",
            "loss.matryoshka=[768]",
            "loss.spread_out=null",
            "loss.contrastive.temperature=0.05",
            "loss.contrastive.mask_duplicates=false",
            "optimizer.decay=none",
            "optimizer.warmup_fraction=0",
            f"run.precision={precision}",
            "run.steps=1000",
        ],
    )
    runtime = Runtime(device="cpu", threads=options.threads)
    return TrainingRun(recipe, Training(run=run, runtime=runtime), Ranks())


def peer(
    training_run: TrainingRun, model: Path, precision: str, size: int, max_tokens: int
) -> Callable[[], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
    )

    student = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": torch.float32})
    student.train()
    student.max_seq_length = max_tokens
    loss = CachedMultipleNegativesRankingLoss(student, scale=20.0, mini_batch_size=size)
    recipe = training_run.recipe.optimizer
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    batches = rendered(training_run)

    def step() -> None:
        features = [student.preprocess(list(side)) for side in next(batches)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss(features, torch.empty(0)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def rendered(training_run: TrainingRun) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the same batches as text with prompts: queries and positives."""
    for batch in training_run.order():
        rows = training_run.sources[batch.source]
        query, positive = training_run.maker.prompts[batch.source]
        examples = [rows[int(row)] for row in batch.rows]
        yield (
            [query.render(*example.query) for example in examples],
            [positive.render(*example.positive) for example in examples],
        )


def report(precision: str, pairs: int, ours: Ours, turns: dict[str, Turns]) -> bool:
    tokens = ours.tokens[1:]
    rates = {
        name: median(n / s for n, s in zip(tokens, each.seconds, strict=True))
        for name, each in turns.items()
    }
    best = max((name for name in rates if name != "gemb"), key=rates.__getitem__)
    print(f"\n{precision}: {pairs} pairs and {median(tokens):.0f} tokens a step")
    for name, each in turns.items():
        ratio = "" if name == "gemb" else f"gemb is {rates['gemb'] / rates[name]:.2f} x"
        if ratio:
            work = [a / b for a, b in zip(each.cpu, turns["gemb"].cpu, strict=True)]
            ratio += f", by cpu {median(work):.2f} x" + (", its best" if name == best else "")
        cpu = median(each.cpu)
        print(f"  {name:34} {rates[name]:6.0f} tokens/s  cpu {cpu:6.1f} s  {ratio}", flush=True)
    metrics = ours.metrics[1:]
    data = median(each.data_s / each.step_s for each in metrics)
    rest = median(
        1 - (passes + each.data_s) / each.step_s
        for passes, each in zip(ours.passes[1:], metrics, strict=True)
    )
    print(f"  of a step: data {data:.1%}, neither data nor passes through the model {rest:.1%}")
    return rates["gemb"] / rates[best] >= RATIO and data <= DATA_SHARE and rest <= REST_SHARE


def memory(options: argparse.Namespace, precision: str) -> bool:
    pairs, max_tokens = options.pairs or 2048, options.max_tokens or 32
    with tempfile.TemporaryDirectory() as run:
        training_run = open_ours(options, precision, pairs, max_tokens, Path(run))
        before = status("VmRSS")
        ours = Ours(training_run)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        ours.step()
        peak, rows = status("VmHWM"), len(training_run.optimizer.row_ids)
        trained = sum(p.numel() for p in training_run.optimizer.parameters.values())
    gradients = 4 * (trained + rows * training_run.model.config.hidden_size)  # as each moment
    # In the passes of the first step the optimizer has no state yet.
    beyond = max(ours.peak - before - gradients, peak - before - 3 * gradients) / 2**30
    print(
        f"{precision}: {pairs} pairs, {ours.tokens[-1]} tokens, {options.micro_tokens} at a "
        f"time: peak {peak / 2**30:.1f} GiB, {beyond:.1f} GiB beyond weights, gradients and "
        f"optimizer state; {ours.metrics[-1].step_s:.0f} s a step, "
        f"{ours.metrics[-1].data_s / ours.metrics[-1].step_s:.1%} of it for the data"
    )
    return beyond <= GIB


def status(name: str) -> int:
    """Return a number of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    main()
