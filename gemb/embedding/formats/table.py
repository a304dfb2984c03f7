"""The formats of vector files: one table, which everything that names a format reads.

To add a format, write its writer and its reader in a file of this package, and add an entry here.
The table is read before anything else is loaded (`gemb embed --help`), so it names them only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.embedding import DTYPES

if TYPE_CHECKING:
    from gemb.embedding.formats.base import FileLayout, VectorReader, VectorWriter
    from gemb.io.streams import Output


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is known of a format without its writer and reader being loaded."""

    name: str  # of `gemb embed -O`
    writer: str  # MODULE:CLASS
    reader: str = ""  # MODULE:CLASS; empty: gemb does not read the format
    suffixes: tuple[str, ...] = ()  # of files in this format
    needs_sidecar: bool = False  # the description of the vectors is in a file beside
    holds_fields: bool = True  # of a row: what --keep names, and an error; else numbers alone
    dtypes: tuple[str, ...] = DTYPES
    is_for_people: bool = False  # a terminal shows it; no option names it
    needs_pyarrow: bool = False
    reads_gz: bool = False  # a file may be compressed: its name ends in .gz

    def new_writer(self, output: Output, layout: FileLayout) -> VectorWriter:
        """Return a writer into the output."""
        writer: VectorWriter = _imported(self.writer)(output, layout)
        return writer

    @property
    def reader_class(self) -> type[VectorReader]:
        """What reads a file of this format, which must have a reader."""
        reader: type[VectorReader] = _imported(self.reader)
        return reader


def _imported(name: str) -> Any:  # noqa: ANN401  a class of any module
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _family(file: str, name: str) -> str:
    return f"gemb.embedding.formats.{file}:{name}"


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(
            name="jsonl",
            suffixes=(".jsonl", ".json", ".ndjson"),
            writer=_family("lines", "JsonLinesWriter"),
            reader=_family("lines", "JsonLinesReader"),
            reads_gz=True,
        ),
        Format(
            name="npy",
            suffixes=(".npy",),
            writer=_family("arrays", "NpyWriter"),
            reader=_family("arrays", "NpyReader"),
            needs_sidecar=True,
            holds_fields=False,
        ),
        Format(
            name="npz",
            suffixes=(".npz",),
            writer=_family("arrays", "NpzWriter"),
            reader=_family("arrays", "NpzReader"),
            holds_fields=False,
        ),
        Format(
            name="parquet",
            suffixes=(".parquet",),
            writer=_family("parquet", "ParquetWriter"),
            reader=_family("parquet", "ParquetReader"),
            needs_pyarrow=True,
        ),
        Format(
            name="csv",
            suffixes=(".csv",),
            writer=_family("lines", "CsvWriter"),
            needs_sidecar=True,
        ),
        Format(
            name="f32",
            suffixes=(".f32",),
            writer=_family("arrays", "F32Writer"),
            reader=_family("arrays", "F32Reader"),
            needs_sidecar=True,
            holds_fields=False,
            dtypes=("f32",),
        ),
        Format(
            name="base64",
            suffixes=(".base64",),
            writer=_family("lines", "Base64Writer"),
            needs_sidecar=True,
            holds_fields=False,
        ),
        Format(name="preview", writer=_family("lines", "PreviewWriter"), is_for_people=True),
    )
}


def format_of(path: Path) -> Format | None:
    """Return the format that a file's suffix names, None where it names none."""
    suffix = path.suffix.lower()
    return next((form for form in FORMATS.values() if suffix in form.suffixes), None)


def read_format_of(path: Path) -> Format | None:
    """Return the format in which a file is read, which may be compressed; None: its name has none.

    A compressed file of a format that is not read so has none.
    """
    if path.suffix.lower() != ".gz":
        return format_of(path)
    form = format_of(path.with_suffix(""))
    return form if form and form.reads_gz else None


def readable_suffixes() -> tuple[str, ...]:
    """Return the suffixes of the files that `open_vectors` reads, the main one of each format."""
    return tuple(form.suffixes[0] for form in FORMATS.values() if form.reader)
