"""AdamW with its schedule, and the same for the rows of the token table that were ever used.

A row of the token table that no text has used has moments of zero, and no weight decay: AdamW
leaves it as it is. So the moments are kept of the used rows alone, which for a table of 262,144
rows saves 1.6 GB and most of a step's time; the result is AdamW's.

Sources: decoupled weight decay, arXiv 1711.05101; `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gemb.errors import UsageError
from gemb.recipe.schema import Optimizer
from gemb_torch.model.sharding import full, like

if TYPE_CHECKING:
    from gemb_torch.model.ranks import Ranks


_TABLE = "embed_tokens.weight"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PIECE = 4096  # rows that are changed at a time
_HEADS = ("dense.", "pool_queries")  # fresh or small parts, which may have a rate of their own


def rate(recipe: Optimizer, step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step, 0 to `steps` - 1.

    It rises linearly over the first `warmup_fraction` of the steps, the first step not at 0, and
    falls to `final_lr_fraction` at the last.
    """
    warmup = round(recipe.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)  # 0 to 1
    match recipe.decay:
        case "none":
            left = 1.0
        case "linear":
            left = 1 - done
        case "cosine":
            left = (1 + math.cos(math.pi * done)) / 2
    return recipe.final_lr_fraction + (1 - recipe.final_lr_fraction) * left


class AdamW:
    """AdamW over a model's parameters; of the token table, over the rows in use."""

    def __init__(self, model: nn.Module, recipe: Optimizer, *, whole_table: bool = False) -> None:
        """Take the parameters.

        Args:
            model: its parameters' names are those of the checkpoint.
            recipe: rates, moments, decay.
            whole_table: the token table is a parameter like others, with a gradient of its size.
        """
        self.recipe = recipe
        self._collected: dict[str, Tensor] | None = None
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if whole_table or name != _TABLE
        }
        self.rows: _Rows | None = None
        if not whole_table:
            self.rows = _Rows(model.get_parameter(_TABLE).requires_grad_(False), recipe)
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            is_matrix = parameter.ndim > 1 and name != _TABLE
            decay = recipe.weight_decay if is_matrix else 0.0
            peak = recipe.head_lr if name.startswith(_HEADS) and recipe.head_lr else recipe.lr
            groups.setdefault((peak, decay), []).append(parameter)
        self.inner = torch.optim.AdamW(
            [{"params": group, "weight_decay": d, "peak": p} for (p, d), group in groups.items()],
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.eps,
            fused=True,
        )

    def leaf(self, ids: NDArray[np.int64]) -> Tensor | None:
        """Return a copy of these tokens' rows that collects their gradient, fp32 [R, D].

        None where the table is a parameter like others.
        """
        if self.rows is None:
            return None
        table = self.rows.table
        return table[torch.from_numpy(ids).to(table.device)].requires_grad_()

    def gradients(self, row_gradient: Tensor | None) -> Iterator[Tensor]:
        """Yield every gradient, the token rows' last; a parameter without one gets zeros."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            yield parameter.grad
        if row_gradient is not None:
            yield row_gradient

    def step(self, factor: float, ids: NDArray[np.int64], row_gradient: Tensor | None) -> None:
        """Change the parameters, and forget their gradients.

        Args:
            factor: of the peak rates, as `rate` returns it.
            ids: the tokens of the rows, ascending, [R].
            row_gradient: of these rows, fp32 [R, D].
        """
        for group in self.inner.param_groups:
            group["lr"] = group["peak"] * factor
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        if self.rows is not None and row_gradient is not None:
            self.rows.step(self.recipe.lr * factor, ids, row_gradient)

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The tokens whose rows have moments, ascending."""
        if self.rows is not None:
            return self.rows.ids
        moments = self._whole()
        if f"{_TABLE}.{_MOMENTS[0]}" not in moments:
            return np.empty(0, np.int64)
        used = torch.stack([moments[f"{_TABLE}.{moment}"].any(1) for moment in _MOMENTS]).any(0)
        return used.nonzero().flatten().cpu().numpy()

    def moments(self) -> dict[str, Tensor]:
        """Return both moments of every parameter by name; of the table's rows as in `row_ids`.

        Where they are spread over processes, as of the last `collect`.
        """
        moments = dict(self._whole())
        if self.rows is not None:
            rows = zip(_MOMENTS, self.rows.moments, strict=True)
            return moments | {f"{_TABLE}.{moment}": values for moment, values in rows}
        used = torch.from_numpy(self.row_ids)
        for moment in _MOMENTS:
            name = f"{_TABLE}.{moment}"
            if name in moments:
                moments[name] = moments[name][used.to(moments[name].device)]
        return moments

    def collect(self, *, keep: bool) -> None:
        """Put together what is spread, for `moments`; all processes call this together.

        Args:
            keep: in memory of the CPU, until `forget`; for the process that saves.
        """
        self._collected = {}
        for name, values in self._spread().items():
            whole = full(values)
            if keep:
                self._collected[name] = whole.cpu()

    def forget(self) -> None:
        """Let go of what `collect` kept."""
        self._collected = None

    def _whole(self) -> dict[str, Tensor]:
        return self._spread() if self._collected is None else self._collected

    def _spread(self) -> dict[str, Tensor]:
        return {
            f"{name}.{moment}": self.inner.state[parameter][moment]
            for name, parameter in self.parameters.items()
            for moment in _MOMENTS
            if self.inner.state[parameter]
        }

    def restore(
        self, moments: Mapping[str, Tensor], row_ids: NDArray[np.int64], steps: int
    ) -> None:
        """Take what `moments` and `row_ids` returned after so many steps.

        Raises:
            UsageError: they are of another model.
        """
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        table = self.parameters.get(_TABLE) if self.rows is None else self.rows.table
        if table is not None:  # a part of a model may have none
            shapes[_TABLE] = torch.Size([len(row_ids), table.shape[1]])
        for name, shape in shapes.items():
            stored = [moments.get(f"{name}.{moment}") for moment in _MOMENTS]
            if any(tensor is None or tensor.shape != shape for tensor in stored):
                raise UsageError(f"the optimizer's state does not fit {name} {list(shape)}")
        if self.rows is None and table is not None:
            moments = {**moments}
            for name in (f"{_TABLE}.{moment}" for moment in _MOMENTS):
                whole = torch.zeros(table.shape)
                whole[torch.from_numpy(row_ids)] = moments[name]
                moments[name] = whole
        for name, parameter in self.parameters.items():
            self.inner.state[parameter] = {
                "step": torch.tensor(float(steps), device=parameter.device)
            } | {moment: like(parameter, moments[f"{name}.{moment}"]) for moment in _MOMENTS}
        if self.rows is not None:
            self.rows.steps, self.rows.ids = steps, row_ids
            self.rows.moments = [
                moments[f"{_TABLE}.{moment}"].to(self.rows.table.device) for moment in _MOMENTS
            ]


