"""The files under what a user named, their texts, and what of them was left out.

Files come in a steady order, as ripgrep walks: hidden files, what .gitignore, .ignore and
.git/info/exclude name, and links are left out; a file that is named itself never is.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gemb.io.notes import note, warn
from gemb.io.stamps import Stamp
from gemb.io.text import visible
from gemb.texts.contents import LOOKED_AT, NoText, no_text, whole_text
from gemb.texts.ignore import Rules, Scope, around
from gemb.texts.notebooks import SUFFIX as NOTEBOOK
from gemb.texts.notebooks import notebook_text

FEW = 5  # failures that are named one by one; the others are counted
MOST_BYTES = 10_000_000  # a longer file is a log or a dump, and would take an hour


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Which files of a folder are read."""

    globs: tuple[str, ...] = ()  # as .gitignore writes them; !GLOB leaves out; the last one counts
    hidden: bool = False  # also names that begin with a dot
    ignore: bool = True  # obey .gitignore, .ignore and .git/info/exclude
    follow: bool = False  # follow links to files and folders
    most_bytes: int = MOST_BYTES  # of a file; 0: no bound
    encoding: str = ""  # of files without a byte-order mark; empty: UTF-8


class Entry(NamedTuple):
    """A file that was found."""

    path: str  # as the user would type it
    real: str  # absolute; links in it are not resolved
    stamp: Stamp
    is_named: bool  # by the user, not found in a folder
    encoding: str = ""  # as `Walk` has it

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp.size


class FileText(NamedTuple):
    """The text of a file, or why it has none."""

    text: str | None
    no_text: NoText | None = None  # what it is instead
    is_whole: bool = True  # no byte of it was read as U+FFFD
    failure: str = ""  # why it could not be read; empty also where it has vanished


class Skipped:
    """Counts what was left out; as with grep, exit code 2 means that something failed."""

    def __init__(self) -> None:
        self.failed = 0  # could not be read: no permission, no such file, an I/O error
        self.no_text: Counter[NoText] = Counter()  # by their first bytes
        self.undecodable: list[str] = []  # read with U+FFFD for what is no UTF-8
        self.too_big: list[tuple[int, str]] = []  # size and path
        self.cut = 0  # passages that are longer than the model takes: their beginning counts
        self.changed = 0  # passages that are no longer where they were found
        self._rules: set[str] = set()  # files of them that cannot be read

    def failure(self, path: str, message: str) -> None:
        """Count what should have been read and could not, and name it (the first few)."""
        self.failed += 1
        if self.failed <= FEW:
            warn(f"{visible(path)}: {message}")

    def rules(self, path: str, message: str) -> None:
        """Name a file of rules that cannot be read, once; nothing is left out by it, or lost."""
        if path not in self._rules:
            warn(f"{visible(path)}: {message}; what it leaves out is taken")
        self._rules.add(path)

    def file_without_text(self, kind: NoText) -> None:
        """Count a file that is no text."""
        self.no_text[kind] += 1

    def undecodable_file(self, path: str) -> None:
        """Count a file of which a part is no UTF-8."""
        self.undecodable.append(path)

    def big_file(self, path: str, size: int, *, is_named: bool) -> None:
        """Count a file that is over the bound."""
        if is_named:
            larger = shown_size(size, up=True)
            self.failure(
                path, f"{shown_size(size)} is long for a text; --max-size {larger} takes it"
            )
        else:
            self.too_big.append((size, path))

    def cut_passage(self) -> None:
        """Count a passage that is longer than the model takes."""
        self.cut += 1

    def changed_passage(self) -> None:
        """Count a passage that is no longer where it was found."""
        self.changed += 1

    def say(self) -> None:
        """Say at the end, in a line for each kind, what was left out. Failures are always said."""
        if self.failed > FEW:
            warn(f"{self.failed - FEW:,} more files or passages failed in such ways")
        if left_out := self._left_out():
            note(f"left out: {', '.join(left_out)}")
        if self.undecodable:
            count = len(self.undecodable)
            note(
                f"{count:,} {'file is' if count == 1 else 'files are'} not all UTF-8 (first: "
                f"{visible(self.undecodable[0])}); what is none was read as U+FFFD"
            )
        if self.cut:
            count = self.cut
            are, their = ("passage is", "its") if count == 1 else ("passages are", "their")
            note(f"{count:,} {are} longer than the model takes; {their} beginning counts")
        if self.changed:
            count = self.changed
            have, are = ("passage has", "is") if count == 1 else ("passages have", "are")
            note(f"{count:,} {have} changed during the search and {are} left out")

    def _left_out(self) -> list[str]:
        """Return the counts of files that were left out for what they are."""
        counts = []
        if count := self.no_text[NoText.DOCUMENT]:
            which = "document" if count == 1 else "documents"
            counts.append(
                f"{count:,} {which} (PDF, Office; pdftotext or pandoc makes text of them)"
            )
        if count := self.no_text[NoText.BINARY]:
            counts.append(f"{count:,} binary {'file' if count == 1 else 'files'}")
        if self.too_big:
            size, path = max(self.too_big)
            count = len(self.too_big)
            which = "long file" if count == 1 else "long files"
            counts.append(
                f"{count:,} {which} (the largest: {visible(path)}, {shown_size(size)}; "
                f"--max-size {shown_size(size, up=True)} takes all)"
            )
        return counts


