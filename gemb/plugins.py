"""How gemb finds a backend: by name, for a model, or by what it can do.

Backends are entry points of the group `gemb.backends`. Looking for one imports no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import Missing, UsageError
from gemb.io.notes import warn

if TYPE_CHECKING:
    from gemb.backend import Backend
    from gemb.models.profile import ModelDescription

GROUP = "gemb.backends"


@cache
def backends() -> Mapping[str, Backend]:
    """Return every installed backend by name. One that fails to import is named on stderr."""
    from importlib.metadata import entry_points

    found: dict[str, Backend] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()()
        except Exception as error:  # a stranger's plugin may raise anything
            _failed[entry.name] = f"{type(error).__name__}: {error}"
            dist = entry.dist.name if entry.dist else "unknown package"
            warn(
                f"backend '{entry.name}' of {dist} does not import ({_failed[entry.name]}); "
                "it is left out"
            )
    return found


_failed: dict[str, str] = {}


def named(name: str) -> Backend:
    """Return the backend of this name, its libraries checked.

    Raises:
        UsageError: there is none of this name.
        Missing: it does not import, or a library that it needs is not installed.
    """
    found = backends()
    if name in _failed:
        raise Missing(f"backend '{name}' does not import: {_failed[name]}")
    if name not in found:
        raise UsageError(f"no backend '{name}'; installed: {', '.join(found) or 'none'}")
    return checked(found[name])


def for_model(model: Path, name: str = "auto") -> Backend:
    """Return the backend that opens this model, or the one asked for by name.

    Raises:
        UsageError: no backend knows this kind of file.
        Missing: the one that does needs a library that is not installed.
    """
    if name != "auto":
        return named(name)
    return checked(_opener(model))


def _opener(model: Path) -> Backend:
    for backend in backends().values():
        if backend.can_open(model):
            return backend
    raise UsageError(
        f"{model}: no model that a backend knows; "
        "a model is a .gguf file or a sentence-transformers folder with config.json"
    )


def describe(model: Path) -> ModelDescription:
    """Return what the model's files say of it; the backend's own libraries need not be installed.

    Raises:
        UsageError: no backend knows this kind of file, or the files are broken.
    """
    return _opener(model).describe(model)


def able(method: str) -> Backend:
    """Return the backend that has this method of `Backend`, its libraries checked.

    Raises:
        UsageError: none has it.
        Missing: a library that it needs is not installed.
    """
    for backend in backends().values():
        if method in backend.can:
            return checked(backend)
    raise UsageError(f"no installed backend can {method.replace('_', '-')}")


def checked(backend: Backend) -> Backend:
    """Return the backend, or raise Missing with the install command of what it lacks."""
    for module, package in backend.requires.items():
        if find_spec(module) is None:
            raise Missing(
                f"backend '{backend.name}' needs the module '{module}': pip install '{package}'"
            )
    return backend
