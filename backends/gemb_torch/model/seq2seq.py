"""The encoder-decoder in adaptation: EmbeddingGemma's encoder, Gemma 3's decoder, one token table.

T tokens of all targets    S tokens of all inputs    D width of a token    V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Function

from gemb_torch.model.decoder import Decoder, DecoderBlock, Memory
from gemb_torch.model.fused import product_dtype
from gemb_torch.model.model import Block, EmbeddingGemma
from gemb_torch.model.packing import Packing, pack

_LOGITS = 1 << 25  # numbers at a time: 128 MB of fp32


class Sequences(NamedTuple):
    """Some pairs of input and target, packed."""

    inputs: Tensor  # ids, int64 [S]
    shifted: Tensor  # what the decoder reads: BOS, then the target without its end, int64 [T]
    targets: Tensor  # what it is to write, int64 [T]
    encoder: Packing
    decoder: Packing
    crossing: tuple[Packing, Packing]  # targets and inputs, in groups of as many


class Seq2Seq(nn.Module):
    """An encoder that reads, a decoder that writes; input, output and softmax share a table."""

    def __init__(self, encoder: EmbeddingGemma) -> None:
        """Make the decoder of the encoder's layers, cross-attention of its self-attention.

        Args:
            encoder: without dense layers, which have no part in this.
        """
        super().__init__()
        assert not encoder.dense, "dense layers would have no gradient, and decay"
        config = encoder.config
        self.embed_tokens = encoder.embed_tokens  # first: the table's name is the folder's
        self.encoder = encoder
        self.decoder = Decoder(config)
        for mine, theirs in zip(self.decoder.layers, encoder.layers, strict=True):
            assert isinstance(mine, DecoderBlock)
            assert isinstance(theirs, Block)
            mine.own = copy.deepcopy(theirs)
            mine.copy_self_attention()
        self.decoder.norm = copy.deepcopy(encoder.norm)
        self.decoder.to(encoder.embed_tokens.weight.device)

    def randomise_cross_attention(self, seed: int) -> None:
        """Let cross-attention begin with random products of the width's scale, and plain norms."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.decoder.cross_attentions().parameters():
                values = torch.zeros(parameter.shape)
                if parameter.ndim > 1:
                    values.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
                parameter.copy_(values)

    def forward(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses of the targets' tokens, fp32 [], and each, fp32 [T]."""
        table = self.embed_tokens.weight
        # The rows in use once, so that one gradient is as big as the table and not two.
        read = torch.cat([batch.inputs, batch.shifted])
        ids, places = torch.unique(read, return_inverse=True)
        rows = F.embedding(ids, table)
        inputs, shifted = places.split([len(batch.inputs), len(batch.shifted)])
        states = self.encoder.hidden(inputs, batch.encoder, rows)
        memory = Memory(states.to(product_dtype(states)), *batch.crossing)
        written = self.decoder(F.embedding(shifted, rows), batch.decoder, memory)
        return token_losses(written, table, batch.targets)


def pack_pairs(
    inputs: Sequence[NDArray[np.int64]],
    targets: Sequence[NDArray[np.int64]],
    *,
    bos: int,
    window: int,
    device: torch.device,
    max_padding: float,
) -> Sequences:
    """Return pairs as one batch.

    Args:
        inputs: ids of each, as the encoder reads them.
        targets: ids of each, as the decoder is to write them.
        bos: what a decoder reads first.
        window: of the sliding layers.
        device: of the tensors.
        max_padding: how much of attention's rectangles may be padding, 0 to 1.
    """
    lengths, target_lengths = [len(ids) for ids in inputs], [len(ids) for ids in targets]
    counts = _runs(lengths, target_lengths, max_padding)
    encoder = pack(lengths, window=window, device=device, max_padding=max_padding, is_causal=False)
    decoder = pack(
        target_lengths, window=window, device=device, max_padding=max_padding, is_causal=True
    )
    crossing = (
        pack(target_lengths, window=window, device=device, counts=counts),
        pack(lengths, window=window, device=device, counts=counts),
    )
    shifted = [np.concatenate([[bos], ids[:-1]]) for ids in targets]
    flat = [
        torch.from_numpy(np.concatenate(arrays)).to(device) for arrays in (inputs, shifted, targets)
    ]
    return Sequences(flat[0], flat[1], flat[2], encoder, decoder, crossing)


def _runs(first: Sequence[int], second: Sequence[int], max_padding: float) -> list[int]:
    """Return how many neighbours to put into each rectangle of cross-attention.

    No rectangle of queries and keys is emptier than two rectangles padded so much.
    """
    counts: list[int] = []
    longest, used = (0, 0), 0
    for sizes in zip(first, second, strict=True):
        wider = max(longest[0], sizes[0]), max(longest[1], sizes[1])
        filled = used + sizes[0] * sizes[1]
        if counts:
            area = wider[0] * wider[1] * (counts[-1] + 1)
            if area - filled <= 2 * max_padding * area:
                counts[-1] += 1
                longest, used = wider, filled
                continue
        counts.append(1)
        longest, used = sizes, sizes[0] * sizes[1]
    return counts


def token_losses(states: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of -log softmax(states tableᵀ)[target], and the losses of each target.

    The logits of a thousand tokens over 262,144 rows would be a gigabyte, and their gradient
    another. Here they are made for some tokens at a time, and turned into the gradients of states
    and table at once, which is possible because the loss is a sum (the idea of Liger kernel's fused
    linear cross-entropy, arXiv 2410.10989).

    Args:
        states: fp32 [T, D].
        table: fp32 [V, D].
        targets: int64 [T].

    Returns:
        The sum, fp32 [], which has a gradient, and the losses, fp32 [T], which have none.
    """
    total, losses = _TokenLosses.apply(states, table, targets, product_dtype(states))  # type: ignore[no-untyped-call]
    return total, losses


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
