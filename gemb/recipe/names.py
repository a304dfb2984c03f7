"""Names in recipes: recipes, the tasks of training data, the sample data that comes with gemb."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from gemb.errors import UsageError
from gemb.io.text import visible

# What the texts of training data are for: which of the model's prompts they get.
Task = Literal["retrieval", "similarity", "code", "qa", "fact", "classification", "clustering"]

SAMPLE = "@sample"
SCRIPTS = ("slurm.sh",)  # beside the recipes
FOLDER = Path(__file__).parents[1] / "data" / "sample"  # of the sample data


def builtin_recipes() -> Path:
    """Return the folder of the recipes, in a wheel install or in a checkout."""
    packaged = Path(__file__).parents[1] / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with gemb, without .yaml, sorted."""
    return sorted(path.stem for path in builtin_recipes().glob("*.yaml"))


def sample_names() -> list[str]:
    """Return the names of the files of sample data, sorted."""
    return sorted(path.name for path in FOLDER.glob("*.jsonl"))


def resolve_data(path: str) -> Path:
    """Return the path of data that a recipe or an option names; it need not exist.

    `@sample/NAME` is a file that comes with gemb. Every other path is as a shell tool takes it:
    relative to the current directory, with `~` for the home.

    Raises:
        UsageError: there is no such sample, or it is an address of the network.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):  # https://, hf://, s3://
        raise UsageError(
            f"{visible(path)}: gemb reads files on this machine alone; download it "
            "(curl -LO, hf download), then name the file"
        )
    if path != SAMPLE and not path.startswith(f"{SAMPLE}/"):
        return Path(os.path.expanduser(path))  # noqa: PTH111 - of an unknown user, as it is
    name = path.removeprefix(SAMPLE).strip("/")
    if name not in sample_names():
        samples = ", ".join(f"{SAMPLE}/{sample}" for sample in sample_names())
        raise UsageError(f"{path}: no such sample data; there are {samples}")
    return FOLDER / name
