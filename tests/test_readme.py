"""README.md and the model card say what commands, files and the model say of themselves."""

from __future__ import annotations

import html
import re

import pytest

from gemb.commands import COMMANDS
from gemb.models.card import NOTICE
from gemb.models.references import bundled
from gemb.plugins import describe
from gemb.recipe.file import find
from gemb.recipe.layers import layers_in
from readme_reference import (
    CARD,
    README,
    card_parts,
    facts,
    file_map,
    readme_parts,
    reference,
    replaced,
)
from terminal_picture import picture

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


def test_every_command_is_in_the_reference():
    text = reference()
    for command in COMMANDS:
        assert f"### gemb {command.name}\n" in text
    assert "### gemb models pull\n" in text


def test_nothing_outside_the_marks_is_touched():
    before = "# x\n<!-- begin files --><!-- end files -->\n<!-- begin commands -->"
    after = "<!-- end commands -->\ny\n"
    for old in ("", "\nSTALE\n"):
        text = replaced(before + old + after, {"files": "a map", "commands": "help"})
        assert text.startswith("# x\n<!-- begin files -->")
        assert text.endswith(after)
        assert "STALE" not in text


def test_every_file_is_in_the_map_with_its_first_sentence():
    assert (
        "| errors.py | What can go wrong for a user, and the exit code that says so. |"
        in file_map()
    )
    assert "| bm25.py | " in file_map()


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


def test_lines_of_recipes_that_a_search_shows_are_those_of_the_recipes():
    shown = re.findall(r"^(recipes/\w+\.yaml):(\d+):(.*)$", README.read_text("utf-8"), re.M)
    assert len(shown) >= 4
    for path, number, text in shown:
        line = (README.parent / path).read_text("utf-8").splitlines()[int(number) - 1]
        assert line.startswith(text), f"{path}:{number}"
