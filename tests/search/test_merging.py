"""The hits of several searches as one list."""

from __future__ import annotations

import dataclasses

from gemb.embedding.vectors import VectorSpec
from gemb.index.floor import USUAL, Background
from gemb.search.interface import SearchHit, SearchHits
from gemb.search.merging import merged
from gemb.search.queries import Scale, Unsure

# Of a model all of whose texts are alike: what chance explains scores 0.8.
HIGH = Background(quartile=0.8, deviation=0.02, rows=USUAL.rows)


def searched(
    space: str,
    *scores: float,
    background: Background = USUAL,
    unsure: Unsure | None = None,
    named: float = 0.0,
) -> SearchHits:
    """Return hits, in order, whose texts are their scores; the one with `named` has very names."""
    hits = [
        SearchHit(score=score, text=f"{space} {score}", is_named=score == named) for score in scores
    ]
    return SearchHits(hits, unsure, Scale(space, background))


def texts(*searches: SearchHits, k: int = 10) -> list[str]:
    return [hit.text for hit in merged(searches, k)]


def test_in_one_space_cosines_are_compared_as_they_are() -> None:
    other = dataclasses.replace(USUAL, quartile=0.3, deviation=0.01)
    files, index = searched("a", 0.7, 0.4), searched("a", 0.6, 0.5, background=other)
    assert texts(files, index, k=3) == ["a 0.7", "a 0.6", "a 0.5"]


def test_of_several_spaces_they_are_held_against_what_chance_gives() -> None:
    # 0.95 is seven and a half deviations above chance there, 0.85 two and a half.
    high = searched("b", 0.95, 0.85, background=HIGH)
    low = searched("a", 0.7, 0.5, 0.25)
    assert texts(high, low) == ["a 0.7", "b 0.95", "a 0.5", "b 0.85", "a 0.25"]
    assert texts(low, high) == texts(high, low)


def test_the_size_of_a_corpus_whose_background_was_measured_counts() -> None:
    # The best of ten by chance is lower than the best of a thousand.
    small = dataclasses.replace(USUAL, rows=10)
    assert texts(searched("a", 0.4), searched("b", 0.42, background=small)) == ["a 0.4", "b 0.42"]


def test_very_names_come_first_as_in_their_own_search() -> None:
    files = searched("a", 0.45, 0.6, named=0.45)
    assert texts(files, searched("a", 0.62, 0.5)) == ["a 0.45", "a 0.62", "a 0.6", "a 0.5"]


def test_one_search_alone_keeps_its_order() -> None:
    alone = searched("a", 0.4, 0.6)
    assert merged([alone], 10) is alone


def test_what_one_search_is_not_sure_of_all_are_not() -> None:
    assert merged([searched("a", 0.5), searched("b", unsure="time")], 10).unsure == "time"
    assert merged([searched("a", 0.5), searched("b", 0.4)], 10).unsure is None
    assert merged([searched("a"), searched("b")], 10) == []


def test_a_background_without_a_deviation_is_the_usual_one() -> None:
    flat = Background(quartile=0.5, deviation=0.0, rows=1)
    assert texts(searched("a", 0.6, background=flat), searched("b", 0.6)) == ["b 0.6", "a 0.6"]


def test_vectors_of_one_model_prompt_and_width_are_one_space() -> None:
    spec = VectorSpec(model="m", prompt="{text}", dim=256, dtype="f16", max_tokens=512)
    same = dataclasses.replace(spec, dtype="int8", max_tokens=2048)
    assert same.space == spec.space
    for change in ({"dim": 128}, {"model": "n"}, {"prompt": "a: {text}"}):
        assert dataclasses.replace(spec, **change).space != spec.space
