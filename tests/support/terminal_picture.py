"""A picture of a real terminal; needs tmux.

`python tests/support/terminal_picture.py OUT.svg COMMAND...` makes it.

Each COMMAND, one argument, is run in a terminal of 100 columns, in this folder; the picture is the
screen after the last one has ended.
"""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

COLUMNS, MOST_ROWS = 100, 80
ADVANCE, LINE, MARGIN = 8.4, 18, 14  # pixels: a character of 14 px, a row, around all
BACKGROUND, PLAIN = "#1d2021", "#d5c4a1"
COLOURS = dict(
    zip(
        range(30, 38),
        ("#665c54", "#fb4934", "#b8bb26", "#fabd2f", "#83a598", "#d3869b", "#8ec07c", PLAIN),
        strict=True,
    )
)
_SGR = re.compile(r"\x1b\[([\d;]*)m")


class Style(NamedTuple):
    """How a run of characters looks."""

    colour: str = PLAIN
    bold: bool = False
    faint: bool = False

    def after(self, codes: str) -> Style:
        """Return the style after the numbers of an escape sequence, `1;31`."""
        style = self
        for code in map(int, codes.split(";") if codes else ["0"]):
            if code == 0:
                style = Style()
            elif code in (1, 2, 22):
                style = style._replace(bold=code == 1, faint=code == 2)
            elif code in COLOURS or code == 39:
                style = style._replace(colour=COLOURS.get(code, PLAIN))
            elif code - 60 in COLOURS:
                style = style._replace(colour=COLOURS[code - 60])
        return style


def picture(screen: str) -> str:
    """Return the SVG of a screen's lines with their colours, as `tmux capture-pane -e` has them."""
    lines = screen.rstrip().split("\n")
    drawn, style = [], Style()
    for row, line in enumerate(lines):
        column = 0
        # Text and the codes between: text, codes, text, codes, text.
        for i, part in enumerate(_SGR.split(line)):
            if i % 2:
                style = style.after(part)
            elif part:
                if part.strip():
                    drawn.append(_run(part, style, column, row))
                column += len(part)
    width = round(COLUMNS * ADVANCE + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"'
        f' font-size="14">\n<rect width="{width}" height="{height}" rx="6" '
        f'fill="{BACKGROUND}"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _run(text: str, style: Style, column: int, row: int) -> str:
    # Cells by `textLength`, spaces that do not melt: columns stand below each other in any font.
    x, y = MARGIN + column * ADVANCE, MARGIN + (row + 0.75) * LINE
    look = ' font-weight="bold"' if style.bold else ' opacity="0.6"' if style.faint else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" textLength="{len(text) * ADVANCE:.1f}" '
        f'fill="{style.colour}"{look}>{html.escape(text).replace(" ", chr(0xA0))}</text>'
    )


def screen_after(commands: list[str]) -> str:
    """Run the commands in a terminal, and return what it shows when all have ended.

    Raises:
        subprocess.CalledProcessError: tmux fails.
    """

    def tmux(*words: str) -> str:
        command = ["tmux", "-L", "gemb-picture", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    typed = [f"echo {shlex.quote(f'$ {command}')}\n{command}" for command in commands]
    script = "\n".join([*typed, "tmux -L gemb-picture wait-for -S done", "sleep 600"])
    size = ("-x", str(COLUMNS), "-y", str(MOST_ROWS))
    tmux("new-session", "-d", *size, "bash", "--norc", "-c", script)
    try:
        tmux("wait-for", "done")
        return tmux("capture-pane", "-p", "-e")
    finally:
        tmux("kill-server")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(screen_after(sys.argv[2:])), encoding="utf-8")
