"""What an index is made of: rows of files, passages of files, or vectors of `gemb embed`.

The manifest keeps the source, so that a sync needs no arguments.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gemb.embedding.formats.read import holds_vectors
from gemb.errors import GembError, UsageError
from gemb.index.manifest import is_index, real_path, shown_path
from gemb.io.foreign import check_types
from gemb.io.text import visible
from gemb.texts import INPUT_FORMATS, PASSAGE_KINDS, inputs
from gemb.texts.contents import checked_encoding
from gemb.texts.inputs import Reading
from gemb.texts.passages import split
from gemb.texts.records import Fields, Id, Record, unfit
from gemb.texts.walk import MOST_BYTES, Entry, Skipped, Walk, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

STDIN = "-"
ON_LONG = ("truncate", "error", "skip")


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """What all sources have."""

    kind: ClassVar[str]

    base: str  # absolute; relative paths start here
    paths: tuple[str, ...]  # as they were typed; - is standard input
    on_long: str = "truncate"  # a text longer than the model takes: truncate, error, skip

    @property
    def is_stdin(self) -> bool:
        """Whether it can be read only when it is given again."""
        return STDIN in self.paths

    def real(self) -> list[str]:
        """Return the paths as one types them here."""
        return [path if path == STDIN else shown_path(path, self.base) for path in self.paths]

    def to_json(self) -> dict[str, object]:
        """Return what `source_from_json` reads."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class _Rows(_Paths):
    """Which field of a row is what."""

    text: tuple[str, ...] = ()
    title: str | None = None  # None: `title`, where there is one
    id: str | None = None
    keep: tuple[str, ...] = ()
    keep_all: bool = True

    @property
    def fields(self) -> Fields:
        """The fields as readers of rows take them."""
        return Fields(
            text=self.text,
            title=self.title or "title",
            id=self.id,
            keep=self.keep,
            keep_all=self.keep_all,
            title_may_lack=self.title is None,
        )


@dataclass(frozen=True, kw_only=True)
class RowSource(_Rows):
    """Rows of files or of standard input."""

    kind: ClassVar[str] = "rows"

    format: str = "auto"
    null: bool = False  # texts end in NUL
    encoding: str = ""  # as `Reading` has it
    quoting: str = ""

    @property
    def reading(self) -> Reading:
        """How its inputs are read."""
        separator = b"\0" if self.null else b"\n"
        return Reading(
            format=self.format,
            separator=separator,
            fields=self.fields,
            encoding=self.encoding,
            quoting=self.quoting,
        )


@dataclass(frozen=True, kw_only=True)
class VectorSource(_Rows):
    """Rows of files that `gemb embed` wrote, with their vectors."""

    kind: ClassVar[str] = "vectors"


@dataclass(frozen=True, kw_only=True)
class PassageSource(_Paths):
    """Passages of files."""

    kind: ClassVar[str] = "passages"

    globs: tuple[str, ...] = ()
    hidden: bool = False
    ignore: bool = True
    follow: bool = False
    most_bytes: int = MOST_BYTES
    encoding: str = ""  # of files without a byte-order mark
    split: str = "auto"  # one of `gemb.texts.PASSAGE_KINDS`

    @property
    def walk(self) -> Walk:
        """Which files of a folder are read."""
        return Walk(
            globs=self.globs,
            hidden=self.hidden,
            ignore=self.ignore,
            follow=self.follow,
            most_bytes=self.most_bytes,
            encoding=self.encoding,
        )


Source = RowSource | VectorSource | PassageSource


def source_from_json(entries: Mapping[str, object]) -> Source:
    """Return the source that a manifest describes.

    Raises:
        GembError: it describes none.
    """
    kinds = {source.kind: source for source in (RowSource, VectorSource, PassageSource)}
    try:
        source = kinds[str(entries.get("kind"))]
        known = {field.name for field in dataclasses.fields(source)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entries.items()
            if name in known  # version 0.1.0 wrote the fields of all kinds
        }
        check_types(source, values)
        if not os.path.isabs(values["base"]):  # noqa: PTH117
            raise TypeError("base is a path from the root")
        choices = {"format": INPUT_FORMATS, "split": PASSAGE_KINDS, "on_long": ON_LONG}
        if any(values[name] not in choices[name] for name in choices.keys() & values.keys()):
            raise TypeError("an option that there is not")
        checked_encoding(values.get("encoding", ""))
        return source(**values)
    except (KeyError, TypeError, UsageError):
        raise GembError("the manifest names no source; build the index anew") from None


