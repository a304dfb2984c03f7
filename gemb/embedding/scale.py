"""How long it takes to embed many passages, and what their vectors weigh: `gemb help scale`.

Speeds are measured (tests/bench/README.md), but for that of a GPU, which is its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gemb.embedding.vectors import NUMBERS, stored_width

TOKENS = 200  # of a passage, its prompt counted
COUNTS = {"100 M": 10**8, "1 B": 10**9, "10 B": 10**10}
# Of EmbeddingGemma-300M, two for each weight outside of the table of tokens, and attention over 200
# tokens: 24 layers of 4.22 million weights, and 4 x 200 x 768 in each.
OPERATIONS_A_TOKEN = 2 * 24 * 4.22e6 + 24 * 4 * 200 * 768
INDEX_ROWS_S = 10**7 / 343  # that `gemb index build` takes in: ten million vectors of 768 in 343 s
SCAN_ROWS_S = 10**7 / 0.036  # of sign codes that a query looks through, on two cores


@dataclass(frozen=True)
class Speed:
    """What runs a model, and how fast."""

    name: str
    unit: str  # what is counted: core, GPU
    tokens_s: float  # a second, on one unit

    def hours(self, passages: float, tokens: float = TOKENS) -> float:
        """Return how many hours of one unit so many passages take."""
        return passages * tokens / self.tokens_s / 3600


SPEEDS = (
    Speed("`draft`", "core", 870_000),
    Speed("`mini`, int8, ONNX Runtime", "core", 2_396),
    Speed("the 300M, int8, ONNX Runtime", "core", 2_362),
    Speed("the 300M, bf16, PyTorch", "core", 1_372),
    Speed("`mini`, Q4_0, llama.cpp", "core", 916),
    Speed("the 300M, bf16, at 300 TFLOP/s of a GPU", "GPU", 300e12 / OPERATIONS_A_TOKEN),
)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Workers that take part after part, and what goes wrong with them."""

    workers: int
    part_hours: float  # that a usual worker takes for a part
    lost_an_hour: float = 0.0  # how often a worker dies
    restart_hours: float = 0.0  # until another one is at work in its place
    slow: float = 0.0  # share of the workers that are slow
    slowness: float = 1.0  # times as long as a usual one's a slow worker's part takes

    def hours(self, work: float) -> float:
        """Return how long the pool takes for so many hours of work of one usual worker.

        At the end the others wait for the last part, which a slow worker may have.
        """
        usual, slow = self._cycle(self.part_hours), self._cycle(self.part_hours * self.slowness)
        parts_an_hour = self.workers * ((1 - self.slow) / usual + self.slow / slow)
        tail = (slow if self.slow else usual) / 2
        return work / self.part_hours / parts_an_hour + tail

    def _cycle(self, part_hours: float) -> float:
        """Return the hours of a worker that a part costs as a mean, deaths and restarts counted."""
        if not self.lost_an_hour:
            return part_hours
        deaths = math.expm1(self.lost_an_hour * part_hours)  # for a part that is done
        return deaths * (1 / self.lost_an_hour + self.restart_hours)


def stored_bytes(passages: float, dim: int, dtype: str) -> float:
    """Return what so many vectors weigh."""
    return passages * stored_width(dtype, dim) * np.dtype(NUMBERS[dtype]).itemsize


def tables() -> list[str]:
    """Return the lines of the tables of `gemb help scale`, in Markdown."""
    head = " | ".join(COUNTS)
    lines = [f"| hours of a core or GPU | tokens a second | {head} |", "|---|---|---|---|---|"]
    for speed in SPEEDS:
        hours = " | ".join(f"{_round(speed.hours(count)):,}" for count in COUNTS.values())
        lines.append(f"| {speed.name} | {_round(speed.tokens_s):,} | {hours} |")
    lines += ["", f"| bytes | {head} |", "|---|---|---|---|"]
    for dtype in ("f32", "f16", "int8", "ubinary"):
        for dim in (768, 256, 128):
            sizes = (_size(stored_bytes(count, dim, dtype)) for count in COUNTS.values())
            lines.append(f"| `--dtype {dtype} --dim {dim}` | {' | '.join(sizes)} |")
    lines += ["", f"| one index of gemb | {head} |", "|---|---|---|---|"]
    builds = [f"{_round(count / INDEX_ROWS_S / 3600)}" for count in COUNTS.values()]
    seconds = [f"{_round(count / SCAN_ROWS_S)}" for count in COUNTS.values()]
    codes = [_size(stored_bytes(count, 768, "ubinary")) for count in COUNTS.values()]
    lines.append(f"| hours to build | {' | '.join(builds)} |")
    lines.append(f"| seconds for a query | {' | '.join(seconds)} |")
    lines.append(f"| memory for sign codes | {' | '.join(codes)} |")
    return lines


def _round(value: float) -> float | int:
    """Return two digits, or the whole number where it has more."""
    digits = float(f"{value:.2g}")
    return digits if digits < 10 else int(f"{float(f'{value:.3g}'):.0f}")


def _size(count: float) -> str:
    for unit in ("GB", "TB"):
        count /= 1e9 if unit == "GB" else 1e3
        if count < 1000:
            break
    return f"{_round(count):g} {unit}"
