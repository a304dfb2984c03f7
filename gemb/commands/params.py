"""Parameter types of the commands, with completion in the shell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from gemb.models import references as models
from gemb.recipe.names import recipe_names, resolve_data

if TYPE_CHECKING:
    from gemb.recipe.keys import Key


class ModelReference(click.ParamType[str]):
    """A model reference: see `gemb.models`. It stays text until it is resolved."""

    name = "model"

    def __init__(self, *suffixes: str) -> None:
        self._suffixes = (".gguf", *suffixes)  # of files that are accepted besides models

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the names, the models in the cache, and the paths here that could be models."""
        names = [*models.names(), *models.local_references()]
        return _matching(names, _paths(incomplete, self._suffixes), incomplete)


class AnyPath(click.ParamType[str]):
    """A path as it was typed, or `-`: who reads or writes it checks it."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Leave the completion to the shell."""
        return [CompletionItem(incomplete, type="file")]


class Processes(click.ParamType[int]):
    """How many processes: a number, or auto, which is 0."""

    name = "auto|N"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        if value == "auto":
            return 0
        if not str(value).isdecimal() or int(str(value)) < 1:
            self.fail(f"{value!r} is neither auto nor a number from 1 on", param, ctx)
        return int(str(value))


class Seconds(click.ParamType[float]):
    """A time span as seconds: 5s, 500ms, 2m, 1h, or 0."""

    name = "time"
    _units = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0})

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?(ms|s|m|h|)", str(value))
        if match is None:
            self.fail(f"{value!r} is no time such as 5s, 500ms, 2m or 0", param, ctx)
        return float(match[1]) * self._units[match[2]]


class FileSize(click.ParamType[int]):
    """A size in bytes, or with K, M or G for thousands, millions, billions: 200M, 0.2G."""

    name = "size"

    def __init__(self, *, may_be_zero: bool = False) -> None:
        self._may_be_zero = may_be_zero

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmg]?)b?", str(value).strip().lower())
        size = round(float(match[1]) * 1000 ** " kmg".index(match[2] or " ")) if match else -1
        if size < 0 or (size == 0 and not self._may_be_zero):
            also = "; 0: no bound" if self._may_be_zero else ""
            self.fail(f"{value!r} is no size, as 200M or 0.2G{also}", param, ctx)
        return size


class NewPath(click.Path):
    """The path of a file or a folder to write; standard output cannot take it."""

    def __init__(self, *, is_file: bool = False, path_type: type = Path) -> None:
        super().__init__(path_type=path_type)
        self._is_file = is_file

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        name = os.fspath(value)
        if name == "":
            self.fail("the name is empty", param, ctx)
        if name == "-":
            self.fail("it cannot go to standard output; give it a name", param, ctx)
        if self._is_file and name.endswith("/"):
            self.fail(f"{name} is a folder; name a file in it", param, ctx)
        # Shells do not expand ~ in --output=~/FILE.
        return super().convert(os.path.expanduser(name), param, ctx)  # noqa: PTH111


class DataPath(click.Path):
    """A path of data, with `~` and `@sample/NAME`; URLs are refused."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        name = os.fspath(value)
        return super().convert(name if name == "-" else resolve_data(name), param, ctx)


class RecipeName(click.ParamType[str]):
    """The name of a built-in recipe, or the path of one: see `gemb.recipe.names`."""

    name = "recipe"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the names of the recipes, and the paths here that could be recipes."""
        return _matching(recipe_names(), _paths(incomplete, (".yaml", ".yml")), incomplete)


class RecipeKey(click.ParamType[str]):
    """The path of a key, `optimizer.lr`; completed by what a recipe can hold."""

    name = "key"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the keys that begin with `incomplete`."""
        return [CompletionItem(path) for path, _ in _keys() if path.startswith(incomplete)]


class Override(RecipeKey):
    """`KEY=VALUE`; the key is completed, with the sign."""

    name = "override"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the keys that begin with `incomplete`, with the sign."""
        overrides = [f"{path}=" for path, key in _keys() if key.optional or not key.keys]
        return [CompletionItem(path) for path in overrides if path.startswith(incomplete)]


def _keys() -> Iterator[tuple[str, Key]]:
    from gemb.recipe.keys import every_key

    for path, key in every_key():
        yield path.replace(".N", ".0"), key


def _matching(names: list[str], paths: list[str], incomplete: str) -> list[CompletionItem[str]]:
    chosen = [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
    return [CompletionItem(value) for value in [*chosen, *paths]]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the folders and the files with these suffixes that begin with `incomplete`.

    The shell's own completion of files cannot be combined with names: bash takes one or the other.
    """
    head, slash, tail = incomplete.rpartition("/")
    folder = Path(os.path.expanduser(head + slash))  # noqa: PTH111 - of an unknown user, as it is
    matches = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for path in entries:
        if path.name.startswith(tail) and (tail.startswith(".") or not path.name.startswith(".")):
            if path.is_dir():
                matches.append(f"{head}{slash}{path.name}/")
            elif path.suffix in suffixes:
                matches.append(f"{head}{slash}{path.name}")
    return matches
