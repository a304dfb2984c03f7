"""Questions, passages, hits, and how hits are shown.

`files` and `index` answer questions, `corpus` holds passages, `forms` prints hits, `interface` is
for Python programs. The package can be called: `gemb.search(question, paths)`.
May import: `index`, `evaluation`, and what they may import.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemb.search.interface import SearchHit


class _Callable(ModuleType):
    """This package, which is a function, too: a program would look for `gemb.search` as one."""

    def __call__(self, *args: Any, **kwargs: Any) -> "list[SearchHit]":  # noqa: ANN401
        """Search files; see `gemb.search.interface.search`."""
        from gemb.search.interface import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
