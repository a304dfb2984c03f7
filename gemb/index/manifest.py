"""manifest.json: what an index is. It is replaced as a whole; rows and counts are the database's.

The files of the index carry a generation in their names from the second on (rows.2.sqlite): a
compacted index is written beside the old one, and the manifest that names it makes it the index.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.io.atomic import new_file
from gemb.io.foreign import check_types, json_value
from gemb.io.lfs import check_no_pointer
from gemb.io.locks import LOCK
from gemb.io.paths import current_folder, is_nowhere
from gemb.io.text import visible
from gemb.models.prompts import TASKS

FORMAT = 2  # 1: that of version 0.1.0, without checksums of files and a count of slots
DTYPES = ("f16", "int8", "f32")
MARK = "gemb index"
NAME = "manifest.json"
HALF = f".{NAME}."  # begins the name of one that a kill left half-written
_ROWS = re.compile(r"rows(\.[0-9]+)?\.sqlite")
_VECTORS = re.compile(r"vectors(\.[0-9]+)?\.(f16|f32|int8)")
SPLITTING_OF_0_1 = 2  # gemb 0.1.0 did not keep it
LIMIT = 16 << 20  # bytes; a coder's thresholds are the largest entry
TASK_OF_ITS_OWN = "custom"  # of documents with a prompt of the user's own


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What does not change from row to row."""

    spec: VectorSpec  # of the stored vectors; `spec.prompt` is the documents' template
    model: str  # a reference, a path made absolute; empty: nobody named the model
    task: str  # name of the documents' prompt; custom where it is the user's own
    query_task: str = "query"  # name of the prompt of queries against it
    source: Mapping[str, object]  # what `gemb index sync` reads again: `gemb.index.source`
    coder: Mapping[str, object] | None = None  # `Coder.to_json()`; None: there are no codes yet
    draft: Mapping[str, object] | None = None  # of rows without a real vector: see `draft_width`
    background: Mapping[str, object] | None = None  # scores of what is irrelevant; None: unknown
    background_rows: int = 0  # slots that there were when it was measured; 0: it was not
    splitting: int  # version of the rules by which files were split into passages
    generation: int = 1
    slots: int = 0  # that there were when this was written; a run that was killed leaves more
    engines: tuple[str, ...] = ()  # what computed the vectors: `ModelProfile.engine`
    made_by: str  # version of gemb
    built: str  # date and time, ISO 8601
    synced: str  # date and time of the last `sync`, `build` or `rm`

    @property
    def draft_width(self) -> int:
        """Components of drafts; 0: the index was built without."""
        return int(str(self.draft["width"])) if self.draft else 0


def is_index(folder: Path) -> bool:
    """Return whether a folder holds an index, whole or damaged. Cheap; imports nothing heavy."""
    try:
        if _beginning(folder / NAME, 64).startswith(f'{{"{MARK}":'.encode()):
            return True
    except OSError:
        pass
    return _has_files(folder)


def rows_path(folder: Path, generation: int) -> Path:
    """Return where the database is."""
    return folder / _named("rows", generation, "sqlite")


def vectors_path(folder: Path, generation: int, dtype: str) -> Path:
    """Return where the vectors are: [slots, dim] as `vectors.packed` makes them, little-endian."""
    return folder / _named("vectors", generation, dtype)


def check_own(folder: Path, manifest: Manifest) -> None:
    """Refuse to write an index whose files are links: what they lead to may not be an index's.

    Raises:
        GembError: one is a link.
    """
    generation, dtype = manifest.generation, manifest.spec.dtype
    rows = rows_path(folder, generation)
    for path in (
        folder / NAME,
        folder / LOCK,
        rows,
        rows.with_name(f"{rows.name}-wal"),
        rows.with_name(f"{rows.name}-shm"),
        vectors_path(folder, generation, dtype),
        codes_path(folder, generation),
        wanted_path(folder, generation),
    ):
        if path.is_symlink():
            raise GembError(
                f"{visible(str(path))} is a link, and what it leads to is not written to; "
                "copy the index whole: cp -rL"
            )


def codes_path(folder: Path, generation: int) -> Path:
    """Return where the sign codes are: uint8 [slots, bytes]."""
    return folder / _named("codes", generation, "bin")


