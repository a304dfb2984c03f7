"""Search by words: FTS5's BM25, in an index and without one."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.errors import GembError
from gemb.index import bm25
from gemb.index.bm25 import by_words, with_all
from gemb.index.hits import Hit
from gemb.index.schema import TABLES
from gemb.index.words import add_words, add_words_of, drop_words_of, words_table
from gemb.search.answers import above
from gemb.search.queries import Criteria, from_words
from gemb.texts.words import MOST, exact_terms, query_terms, query_words


def connect(rows: Sequence[tuple[str | None, str]]) -> sqlite3.Connection:
    """An index's tables, with these titles and texts; the field `odd` is that of the slot."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(TABLES)
    for slot, (title, text) in enumerate(rows):
        connection.execute(
            "INSERT INTO rows(slot, title, text, kept, digest, crc) VALUES(?, ?, ?, ?, x'', 0)",
            (slot, title, text, f'{{"odd": {slot % 2}}}'),
        )
    add_words_of(connection)
    return connection


def table_of(rows: Sequence[tuple[str | None, str]]) -> sqlite3.Connection:
    """The words of passages with these titles and texts."""
    table = words_table()
    add_words(table, 0, rows[:1])
    add_words(table, 1, rows[1:])
    return table


def formula(query: Sequence[str], rows: Sequence[tuple[str | None, str]]) -> list[float]:
    """BM25 as https://www.sqlite.org/fts5.html#the_bm25_function says it, title weight 2."""
    tokens = [((title or "").split(), text.split()) for title, text in rows]
    lengths = [len(title) + len(text) for title, text in tokens]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(rows)
    for word in query:
        found_in = sum(word in title or word in text for title, text in tokens)
        idf = max(math.log((len(rows) - found_in + 0.5) / (found_in + 0.5)), 1e-6)
        for row, (title, text) in enumerate(tokens):
            often = 2 * title.count(word) + text.count(word)
            scores[row] += idf * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * lengths[row] / mean))
    return scores


def random_rows(count: int, *, titles: bool) -> list[tuple[str | None, str]]:
    """Rows of words of five letters: the first are common, the last are rare."""
    draw = random.Random(1)
    vocabulary = [f"wor{number:02}" for number in range(40)]
    weights = [1 / (1 + number) for number in range(40)]

    def words(most: int) -> str:
        return " ".join(draw.choices(vocabulary, weights, k=draw.randint(1, most)))

    return [(words(4) if titles else None, words(30)) for _ in range(count)]


def test_rows_are_ranked_by_the_formula():
    rows = random_rows(200, titles=True)
    query = ["wor01", "wor07", "wor30", "absent"]
    expected = formula(query, rows)
    found = by_words(connect(rows), " ".join(query), 200, share=0)
    assert len(found.rows) == sum(score > 0 for score in expected)
    np.testing.assert_allclose(found.scores, [expected[row] for row in found.rows], rtol=1e-9)
    assert (np.diff(found.scores) <= 0).all()
    equal = np.diff(found.scores) == 0
    assert (np.diff(found.rows)[equal] > 0).all()
    assert (
        by_words(connect(rows), " ".join(query), 3, share=0).rows.tolist()
        == found.rows[:3].tolist()
    )


def test_without_an_index_the_ranking_is_the_same():
    rows = random_rows(300, titles=True)
    query = "wor02 wor09 wor35"
    of_index = by_words(connect(rows), query, 300, share=0)
    of_passages = by_words(table_of(rows), query, 300, share=0)
    assert of_passages.rows.tolist() == of_index.rows.tolist()
    np.testing.assert_array_equal(of_passages.scores, of_index.scores)
    rows = random_rows(50, titles=False)
    expected = by_words(connect(rows), query, 9)
    assert by_words(table_of(rows), query, 9).rows.tolist() == expected.rows.tolist()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("refunding", "Refunds are paid"),
        ("café", "CAFÉS"),
        ("cafe\u0301", "a café here"),
        ("writing boolean", "def write_boolean(self)"),
        ("c++ operator", "an operator"),
        ('"order" AND NOT (', "an order"),
        ("don't", "Don't"),
        ("text: order*", "orders"),
    ],
)
def test_a_word_is_found_in_another_form(query, text):
    rows = [(None, text), (None, "something else"), (None, "of no account")]
    assert by_words(connect(rows), query, 5, share=0).rows.tolist() == [0]
    assert by_words(table_of(rows), query, 5, share=0).rows.tolist() == [0]


@pytest.mark.parametrize(
    "query", ["", "...", "* - \" ' ()", "_ __", "\x00\ud800\U0001f600", "absent"]
)
def test_a_query_without_words_that_are_there_finds_nothing(query):
    assert by_words(connect([(None, "an order")]), query, 5).rows.tolist() == []
    assert by_words(table_of([(None, "an order")]), query, 5).rows.tolist() == []
    assert by_words(table_of([]), query, 5).rows.shape == (0,)


def test_rows_with_few_of_the_words_are_none():
    rows = [
        (None, "red green blue"),
        (None, "red green"),
        (None, "red"),
        *[(None, "one three five")] * 20,
    ]
    connection = connect(rows)
    assert by_words(connection, "red green blue", 9).rows.tolist() == [0]
    assert by_words(connection, "red green blue", 9, share=0.5).rows.tolist() == [0, 1]
    assert by_words(connection, "red green blue", 9, share=0).rows.tolist() == [0, 1, 2]
    assert by_words(connection, "red violet", 9).rows.tolist() == []  # violet is nowhere


