"""From the files of a checkpoint to the model's parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gemb.checkpoint import Checkpoint
from gemb.errors import UsageError
from gemb_torch.model import EmbeddingGemma

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DENSE = {"2_Dense.linear.weight": "dense.0.weight", "3_Dense.linear.weight": "dense.1.weight"}


def load(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> EmbeddingGemma:
    """Return the model, in evaluation mode.

    Where dtype and device are those of the files, the parameters are private maps of the files:
    nothing is read before it is used, and writing to a parameter does not change a file.

    Raises:
        UsageError: a weight is not finite.
    """
    with torch.device("meta"):
        model = EmbeddingGemma(checkpoint.config, checkpoint.dense)
    files: dict[Path, Tensor] = {}
    state = {}
    for name, stored in checkpoint.tensors.items():
        if stored.path not in files:
            size = stored.path.stat().st_size
            files[stored.path] = torch.from_file(str(stored.path), size=size, dtype=torch.uint8)
        raw = files[stored.path][stored.offset : stored.offset + stored.size_bytes]
        source = _DTYPES[stored.dtype]
        if stored.offset % source.itemsize:  # the format does not promise alignment
            raw = raw.clone()
        values = raw.view(source).view(stored.shape)
        if not values.sum(dtype=torch.float32).isfinite():
            raise UsageError(
                f"{stored.path}: tensor {name} holds numbers that are not finite; "
                "the run that wrote it had failed: take an earlier checkpoint"
            )
        state[_DENSE.get(name, name)] = values.to(device=device, dtype=dtype)
    model.load_state_dict(state, assign=True)
    return model.eval()
