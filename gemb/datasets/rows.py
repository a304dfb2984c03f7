"""The rows of a source of training data, any of them at once, whatever the size of the file.

One pass reads the source, names its bad rows, and writes an index: where each row stands, and the
hashes of its texts. A plain JSONL file is indexed in place; of any other source the rows are
written once, as lines of JSON, beside the index. The index is kept in the cache under the source's
path and `Stamp`, and is mapped, not loaded.

The index is three or four files: `rows.bin` (`ROW`, 34 bytes a row), `texts.bin` (`TEXT`, 13 bytes
a text), `about.json`, and, unless a plain JSONL file is indexed in place, `lines.jsonl`: a line
[query, [[positive, title], ...], [[negative, title], ...]] for each line of the source. Nothing
grows in memory with the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.datasets.columns import MOST_POSITIVES, BadRow, Layout, Row, recognise
from gemb.datasets.files import AS_USUAL, RawRow, Written, json_row
from gemb.datasets.sources import Readable, name_of, open_readable, written_as
from gemb.errors import GembError, UsageError
from gemb.io.atomic import new_file, new_folder
from gemb.io.caches import writable
from gemb.io.foreign import read_bytes
from gemb.io.locks import locked, waiting
from gemb.io.notes import note
from gemb.io.stamps import Stamp
from gemb.io.text import size_in_words
from gemb.models.prompts import Prompt, custom, for_task
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Source
from gemb.texts.contents import shown
from gemb.texts.examples import Example, Text, digest, folded
from gemb.texts.lines import Line

# A recipe's task -> gemb's tasks of the query and of the positive (with its negatives). Source: the
# model card of google/embeddinggemma-300m: asymmetric tasks search documents, the others compare
# like with like.
SIDES: dict[str, tuple[str, str]] = {
    "retrieval": ("query", "document"),
    "code": ("code", "document"),
    "qa": ("qa", "document"),
    "fact": ("fact", "document"),
    "similarity": ("similarity", "similarity"),
    "classification": ("classification", "classification"),
    "clustering": ("clustering", "clustering"),
}


def prompts_of(source: Source, dictionary: Mapping[str, str]) -> tuple[Prompt, Prompt]:
    """Return the prompts of the query, and of the positive and the negatives.

    Args:
        source: its `prompts` replace the words of its `task`.
        dictionary: the model's own prompts by their names; empty where it has none.

    Raises:
        UsageError: a template has no `{text}`.
    """
    query, positive = SIDES[source.task]
    return (
        _prompt("query", source.prompts.query, query, dictionary),
        _prompt("positive", source.prompts.positive, positive, dictionary),
    )


def _prompt(side: str, template: str, task: str, dictionary: Mapping[str, str]) -> Prompt:
    if template:
        return custom(template, option=f"prompts.{side}")
    return for_task(task, dictionary)


VERSION = 4  # of the files in the cache
ABOUT = "about.json"
LONG_BYTES = 1 << 30  # of a source: from here on the user is told why nothing happens
KEPT_BAD = 20  # bad rows that are named; all are counted
COLUMNS = 64  # names of columns that are remembered
ROW = np.dtype(
    [
        ("offset", "<u8"),  # bytes from the beginning of the JSON lines
        ("size", "<u4"),  # bytes
        ("number", "<u4"),  # line of the source, from 1; row of a Parquet file
        ("positive", "<u2"),  # which of the line's positives, from 0
        ("query_id", "<u8"),
        ("positive_id", "<u8"),
    ]
)
TEXT = np.dtype(
    [
        ("id", "<u8"),  # hash of the folded text
        ("row", "<u4"),  # of the first positive of the line that it stands in
        ("is_document", "?"),  # positive or negative
    ]
)

_PLACE = Struct("<QIIH")
_ROW_OF_TEXT = Struct("<I?")


@dataclass(frozen=True, kw_only=True)
class About:
    """What the index says of itself."""

    stamp: str  # of the source as it was read
    content: str  # hash of the bytes of its files
    label: str  # the file's name in messages
    lines: str  # the JSONL file that is indexed in place; empty: lines.jsonl of the index
    layout: Mapping[str, str]  # of the lines that are indexed in place; empty: our own
    format: str
    sizes: Mapping[str, int]  # bytes of the index's other files
    bad_count: int
    bad: list[tuple[str, str]]


def write_index(
    file: Readable, folder: Path, stamp: str, *, rows: int, strict: bool, content: str = ""
) -> None:
    """Read a source once, and fill the folder of its index.

    Args:
        file: the source.
        folder: empty.
        stamp: what the index is of.
        rows: stop after so many good rows; 0: never.
        strict: refuse a bad row.
        content: hash of the source's bytes; empty: nobody will ask for it.

    Raises:
        UsageError: as `open_source`.
    """
    label = file.label
    with ExitStack() as stack:
        writer = _Writer(label, folder, stack, in_place=file.in_place, strict=strict)
        for raw in file.rows():
            writer.add(raw, rows - writer.count if rows else MOST_POSITIVES)
            if 0 < rows <= writer.count:
                break
        layout = writer.layout
        if layout is None or not writer.count:
            first = ": ".join(writer.bad[0]) if writer.bad else "it is empty"
            raise UsageError(f"{label} has no good row; {first}")
    maker = f"{layout.maker} " if layout.maker else ""
    about = About(
        stamp=stamp,
        content=content,
        label=label,
        lines=str(file.path.resolve()) if file.in_place else "",
        layout=dataclasses.asdict(layout) if file.in_place else {},
        format=f"{maker}{file.name} {layout.words(writer.columns)}{file.note}",
        sizes=sizes(folder),
        bad_count=writer.bad_count,
        bad=writer.bad,
    )
    (folder / ABOUT).write_bytes(orjson.dumps(about))


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of an index, but for what it says of itself."""
    files = [folder / name for name in ("rows.bin", "texts.bin", "lines.jsonl")]
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def bad_row_stops(place: str, reason: str) -> UsageError:
    """Return the error of a bad row where none is allowed."""
    return UsageError(f"{place}: {reason}; without --strict such rows are counted and left out")


