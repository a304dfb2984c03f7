"""Which layers a smaller model keeps: they are removed one by one, the least missed first.

At each step every layer that is left is left out in turn, and the one is removed without which
some hundred short texts keep the highest mean cosine to the teacher. Without healing; training
heals. What the layers before the one left out have computed is kept, so that a step costs half of
what it would: n layers, n (n - 1) / 2 passes through one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gemb.errors import UsageError
from gemb.io.atomic import new_file
from gemb.io.machine import cores
from gemb.io.notes import note, warn
from gemb.models.checkpoint import Checkpoint
from gemb.models.config import read_json
from gemb.models.profile import CLOSING_TOKENS, cut_ids
from gemb.models.prompts import for_task
from gemb.models.tokenizer import load_tokenizer, tokenize
from gemb_torch.model.encode import (
    CPU_TOKENS,
    CUDA_TOKENS,
    MAX_WORKERS,
    device_of,
    dtype_of,
    passes,
)
from gemb_torch.model.frozen import FrozenEncoder, can_freeze
from gemb_torch.model.model import EmbeddingGemma, Rotation, rotation
from gemb_torch.model.packing import Packing, pack
from gemb_torch.model.pooling import pool
from gemb_torch.model.weights import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gemb.arrays import TokenIds
    from gemb.backend import Runtime
    from gemb.datasets.plain_texts import Texts

    LayerTeacher = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32] | None]


TEXTS = 200  # over all sources
TOKENS = 64  # of a text; the rest is cut off
TASKS = ("query", "document")  # every other text is taken as one or the other
_FIRST = 2000  # of a source, among which the texts are chosen


class Removal(NamedTuple):
    """One step."""

    layer: int  # of the whole model, from 0
    cosine: float  # mean to the teacher, without this layer and those before it in the order


@dataclass(frozen=True, kw_only=True)
class LayerRemoval:
    """Everything that decides the order in which layers are removed."""

    checkpoint: Checkpoint
    texts: Sequence[Texts]
    seed: int
    runtime: Runtime
    teacher: LayerTeacher | None  # None: the whole model

    def kept(self, count: int, path: Path) -> tuple[int, ...]:
        """Return the `count` layers that are kept, ascending.

        Args:
            count: at least 1, and 2 where the model has sliding and global layers: one of either
                kind is kept, since llama.cpp cannot run the model otherwise.
            path: where the order is kept, so that it is computed once, and a stopped run goes on.

        Raises:
            UsageError: so many layers cannot be kept, or there are no texts.
            OSError: the order cannot be written.
        """
        is_sliding = self.checkpoint.config.is_sliding
        least = len(set(is_sliding))
        if not least <= count <= len(is_sliding):
            raise UsageError(
                f"{self.checkpoint.folder}: keep_layers greedy:{count}: it has {len(is_sliding)} "
                f"layers, and {least} is the least: one of either kind of attention"
            )
        pairs = list(self._pairs())
        if not pairs:
            raise UsageError("keep_layers greedy: the data has no text to measure layers with")
        targets = self._teacher_vectors(pairs)
        key = self._key(pairs, targets)
        order = _read(path, key)[: len(is_sliding) - count]
        if order:
            layers = ", ".join(str(removal.layer) for removal in order)
            note(f"{path}: removed before, in this order: layers {layers}")
        if len(order) < len(is_sliding) - count:
            with LayerBench(self.checkpoint, self.runtime, pairs, targets) as bench:
                self._go_on(order, count, bench, path, key)
        gone = {removal.layer for removal in order}
        return tuple(layer for layer in range(len(is_sliding)) if layer not in gone)

    def _go_on(
        self, order: list[Removal], count: int, bench: LayerBench, path: Path, key: str
    ) -> None:
        is_sliding = self.checkpoint.config.is_sliding
        gone = {removal.layer for removal in order}
        left = [layer for layer in range(len(is_sliding)) if layer not in gone]
        while len(left) > count:
            kinds = [is_sliding[layer] for layer in left]  # the last of its kind stays
            places = [place for place, kind in enumerate(kinds) if kinds.count(kind) > 1]
            cosines = bench.without_each(left, places)
            best = int(np.argmax(cosines))  # of equals the first
            removal = Removal(left.pop(places[best]), float(cosines[best]))
            order.append(removal)
            _write(path, key, order)
            note(
                f"layer {removal.layer} removed: mean cosine {removal.cosine:.4f} to the teacher, "
                f"{len(left)} layers left"
            )

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """Yield task and text, as many of each source as of any other."""
        chance = np.random.default_rng(self.seed)
        share = -(-TEXTS // max(1, len(self.texts)))
        number = 0
        for source in self.texts:
            first = list(islice((text for text in source.read() if text.strip()), _FIRST))
            for row in sorted(chance.permutation(len(first))[:share].tolist()):
                yield TASKS[number % len(TASKS)], first[row]
                number += 1

    def _teacher_vectors(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32] | None:
        if self.teacher is None:
            return None
        vectors = self.teacher(pairs)
        if vectors is None or vectors.shape[1] == self.checkpoint.dim:
            return vectors
        warn(
            f"the teacher's vectors are {vectors.shape[1]} wide, the model's "
            f"{self.checkpoint.dim}: layers are measured against the whole model"
        )
        return None

    def _key(self, pairs: Sequence[tuple[str, str]], targets: NDArray[np.float32] | None) -> str:
        digest = hashlib.blake2b(digest_size=8)
        precision = product_dtype(self.runtime)
        texts = json.dumps([self.checkpoint.fingerprint(), str(precision), TOKENS, pairs])
        digest.update(texts.encode("utf-8", "surrogatepass"))
        digest.update(b"" if targets is None else targets.tobytes())
        return digest.hexdigest()


def _read(path: Path, key: str) -> list[Removal]:
    if not path.is_file():
        return []
    raw = read_json(path)
    if raw.get("key") != key:
        return []
    return [Removal(int(step["layer"]), float(step["cosine"])) for step in raw["removed"]]


def _write(path: Path, key: str, order: Sequence[Removal]) -> None:
    steps = [removal._asdict() for removal in order]
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part:
        part.write_text(json.dumps({"key": key, "removed": steps}, indent=1) + "\n", "utf-8")


class _Layers(Protocol):
    """A model, layer by layer: x is the residual stream [T, D]; rotations are the model's own."""

    def begin(self, ids: Tensor, packing: Packing) -> tuple[Tensor, Any]: ...
    def step(self, layer: int, x: Tensor, rotations: Any, packing: Packing) -> Tensor: ...  # noqa: ANN401
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

        def run(texts: _Pass) -> None:
            cosines[:, texts.rows] = self._cosines(texts, left, places).cpu().numpy()

        for _ in self.pool.map(run, self.passes):
            pass
        # What is not finite is no vector at all.
        means: NDArray[np.float64] = np.nan_to_num(cosines, nan=-1.0).mean(axis=1)
        return means

    @torch.inference_mode()
    def _cosines(self, texts: _Pass, left: Sequence[int], places: Sequence[int]) -> Tensor:
        x, rotations = self.layers.begin(texts.ids, texts.packing)
        targets = self.targets[texts.rows]
        cosines = []
        for place, layer in enumerate(left):
            if place in places:
                without = x.clone()
                for later in left[place + 1 :]:
                    without = self.layers.step(later, without, rotations, texts.packing)
                cosines.append((self.layers.end(without, texts.packing) * targets).sum(-1))
            x = self.layers.step(layer, x, rotations, texts.packing)
        return torch.stack(cosines)

    def _vectors(self, layers: Sequence[int]) -> Tensor:
        """Return the texts' vectors, [texts, width], as these layers make them."""

        def run(texts: _Pass) -> Tensor:
            x, rotations = self.layers.begin(texts.ids, texts.packing)
            for layer in layers:
                x = self.layers.step(layer, x, rotations, texts.packing)
            return self.layers.end(x, texts.packing)

        parts = list(self.pool.map(run, self.passes))
        vectors = torch.empty(self.count, parts[0].shape[1], device=self.device)
        for texts, part in zip(self.passes, parts, strict=True):
            vectors[texts.rows] = part
        return vectors


def token_ids(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]]) -> list[TokenIds]:
    """Return the ids of (task, text), each at most `TOKENS`, with the model's prompts."""
    tokenizer = load_tokenizer(checkpoint.file("tokenizer.json"), checkpoint.config.vocab_size)
    prompts = {task: for_task(task, checkpoint.prompts) for task in TASKS}
    whole = tokenize(tokenizer, [prompts[task].render(text) for task, text in pairs])
    limit = min(TOKENS, checkpoint.max_tokens)
    return [cut_ids(ids, limit, CLOSING_TOKENS) for ids in whole]


def product_dtype(runtime: Runtime) -> torch.dtype:
    """Return the type of the products: the quick one where nothing else is asked for."""
    if runtime.precision != "auto":
        return dtype_of(runtime.precision)
    is_cuda = device_of(runtime.device).type == "cuda"
    return torch.bfloat16 if is_cuda or can_freeze(torch.bfloat16) else torch.float32
