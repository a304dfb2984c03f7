"""Tell models apart, fast: 16 hex digits of a model's configuration, tokenizer and weights.

Hashing a gigabyte at every start would cost more than loading it, so of each tensor only a few
spans are read. Training, averaging and quantizing change every one of them; this tells two models
apart, and is no seal against malice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

SPAN = 512  # bytes read at each place
PLACES = 3  # beginning, middle and end of each tensor


def fingerprint(parts: Iterable[bytes], tensors: Iterable[tuple[Path, int, int]]) -> str:
    """Return 16 hex digits.

    Args:
        parts: what is hashed whole: configuration, tokenizer.
        tensors: file, offset and size in bytes of each tensor, in a fixed order.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    files: dict[Path, FileIO] = {}
    try:
        for path, offset, size in tensors:
            file = files.get(path)
            if file is None:
                file = files[path] = path.open("rb", buffering=0)
            digest.update(size.to_bytes(8, "little"))
            for place in range(PLACES):
                file.seek(offset + place * max(0, size - SPAN) // (PLACES - 1))
                digest.update(file.read(min(SPAN, size)))
    finally:
        for file in files.values():
            file.close()
    return digest.hexdigest()
