"""An index without its removed rows: written beside the old one, under the next generation."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from gemb.index.finish import now
from gemb.index.manifest import (
    Manifest,
    codes_path,
    read_manifest,
    rows_path,
    vectors_path,
    write_manifest,
)
from gemb.index.reader import Index
from gemb.index.rows import COLUMNS, crc
from gemb.index.schema import readable
from gemb.index.verify import bad_blocks, damaged
from gemb.index.writer import Writer
from gemb.io.locks import locked_index

_NUMBERED = re.compile(r"(rows|vectors|codes)(\.\d+)?\.(sqlite(-wal|-shm)?|f32|f16|int8|bin)")


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    removed: int  # slots that are gone
    before: int  # bytes of all files
    after: int


def compact(folder: Path) -> Compacted:
    """Leave out the removed rows. Readers that have the index open keep what they see.

    It needs as much free space as the index that results.

    Raises:
        UsageError: the folder is no index.
        GembError: the index is damaged.
        OSError: the disk is full; the index is as it was.
    """
    read_manifest(folder)
    with locked_index(folder):
        manifest = read_manifest(folder)
        before = size(folder)
        with Index.open(folder) as index:
            removed = len(index.stored) - index.count
            if removed:
                _check(index)
                _rewrite(folder, index, _next(manifest))
        _tidy(folder, read_manifest(folder))
        return Compacted(removed, before, size(folder))


def _check(index: Index) -> None:
    """Refuse damaged vectors: their copies would have good checksums.

    Raises:
        GembError: a block is damaged.
    """
    path = vectors_path(index.folder, index.manifest.generation, index.spec.dtype)
    if bad := bad_blocks(index, "crc_vectors", index.stored):
        raise damaged(path, f"the block from row {bad[0]}")


def size(folder: Path) -> int:
    """Return the bytes of all files of an index."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _next(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, generation=manifest.generation + 1, coder=None, synced=now()
    )


def _rewrite(folder: Path, index: Index, manifest: Manifest) -> None:
    """Write the files of the next generation, and make them the index."""
    for path in _files(folder, manifest):
        path.unlink(missing_ok=True)  # of a compaction that was stopped
    writer = Writer(folder, manifest)
    try:
        _copy(index, writer)
        writer.make_lookups()
        writer.make_codes()
        assert writer.coder, "it was made with the codes"
        manifest = dataclasses.replace(manifest, coder=writer.coder.to_json())
    except BaseException:
        with contextlib.suppress(OSError):
            writer.close()
            for path in _files(folder, manifest):
                path.unlink(missing_ok=True)
        raise
    writer.close()
    write_manifest(folder, manifest)


def _copy(index: Index, writer: Writer) -> None:
    """Copy the rows that are left, with their vectors."""
    path = rows_path(index.folder, index.manifest.generation)
    with readable(path):
        rows = index.connection.execute(f"SELECT slot, {COLUMNS} FROM rows ORDER BY slot")
        for slot, *columns in rows:
            if crc(tuple(columns[:-1])) != columns[-1]:
                raise damaged(path, f"row {slot}")
            writer.add_columns(tuple(columns), index.stored[slot : slot + 1])
            writer.tick()
        for values in index.connection.execute("SELECT * FROM files"):
            writer.run("INSERT INTO files VALUES (?, ?, ?, ?, ?)", values)
    writer.commit()


def _files(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the files of a generation, there or not."""
    rows = rows_path(folder, manifest.generation)
    return [
        rows,
        rows.with_name(rows.name + "-wal"),
        rows.with_name(rows.name + "-shm"),
        vectors_path(folder, manifest.generation, manifest.spec.dtype),
        codes_path(folder, manifest.generation),
    ]


def _tidy(folder: Path, manifest: Manifest) -> None:
    """Remove the files of other generations: the last one, or what a kill left of a next one."""
    ours = {path.name for path in _files(folder, manifest)}
    for path in folder.iterdir():
        if path.name not in ours and _NUMBERED.fullmatch(path.name):
            path.unlink()
