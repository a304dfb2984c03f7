"""Sizes and suggestions in words, and how wide text is on a terminal."""

from __future__ import annotations

import pytest

from gemb.io.text import cut, did_you_mean, size_in_words, width_of, wrapped


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (512_000, "512 kB"),
        (33_400_000, "33.4 MB"),
        (1_250_000_000, "1.25 GB"),
    ],
)
def test_sizes_are_said_in_powers_of_ten(size: int, words: str):
    assert size_in_words(size) == words


def test_the_nearest_name_is_suggested_or_other_words():
    assert did_you_mean("serch", ["search", "embed"]) == "did you mean 'search'?"
    assert did_you_mean("zzz", ["search"], "there are search") == "there are search"
    assert did_you_mean("zzz", ["search"]) == ""


@pytest.mark.parametrize(
    ("text", "columns"),
    [("fox", 3), ("日本", 4), ("é", 1), ("e\u0301", 1), ("नि", 1), ("\u07a6", 0), ("🦊", 2)],
)
def test_a_text_is_as_wide_as_a_terminal_shows_it(text: str, columns: int):
    assert width_of(text) == columns


def test_wide_text_is_cut_and_wrapped_to_columns():
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 6) == "日本語"
    assert wrapped("日本語 fox", 6) == ["日本語", "fox"]
