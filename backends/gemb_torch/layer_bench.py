"""A model on a bench: its layers are left out in turn, and what that costs is measured."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gemb.io.machine import cores
from gemb.models.checkpoint import Checkpoint
from gemb.models.prompts import for_task
from gemb.models.tokenizer import load_tokenizer, tokenize
from gemb_torch.encode import CPU_TOKENS, CUDA_TOKENS, MAX_WORKERS, device_of, dtype_of, passes
from gemb_torch.frozen import FrozenEncoder, can_freeze
from gemb_torch.model import EmbeddingGemma, Rotation, rotation
from gemb_torch.packing import Packing, pack
from gemb_torch.pooling import pool
from gemb_torch.weights import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.backend import Runtime, TokenIds

TOKENS = 64  # of a text; the rest is cut off
TASKS = ("query", "document")  # every other text is taken as one or the other
_Any = Any  # rotations: whatever a model's `begin` gives


class _Layers(Protocol):
    """A model, layer by layer; x is the residual stream [T, D]."""

    def begin(self, ids: Tensor, packing: Packing) -> tuple[Tensor, _Any]: ...
    def step(self, layer: int, x: Tensor, rotations: _Any, packing: Packing) -> Tensor: ...
    def end(self, x: Tensor, packing: Packing) -> Tensor: ...


class _PlainLayers:
    """The plain model, its products in `dtype`: for a GPU, or a CPU without oneDNN."""

    def __init__(self, model: EmbeddingGemma, dtype: torch.dtype) -> None:
        self.model = model
        self.blocks = list(model.blocks())
        self.dtype = dtype

    @torch.inference_mode()
    def begin(self, ids: Tensor, packing: Packing) -> tuple[Tensor, tuple[Rotation, Rotation]]:
        config = self.model.config
        bases = (config.rope_theta, config.rope_local_theta)
        everywhere, nearby = (rotation(packing.positions, config.head_dim, base) for base in bases)
        return self.model.embed_tokens(ids) * config.hidden_size**0.5, (everywhere, nearby)

    @torch.inference_mode()
    def step(
        self, layer: int, x: Tensor, rotations: tuple[Rotation, Rotation], packing: Packing
    ) -> Tensor:
        block = self.blocks[layer]
        is_mixed = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype, enabled=is_mixed):
            after: Tensor = block(x, rotations[block.self_attn.is_sliding], packing)
        return after

    @torch.inference_mode()
    def end(self, x: Tensor, packing: Packing) -> Tensor:
        model = self.model
        pooled = pool(model.norm(x, x.dtype), packing, model.pooling, model.pool_queries)
        for layer in model.dense:
            pooled = layer(pooled)
        return functional.normalize(pooled, dim=-1)


@dataclass(frozen=True)
class _Pass:
    """Texts that go through the model together."""

    rows: NDArray[np.int64]  # which texts
    ids: Tensor  # [T]
    packing: Packing


class LayerBench:
    """The model and the texts on which its layers are left out."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        pairs: Sequence[tuple[str, str]],
        targets: NDArray[np.float32] | None,
    ) -> None:
        """Load the model; without targets, [texts, width], they are the whole model's vectors."""
        device = device_of(runtime.device)
        dtype = product_dtype(runtime)
        self.layers: _Layers
        if device.type == "cpu" and can_freeze(dtype):
            self.layers = FrozenEncoder(load(checkpoint, dtype=None), dtype)
        else:
            self.layers = _PlainLayers(load(checkpoint, device=device), dtype)
        batch = token_ids(checkpoint, pairs)
        lengths = np.array([len(ids) for ids in batch], np.int64)
        threads = runtime.threads or cores()
        workers = min(threads, MAX_WORKERS) if device.type == "cpu" else 1
        self.passes = [
            _Pass(
                rows,
                torch.from_numpy(np.concatenate([batch[row] for row in rows])).to(device),
                pack(
                    lengths[rows].tolist(), window=checkpoint.config.sliding_window, device=device
                ),
            )
            for rows in passes(lengths, CPU_TOKENS if workers > 1 else CUDA_TOKENS, workers)
        ]
        self.count = len(batch)
        self.pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),)
        )
        self.device = device
        whole = range(len(checkpoint.config.is_sliding))
        self.targets = self._vectors(whole) if targets is None else torch.from_numpy(targets)
        self.targets = self.targets.to(device)

    def __enter__(self) -> LayerBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def without_each(self, left: Sequence[int], places: Sequence[int]) -> NDArray[np.float64]:
        """Return the mean cosine to the targets without the layer at each place of `left`."""
        cosines = np.empty((len(places), self.count))

        def run(one: _Pass) -> None:
            cosines[:, one.rows] = self._cosines(one, left, places).cpu().numpy()

        for _ in self.pool.map(run, self.passes):
            pass
        # What is not finite is no vector at all.
        means: NDArray[np.float64] = np.nan_to_num(cosines, nan=-1.0).mean(axis=1)
        return means

    @torch.inference_mode()
    def _cosines(self, one: _Pass, left: Sequence[int], places: Sequence[int]) -> Tensor:
        x, rotations = self.layers.begin(one.ids, one.packing)
        targets = self.targets[one.rows]
        found = []
        for place, layer in enumerate(left):
            if place in places:
                without = x.clone()
                for later in left[place + 1 :]:
                    without = self.layers.step(later, without, rotations, one.packing)
                found.append((self.layers.end(without, one.packing) * targets).sum(-1))
            x = self.layers.step(layer, x, rotations, one.packing)
        return torch.stack(found)

    def _vectors(self, layers: Sequence[int]) -> Tensor:
        """Return the texts' vectors, [texts, width], as these layers make them."""

        def run(one: _Pass) -> Tensor:
            x, rotations = self.layers.begin(one.ids, one.packing)
            for layer in layers:
                x = self.layers.step(layer, x, rotations, one.packing)
            return self.layers.end(x, one.packing)

        parts = list(self.pool.map(run, self.passes))
        vectors = torch.empty(self.count, parts[0].shape[1], device=self.device)
        for one, part in zip(self.passes, parts, strict=True):
            vectors[one.rows] = part
        return vectors


def token_ids(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]]) -> list[TokenIds]:
    """Return the ids of (task, text), each at most `TOKENS`, with the model's prompts."""
    tokenizer = load_tokenizer(checkpoint.folder / "tokenizer.json", checkpoint.config.vocab_size)
    prompts = {task: for_task(task, checkpoint.prompts) for task in TASKS}
    whole = tokenize(tokenizer, [prompts[task].render(text) for task, text in pairs])
    most = min(TOKENS, checkpoint.max_tokens)
    return [ids if len(ids) <= most else np.append(ids[: most - 1], ids[-1]) for ids in whole]


def product_dtype(runtime: Runtime) -> torch.dtype:
    """Return the type of the products: the quick one where nothing else is asked for."""
    if runtime.precision != "auto":
        return dtype_of(runtime.precision)
    is_cuda = device_of(runtime.device).type == "cuda"
    return torch.bfloat16 if is_cuda or can_freeze(torch.bfloat16) else torch.float32
