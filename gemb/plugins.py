"""How gemb finds a backend: by name, for a model, or by what it can do.

Backends are entry points of the group `gemb.backends`. Looking for one imports no tensor library.
Where several would do, the one of the highest `Backend.rank` does that suits the model and whose
libraries are installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import Missing, UsageError
from gemb.io.notes import warn
from gemb.io.packages import entry_points

if TYPE_CHECKING:
    from gemb.backend import Backend, ModelDescription, Runtime

GROUP = "gemb.backends"

_failed: dict[str, str] = {}  # name of a backend that does not import -> why


@cache
def backends() -> Mapping[str, Backend]:
    """Return every installed backend by name, the highest rank first, equal ranks by name.

    One that fails to import is named on stderr.
    """
    loaded: dict[str, Backend] = {}
    for entry in sorted(entry_points(GROUP), key=lambda entry: entry.name):
        try:
            loaded[entry.name] = entry.load()()
        except Exception as error:  # a foreign plugin may raise anything
            _failed[entry.name] = f"{type(error).__name__}: {error}"
            warn(
                f"backend '{entry.name}' of {entry.package} does not import "
                f"({_failed[entry.name]}); it is left out"
            )
    return dict(sorted(loaded.items(), key=lambda item: -item[1].rank))


def named(name: str) -> Backend:
    """Return the backend of this name, its libraries checked.

    Raises:
        UsageError: there is none of this name.
        Missing: it does not import, or a library that it needs is not installed.
    """
    installed = backends()
    if name in _failed:
        raise Missing(f"backend '{name}' does not import: {_failed[name]}")
    if name not in installed:
        raise UsageError(
            f"no backend '{name}'; installed: {', '.join(sorted(installed)) or 'none'}"
        )
    return checked(installed[name])


def for_model(model: Path, name: str = "auto", runtime: Runtime | None = None) -> Backend:
    """Return the backend that opens this model, or the one asked for by name.

    Args:
        model: the file or folder.
        name: of the backend; auto: what the environment variable GEMB_BACKEND names (-NAME: any
            but this one), or else the best one that suits the model.
        runtime: how the model is to be run.

    Raises:
        UsageError: no backend knows this kind of file, or the named one does not open it.
        Missing: the one that does needs a library that is not installed.
    """
    return candidates(model, name, runtime)[0]


def candidates(model: Path, name: str = "auto", runtime: Runtime | None = None) -> list[Backend]:
    """Return the backends of which the first is to open this model, and the next where it fails.

    Raises:
        UsageError: as `for_model`.
        Missing: as `for_model`.
    """
    from gemb.backend import Runtime

    if name == "auto":
        name = os.environ.get("GEMB_BACKEND") or "auto"
    if name != "auto" and not name.startswith("-"):
        return [_opener(model, name)]
    if name.startswith("-"):
        _check_left_out(name[1:])
    openers = [backend for backend in _openers(model) if f"-{backend.name}" != name]
    present = list(filter(is_present, openers))
    if not present:
        return [checked((openers or _openers(model))[0])]
    runtime = runtime or Runtime()
    return sorted(present, key=lambda backend: not backend.suits(model, runtime))


@cache
def _check_left_out(name: str) -> None:
    """Warn where the backend that is to be left out is none, once."""
    if name not in backends() and name not in _failed:
        warn(f"GEMB_BACKEND=-{name} leaves none out; installed: {', '.join(sorted(backends()))}")


def describe(model: Path) -> ModelDescription:
    """Return what the model's files say of it; the backend's own libraries need not be installed.

    Raises:
        UsageError: no backend knows this kind of file, or the files are broken.
    """
    openers = _openers(model)
    describers = [backend for backend in openers if backend.can("describe")]
    return _best(describers or openers).describe(model)


def able(method: str, name: str = "auto") -> Backend:
    """Return the backend that has this method, or the one asked for by name; libraries checked.

    Args:
        method: of `Backend` or `Jobs`.
        name: of the backend; auto: the best one that has the method.

    Raises:
        UsageError: none has it, or the named one has not.
        Missing: a library that it needs is not installed.
    """
    capable = [backend for backend in backends().values() if backend.can(method)]
    if name != "auto":
        backend = named(name)
        if backend.can(method):
            return backend
        others = " or ".join(other.name for other in capable)
        raise UsageError(f"{backend.cannot(method)}{others and f'; use --backend {others}'}")
    if not capable:
        raise UsageError(f"no installed backend can {method.replace('_', '-')}")
    return checked(_best(capable))


def checked(backend: Backend) -> Backend:
    """Return the backend, or raise Missing with the install command of what it lacks."""
    if lacking := _lacking(backend):
        module, package = next(iter(lacking.items()))
        raise Missing(
            f"backend '{backend.name}' needs the module '{module}': pip install '{package}'"
        )
    return backend


def is_present(backend: Backend) -> bool:
    """Return whether the libraries of a backend are installed."""
    return not _lacking(backend)


def _opener(model: Path, name: str) -> Backend:
    """Return the backend of this name, which opens this kind of file."""
    backend = able("open", name)
    if backend.can_open(model):
        return backend
    others = " or ".join(other.name for other in _openers(model))
    raise UsageError(f"{model}: backend '{name}' does not open such a model; use {others}")


def _openers(model: Path) -> list[Backend]:
    """Return the backends that know this kind of file, at least one."""
    openers = [backend for backend in backends().values() if backend.can_open(model)]
    if not openers:
        if model.is_file():
            from gemb.io.lfs import check_no_pointer

            check_no_pointer(model)
        raise UsageError(
            f"{model}: no model that a backend knows; "
            "a model is a .gguf file or a sentence-transformers folder with config.json"
        )
    return openers


def _best(ranked: Sequence[Backend]) -> Backend:
    """Return the first backend whose libraries are installed, or else the first."""
    return next(filter(is_present, ranked), ranked[0])


def _lacking(backend: Backend) -> dict[str, str]:
    """Return the modules that the backend requires and that are not installed -> packages."""
    return {
        module: package for module, package in backend.requires.items() if find_spec(module) is None
    }
