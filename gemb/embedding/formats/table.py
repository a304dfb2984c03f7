"""The formats of vectors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gemb.embedding.formats.arrays import Npy, Npz, Raw
from gemb.embedding.formats.base import Layout, Writer
from gemb.embedding.formats.lines import Base64, Csv, JsonLines, Preview
from gemb.embedding.formats.parquet import Parquet
from gemb.io.streams import Output

WRITERS: Mapping[str, Callable[[Output, Layout], Writer]] = {
    "jsonl": JsonLines,
    "npy": Npy,
    "npz": Npz,
    "parquet": Parquet,
    "csv": Csv,
    "f32": Raw,
    "base64": Base64,
    "preview": Preview,
}
ARRAYS = ("npy", "npz", "f32", "base64")  # they hold numbers alone
