"""Token ids to unit vectors: sorted by length, packed under a budget of tokens, by worker threads.

On a CPU, workers with one thread each, on shared weights, beat one pass at a time with all threads:
nothing waits for the slower half of each of a pass's thousand steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemb.backend import Runtime
from gemb.errors import Missing, UsageError
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.models.checkpoint import Checkpoint
from gemb.models.tensors import FP16_OVERFLOW
from gemb.models.tokenizer import load_tokenizer, tokenize
from gemb_torch.model.frozen import FrozenEncoder, can_freeze
from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.packing import Packing, pack
from gemb_torch.model.weights import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds


Forward = Callable[[Tensor, Packing], Tensor]

DTYPES = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}

# Tokens a pass, as measured by tests/bench/bench_torch.py: a larger pass falls out of a core's
# cache, a smaller one reads the weights too often.
CPU_TOKENS = 512
ALONE_TOKENS = 64  # up to here a lone pass is faster with one thread than with two
CUDA_TOKENS = 16_384
CUDA_PADDING = 0.2  # how much of attention's rectangle may be padding; a launch costs more
MAX_WORKERS = 16  # more would wait for Python's lock; a worker has several threads then


class TorchEncoder:
    """An open model: one from a folder, or one that is being trained."""

    def __init__(
        self, checkpoint: Checkpoint, forward: Forward, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Take the folder's description and what computes unit vectors of packed token ids.

        Raises:
            UsageError: the tokenizer's file is broken.
        """
        self.device = device
        self.window = checkpoint.config.sliding_window
        self.threads = torch.get_num_threads()
        self.forward = forward
        self.tokenizer = load_tokenizer(
            checkpoint.file("tokenizer.json"), checkpoint.config.vocab_size
        )
        self.workers = min(self.threads, MAX_WORKERS) if self.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(
            self.workers,
            thread_name_prefix="gemb-torch",
            initializer=torch.set_num_threads,
            initargs=(self.threads // self.workers,),
        )
        self.profile = checkpoint.profile("bf16" if dtype == torch.bfloat16 else "fp32")

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], BOS and EOS included; nothing is cut."""
        return tokenize(self.tokenizer, texts)

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences, each of 1 to `profile.max_tokens` ids, in any order of length.
        A row that is not finite, or all zeros, is returned as NaN; it spoils no other row.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)
        lengths = np.array([len(ids) for ids in batch], np.int64)
        budget = CPU_TOKENS if self.device.type == "cpu" else CUDA_TOKENS
        rows_of_passes = passes(lengths, budget, self.workers)

        def run(rows: NDArray[np.int64]) -> None:
            ids = torch.from_numpy(np.concatenate([batch[row] for row in rows]))
            vectors[rows] = self._pass(ids, lengths[rows].tolist()).cpu().numpy()

        if len(rows_of_passes) == 1 and lengths.sum() > ALONE_TOKENS:
            run(rows_of_passes[0])  # in this thread torch has all threads
        else:
            for _ in self.pool.map(run, rows_of_passes):
                pass
        vectors[~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))] = np.nan
        return vectors

    def close(self) -> None:
        """End the worker threads."""
        self.pool.shutdown()

    def _pass(self, ids: Tensor, lengths: list[int]) -> Tensor:
        padding = 0.0 if self.device.type == "cpu" else CUDA_PADDING
        packing = pack(lengths, window=self.window, device=self.device, max_padding=padding)
        return self.forward(ids.to(self.device), packing)


def passes(lengths: NDArray[np.int64], budget: int, workers: int = 1) -> list[NDArray[np.int64]]:
    """Return the rows of each forward pass, longest first, so that workers end at one time.

    Args:
        lengths: tokens of each row, [rows], each at least 1.
        budget: tokens of a pass; half a row more or less, and a longer row is a pass of its own.
        workers: the number of passes is a multiple of this, where there are rows enough.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = lengths[order].cumsum()
    if not len(order):
        return []
    count = -(-int(ends[-1]) // (budget * workers)) * workers
    middles = ends - lengths[order] / 2
    numbers = (middles * count / ends[-1]).astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(numbers)) + 1)


class AutocastEncoder:
    """The plain model, its products in `dtype`; the rest stays fp32."""

    def __init__(self, model: EmbeddingGemma, dtype: torch.dtype) -> None:
        """Take the model as it is."""
        self.model = model
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return unit vectors, fp32 [B, M], for token ids [T] packed as `packing` says."""
        is_mixed = self.dtype != torch.float32
        with torch.autocast(ids.device.type, self.dtype, enabled=is_mixed):
            vectors: Tensor = self.model(ids, packing)
        return vectors


def open_encoder(checkpoint: Checkpoint, runtime: Runtime) -> TorchEncoder:
    """Return the open model of a folder.

    Raises:
        UsageError: the precision or the device cannot be, or the files are broken.
        Missing: there is no CUDA here.
    """
    dtype, device = dtype_of(runtime.precision), device_of(runtime.device)
    torch.set_num_threads(runtime.threads or cores())
    if device.type == "cpu" and can_freeze(dtype):
        forward: Forward = FrozenEncoder(load(checkpoint, dtype=None), dtype)
        return TorchEncoder(checkpoint, forward, device, dtype)
    if runtime.verbose:
        note(f"torch runs the plain model on {device}: the faster products are oneDNN's, on a CPU")
    model = load(checkpoint, device=device)
    for module in model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    return TorchEncoder(checkpoint, AutocastEncoder(model, dtype), device, dtype)


def live_encoder(
    model: EmbeddingGemma, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> TorchEncoder:
    """Return an encoder with the weights that the model has now.

    Args:
        model: one in training; it is not changed, and changing it later may change the encoder.
        checkpoint: where it started: tokenizer, prompts, sizes.
        device: where the model is.
        dtype: of the products.
    """
    is_frozen = device.type == "cpu" and can_freeze(dtype)
    forward = FrozenEncoder(model, dtype) if is_frozen else AutocastEncoder(model, dtype)
    return TorchEncoder(checkpoint, forward, device, dtype)


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of the products; fp16 is refused."""
    if precision == "fp16":
        raise UsageError(f"precision fp16: {FP16_OVERFLOW}; use bf16 or fp32")
    if precision not in DTYPES:
        raise UsageError(f"precision '{precision}'; torch has {', '.join(DTYPES)}")
    return DTYPES[precision]


def device_of(name: str) -> torch.device:
    """Return the device of this name; auto is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"device '{name}'; torch has auto, cpu, cuda, cuda:0, ...")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise Missing(f"device '{name}': torch sees {count} CUDA devices; use --device cpu")
    return torch.device(name)
