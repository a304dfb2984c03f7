"""The journal beside an output file: the encoder's results, from which a killed run resumes.

A resumed run is the same program again, with the encoder's results taken from the journal until it
is used up: the output is written afresh, and its bytes are those of an uninterrupted run.

The file is one line of JSON (`Header`), then for each window
    magic, number of rows, bytes of the failures' JSON   3 x uint32, little-endian
    digest of all token ids up to here                    16 bytes
    failures {row: message}, JSON                         as many bytes as said
    vectors                                               float32 [rows, dim], little-endian
    CRC-32 of all of these                                uint32
An incomplete window at the end, left by a kill, does not match its checksum and is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.embedding.pipeline import Compute, ComputedVectors
from gemb.errors import GembError, UsageError
from gemb.io.atomic import naming, pwrite_all
from gemb.io.locks import lock_file

if TYPE_CHECKING:
    from gemb.arrays import TokenIds


FORMAT = 1
MAGIC = 0x424D4547  # "GEMB"
HEAD = struct.Struct("<III16s")
CRC = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What must be equal so that a run can resume from a journal."""

    spec: str  # fingerprint of the vectors
    backend: str
    arithmetic: str  # as the model's profile says
    dim: int

    def line(self) -> bytes:
        """Return the first line of the file."""
        return json.dumps({"gemb journal": FORMAT, **asdict(self)}).encode() + b"\n"


class Journal:
    """A `Compute` that replays what its file holds, then computes and appends."""

    def __init__(self, path: Path, header: Header, compute: Compute, *, resume: bool) -> None:
        """Open and lock the file; without `resume` what it holds is thrown away.

        `Target.check` has checked that a file with this name is a journal.

        Raises:
            GembError: another run holds it.
            UsageError: it was written by a run of another model, prompt, width or backend.
        """
        self.path = path
        self.rows = 0  # that the file holds
        self.is_older = False  # whether an earlier run left it
        self.replaced = 0  # bytes of an older journal that were thrown away
        self._compute = compute
        self._dim = header.dim
        self._digest = hashlib.blake2b(digest_size=16)
        self._fd = lock_file(path, partial(_refuse, path))
        self._reader = open(self._fd, "rb", closefd=False)  # noqa: SIM115
        self._end = 0  # of what is whole; the next window is written here
        size = os.fstat(self._fd).st_size
        self.is_older = size > 0
        line = header.line()
        if resume and size:
            first_line = self._reader.readline(1 << 16)
            if first_line.endswith(b"\n") and first_line != line:
                raise UsageError(
                    f"{path} is of a run with another model, prompt, --dim, --dtype or backend; "
                    "repeat that one, or leave --resume out to start again"
                )
            self._is_new = not first_line.endswith(b"\n")
        else:
            self._is_new = True
            self.replaced = size
        if self._is_new:
            os.ftruncate(self._fd, 0)
            self._append(line)
        self._end = len(line)
        self._replay: Iterator[tuple[bytes, ComputedVectors]] | None = self._windows()

    @property
    def is_resumed(self) -> bool:
        """Whether the file held the beginning of this run."""
        return not self._is_new

    def __call__(self, batch: Sequence[TokenIds]) -> ComputedVectors:
        """Return the vectors of a batch, float32 [len(batch), dim].

        Raises:
            UsageError: the journal holds the vectors of other texts.
        """
        for ids in batch:
            self._digest.update(len(ids).to_bytes(4, "little"))
            self._digest.update(ids.tobytes())
        digest = self._digest.digest()
        if self._replay:
            for held_digest, computed in self._replay:
                if held_digest != digest:
                    raise self._other_input()
                self.rows += len(batch)
                return computed
            self._replay = None
            os.ftruncate(self._fd, self._end)
        computed = self._compute(batch)
        failed = json.dumps(computed.failed).encode() if computed.failed else b""
        body = b"".join(
            (
                HEAD.pack(MAGIC, len(batch), len(failed), digest),
                failed,
                computed.vectors.astype("<f4", copy=False).tobytes(),
            )
        )
        self._append(body + CRC.pack(zlib.crc32(body)))
        self.rows += len(batch)
        return computed

    def remove(self) -> None:
        """Delete the file: the run is complete, or nothing in it is worth keeping."""
        self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def check_used_up(self) -> None:
        """Refuse an input that ended before the journal did.

        Raises:
            UsageError: it holds vectors of texts that did not come.
        """
        if self._replay and next(self._replay, None):
            raise self._other_input()

    def _other_input(self) -> UsageError:
        return UsageError(
            f"{self.path} is of a run over another input; "
            "give the same one, or leave --resume out to start again"
        )

    def _windows(self) -> Iterator[tuple[bytes, ComputedVectors]]:
        """Yield each whole window of the file: the digest up to it, and its vectors."""
        self._reader.seek(self._end)
        while True:
            head = self._reader.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            magic, rows, failed_size, digest = HEAD.unpack(head)
            if magic != MAGIC:
                return
            body = self._reader.read(failed_size + rows * self._dim * 4)
            crc = self._reader.read(CRC.size)
            if len(crc) < CRC.size or CRC.unpack(crc)[0] != zlib.crc32(body, zlib.crc32(head)):
                return
            self._end += len(head) + len(body) + len(crc)
            failed = json.loads(body[:failed_size]) if failed_size else {}
            vectors = np.frombuffer(body, "<f4", offset=failed_size).reshape(rows, self._dim)
            yield digest, ComputedVectors(vectors, {int(row): text for row, text in failed.items()})

    def _append(self, data: bytes) -> None:
        with naming(self.path):
            pwrite_all(self._fd, data, self._end)
        self._end += len(data)


def _refuse(path: Path, _holder: str) -> None:
    output = path.name.removesuffix(".journal")
    raise GembError(f"another gemb embed is writing {output}; wait for it")
