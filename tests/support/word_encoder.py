"""An encoder whose vectors are sums of random ones, one a word: shared words make texts near."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.vectors import VectorSpec
from gemb.models.profile import ModelProfile

WORDS = 4096


class WordEncoder:
    """Counts the texts that it was given; a text with the word `poison` makes it raise."""

    def __init__(self, dim: int = 64, sleep_s: float = 0.0) -> None:
        self.texts = 0
        self._sleep_s = sleep_s
        self._table = np.random.default_rng(0).standard_normal((WORDS, dim)).astype(np.float32)
        self._table[:3] = 0
        self.profile = ModelProfile(
            dim=dim,
            matryoshka_dims=(dim,),
            max_tokens=500,
            closing_tokens=1,
            prompts={},
            dtype="fp32",
            fingerprint="00000000deadbeef",
        )
        self.spec = VectorSpec(
            model=self.profile.fingerprint,
            prompt="title: {title} | text: {text}",
            dim=dim,
            dtype="f16",
            max_tokens=500,
        )

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [
            np.array([2, *map(_word_id, re.findall(r"\w+", text.lower())), 1], np.int32)
            for text in texts
        ]

    def encode(self, batch: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        self.texts += len(batch)
        time.sleep(self._sleep_s * len(batch))
        poison = _word_id("poison")
        if any(poison in ids for ids in batch):
            raise RuntimeError("poisoned")
        sums = np.array([self._table[ids].sum(axis=0) + 1e-3 for ids in batch])
        vectors: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    def queries(self, *texts: str) -> NDArray[np.float32]:
        """Return the vectors of texts without a prompt, [n, dim]."""
        return self.encode(self.tokenize(texts))


def _word_id(word: str) -> int:
    return 3 + zlib.crc32(word.encode()) % (WORDS - 3)
