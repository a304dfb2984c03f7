"""The words of a tree that earlier searches read: `gemb.index.bm25` finds rows in them.

A file `words-DIGEST` of the search cache is four bytes, the CRC-32 of the rest, and a database of
SQLite. The digest is that of the passages, in their order: a tree that has changed has another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from pathlib import Path

from gemb.index.words import words_table
from gemb.io.atomic import new_file
from gemb.search.corpus import Corpus
from gemb.texts.words import VERSION

LEAST = 1000  # passages; the words of fewer are read in no time
MOST_BYTES = 1 << 29  # of all trees' words; what was used longest ago goes first
CRC_BYTES = 4


def words_path(folder: Path, corpus: Corpus) -> Path | None:
    """Return where the words of these passages are kept; None: they are not, being few."""
    if len(corpus) < LEAST or corpus.records:
        return None
    digest = hashlib.blake2b(f"{VERSION}\0".encode(), digest_size=12)
    for file in corpus.files:
        digest.update(os.fsencode(os.path.dirname(file.path)) + b"\0")  # noqa: PTH120
    digest.update(corpus.firsts.tobytes())
    digest.update(b"".join(corpus.keys))
    return folder / f"words-{digest.hexdigest()}"


def kept_words(path: Path) -> sqlite3.Connection | None:
    """Return the words that are kept there; None where there are none, or they are damaged."""
    with contextlib.suppress(OSError, sqlite3.Error):
        data = path.read_bytes()
        crc, data = data[:CRC_BYTES], data[CRC_BYTES:]
        if data and zlib.crc32(data).to_bytes(CRC_BYTES, "little") == crc:
            table = words_table()
            table.deserialize(data)
            os.utime(path)
            return table
    return None


def keep_words(table: sqlite3.Connection, path: Path) -> None:
    """Keep the words of a tree there, if that can be written to, and drop the oldest of others."""
    with contextlib.suppress(OSError, sqlite3.Error):
        data = table.serialize()
        if len(data) > MOST_BYTES:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part:
            part.write_bytes(zlib.crc32(data).to_bytes(CRC_BYTES, "little") + data)
        kept = sorted(path.parent.glob("words-*"), key=lambda other: -other.stat().st_mtime)
        size = 0
        for other in kept:
            size += other.stat().st_size
            if size > MOST_BYTES and other != path:
                other.unlink(missing_ok=True)
