"""The numbers of a GGUF file; see `gemb_onnx.numbers`."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from gemb.errors import UsageError
from gemb.models.gguf_blocks import unpacked
from gemb.models.gguf_keys import ARCHITECTURE
from gemb.models.tensors import gguf_name
from gemb_onnx.numbers import Shape, finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.models.gguf import GgufModel

    Floats = NDArray[np.float32]


class GgufNumbers:
    """The numbers of a GGUF file, as its types round them."""

    def __init__(self, model: GgufModel) -> None:
        """Take a checked file, and map it."""
        self._header = model.header
        with model.header.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = self._packed("embed_tokens")
        self._type = self._header.tensors["token_embd.weight"].type
        metadata = model.header.metadata

        def number(key: str, absent: float | None = None) -> Any:  # noqa: ANN401
            return metadata.get(f"{ARCHITECTURE}.{key}", absent)

        self.shape = Shape(
            layers=model.layers,
            hidden=model.hidden,
            inner=model.feed_forward,
            heads=model.heads,
            key_heads=model.kv_heads,
            head_dim=model.head_dim,
            eps=number("attention.layer_norm_rms_epsilon"),
            scale=model.head_dim**-0.5,
            window=number("attention.sliding_window"),
            is_sliding=model.is_sliding,
            theta=number("rope.freq_base"),
            local_theta=number("rope.freq_base_swa", 1e4),
            max_tokens=model.max_tokens,
            pooling=model.pooling,
        )

    @property
    def tokens(self) -> int:
        """See `Numbers`."""
        return len(self._rows)

    def matrix(self, name: str) -> Floats:
        """See `Numbers`."""
        kind = self._header.tensors[gguf_name(name)].type
        values = self._unpacked(self._packed(name), kind, name)
        return finite(values, self._header.path, name)

    def norm(self, name: str) -> Floats:
        """See `Numbers`."""
        return finite(self._packed(name).reshape(-1).view("<f4"), self._header.path, name)

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """See `Numbers`."""
        return self._unpacked(self._rows[ids], self._type, "token_embd")

    def _packed(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, uint8 [rows, bytes of a row]."""
        info = self._header.tensors[gguf_name(name)]
        raw = np.frombuffer(self._data, np.uint8, info.size_bytes, info.offset)
        return raw.reshape(info.shape[1] if len(info.shape) > 1 else 1, -1)

    def _unpacked(self, packed: NDArray[np.uint8], kind: str, name: str) -> Floats:
        try:
            return unpacked(packed, kind)
        except (NotImplementedError, KeyError) as error:
            raise UsageError(
                f"{self._header.path}: tensor {name} is {kind}, which this backend cannot unpack; "
                "use --backend llamacpp"
            ) from error
