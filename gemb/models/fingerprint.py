"""Tell models apart, fast: 16 hex digits of a model's configuration, tokenizer and weights.

Hashing a gigabyte at every start would cost more than loading it, so of each tensor only a few
spans are read. Training, averaging and quantizing change every one of them. The digits tell two
models apart; they do not protect against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from gemb.io.stamps import Stamp

SPAN = 512  # bytes
SPANS = 3  # that are read: beginning, middle and end of each tensor
_MANY = 2048  # spans of a large file
_WHOLE = 64 << 20  # bytes of a file that is read whole
_WEIGHTS = (".safetensors", ".gguf")  # training changes every span of these


def fingerprint(parts: Iterable[bytes], tensors: Iterable[tuple[Path, int, int]]) -> str:
    """Return 16 hex digits.

    Args:
        parts: bytes that are hashed whole: configuration, tokenizer.
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
            for span in range(SPANS):
                file.seek(offset + span * max(0, size - SPAN) // (SPANS - 1))
                digest.update(file.read(min(SPAN, size)))
    finally:
        for file in files.values():
            file.close()
    return digest.hexdigest()


def path_fingerprint(path: Path) -> str:
    """Return 16 hex digits of a file, or of all files in a folder, with their names.

    Files of up to 64 MiB are hashed whole. Of a larger file spans and the size are hashed, and the
    `Stamp`, too, where it holds no weights: a table may change in one line.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    is_folder = path.is_dir()
    for file in sorted(filter(Path.is_file, path.rglob("*"))) if is_folder else [path]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if is_folder else ''}\0{size}\0".encode())
        with file.open("rb", buffering=0) as opened:
            if size <= _WHOLE:
                while part := opened.read(1 << 20):
                    digest.update(part)
                continue
            if file.suffix not in _WEIGHTS:
                digest.update(repr(Stamp.of(file.stat())).encode())
            for span in range(_MANY):
                opened.seek(span * (size - SPAN) // (_MANY - 1))
                digest.update(opened.read(SPAN))
    return digest.hexdigest()
