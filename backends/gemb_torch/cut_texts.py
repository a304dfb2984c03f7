"""The texts whose tokens are counted: plain lines, or rows of JSON, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError

FIELDS = ("query", "positive", "negative", "title", "text")  # of a JSON row, where they are strings
_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Texts:
    """A source of texts, which can be read more than once."""

    name: str  # in messages
    read: Callable[[], Iterator[str]]


def of_file(path: Path) -> Texts:
    """Return the texts of a file; reading raises UsageError where it is missing or broken."""
    return Texts(str(path), lambda: _texts(path))


def batches(texts: Texts) -> Iterator[list[str]]:
    """Yield the texts, some megabytes at a time.

    Raises:
        UsageError: there is no text, or what `texts.read` raises.
    """
    batch: list[str] = []
    size = count = 0
    for text in texts.read():
        batch.append(text)
        size += len(text)
        if size > _BATCH_CHARACTERS:
            yield batch
            count += len(batch)
            batch, size = [], 0
    if not batch and not count:
        raise UsageError(f"{texts.name}: no text in it (JSON fields: {', '.join(FIELDS)})")
    if batch:
        yield batch


def _texts(path: Path) -> Iterator[str]:
    stem = path.name.removesuffix(".gz")
    is_json = stem.endswith((".jsonl", ".ndjson"))
    try:
        with gzip.open(path, "rb") if stem != path.name else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8", "replace")
                if is_json:
                    yield from _fields(path, number, text)
                elif text.strip():
                    yield text.rstrip("\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{path}: no such file to count tokens in") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{path}: not a whole gzip file: {error}") from error


def _fields(path: Path, number: int, line: str) -> Iterator[str]:
    try:
        row = json.loads(line)
        values = [row.get(field) for field in FIELDS]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}:{number}: no JSON object: {error}") from error
    for value in values:
        if isinstance(value, str) and value:
            # A lone surrogate (an escape in JSON) is no character.
            yield value.encode("utf-8", "replace").decode("utf-8")
