"""A teacher's vector of each token, of the tokens that the student reads.

A text teaches with one vector, but with as many as it has tokens where these are matched, too: a
student that lost layers finds back in a fraction of the text. They are too many to keep, so the
teacher works beside the student, at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemb.checkpoint import Checkpoint
from gemb.errors import UsageError
from gemb_torch.frozen import FrozenEncoder, can_freeze
from gemb_torch.model import EmbeddingGemma
from gemb_torch.packing import Packing
from gemb_torch.tokenizer import load_tokenizer
from gemb_torch.weights import load


class TokenTeacher:
    """A model with the student's token table, its own rows in it."""

    def __init__(
        self,
        teacher: Checkpoint,
        student: Checkpoint,
        *,
        weight: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Load the teacher.

        Args:
            teacher: its tokens must be all that the student has, and perhaps more.
            student: where training starts.
            weight: of this loss.
            device: of both.
            dtype: of the products.

        Raises:
            UsageError: it lacks a token of the student.
        """
        self.weight = weight
        self.dtype = dtype
        model = load(teacher, device=device)
        table = model.embed_tokens.weight.detach()[_rows(teacher, student).to(device)]
        model.embed_tokens = nn.Embedding(len(table), table.shape[1], _weight=table)
        self._frozen: FrozenEncoder | None = None
        self._plain: EmbeddingGemma | None = None
        if device.type == "cpu" and can_freeze(dtype):
            self._frozen = FrozenEncoder(model, dtype)
        else:
            self._plain = model

    @torch.no_grad()
    def __call__(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return `EmbeddingGemma.token_vectors` [T, M] of the student's token ids [T]."""
        if self._frozen is not None:
            return self._frozen.token_vectors(ids, packing)
        assert self._plain is not None
        is_mixed = self.dtype != torch.float32
        with torch.autocast(ids.device.type, self.dtype, enabled=is_mixed):
            return self._plain.token_vectors(self._plain.hidden(ids, packing))


def _rows(teacher: Checkpoint, student: Checkpoint) -> Tensor:
    """Return where the teacher has each token of the student, int64 [tokens of the student]."""
    known, wanted = (
        load_tokenizer(model.folder / "tokenizer.json", model.config.vocab_size).get_vocab()
        for model in (teacher, student)
    )
    rows = torch.zeros(student.config.vocab_size, dtype=torch.int64)
    for token, place in wanted.items():
        if token not in known:
            raise UsageError(
                f"loss.distill.token_weight: the teacher {teacher.folder} has no token {token!r}, "
                f"which {student.folder} has; take a teacher with all its tokens, or set it to 0"
            )
        rows[place] = known[token]
    return rows
