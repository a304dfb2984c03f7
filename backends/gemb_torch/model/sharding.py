"""Weights, gradients and moments spread over the processes: FSDP2, by `run.shard=fsdp2`.

Each layer's weights are put together for its own arithmetic and let go after it; the rest (token
table, last norm, dense layers) for a micro-batch. The token table is a parameter like others here:
its gradient is as big as it is, and spread.

Evaluation and saving see a whole model, which the first process keeps beside its share: it is
filled in by all processes together when it is wanted. A run of one process has nothing to spread.

Source: `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from gemb_torch.model.model import EmbeddingGemma
from gemb_torch.model.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Sharding:
    """The two forms of the model. All processes call the methods together."""

    whole: EmbeddingGemma  # of the first process; the others' weights are not kept up
    trained: EmbeddingGemma
    is_first: bool

    def collect(self) -> None:
        """Copy the weights in training to the whole model of the first process."""
        whole = dict(self.whole.named_parameters())
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                values = full(parameter)
                if self.is_first:
                    whole[name].copy_(values)

    def spread(self) -> None:
        """Copy the whole model of the first process to the weights in training."""
        whole = dict(self.whole.named_parameters())
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                parameter.copy_(like(parameter, whole[name]))


def shard(model: EmbeddingGemma, ranks: Ranks, device: torch.device) -> None:
    """Spread the weights of a model over the processes, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.count,))
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full(x: Tensor) -> Tensor:
    """Return the whole of a tensor that may be spread; then all processes call this together."""
    return x.full_tensor() if _is_spread(x) else x


def local(x: Tensor) -> Tensor:
    """Return this process's share of a tensor that may be spread, without a copy."""
    return x.to_local() if _is_spread(x) else x


def like(pattern: Tensor, x: Tensor) -> Tensor:
    """Return a copy of x, whole, spread and placed as the pattern is; x is the first process's."""
    values = x.detach().to(pattern.device, pattern.dtype, copy=True)
    if _is_spread(pattern):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(values, pattern.device_mesh, pattern.placements)
    return values


def _is_spread(x: Tensor) -> TypeGuard[DTensor]:
    return type(x).__name__ == "DTensor"
