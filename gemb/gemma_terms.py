"""What goes with a model that derives from Gemma, by section 3.1 of the Gemma Terms of Use.

The terms, their notice, and word of what was changed: in a folder as files, in a GGUF file, which
travels alone, as metadata.
"""

from __future__ import annotations

from pathlib import Path

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


def terms_path() -> Path:
    """Return gemb's own copy of the terms."""
    return Path(__file__).with_name("data") / TERMS_FILE


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
    """Return what a GGUF file says of its licence, by key.

    Args:
        licence: by Hugging Face's names; empty: not known, and nothing is said.
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
    """Return the licence of what is made of models under these: Gemma's terms reach all that is.

    Otherwise theirs where they agree, or an empty string.
    """
    known = set(licences) - {""}
    if LICENCE in known:
        return LICENCE
    return known.pop() if len(known) == 1 else ""
