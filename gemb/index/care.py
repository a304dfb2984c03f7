"""The care of an index: rows removed, their space given back, and what the index is."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from gemb.errors import UsageError
from gemb.index.differences import MayRemove
from gemb.index.drafts import NUMBERS as DRAFT_NUMBERS
from gemb.index.drafts import keep_wanted, wanted
from gemb.index.manifest import (
    Manifest,
    check_own,
    codes_path,
    kept_paths,
    read_manifest,
    rows_path,
    vectors_path,
    wanted_path,
    write_manifest,
)
from gemb.index.reader import Index, slots_of_id
from gemb.index.schema import COLUMNS, crc, path_column, readable, stored_files
from gemb.index.source import described, source_from_json
from gemb.index.state import Changes
from gemb.index.sync import finish, now, writing
from gemb.index.verify import bad_blocks, damaged_file
from gemb.index.where import condition_for, matching
from gemb.index.writer import Writer
from gemb.io.locks import locked_index
from gemb.io.notes import note
from gemb.io.text import visible

_NUMBERED = re.compile(
    r"(rows|vectors|codes|wanted)(\.\d+)?\.(sqlite(-wal|-shm)?|f32|f16|int8|bin)"
)


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    removed: int  # slots that are gone
    before: int  # bytes of all files
    after: int


def compact(folder: Path) -> Compacted:
    """Leave out the removed rows. Readers that have the index open keep what they see.

    The rows that are left are written beside the old ones, under the next generation.
    It needs as much free space as the index that results.

    Raises:
        UsageError: the folder is no index.
        GembError: the index is damaged.
        OSError: the disk is full; the index is as it was.
    """
    check_own(folder, read_manifest(folder))
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
        raise damaged_file(path, f"the block from row {bad[0]}")


def size(folder: Path) -> int:
    """Return the bytes of all files of an index."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _next(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, generation=manifest.generation + 1, coder=None, slots=0, synced=now()
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
        manifest = dataclasses.replace(manifest, coder=writer.coder.to_json(), slots=writer.slots)
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
    drafts = set(index.drafts.tolist())
    moved: dict[int, int] = {}  # of drafts
    with readable(path):
        rows = index.connection.execute(f"SELECT slot, {COLUMNS} FROM rows ORDER BY slot")
        for slot, *columns in rows:
            if crc(tuple(columns[:-1])) != columns[-1]:
                raise damaged_file(path, f"row {slot}")
            if is_draft := slot in drafts:
                moved[slot] = writer.slots
            draft = index.kept_drafts([slot]).get(slot) if index.manifest.draft else None
            writer.add_columns(
                tuple(columns),
                index.stored[slot : slot + 1],
                is_draft=is_draft,
                draft=None if draft is None else draft.astype(DRAFT_NUMBERS).tobytes(),
            )
            writer.tick()
        for file in stored_files(index.connection):
            writer.put_file(file)
    writer.commit()
    generation = index.manifest.generation
    are_wanted = wanted(wanted_path(index.folder, generation))
    keep_wanted(
        wanted_path(index.folder, generation + 1),
        [moved[slot] for slot in are_wanted if slot in moved],
    )


