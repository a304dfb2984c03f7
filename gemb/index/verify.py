"""Is an index what it was when it was written? Checksums, counts, and ten rows embedded again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import Embedder
from gemb.errors import GembError
from gemb.index.manifest import codes_path, rows_path, vectors_path
from gemb.index.reader import Index, committed
from gemb.index.schema import COLUMNS, crc, readable
from gemb.index.state import counted
from gemb.index.sync import OpenEncoder, check_model
from gemb.io.text import size_in_words, visible
from gemb.texts.records import Record

# Least cosine of a stored vector and the row's vector made again. A backend may round otherwise in
# another batch (bf16: 0.9998); int8 is within 0.9998 of its vector (`gemb.embedding.vectors`).
NEAR = 0.999
NEAR_INT8 = 0.998
SHOWN = 5  # damaged rows that are named


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
        if index.codes is not None:
            path = codes_path(folder, manifest.generation)
            yield _blocks(index, "crc_codes", index.codes, path)
        else:
            yield Finding("codes", False, "not all there: gemb index sync makes them")
        yield from _database(index, rows_path(folder, manifest.generation))
        if open_encoder and rows and index.count:
            yield _again(index, open_encoder, rows, seed)


def bad_blocks(index: Index, column: str, array: NDArray[Any]) -> list[int]:
    """Return the first rows of the blocks whose checksum, `column`, does not fit the array."""
    query = f"SELECT first, count, {column} FROM blocks ORDER BY first"
    return [
        first
        for first, count, written in index.connection.execute(query)
        if zlib.crc32(np.ascontiguousarray(array[first : first + count]).data) != written
    ]


def damaged(path: Path, what: str) -> GembError:
    """Return the error of a file that is not what was written."""
    return GembError(
        f"{visible(str(path))}: {what} is damaged; build the index anew: gemb index build -f"
    )


def _blocks(index: Index, column: str, array: NDArray[Any], path: Path) -> Finding:
    """Compare the checksums of a file's blocks."""
    name = column.removeprefix("crc_")
    with readable(rows_path(index.folder, index.manifest.generation)):
        total = index.connection.execute("SELECT count(*) FROM blocks").fetchone()[0]
        bad = bad_blocks(index, column, array)
    if bad:
        where = f"{len(bad)} of {total} blocks are damaged, the first from row {bad[0]}"
        return Finding(name, False, f"{visible(str(path))}: {where}; build the index anew")
    return Finding(
        name, True, f"{size_in_words(array.nbytes)}, {counted(total, 'block')} as written"
    )


def _database(index: Index, path: Path) -> Iterator[Finding]:
    """Look at the rows: SQLite's own check, their checksums, counts, and the words."""
    shown = visible(str(path))
    try:
        with readable(path):
            said = index.connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            bad = _bad_rows(index)
            slots = committed(index.connection)
            counts = index.connection.execute(
                "SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM removed), "
                "(SELECT count(*) FROM rows WHERE slot < 0 OR slot >= ?)",
                (slots,),
            ).fetchone()
            words = index.connection.execute("SELECT count(*) FROM words_docsize").fetchone()[0]
    except GembError as error:
        yield Finding("rows", False, str(error))
        return
    rows, removed, beyond = counts
    if said != "ok":
        yield Finding("rows", False, f"{shown}: {' '.join(said.split())}; build the index anew")
    elif bad:
        some = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
        yield Finding("rows", False, f"{shown}: {len(bad)} rows are damaged: {some}")
    else:
        yield Finding("rows", True, f"{counted(rows, 'row')} as written")
    if rows + removed != slots or beyond or words != rows:
        yield Finding(
            "counts",
            False,
            f"{shown}: {rows} rows and {removed} removed ones of {slots}, {words} with words; "
            "build the index anew",
        )
    else:
        yield Finding("counts", True, f"{slots:,} vectors: {rows:,} rows, {removed:,} removed")


def _bad_rows(index: Index) -> list[int]:
    query = f"SELECT slot, {COLUMNS} FROM rows"
    return [row[0] for row in index.connection.execute(query) if crc(row[1:-1]) != row[-1]]


def _again(index: Index, open_encoder: OpenEncoder, rows: int, seed: int) -> Finding:
    """Embed random rows again, and compare their vectors."""
    random = np.random.default_rng(seed)
    slots = np.arange(len(index.stored)) if index.alive is None else index.alive
    chosen = random.choice(slots, min(rows, len(slots)), replace=False)
    hits = index.hits(chosen, np.zeros(len(chosen), np.float32))
    texts = [
        (int(slot), Record(int(slot), "", hit.text, hit.title))
        for slot, hit in zip(chosen, hits, strict=True)
        if hit.text
    ]
    if not texts:
        return Finding("model", True, "the rows have no texts: none is embedded again")
    encoder = open_encoder()
    check_model(encoder.profile.fingerprint, index.spec, index.folder)
    spec = index.spec
    embedder = Embedder(encoder, spec)
    made = embedder.window([record for _, record in texts]).vectors
    stored = np.stack([index.vector(slot) for slot, _ in texts])
    cosines = np.einsum("nd,nd->n", made, stored)
    least = int(np.argmin(np.nan_to_num(cosines, nan=-1)))
    near = NEAR_INT8 if index.spec.dtype == "int8" else NEAR
    count = f"{len(texts)} random rows embedded again: least cosine {cosines[least]:.4f}"
    if not cosines[least] >= near:
        row = texts[least][0]
        return Finding("model", False, f"{count}, of row {row}, is under {near}; build it anew")
    return Finding("model", True, count)
