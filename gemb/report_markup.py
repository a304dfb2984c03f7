"""HTML whose text is escaped unless it says that it is markup."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Markup(str):
    """A string that is markup already, and goes to the page as it is."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | float) -> Markup:
    """Return an element; content that is no `Markup`, and all attributes, are escaped.

    Args:
        name: of the element.
        content: texts and elements within.
        attributes: class_ is class, and _ within a name is -.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{said}>{joined(content)}</{name}>")


def joined(content: Sequence[str], between: str = "") -> Markup:
    """Return texts and elements as one piece."""
    pieces = (each if isinstance(each, Markup) else html.escape(each) for each in content)
    return Markup(between.join(pieces))
