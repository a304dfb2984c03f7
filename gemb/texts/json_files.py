"""Files of JSON that are not one object a line: an array, or objects over several lines."""

from __future__ import annotations

import re
import shlex

from gemb.errors import UsageError
from gemb.texts.contents import STDIN, shown
from gemb.texts.lines import Line
from gemb.texts.notebooks import SUFFIX as NOTEBOOK
from gemb.texts.tables import json_value

RAW = "-I lines takes it raw"
_KEY = r'\{\s*"(?:[^"\\]|\\.){0,200}"\s*:'
_BEGUN = re.compile(rf"\s*(?:{_KEY}|\[\s*{_KEY})".encode())


def refuse_pretty(first: Line, last: Line | None, path: str, *, names_options: bool) -> None:
    """Refuse JSON that goes over several lines.

    Args:
        first: a line that is a brace or a bracket alone.
        last: the next one that is not blank; `first`, where there is none.
        path: for messages.
        names_options: messages name options of `gemb embed`.

    Raises:
        UsageError: an object or array begins in the first line and goes on in the next one.
    """
    assert last is not None, "it is a line"
    begins = (b'"', b"{", b"[", b"}", b"]")
    goes_on = last is not first and last.data.strip().startswith(begins)
    if not goes_on and not path.lower().endswith(".json"):
        return
    if first.data.strip() == b"[":
        what, query = "is one JSON array; of an array make lines", "-c '.[]'"
    elif path.lower().endswith(NOTEBOOK):
        query = "-r '.cells[].source[]'"
        what = (
            "is a notebook: gemb search reads its cells, and so does "
            "gemb index build --passages auto; its lines"
        )
    else:
        what, query = "is a JSON object over several lines; of it make lines", "-c ."
    raise UsageError(f"{shown(path)} {what}: {_jq(query, path, names_options=names_options)}")


def is_json_object(first: Line, path: str, *, names_options: bool) -> bool:
    """Return whether a first line is a JSON object, of a file whose name does not say JSON lines.

    Raises:
        UsageError: it begins JSON that is none of one object a line.
    """
    name, is_json = shown(path), path.lower().endswith(".json")
    lines_of_array = "of an array make lines: " + _jq("-c '.[]'", path, names_options=names_options)
    if first.error:
        if is_json:
            raise UsageError(f"{name}: its first line has {first.size} bytes; {lines_of_array}")
        return False
    begin = first.data.lstrip()[:1]
    value = json_value(first.data)[0] if begin in (b"{", b"[") else None
    is_rows = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    begins_json = value is None and _BEGUN.match(first.data) is not None
    if is_rows or (begin == b"[" and (is_json or begins_json)):
        raise UsageError(f"{name} is one JSON array; {lines_of_array}")
    if not isinstance(value, dict) and (begins_json or (is_json and begin == b"{")):
        raise UsageError(
            f"{name}: its first line is not a whole JSON object; of objects over several lines "
            f"make lines: {_jq('-c .', path, names_options=names_options)}"
        )
    return isinstance(value, dict)


def _jq(query: str, path: str, *, names_options: bool) -> str:
    """Return what makes lines of a file of JSON, and, where that can be said, what takes them."""
    file = "" if path == STDIN else f" {shlex.quote(shown(path))}"
    taken = f" | gemb embed; {RAW}" if names_options else ""
    return f"jq {query}{file}{taken}"
