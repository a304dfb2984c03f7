"""Cross-entropy of the next token over a large vocabulary, in the memory of some rows of it.

The logits of a thousand tokens over 262,144 rows would be a gigabyte, and their gradient another.
Here they are made for some tokens at a time, and turned into the gradients of states and table at
once, which is possible because the loss is a sum (the idea of Liger kernel's fused linear
cross-entropy, arXiv 2410.10989).

    T tokens    D width of a token    V tokens of the vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gemb_torch.fused import product_dtype

_LOGITS = 1 << 25  # numbers at a time: 128 MB of fp32


def token_losses(states: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of -log softmax(states tableᵀ)[target], and each one.

    Args:
        states: fp32 [T, D].
        table: fp32 [V, D].
        targets: int64 [T].

    Returns:
        The sum, fp32 [], which has a gradient, and the losses, fp32 [T], which have none.
    """
    total, each = _TokenLosses.apply(states, table, targets, product_dtype(states))  # type: ignore[no-untyped-call]
    return total, each


class _TokenLosses(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        narrow = table.to(dtype)
        losses = torch.empty(len(states), device=states.device)
        to_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        to_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        rows = max(1, _LOGITS // len(table))
        for begin in range(0, len(states), rows):
            part = slice(begin, begin + rows)
            x, target = states[part].to(dtype), targets[part, None]
            logits = (x @ narrow.T).float()
            logsumexp = logits.logsumexp(1, keepdim=True)
            losses[part] = (logsumexp - logits.gather(1, target)).squeeze(1)
            if to_states is None:
                continue
            slope = logits.sub_(logsumexp).exp_()
            slope.scatter_add_(1, target, slope.new_full((), -1.0).expand_as(target))
            slope = slope.to(dtype)
            to_states[part] = slope @ narrow
            if to_table is not None:
                to_table += slope.T @ x
        ctx.save_for_backward(to_states, to_table)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        to_states, to_table = ctx.saved_tensors
        to_table = None if to_table is None else to_table.mul_(gradient)
        return to_states * gradient, to_table, None, None
