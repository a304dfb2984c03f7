"""Token ids to unit vectors: packed into small batches, on several contexts of one loaded model.

In a packed batch attention is computed over the other texts, too, and then masked: about 100 tokens
a batch beat 2048 for short texts. One thread each on several contexts beats several threads on one,
which wait for each other after every operation.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from gemb.backend import Runtime
from gemb.errors import GembError
from gemb.io.machine import cores
from gemb.models.gguf import GgufModel
from gemb.models.token_probe import check_tokenizing
from gemb_llamacpp.context import MOST_SEQUENCES, Context
from gemb_llamacpp.native import llama, uses_gpu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds


# Measured with texts of 22 tokens: 64 is 7 % faster than 128 with 4 bits, 4 % slower with bf16.
TOKENS_A_BATCH = 128
TOKENS_A_BATCH_QUANTIZED = 64
TOKENS_A_BATCH_GPU = 2048
_SMALLEST = 32  # tokens of a context
_LONG = 128  # tokens of a text that is worth several threads


class LlamaCppEncoder:
    """An open GGUF file; see `gemb.backend.Encoder`."""

    def __init__(self, model: GgufModel, pointer: int, runtime: Runtime) -> None:
        """Keep the model at `pointer`, which `native.open_model` gave, and free it in the end."""
        library = llama()
        self.profile = model.profile()
        self._model = model
        self.pointer = pointer
        self._vocabulary = library.llama_model_get_vocab(pointer)
        # Users of fp32 weights prefer their exactness to a tenth of the time.
        self._flash = self.profile.dtype != "f32"
        on_gpu = uses_gpu(runtime.device)
        self._threads = runtime.threads or cores()
        self._tokens_a_batch = TOKENS_A_BATCH
        if self.profile.dtype.startswith("q"):
            self._tokens_a_batch = TOKENS_A_BATCH_QUANTIZED
        if on_gpu:
            self._tokens_a_batch = TOKENS_A_BATCH_GPU
        self._contexts: list[Context | None] = [None] * (1 if on_gpu else self._threads)
        weakref.finalize(self, _free, self._contexts, pointer).atexit = False
        self._pool = ThreadPoolExecutor(len(self._contexts), thread_name_prefix="gemb-llamacpp")
        self._growing = threading.Lock()
        self._ids = np.empty(4096, np.int32)
        if model.probe is not None:
            check_tokenizing(model.header.path, model.probe, self.tokenize, self._token)

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], BOS and EOS included; nothing is cut.

        A lone surrogate, which UTF-8 cannot hold, raises UnicodeEncodeError.
        """
        return [self._tokenized(text.encode()) for text in texts]

    def _token(self, number: int) -> str:
        text: bytes = llama().llama_vocab_get_text(self._vocabulary, number)
        return text.decode("utf-8", "replace")

    def _tokenized(self, text: bytes) -> TokenIds:
        library = llama()
        if len(self._ids) < len(text) + 2:  # a token is a byte at least; BOS and EOS
            self._ids = np.empty(2 * len(text) + 2, np.int32)
        ids = self._ids
        count = library.llama_tokenize(
            self._vocabulary,
            text,
            len(text),
            ctypes.cast(ids.ctypes.data, ctypes.POINTER(ctypes.c_int32)),
            len(ids),
            True,  # BOS and EOS
            True,  # a special token's name in a text is that token, as `tokenizers` has it
        )
        if count < 0:
            raise GembError(f"llama.cpp cannot tokenize a text of {len(text)} bytes: {count}")
        return ids[:count].copy()

    def encode(self, batch: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [len(batch), dim], in the order of the batch.

        Any number of sequences, each of 1 to `profile.max_tokens` ids, in any order of length.
        A row whose numbers are not finite is returned as NaN; it spoils no other row.

        Raises:
            GembError: there is not enough memory for the longest text.
        """
        vectors = np.empty((len(batch), self.profile.dim), np.float32)
        lengths = np.array([len(ids) for ids in batch], np.int64)
        longest = int(lengths.max(initial=0))
        assert longest <= self.profile.max_tokens, "a text is longer than the model's context"
        work = list(groups(lengths, self._tokens_a_batch, len(self._contexts)))
        queue = iter(work)
        lock = threading.Lock()
        workers = min(len(self._contexts), len(work))
        # A long text that is alone gets all threads; for a short one their waiting costs more.
        threads = self._threads if workers == 1 and longest >= _LONG else 1

        def drain(worker: int) -> None:
            while True:
                with lock:
                    rows = next(queue, None)
                if rows is None:
                    return
                vectors[rows] = self._isolated(worker, [batch[row] for row in rows], threads)

        if workers == 1:
            drain(0)
        else:
            running = [self._pool.submit(drain, worker) for worker in range(workers)]
            wait(running)  # where one fails, the others' contexts must be free before a new try
            for future in running:
                future.result()
        return unit(vectors)

    def _isolated(self, worker: int, texts: list[TokenIds], threads: int) -> NDArray[np.float32]:
        """Return the vectors; where one is not finite, each is computed again, alone.

        In a packed batch another text counts zero times, and zero times NaN is NaN.
        """
        vectors = self._run(worker, texts, threads)
        if len(texts) > 1 and not np.isfinite(vectors).all():
            vectors = np.concatenate([self._run(worker, [ids], threads) for ids in texts])
        return vectors

    def _run(self, worker: int, texts: list[TokenIds], threads: int) -> NDArray[np.float32]:
        total = sum(map(len, texts))
        context = self._contexts[worker]
        if context is None or context.capacity < total or context.grows_for(total):
            # One at a time: growing takes a megabyte a token until it is given back.
            with self._growing:
                if context is None or context.capacity < total:
                    context = self._contexts[worker] = None  # freed before the next one is made
                    capacity = max(_SMALLEST, 1 << (total - 1).bit_length())
                    context = self._contexts[worker] = Context(
                        self.pointer,
                        capacity=capacity,
                        dim=self.profile.dim,
                        vocabulary=self._model.vocabulary,
                        flash=self._flash,
                    )
                if context.grows_for(total):
                    context.set_threads(threads)
                    return context.run(texts)
        context.set_threads(threads)
        return context.run(texts)


def _free(contexts: list[Context | None], pointer: int) -> None:
    contexts.clear()  # a context refers to its model
    llama().llama_model_free(pointer)


def groups(lengths: NDArray[np.int64], budget: int, contexts: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each batch: longest first, at most `budget` tokens, or one row.

    Towards the end batches become smaller, so that the contexts finish together.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens_left = int(lengths.sum())
    start = 0
    while start < len(order):
        most = min(budget, max(_SMALLEST, -(-tokens_left // contexts)))
        totals = np.cumsum(lengths[order[start : start + MOST_SEQUENCES]])
        count = max(1, int(np.searchsorted(totals, most, side="right")))
        yield order[start : start + count]
        tokens_left -= int(totals[count - 1])
        start += count


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each row with length one, a row that is not finite, or all zeros, as NaN."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        rows: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    return rows
