"""Is an index what it was when it was written? Checksums, counts, and ten rows embedded again."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.engine import AGREEMENT
from gemb.embedding.pipeline import Embedder
from gemb.embedding.vectors import are_units
from gemb.errors import GembError
from gemb.index.drafts import draft_of
from gemb.index.manifest import codes_path, rows_path, vectors_path
from gemb.index.reader import Index
from gemb.index.schema import COLUMNS, are_of_row, crc, readable, stored_files
from gemb.index.state import counted
from gemb.index.sync import OpenEncoder, check_model
from gemb.index.words import TOKENIZER, title_words, version_of_words
from gemb.io.text import size_in_words, visible
from gemb.texts.records import Record
from gemb.texts.words import VERSION, expanded

# Least cosine of a stored vector and the row's vector made again. A backend may round otherwise in
# another batch (bf16: 0.9998); int8 is within 0.9998 of its vector (`gemb.embedding.vectors`).
NEAR = 0.999
NEAR_INT8 = 0.998
SHOWN = 5  # damaged rows that are named
AT_A_TIME = 4096  # vectors whose lengths are computed


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def verify(
    folder: Path, open_encoder: OpenEncoder | None, *, rows: int, seed: int
) -> Iterator[Finding]:
    """Yield what was found, each as it is known.

    Args:
        folder: of the index.
        open_encoder: opens its model; None: no row is embedded again.
        rows: how many random rows are.
        seed: which.

    Raises:
        UsageError: it is no index, or the model is another one.
        GembError: it is so damaged that it cannot be opened.
    """
    with Index.open(folder) as index:
        manifest = index.manifest
        path = vectors_path(folder, manifest.generation, index.spec.dtype)
        yield _blocks(index, "crc_vectors", index.stored, path)
        yield _lengths(index, path)
        if manifest.draft:
            yield _drafts(index, path)
        if index.codes is not None:
            path = codes_path(folder, manifest.generation)
            yield _blocks(index, "crc_codes", index.codes, path)
        else:
            yield Finding("codes", False, "not all there: gemb index sync makes them")
        is_whole = True
        for finding in _database(index, rows_path(folder, manifest.generation)):
            is_whole = is_whole and finding.ok
            yield finding
        if open_encoder and rows and index.count and is_whole:
            yield _again(index, open_encoder, rows, seed)


def bad_blocks(index: Index, column: str, array: NDArray[Any]) -> list[int]:
    """Return the first rows of the blocks whose checksum, `column`, does not fit the array."""
    query = f"SELECT first, count, {column} FROM blocks ORDER BY first"
    return [
        first
        for first, count, written in index.connection.execute(query)
        if zlib.crc32(np.ascontiguousarray(array[first : first + count]).data) != written
    ]


def damaged_file(path: Path, what: str) -> GembError:
    """Return the error of a file that is not what was written."""
    return GembError(
        f"{visible(str(path))}: {what} is damaged; build the index anew: gemb index build -f"
    )


def _blocks(index: Index, column: str, array: NDArray[Any], path: Path) -> Finding:
    """Compare the checksums of a file's blocks."""
    name = column.removeprefix("crc_")
    bad = bad_blocks(index, column, array)
    if bad:
        count = counted(len(bad), "block")
        where = f"{count} damaged, the first from row {bad[0]}"
        return Finding(name, False, f"{visible(str(path))}: {where}; build the index anew")
    return Finding(name, True, f"{size_in_words(array.nbytes)}, all blocks as written")


def _lengths(index: Index, path: Path) -> Finding:
    """Look for vectors that are not of length 1: no model made them, whatever their checksum."""
    for first in range(0, len(index.stored), AT_A_TIME):
        part = index.stored[first : first + AT_A_TIME]
        bad = ~index.are_whole(np.arange(first, first + len(part)), part)
        if bad.any():
            row = first + int(np.argmax(bad))
            where = f"{visible(str(path))}: the vector of row {row} is not of length 1"
            return Finding("lengths", False, f"{where}; build the index anew")
    return Finding("lengths", True, "all vectors are of length 1")


def _drafts(index: Index, path: Path) -> Finding:
    """Look whether the rows that are drafts are those with zeros behind the width of drafts."""
    width, rows = index.manifest.draft_width, np.arange(len(index.stored))
    name = visible(str(path))
    try:
        with readable(path):
            known = {slot for (slot,) in index.connection.execute("SELECT slot FROM rows")}
            kept = index.connection.execute("SELECT slot, vector FROM drafts").fetchall()
            if not known.issuperset(slot for slot, _ in kept):
                return Finding("drafts", False, f"{name}: a draft is of no row; build it anew")
            bad = [slot for slot, data in kept if data is not None and not _is_unit(data, width)]
    except GembError as error:
        return Finding("drafts", False, str(error))
    alive = rows if index.alive is None else index.alive
    is_draft = np.isin(alive, index.drafts)
    if width < index.spec.dim:
        for at in range(0, len(alive), AT_A_TIME):
            part = alive[at : at + AT_A_TIME]
            tails = np.asarray(index.stored[part])[:, width:]
            looks = ~tails.any(axis=1)
            bad += part[looks != is_draft[at : at + AT_A_TIME]].tolist()
    if bad:
        return Finding("drafts", False, f"{name}: row {bad[0]} is not what it was; build it anew")
    return Finding("drafts", True, f"{len(index.drafts):,} of {index.count:,} rows are drafts")


def _is_unit(data: object, width: int) -> bool:
    try:
        draft = draft_of(data, width)
    except sqlite3.DatabaseError:
        return False
    return bool(are_units(draft[None], "f32", width)[0])


