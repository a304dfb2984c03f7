"""A folder of parts: which are there, and how one is written whole.

`_gemb.json` says of what run they are. A part is a Parquet file as `gemb embed -o` writes it; its
name is that of its input file, by number, and of its place in it. Its footer counts its rows.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gemb.embedding.run import Tally
from gemb.embedding.vectors import META
from gemb.errors import GembError, UsageError
from gemb.integrations.ray.files import resolved, shown_address
from gemb.io.atomic import naming, sync_folder
from gemb.io.locks import LOCK, locked

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "_gemb.json"
LOCK_NAME = f".{LOCK}"  # readers of folders leave names with a dot out
PART_CHARS = 8 << 20  # of texts and titles: a part ends there, if it has not so many rows
_PART = re.compile(r"part-(\d{6,})-(\d{6,})\.parquet")
_UNFINISHED = re.compile(r"\.(?:part-\d+-\d+\.parquet|_gemb\.json)\.[0-9a-f]{32}")
_THREADS = 16  # that read footers


@dataclass(frozen=True, order=True)
class PartKey:
    """Which records a part holds."""

    file: int  # of the input files, from 0
    part: int  # of this file, from 0

    @property
    def name(self) -> str:
        """Of the part's file."""
        return f"part-{self.file:06}-{self.part:06}.parquet"


@dataclass(frozen=True, kw_only=True)
class PartCounts:
    """What a part holds, in numbers."""

    key: PartKey
    is_last: bool  # of its input file
    rows: int  # of the input
    failed: int
    kinds: dict[str, int]  # of rows, as `Tally` counts them
    first: dict[str, str]  # kind -> place
    tokens: int
    size: int  # sum of all `Record.size`
    engine: str

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(text: str | bytes) -> PartCounts:
        """Return what `to_json` wrote."""
        return msgspec.json.decode(text, type=PartCounts)


class Totals:
    """The counts of all parts that are done, each once."""

    def __init__(self, max_tokens: int) -> None:
        self.tally = Tally(max_tokens)
        self.engines: set[str] = set()
        self._first: dict[str, PartKey] = {}  # kind -> part with the first such row
        self._done: dict[int, set[int]] = {}  # file -> parts
        self._lengths: dict[int, int] = {}  # file -> how many parts it has

    def add(self, counts: PartCounts) -> bool:
        """Count a part; return False where it was counted before."""
        key = counts.key
        done = self._done.setdefault(key.file, set())
        if key.part in done:
            return False
        done.add(key.part)
        if counts.is_last:
            self._lengths[key.file] = key.part + 1
        tally = self.tally
        tally.rows += counts.rows
        tally.failed += counts.failed
        tally.kinds.update(counts.kinds)
        for kind, place in counts.first.items():
            if kind not in self._first or key < self._first[kind]:
                self._first[kind], tally.first[kind] = key, place
        if counts.rows:
            self.engines.add(counts.engine)
        return True

    @property
    def parts(self) -> int:
        """How many are done."""
        return sum(map(len, self._done.values()))

    def is_whole(self, file: int) -> bool:
        """Return whether all parts of a file are done."""
        return len(self._done.get(file, ())) == self._lengths.get(file)

    def of_file(self, file: int) -> frozenset[int]:
        """Return the parts of a file that are done."""
        return frozenset(self._done.get(file, ()))