def test_a_filter_comes_before_the_k_best():
    rows = [(None, "order " * (10 - number)) for number in range(8)]
    odd = np.arange(1, 8, 2)
    assert by_words(connect(rows), "order", 3, odd, share=0).rows.tolist() == [1, 3, 5]


def test_common_words_find_no_rows_of_their_own(monkeypatch):
    monkeypatch.setattr(bm25, "MOST_FOUND", 4)
    rows = [
        (None, "the cat"),
        (None, "the dog the"),
        (None, "dog"),
        (None, "the"),
        *[(None, "the x")] * 3,
    ]
    connection = connect(rows)
    assert by_words(connection, "the dog", 9, share=0).rows.tolist() == [2, 1]
    # Both are too common: only a row with both of them can be among the best.
    assert by_words(connection, "x the", 9, share=0).rows.tolist() == [4, 5, 6]
    monkeypatch.setattr(bm25, "MOST_FOUND", 2)
    assert by_words(connection, "x the", 9, share=0).rows.tolist() == [4, 5, 6]
    assert by_words(connection, "the cat x", 9, share=0).rows.tolist() == [0]


def test_a_row_that_was_removed_is_not_found():
    connection = connect([(None, "an order"), (None, "orders"), (None, "else"), (None, "other")])
    drop_words_of(connection, [0])
    connection.execute("DELETE FROM rows WHERE slot = 0")
    assert by_words(connection, "order", 5, share=0).rows.tolist() == [1]


def test_a_damaged_table_of_words_is_one_line():
    connection = connect([(None, "an order")])
    connection.execute("DELETE FROM words_data")
    with pytest.raises(
        GembError, match=r"^the rows of the index cannot be read: .*; gemb index ver"
    ):
        by_words(connection, "order", 5)


def test_a_passage_as_a_query_is_cut_to_its_first_words():
    assert query_words("A b a B, ab") == ["a", "b", "ab"]
    assert len(query_words(" ".join(map(str, range(2 * MOST))))) == MOST


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_nothing_in_a_query_is_an_operator(text):
    rows = [
        (None, "an order"),
        ("title", "of text"),
        (None, text.encode(errors="replace").decode()),
    ]
    found = by_words(connect(rows), text, 9, share=0)
    assert set(found.rows.tolist()) <= {0, 1, 2}
    table = table_of(rows)
    found = by_words(table, text, 9, share=0, terms=query_terms(text))
    assert set(found.rows.tolist()) <= {0, 1, 2}
    assert set(with_all(table, exact_terms(text)).tolist()) <= {0, 1, 2}


def test_what_has_all_the_words_is_better_than_chance_whatever_its_cosine():
    vector = np.zeros(2, np.float32)
    hits = [
        Hit(score=0.4, text="near in meaning"),
        Hit(score=0.2, text="of gperf", title="The ACE"),
        Hit(score=0.1, text="of gperf"),
    ]

    def kept(text: str, hits: list[Hit], **wanted: object) -> list[float]:
        found = above(from_words(text), vector, hits, 0.35, Criteria(**wanted))
        return [hit.score for hit in found.hits]

    assert kept("ace gperf", hits) == [0.4, 0.2]
    assert kept("how is ace gperf", hits[1:]) == [0.2]
    assert kept("?!", hits) == [0.4]
    assert kept("ace gperf", hits, min_score=0.35) == [0.4]  # a floor that was asked for is one
    assert kept("ace gperf", hits, is_weak=True) == [0.4, 0.2, 0.1]
    assert above(from_words("absent"), vector, hits[1:], 0.35, Criteria()).best_below == 0.2


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("cancelOrder", [1, 2]),
        ("cancel_order", [1, 2]),
        ("cancelorder", [1]),
        ("order", [0, 1, 2]),
        ("検索", [3]),
        ("索", [3]),
        ("語", [3]),
    ],
)
def test_names_are_found_by_their_words_and_whole(query: str, rows: list[int]) -> None:
    passages = [
        (None, "an order to cancel"),
        (None, "def cancelOrder(self)"),
        (None, "cancel_order(1)"),
        (None, "日本語の検索"),
        *[(None, "nothing")] * 9,
    ]
    for table in (table_of(passages), connect(passages)):
        found = by_words(table, query, 9, share=0, terms=query_terms(query)).rows.tolist()
        assert set(found[: len(rows)]) == set(rows)
        assert with_all(table, exact_terms(query)).tolist() == rows
        assert with_all(table, exact_terms(query), 1).tolist() == rows[:1]


def test_nothing_has_all_of_no_terms() -> None:
    assert with_all(table_of([(None, "a b")]), []).tolist() == []
    assert with_all(table_of([(None, "a b"), (None, "b")]), ['"b"', '"a"']).tolist() == [0]


def test_a_form_of_a_name_that_no_row_has_is_not_asked_of_it() -> None:
    rows = [(None, "def cancel_order"), (None, "an order"), *[(None, "nothing here")] * 20]
    table = table_of(rows)
    terms = query_terms("cancelOrder")
    assert by_words(table, "cancelOrder", 5, terms=terms).rows.tolist() == [0]
    assert by_words(table, "zebra order", 5, terms=query_terms("zebra order")).rows.tolist() == []
