"""Addresses of targets, and that no password in one is told."""

from __future__ import annotations

import pytest

from gemb.errors import UsageError
from gemb.targets.addresses import address_of, unspoken


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:secret@host/db",
        "postgres://u:se/cret@host/db",
        "postgres://u:secret?x@host/db",
        "postgres://u:secret#x@host/db",
        "postgres://host/db?password=secret",
        "postgres://host/db?PASSWORD=secret",
        "qdrant:http://u:secret@host",
        "qdrant:http://host?api_key=secret",
        "lance:s3://key:secret@bucket/path",
        "lance:s3://key:se/cret@bucket/path",
        "s3://key:secret@bucket/docs.lance",
        "lance:s3://bucket/path?aws_secret_access_key=secret",
        "mysql://u:secret@host/db",
        "mysql://u:se/cret@host/db?password=secret",
    ],
)
def test_a_password_is_refused_and_not_told(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        address_of(text)
    message = str(raised.value)
    assert "cret" not in message.replace("AWS_SECRET_ACCESS_KEY", "")
    kind = "no target; name " if text.startswith("mysql") else "a password in the address"
    assert kind in message


@pytest.mark.parametrize(
    ("text", "kind", "place", "table", "shown"),
    [
        (
            "postgres://me@host:5432/db?user=me@corp",
            *("postgres", "postgres://me@host:5432/db?user=me@corp", "", "postgres://host:5432/db"),
        ),
        (
            "postgres://host:5432/db?user=me@corp",
            *("postgres", "postgres://host:5432/db?user=me@corp", "", "postgres://host:5432/db"),
        ),
        ("postgresql://[::1]:5432/db", "postgres", None, "", "postgres://[::1]:5432/db"),
        ("qdrant:http://host:6333", "qdrant", "http://host:6333", "", "http://host:6333"),
        ("lance:a/b", "lance", "a/b", "", "a/b"),
        ("lance:a/b.lance", "lance", "a/b.lance", "", "a/b.lance"),
        ("a/b.lance/", "lance", "a", "b", "a"),
        ("b.lance", "lance", ".", "b", "."),
        ("s3://bucket/a@b/c.lance", "lance", "s3://bucket/a@b", "c", "s3://bucket/a@b"),
    ],
)
def test_addresses(text: str, kind: str, place: str | None, table: str, shown: str) -> None:
    address = address_of(text)
    assert (address.kind, address.place, address.table) == (kind, place or text, table)
    assert address.shown == shown


@pytest.mark.parametrize("place", ["", "localhost:6333", "10.0.0.7:6333/", "//localhost:6333"])
def test_a_host_is_no_folder_of_qdrant(place: str) -> None:
    with pytest.raises(UsageError, match="qdrant: needs a URL with http://"):
        address_of(f"qdrant:{place}")
    assert address_of("qdrant:data:old/db").place == "data:old/db"


def test_what_a_library_says_of_a_secret_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert unspoken("refused: hunter2\nat line 1") == "refused: ***"
    place = "/sources/lance-file-13.0.0/src/writer.rs:191:9"
    assert unspoken(f"LanceError(IO): cannot write, {place}") == "LanceError(IO): cannot write"
