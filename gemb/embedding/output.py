"""The output of a run: what its path means, and the refusal to overwrite other files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.embedding.formats.table import Format
from gemb.embedding.vectors import VectorSpec, sidecar
from gemb.errors import UsageError
from gemb.io.paths import (
    EFFECTIVE_IDS,
    check_folder_of,
    followed,
    is_stream,
    part_of,
    status_of,
)

JOURNAL_MARK = b'{"gemb journal": '  # how every journal begins
DESCRIPTION_LIMIT = 1 << 20  # bytes; a sidecar has less than a thousand and the prompt


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the vectors of a run are written."""

    form: Format
    path: Path | None  # no link; None: standard output
    is_stream: bool  # standard output, a pipe, a device: what is written there is gone

    @staticmethod
    def of(output: str | None, form: Format) -> Target:
        """Return the target that -o names; None and - are standard output."""
        path = None if output in (None, "-") else followed(Path(output or ""))
        return Target(form=form, path=path, is_stream=is_stream(path))

    @property
    def file(self) -> Path:
        """The file that appears whole or not at all; not of a stream."""
        assert self.path is not None, "standard output is no file"
        return self.path

    @property
    def journal(self) -> Path:
        """The journal beside the file."""
        return self.file.with_name(self.file.name + ".journal")

    @property
    def sidecar(self) -> Path:
        """What describes the vectors of a format that cannot hold it."""
        return sidecar(self.file)

    def check(self) -> None:
        """Refuse what cannot be written, before a model is loaded.

        Raises:
            UsageError: it is a folder, or its folder is missing or cannot be written to; it names a
                descriptor that is not open; or a file that gemb did not write has a name that is
                needed.
        """
        path = self.path
        if path is None:
            return
        if path.is_dir():
            raise UsageError(f"{path} is a folder; -o names a file in it: -o {path / 'NAME'}")
        if self.is_stream:
            if not path.exists():
                raise UsageError(f"{path}: no such device or open file; -o FILE makes none there")
            return
        check_folder_of(path)
        if path.exists() and not os.access(path, os.W_OK, effective_ids=EFFECTIVE_IDS):
            raise UsageError(f"{path}: permission denied; check its permissions")
        self.check_sidecar()
        self._check_journal()
        # A killed run leaves both; without a journal the part is a file of the user's.
        part, journal = part_of(path), self.journal
        if os.path.lexists(part) and not (journal.is_file() and journal.stat().st_size):
            raise _in_the_way(part, "for the unfinished output")

    def check_sidecar(self) -> None:
        """Refuse to replace a file beside the output that is no description of vectors.

        Raises:
            UsageError: the format needs that name.
        """
        beside = self.sidecar
        if self.form.needs_sidecar and os.path.lexists(beside) and not describes_vectors(beside):
            raise _in_the_way(beside, f"for the description of {self.file.name}")

    def _check_journal(self) -> None:
        """Refuse a file that has the journal's name and is no journal.

        Raises:
            UsageError: gemb did not write it.
        """
        journal = self.journal
        if not os.path.lexists(journal):
            return
        if journal.is_file() and not journal.is_symlink():
            with journal.open("rb") as file:
                first = file.read(len(JOURNAL_MARK))
            if JOURNAL_MARK.startswith(first):  # a kill may have cut it short
                return
        raise _in_the_way(journal, "for resuming after a stop")

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """Refuse an input that is written to; the input `-` is standard input.

        Raises:
            UsageError: an input is the output, its sidecar or its journal.
        """
        written: list[Path | int] = [1 if self.path is None else self.path]
        if not self.is_stream:
            written += [self.journal, part_of(self.file)]
            if self.form.needs_sidecar or describes_vectors(self.sidecar):
                written.append(self.sidecar)
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
                    raise UsageError(
                        f"{shown} is both input and output; write to another file with -o"
                    )


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
    return UsageError(f"gemb did not write {path}, and its name is needed {purpose}; move it")
