"""Which texts a run of adaptation reads, in which order, and how each is taken apart.

A text longer than `longest` is cut into equal parts. Parts come from the sources by weight, and
within a source each part once before any comes again. Everything is drawn from the seed and the
number of the example alone, so that a run goes on after a stop as if there had been none, and the
number of processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.errors import UsageError
from gemb.training.ul2 import SHORTEST, Task, choose, spans, taken_apart
from gemb_torch.token_store import TokenStore


@dataclass(frozen=True, kw_only=True)
class Ids:
    """The tokenizer's own tokens."""

    bos: int
    eos: int
    marks: NDArray[np.int64]  # that stand for spans


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text, taken apart."""

    source: int
    text: int  # number of the source's text, from 0
    task: Task
    inputs: NDArray[np.int64]  # BOS, what is left, EOS
    targets: NDArray[np.int64]  # the noise, EOS

    @property
    def tokens(self) -> int:
        """Of input and target."""
        return len(self.inputs) + len(self.targets)


class TextOrder:
    """The examples of a run, step by step."""

    def __init__(
        self,
        stores: Sequence[TokenStore],
        tasks: Sequence[Task],
        ids: Ids,
        *,
        longest: int,
        tokens: int,
        seed: int,
    ) -> None:
        """Begin at the beginning.

        Args:
            stores: the sources.
            tasks: ways to take a text apart.
            ids: the tokenizer's own.
            longest: tokens of a part of a text.
            tokens: of a step, input and target; at least those of one example.
            seed: of everything that is drawn.

        Raises:
            UsageError: a source has no text of two tokens.
        """
        self.stores, self.tasks, self.ids = stores, tasks, ids
        self.tokens, self.seed = tokens, seed
        self.parts = [_parts(store, longest) for store in stores]
        for store, parts in zip(stores, self.parts, strict=True):
            if not len(parts):
                raise UsageError(f"{store.name}: none of its texts has {SHORTEST} tokens")
        weights = np.array(
            [
                len(parts) if store.weight is None else store.weight
                for store, parts in zip(stores, self.parts, strict=True)
            ],
            float,
        )
        self.shares = weights / weights.sum()  # of the examples, by source
        self._number = 0  # of the next example
        self._drawn = [0] * len(stores)  # of each source
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def tokens_of_all(self) -> int:
        """How many tokens the parts of all sources have."""
        return sum(int((parts[:, 1] - parts[:, 0]).sum()) for parts in self.parts)

    def step(self) -> list[Example]:
        """Return the examples of the next step: as many as fit."""
        found: list[Example] = []
        left = self.tokens
        while True:
            example, drawn = self._example()
            if found and example.tokens > left:
                return found
            found.append(example)
            left -= example.tokens
            self._number += 1
            self._drawn = drawn

    def state(self) -> dict[str, Any]:
        """Return where it stands, for `restore`."""
        return {
            "number": self._number,
            "drawn": list(self._drawn),
            "stamps": [store.stamp for store in self.stores],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UsageError: a source, or the tokenizer, has changed since.
        """
        for store, stamp in zip(self.stores, state["stamps"], strict=True):
            if store.stamp != stamp:
                raise UsageError(
                    f"{store.name} changed since the checkpoint: a run that went on would see "
                    "other texts; put it back, or begin a new run"
                )
        self._number, self._drawn = int(state["number"]), list(state["drawn"])

    def _example(self) -> tuple[Example, list[int]]:
        random = np.random.default_rng([self.seed, self._number])
        source = int(random.choice(len(self.shares), p=self.shares))
        drawn = list(self._drawn)
        passes, place = divmod(drawn[source], len(self.parts[source]))
        drawn[source] += 1
        begin, end, text = self.parts[source][self._order(source, passes)[place]].tolist()
        tokens = self.stores[source].tokens[begin:end].astype(np.int64)
        task = choose(self.tasks, random)
        noise = spans(task, len(tokens), random)
        inputs, targets = taken_apart(tokens, noise, self.ids.marks, is_marked=task.is_marked)
        return Example(
            source=source,
            text=text,
            task=task,
            inputs=np.concatenate([[self.ids.bos], inputs, [self.ids.eos]]),
            targets=np.concatenate([targets, [self.ids.eos]]),
        ), drawn

    def _order(self, source: int, passes: int) -> NDArray[np.int64]:
        key = source, passes
        if key not in self._orders:
            self._orders = {one: order for one, order in self._orders.items() if one[0] != source}
            random = np.random.default_rng([self.seed, source, passes, 1])
            self._orders[key] = random.permutation(len(self.parts[source]))
        return self._orders[key]


def _parts(store: TokenStore, longest: int) -> NDArray[np.int64]:
    """Return begin, end and text of each part, int64 [parts, 3]."""
    ends = np.asarray(store.ends)
    begins = np.concatenate([[0], ends[:-1]])
    sizes = ends - begins
    counts = -(-sizes // longest)
    text = np.repeat(np.arange(len(ends)), counts)
    first = np.repeat(counts.cumsum() - counts, counts)
    number = np.arange(len(text)) - first  # of the part in its text
    sizes, pieces = sizes[text], counts[text]
    begin = begins[text] + sizes * number // pieces
    end = begins[text] + sizes * (number + 1) // pieces
    found: NDArray[np.int64] = np.stack([begin, end, text], 1)[end - begin >= SHORTEST]
    return found
