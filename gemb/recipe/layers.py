"""Which layers of a model to keep: `all`, `0,1,5-8` or `greedy:12`."""

from __future__ import annotations

from dataclasses import dataclass

_MOST = 10_000  # a range of more would only fill the memory


@dataclass(frozen=True)
class LayerChoice:
    """The layers to keep, or their number; neither: all."""

    layers: tuple[int, ...] | None = None  # from 0
    greedy: int | None = None  # how many stay when those are removed that change cosines least


def layer_choice(text: str) -> LayerChoice:
    """Return what `all`, `0,1,5-8` or `greedy:12` mean.

    Raises:
        ValueError: the text is not a choice of layers; the message says why.
    """
    word, colon, count = text.partition(":")
    if word == "greedy":
        if not (colon and _is_number(count) and 1 <= int(count) < _MOST):
            raise ValueError("greedy requires the number of layers to keep, as in greedy:12")
        return LayerChoice(greedy=int(count))
    return LayerChoice() if text == "all" else LayerChoice(layers=layers_in(text))


def layers_in(text: str) -> tuple[int, ...]:
    """Return the layers of `0,1,6-8`.

    Raises:
        ValueError: it is no such list; the message says why.
    """
    layers: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise ValueError("numbers from 0, as in 0-5,11")
        if last and int(last) < int(first):
            raise ValueError(f"{item.strip()} ends before it begins")
        if int(last or first) >= _MOST:
            raise ValueError(f"no model has layer {last or first}")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 100
