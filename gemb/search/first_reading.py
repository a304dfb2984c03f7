"""Reading passages for the first ranking: their words and drafts, made in threads of their own.

It begins while the files are still walked and split. Of Python's threads one runs at a time; these
two leave its lock for whole chunks of passages, while SQLite and the tokenizer work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from gemb.index.words import add_words
from gemb.search.kept_drafts import Drafts
from gemb.search.kept_words import KnownWords, word_keys_in

CHUNK = 256  # passages that a thread is given
AHEAD = 1 << 23  # characters that wait for a thread


class _Chunk:
    """Passages that were read."""

    def __init__(self) -> None:
        self.word_keys: list[bytes] = []
        self.keys: list[bytes] = []
        self.heads: list[str] = []  # folder and title
        self.passages: list[tuple[str | None, str]] = []  # title and text
        self.size = 0  # characters


class _Queue:
    """A thread, and the chunks that wait for it."""

    def __init__(self, name: str) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._size = 0

    def put(self, work: Callable[[_Chunk], None], chunk: _Chunk) -> None:
        self._waiting.append((self.pool.submit(work, chunk), chunk.size))
        self._size += chunk.size
        self.wait(AHEAD)

    def wait(self, size: int = 0) -> None:
        """Wait until no more than so many characters wait."""
        while self._waiting and (self._size > size or not size):
            future, length = self._waiting.popleft()
            self._size -= length
            future.result()


class FirstReader:
    """Takes passages, from one thread at a time; a passage that is known costs little."""

    def __init__(
        self, open_words: Callable[[], KnownWords], open_drafts: Callable[[], Drafts | None]
    ) -> None:
        """Open nothing yet: both are opened when they are needed, in threads of their own.

        Args:
            open_words: returns the words that are kept.
            open_drafts: returns the drafts that are kept, which makes others; None: there is no
                draft model.
        """
        self._open_words, self._open_drafts = open_words, open_drafts
        self._words: KnownWords | None = None
        self._drafts: Drafts | None = None
        self._has_drafts = False  # they were opened, or there are none
        self._chunk = _Chunk()
        self._word_queue, self._draft_queue = _Queue("gemb-words"), _Queue("gemb-drafts")

    def take(
        self, folder: str, keys: Sequence[bytes], passages: Sequence[tuple[str | None, str]]
    ) -> None:
        """Take passages of one folder.

        Args:
            folder: as it was typed; empty for the rows of a stream.
            keys: of the passages in a cache of vectors.
            passages: titles and texts.
        """
        for start in range(0, len(keys), CHUNK):  # of a long file
            part = slice(start, start + CHUNK)
            chunk = self._chunk
            chunk.word_keys += word_keys_in(folder, keys[part])
            chunk.keys += keys[part]
            chunk.heads += [f"{folder} {title or ''}" for title, _ in passages[part]]
            chunk.passages += passages[part]
            chunk.size += sum(len(text) for _, text in passages[part])
            if len(chunk.keys) >= CHUNK:
                self._hand_over()

    def _hand_over(self) -> None:
        chunk, self._chunk = self._chunk, _Chunk()
        if chunk.keys:
            self._word_queue.put(self._add_words, chunk)
            self._draft_queue.put(self._make_drafts, chunk)

    def _add_words(self, chunk: _Chunk) -> None:
        words = self._opened_words()
        new = {
            key: (head, text)
            for key, head, (_, text) in zip(
                chunk.word_keys, chunk.heads, chunk.passages, strict=True
            )
            if not words.has(key)
        }
        if new:
            add_words(words.table, words.take(list(new)), list(new.values()))

    def _make_drafts(self, chunk: _Chunk) -> None:
        if drafts := self._opened_drafts():
            drafts.make(chunk.keys, chunk.passages)

    def _opened_words(self) -> KnownWords:
        if self._words is None:
            self._words = self._open_words()
        return self._words

    def _opened_drafts(self) -> Drafts | None:
        if not self._has_drafts:
            self._drafts = self._open_drafts()
            self._has_drafts = True
        return self._drafts

    def finish(self) -> None:
        """Wait until what was taken is done."""
        self._hand_over()
        self._word_queue.wait()
        self._draft_queue.wait()

    def words(self) -> KnownWords:
        """Return all the words, after `finish`."""
        return self._word_queue.pool.submit(self._opened_words).result()

    def drafts(self) -> Drafts | None:
        """Return all the drafts, after `finish`; None: there is no draft model."""
        return self._draft_queue.pool.submit(self._opened_drafts).result()

    def close(self) -> None:
        """End the threads; the drafts that were made are kept. A second time does nothing."""
        self._word_queue.pool.shutdown(wait=False, cancel_futures=True)
        self._draft_queue.pool.shutdown(cancel_futures=True)
        if self._drafts:
            self._drafts.save()
