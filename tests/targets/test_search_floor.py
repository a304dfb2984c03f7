"""The floor of a search of a target: among how many rows, and of which vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from gemb.embedding.vectors import VectorSpec
from gemb.models.profile import ModelProfile
from gemb.search.forms import Silent
from gemb.search.queries import Criteria, Query, SearchJob
from gemb.targets import search, sources
from gemb.targets.addresses import address_of
from gemb.targets.base import Content, FoundRow, PushRow
from gemb.targets.filters import Condition

DIM = 16
PROFILE = ModelProfile(
    dim=DIM,
    matryoshka_dims=(DIM, 8),
    max_tokens=512,
    closing_tokens=0,
    prompts={"query": "find: "},
    dtype="fp32",
    fingerprint="0123456789abcdef",
)
BACKGROUND = {"quartile": 0.17, "deviation": 0.055, "rows": 1000}
SCORE = 0.3  # above the floor of ten rows, under that of a million


def content(background: Mapping[str, object] | None = BACKGROUND) -> Content:
    spec = VectorSpec(
        model=PROFILE.fingerprint, prompt="{text}", dim=DIM, dtype="f16", max_tokens=512
    )
    return Content(spec=spec, kind="halfvec", model="mini", task="document", background=background)


class Encoder:
    """A model with one vector for all texts."""

    profile = PROFILE

    def tokenize(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([2, 3], np.int32) for _ in texts]

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        return np.full((len(batch), DIM), DIM**-0.5, np.float32)


class Million:
    """A target of a million rows, of which ten pass a filter; one is found."""

    name = "table docs"
    content = content()

    def fields(self) -> set[str]:
        return {"year"}

    def count(self, condition: Condition | None = None) -> int:
        return 10 if condition else 1_000_000

    def search(self, *_: object, **__: object) -> list[FoundRow]:
        row = PushRow("a", None, None, None, None, "a passage", "{}")
        return [FoundRow(row, SCORE)]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("where", "code"), [(None, 1), ("year = 2024", 0)])
def test_the_floor_is_that_of_the_rows_that_pass_the_filter(
    monkeypatch: pytest.MonkeyPatch, where: str | None, code: int
) -> None:
    monkeypatch.setattr(search, "open_target", lambda _: Million())
    job = SearchJob(
        queries=[Query("1", "question", "the query")],
        like=None,
        criteria=Criteria(where=where),
        task=None,
        dim=None,
        model="",
        force=False,
    )
    found = search.run_target(job, address_of("lance:db"), lambda _: Encoder(), Silent())
    assert found == code


def test_narrower_vectors_have_another_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.plugins, "describe", lambda _: PROFILE)
    monkeypatch.setattr(sources, "resolve", lambda *_, **__: "mini")
    assert sources.narrowed(content(), 8).background is None
    assert sources.narrowed(content(), DIM).background == BACKGROUND
