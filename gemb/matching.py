"""The largest set of rows in which no query and no positive stands twice.

Rows are the edges between queries and positives of a bipartite graph, such a set is a matching, and
augmenting paths find a largest one (Berge 1957; the search is Kuhn's).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


def largest_matching(
    queries: NDArray[np.uint64],
    positives: NDArray[np.uint64],
    *,
    enough: int,
    start: Collection[int] = (),
) -> NDArray[np.int64]:
    """Return rows with distinct queries and positives: as many as there can be, or `enough`.

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
