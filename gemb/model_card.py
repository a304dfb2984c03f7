"""README.md of a model folder that gemb made of another model."""

from __future__ import annotations

from pathlib import Path


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
