"""The rows of a source of training data, any of them at once, whatever the size of the file.

One pass reads the source, names its bad rows, and writes an index: where each row stands, and the
hashes of its texts. A plain JSONL file is indexed in place; of any other source the rows are
written once, as lines of JSON, beside the index. The index is kept in the cache under the source's
path, size and time of change, and is mapped, not loaded.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.errors import GembError, UsageError
from gemb.io.atomic import new_folder
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Source
from gemb.texts.examples import Example, Text, digest
from gemb.training_beir import open_folder
from gemb.training_files import json_row, open_file, shown
from gemb.training_formats import BadRow, Layout
from gemb.training_index import ROW, TEXT, VERSION, About, bad_row_stops, sizes, write_index

LONG_BYTES = 1 << 30  # from here on the user is told why nothing happens


class Rows:
    """The good rows of one source. `rows[i]` reads row i from the disk, in any thread."""

    def __init__(self, source: Source, folder: Path, about: About) -> None:
        self.source = source
        self.name = name_of(source)
        self.format = about.format  # what was recognised, in words
        self.bad = [(place, reason) for place, reason in about.bad]  # the first KEPT_BAD
        self.bad_count = about.bad_count
        self.texts: NDArray[Any] = np.memmap(folder / "texts.bin", TEXT, "r")
        self.held_out: NDArray[np.intp] = np.zeros(0, np.intp)  # sorted; rows never to be drawn
        self._label = about.label
        self._layout = Layout(**about.layout) if about.layout else None  # None: our own lines
        self._table: NDArray[Any] = np.memmap(folder / "rows.bin", ROW, "r")
        self._lines = Path(about.lines) if about.layout else folder / "lines.jsonl"
        self._fd = os.open(self._lines, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    @property
    def query_ids(self) -> NDArray[np.uint64]:
        """Hashes of the queries, uint64 [rows]: equal texts, equal ids."""
        ids: NDArray[np.uint64] = self._table["query_id"]
        return ids

    @property
    def positive_ids(self) -> NDArray[np.uint64]:
        """Hashes of the positives without their titles, uint64 [rows]."""
        ids: NDArray[np.uint64] = self._table["positive_id"]
        return ids

    def __len__(self) -> int:
        return len(self._table)

    def place(self, row: int) -> str:
        """Return where a row stands in its source: pairs.jsonl:17."""
        return f"{self._label}:{self._table[row]['number']}"

    def __getitem__(self, row: int) -> Example:
        """Return a row.

        Raises:
            GembError: the file is no longer what was indexed.
        """
        query, positives, negatives, which = self._read(row)
        return Example(Text(query), positives[which], tuple(negatives), self.place(row))

    def lines_of(self, rows: NDArray[np.uint32]) -> NDArray[np.intp]:
        """Return all rows that stand in the lines of some rows, with other positives, sorted."""
        return np.flatnonzero(np.isin(self._table["offset"], self._table["offset"][rows]))

    def texts_of(self, row: int) -> list[tuple[str, str]]:
        """Return side and text of all texts that stand in a row's line, other positives too."""
        query, positives, negatives, _ = self._read(row)
        texts = [("query", query)]
        texts += [("positive", text) for text, _ in positives]
        return texts + [("negative", text) for text, _ in negatives]

    def _read(self, row: int) -> tuple[str, list[Text], list[Text], int]:
        """Return what stands in a row's line, and which of the positives is the row's."""
        entry = self._table[row]
        line = os.pread(self._fd, int(entry["size"]), int(entry["offset"]))
        which = int(entry["positive"])
        try:
            query, positives, negatives = self._parse(line)
            ids = digest(query) + digest(positives[which].text)
        except (BadRow, ValueError, IndexError, TypeError):
            raise self._changed(row) from None
        if ids != entry["query_id"].tobytes() + entry["positive_id"].tobytes():
            raise self._changed(row)
        return query, positives, negatives, which

    def _parse(self, line: bytes) -> tuple[str, list[Text], list[Text]]:
        if self._layout:
            return self._layout.row(json_row(line, 0, 0).values or {})
        query, positives, negatives = orjson.loads(line)
        return query, [Text(*one) for one in positives], [Text(*one) for one in negatives]

    def _changed(self, row: int) -> GembError:
        return GembError(
            f"{self.place(row)}: {shown(self._lines)} changed after it was indexed; start again"
        )


def open_source(source: Source, cache: Path, *, strict: bool) -> Rows:
    """Return the rows of a source; the first time, index it in `cache`.

    Args:
        source: its path, and how many rows to take.
        cache: a folder, made where it is not there.
        strict: refuse a source with a bad row.

    Raises:
        UsageError: the source cannot be read, has columns that are not known, no good row, or,
            with `strict`, a bad row.
        Missing: Parquet without pyarrow.
    """
    path = resolve_data(source.path)
    stamp = _stamp(path, source)
    # The index of a file that has changed takes the place of the old one.
    name = orjson.dumps(
        [os.fsdecode(path.resolve()).encode(errors="replace").decode(), source.rows]
    )
    key = blake2b(name, digest_size=8).hexdigest()
    folder = cache / f"rows-{key}"
    about = _load(folder, stamp)
    if about is None:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock")):  # the ranks of a run begin at the same time
            about = _load(folder, stamp)
            if about is None:
                for part in cache.glob(f".{folder.name}.*"):
                    shutil.rmtree(part)  # of a process that was killed: no other is here
                with new_folder(folder) as part:
                    _index(path, source, stamp, part, strict=strict)
                about = _load(folder, stamp)
    assert about is not None, f"the index of {path} was written, and cannot be read"
    if strict and about.bad_count:
        raise bad_row_stops(*about.bad[0])
    return Rows(source, folder, about)


def name_of(source: Source) -> str:
    """Return the source's name in reports: its own, or the stem of its path."""
    stem = Path(source.path).name.removesuffix(".gz")
    return visible(source.name or Path(stem).stem or source.path)


def _stamp(path: Path, source: Source) -> str:
    """Return what makes an index stale when it changes."""
    try:
        files = open_folder(path).files if path.is_dir() else (path,)
        abouts = [(os.path.realpath(one), one.stat()) for one in files]
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from None
    of_files = [(name, about.st_size, about.st_mtime_ns) for name, about in abouts]
    return orjson.dumps([VERSION, source.rows, of_files]).decode()


def _load(folder: Path, stamp: str) -> About | None:
    try:
        about = About(**orjson.loads((folder / "about.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return about if about.stamp == stamp and sizes(folder) == about.sizes else None


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same lock file."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _index(path: Path, source: Source, stamp: str, folder: Path, *, strict: bool) -> None:
    file = open_folder(path) if path.is_dir() else open_file(path)
    size = sum(one.stat().st_size for one in file.files)
    if size > LONG_BYTES and not source.rows:
        note(f"{shown(path)}: {size / 1e9:.1f} GB are indexed, once; plain text at 1.5 GB a minute")
    write_index(file, folder, stamp, rows=source.rows, strict=strict)
    if _stamp(path, source) != stamp:
        raise UsageError(f"{shown(path)} changed while it was read; start again")
