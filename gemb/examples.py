"""What a training example is: a query, its positive, perhaps hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Text(NamedTuple):
    """A text with its title, without a prompt."""

    text: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training data."""

    query: Text
    positive: Text
    negatives: tuple[Text, ...] = ()  # hard negatives of this query, hardest first
    place: str = ""  # for messages: pairs.jsonl:17
