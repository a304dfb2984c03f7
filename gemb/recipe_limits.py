"""What a recipe's types cannot say alone: limits, names in YAML, values refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers that make sense; of a list, of each of its items."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def hold(self, number: float) -> bool:
        """Return whether the number is within; one that is not finite never is."""
        return (
            abs(number) != float("inf")
            and number == number
            and (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )

    def __str__(self) -> str:
        """Return `above 0`, `from 0 to 1`, or nothing."""
        words = (
            ("above", self.above),
            ("from", self.at_least),
            ("to below", self.below),
            ("to", self.at_most),
        )
        return " ".join(f"{word} {limit:g}" for word, limit in words if limit is not None)


@dataclass(frozen=True)
class Named:
    """The key in YAML, where Python has another word."""

    key: str


@dataclass(frozen=True)
class Refused:
    """A value that people will try, and why it is not taken."""

    value: str
    reason: str


ANY = Limits()
POSITIVE = Limits(above=0)
NOT_NEGATIVE = Limits(at_least=0)
ONE_OR_MORE = Limits(at_least=1)
SHARE = Limits(at_least=0, at_most=1)
LESS_THAN_ONE = Limits(at_least=0, below=1)
