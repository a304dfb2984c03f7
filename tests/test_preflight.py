"""What is said before the first step: right numbers, no training on the evaluation, safe lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gemb.batch_order import BatchOrder
from gemb.errors import UsageError
from gemb.evaluation_sets import open_suite
from gemb.overlap import TextsOf, evaluation_texts, overlapping
from gemb.preflight import Preflight, preflight
from gemb.recipe import Batch, Prompts, Source
from gemb.training_prompts import prompts_of
from gemb.training_rows import Rows, open_source
from gemb.visible import visible


def characters(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer whose tokens can be counted by hand."""
    return [list(map(ord, text)) for text in texts]


def source(path: Path, rows: Sequence[object], **settings: object) -> Rows:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    words = r"1 training rows hold texts of the evaluation, all of them as documents of a corpus \("
    with pytest.raises(UsageError, match=words):
        check([shared], evaluation=dev)
    found = check([shared], evaluation=dev, shared_documents=True)
    assert found.shared_rows == 1
    assert found.lines()[-1].startswith("overlap  1 rows have documents of the 10 texts of ")
    for at, pair in enumerate((["A question", "x"], ["x", "a question"], ["document 1", "x"])):
        spoilt = source(tmp_path / f"{at}.jsonl", [["mine", "Document 3"], pair])
        with pytest.raises(UsageError, match=rf"1 training rows .* first {at}\.jsonl:2: .* data$"):
            check([spoilt], evaluation=dev, shared_documents=True)


def test_overlap_is_that_of_plain_sets(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    words = ["Red", "red ", "BLUE", "blue\tgreen", "Blue green", "straße", "STRASSE", "é", "e"]
    pairs = [[str(one) for one in random.choice(words, 2)] for _ in range(200)]
    rows = source(tmp_path / "a.jsonl", pairs)
    for sample in (words[:1], ["strasse", "x"], ["blue green", "É"], ["nothing"], []):
        wanted = [
            number
            for number, pair in enumerate(pairs)
            if {" ".join(text.casefold().split()) for text in pair}
            & {" ".join(text.casefold().split()) for text in sample}
        ]
        assert overlapping(rows, evaluation_texts([TextsOf("a", sample)])).tolist() == wanted


def test_prompts_are_the_tasks_unless_the_recipe_has_words() -> None:
    dictionary = {"query": "ask: ", "document": "title: none | read: ", "STS": "same: "}
    query, positive = prompts_of(Source(path="a"), dictionary)
    assert query.render("x") == "ask: x"
    assert positive.render("x", "T") == "title: T | read: x"
    assert positive.render("x") == "title: none | read: x"
    both = prompts_of(Source(path="a", task="similarity"), dictionary)
    assert [one.render("x", "T") for one in both] == ["same: x", "same: x"]
    code, document = prompts_of(Source(path="a", task="code"), {})
    assert code.render("x") == "task: code retrieval | query: x"
    assert document.render("x") == "title: none | text: x"
    for task in ("retrieval", "qa", "fact", "classification", "clustering"):
        assert all(prompts_of(Source(path="a", task=task), {})), task
    own = Source(path="a", prompts=Prompts(query="Q {text}"))
    assert prompts_of(own, dictionary)[0].render("x") == "Q x"
    assert prompts_of(own, dictionary)[1].render("x") == "title: none | read: x"
    with pytest.raises(UsageError, match=r"^prompts\.positive 'text' has no \{text\}"):
        prompts_of(Source(path="a", prompts=Prompts(positive="text")), dictionary)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("zażółć 空 👩‍🚀", "zażółć 空 👩‍🚀"),
        ("a\tb\nc", "a⇥b⏎c"),
        ("\x1b[31m\x00\x7f\x85", "\\x1b[31m\\x00\\x7f\\x85"),
        ("\u202e\u2028\ud800\U000e0001", "\\u202e\\u2028\\ud800\\U000e0001"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_keeps_its_ends_and_says_how_much_is_gone() -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(1000))
    assert visible(text, 1000) == text
    assert visible(text, 90) == f"{text[:60]} … 910 more characters … {text[-30:]}"
