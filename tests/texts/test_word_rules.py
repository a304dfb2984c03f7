from __future__ import annotations

import time

import numpy as np
import pytest

from gemb.texts.words import Promise, wanted_stems, weights, words_of


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("cancel_order, cancelOrder", ["cance", "order", "cance", "order"]),
        ("HTTPError 404", ["http", "error", "404"]),
        ("the class passes", ["the", "class", "passe"]),
        ("Grüße aus Köln", ["grüße", "aus", "köln"]),
        ("日本語", ["日本", "語"]),
        ("_ - !", []),
    ],
)
def test_words_are_told_apart_and_stemmed_alike(text: str, stems: list[str]) -> None:
    words = list(words_of(text))
    assert [word.stem for word in words] == stems
    assert all(text[word.start : word.end].lower().startswith(word.stem) for word in words)


def test_stop_words_count_where_there_are_no_others() -> None:
    assert wanted_stems("how do I cancel the orders") == {"cance", "order"}
    assert wanted_stems("to be or not to be") == {"to", "be", "or", "not"}


def test_a_rare_stem_weighs_more() -> None:
    found = weights(frozenset({"order", "refun"}), ["orders", "an order", "refunded order"])
    assert found["refun"] > found["order"] > 0


def test_terms_are_those_of_the_lines_and_come_from_all_queries_in_turn() -> None:
    promise = Promise.of(["cancelled orders of a day", "what is a refund", "the"])
    assert promise.terms == ("cance", "refun", "the", "order", "day")
    assert set(Promise.of(["cancelled orders"]).terms) == wanted_stems("cancelled orders")


def test_passages_that_share_rare_words_come_first() -> None:
    promise = Promise.of(["cancel the order"])
    text = "Cancellation of it.|Orders.|Order CANCELLED.|Nothing.|An order."
    ends = np.cumsum([len(part) + 1 for part in text.split("|")]).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    scores = promise.scores(promise.found(text, spans))
    assert np.argsort(-scores, kind="stable").tolist() == [2, 0, 1, 4, 3]


def test_a_long_run_of_letters_takes_no_time() -> None:
    for text in ("aB" * 100_000, "aGVsbG8gd29ybGQ" * 14_000, "A" * 200_000, "1" * 200_000):
        began = time.process_time()
        assert "".join(text[word.start : word.end] for word in words_of(text)) == text
        assert time.process_time() - began < 5
