"""Errors of a worker as JSON, for the driver to raise: Ray keeps the words alone."""

from __future__ import annotations

import json

from gemb import errors
from gemb.errors import GembError

PORTABLE = (GembError, OSError, MemoryError)


def to_json(error: BaseException) -> str:
    """Return one of `PORTABLE` as JSON."""
    if isinstance(error, OSError):
        name = None if error.filename is None else str(error.filename)
        if error.errno is not None:
            return json.dumps({"system": [error.errno, error.strerror, name]})
        return json.dumps({"kind": "GembError", "message": str(error)})
    if isinstance(error, MemoryError):
        return json.dumps({"memory": str(error)})
    return json.dumps({"kind": type(error).__name__, "message": str(error)})


def from_json(text: str) -> Exception:
    """Return the error that `to_json` was given."""
    entries = json.loads(text)
    if "system" in entries:
        return OSError(*entries["system"])
    if "memory" in entries:
        return MemoryError(entries["memory"])
    kind = getattr(errors, entries["kind"], GembError)
    error: GembError = kind(entries["message"])
    return error
