"""Token ids to unit vectors: texts of one length in a pass, each pass on one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from gemb.io.machine import cores
from gemb.models.profile import ModelProfile

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds
    from gemb.models.quick_tokenizer import LazyTokenizer
    from gemb_onnx.numbers import Numbers

# Tokens of a pass: from 128 to 2,048 the speed differs by less than the runs do (tests/bench,
# `bench_onnx.py --passes`), and small passes share the work among the threads more evenly.
TOKENS_A_PASS = 512


class OnnxEncoder:
    """An open model; see `gemb.backend.Encoder`."""

    def __init__(
        self,
        numbers: Numbers,
        session: onnxruntime.InferenceSession,
        tokenizer: LazyTokenizer,
        profile: ModelProfile,
        threads: int,
    ) -> None:
        """Take the parts of an open model.

        Args:
            numbers: whose token table is read.
            session: of the graph, with one thread a run.
            tokenizer: of the model.
            profile: of the model.
            threads: runs at once; 0: one for each core.
        """
        self.profile = profile
        self._numbers, self._session, self._tokenizer = numbers, session, tokenizer
        self._pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="gemb-onnx")

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], BOS and EOS included; nothing is cut."""
        return self._tokenizer.tokenize(texts)

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences, each of 1 to `profile.max_tokens` ids, in any order of length.
        A row whose numbers are not finite is returned as NaN; it spoils no other row.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)

        def run(rows: NDArray[np.int64]) -> None:
            ids = np.stack([batch[row] for row in rows])
            vectors[rows] = raw_vectors(self._numbers, self._session, ids)

        for _ in self._pool.map(run, passes([len(ids) for ids in batch])):
            pass
        with np.errstate(all="ignore"):
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown()


def raw_vectors(
    numbers: Numbers, session: onnxruntime.InferenceSession, ids: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return the vectors before they are normalized, float32 [B, dim], of ids [B, L]."""
    result: NDArray[np.float32] = session.run(None, first_inputs(numbers, ids))[0]
    return result


def first_inputs(numbers: Numbers, ids: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
    """Return what the first layer takes, for ids [B, L]: states [B, L, D] and mask [L, L]."""
    rows = numbers.token_rows(ids.reshape(-1)).reshape(*ids.shape, -1)
    states = rows * np.float32(numbers.shape.hidden**0.5)
    return {"states": states, "mask": window_mask(ids.shape[1], numbers.shape.window)}


def passes(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each pass: all of one length, the longest first."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    ends = np.flatnonzero(np.diff(np.asarray(lengths, np.int64)[order])) + 1
    for rows in np.split(order, ends):
        if len(rows):
            count = -(-len(rows) * lengths[rows[0]] // TOKENS_A_PASS)
            yield from np.array_split(rows, min(count, len(rows)))


def window_mask(length: int, window: int) -> NDArray[np.float32]:
    """Return 0 where a sliding layer's token sees another, else -inf, float32 [length, length]."""
    places = np.arange(length)
    is_far = np.abs(places[:, None] - places) > window // 2
    return np.where(is_far, np.float32(-np.inf), np.float32(0))
