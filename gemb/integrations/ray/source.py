"""Input files as a Ray dataset whose rows are parts: gemb's own records, read by Ray's tasks.

Ray's readers of JSON and CSV end a run at the first row that is wrong, guess types (an id 007
becomes 7), and do not number rows. So the files, their stores and the retries are Ray's
(`FileBasedDatasource`, from which those readers come, too), and the rows are those of `gemb embed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow
import ray
from ray.data.datasource import FileBasedDatasource

from gemb.errors import GembError
from gemb.integrations.ray import failures
from gemb.integrations.ray.parts import PART_CHARS
from gemb.io import notes
from gemb.texts.inputs import Reading, read_opened
from gemb.texts.records import Record

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMA = pyarrow.schema(
    [
        ("file", pyarrow.int64()),
        ("part", pyarrow.int64()),
        ("is_last", pyarrow.bool_()),
        ("records", pyarrow.large_binary()),
        ("notes", pyarrow.string()),
        ("failure", pyarrow.string()),  # the file cannot be read; null: it can
    ]
)


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file that is to be read."""

    index: int  # of the input files
    label: str | None  # before the number of a row; None: of a single file
    name: str  # for messages
    done: frozenset[int]  # parts that are there already


class RecordSource(FileBasedDatasource):
    """A row for each part of each file."""

    def __init__(
        self,
        files: dict[str, PlannedFile],
        system: FileSystem,
        reading: Reading,
        part_rows: int,
    ) -> None:
        """Take the files by their paths on the file system."""
        super().__init__(list(files), filesystem=system)
        self._files = ray.put(files)  # a reference: each task gets this object
        self._reading = reading
        self._part_rows = part_rows

    def _open_input_source(self, filesystem: Any, path: str, **_: Any) -> Any:  # noqa: ANN401
        return filesystem.open_input_file(path)  # Parquet seeks; gzip is gemb's to unpack

    def _read_stream(self, f: Any, path: str) -> Iterator[pyarrow.Table]:  # noqa: ANN401
        file: PlannedFile = ray.get(self._files)[path]
        row: dict[str, Any]
        with notes.captured() as said:
            try:
                records = read_opened(f, file.name, self._reading, file.label)
                for number, (part, is_last) in enumerate(parts(records, self._part_rows)):
                    if number in file.done:
                        continue
                    row = {
                        "file": file.index,
                        "part": number,
                        "is_last": is_last,
                        "records": msgspec.msgpack.encode(part),
                        "notes": msgspec.json.encode(said).decode(),
                    }
                    said.clear()
                    yield pyarrow.Table.from_pylist([row], SCHEMA)
            except (GembError, MemoryError) as error:  # those of the system are tried again
                row = {"file": file.index, "failure": failures.to_json(error)}
                yield pyarrow.Table.from_pylist([row], SCHEMA)


def parts(records: Iterable[Record | None], rows: int) -> Iterator[tuple[list[Record], bool]]:
    """Yield the records by the part, and whether it is the last one; at least one, maybe empty."""
    part: list[Record] = []
    size = 0
    for record in records:
        if record is None:
            continue
        if len(part) == rows or size >= PART_CHARS:
            yield part, False
            part, size = [], 0
        # The text of an error has no vector, and may be what cannot be encoded.
        row = _without_text(record) if record.error else record
        part.append(row)
        size += len(row.text) + len(row.title or "")
    yield part, True


def _without_text(record: Record) -> Record:
    return Record(record.id, record.place, error=record.error, size=record.size)
