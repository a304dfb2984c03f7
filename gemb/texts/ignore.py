"""Which paths the rules of .gitignore, .ignore, .rgignore and -g GLOB leave out.

A rule that is a plain name, a plain path, `*END` or `BEGINNING*`, as most are, is looked up; all
others of a file are held against a path at once (`gemb.texts.patterns`). Rules: gitignore(5); where
they are looked for: ripgrep's manual.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.texts.contents import BOM
from gemb.texts.git_settings import Failed, excludes_file, opened, repository_folders
from gemb.texts.patterns import (
    MOST_ROOM,
    MOST_TOKENS,
    Automaton,
    PathAutomaton,
    Token,
    TooLong,
    Wild,
    room_of,
    spellings,
    tokens,
)

_SPECIAL = re.compile(r"[*?\[\\]")
_SPECIAL_LINES = re.compile(r"^.*(?:[*?\[\\].*| )$", re.MULTILINE)
_STARRED = re.compile(r"(\*?)([^*?\[\\/]+)(\*?)(/?)")  # *.end, beginning*, *middle*
_LONGEST = 1 << 25  # bytes of a file of rules
_IN_FOLDER = (".git", ".gitignore", ".ignore", ".rgignore")  # what decides about files around it


class Rules:
    """The rules of one file, in their order; the last one that matches decides.

    A path has the characters of the rules: bytes (`as_bytes`) against a file's, characters against
    a glob of the command line.
    """

    def __init__(self, rules: Iterable[tuple[str, bool]] = ()) -> None:
        """Take rules, each without its `!`, and whether it leaves out what it matches."""
        self._lines: dict[str, int] = {}  # of a file, that are plain names and paths -> number
        # The value of a rule is twice its number, and 1 more if it leaves out. Of whole names, of
        # their ends, beginnings and middles: the value for a file, and for a folder.
        self._names: dict[str, list[int]] = {}
        self._ends: dict[str, list[int]] = {}
        self._beginnings: dict[str, list[int]] = {}
        self._middles: dict[str, list[int]] = {}
        self._signs: tuple[str, ...] = ("", "!")  # of the lines
        self._room = MOST_ROOM  # that is left for the automata
        self._passed_over: dict[str, None] = {}  # why
        self._by_name = Automaton()
        self._by_path = PathAutomaton()
        for number, (rule, is_out) in enumerate(rules):
            self._add(rule, 2 * number + is_out)
        self._finish()

    @staticmethod
    def of_file(data: bytes) -> Rules:
        """Return the rules that a file holds."""
        rules = Rules()
        text = (data.removeprefix(BOM) + b"\n").decode("latin-1").replace("\r\n", "\n")
        if "\0" in text:  # to git, a line ends there
            text = re.sub(r"\0.*", "", text)
        lines = text.split("\n")
        rules._lines = dict(zip(lines, range(len(lines)), strict=True))  # the last of equal ones
        if "\n!" not in text and text[0] != "!":
            rules._signs = ("",)
        special = dict.fromkeys(_SPECIAL_LINES.findall(text))
        for line in sorted(special, key=rules._lines.__getitem__):
            rules._add_line(line, rules._lines.pop(line))
        rules._finish()
        return rules

    def _add_line(self, line: str, number: int) -> None:
        if line.startswith("#"):
            return
        is_out = not line.startswith("!")
        rule = _without_spaces(line.removeprefix("!"))
        if not _SPECIAL.search(rule):
            key = f"{'' if is_out else '!'}{rule}"
            self._lines[key] = max(number, self._lines.get(key, -1))
        else:
            self._add(rule, 2 * number + is_out)

    def _add(self, rule: str, value: int) -> None:
        if starred := _STARRED.fullmatch(rule):
            before, text, after, slash = starred.groups()
            self._put(self._table(before, after), text, value, is_of_folders=bool(slash))
            return
        pattern = rule.removesuffix("/")
        is_of_folders = pattern != rule
        is_path = "/" in pattern
        try:
            parts = tokens(pattern.removeprefix("/"), is_path=is_path)
        except TooLong:
            self._passed_over[f"a pattern of more than {MOST_TOKENS:,} parts"] = None
            return
        if parts is None:
            return
        if is_path and parts[:2] == [Wild.FOLDERS, "/"]:  # of any folder, as a name is
            rest = parts[2:]
            if Wild.DEEP not in rest and not any("/" in part for part in rest if type(part) is str):
                is_path, parts = False, rest
        if not parts:
            return
        if is_path:
            self._hold(self._by_path, parts, value, is_of_folders=is_of_folders)
            return
        before, after = parts[0] is Wild.SOME, len(parts) > 1 and parts[-1] is Wild.SOME
        texts = list(spellings(parts[before : len(parts) - after]))
        for text in texts:
            self._put(self._table(before, after), text, value, is_of_folders=is_of_folders)
        if not texts:
            self._hold(self._by_name, parts, value, is_of_folders=is_of_folders)

    def _hold(
        self, automaton: Automaton, parts: Sequence[Token], value: int, *, is_of_folders: bool
    ) -> None:
        """Give a pattern to an automaton, as long as there is room."""
        self._room -= room_of(parts)
        if self._room < 0:
            self._passed_over[f"what follows {MOST_ROOM:,} characters of patterns"] = None
            return
        automaton.add(parts, value, is_of_folders=is_of_folders)

    @property
    def passed_over(self) -> str:
        """Which rules do not hold since they would take too much memory, in words; mostly empty."""
        reasons = " and ".join(self._passed_over)
        return f"{reasons} is passed over" if reasons else ""

    def _table(self, before: object, after: object) -> dict[str, list[int]]:
        """Return where a text with a star before or after it is looked up."""
        if before:
            return self._middles if after else self._ends
        return self._beginnings if after else self._names

    @staticmethod
    def _put(table: dict[str, list[int]], text: str, value: int, *, is_of_folders: bool) -> None:
        values = table.setdefault(text, [-1, -1])
        values[1] = max(values[1], value)
        if not is_of_folders:
            values[0] = max(values[0], value)

    def _finish(self) -> None:
        tables = self._ends, self._beginnings, self._middles
        self._lengths = [sorted(set(map(len, table))) for table in tables]

    def __bool__(self) -> bool:
        return bool(
            self._lines
            or self._names
            or self._ends
            or self._beginnings
            or self._middles
            or self._by_name
            or self._by_path
        )

    def decide(self, path: str, name: str, *, is_folder: bool) -> bool | None:
        """Return whether a path is left out, None where no rule says anything.

        Args:
            path: relative to the folder of the rules; of a folder without the slash at its end.
            name: its last part.
            is_folder: whether it is a folder.
        """
        value = self._looked_up(path, name, is_folder)
        if self._by_name and self._by_name.last > value:
            state = self._by_name.after(self._by_name.start(), name)
            value = max(value, self._by_name.value(state, is_folder=is_folder))
        if self._by_path and self._by_path.last > value:
            state = self._by_path.of_path(path[: len(path) - len(name)], name)
            value = max(value, self._by_path.value(state, is_folder=is_folder))
        return None if value < 0 else bool(value & 1)

    def _looked_up(self, path: str, name: str, is_folder: bool) -> int:
        """Return the value of the last rule that matches and needs no automaton, or -1."""
        value = self._of_lines(path, name, is_folder) if self._lines else -1
        if self._names and name in self._names:
            value = max(value, self._names[name][is_folder])
        ends, beginnings, middles = self._lengths
        size = len(name)
        for length in ends:
            if (text := name[size - length :]) in self._ends and length <= size:
                value = max(value, self._ends[text][is_folder])
        for length in beginnings:
            if (text := name[:length]) in self._beginnings:
                value = max(value, self._beginnings[text][is_folder])
        for length in middles:
            for at in range(size - length + 1):
                if (text := name[at : at + length]) in self._middles:
                    value = max(value, self._middles[text][is_folder])
        return value

    def _of_lines(self, path: str, name: str, is_folder: bool) -> int:
        value = -1
        places = (name, f"/{path}") if len(path) == len(name) else (name, path, f"/{path}")
        for sign in self._signs:
            is_out = not sign
            for place in places:
                if is_out and place[0] in "#!":  # as a line it would be something else
                    continue
                key = sign + place
                value = max(value, 2 * self._lines.get(key, -1) + is_out)
                if is_folder:
                    value = max(value, 2 * self._lines.get(f"{key}/", -1) + is_out)
        return value


def _without_spaces(rule: str) -> str:
    """Return a rule without the spaces at its end, save one after a backslash."""
    short = rule.rstrip(" ")
    backslashes = len(short) - len(short.rstrip("\\"))
    return f"{short} " if len(short) < len(rule) and backslashes % 2 else short


def as_bytes(path: str) -> str:
    """Return a path with a character for each byte, as rules of files are compared with it."""
    return path if path.isascii() else os.fsencode(path).decode("latin-1")


@dataclass(frozen=True)
class Scope:
    """The rules that hold in a folder, from the outermost file to the innermost."""

    # Each of these: bytes of the folder's path with its slash, rules. Later ones weigh more.
    git: tuple[tuple[int, Rules], ...] = ()  # of a repository
    plain: tuple[tuple[int, Rules], ...] = ()  # of .ignore files, which weigh more
    own: tuple[tuple[int, Rules], ...] = ()  # of .rgignore files, which weigh most
    is_repository: bool = False  # whether .gitignore counts

    def leaves_out(self, real: str, name: str, *, is_folder: bool) -> bool:
        """Return whether an absolute path is left out."""
        if not (self.git or self.plain or self.own):
            return False
        if not real.isascii():
            real, name = as_bytes(real), as_bytes(name)
        for layers in (self.own, self.plain, self.git):
            for start, rules in reversed(layers):
                is_left_out = rules.decide(real[start:], name, is_folder=is_folder)
                if is_left_out is not None:
                    return is_left_out
        return False

    def inside(self, folder: str, names: Sequence[str] | set[str], failed: Failed) -> Scope:
        """Return the scope inside a folder, an absolute path without a slash at its end.

        Args:
            folder: where to look.
            names: of all that is in it.
            failed: called with each file of rules that cannot be read; then it has none.
        """
        if not any(name in names for name in _IN_FOLDER):
            return self
        start = len(as_bytes(folder.rstrip("/"))) + 1
        git, plain, own = self.git, self.plain, self.own
        is_repository = self.is_repository or ".git" in names
        if ".git" in names:  # what is around a repository has no say in it
            git = tuple((start, rules) for rules in _of_repository(folder, failed) if rules)
        if ".gitignore" in names and is_repository:
            git = (*git, (start, _read(Path(folder) / ".gitignore", failed)))
        if ".ignore" in names:
            plain = (*plain, (start, _read(Path(folder) / ".ignore", failed)))
        if ".rgignore" in names:
            own = (*own, (start, _read(Path(folder) / ".rgignore", failed)))
        return Scope(git, plain, own, is_repository)


def around(folder: str, failed: Failed) -> Scope:
    """Return the scope that a folder is in: the rules of its parents.

    Rules that leave out the folder itself do not hold, for it was named.
    """
    scope = Scope()
    for parent in reversed(Path(folder).parents):
        names = [name for name in _IN_FOLDER if _is_there(parent / name)]
        scope = scope.inside(str(parent), names, failed)
    if scope.leaves_out(folder, Path(folder).name, is_folder=True):
        return Scope(is_repository=scope.is_repository)
    return scope


def is_ignored(path: Path, root: Path) -> bool:
    """Return whether a walk from a root, both absolute, leaves out a path in it by its rules."""

    def failed(*_: object) -> None:
        """A file of rules that cannot be read has none, as in a walk."""

    scope, folder = around(str(root), failed), root
    for part in path.relative_to(root).parts:
        names = [name for name in _IN_FOLDER if _is_there(folder / name)]
        scope = scope.inside(str(folder), names, failed)
        folder /= part
        if scope.leaves_out(str(folder), part, is_folder=folder.is_dir()):
            return True
    return False


def _is_there(path: Path) -> bool:
    """Return whether there is something that one could see."""
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered
        return False


def _of_repository(folder: str, failed: Failed) -> list[Rules]:
    """Return the rules that a repository has apart from its tree, those of all others first."""
    git, common = repository_folders(folder)
    everywhere = excludes_file(folder, git, common)
    paths = [path for path in (everywhere, common / "info" / "exclude") if path]
    return [_read(path, failed) for path in paths]


def _read(path: Path, failed: Failed) -> Rules:
    try:
        data = opened(path, _LONGEST)
    except OSError as error:
        failed(str(path), error)
        return Rules(())
    rules = Rules.of_file(data or b"")
    if rules.passed_over:
        failed(str(path), OSError(errno.E2BIG, rules.passed_over))
    return rules
