"""What the path of an output means, and the refusal of one that would destroy something else."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from gemb.embedding.formats.table import FORMATS
from gemb.embedding.vectors import VectorSpec, sidecar
from gemb.errors import UsageError
from gemb.io.paths import (
    EFFECTIVE_IDS,
    check_folder_of,
    is_stream,
    part_of,
    status_of,
)

JOURNAL_MARK = b'{"gemb journal": '  # how every journal begins
DESCRIPTION_LIMIT = 1 << 20  # bytes; a sidecar has less than a thousand and the prompt


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
    if path.exists() and not os.access(path, os.W_OK, effective_ids=EFFECTIVE_IDS):
        raise UsageError(f"{path}: permission denied; check its permissions")
    check_sidecar(path, form)
    journal, part = journal_of(path), part_of(path)
    check_journal(journal)
    # A killed run leaves both; without its journal the other is somebody's own file.
    if os.path.lexists(part) and not (journal.is_file() and journal.stat().st_size):
        raise _in_the_way(part, "for the unfinished output")


def check_sidecar(path: Path, form: str) -> None:
    """Refuse to replace a file beside the output that is no description of vectors.

    Raises:
        UsageError: the format needs that name.
    """
    beside = sidecar(path)
    if FORMATS[form].needs_sidecar and os.path.lexists(beside) and not describes_vectors(beside):
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
        if FORMATS[form].needs_sidecar or describes_vectors(beside):
            written.append(beside)
    for name in inputs:
        if name == "-" and sys.stdin is None:
            continue
        read = status_of(0 if name == "-" else Path(name))
        if read is None or not stat.S_ISREG(read.st_mode):
            continue
        for target in written:
            status = status_of(target)
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


def _in_the_way(path: Path, purpose: str) -> UsageError:
    return UsageError(f"{path} is not a file of gemb, and {purpose} its name is needed; move it")
