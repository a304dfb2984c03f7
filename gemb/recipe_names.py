"""The recipes that come with gemb, by name."""

from __future__ import annotations

from pathlib import Path

from gemb.errors import Missing, UsageError


def builtin_recipes() -> Path:
    """Return the folder of the recipes, in a wheel install or in a checkout."""
    packaged = Path(__file__).with_name("recipes")
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with gemb, without .yaml, sorted."""
    return sorted(path.stem for path in builtin_recipes().glob("*.yaml"))


def recipe_file(reference: str) -> Path:
    """Return the file of a recipe: a path that exists, or else a built-in recipe's name.

    Raises:
        Missing: it looks like a path, and there is no such file.
        UsageError: it is neither a path nor the name of a built-in recipe.
    """
    path = Path(reference)
    if path.is_file():
        return path
    if reference in recipe_names():
        return builtin_recipes() / f"{reference}.yaml"
    if "/" in reference or path.suffix:
        raise Missing(f"{reference}: no such recipe file")
    import difflib

    near = difflib.get_close_matches(reference, recipe_names(), 1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; built in: {', '.join(recipe_names())}"
    raise UsageError(f"no recipe '{reference}'{hint}")
