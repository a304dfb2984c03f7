from __future__ import annotations

import re
import textwrap
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemb.texts import PASSAGE_KINDS
from gemb.texts.passages import Passage, split
from gemb.texts.units import MOST, pieces

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            (
                *("", "", "# One", "## Two", "Title", "=====", "-----", "```", "    deep()", "\tx"),
                *("}", "def f(a):", "class X:", "@decorated", "// note", "- item", "---", "else:"),
                "\x0c",
            )
        ),
        st.text(alphabet="ab .,é猫。\t'\"", max_size=60),
        st.integers(1, 400).map(lambda count: "word " * count),
        st.integers(1, 40).map(lambda count: "One sentence follows another one. " * count),
        st.integers(1, 3000).map(lambda count: "x" * count),
        st.integers(1, 2000).map(lambda count: "猫は好き。"[: count % 5 + 1] * (count // 3)),
    ),
    max_size=60,
)
WORD = re.compile(r"[a-zé0-9_]+", re.IGNORECASE)


def parts(text: str, name: str = "x", kind: str = "auto") -> list[tuple[str, str | None]]:
    return [(text[one.start : one.end], one.title) for one in split(text, name, kind)]


@settings(max_examples=300, deadline=None)
@given(LINES, st.sampled_from(PASSAGE_KINDS), st.sampled_from(["x.py", "x.md", "x.txt", "x"]))
@example(["猫" * 5000], "prose", "x")
@example(["x" * 5000 + " y"], "code", "x")
def test_passages_hold_all_words_whole_in_order_with_their_lines(
    lines: list[str], kind: str, name: str
) -> None:
    text = "\n".join(lines)
    found = split(text, name, kind)
    end = 0
    covered = bytearray(len(text))
    for one in found:
        assert end <= one.start < one.end <= len(text)
        end = one.end
        covered[one.start : one.end] = b"\1" * (one.end - one.start)
        part = text[one.start : one.end]
        assert not part[-1].isspace()
        assert part.split("\n")[0].strip()
        assert one.line == text.count("\n", 0, one.start) + 1
        assert one.last_line == text.count("\n", 0, one.end) + 1
        is_one_word = len(WORD.sub("", part)) <= 2
        assert kind == "lines" or len(part) <= MOST or is_one_word
    assert all(covered[place] for place, mark in enumerate(text) if not mark.isspace())
    bounds = {one.start for one in found} | {one.end for one in found}
    for word in WORD.finditer(text):
        assert not bounds & set(range(word.start() + 1, word.end())), word[0]


def test_python_is_cut_between_functions_and_titled_by_what_is_around() -> None:
    body = "\n".join(f"        value_{number} = compute({number})" for number in range(30))
    methods = "\n\n".join(f"    def method_{name}(self):\n{body}" for name in "abc")
    head = '"""A module."""\n\nimport os\n\n\nclass Shape(Base):\n    """A shape."""\n\n'
    tail = f"\n\n@cache\ndef last():\n    return {'1 + ' * 30} 1\n"
    found = parts(head + methods + "\n" + tail, "lib/shape.py")
    assert [(part.split("\n")[0].strip(), title) for part, title in found] == [
        ('"""A module."""', "shape.py"),
        ("def method_b(self):", "shape.py › class Shape(Base)"),
        ("def method_c(self):", "shape.py › class Shape(Base)"),
        ("@cache", "shape.py"),
    ]


def test_a_long_line_is_cut_behind_its_indent() -> None:
    long = "1*" * 3000
    text = f"def f():\n    return (\n        {long}\n        {long}\n    )\n"
    words = "".join("".join(text[part.start : part.end].split()) for part in split(text, "a.py"))
    assert words == "".join(text.split())
    assert all(first < last for first, last in pieces(f"        {long}", 0, 8 + len(long)))


def test_braces_stay_with_their_function_in_any_language() -> None:
    def function(name: str) -> str:
        lines = "\n".join(f"\tcall_{number}({name});" for number in range(40))
        return f"// What {name} does.\nint {name}(int x)\n{{\n{lines}\n}}"

    text = "\n\n".join(function(name) for name in ("alpha", "beta", "gamma")) + "\n"
    found = parts(text, "x.c")
    assert [part.split("\n")[0] for part, _ in found] == [
        f"// What {name} does." for name in ("alpha", "beta", "gamma")
    ]
    assert all(part.endswith("}") for part, _ in found)


