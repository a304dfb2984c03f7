"""Patterns of gitignore(5), many at once, in a time that grows with the length of a path alone.

A pattern becomes tokens, and all patterns of a file one automaton: a whole number, in which a bit
says that the path so far takes a pattern to a token. So there is nothing to go back to, and a
pattern that was written to hang a program costs as much as any other. What a pattern means is what
git's wildmatch.c and dir.c do with it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from itertools import product
from typing import NamedTuple

_PLAIN = re.compile(r"[^*?\[\\]*")
_CLASSES = {  # of ASCII, as git has them
    "alnum": ("09", "AZ", "az"),
    "alpha": ("AZ", "az"),
    "blank": ("  ", "\t\t"),
    "cntrl": ("\0\x1f", "\x7f\x7f"),
    "digit": ("09",),
    "graph": ("!~",),
    "lower": ("az",),
    "print": (" ~",),
    "punct": ("!/", ":@", "[`", "{~"),
    "space": ("\t\r", "  "),
    "upper": ("AZ",),
    "xdigit": ("09", "AF", "af"),
}
MOST_TOKENS = 4096  # of a pattern; a path has so many bytes
MOST_ROOM = 1 << 20  # of the patterns of a file, as `room_of` counts it
_CLASS_ROOM = 16  # each class is asked about each character
_MOST_SPELLINGS = 16  # of a pattern with classes, such as *.py[cod]: that many are looked up


class TooLong(ValueError):
    """A pattern has more than `MOST_TOKENS` tokens."""


class Wild(Enum):
    """What stands for several characters."""

    ONE = auto()  # ?: a character that is no slash
    SOME = auto()  # *: any number of them
    DEEP = auto()  # ** at the end: any characters
    FOLDERS = auto()  # ** before a slash, which is the next token: nothing, or any characters and /


class OneOf(NamedTuple):
    """A character class, such as [a-z]; it never holds a slash."""

    ranges: tuple[str, ...]  # first and last character
    is_negated: bool

    def holds(self, character: str) -> bool:
        """Return whether a character is of the class."""
        is_in = any(pair[0] <= character <= pair[1] for pair in self.ranges)
        return is_in is not self.is_negated and character != "/"


Token = str | Wild | OneOf  # a text is itself


def tokens(pattern: str, *, is_path: bool) -> list[Token] | None:
    """Return what a pattern is made of, None where it matches nothing.

    Args:
        pattern: without `!`, the slash at its beginning and the one at its end.
        is_path: it is held against a path, not a name.

    Raises:
        TooLong: they are too many.
    """
    # git compares what stands before the first special character by itself, and takes ** there for
    # one at a beginning: foo**/bar is foobar, too.
    start = _end_of_plain(pattern, 0)
    parts: list[Token] = [pattern[:start]] if start else []
    at, size = start, len(pattern)
    while at < size:
        if len(parts) > MOST_TOKENS:
            raise TooLong
        match pattern[at]:
            case "*":
                is_first = at == start or pattern[at - 1] == "/"
                stars, at = _stars(pattern, at, may_be_deep=is_path and is_first)
                if parts[-2:] != stars:  # **/**/ is as one
                    parts += stars
            case "[":
                if (bracket := _one_of(pattern, at + 1)) is None:
                    return None
                parts.append(bracket[0])
                at = bracket[1]
            case "?":
                parts.append(Wild.ONE)
                at += 1
            case "\\":
                if at + 1 == size:
                    return None
                parts.append(pattern[at + 1])
                at += 2
            case _:
                end = _end_of_plain(pattern, at)
                parts.append(pattern[at:end])
                at = end
    return parts


def _end_of_plain(pattern: str, at: int) -> int:
    match = _PLAIN.match(pattern, at)
    assert match, "it matches no text, too"
    return match.end()


def _stars(pattern: str, at: int, *, may_be_deep: bool) -> tuple[list[Token], int]:
    """Return what a run of stars is, and where it ends."""
    end = at + 1
    while pattern.startswith("*", end):
        end += 1
    if may_be_deep and end - at > 1:
        if pattern.startswith("/", end):
            return [Wild.FOLDERS, "/"], end + 1
        if end == len(pattern) or pattern.startswith("\\/", end):
            return [Wild.DEEP], end
    return [Wild.SOME], end


def _one_of(pattern: str, at: int) -> tuple[OneOf, int] | None:
    """Return the class that begins after the bracket at `at - 1`, and where it ends."""
    size = len(pattern)
    is_negated = at < size and pattern[at] in "!^"
    at += is_negated
    ranges: dict[str, None] = {}  # a class of a megabyte has few that differ
    before = ""  # a character that may begin a range
    end = 0  # of a named class
    is_first = True
    while at < size and (is_first or pattern[at] != "]"):
        is_first = False
        character = pattern[at]
        if character == "\\":
            at += 1
            if at == size:
                return None
            before = pattern[at]
            ranges[before * 2] = None
        elif character == "-" and before and at + 1 < size and pattern[at + 1] != "]":
            at += 1
            if pattern[at] == "\\":
                at += 1
                if at == size:
                    return None
            ranges[before + pattern[at]] = None
            before = ""
        elif character == "[" and at + 1 < size and pattern[at + 1] == ":":
            end = end if end >= at + 2 else pattern.find("]", at + 2)  # looked for once
            before = "" if end > at + 2 and pattern[end - 1] == ":" else "["
            named = ("[[",) if before else _CLASSES.get(pattern[at + 2 : end - 1])
            if end < 0 or named is None:
                return None
            ranges |= dict.fromkeys(named)
            at = at if before else end
        else:
            before = character
            ranges[character * 2] = None
        at += 1
    return (OneOf(tuple(ranges), is_negated), at + 1) if at < size else None


def room_of(parts: Sequence[Token]) -> int:
    """Return how much of `MOST_ROOM` a pattern takes."""
    return sum(
        len(part) if isinstance(part, str) else _CLASS_ROOM if isinstance(part, OneOf) else 1
        for part in parts
    )


def spellings(parts: Sequence[Token]) -> Iterator[str]:
    """Yield all texts that tokens stand for, nothing where they are too many."""
    if any(isinstance(part, Wild) for part in parts):
        return
    choices: list[Sequence[str]] = []
    count = 1
    for part in parts:
        if isinstance(part, OneOf):
            characters = {pair[0] for pair in part.ranges if pair[0] == pair[1] != "/"}
            if part.is_negated or any(pair[0] < pair[1] for pair in part.ranges):
                return
            choices.append(sorted(characters))
            count *= len(characters)
        elif isinstance(part, str):
            choices.append((part,))
        if count > _MOST_SPELLINGS:
            return
    yield from map("".join, product(*choices))


class Automaton:
    """Many patterns, held against a text at once."""

    def __init__(self) -> None:
        self._size = 0
        self._literals: defaultdict[str, list[int]] = defaultdict(list)  # character -> positions
        self._classes: list[tuple[int, OneOf]] = []
        self._positions: dict[Wild, list[int]] = {kind: [] for kind in Wild}
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[int] = []  # of each pattern, its end in `_ends`
        self._ends_of_files: list[int] = []  # of patterns that are not of folders alone
        self._is_built = False
        self._takes: dict[str, int] = {}  # character -> the positions that take it

    def __bool__(self) -> bool:
        return bool(self._ends)

    def add(self, parts: Sequence[Token], value: int, *, is_of_folders: bool) -> None:
        """Add a pattern; of several that match the last one counts."""
        at = self._size
        self._starts.append(at)
        for part in parts:
            if isinstance(part, str):
                for character in part:
                    self._literals[character].append(at)
                    at += 1
                continue
            if isinstance(part, OneOf):
                self._classes.append((at, part))
            else:
                self._positions[part].append(at)
            at += 1
        self._ends.append(at)
        self._values.append(value)
        if not is_of_folders:
            self._ends_of_files.append(at)
        self._size = at + 1

    @property
    def last(self) -> int:
        """The value of the last pattern."""
        return self._values[-1]

    def _build(self) -> None:
        of = {kind: _bits(positions) for kind, positions in self._positions.items()}
        self._one = of[Wild.ONE]
        self._deep = of[Wild.DEEP] | of[Wild.FOLDERS]
        self._loops = self._deep | of[Wild.SOME]
        self._skips = of[Wild.FOLDERS]
        self._accepts = _bits(self._ends), _bits(self._ends_of_files)
        self._start = self._entered(_bits(self._starts))
        self._is_built = True

    def _entered(self, state: int) -> int:
        """Return positions with those that are reached from them without a character."""
        if self._skips:
            state |= (state & self._skips) << 2
        return state | (state & self._loops) << 1

    def start(self) -> int:
        """Return the state before the first character."""
        if not self._is_built:
            self._build()
        return self._start

    def after(self, state: int, text: str) -> int:
        """Return the state after a text."""
        takes, loops, deep, skips = self._takes, self._loops, self._deep, self._skips
        for character in text:
            if not state:
                break
            taking = takes.get(character)
            if taking is None:
                taking = self._taking(character)
            stays = state & (loops if character != "/" else deep)
            state = (state & taking) << 1
            if skips:
                state |= (state & skips) << 2
            state |= (state & loops) << 1 | stays | stays << 1
        return state

    def value(self, state: int, *, is_folder: bool) -> int:
        """Return the value of the last pattern that a state accepts, -1 where it accepts none."""
        accepted = state & self._accepts[not is_folder]
        return self._values[bisect_left(self._ends, accepted.bit_length() - 1)] if accepted else -1

    def _taking(self, character: str) -> int:
        of_classes = [at for at, part in self._classes if part.holds(character)]
        taking = _bits(self._literals.get(character, ())) | _bits(of_classes)
        taking |= self._one if character != "/" else 0
        self._takes[character] = taking
        return taking


class PathAutomaton(Automaton):
    """Patterns that are held against paths, which come folder by folder."""

    _HELD = 1 << 29  # bits of states that are remembered

    def __init__(self) -> None:
        super().__init__()
        self._folders: list[tuple[str, int]] = []  # on the way down, and the state after each

    def of_path(self, folder: str, name: str) -> int:
        """Return the state after a path; `folder` is empty or ends in a slash."""
        folders = self._folders
        while folders and not folder.startswith(folders[-1][0]):
            folders.pop()
        above, state = folders[-1] if folders else ("", self.start())
        if len(above) < len(folder):
            state = self.after(state, folder[len(above) :])
            folders.append((folder, state))
            if len(folders) * self._size > self._HELD:
                del folders[0]
        return self.after(state, name)


def _bits(positions: Sequence[int]) -> int:
    """Return the number whose bits are these."""
    if not positions:
        return 0
    data = bytearray(max(positions) // 8 + 1)
    for position in positions:
        data[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(data, "little")
