"""Token ids to unit vectors: sorted by length, packed under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from gemb.backend import ModelProfile, Runtime
from gemb.checkpoint import Checkpoint
from gemb_torch.packing import pack
from gemb_torch.tokenizer import load_tokenizer, tokenize
from gemb_torch.weights import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.backend import TokenIds

TOKENS_A_PASS = 1024


class TorchEncoder:
    """An open model folder."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.device = torch.device("cpu")
        dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        self.model = load(checkpoint, dtype=dtype, device=self.device)
        self.window = checkpoint.config.sliding_window
        self.tokenizer = load_tokenizer(
            checkpoint.folder / "tokenizer.json", checkpoint.config.vocab_size
        )
        self.profile = ModelProfile(
            dim=checkpoint.dim,
            matryoshka_dims=checkpoint.matryoshka_dims,
            max_tokens=checkpoint.max_tokens,
            closing_tokens=1,
            prompts=checkpoint.prompts,
            dtype="bf16" if dtype == torch.bfloat16 else "fp32",
            fingerprint=checkpoint.fingerprint(),
        )

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], BOS and EOS included; nothing is cut."""
        return tokenize(self.tokenizer, texts)

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences, each of 1 to `profile.max_tokens` ids, in any order of length.
        A row whose numbers are not finite is returned as NaN; it spoils no other row.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)
        lengths = np.array([len(ids) for ids in batch], np.int64)
        with torch.inference_mode():
            for rows in passes(lengths, TOKENS_A_PASS):
                packing = pack(lengths[rows].tolist(), window=self.window, device=self.device)
                ids = torch.from_numpy(np.concatenate([batch[row] for row in rows]))
                vectors[rows] = self.model(ids.to(self.device), packing).float().cpu().numpy()
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors


def passes(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each forward pass: longest first, at most `budget` tokens, or one row."""
    order = np.argsort(-lengths, kind="stable")
    start = total = 0
    for end, row in enumerate(order):
        if end > start and total + lengths[row] > budget:
            yield order[start:end]
            start, total = end, 0
        total += int(lengths[row])
    if start < len(order):
        yield order[start:]
