"""The names of the fields that rows keep, which a table knows of all its rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fake_backend import Gemb
from gemb.embedding.vectors import VectorSpec
from gemb.targets.addresses import address_of
from gemb.targets.base import MOST_FIELDS, Content
from gemb.targets.connect import open_target
from gemb.targets.filters import parsed, with_kept
from pushed_rows import embedded_lines, push


@pytest.fixture(params=["postgres", "lance", "qdrant"])
def place(request: pytest.FixtureRequest, gemb: Gemb) -> str:
    """The address of an empty database of each kind."""
    if request.param == "postgres":
        return request.getfixturevalue("database")
    pytest.importorskip({"lance": "lancedb", "qdrant": "qdrant_client"}[request.param])
    return f"{request.param}:{gemb.folder / 'db'}"


def test_a_field_hides_a_column_however_late_it_comes(gemb: Gemb, place: str) -> None:
    lines = embedded_lines(1202)

    def kept(number: int, **fields: object) -> None:
        lines[number] = json.dumps(json.loads(lines[number]) | fields).encode() + b"\n"

    def check(where: str, wanted: set[str], fields: tuple[str, ...]) -> None:
        target = open_target(address_of(place))
        try:
            content = target.content
            condition = with_kept(parsed(where), content.fields)
            hits = target.search(
                content.vectors(target.read(["row0"])["row0"][None])[0], 5, condition
            )
        finally:
            target.close()
        assert content.fields == fields
        assert {hit.row.id for hit in hits} == wanted

    kept(1200, path="/late")
    push(gemb, "-", place, stdin=b"".join(lines[:1201]))
    check("path = '/late'", {"row1200"}, ("path", "n"))
    kept(1201, line=7, **{"it's \u00fc": True})
    push(gemb, "-", place, stdin=b"".join(lines[1201:]))
    check("line = 7", {"row1201"}, ("line", "path", "it's \u00fc", "n"))
    pushed = push(gemb, "-", place, stdin=b"".join(lines))
    assert (pushed["unchanged"], pushed["rows"]) == (1202, 1202)


def test_of_very_many_names_those_of_columns_are_kept() -> None:
    spec = VectorSpec(model="m", prompt="{text}", dim=8, dtype="f32", max_tokens=32)
    content = Content(spec=spec, kind="vector", model="", task="document")
    assert content.with_fields_of(["{}"]) == content
    kept = [json.dumps({f"a{n}": n}) for n in range(2 * MOST_FIELDS)]
    many = content.with_fields_of([*kept, '{"title": 1}']).with_fields_of(kept)
    assert len(many.fields) == MOST_FIELDS
    assert many.fields[:2] == ("title", "a0")
    assert Content.from_json(many.to_json()) == many
    assert Content.from_json(replace(content, fields=(1,)).to_json()) is None
