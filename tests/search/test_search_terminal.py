"""`gemb search` on a terminal: groups, colours, width, the best hits so far, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fake_backend import Gemb, write_model

BAG = {"is_bag": True, "max_tokens": 512}
GUIDE = """# Guide

Nothing of note.

## Cancel

You can cancel an order until it is sent.
"""


class Screen(NamedTuple):
    """What a terminal was sent."""

    raw: str
    code: int

    @property
    def text(self) -> str:
        """Without colours, carriage returns and what was drawn over."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.raw.replace("\r\n", "\n"))
        while "\x1b[J" in plain:
            before, after = plain.split("\x1b[J", 1)
            before, rows = before.rsplit("\x1b[", 1)
            lines = before.split("\n")
            plain = "\n".join([*lines[: -1 - int(rows.rstrip("F"))], after])
        return plain


@pytest.fixture
def shop(gemb: Gemb) -> Gemb:
    write_model(gemb.folder / "model.fake", **BAG)
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    gemb.environment["TERM"] = "xterm-256color"
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        gemb.environment.pop(name, None)
    (gemb.folder / "tree").mkdir()
    (gemb.folder / "tree" / "guide.md").write_text(GUIDE)
    (gemb.folder / "tree" / "other.txt").write_text("It rains in the north.\n")
    return gemb


