"""Which rows make which batch: fixed by the seed and the data, whoever asks and whenever.

Every batch comes from one source, chosen by the weights. Inside a source an epoch is a permutation
of its rows. A row whose query or positive stands in the batch already would be a false negative: it
waits for the next batch of its source. What is left at the end of an epoch begins the next one, so
no row is dropped; those held out are in no batch, and move no other. The random numbers are
Philox's raw 64-bit words, keyed by what they are for: they need no state, and numpy keeps those
words the same between versions (NEP 19), as it does not for `Generator.permutation`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemb.errors import UsageError
from gemb.recipe.schema import Source

WAITING_TRIED = 4  # times the pairs of a batch: waiting rows that are looked at before fresh ones
BLOCK = 1 << 20  # rows whose ids are hashed at a time

RowNumbers = NDArray[np.uint32] | NDArray[np.int64]  # uint32 where all fit: half the memory


class Keyed(Protocol):
    """What the order needs of a source: `gemb.datasets.rows.Rows` has it."""

    @property
    def name(self) -> str:
        """In messages."""

    @property
    def source(self) -> Source:
        """Its weight."""

    @property
    def query_ids(self) -> NDArray[np.uint64]:
        """Equal for equal queries, uint64 [rows]."""

    @property
    def positive_ids(self) -> NDArray[np.uint64]:
        """Equal for equal positives, uint64 [rows]."""

    @property
    def held_out(self) -> NDArray[np.intp]:
        """Rows that no batch may have, sorted."""

    def __len__(self) -> int:
        """Rows."""


@dataclass(frozen=True)
class Batch:
    """The rows of one step."""

    step: int  # from 0
    source: int  # which of the sources
    rows: NDArray[np.int64]  # [pairs], rows of that source


class BatchOrder(Iterator[Batch]):
    """The endless sequence of batches. Not for several threads at once."""

    def __init__(self, sources: Sequence[Keyed], *, pairs: int, seed: int) -> None:
        """Begin at step 0.

        Args:
            sources: of one weight each, or all weighed by their rows.
            pairs: rows of a batch, over all processes; each process takes its slice.
            seed: of everything that is random here, 0 to 2**64 - 1.

        Raises:
            UsageError: the weights are not clear, or a source has too few distinct rows.
        """
        self.pairs = pairs
        self.seed = seed
        self.step = 0  # the next batch's
        self.shares = shares(sources)  # of the batches, by source; their sum is 1
        self._bounds = np.cumsum(self.shares)
        self._order = [
            _SourceOrder(rows, number, pairs, seed) if share else None
            for number, (rows, share) in enumerate(zip(sources, self.shares, strict=True))
        ]
        self._rows = sum(len(rows) - len(rows.held_out) for rows in sources)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that draw as many rows as all sources have to draw from together."""
        return math.ceil(self._rows / self.pairs)

    def __next__(self) -> Batch:
        """Return the next batch."""
        number = self._source_of(self.step)
        order = self._order[number]
        assert order, "a source without a share is never chosen"
        batch = Batch(self.step, number, order.next())
        self.step += 1
        return batch

    def _source_of(self, step: int) -> int:
        uniform = (int(_words(self.seed, 0, 0, step, 1)[0]) >> 11) * 2.0**-53
        return int(np.searchsorted(self._bounds[:-1], uniform, side="right"))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, fit for JSON: small unless many rows are equal."""
        return {
            "step": self.step,
            "seed": self.seed,
            "pairs": self.pairs,
            "shares": self.shares,
            "sources": [order.state() if order else None for order in self._order],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises:
            UsageError: it was taken of other data, weights, batch or seed.
        """
        for key, ours in (("seed", self.seed), ("pairs", self.pairs), ("shares", self.shares)):
            if state.get(key) != ours:
                raise UsageError(
                    f"the checkpoint was made with other {key}: {state.get(key)}, now {ours}; "
                    "resume with the recipe of the run"
                )
        for order, kept in zip(self._order, state["sources"], strict=True):
            if order:
                order.check(kept)
        for order, kept in zip(self._order, state["sources"], strict=True):
            if order:
                order.restore(kept)
        self.step = state["step"]


def shares(sources: Sequence[Keyed]) -> list[float]:
    """Return which part of the batches each source gives, by its weight or its rows.

    Raises:
        UsageError: a weight is negative or no number, all are 0, or only some sources have one.
    """
    given = [rows.source.weight for rows in sources]
    without = [rows.name for rows in sources if rows.source.weight is None]
    if without and len(without) < len(sources):
        raise UsageError(
            f"data: {without[0]} has no weight and others have; give all sources one, or none "
            "(the rows are then the weights)"
        )
    weights = [
        float(len(rows) if weight is None else weight)
        for rows, weight in zip(sources, given, strict=True)
    ]
    for rows, weight in zip(sources, weights, strict=True):
        if not (0 <= weight < math.inf):
            raise UsageError(f"data: {rows.name} has weight {weight:g}; it must be 0 or more")
    if not sum(weights):
        raise UsageError("data: no source has a weight above 0")
    return [weight / sum(weights) for weight in weights]


