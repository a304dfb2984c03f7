"""Broken indexes and files of vectors: a line from every command, and `verify` sees the damage.

A case damages an index: bits of a file, bytes that are written over, cut off or added, files that
are exchanged or lost, entries of the manifest with a checksum that fits, statements of SQL; or it
damages a file of vectors. Then every command is run on it. What `gemb index verify` calls whole
must answer a search as the whole index does. One case in twenty runs its commands as processes, the
others in this one, which takes a tenth of the time.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from campaign import Case, Ended, Fault, gemb, judge, main

WORDS = ("order", "cancel", "delivery", "parcel", "money", "back", "refund", "page", "hour", "sky")
ASK = ("search", "cancel order", "i.gemb", "--json", "-k", "0", "--min-score", "-1")
COMMANDS = (
    ("index", "info", "i.gemb"),
    ("index", "info", "i.gemb", "--json"),
    (*ASK, "--hybrid"),
    ("search", "refund", "i.gemb", "--where", "line > 0 and text like '%money%'"),
    ("search", "--like", "docs/d1.md:3", "i.gemb"),
    ("search", "i.gemb", "--check-recall", "5"),
    ("index", "sync", "i.gemb", "-n"),
    ("index", "verify", "i.gemb", "--rows", "5"),
    ("index", "rm", "i.gemb", "docs/d1.md", "-n"),
    ("index", "rm", "i.gemb", "docs/d2.md"),
    ("index", "sync", "i.gemb", "--yes"),
    ("index", "compact", "i.gemb"),
)
FILES = ("rows.sqlite", "vectors.f16", "codes.bin", "manifest.json", "lock")
VECTORS = ("v.npy", "v.npz", "v.f32", "v.jsonl", "v.npy.json", "v.f32.json")
TABLES = (
    "rows",
    "removed",
    "blocks",
    "files",
    "drafts",
    "words_data",
    "words_idx",
    "words_docsize",
)
LOADED = (  # by the commands: a fork of this process has them
    *(f"gemb.commands.{name}" for name in ("index", "search", "verify", "embed")),
    *(f"gemb.index.{name}" for name in ("bm25", "build", "care", "floor", "verify", "where")),
    *(f"gemb.search.{name}" for name in ("index", "recall", "terminal")),
    "gemb.evaluation.agreement",
    "gemb_fake",
)
Run = Callable[..., Ended]
LONGEST_S = 30.0
VALUES = (None, 0, -1, 1 << 62, 1.5, True, "", "x", "../x", "\ud800", [], {}, [{}], "org/none")


def campaign(folder: Path) -> Case:
    """Make an index and files of vectors, by the fake model."""
    from fake_backend import install, write_model

    sys.path.insert(0, str(install(folder / "plugins")))
    for module in LOADED:
        importlib.import_module(module)
    os.environ["GEMB_MODEL"] = str(write_model(folder / "model.fake"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    made, copy = folder / "made", folder / "copy"
    (made / "docs").mkdir(parents=True)
    draw = random.Random(7)
    texts = [" ".join(draw.choice(WORDS) for _ in range(30)) + "\n" for _ in range(12)]
    for number, text in enumerate(texts):
        (made / f"docs/d{number}.md").write_text(f"# T{number}\n\n{text}")
    _done("index", "build", "i.gemb", "docs", folder=made)
    _done("index", "rm", "i.gemb", "docs/d3.md", folder=made)
    for name in VECTORS[:4]:
        _done("embed", "-o", name, folder=made, stdin="".join(texts).encode())
    shutil.copytree(made, copy)
    answer = gemb(*ASK, folder=copy).stdout
    hybrid = gemb(*ASK, "--hybrid", folder=copy).stdout
    assert len(answer.splitlines()) == len(hybrid.splitlines()) == len(texts) - 1

    def case(rng: random.Random, work: Path) -> str:
        shutil.copytree(made, work, dirs_exist_ok=True)
        run = gemb if rng.random() < 0.05 else here
        if rng.random() < 0.2:
            return _try_vectors(rng, work, run)
        how = rng.choice((_flip, _flip, _flip, _overwrite, _cut, _exchange, _lose, _manifest, _sql))
        what = how(rng, work / "i.gemb")
        if what == "manifest":  # with its checksum: another model or floor is somebody's own
            return f"{what}: {_try_index(work, None, None, run)}"
        return f"{what}: {_try_index(work, answer, hybrid, run)}"

    return case


def here(*arguments: str, folder: Path) -> Ended:
    """Run `gemb` as `campaign.gemb` does, but in this process."""
    from gemb import cli

    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    before = Path.cwd()
    began = time.monotonic()
    is_late = False
    os.chdir(folder)
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            try:
                code = cli.gemb.main(list(arguments), "gemb", standalone_mode=False) or 0
            except TooLongError:
                is_late, code = True, -1
            except click.exceptions.Exit as done:
                code = done.exit_code
            except BaseException as error:
                code, line = cli._outcome(error)
                print(f"gemb: {line}", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(before)
    out, err = (stream.buffer.getvalue() for stream in streams)
    seconds = time.monotonic() - began
    return Ended(code, None, is_late, out, err.decode("utf-8", "replace"), seconds, 0)


class TooLongError(BaseException):
    """A command has not ended."""


def _too_long(*_: object) -> None:
    raise TooLongError


def _try_index(work: Path, answer: bytes | None, hybrid: bytes | None, run: Run) -> str:
    verified = run("index", "verify", "i.gemb", "--rows", "0", folder=work)
    is_whole = not judge(verified)
    searched = run(*ASK, folder=work)
    code = 1 if searched.code == 1 else judge(searched)
    if is_whole and answer and (code or searched.stdout != answer):
        raise Fault("a search that differs of an index that is whole", searched.stderr)
    if code not in (0, 1) and searched.stdout:
        raise Fault("a part of an answer", searched.stderr)
    for command in COMMANDS:
        ended = run(*command, folder=work)
        if ended.code == 1 and command[0] == "search":
            continue  # nothing was found
        code = judge(ended)
        is_asked = hybrid and command == (*ASK, "--hybrid")
        if is_whole and is_asked and (code or ended.stdout != hybrid):
            raise Fault("words that differ of an index that is whole", ended.stderr)
    return "whole" if is_whole else "seen"


def _try_vectors(rng: random.Random, work: Path, run: Run) -> str:
    name = rng.choice(VECTORS)
    _damage(rng, work / name)
    name = name.removesuffix(".json")
    codes = [
        judge(run("index", "build", "n.gemb", name, folder=work)),
        judge(run("verify", name, "v.npz", folder=work)),
        judge(run("verify", "v.f32", name, folder=work)),
    ]
    if (work / "n.gemb").exists():
        if codes[0] not in (0, 3):
            raise Fault("an index of a build that failed")
        if judge(run("index", "verify", "n.gemb", "--rows", "0", folder=work)):
            raise Fault("an index that is not whole, of a build that did not say so")
    return f"vectors: build {codes[0]}"


def _done(*arguments: str, folder: Path, stdin: bytes = b"") -> None:
    ended = gemb(*arguments, folder=folder, stdin=stdin)
    if ended.code:
        raise AssertionError(ended.stderr)


def _damage(rng: random.Random, path: Path) -> None:
    rng.choice((_flip_file, _flip_file, _overwrite_file, _cut_file))(rng, path)


def _flip(rng: random.Random, folder: Path) -> str:
    name = rng.choice(FILES[:4])
    _flip_file(rng, folder / name)
    return f"flip {name}"


def _flip_file(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 4, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _overwrite(rng: random.Random, folder: Path) -> str:
    name = rng.choice(FILES[:4])
    _overwrite_file(rng, folder / name)
    return f"overwrite {name}"


def _overwrite_file(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 64, 4096))
    byte = rng.choice((b"\0", b"\xff", b"\x80", b"{", b"9"))
    data[at : at + size] = rng.choice((byte * size, rng.randbytes(size), b""))
    path.write_bytes(data)


def _cut(rng: random.Random, folder: Path) -> str:
    name = rng.choice(FILES[:4])
    _cut_file(rng, folder / name)
    return f"cut {name}"


def _cut_file(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    size = rng.choice((0, 1, rng.randrange(len(data)), len(data) - 1, len(data)))
    path.write_bytes(
        data[:size] + (rng.randbytes(rng.choice((1, 4096))) if size == len(data) else b"")
    )


def _exchange(rng: random.Random, folder: Path) -> str:
    one, other = rng.sample(FILES, 2)
    one_data, other_data = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(other_data)
    (folder / other).write_bytes(one_data)
    return "exchange"


def _lose(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(FILES)
    path.unlink()
    if rng.random() < 0.3:
        path.mkdir()
    return "lose"


def _manifest(rng: random.Random, folder: Path) -> str:
    from gemb.index.manifest import _checksum

    path = folder / "manifest.json"
    entries = json.loads(path.read_text())
    within = entries
    name = rng.choice(sorted(entries))
    while isinstance(within[name], dict) and within[name] and rng.random() < 0.7:
        within = within[name]
        name = rng.choice(sorted(within))
    if rng.random() < 0.2:
        del within[name]
    else:
        within[name] = rng.choice(VALUES)
    entries["checksum"] = _checksum(entries)
    path.write_text(json.dumps(entries))
    return "manifest"


def _sql(rng: random.Random, folder: Path) -> str:
    connection = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    table = rng.choice(TABLES)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)
    statement = rng.choice(
        (
            f"DELETE FROM {table}",
            f"DELETE FROM {table} WHERE rowid % 2"
            if "idx" not in table
            else f"DELETE FROM {table}",
            f"UPDATE {table} SET {column} = NULL",
            f"UPDATE {table} SET {column} = 'x'",
            f"UPDATE {table} SET {column} = x'00ff'",
            f"UPDATE {table} SET {column} = {column} + 1",
            f"UPDATE {table} SET {column} = -{column}",
            f"CREATE VIEW more AS SELECT * FROM {table}",
            f"CREATE TRIGGER more AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
            f"CREATE INDEX more ON {table}({column})",
            f"ALTER TABLE {table} ADD COLUMN more",
            f"DROP TABLE {table}",
        )
    )
    try:
        connection.execute(statement)
    except sqlite3.Error:
        return "sql refused"
    finally:
        connection.close()
    return "sql"


if __name__ == "__main__":
    main(__file__, campaign)
