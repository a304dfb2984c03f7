"""Qdrant: a collection of a server, or of a folder by the client's own local mode.

A point's number is UUIDv5 of the collection and the row's id, for Qdrant takes no texts; the id is
in its payload. Vectors are compared by their product: Qdrant changes those of cosine collections
when it stores them. What the vectors are is metadata of the collection.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from gemb.errors import GembError, UsageError
from gemb.targets.addresses import Address, only_table, unspoken
from gemb.targets.base import MARK, Content, FoundRow, Part, PushRow
from gemb.targets.filters import Condition
from gemb.targets.qdrant_filters import filter_of

PART_ROWS = 500  # of one request: some megabytes of JSON
INDEXED_KB = 10_000  # of vectors in a segment, from which on Qdrant makes its graph
EF_SEARCH = 200  # rows that a search of the graph keeps
TIMEOUT_S = 120
LOOK_S = 0.5  # between two looks at a graph in the making
PAYLOAD = (*PushRow._fields, "hash")
_IDS = 10_000  # at a time


class QdrantTarget:
    """A collection of Qdrant. See `gemb.targets.base.Target`."""

    part_rows = PART_ROWS

    def __init__(self, address: Address) -> None:
        """Connect, and read what the collection holds.

        Raises:
            UsageError: no collection is named, and there is not one of gemb.
            GembError: the server cannot be reached.
        """
        self._place = address.shown
        self._address = address.place
        self._is_server = address.place.startswith(("http://", "https://"))
        self._client: Any = None  # None: the folder is not there
        self.content: Content | None = None
        with self._talking():
            if self._is_server or Path(address.place).exists():
                self._connect()
            self._name = address.table or only_table(
                [name for name in self._names() if self._content(name)], address
            )
            self.name = f"collection {self._name} in {self._place}"
            self._open()

    def prepare(self, content: Content, *, with_index: bool) -> None:
        """Make the collection if it is not there."""
        content.refuse_bits("Qdrant")
        is_half = content.kind == "halfvec"
        vectors = models.VectorParams(
            size=content.spec.dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16 if is_half else models.Datatype.FLOAT32,
        )
        with self._talking():
            if self._client is None:
                self._connect()
            self._open()  # another push may have made it meanwhile
        if self.content is not None:
            content.check_same(self.content, self.name)
            self._check_vectors(vectors)
        elif self._is_there:
            raise UsageError(
                f"{self.name} was not made by gemb index push; name another with --table"
            )
        else:
            with self._talking():
                self._client.create_collection(
                    self._name,
                    vectors_config=vectors,
                    optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
                    metadata={MARK: content.to_json()},
                )
            self.content = content

    def describe(self, content: Content) -> None:
        """Change the metadata of the collection."""
        with self._talking():
            self._client.update_collection(self._name, metadata={MARK: content.to_json()})
        self.content = content

    def count(self, condition: Condition | None = None) -> int:
        """Return how many rows are there, or satisfy a condition."""
        wanted = filter_of(condition) if condition else None
        with self._talking():
            return int(self._client.count(self._name, count_filter=wanted, exact=True).count)

    def hashes(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the hash of each of these rows that is there."""
        points = self._points(ids, payload=["id", "hash"])
        return {point.payload["id"]: bytes.fromhex(point.payload["hash"]) for point in points}

    def upsert(self, part: Part) -> None:
        """Write rows in place of those with their ids."""
        payloads = [
            dict(zip(PAYLOAD, (*values, orjson.loads(kept), digest.hex()), strict=True))
            for *values, kept, digest in zip(*part.rows, part.hashes, strict=True)
        ]
        numbers: list[Any] = [self._number(row_id) for row_id in part.rows.ids]
        vectors = part.vectors.astype(np.float32).tolist()
        batch = models.Batch(ids=numbers, vectors=vectors, payloads=payloads)
        with self._talking():
            self._client.upsert(self._name, batch, wait=True)

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all rows."""
        place = None
        with self._talking():
            while True:
                points, place = self._client.scroll(
                    self._name, limit=_IDS, offset=place, with_payload=["id"]
                )
                yield [point.payload["id"] for point in points if point.payload]
                if place is None:
                    return

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""
        numbers: list[Any] = [self._number(row_id) for row_id in ids]
        if numbers:
            with self._talking():
                self._client.delete(self._name, models.PointIdsList(points=numbers), wait=True)

    def finish(self, *, with_index: bool) -> None:
        """Let the server make its graph, and wait for it."""
        if not (with_index and self._is_server):
            return
        with self._talking():
            config = models.OptimizersConfigDiff(indexing_threshold=INDEXED_KB)
            self._client.update_collection(self._name, optimizers_config=config)
            while self._client.get_collection(self._name).status == models.CollectionStatus.YELLOW:
                time.sleep(LOOK_S)

    def vector_of(self, row_id: str) -> tuple[PushRow, NDArray[Any]] | None:
        """Return a row and its stored vector."""
        for point in self._points([row_id], payload=True, with_vectors=True):
            return _row(point.payload), self._vector(point)
        return None

    def read(self, ids: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Return the stored vectors of rows."""
        points = self._points(ids, payload=["id"], with_vectors=True)
        return {point.payload["id"]: self._vector(point) for point in points}

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        condition: Condition | None = None,
        *,
        is_exact: bool = False,
    ) -> list[FoundRow]:
        """Return the nearest rows to a unit vector, best first."""
        how = models.SearchParams(exact=is_exact, hnsw_ef=max(EF_SEARCH, k))
        with self._talking():
            points = self._client.query_points(
                self._name,
                query=vector.tolist(),
                query_filter=filter_of(condition) if condition else None,
                limit=k,
                with_payload=True,
                search_params=how if self._is_server else None,
            ).points
        return [FoundRow(_row(point.payload or {}), point.score) for point in points]

    def cancel(self) -> None:
        """Give up nothing: a write waits for no lock."""

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    @property
    def _known(self) -> Content:
        assert self.content is not None, "the collection is not there"
        return self.content

    def _connect(self) -> None:
        if self._is_server:
            key = os.environ.get("QDRANT_API_KEY") or None
            self._client = QdrantClient(url=self._address, api_key=key, timeout=TIMEOUT_S)
        else:
            # One thread at a time uses its database, but not always the same.
            self._client = QdrantClient(path=self._address, force_disable_check_same_thread=True)

    def _names(self) -> list[str]:
        """Return the names of all collections."""
        if self._client is None:
            return []
        return [made.name for made in self._client.get_collections().collections]

    def _open(self) -> None:
        """Read the newest state of the collection."""
        self._is_there = self._name in self._names()
        self.content = self._content(self._name) if self._is_there else None

    def _check_vectors(self, vectors: models.VectorParams) -> None:
        """Refuse a collection whose vectors were changed.

        Raises:
            UsageError: they were.
        """
        with self._talking():
            there = self._client.get_collection(self._name).config.params.vectors
        for name in ("size", "distance", "datatype"):
            value, wanted = getattr(there, name, None), getattr(vectors, name)
            if value != wanted:
                raise UsageError(
                    f"{self.name} has other vectors ({name} is {value}, not {wanted}); name "
                    "another with --table"
                )

    def _number(self, row_id: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._name}/{row_id}"))

    def _content(self, name: str) -> Content | None:
        """Return what a collection says that it holds."""
        metadata = self._client.get_collection(name).config.metadata or {}
        return Content.from_json(str(metadata.get(MARK, "")))

    def _points(self, ids: Sequence[str], **wanted: Any) -> list[Any]:  # noqa: ANN401
        """Return the points of rows that are there."""
        numbers = [self._number(row_id) for row_id in ids]
        payload = wanted.pop("payload")
        with self._talking():
            return list(self._client.retrieve(self._name, numbers, with_payload=payload, **wanted))

    def _vector(self, point: Any) -> NDArray[Any]:  # noqa: ANN401
        return np.array(point.vector, np.float32).astype(self._known.numbers)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn the client's errors into ours.

        Raises:
            GembError: the server refuses, fails, or is gone.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (ApiException, OSError, RuntimeError, ValueError) as error:
            raise GembError(f"{self._place}: {unspoken(str(error))}") from None


def _row(payload: Mapping[str, Any]) -> PushRow:
    values = {name: payload.get(name) for name in PushRow._fields}
    values["kept"] = orjson.dumps(payload.get("kept", {})).decode()
    return PushRow(**values)  # type: ignore[arg-type]
