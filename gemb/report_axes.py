"""Round ticks for an axis, and numbers in words that fit them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values that begins and ends where it must, with round ticks within."""

    low: float
    high: float
    ticks: tuple[float, ...]
    power: int  # ticks and read-outs are told in units of 10^power
    decimals: int  # of a tick, in that unit

    def label(self, value: float) -> str:
        """Return a tick's words."""
        return f"{value / 10**self.power:,.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")

    @property
    def unit(self) -> str:
        """What the labels leave out: ×10⁻⁵, thousand, million; or nothing."""
        named = {0: "", 3: "thousand", 6: "million", 9: "billion"}
        digits = str(self.power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return named.get(self.power, f"×10{digits}")


def axis(low: float, high: float, *, count: int, is_round: bool) -> Axis:
    """Return an axis over at least [low, high].

    Args:
        low: finite.
        high: finite, not below `low`.
        count: about how many ticks.
        is_round: let the axis begin and end at a tick; else it is [low, high] itself.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: a frame around it
        margin = abs(high) / 2 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    if not is_round:
        ticks = [tick for tick in ticks if low - 1e-9 * step <= tick <= high + 1e-9 * step]
    power = _power(max(map(abs, ticks), default=max(abs(low), abs(high))))
    return Axis(
        low=ticks[0] if is_round else low,
        high=ticks[-1] if is_round else high,
        ticks=tuple(ticks),
        power=power,
        decimals=max(0, power - math.floor(math.log10(step) + 1e-9)),
    )


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _power(largest: float) -> int:
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    if exponent >= 4:
        return exponent // 3 * 3
    return exponent if exponent < -2 else 0
