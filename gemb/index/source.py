"""What an index is made of, as its manifest keeps it, so that a sync needs no arguments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gemb.errors import GembError
from gemb.index import manifest as places
from gemb.index.manifest import is_index
from gemb.io.text import visible
from gemb.texts import inputs
from gemb.texts.inputs import Reading
from gemb.texts.passages import split
from gemb.texts.records import Fields, Id, Record, unfit
from gemb.texts.walk import MOST_BYTES, Entry, Skipped, Walk, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray


STDIN = "-"
ROWS, PASSAGES, VECTORS = "rows", "passages", "vectors"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from, and how they are read."""

    kind: str  # ROWS of files or standard input; PASSAGES of files; VECTORS of `gemb embed`
    base: str  # absolute; relative paths start here
    paths: tuple[str, ...]  # as they were typed; - is standard input
    on_long: str = "truncate"  # a text longer than the model takes: truncate, error, skip
    # Of rows:
    format: str = "auto"
    null: bool = False  # texts end in NUL
    text: tuple[str, ...] = ()
    title: str | None = None  # None: `title`, where there is one
    id: str | None = None
    keep: tuple[str, ...] = ()
    keep_all: bool = True
    # Of passages:
    globs: tuple[str, ...] = ()
    hidden: bool = False
    ignore: bool = True
    follow: bool = False
    most_bytes: int = MOST_BYTES
    split: str = "auto"  # one of `gemb.texts.PASSAGE_KINDS`

    @property
    def is_stdin(self) -> bool:
        """Whether it can be read only when it is given again."""
        return STDIN in self.paths

    @property
    def fields(self) -> Fields:
        """Which field of a row is what."""
        return Fields(
            text=self.text,
            title=self.title or "title",
            id=self.id,
            keep=self.keep,
            keep_all=self.keep_all,
            title_may_lack=self.title is None,
        )

    @property
    def walk(self) -> Walk:
        """Which files of a folder are read."""
        return Walk(
            globs=self.globs,
            hidden=self.hidden,
            ignore=self.ignore,
            follow=self.follow,
            most_bytes=self.most_bytes,
        )

    def real(self) -> list[str]:
        """Return the paths as one types them here."""
        return [path if path == STDIN else places.shown(path, self.base) for path in self.paths]

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        return asdict(self)

    @staticmethod
    def from_json(entries: Mapping[str, object]) -> Source:
        """Return the source that a manifest describes.

        Raises:
            GembError: it describes none.
        """
        known = {field.name: field for field in dataclasses.fields(Source)}
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entries.items()
            if name in known
        }
        try:
            return Source(**values)  # type: ignore[arg-type]
        except TypeError:
            raise GembError("the manifest names no source; build the index anew") from None


class SourceRow(NamedTuple):
    """A row before it has a vector."""

    record: Record  # its text, title, kept fields, and what is wrong with it
    id: Id | None  # None: a passage of a file
    path: str | None = None  # as the index keeps it
    line: int | None = None
    last_line: int | None = None
    stored: NDArray[Any] | None = None  # its vector as the index stores it, [1, dim], if it has one


def source_rows(source: Source) -> Iterator[SourceRow]:
    """Yield the rows of files and of standard input, bad ones too, in order.

    Raises:
        UsageError: an input cannot be read as the source says.
    """
    reading = Reading(
        format=source.format,
        separator=b"\0" if source.null else b"\n",
        fields=source.fields,
    )
    several = len(source.paths) > 1
    for path, real in zip(source.paths, source.real(), strict=True):
        kept = None if path == STDIN else os.path.normpath(path)
        for record in inputs.read([real], reading):
            if record is None:
                continue
            row_id: Id = record.id
            if several and source.id is None:
                row_id = f"{kept or STDIN}:{record.id}"
            # Only lines and JSON lines have their line's number for a place.
            word, _, number = record.place.partition(" ")
            is_line = kept is not None and word == "line" and number.isdigit()
            yield SourceRow(record, row_id, kept, int(number) if is_line else None)


def total_size(source: Source) -> int | None:
    """Return the sum of all `Record.size` to come, or None where it is not known."""
    return inputs.total_size(source.real(), Reading(format=source.format))


def described(paths: Sequence[str]) -> str:
    """Return the sources in a few words."""
    shown = ["standard input" if path == STDIN else path for path in paths[:3]]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(shown) + more


# The files that an index is made of, and their passages.


def entries(source: Source, skipped: Skipped) -> list[Entry]:
    """Return the files, in order; their paths are as the index keeps them."""
    roots = [places.real(path, source.base) for path in source.paths]
    kept = {root: not os.path.isabs(path) for path, root in zip(source.paths, roots, strict=True)}  # noqa: PTH117
    found = []
    for entry in walk(source.real(), source.walk, skipped):
        if not _in_index(os.path.dirname(entry.real)):  # noqa: PTH120
            is_relative = any(
                one and (entry.real == root or entry.real.startswith(root.rstrip("/") + "/"))
                for root, one in kept.items()
            )
            path = os.path.relpath(entry.real, source.base) if is_relative else entry.real
            found.append(entry._replace(path=path))
    _in_index.cache_clear()
    return found


def is_gone(path: str, source: Source, skipped: Skipped) -> bool:
    """Return whether a file that the walk did not find is no part of the source any more.

    It may be, where the way to it is closed for now; one that is there and open was left out by
    the rules, which have changed.
    """
    try:
        os.stat(places.real(path, source.base))  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return not skipped.failed


def passage_rows(text: str, path: str, source: Source) -> Sequence[SourceRow]:
    """Return the passages of a file's text."""
    rows = []
    for passage in split(text, path, source.split):
        words = text[passage.start : passage.end]
        place = f"{visible(path)}:{passage.line}"
        size = len(words) if words.isascii() else len(words.encode("utf-8", "replace"))
        record = Record(place, place, words, passage.title, error=unfit(words), size=size)
        rows.append(SourceRow(record, None, path, passage.line, passage.last_line))
    return rows


@cache
def _in_index(folder: str) -> bool:
    return is_index(Path(folder))