def wanted_path(folder: Path, generation: int) -> Path:
    """Return where searches say which drafts they want real vectors for."""
    return folder / _named("wanted", generation, "bin")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an index.

    Raises:
        UsageError: the folder is no index, one of a newer gemb, or a Git LFS pointer stands there.
        GembError: the manifest is damaged.
    """
    path = folder / NAME
    shown = visible(str(path))
    try:
        data = _beginning(path, LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        if _has_files(folder):
            raise GembError(
                f"{shown} is missing; copy all of the folder, or build the index anew: "
                "gemb index build -f"
            ) from None
        raise UsageError(_no_index(folder)) from None
    try:
        entries = json_value(data, path)
        version = entries[MARK]
    except (UsageError, KeyError, TypeError):
        raise _damaged(path) from None
    if isinstance(version, int) and version > FORMAT:
        raise UsageError(
            f"{visible(str(folder))} was made by a newer gemb "
            f"({visible(str(entries.get('made_by', 'unknown')))}, format {version}; this one reads "
            f"{FORMAT}): pip install -U gemb"
        )
    try:
        spec = VectorSpec.from_json(json.dumps(entries["vectors"]))
        known = {field.name for field in fields(Manifest)} - {"spec"}
        if entries["checksum"] != _checksum(entries):
            raise ValueError("checksum")
        entries.setdefault("splitting", SPLITTING_OF_0_1)
        entries.setdefault("slots", 0)
        entries.setdefault("engines", [])
        entries.setdefault("draft", None)
        manifest = Manifest(spec=spec, **{name: entries[name] for name in known})
        _check(manifest)
    except (ValueError, KeyError, TypeError, ArithmeticError, UsageError):
        raise _damaged(path) from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuse what gemb never writes: an index may be somebody else's.

    Raises:
        ValueError: a value is not allowed.
        TypeError: it is of another type.
        UsageError: the background is none.
    """
    from gemb.index.floor import Background

    check_types(Manifest, vars(manifest))
    if manifest.task not in (*TASKS, TASK_OF_ITS_OWN) or manifest.query_task not in TASKS:
        raise ValueError("a task")
    if manifest.spec.dtype not in DTYPES or manifest.generation < 1:
        raise ValueError("dtype or generation")
    if manifest.draft is not None:
        width, model = manifest.draft.get("width"), manifest.draft.get("model")
        if not (type(width) is int and 0 < width <= manifest.spec.dim and isinstance(model, str)):
            raise ValueError("draft")
    if manifest.background is not None:
        Background.from_json(manifest.background)


def _damaged(path: Path) -> GembError:
    check_no_pointer(path)
    return GembError(f"{visible(str(path))} is damaged; build the index anew: gemb index build -f")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of an index. The caller holds `gemb.io.locks.locked_index`.

    Raises:
        OSError: it cannot be written.
    """
    entries = asdict(manifest)
    del entries["spec"]
    entries = {MARK: FORMAT, "vectors": json.loads(manifest.spec.to_json()), **entries}
    entries["checksum"] = _checksum(entries)
    for path in folder.glob(f"{HALF}*"):
        path.unlink(missing_ok=True)
    with new_file(folder / NAME) as part:
        part.write_text(json.dumps(entries, ensure_ascii=True) + "\n")


def _beginning(path: Path, size: int) -> bytes:
    """Return the first bytes of a file.

    Raises:
        FileNotFoundError: it is not there, or is no regular file: a pipe would hold us up.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with path.open("rb") as file:
        return file.read(size)


def _has_files(folder: Path) -> bool:
    """Return whether a folder has the other files of an index: it has lost its manifest."""
    try:
        if not (folder / LOCK).is_file():
            return False
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return any(_ROWS.fullmatch(name) for name in names) and any(
        _VECTORS.fullmatch(name) for name in names
    )


def _checksum(entries: Mapping[str, Any]) -> int:
    """Return the CRC-32 of all entries but the checksum."""
    others = {name: value for name, value in entries.items() if name != "checksum"}
    return zlib.crc32(json.dumps(others, sort_keys=True, ensure_ascii=True).encode())


def _named(stem: str, generation: int, suffix: str) -> str:
    return f"{stem}.{suffix}" if generation == 1 else f"{stem}.{generation}.{suffix}"


def _no_index(folder: Path) -> str:
    """Return the message for what is no index."""
    shown = visible(str(folder))
    if folder.name and is_index(folder.with_name(folder.name + ".part")):
        return f"{shown} is not whole: its build was stopped; the same build goes on with it"
    if not folder.exists():
        return f"no index {shown}; gemb index build {shown} FILE|DIR makes one"
    return f"{shown} is no index: it has no {NAME}; gemb index build NAME FILE|DIR makes one"


def shown_path(path: str, base: str) -> str:
    """Return a kept path as one would type it in the current folder.

    Paths are kept as they were typed when the index was built. One that was relative is relative to
    the folder in which the index was built, its base.
    """
    here = current_folder()
    if here == base or os.path.isabs(path):  # noqa: PTH117
        return path
    absolute = os.path.normpath(os.path.join(base, path))  # noqa: PTH118
    if is_nowhere():
        return absolute
    if absolute.startswith(here.rstrip("/") + "/"):
        return os.path.relpath(absolute, here)
    return absolute


def kept_paths(path: str, base: str) -> tuple[str, str]:
    """Return the two forms in which a path that is typed here may be kept."""
    absolute = os.path.abspath(path)  # noqa: PTH100
    return os.path.relpath(absolute, base), absolute


def real_path(path: str, base: str) -> str:
    """Return where a kept path is now."""
    return os.path.normpath(os.path.join(base, path))  # noqa: PTH118
