"""README.md says what the commands' own help says."""

from __future__ import annotations

import pytest

from gemb.commands import COMMANDS
from readme_reference import README, reference, replaced


def test_the_command_reference_is_current():
    readme = README.read_text(encoding="utf-8")
    assert replaced(readme) == readme, "run: python tests/readme_reference.py"


def test_every_command_is_in_the_reference():
    text = reference()
    for command in COMMANDS:
        assert f"### gemb {command.name}\n" in text
    assert "### gemb models pull\n" in text


def test_nothing_outside_the_marks_is_touched():
    before, after = "# x\n<!-- begin commands -->", "<!-- end commands -->\ny\n"
    for old in ("", "\nSTALE\n"):
        text = replaced(before + old + after)
        assert text.startswith(before)
        assert text.endswith(after)
        assert "STALE" not in text


def test_a_readme_without_marks_is_said_so():
    with pytest.raises(ValueError, match="lacks <!-- begin commands -->"):
        replaced("# x\n")
