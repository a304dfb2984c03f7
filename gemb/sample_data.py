"""The sample data that comes with gemb: `@sample/facts.jsonl` in a recipe."""

from __future__ import annotations

from pathlib import Path

from gemb.errors import UsageError

SAMPLE = "@sample"
FOLDER = Path(__file__).with_name("data") / "sample"


def sample_names() -> list[str]:
    """Return the names of the files of sample data, sorted."""
    return sorted(path.name for path in FOLDER.glob("*.jsonl"))


def resolve_data(path: str) -> Path:
    """Return the path of data that a recipe or an option names; it need not exist.

    `@sample/NAME` is a file that comes with gemb. Every other path is as a shell tool takes it:
    relative to the current directory, with `~` for the home.

    Raises:
        UsageError: there is no such sample.
    """
    if path != SAMPLE and not path.startswith(f"{SAMPLE}/"):
        return Path(path).expanduser()
    name = path.removeprefix(SAMPLE).strip("/")
    if name not in sample_names():
        known = ", ".join(f"{SAMPLE}/{known}" for known in sample_names())
        raise UsageError(f"{path}: no such sample data; there are {known}")
    return FOLDER / name
