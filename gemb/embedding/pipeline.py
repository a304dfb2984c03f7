"""Texts to vectors: in order, in growing windows, repeats computed once, errors kept to their row.

While a second thread computes a window, the next one is read: Ctrl-C takes effect at once, and a
fast device does not wait for input. `Embedder` computes a window, `embed` a stream of records.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from gemb.arrays import Vectors
from gemb.embedding.vectors import VectorSpec, are_units
from gemb.errors import GembError, UsageError
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models.profile import cut_ids
from gemb.models.prompts import PLAIN, Prompt, PromptedTexts, for_task
from gemb.texts.records import Record, RowError

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder


T = TypeVar("T")
R = TypeVar("R")

# A window ends when its texts have this many bytes (four make a token, roughly) or rows. The first
# is small, so that the first vector comes soon; each next one is twice as big, for throughput.
FIRST_BYTES = 1 << 10
LAST_BYTES = 1 << 15
WINDOW_ROWS = 512
WINDOW_S = 1.0  # a live window waits no longer for its rows
STEP_S = 0.4  # about so long a window takes where the time is bounded
LOOKED_AT = 1 << 19  # characters: of a longer text that is to be cut, only a beginning is tokenized
RECENT = 8192  # texts whose vectors are kept for repeats


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One row of the output; its vector is NaN where it has an error."""

    record: Record
    tokens: int = 0  # before any cut; of a text over `LOOKED_AT`, of the beginning looked at
    is_cut: bool = False
    error: RowError | None = None


@dataclass(frozen=True)
class Window:
    """Rows that were computed together."""

    rows: list[OutputRow]
    vectors: Vectors  # [len(rows), dim]

    @property
    def tokens(self) -> int:
        """Of all rows, before any cut."""
        return sum(row.tokens for row in self.rows)

    @property
    def size(self) -> int:
        """Bytes of the input that the rows took."""
        return sum(row.record.size for row in self.rows)


@dataclass(frozen=True)
class ComputedVectors:
    """The results of an encoder for a batch."""

    vectors: Vectors  # [n, dim]; NaN where it failed
    failed: dict[int, str]  # row of the batch -> message


class Compute(Protocol):
    """Computes the vectors of a batch: an encoder, or a journal in front of one."""

    def __call__(self, batch: Sequence[TokenIds]) -> ComputedVectors:
        """Return the vectors of these token sequences, cut to the width of the spec."""


def computing(encoder: Encoder, dim: int) -> Compute:
    """Return the encoder as `Compute`, with vectors of `dim` components, of length one again.

    A batch that raises is halved until the row at fault is alone; the others have their vectors.
    """

    def compute(batch: Sequence[TokenIds]) -> ComputedVectors:
        vectors = np.full((len(batch), encoder.profile.dim), np.nan, np.float32)
        failed = {}
        for row, result in enumerate(by_halves(encoder.encode, batch)):
            if isinstance(result, RowError):
                failed[row] = result.message
            else:
                vectors[row] = result
        return ComputedVectors(shortened(vectors, dim), failed)

    return compute


def shortened(vectors: Vectors, dim: int) -> Vectors:
    """Return the first `dim` components, of length one again; [n, dim]."""
    if vectors.shape[1] == dim:
        return vectors
    cut = vectors[:, :dim]
    with np.errstate(invalid="ignore", divide="ignore"):
        units: Vectors = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return units


def by_halves(work: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R | RowError]:
    """Return what `work` makes of each item, an error in the place of each that makes it raise.

    Raises:
        GembError: every one of several items fails, so that the items cannot be the cause.
    """
    errors: list[Exception] = []

    def half(part: Sequence[T]) -> list[R | RowError]:
        try:
            return list(work(part))
        except Exception as error:  # a native library may raise anything
            if len(part) == 1:
                errors.append(error)
                kind = "" if isinstance(error, GembError) else f"{type(error).__name__}: "
                return [RowError("failed", f"{kind}{error}".replace("\n", " "))]
        middle = len(part) // 2
        return half(part[:middle]) + half(part[middle:])

    results = half(items) if items else []
    if len(errors) == len(items) > 1:
        error = errors[0]
        raise GembError(f"the backend fails on every text: {type(error).__name__}: {error}")
    return results


