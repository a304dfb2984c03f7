"""The end of every change of an index: lookups, codes, background, manifest."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from gemb.backend import Encoder
from gemb.index.manifest import Manifest, vectors_path, write_manifest
from gemb.index.reader import NUMBERS, mapped
from gemb.index.writer import Writer
from gemb.search.background import measure

GROWN = 2  # times as many rows as when the background was measured: measure it again


def finish(folder: Path, manifest: Manifest, writer: Writer, encoder: Encoder | None) -> None:
    """Write what readers need beside the rows: lookups, codes, the manifest as it is now.

    Raises:
        GembError: the database cannot be written.
        OSError: a file cannot be written.
    """
    writer.make_lookups()
    writer.make_codes()
    assert writer.coder, "it was made with the codes"
    background, measured = manifest.background, manifest.background_rows
    if background is None or (encoder is not None and writer.slots >= GROWN * measured):
        spec = manifest.spec
        path = vectors_path(folder, manifest.generation, spec.dtype)
        stored = mapped(path, NUMBERS[spec.dtype], writer.slots, spec.dim)
        background = measure(stored, spec.dtype, spec, encoder).to_json()
        measured = writer.slots if encoder else 0
    manifest = dataclasses.replace(
        manifest,
        coder=manifest.coder or writer.coder.to_json(),
        background=background,
        background_rows=measured,
        synced=now(),
    )
    write_manifest(folder, manifest)


def now() -> str:
    """Return date and time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
