"""A model in a Python program: opened by its reference, shared by threads, reopened by workers.

with Model("mini") as model:
    documents = model.encode_document(["Mars is red.", "Venus is hot."])
    cosines = model.similarity(model.encode_query("which planet is red?"), documents)

Vectors are those of `gemb embed`, bit by bit: the same pipeline makes them, in the same windows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.backend import PRECISIONS, Runtime
from gemb.embedding import DTYPES
from gemb.embedding.drafts import open_draft
from gemb.embedding.engine import open_engine
from gemb.embedding.pipeline import Embedder, OutputRow, Window, embed, windows
from gemb.embedding.shared import SharedEncoder
from gemb.embedding.vectors import packed, unpacked
from gemb.errors import SomeRowsFailed, UsageError
from gemb.io.notes import note
from gemb.models.prompts import custom, for_task
from gemb.models.references import DEFAULT, elsewhere, resolve
from gemb.texts.records import Fields, Record, from_fields, from_text

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.models.profile import ModelProfile

Texts = str | Iterable[str]
DType = Literal["f32", "f16", "int8", "ubinary"]
OnLong = Literal["truncate", "error", "skip"]
OnError = Literal["raise", "nan"]
ON_LONG: tuple[str, ...] = ("truncate", "error", "skip")
ON_ERROR: tuple[str, ...] = ("raise", "nan")
_FIELDS = Fields(text=("text",), title="title")


@dataclass(frozen=True)
class OpenModel:
    """An open encoder, and the name of the backend that runs it."""

    encoder: Encoder
    backend: str


def open_model(
    reference: str, backend: str, runtime: Runtime, *, download: bool = True
) -> OpenModel:
    """Open the model of a reference; one that is not here is downloaded only with `download`.

    Raises:
        UsageError: there is no such backend, or the files are no model.
        Missing: the model or a library is not installed.
    """
    path = resolve(reference, download=download)
    engine = open_engine(path, runtime, backend)
    if runtime.verbose:
        note(f"{reference} is run by {engine.name}")
    return OpenModel(engine.encoder, engine.backend.name)


class Model:
    """An open model. Threads may share it; pickled, it is its reference, and is opened again."""

    reference: str  # as it was given
    backend: str  # name of the backend that runs it
    encoder: SharedEncoder  # what the commands of gemb work with

    def __init__(
        self,
        reference: str | os.PathLike[str] = DEFAULT,
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int = 0,
        precision: str = "auto",
        download: bool = True,
    ) -> None:
        """Open a model.

        Args:
            reference: mini, embeddinggemma-300m[:q4_0|q8_0|bf16], a folder, a .gguf file, or
                org/repo[:file]; what stands after `-m`.
            backend: what runs it: auto, or a name that `gemb doctor` lists.
            device: auto, cpu, cuda, cuda:1.
            threads: of the CPU; 0: one for each core.
            precision: of the arithmetic, where the backend has a choice: auto, fp32, bf16, int8.
            download: whether a model of the hub that is not here is fetched.

        Raises:
            UsageError: there is no such backend or precision, or the files are no model.
            Missing: the model or a library is not here.
        """
        _check_choice("precision", precision, PRECISIONS)
        self.reference = os.fspath(reference)
        self._runtime = Runtime(device=device, threads=threads, precision=precision)
        self._backend = backend
        self._download = download
        model = open_model(self.reference, backend, self._runtime, download=download)
        self.backend = model.backend
        self.encoder = SharedEncoder(model.encoder)
        self._draft: Encoder | None = None
        self._has_draft = False  # it was opened, or there is none
        self._opening = threading.Lock()

    @property
    def profile(self) -> ModelProfile:
        """What a caller must know of the model: widths, context, prompts, fingerprint."""
        return self.encoder.profile

    def draft(self) -> Encoder | None:
        """Return the open draft of this model, as `open_draft`; it is opened once, and kept."""
        with self._opening:
            if not self._has_draft:
                self._draft = open_draft(self.profile.fingerprint)
                self._has_draft = True
            return self._draft

    @overload
    def encode(
        self,
        texts: Texts,
        task: str = "document",
        *,
        titles: Iterable[str | None] | None = None,
        dim: int | None = None,
        dtype: Literal["f32"] = "f32",
        on_long: OnLong = "truncate",
        on_error: OnError = "raise",
        prompt: str | None = None,
    ) -> NDArray[np.float32]: ...

    @overload
    def encode(
        self,
        texts: Texts,
        task: str = "document",
        *,
        titles: Iterable[str | None] | None = None,
        dim: int | None = None,
        dtype: DType,
        on_long: OnLong = "truncate",
        on_error: OnError = "raise",
        prompt: str | None = None,
    ) -> NDArray[Any]: ...

    def encode(
        self,
        texts: Texts,
        task: str = "document",
        *,
        titles: Iterable[str | None] | None = None,
        dim: int | None = None,
        dtype: DType = "f32",
        on_long: OnLong = "truncate",
        on_error: OnError = "raise",
        prompt: str | None = None,
    ) -> NDArray[Any]:
        """Return the vectors of texts, in order, of length one.

        Args:
            texts: strings; or one string, for one vector.
            task: names the model's own prompt: document, query, similarity, code, classification,
                clustering, qa, fact, none.
            titles: of the texts, for the document prompt; None in it: no title.
            dim: width of the vectors, one that the model was trained for; None: the model's.
            dtype: f32, f16, int8 (a fixed scale) or ubinary (one bit a component).
            on_long: of a text longer than the model takes: truncate it, error, or skip, which
                makes its row NaN.
            on_error: of a text that has no vector (empty, not UTF-8): raise, or nan, which makes
                its row NaN, zeros where the type has no NaN.
            prompt: a prompt of your own instead of the task's: 'query: {text}'.

        Returns:
            [n, dim], float32, float16 or int8, or uint8 [n, dim / 8]; of one string without the
            first axis.

        Raises:
            UsageError: an argument is not what it should be, or the model is closed.
            SomeRowsFailed: a text has no vector, and `on_error` is raise.
            GembError: the model fails.
        """
        texts = texts if isinstance(texts, str) else list(texts)
        embedder = self._embedder(
            task, prompt, dim, dtype, on_long=on_long, on_error=on_error, titles=titles is not None
        )
        if isinstance(texts, str) and isinstance(titles, str):
            titles = [titles]
        records = _records([texts] if isinstance(texts, str) else texts, titles)
        # In this thread: the texts are all there, so that nothing is read meanwhile.
        computed = map(embedder.window, windows(records, embedder.spec, live=False))
        rows = list(_rows(computed, embedder.on_long, on_error))
        blocks = rows or [np.empty((0, embedder.spec.dim), np.float32)]
        vectors = packed(np.concatenate(blocks), dtype, embedder.spec.dim)
        return vectors[0] if isinstance(texts, str) else vectors

    def encode_query(self, texts: Texts, *, dim: int | None = None) -> NDArray[np.float32]:
        """Return the vectors of questions, float32 [n, dim]: `encode` with the task query."""
        return self.encode(texts, "query", dim=dim)

    def encode_document(
        self,
        texts: Texts,
        titles: Iterable[str | None] | None = None,
        *,
        dim: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the vectors of documents, float32 [n, dim]: `encode` with the task document."""
        return self.encode(texts, "document", titles=titles, dim=dim)

    def stream(
        self,
        texts: Iterable[str],
        task: str = "document",
        *,
        dim: int | None = None,
        dtype: DType = "f32",
        on_long: OnLong = "truncate",
        on_error: OnError = "raise",
        prompt: str | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Yield the vector of each text, in order, [dim]; the arguments are those of `encode`.

        Memory is bounded: one window of at most 512 texts is read ahead of the one computed.

        Raises:
            UsageError: an argument is not what it should be; at once, before the first text.
            SomeRowsFailed: a text has no vector, and `on_error` is raise; those before it were
                yielded.
            GembError: the model fails.
        """
        embedder = self._embedder(task, prompt, dim, dtype, on_long=on_long, on_error=on_error)
        if isinstance(texts, str):
            raise UsageError("texts is one string; encode takes it, stream takes several")

        def vectors() -> Iterator[NDArray[Any]]:
            with closing(embed(_records(texts, None), embedder, live=False)) as computed:
                for block in _rows(computed, on_long, on_error):
                    yield from packed(block, dtype, embedder.spec.dim)

        return vectors()

    @staticmethod
    def similarity(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
        """Return the cosines of vectors that `encode` made, float32 [n, m].

        Args:
            a: [n, dim], or one vector [dim], which takes its axis from the result.
            b: [m, dim] or [dim], of the same dtype; uint8 is ubinary.

        Raises:
            UsageError: the widths differ.
        """
        left, right = _units(a), _units(b)
        if left.shape[-1] != right.shape[-1]:
            raise UsageError(
                f"vectors of {left.shape[-1]} and of {right.shape[-1]} components; "
                "encode both with one dim and one dtype"
            )
        return np.asarray(left @ right.T, np.float32)

    def close(self) -> None:
        """Let go of the model, once no thread is at work with it. It can be called again."""
        self.encoder.close()
        with self._opening:
            self._draft, self._has_draft = None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.reference!r}, backend={self.backend!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._backend, self._runtime, self._download
        return _reopened, (elsewhere(self.reference), *settings, self.profile.fingerprint)

    def _embedder(
        self,
        task: str,
        prompt: str | None,
        dim: int | None,
        dtype: str,
        *,
        on_long: str,
        on_error: str,
        titles: bool = False,
    ) -> Embedder:
        """Return what computes one call: it remembers no text of another."""
        self.encoder.opened()
        _check_choice("dtype", dtype, DTYPES)
        _check_choice("on_long", on_long, ON_LONG)
        _check_choice("on_error", on_error, ON_ERROR)
        words = for_task(task, self.profile.prompts) if prompt is None else custom(prompt, "prompt")
        if titles and not words.takes_title:
            raise UsageError(
                f"titles: the prompt {words.template!r} has no place for a title; the task "
                "document has one, and so has a prompt with {title}"
            )
        return Embedder.of(self.encoder, words, dim=dim, dtype=dtype, on_long=on_long)


def _reopened(
    reference: str, backend: str, runtime: Runtime, download: bool, fingerprint: str
) -> Model:
    """Open a pickled model.

    Raises:
        UsageError: the reference means another model here.
    """
    model = Model(
        reference,
        backend=backend,
        device=runtime.device,
        threads=runtime.threads,
        precision=runtime.precision,
        download=download,
    )
    if model.profile.fingerprint != fingerprint:
        model.close()
        raise UsageError(
            f"{reference} is another model here: its fingerprint is {model.profile.fingerprint}, "
            f"not {fingerprint}; copy the model, or name one that both machines have"
        )
    return model


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name}={value!r}; it is one of {', '.join(choices)}")


def _records(texts: Iterable[str], titles: Iterable[str | None] | None) -> Iterator[Record]:
    """Yield the records of texts, numbered from 1 as those of a file."""
    if titles is None:
        pairs: Iterable[tuple[str, str | None]] = ((text, None) for text in texts)
    else:
        if isinstance(titles, str):
            raise UsageError("titles is one string for several texts; give one for each text")
        texts, titles = list(texts), list(titles)
        if len(texts) != len(titles):
            raise UsageError(f"{len(texts)} texts and {len(titles)} titles; give as many")
        pairs = zip(texts, titles, strict=True)
    for index, (text, title) in enumerate(pairs):
        if not isinstance(text, str) or not isinstance(title, str | None):
            what, value = ("text", text) if not isinstance(text, str) else ("title", title)
            raise UsageError(f"{what}s[{index}] is {type(value).__name__}, not a string")
        place = f"texts[{index}]"
        if title is None:
            yield from_text(text, index + 1, place)
        else:
            yield from_fields({"text": text, "title": title}, _FIELDS, index + 1, place, 1)


def _rows(computed: Iterable[Window], on_long: str, on_error: str) -> Iterator[Vectors]:
    """Yield vectors by the window, [rows, dim]; a failed row is NaN, or raises."""
    for window in computed:
        failed = _first_failure(window.rows, on_long) if on_error == "raise" else None
        if failed is None:
            yield window.vectors
            continue
        yield window.vectors[:failed]
        row = window.rows[failed]
        message = row.error.message if row.error else ""
        raise SomeRowsFailed(f"{row.record.place}: {message}; on_error='nan' makes such a row NaN")


def _first_failure(rows: Sequence[OutputRow], on_long: str) -> int | None:
    """Return the index of the first row that has no vector, and should have one."""
    for index, row in enumerate(rows):
        if row.error and not (row.error.code == "too_long" and on_long == "skip"):
            return index
    return None


def _units(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows of length one, [n, dim] or [dim]; NaN where a row has no length."""
    stored = np.asarray(vectors)
    rows = np.atleast_2d(stored)
    if stored.dtype == np.uint8:
        values = unpacked(rows, "ubinary", 8 * rows.shape[1])
    else:
        values = rows.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        units: NDArray[np.float32] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return units[0] if stored.ndim == 1 else units
