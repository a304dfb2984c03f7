"""The folder of a static encoder: a table of token vectors, and a head that runs once a text.

    modules.json                       StaticEmbedding, then Normalize and Dense in any order
    model.safetensors                  embeddings [tokens, width], I8 with weights [tokens], one
                                       scale a row; or embedding.weight, floats
    tokenizer.json
    2_Dense/ ...                       config.json, model.safetensors; bias; ReLU, Tanh or Identity
    config_sentence_transformers.json  prompts, default_prompt_name, truncate_dim, matryoshka_dims;
                                       draft_of: fingerprints of models

sentence-transformers (6.2) reads and runs the same folder. A draft is a static encoder whose
vectors lie in the space of a model, its teacher: queries are embedded by the teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.io.foreign import read_bytes
from gemb.io.paths import is_inside
from gemb.models.card import licence_of
from gemb.models.config import (
    MOST_TOKENIZER,
    read_json,
    read_json_value,
    read_optional_json,
    whole_number,
    write_json,
)
from gemb.models.profile import ModelDescription, ModelProfile
from gemb.models.prompts import ModelPrompts, with_plain
from gemb.models.safetensors import NewTensor, StoredTensor, read_header, write_file
from gemb.models.settings import SETTINGS, default_dim_of, matryoshka_dims_of, prompts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODULES = "modules.json"
MAX_TOKENS = 8192  # of a text: a mean has no limit of its own
ACTIVATIONS = ("Identity", "ReLU", "Tanh")
_MODULE = "sentence_transformers.models."
_ACTIVATION = "torch.nn.modules.{}.{}"


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """One Dense module; its tensors are not read yet."""

    weight: StoredTensor  # [out, in]
    bias: StoredTensor | None  # [out]
    activation: str  # one of `ACTIVATIONS`


@dataclass(frozen=True, kw_only=True)
class StaticModel:
    """The folder, checked; the tensors are not read yet."""

    folder: Path
    table: StoredTensor  # [tokens, width]
    scales: StoredTensor | None  # [tokens]: what a row is multiplied with
    head: tuple[DenseLayer | None, ...]  # the modules after the table; None: Normalize
    prompts: ModelPrompts  # of all tasks
    matryoshka_dims: tuple[int, ...]  # widest first
    default_dim: int  # width of a vector where none is asked for; at most `dim`
    draft_of: tuple[str, ...]  # fingerprints of the models whose space the vectors lie in

    @property
    def dense(self) -> tuple[DenseLayer, ...]:
        """The dense layers."""
        return tuple(layer for layer in self.head if layer)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense[-1].weight.shape[0] if self.dense else self.table.shape[1]

    def profile(self) -> ModelProfile:
        """Return what a caller must know of the open model."""
        return ModelProfile(
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=MAX_TOKENS,
            closing_tokens=0,
            prompts=self.prompts,
            dtype="fp32",
            fingerprint=self.fingerprint(),
            default_dim=self.default_dim,
            draft_of=self.draft_of,
        )

    def tensors(self) -> list[StoredTensor]:
        """Return all tensors, the table first."""
        stored = [self.table, self.scales]
        for layer in self.dense:
            stored += [layer.weight, layer.bias]
        return [tensor for tensor in stored if tensor is not None]

    def fingerprint(self) -> str:
        """Return 16 hex digits of every byte of the weights, the tokenizer and the settings.

        A draft is small, and what training leaves as it was stands at both ends of its table.
        """
        digest = hashlib.blake2b(digest_size=8)
        names = (MODULES, SETTINGS, "tokenizer.json")
        for path in (self.folder / name for name in names):
            digest.update(read_bytes(path, MOST_TOKENIZER) if path.exists() else b"")
        for tensor in self.tensors():
            digest.update(tensor.raw().data)
        return digest.hexdigest()

    def description(self) -> ModelDescription:
        """Return what the files say; no tensor is read whole."""
        tensors = self.tensors()
        types = {"token_embd": self.table.dtype.lower()}
        if self.dense:
            types["dense"] = "+".join(sorted({layer.weight.dtype.lower() for layer in self.dense}))
        paths = {tensor.path for tensor in tensors}
        paths |= {self.folder / name for name in (MODULES, SETTINGS, "tokenizer.json")}
        return ModelDescription(
            path=self.folder,
            format="sentence-transformers",
            architecture="static",
            layers=0,
            hidden=self.table.shape[1],
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            default_dim=self.default_dim,
            max_tokens=MAX_TOKENS,
            vocabulary=self.table.shape[0],
            parameters=sum(tensor.count for tensor in tensors),
            pooling="mean",
            dense=tuple((layer.weight.shape[1], layer.weight.shape[0]) for layer in self.dense),
            prompts=self.prompts,
            types=types,
            size_bytes=sum(path.stat().st_size for path in paths if path.exists()),
            fingerprint=self.fingerprint(),
            licence=licence_of(self.folder),
            draft_of=self.draft_of,
        )


def check_draft(draft_of: Sequence[str], model: str, name: str) -> None:
    """Refuse a draft whose vectors do not lie in the space of a model.

    Args:
        draft_of: fingerprints of the models whose draft it says it is.
        model: fingerprint of the model whose vectors are compared with the draft's.
        name: of the draft, as the user wrote it.

    Raises:
        UsageError: it is no draft, or one of another model.
    """
    if not draft_of:
        raise UsageError(f"{name} is no draft of a model; gemb train draft makes one")
    if model not in draft_of:
        raise UsageError(
            f"{name} is a draft of the model {', '.join(draft_of)}, not of {model}; "
            "gemb train draft init.from=MODEL makes one of that"
        )


def looks_like_static(folder: Path) -> bool:
    """Return whether the folder's first module is a StaticEmbedding."""
    try:
        return _kinds(folder)[0][0] == "StaticEmbedding"
    except (UsageError, OSError):
        return False


