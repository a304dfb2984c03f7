"""`gemb help`: topics, commands, and what is neither."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gemb.cli import gemb
from gemb.commands.manual import pages, title, topics


def run(*words: str):
    return CliRunner().invoke(gemb, ["help", *words], prog_name="gemb")


def test_every_topic_is_listed_with_its_title():
    listed = run().output
    assert {"exit-codes", "index", "models", "prompts", "recipes", "search", "vectors"} <= set(
        topics()
    )
    for name, path in topics().items():
        assert f"  {name} " in listed
        assert title(path) in listed


@pytest.mark.parametrize("name", ["exit-codes", "prompts", "vectors"])
def test_a_topic_is_printed_whole(name):
    assert run(name).output.rstrip("\n") == topics()[name].read_text("utf-8").rstrip("\n")


def test_a_command_is_its_help_and_a_topic_of_its_name_comes_first():
    assert run("embed").output.startswith("Usage: gemb embed [OPTIONS]")
    assert run("index", "build").output.startswith("Usage: gemb index build [OPTIONS] INDEX")
    text = topics()["search"].read_text("utf-8")
    assert run("search").output.strip() == f"{text}\nOptions: gemb search --help".strip()


def test_what_is_neither_is_named_with_the_nearest():
    assert run("vector").exit_code == 2
    assert "no topic or command 'vector'; did you mean 'vectors'?" in run("vector").output
    assert "no topic or command 'zzz'; gemb help lists the topics" in run("zzz").output
    assert "no topic or command 'bild'; did you mean 'build'?" in run("index", "bild").output


def test_a_man_page_is_what_help_says():
    texts = dict(pages(gemb, "1.2.3"))
    assert set(texts) >= {"gemb", "gemb-embed", "gemb-index-build"}
    page = texts["gemb-embed"]
    assert '"gemb 1.2.3"' in page
    assert "\ngemb\\-embed \\- Turn texts into vectors" in page
    assert ".SH SEE ALSO\n.BR gemb (1)\n" in page
    for line in page.splitlines():  # roff would read a line that begins with these as its own
        assert not line.startswith(("'", "..")), line