class _Writer:
    """Writes the rows of an index as they come."""

    def __init__(
        self, label: str, folder: Path, stack: ExitStack, *, in_place: bool, strict: bool
    ) -> None:
        self.label = label
        self.layout: Layout | None = None
        self.columns: dict[str, None] = {}  # all that were seen, in order
        self.count = 0
        self.bad_count = 0
        self.bad: list[tuple[str, str]] = []
        self._strict = strict
        self._rows = stack.enter_context((folder / "rows.bin").open("wb"))
        self._texts = stack.enter_context((folder / "texts.bin").open("wb"))
        self._lines = None if in_place else stack.enter_context((folder / "lines.jsonl").open("wb"))
        self._offset = 0  # bytes of `lines.jsonl`

    def add(self, raw: RawRow, most: int) -> None:
        """Take a row of the source: as many of its positives as asked for at most."""
        if raw.values is None:
            self._leave_out(raw, raw.reason)
            return
        if self.layout is None:
            self.layout = recognise(list(raw.values), self.label)
        if len(self.columns) < COLUMNS:
            self.columns.update(dict.fromkeys(raw.values))
        try:
            row = self.layout.row(raw.values)
            query_id = digest(row[0])
            positive_ids = [digest(positive.words) for positive in row[1]]
            folded_ids = _folded_ids(row)
        except BadRow as fault:
            self._leave_out(raw, str(fault))
            return
        except UnicodeEncodeError:
            self._leave_out(raw, "a text is no valid UTF-8")
            return
        offset, size = self._line(row) if self._lines else (raw.offset, raw.size)
        document = _ROW_OF_TEXT.pack(self.count, True)
        self._texts.write(folded_ids[0] + _ROW_OF_TEXT.pack(self.count, False))
        self._texts.write(b"".join(folded_id + document for folded_id in folded_ids[1:]))
        for which, positive_id in enumerate(positive_ids[:most]):
            place = _PLACE.pack(offset, size, raw.number, which)
            self._rows.write(place + query_id + positive_id)
        self.count += len(positive_ids[:most])

    def _line(self, row: Row) -> tuple[int, int]:
        """Write the texts of a row, and return where."""
        assert self._lines, "a file that is indexed in place has no lines of ours"
        query, positives, negatives = row
        line = orjson.dumps((query, list(map(tuple, positives)), list(map(tuple, negatives))))
        self._lines.write(line + b"\n")
        place = self._offset, len(line)
        self._offset += len(line) + 1
        return place

    def _leave_out(self, raw: RawRow, reason: str) -> None:
        place = f"{self.label}:{raw.number}"
        if self._strict:
            raise bad_row_stops(place, reason)
        self.bad_count += 1
        if len(self.bad) < KEPT_BAD:
            self.bad.append((place, reason))


