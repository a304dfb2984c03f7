"""Build hook: a man page for each command, made from `--help`, goes into the wheel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg]
    """Adds share/man/man1/gemb*.1 to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages into the build folder, and name them as data of the wheel."""
        if version == "editable":
            return
        sys.path[:0] = [self.root, str(Path(self.root) / "backends")]
        from gemb import __version__
        from gemb.cli import gemb
        from gemb.commands.manual import pages

        folder = Path(self.directory) / "man"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(gemb, __version__):
            page = folder / f"{name}.1"
            page.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"
