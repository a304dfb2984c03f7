"""README.md of a model folder: its licence, and where a model that gemb made is from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gemb.gemma_terms import LICENCE, NOTICE, NOTICE_FILE, put_beside

_BEFORE = "Before that: "
# What gemb did to a model, or to one of a soup's: `Of heal/model: Modified from ...`
_SAID = re.compile(
    "(Of .*: )?(Modified from |Unpacked by gemb |Made by gemb |Average of |SLERP of )"
)


def known_as(folder: Path) -> str:
    """Return what tells the model in a folder from others, in what is said of it.

    Of the hub's cache, `org/repo@revision`; of a run, `RUN/model`; else the folder's name.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"{repo}@{folder.name[:12]}"
    return f"{folder.parent.name}/{folder.name}" if folder.name == "model" else folder.name


def title_of(folder: Path) -> str:
    """Return the name of a model: in the hub's cache its repository's, else the folder's."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def licence_of(folder: Path) -> str:
    """Return the licence that the folder's README.md names, or an empty string.

    Where README.md was replaced by one that names none, the notice of Gemma's terms still holds.
    """
    return _named(folder / "README.md") or (LICENCE if (folder / NOTICE_FILE).is_file() else "")


def _named(card: Path) -> str:
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines[1:] if lines[:1] == ["---"] else ():  # the front matter, as on the hub
        if line == "---":
            break
        key, _, value = line.partition(":")
        if key == "license":
            return value.partition(" #")[0].strip().strip("\"'")
    return ""


def history_of(folder: Path) -> list[str]:
    """Return what gemb did to the model so far, the last first, as the folder's README.md says."""
    card = folder / "README.md"
    return history_in(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else []


def history_in(text: str) -> list[str]:
    """Return what gemb did to a model, the last first, as a card or a GGUF file's notice says."""
    done = (line.removeprefix(_BEFORE) for line in text.splitlines())
    return [line for line in done if _SAID.match(line)]


def soup_history(models: Sequence[tuple[str, Path]]) -> list[str]:
    """Return what was done to the models of a soup before, the last first.

    What was done to one of them is said with its name; then what was done to the model that all
    of them were made of, once.

    Args:
        models: name and folder of each.
    """
    histories = [history_of(folder) for _, folder in models]
    shared: list[str] = []
    for steps in zip(*map(reversed, histories), strict=False):
        if len(set(steps)) > 1:
            break
        shared.insert(0, steps[0])
    own = [
        f"Of {name}: {step}"
        for (name, _), history in zip(models, histories, strict=True)
        for step in history[: len(history) - len(shared)]
    ]
    return [*dict.fromkeys(own), *shared]


def write_card(folder: Path, licence: str, said: str, before: Sequence[str] = ()) -> None:
    """Say where the model is from; of one from Gemma, with the notice and the terms beside it.

    Args:
        folder: the new model's.
        licence: of the model that it was made of, by Hugging Face's names; empty: not known.
        said: what was done, a sentence or more, in one line.
        before: what had been done to the model that it was made of, the last first.

    Raises:
        OSError: a file cannot be written.
    """
    lines = ["---", f"license: {licence}", "---", ""] if licence else []
    lines.append(said)
    for line in before:
        lines += ["", _BEFORE + line]
    if licence == LICENCE:
        lines += ["", NOTICE]
        put_beside(folder)
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
