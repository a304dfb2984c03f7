"""Training triplets of words that the tiny tokenizer knows."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tiny_model import TEXT


def write_pairs(path: Path, rows: int = 300) -> Path:
    """Write triplets with 0 to 3 negatives, of the words that the tiny tokenizer knows."""
    choose = random.Random(0)
    words = TEXT.split()

    def text(longest: int) -> str:
        return " ".join(choose.choices(words, k=choose.randint(2, longest)))

    lines = [
        {
            "query": text(9),
            "positive": text(14),
            "negatives": [text(6) for _ in range(choose.randint(0, 3))],
        }
        for _ in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
