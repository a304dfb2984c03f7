"""The JSON files of a model folder: reading them, the numbers in them, and writing them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemb.errors import UsageError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UsageError: it is missing, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing from the model folder") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a JSON object is expected")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is no such file.

    Raises:
        UsageError: it holds no JSON object.
    """
    return read_json(path) if path.exists() else {}


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write JSON as Hugging Face's libraries do: UTF-8, indented unless it is huge.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def whole_number(path: Path, raw: Mapping[str, Any], key: str) -> int:
    """Return the whole number above zero at `key` of what was read from `path`.

    Raises:
        UsageError: it is absent, or no such number.
    """
    value = raw.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UsageError(f"{path}: {key} must be a positive whole number, not {value!r}")
    return value


def positive_number(path: Path, raw: Mapping[str, Any], key: str, default: float) -> float:
    """Return the finite number above zero at `key` of what was read from `path`.

    Raises:
        UsageError: it is no such number.
    """
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{path}: {key} must be a positive number, not {value!r}")
    return float(value)
