"""What the numbers of a stored vector mean: its spec, and the types that it is packed in.

int8 has a fixed scale that depends on the width alone, never on the batch, so that equal text gives
equal bytes: component x becomes round(127 x / clip), with clip = `INT8_SPREAD` / sqrt(dim), at most
1. ubinary is one bit a component, 1 where it is above 0, the first component in the highest bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.embedding import DTYPES
from gemb.errors import UsageError
from gemb.models.profile import check_dims

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.models.profile import ModelProfile
    from gemb.models.prompts import Prompt


NUMBERS = {"f32": "<f4", "f16": "<f2", "int8": "i1", "ubinary": "u1"}  # dtype -> numpy's name
LARGEST_COUNT = 1 << 24  # components, or tokens: above all that there are
META = "gemb"  # the key of the description in a Parquet schema, and its mark in JSON

# The component that becomes 127, in units of 1/sqrt(dim), the root mean square of a unit vector's.
# Of EmbeddingGemma-300M the largest is 7.7 (282 document texts in 12 languages, all four widths):
# nothing is clipped, and the cosine of a text's int8 and float vectors is at least 0.9998. With 6
# it falls to 0.998, for a few components are always large.
INT8_SPREAD = 8.0
LENGTH_ERROR = 0.01  # how far the length of a unit vector, stored or computed, may be from 1


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """Everything that determines the vector of a text. Vectors of different specs never mix."""

    model: str  # fingerprint of the model
    prompt: str  # template
    dim: int
    dtype: str  # one of DTYPES
    max_tokens: int  # longer texts were cut here

    @staticmethod
    def of(
        profile: ModelProfile,
        prompt: Prompt,
        *,
        dim: int | None = None,
        dtype: str = "f32",
        max_tokens: int | None = None,
    ) -> VectorSpec:
        """Return the spec of an open model's vectors.

        Args:
            profile: of the model.
            prompt: around each text.
            dim: width of the vectors; None: the model's.
            dtype: one of DTYPES.
            max_tokens: of a text with its prompt; None: as many as the model takes.

        Raises:
            UsageError: the model was not trained for this width.
        """
        check_dims([] if dim is None else [dim], profile.matryoshka_dims)
        return VectorSpec(
            model=profile.fingerprint,
            prompt=prompt.template,
            dim=dim or profile.width,
            dtype=dtype,
            max_tokens=max_tokens or profile.max_tokens,
        )

    def is_possible(self) -> bool:
        """Return whether its values are of their types, and in their bounds."""
        texts = (self.model, self.prompt, self.dtype)
        counts = (self.dim, self.max_tokens)
        return (
            all(isinstance(text, str) for text in texts)
            and all(type(count) is int and 0 < count <= LARGEST_COUNT for count in counts)
            and self.dtype in DTYPES
        )

    @property
    def width(self) -> int:
        """How many numbers a stored row has: `dim`, or the bytes of as many bits."""
        return stored_width(self.dtype, self.dim)

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def space(self) -> str:
        """The same where cosines can be compared: of one model, prompt and width."""
        return replace(self, dtype="f32", max_tokens=LARGEST_COUNT).fingerprint

    @property
    def int8_clip(self) -> float:
        """The component that becomes 127."""
        return _int8_clip(self.dim)

    def to_json(self, **fields: object) -> str:
        """Return the description that a vector file carries, with `more` entries, in one line."""
        clip = {"int8_clip": self.int8_clip} if self.dtype == "int8" else {}
        entries = {META: 1, "fingerprint": self.fingerprint, **asdict(self), **clip, **fields}
        return json.dumps(entries, ensure_ascii=False)

    @staticmethod
    def from_json(text: str | bytes) -> VectorSpec:
        """Return the spec in a description.

        Raises:
            UsageError: gemb did not write it.
        """
        try:
            entries = json.loads(text)
            names = VectorSpec.__dataclass_fields__
            spec = VectorSpec(**{name: entries[name] for name in names})
            if not spec.is_possible():
                raise ValueError("a value of another type")
            return spec
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError("gemb did not write the description of the vectors") from None


def stored_width(dtype: str, dim: int) -> int:
    """Return how many numbers `packed` makes of a vector of `dim` components."""
    return -(-dim // 8) if dtype == "ubinary" else dim


def _int8_clip(dim: int) -> float:
    return min(1.0, INT8_SPREAD / math.sqrt(dim))


def packed(vectors: NDArray[np.float32], dtype: str, dim: int) -> NDArray[Any]:
    """Return float32 [n, dim] in another type: [n, dim], or uint8 [n, dim / 8] for ubinary.

    A row of NaN, which failed, stays NaN in f32 and f16, and is all zeros in int8 and ubinary.
    """
    import numpy as np

    match dtype:
        case "f32":
            return vectors
        case "f16":
            return vectors.astype(np.float16)
        case "int8":
            scaled = np.nan_to_num(vectors * np.float32(127 / _int8_clip(dim)))
            whole: NDArray[Any] = np.rint(np.clip(scaled, -127, 127)).astype(np.int8)
            return whole
        case "ubinary":
            return np.packbits(vectors > 0, axis=1)
    raise AssertionError(dtype)


def unpacked(stored: NDArray[Any], dtype: str, dim: int) -> NDArray[np.float32]:
    """Return float32 [n, dim] for what `packed` made; sign bits become +1 and -1, no bit NaN."""
    import numpy as np

    if dtype == "ubinary":
        bits = np.unpackbits(stored.astype(np.uint8), axis=1, count=dim)
        signs = bits.astype(np.float32) * 2 - 1
        # No unit vector of a model is without a positive component: this row failed.
        signs[~stored.any(axis=1)] = np.nan
        return signs
    if dtype == "int8":
        return stored.astype(np.float32) * np.float32(_int8_clip(dim) / 127)
    return stored.astype(np.float32)


def are_units(stored: NDArray[Any], dtype: str, dim: int) -> NDArray[np.bool_]:
    """Return which rows of what `packed` made were unit vectors, bool [n]; none that is NaN.

    A row that was none is no vector of a model: its weights, or the file that holds it, are broken.
    Of int8 a component of 127 may have been larger, so that such a row may be shorter. Sign bits
    have no length: all are True but those without a bit.
    """
    import numpy as np

    if dtype == "ubinary":
        has_bit: NDArray[np.bool_] = np.asarray(stored.any(axis=1))
        return has_bit
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = unpacked(stored, dtype, dim)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    is_unit: NDArray[np.bool_] = np.abs(lengths - 1) < LENGTH_ERROR
    if dtype == "int8":
        is_clipped = (np.abs(stored.astype(np.int16)) >= 127).any(axis=1)
        is_unit |= is_clipped & (lengths < 1)
    return is_unit


def sidecar(path: Path) -> Path:
    """Return where the description of a file that cannot hold one lies: beside it or its target."""
    beside = path.with_name(path.name + ".json")
    if path.is_symlink() and not beside.exists():
        return sidecar(path.resolve())
    return beside