def test_markdown_is_cut_at_headings_which_make_the_title() -> None:
    text = textwrap.dedent("""\
        ---
        # a setting
        ---
        # Guide

        Words about the guide, and why anybody should read it; it has {long}

        ## Install

        {long}

        ```sh
        # no heading
        ```

        ## Use
        ### With care
        {long}

        Underlined
        ----------

        {long}
        """).format(long="A sentence that fills the page. " * 14)
    found = parts(text, "docs/guide.md")
    assert [title for _, title in found] == [
        "guide.md › Guide",
        "guide.md › Guide › Install",
        "guide.md › Guide › Use › With care",
        "guide.md › Guide › Underlined",
    ]
    assert any("# no heading" in part for part, title in found if title and "Install" in title)


def test_restructured_text_has_headings_too() -> None:
    text = "=====\nTitle\n=====\n\n" + "Words. " * 60 + "\n\nPart one\n========\n\n" + "More. " * 80
    assert [title for _, title in parts(text, "x.rst")] == [
        "x.rst › Title",
        "x.rst › Title › Part one",
    ]


def test_prose_is_cut_between_paragraphs_then_sentences() -> None:
    paragraph = "This is a sentence of some length, as prose has them. " * 12
    text = "\n\n".join([paragraph.strip()] * 5)
    found = [part for part, _ in parts(text, "story.txt")]
    assert all(
        part in ("\n\n".join([paragraph.strip()] * count) for count in (1, 2)) for part in found
    )
    one = ("This is a sentence of some length, as prose has them. " * 60).strip()
    cut = [part for part, _ in parts(one, "story.txt")]
    assert len(cut) == 3
    assert all(part.startswith("This is") and part.endswith("them.") for part in cut)
    chinese = "这是一个句子，它有一些字。" * 300
    cut = [part for part, _ in parts(chinese, "story.txt")]
    assert all(part.endswith("。") for part in cut)
    assert max(map(len, cut)) <= MOST


def test_lines_are_one_passage_each_without_a_title() -> None:
    assert split("  one\n\ntwo three \n", "x.log", "lines") == [
        Passage(2, 5, 1, 1, None),
        Passage(7, 16, 3, 3, None),
    ]


def test_the_kind_is_found_by_the_looks_where_the_name_says_nothing() -> None:
    code = "int main(void) {\n    return 0;\n}\n" * 40
    prose = "# Once upon a time there was\na king who had a daughter\n\n" * 40
    assert parts(code, "noname") == parts(code, "noname", "code")
    assert parts(prose, "noname") == parts(prose, "noname", "prose")
    script = "#!/bin/sh\necho hello\n"
    assert parts(script, "run") == parts(script, "run", "code")


@pytest.mark.parametrize("unit", ["x", "x ", "x\n", "    x\n", "\n", "# x\n\n", "(", "猫", "a\n\n"])
def test_a_long_text_of_any_kind_takes_time_in_proportion(unit: str) -> None:
    import time

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        began = time.process_time()
        for name in ("x.py", "x.md", "x"):
            split(text, name)
        return time.process_time() - began

    seconds(20_000)
    # Twenty times as long: a square would take four hundred times as long.
    least = max(min(seconds(10_000) for _ in range(3)), 0.003)
    assert min(seconds(200_000) for _ in range(3)) < 100 * least


LONG_LINES = {
    "closed heading": "# a" + "#" * 300_000 + "b",
    "heading and blanks": "# a" + " \t" * 150_000 + "b",
    "stars": "* a" + "=\t" * 150_000 + "b",
    "underlines": "=" * 300_000 + "x\n" + "-" * 300_000,
    "marks": ('."' * 150_000) + "x",
    "blanks": "\t" * 300_000 + "x",
    "digits": "1" * 300_000 + ")",
    "brackets": "{" * 300_000,
}


@pytest.mark.parametrize("kind", ["markdown", "code", "prose"])
@pytest.mark.parametrize("text", LONG_LINES.values(), ids=LONG_LINES)
def test_no_line_holds_the_splitting_up(text: str, kind: str) -> None:
    began = time.process_time()
    passages = split(text, "x.md", kind)
    assert time.process_time() - began < 5
    shown = "".join(text[one.start : one.end] for one in passages)
    assert "".join(shown.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("## Orders ##", "Orders"),
        ("# a # b =", "a # b"),
        ("# #", "#"),
        ("###### ###", "#"),
        ("= a \t= ", None),
    ],
)
def test_what_closes_a_heading_is_not_of_its_words(line: str, title: str | None) -> None:
    passage = split(f"{line}\n\nwords\n", "x.md")[0]
    assert passage.title == (f"x.md › {title}" if title else "x.md")