class _Rows:
    """Adam over the rows of a table that ever had a gradient."""

    def __init__(self, table: Tensor, recipe: Optimizer) -> None:
        self.table = table
        self.recipe = recipe
        self.steps = 0
        self.ids = np.empty(0, np.int64)  # ascending
        self.moments = [table.new_empty(0, table.shape[1]) for _ in _MOMENTS]

    def step(self, lr: float, ids: NDArray[np.int64], gradient: Tensor) -> None:
        self.steps += 1
        self._admit(ids)
        beta1, beta2 = self.recipe.beta1, self.recipe.beta2
        mean, square = self.moments
        places = torch.from_numpy(np.searchsorted(self.ids, ids)).to(self.table.device)
        mean.mul_(beta1).index_add_(0, places, gradient, alpha=1 - beta1)
        square.mul_(beta2).index_add_(0, places, gradient.square(), alpha=1 - beta2)
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        # In pieces: a temporary as big as all rows would cost more than the arithmetic.
        used = torch.from_numpy(self.ids).to(self.table.device)
        with torch.no_grad():
            for m, v, rows in zip(
                *(torch.split(x, _PIECE) for x in (mean, square, used)), strict=True
            ):
                update = m / (v / correction2).sqrt_().add_(self.recipe.eps)
                self.table.index_add_(0, rows, update, alpha=-lr / correction1)

    def _admit(self, ids: NDArray[np.int64]) -> None:
        """Give rows that are used for the first time moments of zero."""
        everybody = np.union1d(self.ids, ids)
        if len(everybody) == len(self.ids):
            return
        places = torch.from_numpy(np.searchsorted(everybody, self.ids)).to(self.table.device)
        for i, moment in enumerate(self.moments):
            self.moments[i] = moment.new_zeros(len(everybody), moment.shape[1])
            self.moments[i][places] = moment
        self.ids = everybody


def clip(gradients: Sequence[Tensor], longest: float, shares: Ranks | None = None) -> float:
    """Shorten the gradients together to this norm, where it is not 0; return the norm before.

    A norm that is not finite is returned as it is, and nothing is shortened.

    Args:
        gradients: they are changed in place.
        longest: the norm that they may have.
        shares: given where each process has a part of every gradient.
    """
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    if shares is not None:
        norms = norms.square().sum(0, keepdim=True)
        shares.sum([norms])
        norms.sqrt_()
    norm = float(torch.linalg.vector_norm(norms))
    if longest and math.isfinite(norm) and norm > longest:
        for gradient in gradients:
            gradient.mul_(longest / (norm + 1e-6))
    return norm
