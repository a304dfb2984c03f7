"""Choose a type for each class of tensors: sensitivity by class, and the best mix of a given size.

A file's error is 1 minus the mean cosine of its vectors to the source's. The errors of the classes
of tensors nearly add up: each class's share is what its raising to 8 bits takes away from a file
of few bits. A type's error relative to another's is that of its rounding, so one run for each class
predicts every mix, and the best one that fits is found exactly (a knapsack).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gemb.backend import Quantization, Rule
from gemb.errors import NegativeAnswer
from gemb.models.gguf_header import ALIGNMENT
from gemb.models.tensors import MATRICES
from gemb.weights.quantize import Candidate, Quantizer, TensorPlans
from gemb.weights.types import is_matrix, quantization


@dataclass(frozen=True, kw_only=True)
class Share:
    """The gain from storing one class of tensors in a better type."""

    name: str
    raised: Candidate
    bytes_more: int
    error_less: float  # of 1 - mean cosine
    share: float  # of the whole error, 0 to 1


def sensitivity(
    quantizer: Quantizer, base: Quantization, raised_to: str
) -> Iterator[Candidate | Share]:
    """Yield the file that is all of the base type, then the gain of each class in a better type.

    Args:
        quantizer: where files are made.
        base: the type of all other tensors.
        raised_to: the better type, of one class at a time.
    """
    unraised = quantizer.made(quantizer.planned(base), keep=False)
    yield unraised
    for name, pattern in MATRICES.items():
        rule = Rule(pattern, raised_to)
        file = quantizer.planned(replace(base, rules=(rule, *base.rules)))
        raised = quantizer.made(file, keep=False)
        less = raised.measures.mean_cosine - unraised.measures.mean_cosine
        error = max(1e-12, 1 - unraised.measures.mean_cosine)
        yield Share(
            name=name,
            raised=raised,
            bytes_more=raised.measures.size_bytes - unraised.measures.size_bytes,
            error_less=less,
            share=less / error,
        )


# Rounding error of a type: root mean square over that of the weights, of matrices of the real
# EmbeddingGemma-300M rounded by llama.cpp. The classes differ from each other by a tenth at most.
ROUNDING = {
    "bf16": 0.0017,
    "q8_0": 0.0055,
    "q6_k": 0.0185,
    "q5_k": 0.0370,
    "q5_1": 0.0387,
    "q5_0": 0.0443,
    "q4_k": 0.0730,
    "q4_0": 0.0888,
    "q3_k": 0.1540,
    "q2_k": 0.3020,
}
MIXED = ("bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k")  # types that a mix is made of
_BASE, _RAISED = "q4_0", "q8_0"
_HEADER_GROWTH = 128  # most bytes by which a header outgrows its source's: two keys, alignment


def fitting_mix(quantizer: Quantizer, size_bytes: int, name: str) -> Quantization:
    """Return the mix with the least error that fits into a file of this size.

    Args:
        quantizer: where the files are made that are measured: one for each class, and one more.
        size_bytes: of the whole file.
        name: of the mix.

    Raises:
        NegativeAnswer: no mix fits.
    """
    plans = {
        type_: quantizer.planned(quantization("q8_0", [Rule("weight$", type_)])).plan
        for type_ in MIXED
    }
    room = size_bytes - quantizer.source.other_bytes - _HEADER_GROWTH
    room -= sum(
        -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
        for tensor in plans["q8_0"]
        if not is_matrix(tensor.shape)
    )
    sizes = {
        (kind, type_): _bytes_of(plans[type_], MATRICES[kind])
        for kind in MATRICES
        for type_ in MIXED
    }
    least = sum(min(sizes[kind, type_] for type_ in MIXED) for kind in MATRICES)
    if least > room:
        raise NegativeAnswer(
            f"nothing fits into {size_bytes / 1e6:g} MB: with 2 bits everywhere it is "
            f"{(size_bytes - room + least) / 1e6:.1f} MB; fewer tokens make it smaller: gemb cut "
            "--vocab N"
        )
    errors: dict[tuple[str, str], float] = {}
    base_error = 0.0
    for step in sensitivity(quantizer, quantization(_BASE), _RAISED):
        if isinstance(step, Candidate):
            base_error = 1 - step.measures.mean_cosine
            continue
        error_squares = ROUNDING[_BASE] ** 2 - ROUNDING[_RAISED] ** 2
        # Noise may make a class with little to gain look harmful; it still has some error.
        per_square = max(step.error_less, base_error / 1000) / error_squares
        for type_ in MIXED:
            fitted = next(t.type for t in plans[type_] if re.search(MATRICES[step.name], t.name))
            errors[step.name, type_] = per_square * ROUNDING[fitted] ** 2
    types = _best(sizes, errors, room)
    patterns: dict[str, list[str]] = {}
    for kind, type_ in types.items():
        patterns.setdefault(type_, []).append(MATRICES[kind])
    rules = tuple(Rule("|".join(parts), type_) for type_, parts in patterns.items())
    return Quantization(name=name, type="q8_0", rules=rules, label=name)


def _best(
    sizes: dict[tuple[str, str], int], errors: dict[tuple[str, str], float], room: int
) -> dict[str, str]:
    """Return the type of each class: the least sum of errors whose sizes fit (a knapsack).

    Of the mixes of the classes so far, a mix is kept if no smaller one is as good. The caller has
    checked that the smallest mix fits.
    """
    front: list[tuple[int, float, dict[str, str]]] = [(0, 0.0, {})]
    for kind in MATRICES:
        mixes = [
            (size + sizes[kind, type_], error + errors[kind, type_], {**types, kind: type_})
            for size, error, types in front
            for type_ in MIXED
            if size + sizes[kind, type_] <= room
        ]
        front = []
        for mix in sorted(mixes, key=lambda mix: mix[:2]):
            if not front or mix[1] < front[-1][1]:  # else a smaller one is as good
                front.append(mix)
    return front[-1][2]


def _bytes_of(plan: TensorPlans, pattern: str) -> int:
    """Return the bytes of a class of tensors in the file, each aligned."""
    sizes = [tensor.size_bytes for tensor in plan if re.search(pattern, tensor.name)]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
