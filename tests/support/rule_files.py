"""Random rules of .gitignore and a tree of odd names, and what git and gemb leave out of it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.texts.walk import Skipped, Walk, walk

NAMES = [
    *("a", "b", "ab", "ba", "aa", "aab", "a b", "!a", "#b", "a*", "[a]", "é", "1", "a-b", "-"),
    *("a]", "a^", "\\a", "a.b", ".a", "a.", "b ", "a?", "foo", "foob", "b[", "A", "[:a]", "a\\"),
]
PIECES = [
    *("a", "b", "ab", "foo", ".", "-", "é", " ", "1", "]", "^", "!", "#", "A", ":"),
    *("*", "*", "*", "**", "**", "**", "?", "/", "/", "/", "/", "/**/", "**/", "/**", "***"),
    *("[a-c]", "[!a]", "[^a]", "[]a]", "[!]a]", "[[:alpha:]]", "[[:digit:]-]", "[a", "[", "[z-a]"),
    *("[a-]", "[-a]", "[--0]", "[[:bogus:]]", "[[:a]", "[\\]a]", "[a\\-c]", "[!a-zA-Z0-9]", "[ab]"),
    *("[[:upper:][:space:]]", "[[:punct:]]", "[a/b]", "[!/]", "[[:xdigit:]]", "[\\", "[é]"),
    *("\\", "\\*", "\\a", "\\/", "\\ ", "\\\\", "\\!", "\\#", "\\?", "\\["),
]
_GIT = {  # settings of the machine take no part
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def random_rule(dice: random.Random) -> str:
    """Return a line of a file of rules."""
    rule = "".join(dice.choices(PIECES, k=dice.randint(1, 6)))
    if dice.random() < 0.3:
        rule = dice.choice(("!", "/", "!/", "#", "**/")) + rule
    if dice.random() < 0.3:
        rule += dice.choice(("/", "/", " ", "  ", "\\ ", "\t", "\r", "//", "/**", "/*"))
    return rule


def random_rules(dice: random.Random) -> bytes:
    """Return a file of rules."""
    lines = [random_rule(dice) for _ in range(dice.randint(1, 8))]
    text = dice.choice(("\n", "\n", "\n", "\r\n")).join(lines)
    mark = "\ufeff" if dice.random() < 0.05 else ""
    return f"{mark}{text}{dice.choice(('', chr(10)))}".encode()


def make_tree(root: Path, dice: random.Random, files: int = 300) -> None:
    """Make a repository of empty files with odd names, up to four folders deep."""
    root.mkdir(parents=True, exist_ok=True)
    for _ in range(files):
        path = root / "/".join(dice.choices(NAMES, k=dice.randint(1, 5)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:  # a file stands where a folder should
            continue
    subprocess.run(["git", "init", "-q", root], check=True, env=os.environ | _GIT)


def git_finds(root: Path) -> set[str]:
    """Return the files of a repository that its rules do not leave out, as git says."""
    paths = sorted(
        os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118
        for folder, folders, names in os.walk(root)
        if ".git" not in Path(folder).relative_to(root).parts
        for name in names
    )
    said = subprocess.run(
        ["git", "-C", root, "check-ignore", "-z", "-v", "-n", "--no-index", "--stdin"],
        input=b"\0".join(map(os.fsencode, paths)),
        env=os.environ | _GIT,
        capture_output=True,
        check=False,
    )
    assert said.returncode in (0, 1), said.stderr
    fields = said.stdout.split(b"\0")[:-1]
    rows = zip(fields[2::4], fields[3::4], strict=True)
    return {os.fsdecode(path) for rule, path in rows if not rule or rule.startswith(b"!")}


def gemb_finds(root: Path) -> set[str]:
    """Return the same as gemb walks it."""
    with _environment(_GIT):
        entries = walk([str(root)], Walk(hidden=True), Skipped())
        return {os.path.relpath(entry.path, root) for entry in entries}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
