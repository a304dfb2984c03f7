"""A PostgreSQL server for the tests of this folder, and an index to push."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from fake_backend import Gemb
from postgres import Server, server
from pushed_rows import build

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server with pgvector; the test is skipped where it does not start."""
    started = server()
    yield started
    started.stop()


@pytest.fixture
def database(postgres: Server) -> str:
    """The address of an empty database."""
    import psycopg

    name = f"db{next(_numbers)}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        # In its collation letters of all languages have another case.
        locale = "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' TEMPLATE template0"
        connection.execute(f"CREATE DATABASE {name} {locale}")
    return postgres.url(name)


@pytest.fixture
def rows(gemb: Gemb) -> Gemb:
    """An index `rows.gemb` of five rows, by a model whose vectors are sums of those of words."""
    return build(gemb)
