from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gemb.texts.notebooks import notebook_text
from gemb.texts.passages import split
from gemb.texts.walk import Skipped, Walk, read_text, walk

IMAGE = "iVBORw0KGgoAAAANSUhEUg" * 2000
CELLS = [
    {"cell_type": "markdown", "metadata": {}, "source": ["# Orders\n", "They can be cancelled."]},
    {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {"source": "not this"},
        "outputs": [
            {"data": {"image/png": IMAGE, "text/plain": ["source\n", "<Figure>"]}},
            {"output_type": "stream", "text": ["import os\n", "printed\n"]},
        ],
        "source": ["import os\n", "\n", 'print("a\\\\b")\n', "x = 'é \U0001f600'"],
    },
    {
        "cell_type": "raw",
        "metadata": {},
        "attachments": {"x.png": {"image/png": IMAGE}},
        "source": [],
    },
    {"cell_type": "markdown", "metadata": {}, "source": ["The last one"]},
]
SOURCE = [
    *("# Orders", "They can be cancelled.", "import os", 'print("a\\\\b")', "x = 'é \U0001f600'"),
    "The last one",
]


def notebook(**settings: object) -> str:
    document = {"cells": CELLS, "metadata": {"source": ["no"]}, "nbformat": 4}
    return json.dumps(document, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_line_of_source_stands_on_its_line_of_the_file(ascii_only: bool) -> None:
    written = notebook(indent=1, ensure_ascii=ascii_only)
    text = notebook_text(written)
    assert text is not None
    assert [line for line in text.split("\n") if line] == SOURCE
    raw = written.split("\n")
    for number, line in enumerate(text.split("\n")):
        if line:
            assert json.loads(raw[number].strip().rstrip(",")).rstrip("\n") == line
    assert IMAGE[:20] not in text


def test_sources_on_one_line_follow_one_another_with_a_blank_line_between_cells() -> None:
    text = notebook_text(notebook())
    assert text == (
        "# Orders\nThey can be cancelled.\n\nimport os\n\nprint(\"a\\\\b\")\nx = 'é \U0001f600'\n\n"
        "The last one\n"
    )
    one_text = [{**cell, "source": "".join(cell["source"])} for cell in CELLS]
    assert notebook_text(json.dumps({"cells": one_text})) == text
    joined = {"cells": [{"source": ["a", "b\n", "c"]}, {"source": ["d"]}]}
    assert notebook_text(json.dumps(joined)) == "ab\nc\n\nd\n"


def test_notebooks_of_the_third_format_are_read() -> None:
    cells = [
        {"cell_type": "heading", "level": 1, "source": ["Title"]},
        {"cell_type": "code", "input": ["x = 1\n", "y"], "outputs": [{"text": ["no"]}]},
    ]
    assert notebook_text(json.dumps({"worksheets": [{"cells": cells}]})) == "Title\n\nx = 1\ny\n"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "words", '{"cells": 3}', '{"cells": [', "[" * 100_000, '{"cells": {"a": 1}}'],
)
def test_what_is_no_notebook_is_none(text: str) -> None:
    assert notebook_text(text) is None


def test_odd_cells_do_no_harm() -> None:
    odd = (
        '{"cells":[{"source":{"source":["x"]}},{"source":null},{"source":[1,"y",["z"]]},[],7,'
        '{"metadata":{"source":"no","cells":[{"source":"no"}]}},{"source":"\\ud800"},{"source":""}]}'
    )
    text = notebook_text(odd)
    assert text is not None
    assert text.split() == ["yz", "\ufffd"]


def test_a_long_notebook_takes_no_time() -> None:
    cells = [{"outputs": [{"data": IMAGE, "text": ["line\n"] * 300}], "source": ["a\n"] * 30}] * 150
    began = time.process_time()
    text = notebook_text(json.dumps({"cells": cells}, indent=1))
    assert time.process_time() - began < 5
    assert text is not None
    assert text.split().count("a") == 4500


def test_a_folder_has_the_cells_of_its_notebooks(tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text(notebook(indent=1))
    (tmp_path / "y.ipynb").write_text("a conflict\n<<<<\n")
    skipped = Skipped()
    texts = [read_text(entry, skipped) for entry in walk([str(tmp_path)], Walk(), skipped)]
    assert [text.split() for text in texts if text] == [
        " ".join(SOURCE).split(),
        ["a", "conflict", "<<<<"],
    ]
    assert texts[0] is not None
    passages = split(texts[0], "x.ipynb")
    shown = [texts[0][passage.start : passage.end] for passage in passages]
    assert "".join(shown).replace("\n", "") == "".join(SOURCE)
    assert passages[0].line == notebook(indent=1).split("\n").index('    "# Orders\\n",') + 1


def test_what_is_nested_deeply_costs_no_more_than_what_is_not() -> None:
    deep = '{"a":' * 900 + "[" + '"b",' * 100_000 + '"b"]' + "}" * 900
    data = f'{{"cells": [{{"source": ["one"], "metadata": {deep}}}]}}'
    began = time.process_time()
    assert notebook_text(data) == "one\n"
    assert time.process_time() - began < 1.5


def test_the_deepest_source_is_one_of_a_worksheet() -> None:
    cells = [{"input": ["one\n", "two"]}, {"source": ["three"], "outputs": [{"source": ["no"]}]}]
    text = notebook_text(json.dumps({"worksheets": [{"cells": cells}]}))
    assert text is not None
    assert text.split() == ["one", "two", "three"]
