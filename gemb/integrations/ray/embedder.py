"""Vectors for the batches of an engine: Ray's `map_batches`, Spark's `mapInArrow`, Daft."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.backend import Runtime
from gemb.embedding import pipeline
from gemb.embedding.model import open_model
from gemb.embedding.pipeline import OutputRow, windows
from gemb.embedding.vectors import packed
from gemb.errors import UsageError
from gemb.models.prompts import custom
from gemb.models.references import DEFAULT
from gemb.texts.records import Fields, Record, from_fields

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Embedded(NamedTuple):
    """What became of a column of texts."""

    vectors: NDArray[Any]  # [n, width] of the dtype; NaN or zeros where a text failed
    errors: list[str | None]  # [n]


@dataclass(kw_only=True)
class Embedder:
    """Adds vectors to batches: a dict of numpy arrays, an Arrow table or batch, a pandas frame.

    Pickled, it is its settings: each worker opens the model at its first batch, once. Vectors are
    those of `gemb embed`. A text that has none spoils no other: its vector is null (NaN in numpy,
    zeros in int8 and ubinary), and its error says why.

        dataset.map_batches(Embedder, fn_constructor_kwargs={"model": "mini", "text": "body"},
                            batch_size=1024, compute=ActorPoolStrategy(size=8), num_cpus=1)
    """

    model: str = DEFAULT  # a reference, as `-m` takes it; every worker must have it
    text: str = "text"  # column of the texts
    title: str | None = None  # column of the titles, for the prompt of documents
    task: str = "document"
    prompt: str | None = None  # your own, in the place of the task's: 'query: {text}'
    dim: int | None = None
    dtype: str = "f32"
    on_long: str = "truncate"
    vector: str = "embedding"  # column that is added
    error: str = "error"  # column that is added
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 1  # as many CPUs as the engine gives a worker
    _opened: pipeline.Embedder | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.model = absolute(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def embedder(self) -> pipeline.Embedder:
        """The open model with its prompt.

        Raises:
            UsageError: a setting is not what it should be.
            Missing: the model or a library is not installed.
        """
        if self._opened is None:
            runtime = Runtime(device=self.device, threads=self.threads, precision=self.precision)
            encoder = open_model(self.model, self.backend, runtime).encoder
            self._opened = pipeline.Embedder.of(
                encoder,
                self.task if self.prompt is None else custom(self.prompt, "prompt"),
                dim=self.dim,
                dtype=self.dtype,
                on_long=self.on_long,
                has_titles=self.title is not None,
            )
        return self._opened

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - of three libraries
        """Return the batch with the columns of vectors and errors added.

        Raises:
            UsageError: it is of another type, or lacks the column of texts.
        """
        if isinstance(batch, Mapping):
            return self._of_arrays(batch)
        kind = f"{type(batch).__module__.partition('.')[0]}.{type(batch).__name__}"
        if kind in ("pyarrow.Table", "pyarrow.RecordBatch"):
            return self._of_arrow(batch)
        if kind == "pandas.DataFrame":
            return self._of_frame(batch)
        raise UsageError(f"a batch is {kind}; give a dict of arrays, an Arrow table or a DataFrame")

    def batches(self, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        """Yield each batch with its vectors: `frame.mapInArrow(Embedder(...).batches, schema)`.

        The vectors are lists, since Spark has none of one length.
        """
        import pyarrow

        for batch in batches:
            answer = self._of_arrow(batch)
            place = answer.schema.get_field_index(self.vector)
            column = answer.column(place)
            lists = column.cast(pyarrow.list_(column.type.value_type))
            columns = [*answer.columns[:place], lists, *answer.columns[place + 1 :]]
            yield pyarrow.RecordBatch.from_arrays(columns, names=answer.schema.names)

    def embed(self, texts: Sequence[object], titles: Sequence[object] | None = None) -> Embedded:
        """Return the vectors of texts, and why some have none.

        Args:
            texts: strings; others, and None, have an error.
            titles: of the texts; None in it: no title.
        """
        fields = Fields(text=("text",), title=None if titles is None else "title")
        columns = [texts] if titles is None else [texts, titles]
        records = (
            from_fields(dict(zip(("text", "title"), row, strict=False)), fields, n, f"row {n}", 1)
            for n, row in enumerate(zip(*columns, strict=True), 1)
        )
        rows, vectors = computed(records, self.embedder)
        spec = self.embedder.spec
        return Embedded(packed(vectors, spec.dtype, spec.dim), [error_of(row) for row in rows])

    def _of_columns(self, names: Sequence[str], column: Any) -> Embedded:  # noqa: ANN401
        for name in filter(None, (self.text, self.title)):
            if name not in names:
                listed = ", ".join(map(str, names))
                raise UsageError(f"a batch has no column '{name}'; it has: {listed}")
        return self.embed(column(self.text), column(self.title) if self.title else None)

    def _of_arrays(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        vectors, errors = self._of_columns(list(batch), lambda name: _plain(batch[name]))
        return {**batch, self.vector: vectors, self.error: np.array(errors, object)}

    def _of_arrow(self, batch: Any) -> Any:  # noqa: ANN401
        import pyarrow

        names = batch.schema.names
        vectors, errors = self._of_columns(names, lambda name: batch.column(name).to_pylist())
        added = {
            self.vector: vector_column(vectors, [error is not None for error in errors]),
            self.error: pyarrow.array(errors, pyarrow.string()),
        }
        columns = {name: batch.column(name) for name in names if name not in added} | added
        return type(batch).from_arrays(list(columns.values()), names=list(columns))

    def _of_frame(self, batch: pandas.DataFrame) -> pandas.DataFrame:
        def column(name: str) -> list[object]:
            values = batch[name]
            return list(values.astype(object).where(values.notna(), None))

        vectors, errors = self._of_columns(list(batch.columns), column)
        rows = [None if error else vector for vector, error in zip(vectors, errors, strict=True)]
        return batch.assign(**{self.vector: rows, self.error: errors})


def absolute(reference: str) -> str:
    """Return a reference that means the same in another folder, where a worker is."""
    return str(Path(reference).absolute()) if Path(reference).exists() else reference


def computed(
    records: Iterable[Record], embedder: pipeline.Embedder
) -> tuple[list[OutputRow], NDArray[np.float32]]:
    """Return the rows of all records, and their vectors, float32 [n, dim]."""
    rows: list[OutputRow] = []
    vectors = [np.empty((0, embedder.spec.dim), np.float32)]
    for window in map(embedder.window, windows(records, embedder.spec, live=False)):
        rows += window.rows
        vectors.append(window.vectors)
    return rows, np.concatenate(vectors)


def error_of(row: OutputRow) -> str | None:
    """Return the error of a row as files hold it."""
    return f"{row.error.code}: {row.error.message}" if row.error else None


def vector_column(vectors: NDArray[Any], failed: Sequence[bool]) -> Any:  # noqa: ANN401
    """Return an Arrow column of lists of one length; null where a row failed."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(vectors.reshape(-1)),
        vectors.shape[1],
        mask=pyarrow.array(failed, pyarrow.bool_()),
    )


def _plain(values: Any) -> list[object]:  # noqa: ANN401
    return list(values.tolist() if isinstance(values, np.ndarray) else values)