def shown_size(size: int, *, up: bool = False) -> str:
    """Return bytes as 2.1G or 75M; with `up`, a whole number that is no less."""
    for letter, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if size >= unit:
            return f"{-(-size // unit)}{letter}" if up else f"{size / unit:.1f}{letter}"
    return str(size)


def is_stream(path: str) -> bool:
    """Return whether a path is `-` or a pipe, as `<(command)` is: read once, not walked."""
    if path == "-":
        return True
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def walk(roots: Sequence[str], how: Walk, skipped: Skipped) -> Iterator[Entry]:
    """Yield the regular files, each once: folder by folder, names in byte order.

    What is named and is neither a folder nor a regular file (a pipe, a terminal) is left to the
    caller: see `is_stream`. Nothing is raised: what cannot be read is counted in `skipped`.
    """
    walker = _Walker(how, skipped)
    for root in roots:
        if not is_stream(root):
            yield from walker.root(root)


class _Level(NamedTuple):
    """A folder on the way down."""

    scope: Scope
    prefix: str  # of the paths in it, as the user would type them
    folder: str  # absolute, with its slash
    entries: list[os.DirEntry[str]]  # still to come, the next one last
    is_wanted: bool  # a glob names it or a folder around it, or no glob is needed


class _Walker:
    """What is the same for all roots."""

    def __init__(self, how: Walk, skipped: Skipped) -> None:
        self._how = how
        self._skipped = skipped
        self._seen: set[str] = set()  # absolute paths of files
        globs = [(glob.removeprefix("!"), glob.startswith("!")) for glob in how.globs]
        self._globs = Rules(globs)  # of paths as the user types them
        self._globs_below = Rules(globs)  # of paths relative to the root
        if self._globs.passed_over:
            skipped.failure("-g", self._globs.passed_over)
        self._above: set[tuple[int, int]] = set()  # folders that were gone through
        self._start = 0  # of a path relative to the root in an absolute one
        self._needs_glob = any(not glob.startswith("!") for glob in how.globs)

    def root(self, root: str) -> Iterator[Entry]:
        try:
            status = os.stat(root)  # noqa: PTH116
        except (OSError, ValueError) as error:
            self._skipped.failure(root, reason(error))
            return
        real = os.path.abspath(root)  # noqa: PTH100 - resolves no links
        if stat.S_ISREG(status.st_mode):
            yield from self._file(root, real, status, is_named=True)
            return
        scope = around(real, self._rules_failed) if self._how.ignore else Scope()
        prefix = "" if root == "." else root if root.endswith("/") else root + "/"
        yield from self._folders(prefix, real, scope)

    def _folders(self, prefix: str, real: str, scope: Scope) -> Iterator[Entry]:
        """Yield what is under a folder; without recursion, for there are very deep trees."""
        self._above = {_identity(real)} if self._how.follow else set()
        self._start = len(real.rstrip("/")) + 1
        levels = [self._level(prefix, real, scope, is_wanted=not self._needs_glob)]
        while levels:
            level = levels[-1]
            if not level.entries:
                levels.pop()
                continue
            entry = level.entries.pop()
            path, real = level.prefix + entry.name, level.folder + entry.name
            is_folder = self._is_folder(entry, real)
            if is_folder is None:
                continue
            is_out, is_wanted = self._judged(entry.name, path, real, level, is_folder)
            if is_out:
                continue
            if is_folder:
                levels.append(self._level(path + "/", real, level.scope, is_wanted=is_wanted))
            elif is_wanted:
                yield from self._found(entry, path, real)

    def _level(self, prefix: str, real: str, scope: Scope, *, is_wanted: bool) -> _Level:
        try:
            with os.scandir(real) as entries:
                children = sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._skipped.failure(prefix or ".", reason(error))
            children = []
        if self._how.ignore:
            names = {entry.name for entry in children}
            scope = scope.inside(real, names, self._rules_failed)
        return _Level(scope, prefix, real.rstrip("/") + "/", children, is_wanted)

    def _rules_failed(self, path: str, error: OSError) -> None:
        self._skipped.rules(path, reason(error))

    def _is_folder(self, entry: os.DirEntry[str], real: str) -> bool | None:
        """Return whether it is a folder, None where it is nothing to read."""
        follow = self._how.follow
        try:
            if not entry.is_dir(follow_symlinks=follow):
                return False if entry.is_file(follow_symlinks=follow) else None
            if follow:  # a link may lead back, or to what was there already
                identity = _identity(real)
                if identity in self._above:
                    return None
                self._above.add(identity)
        except OSError:  # a link to itself
            return None
        return True

    def _judged(
        self, name: str, path: str, real: str, level: _Level, is_folder: bool
    ) -> tuple[bool, bool]:
        """Return whether it is left out, and whether a glob selects it (or none need to)."""
        is_bare = self._how.hidden and not self._how.ignore
        if name == ".git" and not is_bare:
            return True, False
        if self._globs:
            is_left_out = self._globs.decide(path.removeprefix("./"), name, is_folder=is_folder)
            if is_left_out is None:
                is_left_out = self._globs_below.decide(
                    real[self._start :], name, is_folder=is_folder
                )
            if is_left_out is not None:  # a glob weighs more than all else
                return is_left_out, not is_left_out
        if name.startswith(".") and not self._how.hidden:
            return True, False
        return level.scope.leaves_out(real, name, is_folder=is_folder), level.is_wanted

    def _found(self, entry: os.DirEntry[str], path: str, real: str) -> Iterator[Entry]:
        try:
            status = entry.stat(follow_symlinks=self._how.follow)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # else it has vanished
                self._skipped.failure(path, reason(error))
            return
        yield from self._file(path, real, status, is_named=False)

    def _file(
        self, path: str, real: str, status: os.stat_result, *, is_named: bool
    ) -> Iterator[Entry]:
        if real in self._seen:
            return
        self._seen.add(real)
        most = self._how.most_bytes
        if 0 < most < status.st_size:
            if kind := _kind(real, self._how.encoding):
                self._skipped.file_without_text(kind)
            else:
                self._skipped.big_file(path, status.st_size, is_named=is_named)
            return
        if path.startswith("-"):  # as an option it would be taken
            path = "./" + path
        yield Entry(path, real, Stamp.of(status), is_named, self._how.encoding)


