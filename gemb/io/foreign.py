"""Read files that somebody else may have made: regular ones, within bounds, and JSON whole.

A pipe has no end that can be waited for, /dev/zero has none at all, and a file with a hole is as
long as it says: each among the files of a model would hang a command, or take all memory. JSON
may be nested deeper than Python follows, and hold halves of characters that nothing can print.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

from gemb.errors import UsageError
from gemb.io.atomic import naming
from gemb.io.lfs import check_beginning
from gemb.io.text import size_in_words

MOST = 16 << 20  # bytes of a file of settings, or a model card

LARGEST = (1 << 63) - 1  # whole number of SQLite, and of what gemb keeps

# Type of an entry, as its field is annotated -> whether a value is of it.
_FITS: Mapping[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and 0 <= value <= LARGEST,
    "float": lambda value: type(value) in (int, float),
    "float | None": lambda value: value is None or type(value) in (int, float),
    "tuple[str, ...]": lambda value: (
        isinstance(value, list | tuple) and all(isinstance(member, str) for member in value)
    ),
    "Mapping[str, object]": lambda value: isinstance(value, dict),
    "Mapping[str, object] | None": lambda value: value is None or isinstance(value, dict),
}

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, and no link to one.

    Raises:
        OSError: it is missing, say.
        UsageError: it is a folder, a pipe, a device or a socket, or a link without an end.
    """
    if path.is_symlink() and Path(os.path.realpath(path)).is_symlink():
        raise UsageError(f"{path}: a link that leads back to itself")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path}: a folder, where a file is expected")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: no regular file: a pipe or a device cannot be read here")


def open_regular(path: Path) -> BinaryIO:
    """Return a regular file, open to be read; a link to one is followed.

    Raises:
        OSError: it cannot be opened: it is missing, say.
        UsageError: it is a pipe, a device or a socket.
    """
    check_regular(path)
    return path.open("rb")


def check_database(path: Path) -> None:
    """Refuse a database whose file, or one that SQLite reads beside it, is no regular one.

    SQLite opens a journal and a log whatever they are, and waits for a pipe. What is missing is
    right: the database may be new.

    Raises:
        OSError: one cannot be looked at.
        UsageError: one is a folder, a pipe, a device or a socket, or a link without an end.
    """
    for end in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            check_regular(path.with_name(path.name + end))


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """Return what a regular file holds.

    Raises:
        OSError: it cannot be read: it is missing, say.
        UsageError: it is no regular file, or has more than `most` bytes.
    """
    with naming(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)
    if max(size, len(data)) > most:
        raise UsageError(
            f"{path}: {size_in_words(max(size, len(data)))}, and such a file has at most "
            f"{size_in_words(most)}; it is broken, or another file"
        )
    return data


def check_types(kind: type[Any], values: Mapping[str, object]) -> None:
    """Refuse values that are not of the types of a dataclass's fields.

    Raises:
        TypeError: one is of another type.
    """
    for field in fields(kind):
        fits = _FITS.get(str(field.type))
        if fits and field.name in values and not fits(values[field.name]):
            raise TypeError(f"{field.name} is no {field.type}")


def json_value(data: bytes, where: object, *, unique: bool = False) -> Any:  # noqa: ANN401
    """Return the value of a JSON text.

    Args:
        data: UTF-8, or UTF-16 or UTF-32, as JSON allows.
        where: what holds it, for the message.
        unique: whether a key twice in one object is an error; else the last one counts.

    Raises:
        UsageError: it is no JSON (a Git LFS pointer, say), is nested too deeply, or holds half of a
            surrogate pair.
    """
    try:
        text = data.decode(json.detect_encoding(data))
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
        if _SURROGATE.search(text):  # `\\ud83d\\ude00` is a character, a half of it is none
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UsageError(f"{where}: its JSON is nested too deeply to be read") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: its JSON holds half of a surrogate pair") from error
    except ValueError as error:
        check_beginning(data, where)
        raise UsageError(f"{where}: not JSON: {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} occurs twice in one object")
    return entries