class Embedder:
    """An open model with its prompt and width: computes windows, and remembers recent texts."""

    def __init__(
        self,
        encoder: Encoder,
        spec: VectorSpec,
        *,
        on_long: str = "truncate",
        passes_over: bool = False,
    ) -> None:
        """Take an open model, which must be the one of the spec.

        Args:
            encoder: the open model.
            spec: of the vectors.
            on_long: what becomes of a text of more than `spec.max_tokens`: truncate, error, skip.
            passes_over: where the model fails on all texts of a window, these rows fail alone;
                otherwise the window raises.
        """
        self._passes_over = passes_over
        self.spec = spec
        self.profile = encoder.profile
        self.on_long = on_long
        self.compute = computing(encoder, spec.dim)  # a journal may stand in front of it
        self._prompt = Prompt(spec.prompt)
        self._prompted: PromptedTexts | None = None  # where there is a prompt, till a note is made
        if spec.prompt != PLAIN:
            self._prompted = PromptedTexts.of(encoder.profile.prompts)
        self._tokenize = encoder.tokenize
        self._recent: OrderedDict[bytes, Vectors] = OrderedDict()

    @staticmethod
    def of(
        encoder: Encoder,
        prompt: Prompt | str,
        *,
        dim: int | None = None,
        dtype: str = "f32",
        max_tokens: int | None = None,
        on_long: str = "truncate",
        has_titles: bool = False,
    ) -> Embedder:
        """Return the embedder of an open model for a task.

        Args:
            encoder: the open model.
            prompt: around each text; or the name of a task, for the model's own prompt.
            dim: width of the vectors; None: the model's.
            dtype: in which the vectors will be stored, one of DTYPES.
            max_tokens: of a text with its prompt; None: as many as the model takes.
            on_long: what becomes of a longer text: truncate, error, skip.
            has_titles: the user named a field of titles.

        Raises:
            UsageError: the model was not trained for this width, there is no such task, or the
                prompt has no place for a title.
        """
        profile = encoder.profile
        if isinstance(prompt, str):
            prompt = for_task(prompt, profile.prompts)
        if has_titles and not prompt.takes_title:
            raise UsageError(
                f"--title-field: the prompt {prompt.template!r} has no place for a title; "
                "--task document has one, and so has a --prompt with {title}"
            )
        spec = VectorSpec.of(profile, prompt, dim=dim, dtype=dtype, max_tokens=max_tokens)
        return Embedder(encoder, spec, on_long=on_long)

    def window(self, records: Sequence[Record]) -> Window:
        """Return the rows of these records, with their vectors.

        Raises:
            GembError: the model fails on all of several texts, and none are to be passed over.
        """
        try:
            return self._window(records)
        except GembError as error:
            if not self._passes_over:
                raise
            failed = RowError("failed", str(error))
            rows = [OutputRow(record, error=record.error or failed) for record in records]
            return Window(rows, np.full((len(rows), self.spec.dim), np.nan, np.float32))

    def _window(self, records: Sequence[Record]) -> Window:
        vectors = np.full((len(records), self.spec.dim), np.nan, np.float32)
        rows = [OutputRow(record, error=record.error) for record in records]
        keys: dict[int, bytes] = {}  # row -> digest of its ids
        fresh: dict[bytes, TokenIds] = {}  # what must be computed
        for index, ids in self._tokenized(rows).items():
            if rows[index].error:
                continue
            key = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
            keys[index] = key
            if key in self._recent:
                self._recent.move_to_end(key)
            else:
                fresh[key] = ids
        known, failed = self._known(fresh)
        for index, key in keys.items():
            vectors[index] = known[key] if key in known else self._recent[key]
        self._remember(known)
        self._mark_failed(rows, vectors, keys, failed)
        return Window(rows, vectors)

    def _tokenized(self, rows: list[OutputRow]) -> dict[int, TokenIds]:
        """Return each good row's ids, cut where too long; put what went wrong into `rows`."""
        limit = self.spec.max_tokens
        indices = [index for index, row in enumerate(rows) if row.error is None]
        if self._prompted:
            self._note_prompted(self._prompted, [rows[index].record for index in indices])
        texts = [self._prompt.render(rows[i].record.text, rows[i].record.title) for i in indices]
        cut: dict[int, TokenIds] = {}
        for index, ids in zip(indices, self._token_ids(texts), strict=True):
            record = rows[index].record
            if isinstance(ids, RowError):
                rows[index] = OutputRow(record, error=ids)
                continue
            count = len(ids)
            error = None
            if count > limit:
                if self.on_long == "truncate":
                    ids = cut_ids(ids, limit, self.profile.closing_tokens)
                else:
                    message = f"{count} tokens; the model takes {limit}"
                    error = RowError("too_long", message)
            rows[index] = OutputRow(record, count, error is None and count > limit, error)
            cut[index] = ids
        return cut

    def _note_prompted(self, prompted: PromptedTexts, records: Sequence[Record]) -> None:
        """Say once that a text begins with a prompt already."""
        for record in records:
            if begin := prompted.prompt_of(record.text):
                note(
                    f"{visible(record.place)}: the text begins with a prompt, "
                    f"'{visible(begin, 60)}', and the prompt of the task is put before it; "
                    "--task none takes texts as they are"
                )
                self._prompted = None
                return

    def _token_ids(self, texts: Sequence[str]) -> list[TokenIds | RowError]:
        """Return the ids of each text; of a far too long one that is to be cut, of its beginning.

        A merge of tokens looks at its neighbours: where the beginning has twice the tokens needed,
        the first half of them is that of the whole text.
        """
        if self.on_long != "truncate":
            return by_halves(self._tokenize, texts)
        token_ids = by_halves(self._tokenize, [text[:LOOKED_AT] for text in texts])
        for index, text in enumerate(texts):
            size = LOOKED_AT
            while size < len(text):
                ids = token_ids[index]
                if isinstance(ids, RowError) or len(ids) >= 2 * self.spec.max_tokens:
                    break
                size *= 2
                token_ids[index] = by_halves(self._tokenize, [text[:size]])[0]
        return token_ids

    def _known(self, fresh: dict[bytes, TokenIds]) -> tuple[dict[bytes, Vectors], dict[bytes, str]]:
        """Compute what is new; return vectors and messages of failure by digest."""
        if not fresh:
            return {}, {}
        computed = self.compute(list(fresh.values()))
        keys = list(fresh)
        failed = {keys[row]: message for row, message in computed.failed.items()}
        return dict(zip(keys, computed.vectors, strict=True)), failed

    def _remember(self, known: dict[bytes, Vectors]) -> None:
        # A copy: a view would hold its whole window in memory.
        self._recent.update((key, vector.copy()) for key, vector in known.items())
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    @staticmethod
    def _mark_failed(
        rows: list[OutputRow], vectors: Vectors, keys: dict[int, bytes], failed: dict[bytes, str]
    ) -> None:
        for index in np.flatnonzero(~are_units(vectors, "f32", vectors.shape[1])).tolist():
            if index in keys:
                message = failed.get(keys[index]) or _wrong_length(vectors[index])
                error = RowError("failed", message) if message else NOT_FINITE
                rows[index] = OutputRow(rows[index].record, rows[index].tokens, error=error)
            vectors[index] = np.nan


