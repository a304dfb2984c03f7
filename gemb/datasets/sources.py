"""What a recipe's source is on the disk: a file of rows, a BEIR folder, or rows and a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gemb.datasets.beir import open_folder
from gemb.datasets.files import AS_USUAL, RawRow, Written, open_file
from gemb.datasets.tevatron import CORPUS, TevatronFile, names_documents
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Source
from gemb.texts.contents import checked_encoding, shown


class Readable(Protocol):
    """A file, or a folder, of training data."""

    note: str  # how its columns were found

    @property
    def path(self) -> Path:
        """The file of the rows, or the folder."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def name(self) -> str:
        """What it is, in words."""

    @property
    def in_place(self) -> bool:
        """Whether a row can be read again from its offset and size."""

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows, bad ones too."""


def open_readable(source: Source, path: Path, written: Written) -> Readable:
    """Return what a source's rows are read from.

    Args:
        source: of a recipe.
        path: where it is, as `resolve_data` says.
        written: how the texts of a file are written.

    Raises:
        UsageError: it is none that can be read, or its corpus is not there or not needed.
    """
    if path.is_dir():
        folder = open_folder(path, written)
        if source.corpus:
            raise UsageError(f"{shown(path)}: a BEIR folder has a corpus; leave out 'corpus'")
        return folder
    file = open_file(path, written)
    if names_documents(file):
        return TevatronFile(file, resolve_data(source.corpus or str(path.with_name(CORPUS))))
    if source.corpus:
        raise UsageError(f"{shown(path)}: its rows name no documents by id; leave out 'corpus'")
    return file


def written_as(source: Source, written: Written = AS_USUAL) -> Written:
    """Return how the texts of a source are written, where it names an encoding.

    Raises:
        UsageError: there is no such encoding.
    """
    if not source.encoding:
        return written
    return written._replace(encoding=checked_encoding(source.encoding))


def name_of(source: Source) -> str:
    """Return the source's name in reports: its own, or the stem of its path."""
    stem = Path(source.path).name.removesuffix(".gz")
    return visible(source.name or Path(stem).stem or source.path)
