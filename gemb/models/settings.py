"""config_sentence_transformers.json: the prompts and widths of a model folder, of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.models.config import whole_number
from gemb.models.prompts import ModelPrompts

SETTINGS = "config_sentence_transformers.json"


def prompts_of(folder: Path, settings: Mapping[str, Any]) -> ModelPrompts:
    """Return the folder's own prompts.

    Raises:
        UsageError: they are no texts under names, or the default prompt is none of them.
    """
    prompts = settings.get("prompts") or {}
    default = settings.get("default_prompt_name") or ""
    texts = prompts.values() if isinstance(prompts, dict) else [0]
    if not isinstance(default, str) or not all(isinstance(p, str | None) for p in texts):
        raise UsageError(
            f"{folder / SETTINGS}: prompts must map names to texts, and default_prompt_name be "
            "one of the names"
        )
    named = {name: text or "" for name, text in prompts.items()}
    return ModelPrompts(named, default=default, model=str(folder))


def default_dim_of(folder: Path, settings: Mapping[str, Any], dim: int) -> int:
    """Return the width that the folder gives vectors: sentence-transformers' `truncate_dim`.

    Raises:
        UsageError: it is no width.
    """
    if settings.get("truncate_dim") is None:
        return dim
    return min(dim, whole_number(folder / SETTINGS, settings, "truncate_dim"))


def matryoshka_dims_of(
    folder: Path, settings: Mapping[str, Any], default_dim: int, known: Sequence[int]
) -> tuple[int, ...]:
    """Return the trained widths, widest first: the folder's own, which is gemb's key, or the known.

    Args:
        folder: of the model.
        settings: of the folder.
        default_dim: the width that the folder gives vectors: it is one of them.
        known: of such a model where the folder names none, widest first; the first is the whole.

    Raises:
        UsageError: they are no widths of the model.
    """
    dims, dim = settings.get("matryoshka_dims"), known[0]
    if dims is None:
        return tuple(sorted({*known, default_dim}, reverse=True))
    whole = isinstance(dims, list) and all(type(d) is int and 0 < d <= dim for d in dims)
    if not whole or dim not in dims:
        raise UsageError(
            f"{folder / SETTINGS}: matryoshka_dims {dims!r} must be widths up to {dim}, and "
            f"{dim} itself"
        )
    return tuple(sorted({*dims, default_dim}, reverse=True))
