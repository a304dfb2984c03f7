"""A model's card: its licence, what gemb did to it, and what Gemma's terms require beside it.

Section 3.1 of the Gemma Terms of Use requires that a model derived from Gemma comes with the terms,
their notice, and a statement of what was changed. A folder has them as files (README.md is the
card), a GGUF file as metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gemb.io.foreign import read_bytes

LICENCE = "gemma"  # as Hugging Face names it
NAME = "Gemma Terms of Use"
LINK = "https://ai.google.dev/gemma/terms"
NOTICE = (  # word for word what section 3.1 asks for
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)
TERMS_FILE = "GEMMA-TERMS.txt"
NOTICE_FILE = "GEMMA-NOTICE.txt"

# Of a GGUF file; the first three are the format's own (gguf `Keys.General`).
KEY_LICENCE = "general.license"
KEY_NAME = "general.license.name"
KEY_LINK = "general.license.link"
KEY_NOTICE = "general.license.notice"
KEY_TERMS = "general.license.text"

_BEFORE = "Before that: "
# What gemb did to a model, or to one of a soup's: `Of heal/model: Modified from ...`
_CHANGE = re.compile(
    "(Of .*: )?(Modified from |Unpacked by gemb |Made by gemb |Average of |SLERP of )"
)


def terms_path() -> Path:
    """Return gemb's own copy of the terms."""
    return Path(__file__).parents[1] / "data" / TERMS_FILE


def terms() -> str:
    """Return the terms, whole."""
    return terms_path().read_text(encoding="utf-8")


def put_beside(folder: Path) -> None:
    """Write the notice and the terms into a model's folder.

    Raises:
        OSError: they cannot be written.
    """
    (folder / NOTICE_FILE).write_text(
        f"{NOTICE}\n\nWhat was changed, and of which model, is said in README.md. The terms are in "
        f"{TERMS_FILE}.\n",
        encoding="utf-8",
    )
    (folder / TERMS_FILE).write_text(terms(), encoding="utf-8")


def in_file(licence: str, change: str) -> dict[str, str]:
    """Return the metadata about the licence of a GGUF file, by key.

    Args:
        licence: by Hugging Face's names; empty: not known, and the result is empty.
        change: what was done, of which model, a sentence a line.
    """
    if not licence:
        return {}
    if licence != LICENCE:
        return {KEY_LICENCE: licence}
    return {
        KEY_LICENCE: licence,
        KEY_NAME: NAME,
        KEY_LINK: LINK,
        KEY_NOTICE: f"{NOTICE}\n\n{change}",
        KEY_TERMS: terms(),
    }


def reaching(licences: list[str]) -> str:
    """Return the licence of a model that is made from models under these licences.

    It is Gemma's where one of them is, for its terms extend to derived models; else the licence
    that they share, or an empty string.
    """
    known = set(licences) - {""}
    if LICENCE in known:
        return LICENCE
    return known.pop() if len(known) == 1 else ""


def known_as(folder: Path) -> str:
    """Return the name by which a model card refers to the model in a folder.

    `org/repo@revision` in the hub's cache, `RUN/model` in a run, else the folder's name.
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
    lines = read_bytes(card).decode("utf-8", "replace").splitlines()
    for line in lines[1:] if lines[:1] == ["---"] else ():  # the front matter, as on the hub
        if line == "---":
            break
        key, _, value = line.partition(":")
        if key == "license":
            return value.partition(" #")[0].strip().strip("\"'")
    return ""


def history_of(folder: Path) -> list[str]:
    """Return gemb's changes to the model, as the folder's README.md lists them, the last first."""
    card = folder / "README.md"
    return history_in(read_bytes(card).decode("utf-8", "replace")) if card.is_file() else []


def history_in(text: str) -> list[str]:
    """Return gemb's changes to a model from a card or a GGUF file's notice, the last first."""
    changes = (line.removeprefix(_BEFORE) for line in text.splitlines())
    return [line for line in changes if _CHANGE.match(line)]


def soup_history(models: Sequence[tuple[str, Path]]) -> list[str]:
    """Return the earlier changes to the models of a soup, the last first.

    Changes to one of the models begin with its name. The changes to the model that all of them were
    made of follow, once.

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


def write_card(folder: Path, licence: str, change: str, history: Sequence[str] = ()) -> None:
    """Write README.md: what the model was made of; under Gemma's licence also the notice and terms.

    Args:
        folder: the new model's.
        licence: of the model that it was made of, by Hugging Face's names; empty: not known.
        change: what was done, a sentence or more, in one line.
        history: what had been done to the model that it was made of, the last first.

    Raises:
        OSError: a file cannot be written.
    """
    lines = ["---", f"license: {licence}", "---", ""] if licence else []
    lines.append(change)
    for line in history:
        lines += ["", _BEFORE + line]
    if licence == LICENCE:
        lines += ["", NOTICE]
        put_beside(folder)
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
