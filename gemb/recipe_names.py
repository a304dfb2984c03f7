"""The recipes that come with gemb, by name."""

from __future__ import annotations

from pathlib import Path


def builtin_recipes() -> Path:
    """Return the folder of the recipes, in a wheel install or in a checkout."""
    packaged = Path(__file__).with_name("recipes")
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with gemb, without .yaml, sorted."""
    return sorted(path.stem for path in builtin_recipes().glob("*.yaml"))
