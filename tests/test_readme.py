"""README.md and the model card say what commands, files and the model say of themselves."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys

import pytest

from gemb.commands import COMMANDS
from gemb.models.card import NOTICE
from gemb.models.references import bundled
from gemb.plugins import describe
from gemb.recipe.file import find
from gemb.recipe.layers import layers_in
from readme_reference import (
    CARD,
    PACKAGES,
    README,
    card_parts,
    commands,
    facts,
    packages,
    readme_parts,
    replaced,
)
from terminal_picture import picture

PACKAGE_FILES = [
    path
    for base in ("gemb", "backends")
    for path in (README.parent / base).glob("*/__init__.py")
    if path.parent.name != "data"
]
RUN = "run: python tests/support/readme_reference.py"


def test_the_generated_parts_are_current():
    readme = README.read_text(encoding="utf-8")
    assert replaced(readme, readme_parts()) == readme, RUN


def test_the_model_cards_facts_are_those_of_the_bundled_file():
    card = CARD.read_text(encoding="utf-8")
    assert replaced(card, card_parts()) == card, RUN


def test_a_cards_facts_are_read_from_the_file(tiny_gguf):
    table = facts(tiny_gguf)
    assert "| layers | 3, 96 wide |\n" in table
    assert "| vectors | 96, 48 |\n" in table
    assert table.startswith("| | |\n|---|---|\n| file | tiny.gguf, ")


def test_the_model_card_has_the_licence_and_the_notice():
    card = CARD.read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: gemma\nbase_model: google/embeddinggemma-300m\n")
    assert f"\n{NOTICE}\n" in card
    for title in ("How it was made", "Intended use", "Limits", "Licence"):
        assert f"\n## {title}\n" in card


def test_the_model_card_lists_the_texts_of_the_recipe_and_no_others():
    used = re.findall(r"train/([\w-]+)\.jsonl\.gz", find("mini").read_text(encoding="utf-8"))
    table = CARD.read_text(encoding="utf-8").partition("\n### Texts\n")[2]
    rows = re.findall(r"^\| ([\w-]+(?:, [\w-]+)*) \|", table, re.MULTILINE)
    listed = [name for row in rows for name in row.split(", ") if name != "texts"]
    assert sorted(listed) == sorted(set(used))


def test_the_bundled_model_is_what_its_recipe_cuts():
    recipe = find("mini").read_text(encoding="utf-8")
    kept, vocabulary = re.search(r"--keep-layers (\S+) --vocab (\d+)", recipe).groups()
    model = describe(bundled())
    assert model.layers == len(layers_in(kept))
    assert model.vocabulary == int(vocabulary)
    assert set(model.trained_types.values()) == {"q4_0"}


def test_every_command_and_package_is_in_a_table():
    table = commands()
    for name in COMMANDS:
        assert f"| `gemb {name}` | " in table
    folders = {path.parent.relative_to(README.parent).as_posix() for path in PACKAGE_FILES}
    assert folders == set(PACKAGES)
    assert all(len(line) > 30 for line in packages().splitlines()[2:])


def test_the_readme_is_a_page():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_nothing_outside_the_marks_is_touched():
    before = "# x\n<!-- begin packages --><!-- end packages -->\n<!-- begin commands -->"
    after = "<!-- end commands -->\ny\n"
    for old in ("", "\nSTALE\n"):
        text = replaced(before + old + after, {"packages": "a map", "commands": "help"})
        assert text.startswith("# x\n<!-- begin packages -->")
        assert text.endswith(after)
        assert "STALE" not in text


def test_a_readme_without_marks_is_said_so():
    with pytest.raises(ValueError, match="no <!-- begin commands -->"):
        replaced("# x\n", {"commands": "help"})


def test_the_pictures_are_there_and_small():
    readme = README.read_text(encoding="utf-8")
    named = {README.parent / name for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", readme)}
    assert named == set((README.parent / "pictures").iterdir())
    assert sum(path.stat().st_size for path in named) < 300_000


def test_what_the_readme_links_to_in_the_checkout_is_there():
    readme = README.read_text(encoding="utf-8")
    links = re.findall(r"(?<!!)\[[^]]+\]\(((?!https?://|#)[^)]+)\)", readme)
    assert "gemb/data/mini.md" in links
    assert not [link for link in links if not (README.parent / link).exists()]


def test_the_licence_section_has_the_notice():
    licence = README.read_text(encoding="utf-8").partition("\n## Licence\n")[2]
    assert f"> {NOTICE}\n" in licence


def test_a_picture_of_a_terminal_has_its_texts_colours_and_columns():
    svg = picture("a <b>\x1b[1m\x1b[35mred\x1b[0m\n\x1b[32m1\x1b[39m x\n\n")
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*fill="(#\w+)"([^>]*)>(.*)</text>', svg)
    assert [(fill, more, html.unescape(text)) for *_, fill, more, text in texts] == [
        ("#d5c4a1", "", "a\xa0<b>"),
        ("#d3869b", ' font-weight="bold"', "red"),
        ("#b8bb26", "", "1"),
        ("#d5c4a1", "", "\xa0x"),
    ]
    left, top = float(texts[0][0]), float(texts[0][1])
    assert float(texts[1][0]) == pytest.approx(left + 5 * 8.4, abs=0.05)
    assert float(texts[2][1]) == top + 18


def blocks(kind: str) -> list[str]:
    """Return README's code blocks of a kind, those that set gemb up left out."""
    text = README.read_text(encoding="utf-8")
    found = re.findall(rf"(<!-- [\w ]+ -->\n)?```{kind}\n(.*?)```", text, re.DOTALL)
    return [block for mark, block in found if not mark]


def steps(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that README shows of it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        lines = part.splitlines()
        end = 1
        while "\n".join(lines[:end]).count('"') % 2:  # a quoted argument goes over lines
            end += 1
        found.append(("\n".join(lines[:end]), lines[end:]))
    return found


def without_numbers(lines: list[str]) -> list[str]:
    """Return lines in one order, numbers and columns alike: another processor has others."""
    return sorted(" ".join(re.sub(r"[-+]?\d[\d.,]*", "0", line).split()) for line in lines)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_command_that_the_readme_shows_does_what_it_shows(tmp_path):
    if not os.environ.get("GEMB_NIGHTLY"):
        pytest.skip("GEMB_NIGHTLY is not set: it takes some five minutes")
    for library in ("torch", "sentence_transformers"):
        pytest.importorskip(library)
    shutil.copytree(README.parent / "recipes", tmp_path / "recipes")
    (tmp_path / "reviews.csv").write_text("id,title,body\n7,Kettle,It boils quickly.\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("gemb", "-m gemb "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        program.chmod(0o755)
    settings = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    count = 0
    for block in blocks("console"):
        for command, shown in steps(block):
            # transformers draws how far it is with the loading of weights.
            lines = re.sub(r"\n*[^\n]*it/s\]\n*", "", run(command).stdout).splitlines()
            # On a slow machine the first search takes long enough to print how far it is.
            printed = [
                line for line in lines if not re.match(r"gemb: [\d,]+ of [\d,]+ passages", line)
            ]
            assert without_numbers(printed) == without_numbers(shown), command
            count += 1
    for block in blocks("sh"):
        result = run(f"set -e\n{block}")
        assert result.returncode == 0, result.stdout
        count += 1
    assert count >= 14
