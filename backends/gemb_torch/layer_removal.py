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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.errors import UsageError
from gemb.io.atomic import new_file
from gemb.io.notes import note
from gemb.models.checkpoint import Checkpoint
from gemb.models.config import read_json
from gemb_torch.layer_bench import TASKS, TOKENS, LayerBench, product_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gemb.backend import Runtime
    from gemb_torch.cut_texts import Texts

    # Pairs (task of gemb.prompts, text) -> unit vectors, float32 [pairs, width]; None: it has none.
    Teacher = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32] | None]

TEXTS = 200  # over all sources
_FIRST = 2000  # of a source, among which the texts are chosen


class Removal(NamedTuple):
    """One step."""

    layer: int  # of the whole model, from 0
    cosine: float  # mean to the teacher, without this layer and those before it in the order


@dataclass(frozen=True, kw_only=True)
class LayerRemoval:
    """Everything that decides the order."""

    checkpoint: Checkpoint
    texts: Sequence[Texts]
    seed: int
    runtime: Runtime
    teacher: Teacher | None  # None: the whole model

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
        note(
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
