"""Files on any file system that Arrow knows: this machine's, s3, gs, abfs, hdfs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.io.text import visible

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class InputFile:
    """A file of the input."""

    path: str  # on its file system
    label: str  # as the user named it, or its folder
    size: int  # bytes
    changed: float  # seconds since 1970; 0: the file system does not say


def is_remote(path: str) -> bool:
    """Return whether a path is an address: s3://bucket/folder."""
    return bool(_SCHEME.match(path))


def shown_address(path: str) -> str:
    """Return a path, or an address without what is secret in it: keys and options."""
    if not is_remote(path):
        return path
    return re.sub(r"(?<=://)[^/@]*@", "", path.partition("?")[0])


def resolved(path: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or an address, and the path on it.

    Raises:
        UsageError: Arrow knows no such address, or the name is not UTF-8.
    """
    import pyarrow
    from pyarrow.fs import FileSystem, LocalFileSystem

    whole = path if is_remote(path) else os.path.abspath(path)  # noqa: PTH100
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise _no_utf8(whole) from None
    if not is_remote(path):
        return LocalFileSystem(), whole
    try:
        system, inner = FileSystem.from_uri(path)
    except (pyarrow.ArrowException, ValueError, ImportError) as error:
        where = re.sub("//.*@", "//", shown_address(path))  # a key may have a /
        reason = str(error).split("\n", 1)[0].replace(path, where)
        reason = visible(re.sub(r"//\S*@", "//", reason))
        raise UsageError(f"{where}: no address that can be opened: {reason}") from None
    return system, inner


def listed(paths: Sequence[str]) -> tuple[FileSystem, list[InputFile]]:
    """Return the file system of the inputs, and their files: those of a folder by their names.

    In folders, names that begin with a dot or an underscore are left out.

    Raises:
        UsageError: one is not there, a folder is empty, a name is not UTF-8, or they are on several
            file systems.
    """
    files: list[InputFile] = []
    system: FileSystem | None = None
    for path in paths:
        its_system, inner = resolved(path)
        if system is not None and not its_system.equals(system):
            both = f"{shown_address(paths[0])} and {shown_address(path)}"
            raise UsageError(f"{both} are in two stores; embed one after the other")
        system = its_system
        files += _files(system, shown_address(path), inner)
    assert system is not None, "there is an input"
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            raise UsageError(f"{file.label} is given twice; each file is an input once")
        seen.add(file.path)
    return system, files


def _files(system: FileSystem, path: str, inner: str) -> Iterator[InputFile]:
    from pyarrow.fs import FileSelector, FileType

    info = system.get_file_info(inner)
    if info.type == FileType.NotFound:
        raise UsageError(f"no such file: {path}")
    if info.type != FileType.Directory:
        yield _input_file(info, path)
        return
    inside = system.get_file_info(FileSelector(inner, recursive=True))
    try:
        names = sorted(
            (entry.path[len(inner) :].lstrip("/"), entry)
            for entry in inside
            if entry.type != FileType.Directory
        )
    except UnicodeDecodeError as error:
        raise _no_utf8(os.fsdecode(error.object)) from None
    names = [(name, entry) for name, entry in names if not re.search(r"(?:^|/)[._]", name)]
    if not names:
        raise UsageError(f"{path}: no files in this folder")
    for name, entry in names:
        yield _input_file(entry, f"{path.rstrip('/')}/{name}")


def _no_utf8(path: str) -> UsageError:
    return UsageError(
        f"{visible(shown_address(path))}: Ray takes no name that is not UTF-8; rename it, or leave "
        "--engine ray out"
    )


def _input_file(info: FileInfo, label: str) -> InputFile:
    return InputFile(info.path, label, info.size or 0, (info.mtime_ns or 0) / 1e9)
