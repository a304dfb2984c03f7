"""Installed packages: versions and entry points, as the folders beside them say.

importlib.metadata answers the same questions; loading it takes a tenth of a short `gemb embed`.

Source: https://packaging.python.org/specifications, "Recording installed projects" and "Entry
points".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from zipfile import Path as ZipPath

    Folder = Path | ZipPath


class EntryPoint(NamedTuple):
    """Something that a package offers."""

    name: str
    target: str  # "module:attribute"
    package: str

    def load(self) -> Any:  # noqa: ANN401
        """Return what it names."""
        module, _, attributes = self.target.partition(":")
        value: Any = import_module(module)
        for attribute in filter(None, attributes.split(".")):
            value = getattr(value, attribute)
        return value


def version(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    folder = _folders().get(_normal(package))
    if folder is None:
        return None
    named = folder.stem.split("-")
    return named[1] if len(named) > 1 else _version_inside(folder)


def entry_points(group: str) -> Iterator[EntryPoint]:
    """Yield the entry points of a group, of all packages."""
    for package, folder in _folders().items():
        try:
            lines = (folder / "entry_points.txt").read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        is_inside = False
        for line in map(str.strip, lines):
            if line.startswith("["):
                is_inside = line[1:-1].strip() == group
            elif is_inside and line and not line.startswith(("#", ";")):
                name, _, target = line.partition("=")
                target = target.partition("[")[0]  # what it needs beside the package
                yield EntryPoint(name.strip(), target.strip(), package)


def _folders() -> dict[str, Folder]:
    """Return each package's folder by its normal name: the first on the path."""
    folders: dict[str, Folder] = {}
    for place in dict.fromkeys(sys.path):
        with suppress(OSError):
            for folder in _inside(place):
                if folder.suffix in (".dist-info", ".egg-info"):
                    folders.setdefault(_normal(folder.stem.partition("-")[0]), folder)
    return folders


def _inside(place: str) -> Iterable[Folder]:
    """Return what is in a folder, or in a zip file."""
    path = Path(place)
    if not path.is_file():
        return path.iterdir()
    import zipfile

    return zipfile.Path(path).iterdir() if zipfile.is_zipfile(path) else ()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version_inside(folder: Folder) -> str | None:
    for file in ("METADATA", "PKG-INFO"):
        with suppress(OSError, UnicodeDecodeError):
            if line := re.search(r"(?m)^Version: *(\S+)", (folder / file).read_text("utf-8")):
                return line[1]
    return None
