"""What the path of an output means, and the refusal of one that would destroy something else."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemb.errors import UsageError
from gemb.vectors import VectorSpec, sidecar

NEEDS_SIDECAR = ("npy", "f32", "csv", "base64")  # formats that cannot hold their description
JOURNAL_MARK = b'{"gemb journal": '  # how every journal begins
DESCRIPTION_LIMIT = 1 << 20  # bytes; a sidecar has less than a thousand and the prompt
LINKS = 40  # that Linux follows in one path


def is_stream(path: Path | None) -> bool:
    """Return whether this cannot be replaced atomically: standard output, a pipe, a device.

    So is all of /dev and /proc, and what leads there: renaming over /dev/stdout would replace the
    link for every program. /dev/shm alone holds plain files.
    """
    if path is None or any(map(_is_system, _hops(path))):
        return True
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


def descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as /dev/fd/3 names, or None."""
    for hop in _hops(path):
        found = re.fullmatch(rf"/proc/(?:self|{os.getpid()})(?:/task/\d+)?/fd/(\d+)", str(hop))
        found = found or re.fullmatch(r"/dev/fd/(\d+)", str(hop))
        if found:
            return int(found[1])
    return None


def followed(path: Path) -> Path:
    """Return the path that a link leads to, whether or not it exists; a stream as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() and not is_stream(path) else path


def part_of(path: Path) -> Path:
    """Return the name of an output that is not whole yet."""
    return path.with_name(path.name + ".part")


def journal_of(path: Path) -> Path:
    """Return the name of an output's journal."""
    return path.with_name(path.name + ".journal")


def check(path: Path, form: str) -> None:
    """Refuse what cannot be written, before a model is loaded. The path is a `followed` one.

    Raises:
        UsageError: it is a folder, or lies in one that is not there or cannot be written to; it is
            an open file that is none; a file that is not ours has a name that is needed.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; -o names a file in it: -o {path / 'NAME'}")
    if is_stream(path):
        if not path.exists():
            raise UsageError(f"{path}: no such device or open file; -o FILE makes none there")
        return
    check_folder_of(path)
    if path.exists() and not os.access(path, os.W_OK, effective_ids=_EFFECTIVE):
        raise UsageError(f"{path}: permission denied; check its permissions")
    check_sidecar(path, form)
    journal, part = journal_of(path), part_of(path)
    check_journal(journal)
    # A killed run leaves both; without its journal the other is somebody's own file.
    if os.path.lexists(part) and not (journal.is_file() and journal.stat().st_size):
        raise _in_the_way(part, "for the unfinished output")


def check_folder_of(path: Path) -> None:
    """Refuse a path in a folder that cannot take it.

    Raises:
        UsageError: the folder is not there, or cannot be written to; or the path is a circle.
    """
    if path.is_symlink() and Path(os.path.realpath(path)).is_symlink():
        raise UsageError(f"{path}: a link that leads back to itself")
    folder = followed(path).parent
    if not folder.is_dir():
        raise UsageError(
            f"no such folder: {folder}; make it first: mkdir -p {shlex.quote(str(folder))}"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise UsageError(f"{folder}: nothing can be written to this folder; check its permissions")


def check_sidecar(path: Path, form: str) -> None:
    """Refuse to replace a file beside the output that is no description of vectors.

    Raises:
        UsageError: the format needs that name.
    """
    beside = sidecar(path)
    if form in NEEDS_SIDECAR and os.path.lexists(beside) and not describes_vectors(beside):
        raise _in_the_way(beside, f"for what describes the vectors of {path.name}")


def check_journal(journal: Path) -> None:
    """Refuse a file in the journal's place that is none.

    Raises:
        UsageError: it is not ours.
    """
    if not os.path.lexists(journal):
        return
    if journal.is_file() and not journal.is_symlink():
        with journal.open("rb") as file:
            first = file.read(len(JOURNAL_MARK))
        if JOURNAL_MARK.startswith(first):  # a kill may have cut it short
            return
    raise _in_the_way(journal, "to be able to go on after a stop")


def check_inputs(path: Path | None, inputs: Sequence[str], form: str) -> None:
    """Refuse an input that is written to. None is standard output; the input `-` standard input.

    Raises:
        UsageError: an input is the output, its sidecar or its journal.
    """
    written: list[Path | int] = [1 if path is None else path]
    if path is not None and not is_stream(path):
        beside = sidecar(path)
        written += [journal_of(path), part_of(path)]
        if form in NEEDS_SIDECAR or describes_vectors(beside):
            written.append(beside)
    for name in inputs:
        if name == "-" and sys.stdin is None:
            continue
        read = _status(0 if name == "-" else Path(name))
        if read is None or not stat.S_ISREG(read.st_mode):
            continue
        for target in written:
            status = _status(target)
            if status and os.path.samestat(read, status):
                shown = "standard input" if name == "-" else name
                raise UsageError(f"{shown} is both input and output; write to another file with -o")


def describes_vectors(path: Path) -> bool:
    """Return whether a file is a sidecar that gemb wrote."""
    if not path.is_file() or path.stat().st_size > DESCRIPTION_LIMIT:
        return False
    try:
        VectorSpec.from_json(path.read_bytes())
    except UsageError:
        return False
    return True


_EFFECTIVE = os.access in os.supports_effective_ids


def _in_the_way(path: Path, purpose: str) -> UsageError:
    return UsageError(f"{path} is not a file of gemb, and {purpose} its name is needed; move it")


def _status(path: Path | int) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  a descriptor, too
    except (OSError, ValueError):
        return None


def _is_system(path: Path) -> bool:
    return path.parts[:2] in (("/", "dev"), ("/", "proc")) and path.parts[:3] != ("/", "dev", "shm")


def _hops(path: Path) -> Iterator[Path]:
    """Yield the path, then each that a link leads to, their folders resolved."""
    for _ in range(LINKS):
        path = Path(os.path.realpath(path.parent or "."), path.name)
        yield path
        try:
            path = path.parent / path.readlink()
        except OSError:
            return
