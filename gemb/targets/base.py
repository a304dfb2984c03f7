"""What is pushed, and what a target does with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.embedding.vectors import VectorSpec, unpacked
from gemb.errors import UsageError
from gemb.index.schema import WHOLE_NUMBER
from gemb.index.where import COLUMNS
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.targets.filters import Condition

MARK = "gemb push"
MOST_FIELDS = 1000  # whose names a table keeps
VERSION = 1
KINDS = ("vector", "halfvec", "bit")  # of numbers in a target: pgvector's words for f32, f16, bits
KIND_OF = {"f32": "vector", "f16": "halfvec", "int8": "halfvec", "ubinary": "bit"}
IDS = ("text", "number", "place")
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class PushRow(NamedTuple):
    """A row of a target, beside its vector."""

    id: str
    path: str | None
    line: int | None
    last_line: int | None
    title: str | None
    text: str
    kept: str  # a JSON object


class Rows(NamedTuple):
    """Rows beside their vectors, by column: what each `PushRow` has, in lists of one length."""

    ids: Sequence[str]
    paths: Sequence[str | None]
    lines: Sequence[int | None]
    last_lines: Sequence[int | None]
    titles: Sequence[str | None]
    texts: Sequence[str]
    kept: Sequence[str]

    @staticmethod
    def of(rows: Sequence[PushRow]) -> Rows:
        """Return rows, at least one, by column."""
        return Rows(*zip(*rows, strict=True))


class Part(NamedTuple):
    """Rows that are committed together."""

    rows: Rows
    vectors: NDArray[Any]  # [n, width] as `Content.stored` makes them
    hashes: Sequence[bytes]  # 16 bytes of each row and its vector
    is_new: bool = False  # none of the ids is there

    def at(self, numbers: Sequence[int]) -> Part:
        """Return some of the rows."""
        columns: list[Any] = [[column[number] for number in numbers] for column in self.rows]
        hashes = [self.hashes[number] for number in numbers]
        return Part(Rows(*columns), self.vectors[numbers], hashes)


class FoundRow(NamedTuple):
    """A row that a target found."""

    row: PushRow
    score: float


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the vectors of a target are; it is kept in the target."""

    spec: VectorSpec  # of the source's vectors, of the width that is pushed
    kind: str  # of `KINDS`
    model: str  # a reference; empty: nobody named the model
    task: str  # name of the documents' prompt; custom where it is the user's own
    query_task: str = "query"
    ids: str = "text"  # of `IDS`; place: rows are passages, whose id is path:line
    base: str = "/"  # relative paths start here
    fields: tuple[str, ...] = ()  # that rows keep: their names, `MOST_FIELDS` at most
    background: Mapping[str, object] | None = None  # scores of what is irrelevant; None: unknown

    def vectors(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return float32 [n, dim] of length one for what `stored` made; bits become signs."""
        vectors = unpacked(stored, {"bit": "ubinary"}.get(self.kind, "f32"), self.spec.dim)
        units: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return units

    @property
    def width(self) -> int:
        """How many numbers a stored row has: components, or bytes of bits."""
        return -(-self.spec.dim // 8) if self.kind == "bit" else self.spec.dim

    @property
    def numbers(self) -> np.dtype[Any]:
        """The type of a stored number."""
        return np.dtype({"vector": "<f4", "halfvec": "<f2", "bit": "u1"}[self.kind])

    def with_fields_of(self, kept: Iterable[str]) -> Content:
        """Return a content that has the names of the fields in these JSON objects, too.

        Of very many, those that hide a column of their name come first.
        """
        names = {*self.fields, *(name for text in set(kept) for name in orjson.loads(text))}
        ordered = sorted(names, key=lambda name: (name not in COLUMNS, name))
        return replace(self, fields=tuple(ordered[:MOST_FIELDS]))

    def refuse_bits(self, database: str) -> None:
        """Refuse signs for a database that has no such vectors.

        Raises:
            UsageError: they are signs.
        """
        if self.kind == "bit":
            raise UsageError(f"--type bit is for PostgreSQL; {database} takes vector or halfvec")

    def stored(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Return floats [n, D], D at least `spec.dim`, in the target's type: [n, width]."""
        dim = self.spec.dim
        if vectors.shape[1] > dim:
            vectors = vectors[:, :dim].astype(np.float32)
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if self.kind == "bit":
            return np.packbits(vectors > 0, axis=1)
        return np.ascontiguousarray(vectors, self.numbers)

    def to_json(self) -> str:
        """Return what `from_json` reads, in one line of ASCII."""
        entries = {MARK: VERSION, "fingerprint": self.spec.fingerprint, **asdict(self)}
        return json.dumps(entries, sort_keys=True)

    @staticmethod
    def from_json(text: str | None) -> Content | None:
        """Return the content that a target describes; None: gemb did not write the text.

        Raises:
            UsageError: a newer gemb wrote it.
        """
        try:
            entries = json.loads(text or "")
            version = entries.pop(MARK)
            if version > VERSION:
                raise UsageError(f"a newer gemb wrote it (format {version}): pip install -U gemb")
            del entries["fingerprint"]
            spec = VectorSpec(**entries.pop("spec"))
            fields = tuple(entries.pop("fields", ()))
            content = Content(spec=spec, fields=fields, **entries)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return content if content._is_possible() else None

    def _is_possible(self) -> bool:
        from gemb.models.prompts import TASKS

        texts = (self.model, self.base, *self.fields)
        return (
            self.spec.is_possible()
            and self.kind in KINDS
            and self.ids in IDS
            and all(isinstance(text, str) for text in texts)
            and self.task in (*TASKS, "custom")
            and self.query_task in TASKS
            and isinstance(self.background, dict | None)
        )

    def check_same(self, there: Content, name: str) -> None:
        """Refuse a target whose vectors are others.

        Raises:
            UsageError: they are.
        """
        is_same = there.spec == self.spec and there.kind == self.kind
        has_passages = self.ids == "place"
        if is_same and has_passages == (there.ids == "place"):
            return
        ours, theirs = self.spec, there.spec
        if is_same:
            rows = ("rows with ids", "passages of files")
            what = f"{rows[not has_passages]}, not {rows[has_passages]}"
        elif ours.model != theirs.model:
            what = f"vectors of another model ({visible(there.model) or theirs.model})"
        elif ours.prompt != theirs.prompt:
            what = f"vectors with another prompt ({visible(theirs.prompt, 60)!r})"
        elif ours.dim != theirs.dim:
            what = f"vectors of {theirs.dim} components, not {ours.dim}"
        elif there.kind != self.kind:
            what = f"vectors of type {there.kind}, not {self.kind}"
        else:
            what = (
                f"vectors with another fingerprint ({theirs.fingerprint}, not {ours.fingerprint})"
            )
        raise UsageError(f"{name} holds {what}; push into another --table")

    def row_id(self, row: PushRow) -> int | str | None:
        """Return the id of a row as the source has it."""
        if self.ids == "place":
            return None
        is_number = self.ids == "number" and WHOLE_NUMBER.fullmatch(row.id)
        return int(row.id) if is_number else row.id


class Target(Protocol):
    """A table of rows and vectors in a database; it is open. One thread at a time uses it."""

    name: str  # in messages: the table and the place, without a password
    content: Content | None  # of what is there; None: the table is not there yet
    part_rows: int  # that are committed together

    def prepare(self, content: Content, *, with_index: bool) -> None:
        """Make the table if it is not there.

        Raises:
            UsageError: something else has its name, it holds other vectors, or cannot hold these.
            GembError: the database refuses or fails.
        """

    def describe(self, content: Content) -> None:
        """Let the table, which is there, say this of itself."""

    def count(self, condition: Condition | None = None) -> int:
        """Return how many rows are there, or satisfy a condition."""

    def hashes(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the hash of each of these rows that is there."""

    def upsert(self, part: Part) -> None:
        """Write rows in place of those with their ids; all of them or none."""

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids of all rows, many at a time."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows."""

    def finish(self, *, with_index: bool) -> None:
        """Make the index for search, if it is wanted and not there, and what else is due."""

    def vector_of(self, row_id: str) -> tuple[PushRow, NDArray[Any]] | None:
        """Return a row and its stored vector [width]; None: there is none of this id."""

    def read(self, ids: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Return the stored vectors [width] of rows, as `Content.stored` makes them."""

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        condition: Condition | None = None,
        *,
        is_exact: bool = False,
    ) -> list[FoundRow]:
        """Return the nearest rows to a unit vector [dim], best first.

        Args:
            vector: of the query.
            k: how many.
            condition: that they satisfy; None: all do.
            is_exact: compare all vectors, not by the index.
        """

    def cancel(self) -> None:
        """Give up what another thread waits for in the database."""

    def close(self) -> None:
        """Let go of the connection."""


def content_hashes(rows: Rows, vectors: NDArray[Any]) -> list[bytes]:
    """Return 16 bytes of each row with its stored vector, of [n, width]."""
    size = vectors.shape[1] * vectors.itemsize
    data = vectors.reshape(-1).view(np.uint8).data
    digests = []
    for number, values in enumerate(zip(*rows, strict=True)):
        digest = hashlib.blake2b(orjson.dumps(values), digest_size=16)
        digest.update(data[number * size : (number + 1) * size])
        digests.append(digest.digest())
    return digests


def bit_scores(query: NDArray[np.float32], bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the cosine of a unit query [D] and the signs of stored vectors [n, D / 8]: [n]."""
    signs = np.unpackbits(bits, axis=1, count=len(query)).astype(np.float32) * 2 - 1
    scores: NDArray[np.float32] = signs @ query / np.sqrt(np.float32(len(query)))
    return scores


def storable(text: str) -> str:
    r"""Return a text without what databases do not take: NUL, and bytes that are no UTF-8.

    The latter are written out (\udce9), so that names which differ in them alone stay two.
    """
    if text.isascii():
        return text.replace("\0", "\ufffd") if "\0" in text else text
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()


def storable_json(text: str) -> str:
    """Return JSON without an escaped NUL, which is the only form it has one in."""
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text