def reason(error: OSError | ValueError) -> str:
    """Return the few words of an error of the system."""
    words = getattr(error, "strerror", None) or str(error)
    return words[:1].lower() + words[1:]


def _kind(real: str, encoding: str) -> NoText | None:
    try:
        with Path(real).open("rb") as file:
            return no_text(file.read(LOOKED_AT), encoding)
    except OSError:  # it is left out for its size
        return None


def _identity(real: str) -> tuple[int, int]:
    status = os.stat(real)  # noqa: PTH116
    return status.st_dev, status.st_ino


def open_text(entry: Entry) -> FileText:
    """Return the file's text, or why it has none.

    A binary file (`gemb.texts.contents.no_text`), a vanished one and one that may not be read
    have no text. Of a file that grows, what it held when it was found is read. Of a notebook, the
    text is that of its cells.
    """
    try:
        data = _content(entry)
    except FileNotFoundError as error:
        return FileText(None, failure=reason(error) if entry.is_named else "")
    except OSError as error:
        return FileText(None, failure=reason(error))
    if isinstance(data, NoText):
        return FileText(None, no_text=data)
    text, is_whole = whole_text(data, entry.encoding)
    if entry.real.endswith(NOTEBOOK) and (source := notebook_text(text)) is not None:
        text = source
    return FileText(text, is_whole=is_whole)


def read_text(entry: Entry, skipped: Skipped) -> str | None:
    """Return the file's text, None where it has none; what is wrong with it is counted."""
    file = open_text(entry)
    if file.failure:
        skipped.failure(entry.path, file.failure)
    elif file.no_text:
        skipped.file_without_text(file.no_text)
    elif not file.is_whole:
        skipped.undecodable_file(entry.path)
    return file.text


def _content(entry: Entry) -> bytes | NoText:
    """Return the bytes of a file, or what it is where it is no text, or no file any more."""
    # A pipe in the place of the file must not hold the search up.
    file = os.open(entry.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return NoText.BINARY
        head = _read(file, min(entry.size, LOOKED_AT))
        if kind := no_text(head, entry.encoding):
            return kind
        return head + _read(file, entry.size - len(head))
    finally:
        os.close(file)


def _read(file: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.read(file, size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
