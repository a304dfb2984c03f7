"""Which paths the rules of .gitignore, .ignore and -g GLOB leave out.

A rule that is a plain name, a plain path or `*.suffix`, as most are, is looked up; pathspec makes a
regular expression of any other one. Rules: gitignore(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[^*?\[\]\\!#\s/][^*?\[\]\\\s/]*")
_SUFFIX = re.compile(r"\*\.[^*?\[\]\\\s/.]+")
_PATH = re.compile(r"/?[^*?\[\]\\!#\s/][^*?\[\]\\\s/]*(?:/[^*?\[\]\\\s/]+)*")
Failed = Callable[[str, OSError], object]
_LONGEST = 1 << 20  # bytes of a file of rules; a longer one is none


class Rules:
    """The rules of one file, in their order; the last one that matches decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        # name, suffix or /path -> (number, whether it is left out, whether it is of folders alone)
        self._names: dict[str, list[tuple[int, bool, bool]]] = {}
        self._others: list[tuple[int, bool, re.Pattern[str]]] = []
        for number, line in enumerate(lines):
            self._add(number, line.rstrip("\n"))
        self._others.reverse()

    def __bool__(self) -> bool:
        return bool(self._names or self._others)

    def _add(self, number: int, line: str) -> None:
        is_out = not line.startswith("!")
        rule = line.removeprefix("!").rstrip(" ") if not line.endswith("\\ ") else line
        name = rule.removesuffix("/")
        entry = (number, is_out, rule.endswith("/"))
        if _NAME.fullmatch(name) or _SUFFIX.fullmatch(name):
            self._names.setdefault(name, []).append(entry)
            return
        if _PATH.fullmatch(name):  # from the folder of the rules on
            self._names.setdefault("/" + name.removeprefix("/"), []).append(entry)
            return
        if not rule or rule.startswith("#"):
            return
        from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

        try:
            pattern = GitIgnoreSpecPattern(line)
        except (ValueError, re.error):  # git, too, takes a rule that makes no sense as none
            return
        if pattern.regex is not None:
            # A name may hold a newline.
            expression = re.compile(pattern.regex.pattern, re.DOTALL)
            self._others.append((number, bool(pattern.include), expression))

    def decide(self, path: str, name: str, *, is_folder: bool) -> bool | None:
        """Return whether a path is left out, None where no rule says anything.

        Args:
            path: relative to the folder of the rules; of a folder without the slash at its end.
            name: its last part.
            is_folder: whether it is a folder.
        """
        last, found = -1, None
        dot = name.rfind(".")
        keys = (name, "/" + path, "*" + name[dot:]) if dot >= 0 else (name, "/" + path)
        for key in keys:
            for number, is_out, is_of_folders in self._names.get(key, ()):
                if number > last and (is_folder or not is_of_folders):
                    last, found = number, is_out
        if self._others:
            whole = path + "/" if is_folder else path
            for number, is_out, pattern in self._others:
                if number < last:
                    break
                if pattern.match(whole):
                    return is_out
        return found


@dataclass(frozen=True)
class Scope:
    """The rules that hold in a folder, from the outermost file to the innermost."""

    git: tuple[tuple[int, Rules], ...] = ()  # length of the folder's path with its slash, rules
    plain: tuple[tuple[int, Rules], ...] = ()  # of .ignore files, which weigh more

    def leaves_out(self, real: str, name: str, *, is_folder: bool) -> bool:
        """Return whether an absolute path is left out."""
        for layers in (self.plain, self.git):
            for start, rules in reversed(layers):
                found = rules.decide(real[start:], name, is_folder=is_folder)
                if found is not None:
                    return found
        return False

    def inside(self, folder: str, names: Sequence[str] | set[str], failed: Failed) -> Scope:
        """Return the scope inside a folder, an absolute path without a slash at its end.

        Args:
            folder: where to look.
            names: of all that is in it.
            failed: called with each file of rules that cannot be read; then it has none.
        """
        if not (".git" in names or ".gitignore" in names or ".ignore" in names):
            return self
        start = len(folder.rstrip("/")) + 1
        git, plain = self.git, self.plain
        if ".git" in names:  # a repository: what is around it has no say in it
            git = tuple(
                (start, rules) for rules in _of_repository(Path(folder) / ".git", failed) if rules
            )
        if ".gitignore" in names:
            git = (*git, (start, _read(Path(folder) / ".gitignore", failed)))
        if ".ignore" in names:
            plain = (*plain, (start, _read(Path(folder) / ".ignore", failed)))
        return Scope(git, plain)


def around(folder: str, failed: Failed) -> Scope:
    """Return the scope that a folder is in: the rules of its parents, if a repository holds it.

    Rules that leave out the folder itself do not hold, for it was named.
    """
    parents: list[Path] = []
    place = Path(folder)
    while not _is_there(place / ".git"):
        if place == place.parent:
            return Scope()
        place = place.parent
        parents.append(place)
    scope = Scope()
    for parent in reversed(parents):
        names = [name for name in (".git", ".gitignore", ".ignore") if _is_there(parent / name)]
        scope = scope.inside(str(parent), names, failed)
    is_out = scope.leaves_out(folder, Path(folder).name, is_folder=True)
    return Scope() if is_out else scope


def _is_there(path: Path) -> bool:
    """Return whether there is something that one could see."""
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered
        return False


def _of_repository(git: Path, failed: Failed) -> list[Rules]:
    """Return the rules that a repository has apart from its tree, those of all others first."""
    import os

    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    everywhere = Path(os.path.expanduser(home)) / "git" / "ignore"  # noqa: PTH111 - unknown user
    try:
        if git.is_file():  # of a worktree or a submodule
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
            common = git / "commondir"
            git = git / common.read_text().strip() if common.is_file() else git
    except (OSError, UnicodeDecodeError):
        return []
    return [_read(everywhere, failed), _read(git / "info" / "exclude", failed)]


def _read(path: Path, failed: Failed) -> Rules:
    try:
        if not path.is_file():  # a pipe would hold the search up
            return Rules(())
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8", "surrogateescape")
    except FileNotFoundError:  # it has vanished
        return Rules(())
    except OSError as error:
        failed(str(path), error)
        return Rules(())
    return Rules(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"))
