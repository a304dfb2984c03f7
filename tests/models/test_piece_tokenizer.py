"""The tokenizer that looks pieces up gives the library's ids."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import gemb.models
from gemb.embedding.drafts import BUNDLED
from gemb.models import piece_tokenizer
from gemb.models.piece_tokenizer import PieceTokenizer

SIGNS = [*"aAbe eE01_.,:;()[]\n\t-=\"'#", "  ", "    ", "\n\n", "é", "”", "’s", " ›", "你", "👍🏽"]
WORDS = ["self", "return", "<bos>", "<pad", "▁", "\x00", "<0x41>", "ConfigParser", "naïve", "мир"]


@pytest.fixture(scope="module")
def library() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


def ids_of(library: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]


class Watched:
    """The library, which says what it was given, and fails where it is told to."""

    def __init__(self, library: Tokenizer) -> None:
        self.given: list[str] = []
        self.fails = False
        self._library = library

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
        if self.fails:
            raise MemoryError
        self.given += texts
        return self._library.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def test_the_ids_are_those_of_the_library(library: Tokenizer) -> None:
    pieces = PieceTokenizer.of(library)
    assert pieces
    dice = random.Random(7)
    files = sorted(Path(gemb.models.__path__[0]).glob("*.py"))
    texts = [file.read_text() for file in files]
    texts += ["".join(dice.choices(SIGNS + WORDS, k=dice.randrange(40))) for _ in range(2000)]
    texts += [
        "",
        " ",
        "\n",
        "x" * 3000,
        "é" * 2000,
        "”." * 50,
        "a." * 500 + " é\n  é",
        "a\r\n\tb\u200b c",
    ]
    for start in range(0, len(texts), 100):
        some = texts[start : start + 100]
        assert [ids.tolist() for ids in pieces.tokenize(some)] == ids_of(library, some)
    assert pieces.tokenize([]) == []


@pytest.mark.parametrize("bound", ["MOST_PIECES", "MOST_CHARS"])
def test_what_is_forgotten_is_learned_again(
    library: Tokenizer, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(piece_tokenizer, bound, 3)
    watched = Watched(library)
    pieces = PieceTokenizer(watched, ["▁"])  # type: ignore[arg-type]
    for text in ("one two three four five", "six two", "two seven"):
        assert [ids.tolist() for ids in pieces.tokenize([text])] == ids_of(library, [text])
    assert watched.given.count(" two") == 2


def test_after_a_failure_the_ids_are_those_of_the_library(library: Tokenizer) -> None:
    watched = Watched(library)
    pieces = PieceTokenizer(watched, ["▁"])  # type: ignore[arg-type]
    pieces.tokenize(["one two"])
    watched.fails = True
    with pytest.raises(MemoryError):
        pieces.tokenize(["two three four"])
    watched.fails = False
    texts = ["three five", "six two one"]
    assert [ids.tolist() for ids in pieces.tokenize(texts)] == ids_of(library, texts)


@pytest.mark.parametrize(
    "change",
    [
        {
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "never",
                "split": True,
            }
        },
        {"merge": ("s", "(")},  # a token of a letter and a sign
        {"merge": ("e", "▁")},  # of two words
        {"normalizer": None},
        {"ignore_merges": True},
        {"without": "<0x41>"},
        {"added": {"content": "<" + "long" * 300 + ">"}},
        {"added": {"content": "word", "lstrip": True}},
    ],
)
def test_a_tokenizer_of_another_form_has_no_pieces(library: Tokenizer, change: dict) -> None:
    document = json.loads(library.to_str())
    model = document["model"]
    if merge := change.get("merge"):
        model["vocab"]["".join(merge)] = len(model["vocab"])
        model["merges"].append(list(merge))
    elif added := change.get("added"):
        plain = dict(document["added_tokens"][0]) | {"id": len(model["vocab"])}
        document["added_tokens"].append(plain | added)
    elif byte := change.get("without"):
        model["vocab"]["another"] = model["vocab"].pop(byte)
    elif "ignore_merges" in change:
        model |= change
    else:
        document |= change
    assert PieceTokenizer.of(Tokenizer.from_str(json.dumps(document))) is None


def test_one_pattern_finds_what_any_of_many_names_finds() -> None:
    dice = random.Random(3)
    names = [f"<unused{number}>" for number in range(6000)]
    names += ["<b>", "<body>", "<b", "a.c", "[x]", "(?:", "▁", "\\d"]
    some = [*names[::500], *names[6000:], "<unused", "abc", "<", ">", "bo", "dy>", "1", " ", "x"]
    pattern = re.compile(piece_tokenizer.any_of(names))
    texts = ["".join(dice.choices(some[:-1], k=dice.randrange(6))) for _ in range(3000)]
    texts += some
    answers = [bool(pattern.search(text)) for text in texts]
    assert answers == [any(name in text for name in names) for text in texts]
    assert {True, False} == set(answers)


def test_a_long_text_of_beginnings_of_names_is_looked_through_once() -> None:
    names = [f"<unused{number}>" for number in range(6000)]
    pattern = re.compile(piece_tokenizer.any_of(names))
    assert not pattern.search("<unused" * 300_000)  # 6,000 searches of 2 MB would take minutes
