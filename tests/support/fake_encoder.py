"""An encoder whose vectors a test gives."""

from __future__ import annotations

import numpy as np

from gemb.models.profile import ModelProfile


class FakeEncoder:
    """An encoder whose vectors the test gives: by the text behind the prompt, else by its hash."""

    def __init__(self, vectors=None, dim=64, max_tokens=1000):
        self.profile = ModelProfile(
            dim=dim,
            matryoshka_dims=(dim, dim // 2),
            max_tokens=max_tokens,
            closing_tokens=0,
            prompts={"STS": "S: ", "query": "Q: ", "document": "title: none | text: "},
            dtype="fp32",
            fingerprint="0" * 16,
        )
        self.vectors = vectors or {}
        self.texts: list[str] = []  # all that were encoded

    def tokenize(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def encode(self, batch):
        rows = []
        for ids in batch:
            text = ids.astype(np.uint8).tobytes().decode()
            self.texts.append(text)
            if "poison" in text:
                raise RuntimeError("poisoned")
            name = next((name for name in self.vectors if text.endswith(f": {name}")), None)
            seed = [int(code) for code in ids]
            row = np.random.default_rng(seed).normal(size=self.profile.dim)
            rows.append(row if name is None else self.vectors[name])
        found = np.array(rows, np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)
