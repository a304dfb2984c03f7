"""Where each sequence stands in a row of packed tokens, and how attention gets at it.

Attention kernels take a rectangle [n, L]: n neighbouring sequences of one length are one already,
without a copy and without a mask. Where such groups would be too many (a GPU waits on each call),
neighbours of nearly one length are padded to a rectangle, in attention alone.

    T tokens of all sequences    n sequences of a group    L tokens of the group's longest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from gemb_torch.model.fused import take

SPAN = 256  # queries of one call in a sliding layer: those see SPAN + window keys, not all


class Span(NamedTuple):
    """One call of attention."""

    queries: slice  # places in the rectangle
    keys: slice
    mask: Tensor | None  # broadcasts to [n, K, queries, keys]; None: all are seen


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbouring sequences that attention takes in one call."""

    start: int  # first token
    end: int  # after the last token
    count: int  # sequences: n
    longest: int  # tokens of the longest: L
    reach: int  # a sliding layer's token sees so many on either side
    lengths: Tensor  # tokens of each, fp32 [n]
    mask: Tensor | None  # bool, True: the key is seen; broadcasts to [n, H, L, L]; None: all seen
    sliding_mask: Tensor | None  # the same within the window
    # Set where the lengths differ:
    is_token: Tensor | None = None  # bool [n, L]; False: padding
    source: Tensor | None = None  # token behind each place of the rectangle, [n * L]
    places: Tensor | None = None  # place of each token in the rectangle, [end - start]

    def spans(self, *, is_sliding: bool) -> list[Span]:
        """Return attention's calls: all queries on all keys, or stretches on what they can see."""
        L = self.longest
        mask = self.sliding_mask if is_sliding else self.mask
        if not is_sliding or SPAN + self.reach >= L:
            return [Span(slice(0, L), slice(0, L), mask)]
        spans = []
        for start in range(0, L, SPAN):
            queries = slice(start, min(L, start + SPAN))
            keys = slice(max(0, start - self.reach), min(L, queries.stop + self.reach))
            part = mask
            if mask is not None:
                part = mask[..., queries if mask.shape[-2] > 1 else slice(None), keys]
            spans.append(Span(queries, keys, part))
        return spans

    def padded(self, part: Tensor) -> Tensor:
        """Return this group's tokens [end - start, ...] as [n, L, ...].

        Padding repeats tokens, and gives them no gradient.
        """
        if self.source is not None:
            assert self.places is not None, "source and places are set together"
            part = take(part, self.source, self.places)
        return part.reshape(self.count, self.longest, *part.shape[1:])

    def packed(self, x: Tensor) -> Tensor:
        """Return x [n, L, ...] without its padding, [end - start, ...]."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat[self.places]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How sequences are packed."""

    positions: Tensor  # of each token in its sequence, int64 [T]
    groups: tuple[Group, ...]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each group's part of x [T, ...]."""
        return torch.split(x, [group.end - group.start for group in self.groups])


def pack(
    lengths: Sequence[int],
    *,
    window: int,
    device: torch.device | str = "cpu",
    max_padding: float = 0.0,
    is_causal: bool = False,
    counts: Sequence[int] | None = None,
) -> Packing:
    """Return how sequences of these lengths stand one after the other.

    Args:
        lengths: tokens of each sequence, each at least 1, in the order of the packed row.
        window: a sliding layer's token i sees j where |i - j| <= window // 2; if causal, where
            0 <= i - j < window.
        device: of the tensors.
        max_padding: how much of a group may be padding, 0 to 1; 0 groups equal lengths only.
        is_causal: no token sees a later one.
        counts: sequences of each group, where something else says so than the padding.
    """
    assert all(lengths), "an empty sequence has no vector"
    groups, start = [], 0
    runs = _runs(lengths, max_padding) if counts is None else _split(lengths, counts)
    for sizes in runs:
        groups.append(_group(start, sizes, window, torch.device(device), is_causal=is_causal))
        start += sum(sizes)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    return Packing(positions=positions, groups=tuple(groups))


def _runs(lengths: Sequence[int], max_padding: float) -> list[list[int]]:
    """Cut the lengths into runs of neighbours whose rectangle is padded by no more than that."""
    runs: list[list[int]] = []
    for length in lengths:
        if runs:
            longest, count = max(*runs[-1], length), len(runs[-1]) + 1
            tokens = sum(runs[-1]) + length
            if longest * count - tokens <= max_padding * longest * count:
                runs[-1].append(length)
                continue
        runs.append([length])
    return runs


def _split(lengths: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    assert sum(counts) == len(lengths), "each sequence is of one group"
    left = iter(lengths)
    return [list(islice(left, count)) for count in counts]


def _group(
    start: int, sizes: list[int], window: int, device: torch.device, *, is_causal: bool
) -> Group:
    count, longest, end = len(sizes), max(sizes), start + sum(sizes)
    reach = window - 1 if is_causal else window // 2
    lengths = torch.tensor(sizes)
    mask = sliding_mask = is_token = source = places = None
    if longest > reach + 1:
        place = torch.arange(longest)
        sliding_mask = (place[:, None] - place).abs() <= reach  # [L, L]
    if is_causal and longest > 1:
        mask = torch.ones(longest, longest, dtype=torch.bool).tril()
        sliding_mask = mask if sliding_mask is None else mask & sliding_mask
    if min(sizes) < longest:
        is_token = torch.arange(longest) < lengths[:, None]
        seen = is_token[:, None, None]  # [n, 1, 1, L]
        mask = seen if mask is None else mask & seen
        sliding_mask = seen if sliding_mask is None else sliding_mask & seen
        # Padding repeats its own sequence's last token: a number that is not finite stays at home.
        ends = lengths.cumsum(0)[:, None]
        source = torch.minimum(
            (ends - lengths[:, None]) + torch.arange(longest), ends - 1
        ).flatten()
        places = is_token.flatten().nonzero().flatten()
        # A padded query beyond the window of its sequence would see nothing and become NaN, which
        # is dropped, but not before a gradient has passed through it.
        sliding_mask = sliding_mask | ~is_token[:, None, :, None]
    tensors = (mask, sliding_mask, is_token, source, places)
    mask, sliding_mask, is_token, source, places = (
        None if tensor is None else tensor.to(device) for tensor in tensors
    )
    return Group(
        start=start,
        end=end,
        count=count,
        longest=longest,
        reach=reach,
        lengths=lengths.float().to(device),
        mask=mask,
        sliding_mask=sliding_mask,
        is_token=is_token,
        source=source,
        places=places,
    )
