"""What gemb says on stderr: its levels, and whom they reach."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from fake_backend import Gemb
from gemb.io import notes


def say_all() -> None:
    notes.warn("something\n is off")
    notes.note("worth  knowing")
    notes.tell("step 1/2")
    notes.show("a  table\n1  2")


def test_each_kind_has_its_prefix(capsys):
    say_all()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "gemb: warning: something is off",
        "gemb: note: worth knowing",
        "gemb: step 1/2",
        "a  table",
        "1  2",
    ]


def test_quiet_leaves_the_warnings(capsys):
    notes.speak(quiet=True)
    assert notes.is_quiet()
    say_all()
    assert capsys.readouterr().err == "gemb: warning: something is off\n"


def test_a_block_may_be_quieter_and_no_block_is_louder(capsys):
    with notes.quieter():
        notes.note("hidden")
        notes.warn("shown")
    notes.note("shown, too")
    assert capsys.readouterr().err == "gemb: warning: shown\ngemb: note: shown, too\n"
    notes.speak(quiet=True)
    with notes.quieter():
        pass
    assert notes.is_quiet()


def test_what_is_said_once_is_not_said_again(capsys):
    for line in ("field 'id'", "field 'id'", "field 'text'"):
        notes.note(line, once=True)
    assert capsys.readouterr().err == "gemb: note: field 'id'\ngemb: note: field 'text'\n"


def test_a_line_stands_above_the_newest_bar(capsys):
    class Bar:
        def __enter__(self) -> None:
            sys.stderr.write("[cleared]")

        def __exit__(self, *error: object) -> None:
            sys.stderr.write("[drawn]")

    notes.bars.append(Bar)
    try:
        notes.note("a line")
    finally:
        notes.bars.remove(Bar)
    assert capsys.readouterr().err == "[cleared]gemb: note: a line\n[drawn]"


PROGRAM = """
import logging, sys
from gemb.io import notes
if sys.argv[1:]:
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
notes.warn("off")
notes.note("100 % known")
"""


@pytest.mark.parametrize(
    ("words", "lines"),
    [([], ["off"]), (["set"], ["gemb WARNING off", "gemb INFO 100 % known"])],
    ids=["no logging set up", "logging set up"],
)
def test_a_program_that_imports_gemb_decides_where_lines_go(words: list[str], lines: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == lines


HELP = """
import os, sys
leave = os._exit
def tell(code):
    os.write(2, str("logging" in sys.modules).encode())
    leave(code)
os._exit = tell
sys.argv = ["gemb", "--help"]
from gemb.cli import main
main()
"""


def test_help_does_not_import_logging():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, check=True)
    assert done.stderr == b"False"


def test_the_command_line_sets_the_level(gemb: Gemb):
    (gemb.folder / "t.txt").write_bytes(b'{"text": "a fox"}\n')
    words = ("embed", "t.txt", "-o", "v.jsonl")
    loud = gemb(*words)
    quiet = gemb(*words[:2], "-q", "-o", "w.jsonl")
    assert b"gemb: note: t.txt is read as JSON lines" in loud.stderr
    assert (quiet.returncode, quiet.stderr) == (0, b"")


def test_the_levels_are_those_of_logging():
    assert (notes.WARNING, notes.NOTE) == (logging.WARNING, logging.INFO)
