"""Recipes as files: YAML to a checked `Recipe`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.lfs import check_no_pointer
from gemb.io.text import did_you_mean
from gemb.recipe.checks import problems
from gemb.recipe.keys import to_plain
from gemb.recipe.names import builtin_recipes, recipe_names
from gemb.recipe.read import RecipeReader, override
from gemb.recipe.schema import Recipe
from gemb.recipe.yaml_text import Place, Value, file_text, read_text, write_text


def find(name_or_path: str) -> Path:
    """Return the file of a recipe that comes with gemb, or the path itself.

    A name of gemb's own comes first; `./smoke` is always a path.

    Raises:
        UsageError: it is neither.
    """
    names = recipe_names()
    if name_or_path in names:
        return builtin_recipes() / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"; did you mean {inside}?" if inside.is_file() else "; name the file in it"
        raise UsageError(f"{name_or_path} is a folder{hint}")
    if not path.exists():
        hint = did_you_mean(path.stem, names, f"gemb's own are {', '.join(names)}")
        raise UsageError(f"no recipe '{name_or_path}', neither a file nor a name; {hint}")
    return path


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, with `KEY=VALUE` overrides in it; of the same key, the last.

    Raises:
        UsageError: the file cannot be read, or something in it or in an override is not right.
    """
    return read_recipe(read_tree(path), overrides)


def read_tree(path: Path) -> Value:
    """Return the tree of values of a recipe's file, not yet checked.

    Raises:
        UsageError: the file cannot be read, or holds no keys with values.
    """
    tree = read_text(file_text(path), Place(str(path)))
    if tree.data is None:
        raise UsageError(f"{path} is empty; gemb recipes cp finetune FILE writes a full one")
    if not isinstance(tree.data, dict):
        check_no_pointer(path)
        raise UsageError(f"{tree.place}: a recipe is keys with values, not {tree}")
    return tree


def read_recipe(tree: Value, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of such a tree, with `KEY=VALUE` overrides in it.

    Raises:
        UsageError: something in it or in an override is not right.
    """
    for assignment in overrides:
        tree = override(tree, assignment)
    reader = RecipeReader()
    recipe = reader.read(tree)
    for key, problem in problems(recipe):
        raise UsageError(f"{reader.place(key).of(key)} {problem}")
    return recipe


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML, every key of it; `load` reads it as an equal one."""
    return write_text(to_plain(recipe))