def _wrong_length(vector: Vectors) -> str:
    """Return the message about a vector of finite numbers; empty for others."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return f"the model gave a vector of length {length:.3g}, not 1" if length < np.inf else ""


NOT_FINITE = RowError("not_finite", "the model gave numbers that are not finite")


def windows(
    records: Iterable[Record | None], spec: VectorSpec, *, live: bool
) -> Iterator[list[Record]]:
    """Yield records by the window, and an empty list where the input idles.

    Without `live` the windows depend on the records alone, so that a resumed run repeats them.
    """
    limit = FIRST_BYTES
    window: list[Record] = []
    size = 0
    began = 0.0
    for record in records:
        if record is None:
            if window:
                yield window
            yield []
            window, size, limit = [], 0, FIRST_BYTES
            continue
        if live and not window:
            began = time.monotonic()
        window.append(record)
        text = "" if record.error else record.text  # that of an error may not be UTF-8
        length = len(text) if text.isascii() else len(text.encode())
        size += min(length, 4 * spec.max_tokens) + len(spec.prompt)
        is_late = live and time.monotonic() - began > WINDOW_S
        if size >= limit or len(window) == WINDOW_ROWS or is_late:
            yield window
            window, size, limit = [], 0, min(2 * limit, LAST_BYTES)
    if window:
        yield window


def embed(
    records: Iterable[Record | None], embedder: Embedder, *, live: bool
) -> Generator[Window, None, None]:
    """Yield the windows of rows, in the order of the records.

    Args:
        records: None where the input idles.
        embedder: computes the windows, in one other thread.
        live: whether windows may depend on the clock.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-embed")
    pending: Future[Window] | None = None
    try:
        for window in windows(records, embedder.spec, live=live):
            following = pool.submit(embedder.window, window) if window else None
            if pending:
                yield pending.result()
            pending = following
        if pending:
            yield pending.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def embed_for(
    records: Iterable[Record], embedder: Embedder, seconds: float
) -> Generator[Window, None, None]:
    """Yield windows of rows, in the order of the records, for so many seconds.

    A window takes about `STEP_S`, so that the time is kept, and what was computed is seen soon. No
    window is computed ahead: who stops has the encoder for himself.

    Args:
        records: the most important ones first.
        embedder: computes the windows, in one other thread.
        seconds: no window begins that would end later, by half of its time; the first one does.
    """
    end = time.monotonic() + seconds
    size, took = FIRST_BYTES, 0.0
    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-embed")
    left = iter(records)
    try:
        while time.monotonic() + took / 2 < end and (window := _first_bytes(left, size)):
            began = time.monotonic()
            yield pool.submit(embedder.window, window).result()
            took = time.monotonic() - began
            growth = min(2.0, STEP_S / max(took, 1e-9))
            size = int(min(LAST_BYTES, max(FIRST_BYTES, size * growth)))
            took *= growth
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first_bytes(records: Iterator[Record], size: int) -> list[Record]:
    """Return the next records, of `size` characters or a little more."""
    window: list[Record] = []
    for record in records:
        window.append(record)
        size -= len(record.text)
        if size <= 0 or len(window) == WINDOW_ROWS:
            break
    return window