class _Draft:
    """A batch that is being filled."""

    def __init__(self, pairs: int) -> None:
        self.rows: dict[int, None] = {}  # in order
        self._queries: set[int] = set()
        self._positives: set[int] = set()
        self._pairs = pairs

    @property
    def missing(self) -> int:
        """How many rows there is room for."""
        return self._pairs - len(self.rows)

    def take(self, row: int, query: int, positive: int) -> bool:
        """Add a row, if neither its query nor its positive is there."""
        if query in self._queries or positive in self._positives:
            return False
        self._queries.add(query)
        self._positives.add(positive)
        self.rows[row] = None
        return True


class _SourceOrder:
    """The batches of one source."""

    def __init__(self, rows: Keyed, number: int, pairs: int, seed: int) -> None:
        self._name = rows.name
        self._queries, self._positives = rows.query_ids, rows.positive_ids
        self._held_out = rows.held_out
        self._pairs = pairs
        self._key = (seed, number + 1)
        self._digest = ""
        largest = len(self._matching(()))
        if largest < pairs:
            least = f"batch.pairs={largest}" if largest > 1 else "a batch needs two that differ"
            raise UsageError(
                f"{rows.name}: its {len(rows) - len(self._held_out)} rows make no batch of {pairs} "
                f"without an equal query or positive twice; {largest} at most: {least}"
            )
        self._begin(0, 0, [])

    def _begin(self, epoch: int, position: int, waiting: Sequence[int]) -> None:
        self._epoch, self._position = epoch, position
        self._permutation = self._rows_of(epoch)
        self._waiting = deque(waiting)
        self._is_waiting = set(waiting)

    def _rows_of(self, epoch: int) -> RowNumbers:
        """Return the rows of an epoch in their order: what is held out moves no other row."""
        order = _permutation(*self._key, epoch, len(self._queries))
        return order[~np.isin(order, self._held_out)] if len(self._held_out) else order

    def _matching(self, start: Collection[int]) -> NDArray[np.int64]:
        """Return rows for a batch, where `start` is rows that fit together."""
        if not len(self._held_out):
            return largest_matching(self._queries, self._positives, enough=self._pairs, start=start)
        free = np.delete(np.arange(len(self._queries)), self._held_out)
        begin = np.searchsorted(free, list(start)).tolist()
        queries, positives = self._queries[free], self._positives[free]
        return free[largest_matching(queries, positives, enough=self._pairs, start=begin)]

    def next(self) -> NDArray[np.int64]:
        """Return the next batch's rows, int64 [pairs]."""
        draft = _Draft(self._pairs)
        self._take_waiting(draft, WAITING_TRIED * self._pairs)
        seen = 0
        while draft.missing and seen < len(self._permutation):
            seen += self._take_fresh(draft)
        self._take_waiting(draft, len(self._waiting))
        if draft.missing:
            self._complete(draft)
        return np.fromiter(draft.rows, np.int64, self._pairs)

    def _take_waiting(self, draft: _Draft, most: int) -> None:
        """Take what fits of the rows that wait; what does not goes to the end of the queue."""
        for _ in range(min(most, len(self._waiting))):
            if not draft.missing:
                return
            row = self._waiting.popleft()
            if draft.take(row, int(self._queries[row]), int(self._positives[row])):
                self._is_waiting.remove(row)
            else:
                self._waiting.append(row)

    def _take_fresh(self, draft: _Draft) -> int:
        """Take what fits of the epoch's next rows; what does not waits. Return how many it were."""
        rows = self._permutation[self._position : self._position + draft.missing]
        queries, positives = self._queries[rows].tolist(), self._positives[rows].tolist()
        for row, query, positive in zip(rows.tolist(), queries, positives, strict=True):
            # A row of the last epoch that still waits has its turn already.
            if row not in self._is_waiting and not draft.take(row, query, positive):
                self._waiting.append(row)
                self._is_waiting.add(row)
        self._position += len(rows)
        if self._position == len(self._permutation):
            self._permutation = self._rows_of(self._epoch + 1)
            self._epoch, self._position = self._epoch + 1, 0
        return len(rows)

    def _complete(self, draft: _Draft) -> None:
        """Fill a batch that no row fits into: few distinct rows, and an unlucky choice of them."""
        rows = self._matching(draft.rows).tolist()
        given_up = [row for row in draft.rows if row not in set(rows)]
        kept = set(rows) | set(given_up)
        self._waiting = deque([*given_up, *(row for row in self._waiting if row not in kept)])
        self._is_waiting = set(self._waiting)
        draft.rows = dict.fromkeys(rows)

    def state(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "rows": self._of(),
            "epoch": self._epoch,
            "position": self._position,
            "waiting": list(self._waiting),
        }

    def check(self, state: Mapping[str, Any] | None) -> None:
        if state is None or state["rows"] != self._of():
            raise UsageError(
                f"{self._name}: its rows are not those that the checkpoint was made with; resume "
                "with the same data, or start a new run"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin(state["epoch"], state["position"], state["waiting"])

    def _of(self) -> str:
        """Return a digest of the rows, and of which are held out."""
        if not self._digest:
            ids = blake2b(digest_size=8)
            for begin in range(0, len(self._queries), BLOCK):
                ids.update(self._queries[begin : begin + BLOCK].tobytes())
                ids.update(self._positives[begin : begin + BLOCK].tobytes())
            ids.update(self._held_out.tobytes())
            self._digest = ids.hexdigest()
        return self._digest


def _permutation(seed: int, source: int, epoch: int, rows: int) -> RowNumbers:
    """Return the order of a source's rows in an epoch, [rows]: 64 random bits each, sorted."""
    order = np.argsort(_words(seed, source, epoch, 0, rows), kind="stable")
    return order.astype(np.uint32) if rows < 1 << 32 else order


def _words(seed: int, source: int, epoch: int, step: int, count: int) -> NDArray[np.uint64]:
    """Return random 64-bit words; `source` 0 stands for the choice among the sources."""
    key, counter = np.array([seed, source], np.uint64), np.array([0, step, epoch, 0], np.uint64)
    philox = np.random.Philox(key=key, counter=counter)
    words: NDArray[np.uint64] = philox.random_raw(count)
    return words


def largest_matching(
    queries: NDArray[np.uint64],
    positives: NDArray[np.uint64],
    *,
    enough: int,
    start: Collection[int] = (),
) -> NDArray[np.int64]:
    """Return rows with distinct queries and positives: as many as there can be, or `enough`.

    Rows are the edges between queries and positives of a bipartite graph, such a set is a matching,
    and augmenting paths find a largest one (Berge 1957; the search is Kuhn's).

    Args:
        queries: ids, uint64 [rows].
        positives: ids, uint64 [rows].
        enough: stop at so many rows.
        start: rows that fit together; their queries and positives are in the result, too, though
            perhaps by other rows.
    """
    first = _first_fit(queries, positives, enough)
    if not len(queries) or (not start and len(first) == enough):
        return first
    graph = _Graph(_numbered(queries), _numbered(positives), start)
    for begin in range(graph.left_count):
        if len(graph.left_row) >= enough:
            break
        if begin not in graph.left_row:
            graph.augment(begin)
    return np.fromiter(graph.left_row.values(), np.int64)


class _Graph:
    """Rows between two kinds of nodes; the left kind has fewer."""

    def __init__(
        self, left: NDArray[np.int64], right: NDArray[np.int64], start: Collection[int]
    ) -> None:
        if left.max() > right.max():
            left, right = right, left
        self._left, self._right = left, right
        self.left_count = int(left.max()) + 1
        self._by_left = np.argsort(left, kind="stable")
        self._begins = np.searchsorted(left[self._by_left], np.arange(self.left_count + 1))
        self.left_row = {int(left[row]): row for row in start}  # the row that covers a node
        self._right_row = {int(right[row]): row for row in start}
        self._dead: set[int] = set()  # right nodes from which none that is free can be reached

    def augment(self, begin: int) -> None:
        """Cover this left node, too, by a shortest path to a free right node, if there is one."""
        came_by: dict[int, int] = {}  # right node -> the row that led there
        queue = [begin]
        for node in queue:
            for row in self._by_left[self._begins[node] : self._begins[node + 1]].tolist():
                other = int(self._right[row])
                if other in self._dead or other in came_by:
                    continue
                came_by[other] = row
                if other not in self._right_row:
                    self._turn(other, came_by)
                    return
                queue.append(int(self._left[self._right_row[other]]))
        self._dead.update(came_by)

    def _turn(self, free: int, came_by: dict[int, int]) -> None:
        """Take the path's rows that are not taken, and leave those that are."""
        before: int | None = came_by[free]
        while before is not None:
            row = came_by[free]
            node = int(self._left[row])
            before = self.left_row.get(node)
            self.left_row[node], self._right_row[free] = row, row
            if before is not None:
                free = int(self._right[before])


def _first_fit(
    queries: NDArray[np.uint64], positives: NDArray[np.uint64], enough: int
) -> NDArray[np.int64]:
    """Return the rows that fit to those before, of the first few: mostly that is enough."""
    few = 8 * enough
    seen: tuple[set[int], set[int]] = set(), set()
    rows: list[int] = []
    pairs = zip(queries[:few].tolist(), positives[:few].tolist(), strict=True)
    for row, (query, positive) in enumerate(pairs):
        if len(rows) < enough and query not in seen[0] and positive not in seen[1]:
            seen[0].add(query)
            seen[1].add(positive)
            rows.append(row)
    return np.array(rows, np.int64)


def _numbered(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)
