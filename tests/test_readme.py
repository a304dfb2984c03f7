"""README.md says what the commands' own help and the files' own docstrings say."""

from __future__ import annotations

import pytest

from gemb.commands import COMMANDS
from readme_reference import README, file_map, reference, replaced


def test_the_generated_parts_are_current():
    readme = README.read_text(encoding="utf-8")
    assert replaced(readme) == readme, "run: python tests/readme_reference.py"


def test_every_command_is_in_the_reference():
    text = reference()
    for command in COMMANDS:
        assert f"### gemb {command.name}\n" in text
    assert "### gemb models pull\n" in text


def test_nothing_outside_the_marks_is_touched():
    before = "# x\n<!-- begin files --><!-- end files -->\n<!-- begin commands -->"
    after = "<!-- end commands -->\ny\n"
    for old in ("", "\nSTALE\n"):
        text = replaced(before + old + after)
        assert text.startswith("# x\n<!-- begin files -->")
        assert text.endswith(after)
        assert "STALE" not in text


def test_every_file_is_in_the_map_with_its_first_sentence():
    assert (
        "| errors.py | What can go wrong for a user, and the exit code that says so. |"
        in file_map()
    )


def test_a_readme_without_marks_is_said_so():
    with pytest.raises(ValueError, match="lacks <!-- begin commands -->"):
        replaced("# x\n")
