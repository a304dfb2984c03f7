"""One encoder for several threads: each has its turn, in the order in which they came."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemb.arrays import Vectors
from gemb.errors import UsageError

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder
    from gemb.models.profile import ModelProfile


class Turns:
    """A lock that is handed to the one who has waited longest.

    A plain lock goes to whoever asks first when it is free: a thread that computes batch after
    batch would have it again before another has woken up.
    """

    def __init__(self) -> None:
        """Nobody has it."""
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C: the turn goes to the next one, now or when it comes
            with self._lock:
                has_turn = turn not in self._waiting
                if not has_turn:
                    self._waiting.remove(turn)
            if has_turn:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


class SharedEncoder:
    """An encoder that several threads may call: it serves one of them at a time."""

    def __init__(self, encoder: Encoder) -> None:
        """Take an open encoder."""
        self.profile: ModelProfile = encoder.profile
        self._encoder: Encoder | None = encoder
        self._turn = Turns()
        self._process = os.getpid()

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's token ids, as `Encoder.tokenize` does."""
        with self._turn:
            return self.opened().tokenize(texts)

    def encode(self, batch: Sequence[TokenIds]) -> Vectors:
        """Return unit vectors, as `Encoder.encode` does."""
        with self._turn:
            return self.opened().encode(batch)

    def opened(self) -> Encoder:
        """Return the encoder.

        Raises:
            UsageError: it is closed, or this process is a fork of the one that opened it, so that
                its threads are not here.
        """
        if self._encoder is None:
            raise UsageError("the model is closed; open it again: Model(...)")
        if self._process != os.getpid():
            raise UsageError(
                "the model was opened before this process was forked, and its threads are not "
                "here; start workers with 'spawn', or open a Model in each"
            )
        return self._encoder

    def close(self) -> None:
        """Let go of the encoder, once no thread is at work with it. It can be called again."""
        if self._process != os.getpid():  # who has the lock may not be in this fork
            self._encoder = None
            return
        with self._turn:
            encoder, self._encoder = self._encoder, None
        if encoder is not None:
            getattr(encoder, "close", lambda: None)()