def _database(index: Index, path: Path) -> Iterator[Finding]:
    """Look at the rows: SQLite's own check, their checksums, counts, and the words."""
    for name, look in (("rows", _rows), ("files", _files), ("words", _words), ("counts", _counts)):
        try:
            with readable(path):
                good, wrong = look(index)
        except GembError as error:
            good, said = "", str(error)
        else:
            said = wrong and f"{visible(str(path))}: {wrong}; build the index anew"
        yield Finding(name, not said, said or good)
        if said:
            return  # what the others find would be of the same damage


def _rows(index: Index) -> tuple[str, str]:
    """Return what is good, and what is wrong, or nothing; so do the functions below."""
    (said,) = index.connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise sqlite3.DatabaseError(" ".join(str(said).split()))
    query = f"SELECT slot, {COLUMNS} FROM rows"
    bad = [
        row[0]
        for row in index.connection.execute(query)
        if crc(row[1:-1]) != row[-1] or not are_of_row(row[1:])
    ]
    some = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
    return (
        f"{counted(index.count, 'row')} as written",
        f"{counted(len(bad), 'row')} damaged: {some}" if bad else "",
    )


def _files(index: Index) -> tuple[str, str]:
    count = sum(1 for _ in stored_files(index.connection))
    return f"{counted(count, 'file')} as read", ""


def _words(index: Index) -> tuple[str, str]:
    """Compare the words with the rows.

    FTS5 does it as if it wrote. So it is given a copy of its tables: no reader and no writer of the
    index waits, and the index may be on a disk that cannot be written to.
    """
    run = index.connection.execute
    config = run("SELECT k, v FROM words_config").fetchall()
    title, text = "title", "text"
    if version_of_words(index.connection) == VERSION:
        title, text = "title_words(id, path, title)", "text_words(text)"
        index.connection.create_function("title_words", 3, title_words)
        index.connection.create_function("text_words", 1, expanded)
    run("PRAGMA query_only=OFF")
    try:
        run(
            f"CREATE TEMP VIEW copied_rows AS SELECT slot, {title} AS title, {text} AS text "
            "FROM main.rows"
        )
        run(
            "CREATE VIRTUAL TABLE temp.copied USING fts5(title, text, content='copied_rows', "
            f"content_rowid='slot', {TOKENIZER})"
        )
        if config != run("SELECT k, v FROM copied_config").fetchall():
            return "", "the settings of the words are not as written"
        for table in ("data", "idx", "docsize"):
            run(f"DELETE FROM temp.copied_{table}")
            run(f"INSERT INTO temp.copied_{table} SELECT * FROM main.words_{table}")
        run("INSERT INTO temp.copied(copied, rank) VALUES ('integrity-check', 1)")
    finally:
        run("PRAGMA query_only=ON")
    return "those of the rows", ""


def _counts(index: Index) -> tuple[str, str]:
    """Compare the slots: each has a row, or is removed."""
    slots = len(index.stored)
    rows, beyond, both, words = index.connection.execute(
        "SELECT (SELECT count(*) FROM rows), "
        "(SELECT count(*) FROM rows WHERE slot < 0 OR slot >= ?), "
        "(SELECT count(*) FROM removed WHERE slot IN (SELECT slot FROM rows)), "
        "(SELECT count(*) FROM words_docsize)",
        (slots,),
    ).fetchone()
    removed = len(index.removed)
    good = f"{slots:,} vectors: {rows:,} rows, {removed:,} removed"
    if rows + removed != slots or beyond or both or words != rows:
        return "", (
            f"{rows} rows, {words} of them with words, and {removed} removed ones of {slots}; "
            f"{beyond} beyond, {both} of both kinds"
        )
    return good, ""


def _again(index: Index, open_encoder: OpenEncoder, rows: int, seed: int) -> Finding:
    """Embed random rows again, and compare their vectors."""
    random = np.random.default_rng(seed)
    slots = np.arange(len(index.stored)) if index.alive is None else index.alive
    slots = np.setdiff1d(slots, index.drafts, assume_unique=True)
    chosen = random.choice(slots, min(rows, len(slots)), replace=False)
    try:
        hits = index.hits(chosen, np.zeros(len(chosen), np.float32))
    except GembError as error:
        return Finding("model", False, str(error))
    texts = [
        (int(slot), Record(int(slot), "", hit.text, hit.title))
        for slot, hit in zip(chosen, hits, strict=True)
        if hit.text
    ]
    if not texts:
        reason = "the rows have no texts" if len(slots) else "all rows are drafts"
        return Finding("model", True, f"{reason}: none is embedded again")
    encoder = open_encoder()
    check_model(encoder.profile.fingerprint, index.spec, index.folder)
    spec = index.spec
    embedder = Embedder(encoder, spec)
    made = embedder.window([record for _, record in texts]).vectors
    stored = index.unit_vectors(np.array([slot for slot, _ in texts]))
    cosines = np.einsum("nd,nd->n", made, stored)
    least = int(np.argmin(np.nan_to_num(cosines, nan=-1)))
    near = NEAR_INT8 if index.spec.dtype == "int8" else NEAR
    if set(index.manifest.engines) != {encoder.profile.engine}:
        near = AGREEMENT[1]  # another engine made some of them, or it is not told which
    count = f"{len(texts)} random rows embedded again: least cosine {cosines[least]:.4f}"
    if not cosines[least] >= near:
        row = texts[least][0]
        return Finding("model", False, f"{count}, of row {row}, is under {near}; build it anew")
    return Finding("model", True, count)
