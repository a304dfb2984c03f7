"""Sizes and suggestions in words."""

from __future__ import annotations

import pytest

from gemb.io.text import did_you_mean, size_in_words


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
