"""A reader of HTML that insists on elements that open and close alike."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"img", "meta"}


class Page(HTMLParser):
    """A page's elements, in order, and the text within each; open and close must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, name, attrs):
        self.found.append((name, dict(attrs), []))
        if name not in VOID:
            self._open.append(len(self.found) - 1)

    def handle_endtag(self, name):
        assert self.found[self._open.pop()][0] == name

    def handle_data(self, data):
        for place in self._open:
            self.found[place][2].append(data)

    def texts(self, name: str) -> list[str]:
        return ["".join(words) for each, _, words in self.found if each == name]

    def rows(self) -> list[list[str]]:
        """Every table row, as its cells' words."""
        rows: list[list[str]] = []
        for name, _, words in self.found:
            if name == "tr":
                rows.append([])
            elif name in ("td", "th"):
                rows[-1].append("".join(words))
        return rows
