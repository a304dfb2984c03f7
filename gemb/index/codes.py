"""Sign codes: a few bits a component, from which a fast scan tells what deserves a closer look.

A component gives one bit for each of its thresholds: 1 where it is above. One threshold at 0 is the
sign. A code has about 512 bits whatever the width of the vectors, for 64 bytes are one line of a
processor's cache: faiss scans them 2.7 times as fast as 96. Of wider vectors the first 512
components give their signs: Matryoshka training puts there what matters most. Narrow vectors get
more thresholds, at evenly spaced quantiles: the Hamming distance is then the sum over components of
how many thresholds lie between two values.

Measured on 57,000 vectors of EmbeddingGemma-300M (queries and documents in one): how many of the
nearest codes hold 99 % of the exact ten best, for 768, 256 and 128 components:

    signs of all                    109   1,261   5,318
    signs after a random rotation   107   1,489   5,670
    signs around the mean           143     985   3,963
    signs of the first 512          312
    512 bits by random rotations            292     246
    512 bits by quantiles                   227     220
    768 bits by quantiles           109     123     120

So no rotation, and no centre but that of quantiles.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Floats, Ints
from gemb.errors import UsageError
from gemb.io.machine import ahead, cores

Codes = NDArray[np.uint8]

BITS = 512
FEWEST = 256  # rows whose quantiles are worth having
ROWS_AT_A_TIME = 4096
KIND = "quantile bits"


@dataclass(frozen=True, eq=False)
class Coder:
    """What turns vectors into codes. It is made once for an index and kept in its manifest."""

    dim: int  # D of the vectors
    thresholds: Floats  # [levels, components], ascending; components: so many first ones are used
    gaps: Floats  # [levels, components]: what a component is worth more above than below each

    @staticmethod
    def of(dim: int) -> Coder:
        """Return the coder that knows nothing of the vectors but their width."""
        from statistics import NormalDist

        levels = max(1, round(BITS / dim))
        normal = NormalDist(0, dim**-0.5)  # of a unit vector's components
        edges = np.array([normal.inv_cdf((level + 1) / (levels + 1)) for level in range(levels)])
        heights = np.array([0, *(normal.pdf(edge) for edge in edges), 0])
        # The mean of a normal variable between two edges is variance * (pdf - pdf) / probability.
        means = (heights[:-1] - heights[1:]) / dim * (levels + 1)
        columns = np.ones((1, min(dim, BITS)), np.float32)
        thresholds, gaps = edges.astype(np.float32), np.diff(means).astype(np.float32)
        return Coder(dim, thresholds[:, None] * columns, gaps[:, None] * columns)

    @staticmethod
    def fit(sample: Floats) -> Coder:
        """Return the coder for vectors like these: unit rows [n, D], a few thousand are enough.

        Rows of NaN are passed over; equal input gives an equal coder. Fewer than 256 rows, or wide
        vectors, which get one bit a component: as `of`.
        """
        known = Coder.of(sample.shape[1])
        levels = len(known.thresholds)
        rows = sample[~np.isnan(sample).any(axis=1)]
        if levels == 1 or len(rows) < FEWEST:
            return known
        places = np.arange(1, levels + 1) / (levels + 1)
        thresholds = np.quantile(rows, places, axis=0).astype(np.float32)
        spread = rows.std(axis=0) * np.sqrt(np.float32(rows.shape[1]))
        return Coder(known.dim, thresholds, known.gaps * spread)

    @property
    def bytes(self) -> int:
        """Width B of a code: a multiple of 8, and 64 for 768, 512, 256 or 128 components."""
        return (self.thresholds.size + 63) // 64 * 8

    def codes(self, vectors: Floats) -> Codes:
        """Return codes uint8 [n, B] of unit rows [n, D]; a row of NaN gives zeros."""
        codes = np.zeros((len(vectors), self.bytes), np.uint8)
        for first in range(0, len(vectors), ROWS_AT_A_TIME):
            block = slice(first, first + ROWS_AT_A_TIME)
            above = vectors[block, None, : self._components] > self.thresholds  # [n, levels, ...]
            bits = np.packbits(above.reshape(len(above), -1), axis=1)
            codes[block, : bits.shape[1]] = bits
        return codes

    def weights(self, queries: Floats) -> Floats:
        """Return [Q, 8 B]: what each bit of a code adds to the estimate of a dot product.

        The estimate for a row is `unpackbits(code) @ weights`, but for a constant of the query.
        """
        weights = np.zeros((len(queries), 8 * self.bytes), np.float32)
        worth = queries[:, None, : self._components] * self.gaps
        weights[:, : self.gaps.size] = worth.reshape(len(queries), -1)
        return weights

    @property
    def _components(self) -> int:
        return int(self.thresholds.shape[1])

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads, for the manifest: at most some 10 kB."""
        return {
            "kind": KIND,
            "dim": self.dim,
            "levels": len(self.thresholds),
            "thresholds": _text(self.thresholds),
            "gaps": _text(self.gaps),
        }

    @staticmethod
    def from_json(entries: Mapping[str, object]) -> Coder:
        """Return the coder that `to_json` described.

        Raises:
            UsageError: it is none that this version can read.
        """
        match entries:
            case {
                "kind": str(kind),
                "dim": int(dim),
                "levels": int(levels),
                "thresholds": str(thresholds),
                "gaps": str(gaps),
            } if kind == KIND:
                return _read(dim, levels, thresholds, gaps)
        raise UsageError("its codes are of a kind that this gemb does not know: build it anew")


