"""The files that an index is made of, and their passages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gemb.index import places
from gemb.index.manifest import is_index
from gemb.index.source import Source, SourceRow
from gemb.io.text import visible
from gemb.texts.passages import split
from gemb.texts.records import Record, unfit
from gemb.texts.walk import Entry, Skipped, walk


def entries(source: Source, skipped: Skipped) -> list[Entry]:
    """Return the files, in order; their paths are as the index keeps them."""
    roots = [places.real(path, source.base) for path in source.paths]
    kept = {root: not os.path.isabs(path) for path, root in zip(source.paths, roots, strict=True)}  # noqa: PTH117
    found = []
    for entry in walk(source.real(), source.walk, skipped):
        if not _in_index(os.path.dirname(entry.real)):  # noqa: PTH120
            is_relative = any(
                one and (entry.real == root or entry.real.startswith(root.rstrip("/") + "/"))
                for root, one in kept.items()
            )
            path = os.path.relpath(entry.real, source.base) if is_relative else entry.real
            found.append(entry._replace(path=path))
    _in_index.cache_clear()
    return found


def is_gone(path: str, source: Source, skipped: Skipped) -> bool:
    """Return whether a file that the walk did not find is no part of the source any more.

    It may be, where the way to it is closed for now; one that is there and open was left out by
    the rules, which have changed.
    """
    try:
        os.stat(places.real(path, source.base))  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return not skipped.failed


def passage_rows(text: str, path: str, source: Source) -> Sequence[SourceRow]:
    """Return the passages of a file's text."""
    rows = []
    for passage in split(text, path, source.split):
        words = text[passage.start : passage.end]
        place = f"{visible(path)}:{passage.line}"
        size = len(words) if words.isascii() else len(words.encode("utf-8", "replace"))
        record = Record(place, place, words, passage.title, error=unfit(words), size=size)
        rows.append(SourceRow(record, None, path, passage.line, passage.last_line))
    return rows


@cache
def _in_index(folder: str) -> bool:
    return is_index(Path(folder))