def on_terminal(
    gemb: Gemb, *arguments: str, columns: int = 70, during: Callable[[int], None] | None = None
) -> Screen:
    """Run `gemb` with all three streams on a terminal. `during` gets the process id."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = gemb.start(*arguments, **streams, start_new_session=True)
    os.close(theirs)
    if during:
        during(process.pid)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    return Screen(shown.decode(), process.wait(60))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 10_000)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_hits_stand_in_groups_with_score_heading_and_numbered_lines(shop: Gemb):
    screen = on_terminal(shop, "search", "cancel an order", "tree", "--weak", "-k", "2")
    assert screen.code == 0
    first, second = screen.text.split("\n\n")
    name, score, *lines = first.splitlines()
    assert name == "tree/guide.md"
    assert re.fullmatch(r"0\.\d\d(  Guide.*)?", score)
    assert "7: You can cancel an order until it is sent." in lines
    assert any(re.match(r"\d- ", line) for line in lines)
    assert second.splitlines()[0] == "tree/other.txt"
    assert "\x1b[1;35mtree/guide.md\x1b[m" in screen.raw
    assert "\x1b[1;31mcancel\x1b[m" in screen.raw


def test_names_as_they_are_do_not_reach_a_terminal(shop: Gemb):
    screen = on_terminal(shop, "search", "cancel", "tree", "-l", "-0")
    assert screen.code == 2
    assert "-0 writes names as they are, for a program: | xargs -0" in screen.text


def test_without_a_path_a_terminal_searches_this_folder(shop: Gemb):
    screen = on_terminal(shop, "search", "cancel an order", "--weak")
    assert screen.text.startswith("tree/guide.md\n")


@pytest.mark.parametrize(
    ("environment", "arguments", "is_coloured"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"NO_COLOR": ""}, (), True),
        ({"TERM": "dumb"}, (), False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, (), True),
        ({"NO_COLOR": "1"}, ("--color=always",), True),
        ({}, ("--color=never",), False),
    ],
)
def test_colours_are_as_the_user_says(
    shop: Gemb, environment: dict[str, str], arguments: tuple[str, ...], is_coloured: bool
):
    shop.environment |= environment
    screen = on_terminal(shop, "search", "cancel an order", "tree", "--weak", *arguments)
    assert ("\x1b[1m" in screen.raw) is is_coloured
    assert "cancel an order" in screen.text
    piped = shop("search", "cancel an order", "tree", "--weak", *arguments)
    is_coloured = "--color=always" in arguments or "FORCE_COLOR" in environment
    assert (b"\x1b[" in piped.stdout) is is_coloured


def test_nothing_in_a_name_or_a_text_moves_the_cursor(shop: Gemb):
    evil = shop.folder / "tree" / "a\x1b[2J\x07\nb.txt"
    evil.write_text("cancel an order \x1b]0;title\x07 \x1b[2J now\n")
    for form in ((), ("--no-heading",), ("-l",)):
        screen = on_terminal(
            shop, "search", "cancel an order", "tree", "--weak", "--color=never", *form
        )
        assert "b.txt" in screen.raw
        assert "\x1b" not in screen.raw
        assert "\x07" not in screen.raw


def test_no_row_is_wider_than_the_terminal(shop: Gemb):
    long = "word " * 200 + "cancel an order " + "漢字" * 200
    (shop.folder / "tree" / "long.txt").write_text(long)
    screen = on_terminal(shop, "search", "cancel an order", "tree", "--weak", columns=50)
    rows = screen.text.splitlines()
    wide = [sum(2 if ord(one) > 0x2E80 else 1 for one in row) for row in rows]
    assert max(wide) <= 50
    whole = on_terminal(shop, "search", "cancel an order", "tree", "--weak", "--full", columns=50)
    assert whole.text.count("word") == 200


def test_context_may_be_asked_for(shop: Gemb):
    bare = on_terminal(shop, "search", "cancel an order", "tree", "--weak", "-k1", "-C0")
    assert [line for line in bare.text.splitlines() if re.match(r"\d+[:-]", line)] == [
        "7: You can cancel an order until it is sent."
    ]
    flat = on_terminal(shop, "search", "cancel an order", "tree", "--weak", "-k1", "--no-heading")
    assert flat.text == "tree/guide.md:7:You can cancel an order until it is sent.\n"


def test_many_queries_stand_above_their_hits(shop: Gemb):
    (shop.folder / "q").write_text("cancel an order\nrains in the north\n")
    screen = on_terminal(shop, "search", "-f", "q", "tree", "--min-score", "0.3", "-k1")
    assert screen.text.startswith("[1] cancel an order\ntree/guide.md\n")
    assert "\n\n[2] rains in the north\ntree/other.txt\n" in screen.text
    (shop.folder / "q").write_text("zebra\ncancel an order\n")
    screen = on_terminal(shop, "search", "-f", "q", "tree", "--min-score", "0.3", "-k1")
    assert screen.text.startswith("[1] zebra\nnothing relevant\n\n[2] cancel an order\ntree/gui")


def slow_tree(shop: Gemb) -> Path:
    """Make a tree whose search takes some seconds, and return the log of its model."""
    log = shop.folder / "log"
    texts = "".join(f"some words number {number}\n" for number in range(4000))
    (shop.folder / "many.txt").write_text("cancel an order\n" + texts)
    write_model(shop.folder / "model.fake", **BAG, log=str(log), sleep_s=0.4)
    return log


def test_the_best_hits_so_far_are_drawn_and_then_gone(shop: Gemb):
    slow_tree(shop)
    screen = on_terminal(
        shop, "search", "cancel an order", "many.txt", "--lines", "-k3", "--weak", "--exact"
    )
    assert screen.code == 0
    drawn = screen.raw
    assert drawn.startswith("0 of 4,001 passages; best so far:")
    assert re.search(r"~[\d.]{3,4}  many\.txt:1  cancel an order", drawn)
    assert re.search(r"[\d,]+ of 4,001 passages, [\d,]+ tokens/s, \d+ s left; best so far:", drawn)
    assert re.search(r"1\.00  many\.txt:1  cancel an order", drawn)
    assert screen.text.startswith("many.txt\n1.00\n1: cancel an order\n")


def test_ctrl_c_shows_the_best_so_far(shop: Gemb):
    log = slow_tree(shop)

    def interrupt(process: int) -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 6:
            time.sleep(0.05)
        os.killpg(process, 2)

    screen = on_terminal(
        *(shop, "search", "cancel an order", "many.txt", "--lines", "-k2", "--weak", "--exact"),
        during=interrupt,
    )
    assert screen.code == 130
    assert "1: cancel an order\n" in screen.text
    assert "gemb: note: stopped: " in screen.text
    assert "the same search goes on from there" in screen.text.replace("\n", " ")
