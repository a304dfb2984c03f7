"""The files of a model folder: their bytes, their tensors, and copies with other numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from gemb.models.safetensors import NewTensor, encoded, read_header, write_file

WEIGHTS = ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors")


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors as the package safetensors reads them."""
    return {f"{file}:{k}": v for file in WEIGHTS for k, v in load_file(folder / file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy a model; `change(name, values)` returns the dtype and the values of a tensor."""
    shutil.copytree(source, target)
    for file in WEIGHTS:
        new = {}
        for name, tensor in read_header(source / file).items():
            dtype, values = change(name, tensor.float32().copy())
            parts = [encoded(values.astype(np.float64).ravel(), dtype)]
            new[name] = NewTensor(dtype, tensor.shape, parts)
        write_file(target / file, new)
    return target
