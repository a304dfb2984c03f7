"""UL2's ways to take a text apart into what an encoder reads and what a decoder must write.

    text        a b c d e f g h
    spans         [c d]   [f]           noise
    input       a b <0> e <1> g h
    target      <0> c d <1> f

The five tasks and their ratio are T5Gemma 2's (arXiv 2512.14856): spans of mean length 3, 12, 32
and 32 that take 0.15, 0.5, 0.15 and 0.5 of the text, and one span at the end that takes 0.75 of it,
as often as the four others together. Where spans stand is T5's way (arXiv 1910.10683, and
`random_spans_noise_mask` of its code): the noise, and what is left, are each divided at random
into as many parts as there are spans, and the parts alternate, what is left first. UL2's mode
tokens (arXiv 2205.05131) are left out: T5Gemma 2 names none. Marks are the tokenizer's <unused0>,
<unused1>, ...: T5Gemma does not say which of them it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One way to take a text apart."""

    name: str  # in the log: its spans, and how many percent of the text
    weight: float  # how often, relative
    noise: float  # share of the text that is to be written
    mean_span: float = 0.0  # tokens; 0: one span at the end
    is_marked: bool = True  # a mark stands for each span


UL2 = (
    Task(name="span3-15", weight=1, mean_span=3, noise=0.15),
    Task(name="span12-50", weight=1, mean_span=12, noise=0.5),
    Task(name="span32-15", weight=1, mean_span=32, noise=0.15),
    Task(name="span32-50", weight=1, mean_span=32, noise=0.5),
    Task(name="suffix-75", weight=4, noise=0.75),
)
# T5Gemma's other objective: halves, and no mark between them.
PREFIX_LM = (Task(name="prefix_lm", weight=1, noise=0.5, is_marked=False),)
OBJECTIVES = {"ul2": UL2, "prefix_lm": PREFIX_LM}
SHORTEST = 2  # tokens of a text that can be taken apart


def choose(tasks: Sequence[Task], random: np.random.Generator) -> Task:
    """Return a task, each as often as its weight says."""
    weights = np.array([task.weight for task in tasks])
    return tasks[int(random.choice(len(tasks), p=weights / weights.sum()))]


def spans(task: Task, length: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return where the noise of a text stands, int64 [spans, 2]: first token, and after the last.

    Args:
        task: which spans.
        length: tokens of the text, at least `SHORTEST`.
        random: what it draws from.
    """
    noise = min(max(round(length * task.noise), 1), length - 1)
    if not task.mean_span:
        return np.array([[length - noise, length]])
    count = min(max(round(noise / task.mean_span), 1), noise, length - noise)
    noisy, left = (divided(total, count, random) for total in (noise, length - noise))
    starts = left.cumsum() + noisy.cumsum() - noisy
    return np.stack([starts, starts + noisy], 1)


def most_spans(tasks: Sequence[Task], length: int) -> int:
    """Return how many marks a text of at most so many tokens may need."""
    return max(
        max(1, round(round(length * task.noise) / task.mean_span)) if task.mean_span else 1
        for task in tasks
    )


def divided(total: int, parts: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the sizes of so many parts of a total, none empty, int64 [parts].

    Every way to divide it is as likely as any other.
    """
    ends = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(ends, prepend=0, append=total)


def taken_apart(
    ids: Ids, noise: NDArray[np.int64], marks: Ids, *, is_marked: bool = True
) -> tuple[Ids, Ids]:
    """Return input and target of a text, without BOS and EOS.

    Args:
        ids: of the text.
        noise: its spans, as `spans` returns them.
        marks: ids of the marks, at least one for each span.
        is_marked: whether a mark stands for each span.
    """
    inputs: list[Ids] = []
    targets: list[Ids] = []
    before = 0
    for (start, end), mark in zip(noise.tolist(), marks[: len(noise), None], strict=True):
        own = mark if is_marked else mark[:0]
        inputs += [ids[before:start], own]
        targets += [own, ids[start:end]]
        before = end
    return np.concatenate([*inputs, ids[before:]]), np.concatenate(targets)