def chosen_source(rows: RowSource, passages: PassageSource, *, wants_passages: bool) -> Source:
    """Return which source is meant, and check what can be checked before a model is loaded.

    Args:
        rows: the source, if its files are rows.
        passages: the source, of the same paths, if its files are split into passages.
        wants_passages: also of files that could be rows.

    Raises:
        UsageError: a path cannot be read, or options do not go together.
    """
    paths = rows.paths
    for path in paths:
        if path != STDIN and not os.path.exists(path):  # noqa: PTH110
            raise UsageError(f"no such file or folder: {visible(path)}")
    if wants_passages or any(path != STDIN and os.path.isdir(path) for path in paths):  # noqa: PTH112
        if rows.is_stdin:
            raise UsageError("standard input has rows, not files; name files or folders")
        if rows.fields.named() or rows.null or rows.format != "auto" or rows.quoting:
            raise UsageError(
                "-I, -0, --quoting and --...-field are for rows of FILEs, not for passages of files"
            )
        return passages
    inputs.check(paths)
    has_vectors = [path != STDIN and holds_vectors(Path(path)) for path in paths]
    if not any(has_vectors) or rows.format != "auto":
        return rows
    if not all(has_vectors):
        plain = paths[has_vectors.index(False)]
        raise UsageError(f"{visible(plain)} has texts, other files have vectors: not together")
    names = {field.name for field in dataclasses.fields(VectorSource)}
    return VectorSource(**{name: getattr(rows, name) for name in names})


def described(paths: Sequence[str]) -> str:
    """Return the sources in a few words."""
    shown = ["standard input" if path == STDIN else path for path in paths[:3]]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(shown) + more


class SourceRow(NamedTuple):
    """A row before it has a vector."""

    record: Record  # its text, title, kept fields, and what is wrong with it
    id: Id | None  # None: a passage of a file
    path: str | None = None  # as the index keeps it
    line: int | None = None
    last_line: int | None = None
    stored: NDArray[Any] | None = None  # its vector as the index stores it, [1, dim], if it has one


def source_rows(source: RowSource) -> Iterator[SourceRow]:
    """Yield the rows of files and of standard input, bad ones too, in order.

    Raises:
        UsageError: an input cannot be read as the source says.
    """
    several = len(source.paths) > 1
    for path, real in zip(source.paths, source.real(), strict=True):
        kept = None if path == STDIN else os.path.normpath(path)
        for record in inputs.read([real], source.reading):
            if record is None:
                continue
            row_id: Id = record.id
            if several and source.id is None:
                row_id = f"{kept or STDIN}:{record.id}"
            # Only lines and JSON lines have their line's number for a place.
            word, _, number = record.place.partition(" ")
            is_line = kept is not None and word == "line" and number.isdigit()
            yield SourceRow(record, row_id, kept, int(number) if is_line else None)


def total_size(source: RowSource) -> int | None:
    """Return the sum of all `Record.size` to come, or None where it is not known."""
    return inputs.total_size(source.real(), source.reading)


def passage_rows(text: str, path: str, source: PassageSource) -> Sequence[SourceRow]:
    """Return the passages of a file's text."""
    rows = []
    for passage in split(text, path, source.split):
        words = text[passage.start : passage.end]
        place = f"{visible(path)}:{passage.line}"
        size = len(words) if words.isascii() else len(words.encode("utf-8", "replace"))
        record = Record(place, place, words, passage.title, error=unfit(words), size=size)
        rows.append(SourceRow(record, None, path, passage.line, passage.last_line))
    return rows


def entries(source: PassageSource, skipped: Skipped) -> list[Entry]:
    """Return the files, in order; their paths are as the index keeps them."""
    roots = [real_path(path, source.base) for path in source.paths]
    relative_roots = [
        root
        for path, root in zip(source.paths, roots, strict=True)
        if not os.path.isabs(path)  # noqa: PTH117
    ]
    files = []
    for entry in walk(source.real(), source.walk, skipped):
        if not _in_index(os.path.dirname(entry.real)):  # noqa: PTH120
            is_relative = any(
                entry.real == root or entry.real.startswith(root.rstrip("/") + "/")
                for root in relative_roots
            )
            path = os.path.relpath(entry.real, source.base) if is_relative else entry.real
            files.append(entry._replace(path=path))
    _in_index.cache_clear()
    return files


def is_gone(path: str, source: PassageSource, skipped: Skipped) -> bool:
    """Return whether a file that the walk did not find is no part of the source any more.

    It may be, where the way to it is closed for now; one that is there and open was left out by
    the rules, which have changed.
    """
    try:
        os.stat(real_path(path, source.base))  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return not skipped.failed


@cache
def _in_index(folder: str) -> bool:
    return is_index(Path(folder))
