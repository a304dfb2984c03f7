"""What tests of `gemb index` share: its output, its errors, and what an index holds."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fake_backend import Gemb, write_model
from gemb.index.hits import Hit
from gemb.index.reader import Index

ROWS = [
    {"key": "a", "text": "red apples", "title": "fruit", "year": 2023, "lang": "en"},
    {"key": "b", "text": "green pears", "title": "fruit", "year": 2024, "lang": "en"},
    {"key": "c", "text": "rote Rosen", "title": "flowers", "year": 2025, "lang": "de"},
]
DAY = 86400


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def out(gemb: Gemb, *arguments: str, code: int = 0, **more) -> str:
    done = gemb(*arguments, **more)
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode()


def error(gemb: Gemb, *arguments: str, code: int = 2, **more) -> str:
    """Return the one line of a refusal."""
    done = gemb(*arguments, **more)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def all_hits(gemb: Gemb, name: str) -> list[Hit]:
    with inside(gemb.folder), Index.open(Path(name)) as index:
        rows = np.arange(len(index.stored)) if index.alive is None else index.alive
        assert len(rows) == index.count
        assert index.codes is not None
        assert len(index.codes) == len(index.stored)
        return index.hits(rows, np.zeros(len(rows), np.float32))


def vector_of(gemb: Gemb, text: str, title: str = "none") -> np.ndarray:
    prompt = f"title: {title} | text: {{text}}"
    return np.array(json.loads(out(gemb, "embed", "--prompt", prompt, "-e", text))["embedding"])


def log_texts(gemb: Gemb) -> None:
    """Let the model count the texts that it encodes."""
    write_model(gemb.model, log=str(gemb.folder / "log"))


def texts_encoded(gemb: Gemb) -> int:
    log = gemb.folder / "log"
    count = sum(map(int, log.read_text().split())) if log.exists() else 0
    log.unlink(missing_ok=True)
    return count


def write_tree(gemb: Gemb, **files: str) -> Path:
    docs = gemb.folder / "docs"
    docs.mkdir(exist_ok=True)
    for name, text in files.items():
        write_old(docs / f"{name}.txt", text)
    return docs


def write_old(path: Path, text: str) -> None:
    """Write a file that was not written just now: one that was is looked at again."""
    path.write_text(text)
    then = time.time() - DAY
    os.utime(path, (then, then))