def open_static(folder: Path) -> StaticModel:
    """Return the checked folder.

    Raises:
        UsageError: a file is missing or broken, or asks for arithmetic that gemb does not have.
    """
    (first, path), *others = _kinds(folder)
    if first != "StaticEmbedding":
        raise UsageError(f"{folder}: its first module is {first}, no StaticEmbedding")
    table, scales = _table(folder / path / "model.safetensors")
    head: list[DenseLayer | None] = []
    width = table.shape[1]
    for kind, path in others:
        if kind == "Normalize":
            head.append(None)
        elif kind == "Dense":
            layer = _dense(folder / path, width)
            width = layer.weight.shape[0]
            head.append(layer)
        else:
            raise UsageError(f"{folder / MODULES}: module {kind}; gemb has Dense and Normalize")
    settings = read_optional_json(folder / SETTINGS)
    default_dim = default_dim_of(folder, settings, width)
    return StaticModel(
        folder=folder,
        table=table,
        scales=scales,
        head=tuple(head),
        prompts=with_plain(prompts_of(folder, settings)),
        matryoshka_dims=matryoshka_dims_of(folder, settings, default_dim, (width,)),
        default_dim=default_dim,
        draft_of=_draft_of(folder, settings),
    )


def _kinds(folder: Path) -> list[tuple[str, str]]:
    """Return the class and the folder of each module, in their order; at least one."""
    path = folder / MODULES
    try:
        modules = read_json_value(path)
        kinds = [
            (str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules
        ]
    except (TypeError, KeyError) as error:
        raise UsageError(f"{path}: not a list of modules: {error}") from error
    outside = [part for _, part in kinds if part and not is_inside(part)]
    if outside or not kinds:
        what = f"{outside[0]!r} is no folder in the model's" if outside else "no module"
        raise UsageError(f"{path}: {what}")
    return kinds


def _header(path: Path) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise UsageError(f"{path}: missing from the model folder")
    return read_header(path, integers=True)


def _table(path: Path) -> tuple[StoredTensor, StoredTensor | None]:
    tensors = _header(path)
    names = sorted(tensors)
    if names == ["embedding.weight"]:
        table, scales = tensors["embedding.weight"], None
    elif names in (["embeddings"], ["embeddings", "weights"]):
        table, scales = tensors["embeddings"], tensors.get("weights")
    else:
        raise UsageError(
            f"{path}: tensors {', '.join(names) or 'none'}; a static encoder has embeddings, and "
            "weights, or embedding.weight"
        )
    if len(table.shape) != 2 or 0 in table.shape:
        raise UsageError(f"{path}: the table has shape {list(table.shape)}, not [tokens, width]")
    if table.dtype == "I8" and scales is None:
        raise UsageError(f"{path}: whole numbers without weights, one for each token")
    if scales and (scales.shape != table.shape[:1] or scales.dtype == "I8"):
        raise UsageError(
            f"{path}: weights {scales.dtype} {list(scales.shape)}; a float for each of the "
            f"{table.shape[0]} tokens is expected"
        )
    return table, scales


def _dense(folder: Path, width: int) -> DenseLayer:
    path = folder / "config.json"
    raw = read_json(path)
    activation = str(raw.get("activation_function", "Tanh")).rpartition(".")[2]  # absent: Tanh
    if activation not in ACTIVATIONS:
        raise UsageError(f"{path}: activation {activation}; gemb has {', '.join(ACTIVATIONS)}")
    if raw.get("use_residual"):
        raise UsageError(f"{path}: use_residual is not supported")
    size_in, size_out = (whole_number(path, raw, key) for key in ("in_features", "out_features"))
    if size_in != width:
        raise UsageError(f"{path}: in_features {size_in}; what comes before gives {width}")
    tensors = _header(folder / "model.safetensors")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (size_out, size_in)}
    if raw.get("bias", True):
        shapes["linear.bias"] = (size_out,)
    stored = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype != "I8"}
    if stored != shapes:
        raise UsageError(
            f"{folder}: tensors {_shown(stored)}; its config.json makes them {_shown(shapes)}"
        )
    bias = tensors.get("linear.bias")
    return DenseLayer(weight=tensors["linear.weight"], bias=bias, activation=activation)


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"


