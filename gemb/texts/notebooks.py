"""The text of a Jupyter notebook: the source of its cells, without outputs and images.

Format: nbformat 4 (cells), and 3 (worksheets of cells, whose code is in `input`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

SUFFIX = ".ipynb"

_PLACES = (  # keys around a source, from the outermost
    ["cells", "source"],
    ["worksheets", "cells", "source"],
    ["worksheets", "cells", "input"],
)
_CELLS = (["cells"], ["worksheets", "cells"])
_DEEPEST = 6  # objects and arrays around a source: worksheets, cells and lines are arrays
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]')  # numbers and names do not matter


def notebook_text(text: str) -> str | None:
    """Return the source of a notebook's code, Markdown and raw cells, None where it is none.

    A line of a source stands on the line that it has in the file, as Jupyter writes it: one line of
    source on each, so that a hit's line is the one to which an editor goes. Where the file has
    several on one line, the later ones follow on the next lines. Lines between cells are blank.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(
        document.get("cells", document.get("worksheets")), list
    ):
        return None
    lines: list[str] = []
    cell_before, is_open = 0, False  # open: the last line has no end yet
    for cell, number, words in _sources(text):
        pieces = words.split("\n")
        has_end = not pieces[-1]
        if has_end:
            pieces.pop()
        if is_open and cell == cell_before and pieces:
            lines[-1] += pieces.pop(0)
        elif pieces:
            blank = 1 if lines and cell != cell_before else 0
            lines += [""] * max(number - 1 - len(lines), blank)
        lines += pieces
        cell_before, is_open = cell, not has_end
    source = "\n".join(lines) + "\n" if lines else ""
    # Half of a pair of UTF-16 becomes U+FFFD.
    return source.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _sources(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the texts of all sources: number of the cell, line in the file, text."""
    keys: list[str | None] = []  # of the objects around a token; None: an array
    is_key = False  # a text that comes now is one
    cell = 0
    line, counted = 1, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            cell += keys[-1:] == [None] and _named(keys) in _CELLS
            keys.append("")
        elif token == "[":
            keys.append(None)
        elif token in "}]":
            keys.pop()
        elif is_key and token != ",":
            keys[-1] = json.loads(token)
        elif token not in ",:" and _named(keys) in _PLACES:
            line += text.count("\n", counted, match.start())
            counted = match.start()
            yield cell, line, json.loads(token)
        is_key = token in "{," and keys[-1:] != [None]


def _named(keys: list[str | None]) -> list[str]:
    """Return the keys of the objects alone; none where no source stands so deep."""
    return [] if len(keys) > _DEEPEST else [key for key in keys if key is not None]