@dataclass(frozen=True)
class PartFolder:
    """A folder on any file system. It can be pickled."""

    name: str  # as the user gave it, without keys
    system: FileSystem
    path: str  # on the file system

    @staticmethod
    def of(name: str) -> PartFolder:
        """Return the folder of a path or an address."""
        system, path = resolved(name)
        return PartFolder(shown_address(name), system, path)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, or looks so."""
        return bool(self.system.type_name == "local")

    def make(self) -> None:
        """Make it, where it is not there.

        Raises:
            UsageError: a file has its name.
        """
        from pyarrow.fs import FileType

        kind = self.system.get_file_info(self.path).type
        if kind == FileType.File:
            raise UsageError(f"{self.name} is a file; --engine ray writes a folder of parts")
        if kind == FileType.NotFound:
            self.system.create_dir(self.path, recursive=not self.is_local)

    def names(self) -> list[str]:
        """Return the names of all files in it, but for its lock."""
        from pyarrow.fs import FileSelector

        entries = self.system.get_file_info(FileSelector(self.path, allow_not_found=True))
        return [entry.base_name for entry in entries if entry.base_name != LOCK_NAME]

    def locked(self) -> AbstractContextManager[None]:
        """Let no second run write here while the block runs; a store has no locks.

        Raises:
            UsageError: another one does.
            OSError: nothing can be written here.
        """

        def held(holder: str) -> None:
            raise UsageError(
                f"{self.name} is being written by process {holder or 'unknown'}: wait for it, stop "
                "it, or name another folder"
            )

        if not self.is_local:
            return nullcontext()
        return locked(Path(self.path) / LOCK_NAME, held, removes=True)

    def remove_unfinished(self) -> None:
        """Remove what killed workers, or a killed driver, left."""
        for name in filter(_UNFINISHED.fullmatch, self.names()):
            self.system.delete_file(f"{self.path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole, in the place of one with its name.

        Raises:
            OSError: the store refuses it.
        """
        path = f"{self.path}/{name}"
        if not self.is_local:  # a store shows an object when it is whole
            with self.system.open_output_stream(path) as stream:
                stream.write(data)
            return
        part = Path(self.path) / f".{name}.{uuid.uuid4().hex}"
        try:
            with naming(path), part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(Path(self.path))

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with self.system.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def parts(self) -> list[PartKey]:
        """Return which parts have a file."""
        matches = filter(None, map(_PART.fullmatch, self.names()))
        return sorted(PartKey(int(match[1]), int(match[2])) for match in matches)

    def counts(self, fingerprint: str) -> Iterator[PartCounts]:
        """Yield what each whole part says; one that a kill cut short is left out.

        Raises:
            UsageError: a part is of other vectors.
        """
        keys = self.parts()
        with ThreadPoolExecutor(_THREADS) as pool:
            for key, described in zip(keys, pool.map(self._described, keys), strict=True):
                if described is None:
                    continue
                if described.get("fingerprint") != fingerprint or "part" not in described:
                    raise UsageError(f"{self.name}: {key.name} is of another run; move it away")
                yield msgspec.convert(described["part"], PartCounts)

    def _described(self, key: PartKey) -> Mapping[str, Any] | None:
        import pyarrow
        from pyarrow.parquet import read_schema

        try:
            with self.system.open_input_file(f"{self.path}/{key.name}") as file:
                metadata = read_schema(file).metadata or {}
                return dict(json.loads(metadata[META.encode()]))
        except (pyarrow.ArrowInvalid, ValueError, KeyError):
            return None

    def ids(self, key: PartKey) -> list[Any]:
        """Return the ids of a part."""
        from pyarrow.parquet import ParquetFile

        with self.system.open_input_file(f"{self.path}/{key.name}") as file:
            return list(ParquetFile(file).read(["id"]).column("id").to_pylist())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Of what run the parts of a folder are; a run goes on with those of an equal one alone."""

    run: dict[str, Any]  # words to values: the spec, the engine, how inputs are read
    files: list[tuple[str, int, float]]  # label, bytes, time of change
    rows: int | None = None  # None: not all parts are there
    failed: int | None = None
    parts: int | None = None

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.format(
            msgspec.json.encode({"gemb parts": 1, **msgspec.to_builtins(self)})
        )

    @staticmethod
    def read(folder: PartFolder) -> Manifest | None:
        """Return the manifest of a folder, None where it has none.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            data = folder.read(MANIFEST)
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=Manifest)
        except msgspec.DecodeError as error:
            raise UsageError(f"{folder.name}/{MANIFEST} is damaged: {error}") from None

    def check_equal(self, other: Manifest, folder: str) -> None:
        """Refuse a run that is not the one of this manifest.

        Raises:
            UsageError: something differs; the first thing is named.
        """
        for name in (*self.run, *other.run):
            before, now = self.run.get(name), other.run.get(name)
            if before != now:
                raise UsageError(
                    f"{folder} is of a run with another {name} ({before}, now {now}); "
                    "repeat that one, or name another folder"
                )
        if self.files != other.files:
            changed = next(
                (pair for pair in zip(self.files, other.files, strict=False) if pair[0] != pair[1]),
                None,
            )
            what = (
                f"{changed[1][0]} is not what it was"
                if changed
                else f"{len(self.files)} files, now {len(other.files)}"
            )
            raise UsageError(
                f"{folder} is of a run over another input ({what}); "
                "give the same one, or name another folder"
            )


def missing_parts(folder: PartFolder, totals: Totals, files: int) -> GembError | None:
    """Return the error of a folder in which not all parts are, None where they are."""
    there = Counter(key.file for key in folder.parts())
    for file in range(files):
        if not totals.is_whole(file) or there[file] < len(totals.of_file(file)):
            return GembError(
                f"{folder.name}: parts of input file {file + 1} are not there; is it the same "
                "folder on all nodes? --resume goes on"
            )
    return None