def _draft_of(folder: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    teachers = settings.get("draft_of", [])
    if not isinstance(teachers, list) or not all(isinstance(teacher, str) for teacher in teachers):
        raise UsageError(f"{folder / SETTINGS}: draft_of must be a list of fingerprints")
    return tuple(teachers)


@dataclass(frozen=True, kw_only=True)
class NewLayer:
    """A dense layer to write."""

    weight: NDArray[np.float32]  # [out, in]
    bias: NDArray[np.float32]  # [out]
    activation: str  # one of `ACTIVATIONS`


def write_static(
    folder: Path,
    table: NDArray[np.float32],
    head: Sequence[NewLayer],
    *,
    matryoshka_dims: Sequence[int],
    draft_of: Sequence[str],
) -> None:
    """Write all of a static encoder but its tokenizer and its card.

    The vector of a text is the mean of its tokens' rows, of length one, through the head. Rows are
    rounded to int8 with a scale each, the head to fp16.

    Args:
        folder: exists.
        table: [tokens, width].
        head: the dense layers.
        matryoshka_dims: widths that were trained.
        draft_of: fingerprints of the models whose space the vectors lie in.

    Raises:
        OSError: a file cannot be written.
    """
    import numpy as np

    rows, scales = int8_rows(table)
    stored = {
        "embeddings": NewTensor("I8", rows.shape, [rows.reshape(-1).view(np.uint8)]),
        "weights": NewTensor("F32", scales.shape, [scales.view(np.uint8)]),
    }
    write_file(folder / "model.safetensors", stored)
    kinds = [("StaticEmbedding", ""), ("Normalize", "1_Normalize")]
    for number, layer in enumerate(head, start=2):
        kinds.append(("Dense", f"{number}_Dense"))
        _write_dense(folder / f"{number}_Dense", layer)
    kinds.append(("Normalize", f"{len(head) + 2}_Normalize"))
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": _MODULE + kind}
        for idx, (kind, path) in enumerate(kinds)
    ]
    write_json(folder / MODULES, modules)
    write_json(
        folder / SETTINGS,
        {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "matryoshka_dims": list(matryoshka_dims),
            "draft_of": list(draft_of),
        },
    )


def int8_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return rows of whole numbers, int8 [tokens, width], and what each is multiplied with."""
    import numpy as np

    largest = np.abs(table).max(axis=1)
    scales = (np.where(largest > 0, largest, 1) / 127).astype("<f4")
    return np.rint(table / scales[:, None]).astype(np.int8), scales


def _write_dense(folder: Path, layer: NewLayer) -> None:
    import numpy as np

    folder.mkdir()
    size_out, size_in = layer.weight.shape
    place = "linear" if layer.activation == "Identity" else "activation"
    config = {
        "in_features": size_in,
        "out_features": size_out,
        "bias": True,
        "activation_function": _ACTIVATION.format(place, layer.activation),
    }
    write_json(folder / "config.json", config)
    halves = {
        "linear.weight": layer.weight.astype("<f2"),
        "linear.bias": layer.bias.astype("<f2"),
    }
    tensors = {
        name: NewTensor("F16", half.shape, [half.reshape(-1).view(np.uint8)])
        for name, half in halves.items()
    }
    write_file(folder / "model.safetensors", tensors)