def _text(numbers: Floats) -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _read(dim: int, levels: int, *texts: str) -> Coder:
    try:
        thresholds, gaps = (
            np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(levels, -1)
            for text in texts
        )
        if levels > 0 and 0 < thresholds.shape[1] <= dim and thresholds.shape == gaps.shape:
            return Coder(dim, thresholds, gaps)
    except ValueError:
        pass
    raise UsageError("its manifest describes no coder: it is damaged, build the index anew")


Distances = NDArray[np.uint16]

FAISS_PAYS = 30_000_000  # distances that numpy finds in the time that importing faiss takes
_LOW_BYTES = np.uint64(0x00FF00FF00FF00FF)
_ONES = np.uint64(0x0001000100010001)  # times four numbers of 16 bits: their sum in the highest
BLOCK_ROWS = 8192  # what is computed of them, 1 MB, stays in a core's cache
SUMMED_ROWS = 16 * BLOCK_ROWS  # in shorter steps the threads wait for Python's lock
SAMPLE = 1 << 16  # distances from which the greatest one of interest is guessed
GATHERED = 100_000  # codes of chosen rows that a core copies together for faiss at a time
QUERIES_AT_A_TIME = 256  # for faiss: bounds the memory for what is found


def nearest_codes(
    queries: Codes, codes: Codes, *, count: int, rows: Ints | None = None
) -> list[Ints]:
    """Return for each query the places of `count` codes at the least Hamming distance, ascending.

    faiss scans twice as fast as numpy's popcount, but takes 0.16 s to import, which is longer than
    numpy needs for one query among ten million rows.

    Args:
        queries: [Q, B], B a multiple of 8.
        codes: [N, B], rows in a row in memory.
        count: how many; all where there are fewer.
        rows: the only ones to look at, ascending; None: all. The places are then in `rows`.

    Which of several codes at the greatest distance are among them is not said.
    """
    assert codes.shape[1] == queries.shape[1], f"codes {codes.shape}, queries {queries.shape}"
    codes = np.asarray(codes)  # slices of a memmap cost five times those of an array
    number = len(codes) if rows is None else len(rows)
    if number <= count:
        return [np.arange(number)] * len(queries)
    if "faiss" not in sys.modules and len(queries) * number < FAISS_PAYS:
        return [by_numpy(query, codes, count, rows) for query in queries]
    starts = range(0, len(queries), QUERIES_AT_A_TIME)
    parts = (queries[first : first + QUERIES_AT_A_TIME] for first in starts)
    return [places for part in parts for places in by_faiss(part, codes, count, rows)]


class _Near(NamedTuple):
    """The nearest codes of a part."""

    places: Ints  # ascending
    distances: Distances


