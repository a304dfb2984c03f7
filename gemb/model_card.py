"""README.md of a model folder: its licence, and where a model that gemb made is from."""

from __future__ import annotations

from pathlib import Path

from gemb.gemma_terms import LICENCE, NOTICE, NOTICE_FILE, put_beside


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


def write_card(folder: Path, licence: str, said: str) -> None:
    """Say where the model is from; of one from Gemma, with the notice and the terms beside it.

    Args:
        folder: the new model's.
        licence: of the model that it was made of, by Hugging Face's names; empty: not known.
        said: what was done, a sentence or more.

    Raises:
        OSError: a file cannot be written.
    """
    lines = ["---", f"license: {licence}", "---", ""] if licence else []
    lines.append(said)
    if licence == LICENCE:
        lines += ["", NOTICE]
        put_beside(folder)
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
