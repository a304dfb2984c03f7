from __future__ import annotations

import time

import pytest

from gemb.texts.words import exact_terms, expanded, query_terms, wanted_stems, weights, words_of


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


def test_a_long_run_of_letters_takes_no_time() -> None:
    for text in ("aB" * 100_000, "aGVsbG8gd29ybGQ" * 14_000, "A" * 200_000, "1" * 200_000):
        began = time.process_time()
        assert "".join(text[word.start : word.end] for word in words_of(text)) == text
        assert text.lower() in expanded(text).replace(" ", "").lower()
        assert query_terms(text)
        exact_terms(text)
        assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("call cancelOrder now", "call cancel Order now cancelorder"),
        ("HTTPError, HTTPError", "HTTP Error, HTTP Error httperror"),
        ("cancel_order of shop.cart", "cancel_order of shop.cart"),
        ("SDL_CreateWindow(_runIt)", "SDL_Create Window(_run It) createwindow runit"),
        ("日本語の", " 日本 本語 語の の "),
        ("Plain words, UTF8 and ID", "Plain words, UTF8 and ID"),
    ],
)
def test_a_name_of_several_words_is_these_words_and_whole(text: str, seen: str) -> None:
    assert expanded(text) == seen


@pytest.mark.parametrize(
    ("query", "terms", "exact"),
    [
        (
            "where is cancelOrder",
            ["where", "is", "cancel", "order", "cancel order", "cancelorder"],
            ["cancel order"],
        ),
        (
            "shop.cart_total",
            ["shop", "cart", "total", "cart total", "shop cart total"],
            ["shop cart total"],
        ),
        ("draw a circle", ["draw", "a", "circle"], []),
        ("the of", ["the", "of"], []),
        ("refund policy", ["refund", "policy"], ["refund", "policy"]),
        ("how is it with that", ["how", "is", "it", "with", "that"], []),
        ("docs/guide.md", ["docs", "guide", "md", "docs guide md"], []),
        ("日本語", ["日本", "本語", "日本 本語"], ["日本", "本語", "日本 本語"]),
        ('" AND NOT (', ["and", "not"], []),
        ("", [], []),
    ],
)
def test_what_a_query_looks_for(query: str, terms: list[str], exact: list[str]) -> None:
    assert query_terms(query) == [f'"{term}"' for term in terms]
    if query != '" AND NOT (':
        assert exact_terms(query) == [f'"{term}"' for term in exact]


def test_one_character_is_the_beginning_of_a_pair() -> None:
    assert query_terms("語") == ['"語"*']