def _files(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the files of a generation, there or not."""
    rows = rows_path(folder, manifest.generation)
    return [
        rows,
        rows.with_name(rows.name + "-wal"),
        rows.with_name(rows.name + "-shm"),
        vectors_path(folder, manifest.generation, manifest.spec.dtype),
        codes_path(folder, manifest.generation),
        wanted_path(folder, manifest.generation),
    ]


def _tidy(folder: Path, manifest: Manifest) -> None:
    """Remove the files of other generations: the last one, or what a kill left of a next one."""
    ours = {path.name for path in _files(folder, manifest)}
    for path in folder.iterdir():
        if path.name not in ours and _NUMBERED.fullmatch(path.name):
            path.unlink()


def remove(
    folder: Path,
    references: Sequence[str],
    where: str | None,
    may_remove: MayRemove | None,
) -> Changes:
    """Remove rows, or only count them.

    Args:
        folder: of the index.
        references: ids, files, folders.
        where: a filter.
        may_remove: asked first; None: only count.

    Raises:
        UsageError: a reference names nothing, the filter is none, or `may_remove` forbids.
        GembError: the index is damaged.
    """
    if may_remove is None:
        with Index.open(folder) as index:
            slots = _slots(index.connection, index.manifest, references, where)
            return Changes(unit="rows", removed=len(slots))
    with writing(folder) as (manifest, writer):
        slots = _slots(writer.connection, manifest, references, where)
        count = writer.rows
        may_remove(len(slots), count)
        # A file that lost a passage is read again by the next sync; one that lost all is new.
        writer.run("CREATE TEMP TABLE out_of(path)")
        for slot in slots:
            writer.run("INSERT INTO out_of SELECT path FROM rows WHERE slot = ?", (slot,))
        files = "SELECT DISTINCT path FROM out_of WHERE path IN (SELECT path FROM files)"
        for path in writer.connection.execute(files).fetchall():
            writer.read_again(path)
        writer.remove(slots)
        writer.run(
            "DELETE FROM files WHERE path IN (SELECT path FROM out_of) "
            "AND path NOT IN (SELECT path FROM rows WHERE path IS NOT NULL)"
        )
        writer.commit()
        finish(folder, manifest, writer, None)
        return Changes(unit="rows", removed=len(slots), rows=count - len(slots))


def _slots(
    connection: sqlite3.Connection, manifest: Manifest, references: Sequence[str], where: str | None
) -> list[int]:
    """Return the slots that are meant, ascending."""
    slots: set[int] = set()
    for reference in references:
        named = _named(connection, manifest, reference)
        if not named:
            raise UsageError(f"no row and no file '{visible(reference, 80)}'; nothing was removed")
        slots |= named
    if where is not None:
        slots.update(matching(connection, condition_for(connection, where)).tolist())
    return sorted(slots)


def _named(connection: sqlite3.Connection, manifest: Manifest, reference: str) -> set[int]:
    """Return the slots of an id, of a file, or of all files in a folder."""
    slots = set(slots_of_id(connection, reference))
    if len(slots) > 1:
        note(f"{len(slots)} rows have the id '{visible(reference, 80)}': all are meant")
    rows: list[tuple[int]] = []
    for path in kept_paths(reference, str(manifest.source.get("base", "/"))):
        column = path_column(path)
        rows += connection.execute("SELECT slot FROM rows WHERE path = ?", (column,)).fetchall()
        # All that begin with the folder and its slash; `0` follows `/`. A path that is no UTF-8 is
        # stored as bytes, which SQLite compares with bytes alone.
        query = "SELECT slot FROM rows WHERE path >= ? AND path < ?"
        if isinstance(column, str):
            rows += connection.execute(query, (column + "/", column + "0")).fetchall()
        data = os.fsencode(path)
        rows += connection.execute(query, (data + b"/", data + b"0")).fetchall()
    return slots | {slot for (slot,) in rows}


def info(folder: Path) -> dict[str, object]:
    """Return what an index is, by name.

    Raises:
        UsageError: the folder is no index.
        GembError: it is damaged.
    """
    with Index.open(folder) as index:
        manifest = index.manifest
        source = source_from_json(manifest.source)
        return {
            "path": str(folder.absolute()),
            "rows": index.count,
            "removed": len(index.stored) - index.count,
            "drafts": len(index.drafts),
            "files": sum(file.passages > 0 for file in stored_files(index.connection)),
            "model": manifest.model,
            "fingerprint": index.spec.fingerprint,
            "model_fingerprint": index.spec.model,
            "task": manifest.task,
            "prompt": index.spec.prompt,
            "query_task": manifest.query_task,
            "draft": dict(manifest.draft) if manifest.draft else None,
            "engines": list(manifest.engines),
            "dim": index.spec.dim,
            "dtype": index.spec.dtype,
            "max_tokens": index.spec.max_tokens,
            "codes": dict(manifest.coder)["kind"] if manifest.coder else None,
            "is_coded": index.codes is not None,
            "has_background": manifest.background is not None,
            "size_bytes": size(folder),
            "source": source.to_json(),
            "built": manifest.built,
            "synced": manifest.synced,
            "made_by": manifest.made_by,
        }


def _draft_lines(facts: dict[str, object]) -> list[tuple[str, str]]:
    """Return how far an index with drafts is, as lines of name and value."""
    rows, drafts = int(str(facts["rows"])), int(str(facts["drafts"]))
    if not facts["draft"]:
        return []
    share = 100 * (rows - drafts) // rows if rows else 100
    are = "is a draft" if drafts == 1 else "are drafts"
    rest = f"{drafts:,} {are}: gemb index refine" if drafts else "none is a draft"
    return [("vectors", f"{rows - drafts:,} of {rows:,} rows have real ones ({share} %); {rest}")]


def lines(facts: dict[str, object]) -> list[tuple[str, ...]]:
    """Return what `info` returned as lines of name and value."""
    from gemb.io.text import size_in_words

    source = source_from_json(facts["source"])  # type: ignore[arg-type]
    removed = f", {facts['removed']:,} removed" if facts["removed"] else ""
    files = f" of {facts['files']:,} files" if facts["files"] else ""
    rows = [
        ("path", str(facts["path"])),
        ("rows", f"{facts['rows']:,}{files}{removed}"),
        *_draft_lines(facts),
        ("model", f"{facts['model'] or 'not named'} (fingerprint {facts['model_fingerprint']})"),
        ("prompt", f"{facts['task']}: '{facts['prompt']}'"),
        ("vectors", f"{facts['dim']} wide, {facts['dtype']}, fingerprint {facts['fingerprint']}"),
        *([("engine", ", ".join(facts["engines"]))] if facts["engines"] else []),  # type: ignore[arg-type]
        ("codes", str(facts["codes"]) if facts["is_coded"] else "not all there"),
        ("source", f"{source.kind} of {described(source.paths)}, from {source.base}"),
        ("size", size_in_words(facts["size_bytes"])),  # type: ignore[arg-type]
        ("built", f"{facts['built']}, gemb {facts['made_by']}"),
        ("synced", str(facts["synced"])),
    ]
    return [(name, visible(value)) for name, value in rows]
