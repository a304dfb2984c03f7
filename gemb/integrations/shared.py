"""One open model for all that name it: a program may make many of these objects."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemb.embedding.model import Model


def shared(model: Model | str, *, download: bool = True) -> Model:
    """Return an open model; a reference is opened once in a process, and stays open.

    Args:
        model: an open one, or a reference.
        download: whether a model of the hub that is not here is fetched.
    """
    return _opened(model, download, os.getpid()) if isinstance(model, str) else model


@cache
def _opened(reference: str, download: bool, process: int) -> Model:
    """Return the model of a reference in this process: a fork has none of its parent's threads."""
    from gemb.embedding.model import Model  # not before there is a text: it loads NumPy

    return Model(reference, download=download)
