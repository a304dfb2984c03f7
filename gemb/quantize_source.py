"""What is quantized: an unquantized GGUF file, which a model folder is exported to first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.notes import warn
from gemb.models.gguf import GgufModel, open_gguf
from gemb.models.gguf_header import GgufHeader
from gemb.models.qat import GGUF_KEY, gguf_types
from gemb.plugins import able
from gemb.quantization import FILE_TYPES, PLAIN, is_matrix


@dataclass(frozen=True, kw_only=True)
class Source:
    """A GGUF file to be quantized."""

    gguf: Path
    type: str  # of its matrices: f32, bf16, f32+bf16
    other_bytes: int  # of the file, besides the tensors': mostly the vocabulary
    prompts: Mapping[str, str]
    qat: Mapping[str, str]  # token_embd, attention, ffn, dense -> type it was trained for; or none


@contextmanager
def opened_source(
    model: Path, scratch: Path | None, *, requantize: bool, weights: bool = True
) -> Iterator[Source]:
    """Yield the source; what a folder was exported to is gone afterwards.

    Args:
        model: a model folder or a GGUF file.
        scratch: the folder for the export, as large as the model in 32 bits; None: the system's.
        requantize: take a file whose matrices are quantized already.
        weights: False: a header is enough, and of a folder no more is written.

    Raises:
        UsageError: it is quantized already, or no model.
        OSError: there is no room for the export.
    """
    if not model.is_dir():
        checked = open_gguf(model)
        _refuse_quantized(checked.header, requantize=requantize)
        yield _source(checked)
        return
    with tempfile.TemporaryDirectory(prefix=".gemb-quantize-", dir=scratch) as folder:
        exported = Path(folder) / "source.gguf"
        with naming(Path(folder).parent):
            able("export_gguf").export_gguf(model, exported, outtype="f32", weights=weights)
        yield _source(open_gguf(exported))


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let an error of a file that is gone afterwards name the folder, which may be full."""
    try:
        yield
    except OSError as error:
        if error.filename is None or folder in Path(os.fsdecode(error.filename)).parents:
            error.filename = str(folder)
        raise


def model_name(model: Path) -> str:
    """Return what files made of a model are called: its name without a type at the end."""
    if model.is_dir():
        return model.resolve().name
    head, _, tail = model.stem.rpartition("-")
    return head if head and tail.lower() in FILE_TYPES else model.stem


def _source(model: GgufModel) -> Source:
    header = model.header
    types = {one.type for one in header.tensors.values() if is_matrix(one.shape)}
    return Source(
        gguf=header.path,
        type="+".join(sorted(types)),
        other_bytes=header.data_start,
        prompts=model.prompts,
        qat=_trained(model),
    )


def _trained(model: GgufModel) -> dict[str, str]:
    """Return the types that the model was trained for; none where its numbers are others by now."""
    types = gguf_types(model)
    if not types and GGUF_KEY in model.header.metadata:
        warn(
            f"{model.header.path} was trained for its types, but its numbers are "
            f"{model.types()['ffn']} by now; quantize the model folder or an f32 file of it"
        )
    return types


def _refuse_quantized(header: GgufHeader, *, requantize: bool) -> None:
    for tensor in header.tensors.values():
        if is_matrix(tensor.shape) and tensor.type.lower() not in PLAIN and not requantize:
            raise UsageError(
                f"{header.path} is quantized already ({tensor.name} is {tensor.type}), and its "
                "losses would add up; quantize the model folder or a bf16 file of it, or say "
                "--requantize"
            )
