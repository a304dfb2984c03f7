"""How far the vectors of many texts are, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemb.io.progress import CountProgress

if TYPE_CHECKING:
    from gemb.text_vectors import Done, Progress


@contextmanager
def text_progress(what: str, *, quiet: bool) -> Iterator[Progress]:
    """Yield what is to be called as texts get vectors; the bar comes with the first of them.

    Args:
        what: is embedded, in words.
        quiet: show nothing.
    """
    bar: CountProgress | None = None

    def show(done: Done) -> None:
        nonlocal bar
        if bar is None:
            work = done.all_characters
            bar = CountProgress(done.all_texts, what, "texts", quiet=quiet, work=work)
        bar.add(done.texts, done.tokens, done.characters)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
