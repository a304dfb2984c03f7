"""Write a small random static encoder with the tokenizer of the tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from gemb.models.static import NewLayer, write_static

WIDTH, HIDDEN, DIM = 24, 40, 32
TEACHER = "0123456789abcdef"


def random_head(seed: int = 0) -> list[NewLayer]:
    """Return a layer with ReLU and one without."""
    dice = np.random.default_rng(seed)
    sizes = ((WIDTH, HIDDEN, "ReLU"), (HIDDEN, DIM, "Identity"))
    return [
        NewLayer(
            weight=dice.standard_normal((size_out, size_in)).astype(np.float32),
            bias=dice.standard_normal(size_out).astype(np.float32),
            activation=activation,
        )
        for size_in, size_out, activation in sizes
    ]


def write_tiny_static(folder: Path, tokenizer: Path, tokens: int, seed: int = 0) -> Path:
    """Write the folder and return it; `tokens` is how many the tokenizer has."""
    folder.mkdir()
    table = np.random.default_rng(seed).standard_normal((tokens, WIDTH)).astype(np.float32)
    widths, teachers = (DIM, DIM // 2), (TEACHER,)
    write_static(folder, table, random_head(seed), matryoshka_dims=widths, draft_of=teachers)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder
