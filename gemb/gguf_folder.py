"""Unpack a GGUF file into a plain model folder of 32-bit numbers, so that training can start there.

What a GGUF holds of the folder it was made from comes back: the weights as the file rounded them,
the tokenizer, prompts, Matryoshka widths, the trained length, the licence, and what was done to the
model before. Norm weights lose the 1 that the file holds more; the model adds it again, to the same
number.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.gemma_terms import KEY_LICENCE, KEY_NOTICE
from gemb.gguf_checks import ARCHITECTURE, number, wrong
from gemb.gguf_header import TensorInfo
from gemb.gguf_model import GgufModel
from gemb.gguf_names import folder_name
from gemb.gguf_tokenizer import roles, tokenizer_files
from gemb.model_card import history_in, write_card
from gemb.model_json import write_json
from gemb.model_modules import write_modules
from gemb.qat import CONFIG_KEY, gguf_types
from gemb.safetensors import NewTensor, write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 4096  # of a tensor in memory at a time
_PACKED_FOR_GOOD = ("q1_0", "q2_0")  # types that gguf cannot unpack


def unpack(model: GgufModel, target: Path) -> None:
    """Fill the empty folder `target` with what the file holds.

    Raises:
        UsageError: the file's tokens are broken, its window is one that no folder has, or its
            weights are of a type that cannot be unpacked.
        OSError: the folder cannot be written.
    """
    window = number(model.header, "attention.sliding_window")
    if window % 2:
        raise wrong(model.header, f"the sliding window is {window}, an odd number")
    for tensor in model.header.tensors.values():
        if tensor.type in _PACKED_FOR_GOOD:
            raise UsageError(
                f"{model.header.path}: tensor {tensor.name} is {tensor.type}, which gemb cannot "
                "unpack; start from the model folder, or another file of it"
            )
    for name, value in tokenizer_files(model.header, model.max_tokens).items():
        indent = None if name == "tokenizer.json" else 2
        write_json(target / name, value, indent)
    write_json(target / "config.json", _config(model))
    write_modules(
        target,
        hidden=model.hidden,
        pooling=model.pooling,
        dense=model.dense,
        prompts=model.prompts,
        matryoshka_dims=model.matryoshka_dims,
        max_tokens=model.max_tokens,
    )
    _write_weights(model, target)
    _write_card(model, target)


def _config(model: GgufModel) -> dict[str, Any]:
    data = model.header.metadata
    role = roles(model.header)

    def real(name: str, absent: float = 0.0) -> float:
        """Return a 32-bit number as the shortest one that is the same in 32 bits: 1e-06."""
        import numpy as np

        value = data.get(f"{ARCHITECTURE}.{name}", absent)
        assert isinstance(value, float), "the file has not been checked"
        return float(str(np.float32(value)))

    trained = gguf_types(model)
    return {
        **({CONFIG_KEY: trained} if trained else {}),
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": role.bos,
        "dtype": "float32",
        "eos_token_id": role.eos,
        "final_logit_softcapping": None,
        "head_dim": model.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.feed_forward,
        "layer_types": [
            "sliding_attention" if slides else "full_attention" for slides in model.is_sliding
        ],
        "max_position_embeddings": model.max_tokens,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "pad_token_id": role.pad or 0,
        "query_pre_attn_scalar": model.head_dim,  # llama.cpp scales by it
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
        "rope_local_base_freq": real("rope.freq_base_swa", 1e4),
        "rope_scaling": None,
        "rope_theta": real("rope.freq_base"),
        "sliding_window": number(model.header, "attention.sliding_window"),
        "use_bidirectional_attention": True,
        "use_cache": True,
        "vocab_size": model.vocabulary,
    }


def _write_weights(model: GgufModel, target: Path) -> None:
    files: dict[str, dict[str, NewTensor]] = {"": {}, "2_Dense": {}, "3_Dense": {}}
    with model.header.path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for info in model.header.tensors.values():
        name = folder_name(info.name)
        folder, _, rest = name.partition(".")
        new = NewTensor("F32", info.shape[::-1], _float32(data, info))
        if folder in files:
            files[folder][rest] = new
        else:
            files[""][name] = new
    for folder, tensors in files.items():
        write_file(target / folder / "model.safetensors", tensors)


def _float32(data: mmap.mmap, info: TensorInfo) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor's 32-bit values, some rows at a time."""
    import gguf
    import numpy as np

    if len(info.shape) == 1:  # a norm
        values = np.frombuffer(data, "<f4", info.shape[0], info.offset) - np.float32(1)
        yield values.view(np.uint8)
        return
    rows = info.shape[1]
    packed = np.frombuffer(data, np.uint8, info.size_bytes, info.offset).reshape(rows, -1)
    kind = gguf.GGMLQuantizationType[info.type.upper()]
    for begin in range(0, rows, _ROWS):
        wide = gguf.dequantize(packed[begin : begin + _ROWS], kind)
        yield np.ascontiguousarray(wide, "<f4").view(np.uint8).reshape(-1)


def _write_card(model: GgufModel, target: Path) -> None:
    types = ", ".join(sorted({info.type for info in model.header.tensors.values()}))
    said = f"Unpacked by gemb from {model.header.path.name}, whose weights are {types}."
    data = model.header.metadata
    before = history_in(str(data.get(KEY_NOTICE, "")))
    write_card(target, str(data.get(KEY_LICENCE, "")), said, before)
