"""README.md of a model folder: its licence, and where a model that gemb made is from."""

from __future__ import annotations

from pathlib import Path


def licence_of(folder: Path) -> str:
    """Return the licence that the folder's README.md names, or an empty string."""
    card = folder / "README.md"
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
    """Say where the model is from, as the Gemma Terms of Use ask of who passes a changed one on.

    Args:
        folder: the new model's.
        licence: of the model that it was made of, by Hugging Face's names; empty: not known.
        said: what was done, a sentence or more.

    Raises:
        OSError: the file cannot be written.
    """
    lines = ["---", f"license: {licence}", "---", ""] if licence else []
    lines.append(said)
    if licence == "gemma":
        lines += [
            "",
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms",
        ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