def _folded_ids(row: Row) -> list[bytes]:
    query, positives, negatives = row
    texts = [query, *(text.words for text in (*positives, *negatives))]
    return [digest(folded(text)) for text in texts]


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
        self._folder = folder
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
        """Hashes of the positives, of their titles where they have no text, uint64 [rows]."""
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
            GembError: the file is no longer what was indexed; the next run indexes it anew.
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
            ids = digest(query) + digest(positives[which].words)
        except (BadRow, ValueError, IndexError, TypeError):
            raise self._changed(row) from None
        if ids != entry["query_id"].tobytes() + entry["positive_id"].tobytes():
            raise self._changed(row)
        return query, positives, negatives, which

    def _parse(self, line: bytes) -> tuple[str, list[Text], list[Text]]:
        if self._layout:
            return self._layout.row(json_row(Line(0, line, 0, 0)).values or {})
        query, positives, negatives = orjson.loads(line)
        return query, [Text(*text) for text in positives], [Text(*text) for text in negatives]

    def _changed(self, row: int) -> GembError:
        with contextlib.suppress(OSError):  # else the next run would trust it again
            (self._folder / ABOUT).unlink()
        return GembError(
            f"{self.place(row)}: {shown(self._lines)} changed after it was indexed; start again"
        )


def open_source(source: Source, cache: Path, written: Written = AS_USUAL, *, strict: bool) -> Rows:
    """Return the rows of a source; the first time, index it in `cache`.

    Args:
        source: its path, and how many rows to take.
        cache: a folder, made where it is not there.
        written: how the texts of a file are written.
        strict: refuse a source with a bad row.

    Raises:
        UsageError: the source cannot be read, has columns that are not known, no good row, or,
            with `strict`, a bad row.
        Missing: Parquet without pyarrow.
    """
    path = resolve_data(source.path)
    written = written_as(source, written)
    file = open_readable(source, path, written)
    stamp = _stamp(file.files, source, written)
    # The index of a file that has changed takes the place of the old one.
    name = orjson.dumps(
        [os.fsdecode(path.resolve()).encode(errors="replace").decode(), source.rows]
    )
    key = blake2b(name, digest_size=8).hexdigest()
    folder = cache / f"rows-{key}"
    about = _load(folder, stamp, file.files)
    if about is None:
        cache = writable(cache)
        folder = cache / folder.name
        # The ranks of a run begin together. The lock is beside the folder, which is replaced.
        lock = folder.with_suffix(".lock")
        with locked(lock, waiting(f"is indexing {shown(path)}")):
            about = _load(folder, stamp, file.files)
            if about is None:
                for part in cache.glob(f".{folder.name}.*"):
                    shutil.rmtree(part)  # of a process that was killed: no other is here
                with new_folder(folder) as part:
                    _index(file, source, written, stamp, part, strict=strict)
                about = _load(folder, stamp, file.files)
    assert about is not None, f"the index of {path} was written, and cannot be read"
    if strict and about.bad_count:
        raise bad_row_stops(*about.bad[0])
    return Rows(source, folder, about)


def _stamp(files: Sequence[Path], source: Source, written: Written) -> str:
    """Return what makes an index stale when it changes."""
    try:
        stamps = [(os.path.realpath(file), *Stamp.of(file.stat())) for file in files]
    except OSError as error:
        raise UsageError(f"{shown(files[0])} cannot be read: {error.strerror}") from None
    return orjson.dumps([VERSION, source.rows, list(written), stamps]).decode()


def _content(files: Sequence[Path]) -> str:
    """Return a hash of the bytes of a source's files."""
    hashed = blake2b(digest_size=16)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while part := opened.read(1 << 20):
                hashed.update(part)
    return hashed.hexdigest()


def _load(folder: Path, stamp: str, files: Sequence[Path]) -> About | None:
    """Return the index in a folder if it is of the source as it is now, else None."""
    try:
        about = About(**orjson.loads(read_bytes(folder / ABOUT)))
        if sizes(folder) != about.sizes:
            return None
        if about.stamp != stamp:
            # Another mode, or a copy of the file: its bytes decide.
            if _without_inodes(about.stamp) != _without_inodes(stamp):
                return None
            if about.content != _content(files):
                return None
            about = dataclasses.replace(about, stamp=stamp)
            with contextlib.suppress(OSError), new_file(folder / ABOUT) as part:
                part.write_bytes(orjson.dumps(about))
    except (OSError, UsageError, ValueError, TypeError):
        return None
    return about


def _without_inodes(stamp: str) -> object:
    """Return a stamp of `_stamp` without the times of change and the numbers of inodes."""
    *others, files = orjson.loads(stamp)
    return others, [file[:3] for file in files]


def _index(
    file: Readable, source: Source, written: Written, stamp: str, folder: Path, *, strict: bool
) -> None:
    size = sum(part.stat().st_size for part in file.files)
    if size > LONG_BYTES and not source.rows:
        amount = f"{size_in_words(size)} are indexed, once"
        note(f"{shown(file.path)}: {amount}; plain text at 1.5 GB a minute")
    content = _content(file.files)
    write_index(file, folder, stamp, rows=source.rows, strict=strict, content=content)
    if _stamp(file.files, source, written) != stamp:
        raise UsageError(f"{shown(file.path)} changed while it was read; start again")
