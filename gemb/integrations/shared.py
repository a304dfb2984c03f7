"""One open model for all that name it: a program may make many of these objects."""

from __future__ import annotations

from functools import cache

from gemb.embedding.model import Model


def shared(model: Model | str) -> Model:
    """Return an open model; a reference is opened once in a process, and stays open."""
    return model if isinstance(model, Model) else _opened(model)


@cache
def _opened(reference: str) -> Model:
    return Model(reference)
