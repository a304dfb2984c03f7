"""The tokens' states of a sequence become one: their mean, the first, the last, or attention's.

    T tokens of all sequences    B sequences    D width of a state    H heads of attention pooling

The tokenizer puts BOS first and EOS last, so the states of `first` and `last` are theirs. In the
paper's ablation (arXiv 2509.20354) mean wins over first, last and attention, which has more
parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemb_torch.model.packing import Group, Packing


def pool(hidden: Tensor, packing: Packing, pooling: str, queries: Tensor | None = None) -> Tensor:
    """Return one state for each sequence, [B, D], fp32 or wider.

    Attention pooling is as small as its words in the paper, "4 heads, learned query", let it be:

        head h's weights: softmax over the tokens t of  x_t · query_h / sqrt(D)
        its result: the weighted mean of the h-th of H parts of x_t; the results stand side by side

    A learned key projection would add nothing, for it would be one with the query; a value
    projection would be followed by the first dense layer. Where the queries are zero this is the
    mean: where it starts from, when it replaces the mean of a trained model.

    Args:
        hidden: states [T, D], packed as `packing` says.
        packing: where the sequences stand.
        pooling: mean, first, last or attention.
        queries: of attention, [H, D].
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    results = []
    for group, part in zip(packing.groups, packing.parts(hidden), strict=True):
        states = group.padded(part).to(wide)  # [n, L, D]
        match pooling:
            case "mean":
                results.append(_mean(states, group))
            case "first":
                results.append(states[:, 0])
            case "last":
                results.append(part[group.lengths.cumsum(0).long() - 1].to(wide))
            case "attention":
                assert queries is not None, "attention pooling has queries"
                results.append(_attention(states, group, queries.to(wide)))
            case _:
                raise AssertionError(f"no pooling {pooling}")
    return torch.cat(results)


def _mean(states: Tensor, group: Group) -> Tensor:
    if group.is_token is not None:
        states = states.masked_fill(~group.is_token[:, :, None], 0)
    return states.sum(1) / group.lengths[:, None]


def _attention(states: Tensor, group: Group, queries: Tensor) -> Tensor:
    heads, width = queries.shape
    scores = states @ queries.T * width**-0.5  # [n, L, H]
    if group.is_token is not None:
        scores = scores.masked_fill(~group.is_token[:, :, None], -torch.inf)
    values = states.view(*states.shape[:2], heads, width // heads)  # [n, L, H, D/H]
    return torch.einsum("nlh,nlhw->nhw", scores.softmax(1), values).flatten(1)
