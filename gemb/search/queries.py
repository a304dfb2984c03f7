"""What is asked: a query of the command line, or a file of many."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.text import visible

TEXT_NAMES = ("text", "query")


@dataclass(frozen=True, slots=True)
class Query:
    """One question."""

    id: str  # its id in a file of queries, else the number of its line
    text: str
    place: str  # where it stands, for messages


def from_words(text: str) -> Query:
    """Return the query of the command line.

    Raises:
        UsageError: it is empty, or not UTF-8.
    """
    return Query("1", _checked(text, "the query"), "the query")


def read_queries(path: str) -> list[Query]:
    """Return the queries of a file, in order: JSON lines with `text` and perhaps `_id`, or lines.

    Args:
        path: the file; - is standard input.

    Raises:
        UsageError: there is no such file, no query in it, an empty one, or an id twice.
    """
    name = "standard input" if path == "-" else visible(path)
    found: list[Query] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if not line.strip():
            continue
        query = _query(line, number, f"{name}, line {number}")
        if query.id in seen:
            raise UsageError(f"{query.place}: the id {query.id!r} is that of {seen[query.id]}, too")
        seen[query.id] = f"line {number}"
        found.append(query)
    if not found:
        raise UsageError(f"{name} has no query")
    return found


def _content(path: str) -> bytes:
    if path == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed; name a file of queries")
        data = sys.stdin.buffer.read()
    else:
        if not Path(path).exists():
            raise UsageError(f"no such file: {visible(path)}")
        if Path(path).is_dir():
            raise UsageError(f"{visible(path)} is a folder; queries are the lines of a file")
        data = Path(path).read_bytes()
    return data.removeprefix(b"\xef\xbb\xbf")


def _query(line: bytes, number: int, place: str) -> Query:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise UsageError(f"{place}: no valid UTF-8") from None
    if not text.startswith("{"):
        return Query(str(number), text, place)
    import orjson

    from gemb.datasets.beir import text_id

    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{place}: no valid JSON: {error}") from None
    words = next((row[name] for name in TEXT_NAMES if isinstance(row.get(name), str)), None)
    if words is None:
        has = ", ".join(visible(name, 40) for name in row) or "nothing"
        raise UsageError(f"{place}: no 'text' or 'query'; it has: {has}")
    return Query(text_id(row) or str(number), _checked(words, place), place)


def _checked(text: str, place: str) -> str:
    from gemb.texts.records import unfit

    wrong = unfit(text)
    if wrong:
        raise UsageError(f"{place}: {wrong.message.replace('the text', 'it')}")
    return text