def by_numpy(query: Codes, codes: Codes, count: int, rows: Ints | None) -> Ints:
    """Return `count` places for one query [B]; memory: 3 bytes a row, and 4 MB a core."""
    number = len(codes) if rows is None else len(rows)
    # As many times as a block has rows: numpy pays 7 ns for each row that it repeats it for.
    words = np.tile(query.view(np.uint64), min(number, BLOCK_ROWS))
    share = -(-number // cores())

    def part(first: int) -> _Near:
        last = min(number, first + share)
        distances = np.empty(last - first, np.uint16)
        unlike = np.empty_like(words)
        counts = np.empty((min(share, SUMMED_ROWS), len(query) // 8), np.uint8)
        for begin in range(first, last, SUMMED_ROWS):
            end = min(last, begin + SUMMED_ROWS)
            for at in range(begin, end, BLOCK_ROWS):
                upto = min(end, at + BLOCK_ROWS)
                block = codes[at:upto] if rows is None else codes[rows[at:upto]]
                flat = block.view(np.uint64).reshape(-1)
                bits = np.bitwise_xor(flat, words[: len(flat)], out=unlike[: len(flat)])
                np.bitwise_count(bits, out=counts[at - begin : upto - begin].reshape(-1))
            distances[begin - first : end - first] = _row_sums(counts[: end - begin])
        near = _least(distances, count)
        return _Near(near + first, distances[near])

    parts = list(ahead(part, range(0, number, share)))
    places = np.concatenate([near.places for near in parts])
    return places[_least(np.concatenate([near.distances for near in parts]), count)]


def _least(distances: Distances, count: int) -> Ints:
    """Return the places of the `count` least, or all, ascending; of equal ones the first."""
    sample = distances[:: -(-len(distances) // SAMPLE)]
    # Twice as many as are wanted, and some: rarely fewer.
    rank = min(len(sample) - 1, 2 * count * len(sample) // len(distances) + 16)
    near = np.flatnonzero(distances <= np.partition(sample, rank)[rank])
    if len(near) < count:
        near = np.arange(len(distances))
    order = np.argsort(distances[near], kind="stable")  # of 16 bits: a radix sort
    return np.sort(near[order[:count]])


def _row_sums(counts: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the sums of rows [n, W] of numbers up to 64, which are written over.

    numpy is slow at sums of short rows.
    """
    if counts.shape[1] != 8:  # of the usual 512 bits
        sums: NDArray[Any] = counts.sum(axis=1, dtype=np.uint16)
        return sums
    eight = counts.view(np.uint64)[:, 0]
    odd = eight >> np.uint64(8)
    odd &= _LOW_BYTES
    eight &= _LOW_BYTES
    eight += odd  # four numbers in 16 bits each
    eight *= _ONES
    eight >>= np.uint64(48)
    return eight


def by_faiss(queries: Codes, codes: Codes, count: int, rows: Ints | None) -> list[Ints]:
    """Return `count` places for each query [Q, B]: each core scans its share of the rows.

    Memory: with `rows`, their codes, 100,000 at a time for each core; and for each share of the
    rows 12 bytes for each place of each query.
    """
    import faiss

    queries = np.ascontiguousarray(queries)
    # Counting is twice as fast as a heap of thousands, but takes 20 MB a query for them.
    variant = "mc" if len(queries) == 1 else "hc"
    number = len(codes) if rows is None else len(rows)
    share = -(-number // cores())
    if rows is not None:
        share = min(share, GATHERED)

    def part(first: int) -> tuple[NDArray[np.int32], Ints]:
        faiss.omp_set_num_threads(1)  # of this thread
        part_of_rows = slice(first, first + share)
        looked_at = codes[part_of_rows] if rows is None else codes[rows[part_of_rows]]
        distances, places = faiss.knn_hamming(
            queries, looked_at, min(count, len(looked_at)), variant
        )
        return distances, places + first

    parts = list(ahead(part, range(0, number, share)))
    distances = np.concatenate([near[0] for near in parts], axis=1)
    places = np.concatenate([near[1] for near in parts], axis=1)
    least = np.argpartition(distances, count - 1, axis=1)[:, :count]
    return list(np.sort(np.take_along_axis(places, least, 1), axis=1))
