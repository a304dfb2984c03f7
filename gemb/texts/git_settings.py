"""What git's configuration says of files to leave out, read without git: git-config(1)."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

Failed = Callable[[str, OSError], object]

_LONGEST = 1 << 20  # bytes of a file of settings; a longer one is none
_DEEPEST = 10  # files that include one another, as git has it
_MOST_FILES = 100  # that one file of settings includes, those of the included ones counted
_ESCAPED = {"n": "\n", "t": "\t", "b": "\b"}


def opened(path: Path, longest: int) -> bytes | None:
    """Return the bytes of a file, None where there is none; a pipe would hold the search up.

    Raises:
        OSError: it cannot be read, or is longer than `longest` bytes.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a NUL
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        return None
    with os.fdopen(file, "rb") as stream:
        data = stream.read(longest + 1)
    if len(data) > longest:
        raise OSError(errno.EFBIG, f"longer than {longest >> 20} MiB", str(path))
    return data


def repository_folders(folder: str) -> tuple[Path, Path]:
    """Return the folder of a repository or worktree, and the one that all its worktrees share.

    Args:
        folder: the one that has `.git`, a folder or, in a worktree and a submodule, a file.
    """
    git = Path(folder) / ".git"
    try:
        if not git.is_dir() and (data := opened(git, _LONGEST)):
            git = git.parent / os.fsdecode(data).removeprefix("gitdir:").strip()
        data = opened(git / "commondir", _LONGEST)
        return git, git / os.fsdecode(data).strip() if data else git
    except OSError:
        return git, git


def excludes_file(folder: str, git: Path, common: Path) -> Path | None:
    """Return the file of rules of all repositories: core.excludesFile, or where it is by default.

    Args:
        folder: the working tree, from which a relative path counts.
        git: its own folder of the repository.
        common: that of all its worktrees.
    """
    path: str | None = None
    for file in _files(git, common):
        for key, value in _settings(file, []):
            if key == "core.excludesfile":
                path = value
    for key, value in _of_environment():
        if key.lower() == "core.excludesfile":
            path = value
    if path is None:
        return _config_home() / "git" / "ignore"
    path = path.removeprefix(":(optional)")
    return Path(folder) / _expanded(path) if path else None


def _files(git: Path, common: Path) -> Iterator[Path]:
    """Yield the files of settings, those that weigh most last."""
    if os.environ.get("GIT_CONFIG_NOSYSTEM", "").lower() not in ("1", "true", "yes", "on"):
        yield Path(os.environ.get("GIT_CONFIG_SYSTEM") or "/etc/gitconfig")
    if (everywhere := os.environ.get("GIT_CONFIG_GLOBAL")) is not None:
        yield Path(_expanded(everywhere))
    else:
        yield _config_home() / "git" / "config"
        yield Path(_expanded("~/.gitconfig"))
    yield common / "config"
    yield git / "config.worktree"


def _config_home() -> Path:
    return Path(_expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config"))


def _of_environment() -> Iterator[tuple[str, str]]:
    """Yield the settings that GIT_CONFIG_COUNT numbers."""
    number = os.environ.get("GIT_CONFIG_COUNT", "")
    for at in range(int(number) if number.isascii() and number.isdigit() else 0):
        key = os.environ.get(f"GIT_CONFIG_KEY_{at}")
        if key is None:
            return
        yield key, os.environ.get(f"GIT_CONFIG_VALUE_{at}", "")


def _expanded(path: str) -> str:
    if "\0" in path:  # no user's name
        return path
    return os.path.expanduser(path)  # noqa: PTH111 - unknown user


def _settings(path: Path, read: list[Path], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield keys in lower case and values of a file and of those that it includes, in order.

    Args:
        path: of the file.
        read: the files before it, to which it is added: one may include itself many times.
        depth: how many include it.
    """
    read.append(path)
    try:
        data = opened(path, _LONGEST)
    except (OSError, ValueError):
        return
    if not data:
        return
    for key, value in _parsed(os.fsdecode(data)):
        if key != "include.path":
            yield key, value
        elif value and depth < _DEEPEST and len(read) < _MOST_FILES:
            yield from _settings(path.parent / _expanded(value), read, depth + 1)


_SECTION = re.compile(r'\[[ \t]*([\w.-]+)(?:[ \t]+"((?:[^"\\\n]|\\.)*)")?[ \t]*\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(=?)[ \t]*")


def _parsed(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a file of settings, in lower case, and their values, to its first error."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n") + "\n"
    section = ""
    at = 0
    while at < len(text):
        character = text[at]
        if character.isspace():
            at += 1
        elif character in "#;":
            at = text.index("\n", at)
        elif character == "[":
            match = _SECTION.match(text, at)
            if not match:
                return
            section = match[1].lower() + (f".{match[2]}" if match[2] is not None else "")
            at = match.end()
        else:
            match = _KEY.match(text, at)
            value = _value(text, match.end()) if match else None
            if not match or value is None:
                return
            words, at = value
            yield f"{section}.{match[1].lower()}", words


def _value(text: str, at: int) -> tuple[str, int] | None:
    """Return the value that begins at a place of a line, and where it ends; None: it is wrong."""
    parts: list[str] = []
    bare = 0  # parts up to the last one that is no blank, or is quoted
    is_quoted = False
    while (character := text[at]) != "\n":
        at += 1
        if character == '"':
            is_quoted = not is_quoted
            bare = len(parts)
            continue
        if character in "#;" and not is_quoted:
            at = text.index("\n", at)
            break
        if character == "\\":
            escaped = text[at]
            at += 1
            if escaped == "\n":
                if at >= len(text):
                    return None
                continue
            if escaped not in 'ntb"\\':
                return None
            character = _ESCAPED.get(escaped, escaped)
        parts.append(character)
        if is_quoted or not character.isspace():
            bare = len(parts)
    return None if is_quoted else ("".join(parts[:bare]), at)
