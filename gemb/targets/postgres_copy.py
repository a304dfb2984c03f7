"""Rows in the binary format of PostgreSQL's COPY, and vectors as the server sends them.

Source of the formats: PostgreSQL's manual, COPY, "Binary Format"; pgvector's vector_recv,
halfvec_recv; PostgreSQL's varbit.c. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.targets.base import Content, Part
from gemb.targets.postgres_sql import COLUMNS

_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_FIELDS = struct.pack("!h", len(COLUMNS))
_NULL = struct.pack("!i", -1)
_INT = struct.Struct("!ii")
_LENGTH = struct.Struct("!i")


def copied(part: Part, kind: str) -> bytes:
    """Return a part in the binary format of COPY."""
    rows = part.rows
    fields = zip(
        repeat(_FIELDS, len(rows.ids)),
        map(_text, rows.ids),
        map(_text, rows.paths),
        map(_whole, rows.lines),
        map(_whole, rows.last_lines),
        map(_text, rows.titles),
        map(_text, rows.texts),
        (_bytes(b"\x01" + text.encode()) for text in rows.kept),  # jsonb, version 1
        map(_bytes, part.hashes),
        sent(part.vectors, kind),
        strict=True,
    )
    return b"".join((_HEAD, *chain.from_iterable(fields), _END))


def sent(vectors: NDArray[Any], kind: str) -> list[bytes]:
    """Return each vector [width] of an array [n, width] as a field of COPY, with its length."""
    if kind == "bit":
        head = struct.pack("!i", 8 * vectors.shape[1])
        numbers = vectors
    else:
        head = struct.pack("!hh", vectors.shape[1], 0)
        numbers = vectors.astype(vectors.dtype.newbyteorder(">"))
    size = numbers.shape[1] * numbers.itemsize
    head = struct.pack("!i", len(head) + size) + head
    data = numbers.tobytes()
    return [head + data[first : first + size] for first in range(0, len(data), size)]


def received(data: bytes, content: Content) -> NDArray[Any]:
    """Return the vector [width] that the server sent in its binary form."""
    numbers = content.numbers
    vector = np.frombuffer(data, numbers.newbyteorder(">"), offset=4)
    return vector.astype(numbers)


def _text(text: str | None) -> bytes:
    return _NULL if text is None else _bytes(text.encode())


def _whole(number: int | None) -> bytes:
    return _NULL if number is None else _INT.pack(4, number)


def _bytes(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
