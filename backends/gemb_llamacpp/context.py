"""One llama.cpp context: sequences in, pooled vectors out, through numpy's views of its arrays."""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemb.errors import GembError
from gemb_llamacpp.native import DONTNEED, last_errors, llama

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ


class Context:
    """Runs up to `capacity` tokens at once. Used by one thread at a time.

    With `flash` keys and values are rounded to fp16, and attention is faster.
    """

    def __init__(
        self,
        model: int,
        *,
        capacity: int,
        dim: int,
        vocabulary: int,
        flash: bool,
        watch: object = None,  # a `ggml_backend_sched_eval_callback`, called for each operation
    ) -> None:
        assert capacity.bit_count() == 1, (
            "llama.cpp's reserve requires tokens divisible by sequences"
        )
        library = llama()
        self.capacity = capacity
        self.most_sequences = min(capacity, MOST_SEQUENCES)
        self._dim = dim
        self._vocabulary = vocabulary
        self._pointer = _new_context(model, capacity, self.most_sequences, flash, watch)
        self._watch = watch  # the library keeps a bare pointer to it
        # Not at the end of the process: another thread may be computing then.
        weakref.finalize(self, library.llama_free, self._pointer).atexit = False
        self._tokens = np.empty(capacity, np.int32)
        self._positions = np.empty(capacity, np.int32)
        self._sequences = np.empty(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)  # sequences that a token is in
        self._flags = np.ones(capacity, np.int8)
        step = self._sequences.itemsize
        self._pointers = self._sequences.ctypes.data + step * np.arange(capacity, dtype=np.uintp)
        self._batch = library.llama_batch(
            n_tokens=0,
            token=_as(self._tokens, ctypes.c_int32),
            pos=_as(self._positions, ctypes.c_int32),
            n_seq_id=_as(self._counts, ctypes.c_int32),
            seq_id=_as(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_as(self._flags, ctypes.c_int8),
        )
        self._reserved = 0
        self._release_logits(self.most_sequences)

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        llama().llama_set_n_threads(self._pointer, threads, threads)

    def grows_for(self, tokens: int) -> bool:
        """Return whether so many tokens make llama.cpp take a megabyte more for each, at first."""
        return tokens > self._reserved

    def run(self, texts: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Return the pooled vectors, float32 [len(texts), dim], not yet of length one.

        Raises:
            GembError: llama.cpp fails: no memory.
        """
        library = llama()
        lengths = np.array([len(ids) for ids in texts])
        total = int(lengths.sum())
        assert total <= self.capacity, "more tokens than the context was made for"
        assert len(texts) <= self.most_sequences, "more sequences than the context was made for"
        starts = np.cumsum(lengths) - lengths
        np.concatenate(texts, out=self._tokens[:total])
        self._sequences[:total] = np.repeat(np.arange(len(texts)), lengths)
        self._positions[:total] = np.arange(total) - np.repeat(starts, lengths)
        self._batch.n_tokens = total
        status = library.llama_encode(self._pointer, self._batch)
        if status:
            raise GembError(f"llama.cpp fails with {status}: {last_errors() or 'no reason given'}")
        vectors = np.empty((len(texts), self._dim), np.float32)
        for row in range(len(texts)):
            address = library.llama_get_embeddings_seq(self._pointer, row)
            vectors[row] = np.ctypeslib.as_array(address, (self._dim,))
        if total > self._reserved:
            self._release_logits(total)
        return vectors

    def _release_logits(self, tokens: int) -> None:
        """Give back the memory of logits that an embedding model never writes.

        llama.cpp keeps, and fills with zeros, one float for each token of the vocabulary and each
        token of the batch: a megabyte a token (`llama_context::output_reserve`). Untouched pages of
        zeros are what it has again after this; only Linux promises that.
        """
        self._reserved = tokens
        if sys.platform != "linux":
            return
        logits = llama().llama_get_logits(self._pointer)
        if not logits:
            return
        start = ctypes.addressof(logits.contents)
        end = start + tokens * self._vocabulary * 4
        page = mmap.PAGESIZE
        start, end = -(-start // page) * page, end // page * page
        if end > start:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED
            )


def _new_context(model: int, capacity: int, sequences: int, flash: bool, watch: object) -> int:
    library = llama()
    parameters = library.llama_context_default_params()
    settings = {
        "n_ctx": capacity,
        "n_batch": capacity,
        "n_ubatch": capacity,  # attention reads both ways: a text is computed in one piece
        "n_seq_max": sequences,
        "n_threads": 1,
        "n_threads_batch": 1,
        "embeddings": True,  # pooled as the file says
        "flash_attn_type": -1 if flash else 0,  # LLAMA_FLASH_ATTN_TYPE_AUTO, _DISABLED
        "no_perf": True,
        "kv_unified": True,  # n_ctx is of all sequences together
    }
    for name, value in settings.items():
        assert hasattr(parameters, name), f"this llama-cpp-python has no {name}"
        setattr(parameters, name, value)
    if watch is not None:
        parameters.cb_eval = watch
    last_errors()
    pointer = library.llama_init_from_model(model, parameters)
    if not pointer:
        reason = last_errors() or "no reason given"
        raise GembError(f"llama.cpp makes no context of {capacity} tokens: {reason}")
    return int(pointer)


def _as(array: NDArray[Any], kind: type) -> object:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
