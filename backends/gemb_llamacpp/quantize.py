"""Quantize a GGUF file with llama.cpp, which is told the type of every tensor.

The plan comes first: llama.cpp's own choice for a mix, then the fallbacks and the user's rules. It
is handed to llama.cpp as an override for each tensor, so what is planned is what is written.

llama.cpp's choice is read from its log of a dry run. A table of its rules (`llama_tensor_get_type`
in `src/llama-quant.cpp`: by mix, tensor, layer and number of layers) would be several times as long
as the two patterns here, even for the mixes of K-quants alone, and would have to follow the
installed version; where llama.cpp changes the log, a mix is refused and the types of `PURE` still
work.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.backend import Quantization, TensorPlan
from gemb.errors import GembError, UsageError
from gemb.io.machine import cores
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import ALIGNMENT, TENSORS, GgufHeader, read_header
from gemb.weights.types import FILE_TYPES, PLAIN, PURE, WANTS_IMPORTANCE, fitting, is_matrix
from gemb_llamacpp.native import captured_log, last_errors, llama

if TYPE_CHECKING:
    from gemb.backend import Importance


REFERENCED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")  # types whose reference gguf has, bit for bit
_ROWS = 4096  # of a tensor in memory at a time
TABLE = "token_embd.weight"
_CARRIER = 7  # LLAMA_FTYPE_MOSTLY_Q8_0: llama.cpp heeds overrides in a quantized type alone
_INT = 0  # LLAMA_KV_OVERRIDE_TYPE_INT
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +\S+, size =[^\n(]*(?:\((\S+)\))?")
_MISFIT = re.compile(
    r"warning: (\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(\S+)\)"
)


def quantize(
    source: Path,
    target: Path | None,
    quantization: Quantization,
    threads: int,
    plan: tuple[TensorPlan, ...] | None = None,
) -> tuple[TensorPlan, ...]:
    """Write `source` in other types as `target`, which is overwritten.

    Args:
        source: a GGUF file of EmbeddingGemma.
        target: the file. It is whole only when this returns. None: only plan.
        quantization: the types.
        threads: 0: one for each core.
        plan: as an earlier call returned it; None: it is made.

    Returns:
        What becomes of each tensor, in the file's order.

    Raises:
        UsageError: the file is broken, a rule finds no tensor, or a type requires an importance.
        GembError: llama.cpp fails; the message has its reason.
        OSError: the file cannot be written.
    """
    header = open_gguf(source).header
    if plan is None:
        plan = _plan(header, quantization)
        _check(plan, quantization)
    if target is not None:
        _write(header, target, plan, quantization, threads or cores())
    return plan


def _plan(header: GgufHeader, quantization: Quantization) -> tuple[TensorPlan, ...]:
    """Return what becomes of each tensor: a rule's type, or llama.cpp's own choice for the mix."""
    chosen, misfits = _chosen(header, quantization)
    for rule in quantization.rules:
        if not any(re.search(rule.pattern, name) for name in chosen):
            raise UsageError(
                f"{rule.pattern}={rule.type}: no tensor has such a name; names are "
                "token_embd.weight, blk.0.attn_q.weight, blk.0.ffn_down.weight, dense_2.weight"
            )
    plans = []
    for name, tensor in header.tensors.items():
        source = tensor.type.lower()
        type_ = desired = source
        if is_matrix(tensor.shape):
            rules = [rule.type for rule in quantization.rules if re.search(rule.pattern, name)]
            desired = rules[0] if rules else misfits.get(name, chosen[name])
            type_ = fitting(rules[0] if rules else chosen[name], tensor.shape[0])
        plans.append(
            TensorPlan(name=name, shape=tensor.shape, source=source, type=type_, requested=desired)
        )
    return tuple(plans)


def _chosen(
    header: GgufHeader, quantization: Quantization
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the type of each matrix in a file of this type, and the types that rows do not fit."""
    kind = FILE_TYPES[quantization.type]
    matrices = [name for name, tensor in header.tensors.items() if is_matrix(tensor.shape)]
    if quantization.type in PURE:
        return dict.fromkeys(matrices, kind.base), {}
    imatrix = _imatrix(quantization.importance)
    parameters = _parameters(ftype=kind.number, dry_run=True, imatrix=imatrix)
    with captured_log() as pieces:
        _run(header.path, Path(os.devnull), parameters)  # a dry run opens no target
    log = "".join(pieces)
    types = {name: (type_ or header.tensors[name].type) for name, type_ in _TENSOR.findall(log)}
    if types.keys() != header.tensors.keys():
        raise GembError(
            "the installed llama-cpp-python logs its plan in words that gemb does not know; types "
            f"that need no plan: {', '.join(PURE)}"
        )
    chosen = {name: types[name].lower() for name in matrices}
    chosen[TABLE] = kind.table or kind.base
    misfits = {name: type_.lower() for name, type_ in _MISFIT.findall(log) if name != TABLE}
    return chosen, misfits


def _check(plan: tuple[TensorPlan, ...], quantization: Quantization) -> None:
    """Refuse types whose quantizer would have no importance: it aborts, or its result is noise."""
    known = quantization.importance or {}
    for tensor in plan:
        if tensor.type in WANTS_IMPORTANCE and tensor.name not in known:
            if tensor.name == TABLE:
                raise UsageError(
                    f"{tensor.type} for {TABLE}: it requires an importance matrix, and a table "
                    "that is only looked up in has none; q2_k and iq3_s require none"
                )
            raise UsageError(
                f"{tensor.type} for {tensor.name} requires an importance matrix: give "
                "--imatrix CORPUS, or take q2_k or q3_k_m"
            )


def _write(
    header: GgufHeader,
    target: Path,
    plan: tuple[TensorPlan, ...],
    quantization: Quantization,
    threads: int,
) -> None:
    library = llama()
    overrides = [(tensor.name, tensor.type) for tensor in plan if is_matrix(tensor.shape)]
    rules = (library.llama_model_tensor_override * (len(overrides) + 1))()  # ended by no pattern
    for rule, (name, type_) in zip(rules, overrides, strict=False):
        rule.pattern = f"^{re.escape(name)}$".encode()
        rule.type = TENSORS[type_][0]
    number = (library.llama_model_kv_override * 2)()  # ended by an empty key
    number[0].tag = _INT
    number[0].key = b"general.file_type"
    number[0].value.val_i64 = FILE_TYPES[quantization.type].number
    parameters = _parameters(
        nthread=threads,
        allow_requantize=True,  # whether the source may be quantized is asked before
        ftype=_CARRIER,
        tt_overrides=rules,
        kv_overrides=number,
        imatrix=_imatrix(quantization.importance),
    )
    try:
        _run(header.path, target, parameters)
    except GembError:
        _check_disk(target, plan)
        raise
    _check_disk(target, plan)
    written = read_header(target).tensors
    wrong = [tensor.name for tensor in plan if written[tensor.name].type.lower() != tensor.type]
    assert not wrong, f"llama.cpp gave {wrong[0]} another type than it was told"
    if quantization.is_exact:
        make_exact(header, target, plan)


def _parameters(**settings: Any) -> Any:  # noqa: ANN401
    parameters = llama().llama_model_quantize_default_params()
    for name, value in settings.items():
        assert hasattr(parameters, name), f"this llama-cpp-python has no {name}"
        if value is not None:
            setattr(parameters, name, value)
    return parameters


def _imatrix(importance: Importance | None) -> object:
    """Return llama.cpp's form of an importance, which must outlive it; None: there is none."""
    if not importance:
        return None
    entries = (llama().llama_model_imatrix_data * (len(importance) + 1))()  # ended by no name
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    return entries


def _run(source: Path, target: Path, parameters: Any) -> None:  # noqa: ANN401
    """Quantize in a thread of its own, so that Ctrl-C takes effect while llama.cpp computes."""
    status: list[int] = []
    last_errors()
    arguments = (os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))

    def work() -> None:
        status.append(llama().llama_model_quantize(*arguments))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if status != [0]:
        reason = last_errors().rpartition("failed to quantize: ")[2]
        raise GembError(f"{source}: llama.cpp does not quantize it: {reason or 'no reason given'}")


def _check_disk(target: Path, plan: tuple[TensorPlan, ...]) -> None:
    """Raise the disk's error where the file is too short; llama.cpp does not report it.

    Raises:
        OSError: it takes no more.
    """
    least = sum(-(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT for tensor in plan)
    size = target.stat().st_size if target.exists() else 0
    if size < least:
        with target.open("ab") as file:  # the same write once more: now the error is seen
            file.write(bytes(least - size))


def make_exact(source: GgufHeader, target: Path, plan: Sequence[TensorPlan]) -> None:
    """Overwrite the blocks of a file that are not the reference's.

    A compiler may fuse a product and a sum into one step, which rounds otherwise, and a few codes
    of a million then differ. Training that imitates the rounding imitates ggml's reference, as
    gguf's quantizers do; so a file of trained types gets the reference's blocks.

    Args:
        source: the unquantized file.
        target: what llama.cpp made of it.
        plan: the types of its tensors.

    Raises:
        UsageError: a type has no reference here.
    """
    import gguf
    import numpy as np

    written = read_header(target)
    with source.path.open("rb") as file:
        source_data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with target.open("r+b") as file:
        for tensor in plan:
            if not is_matrix(tensor.shape) or tensor.type in PLAIN:
                continue
            if tensor.type not in REFERENCED or tensor.source not in PLAIN:
                raise UsageError(
                    f"{tensor.name} from {tensor.source} to {tensor.type}: only "
                    f"{', '.join(REFERENCED)} can be exact"
                )
            kind = gguf.GGMLQuantizationType[tensor.type.upper()]
            before, after = source.tensors[tensor.name], written.tensors[tensor.name]
            rows = tensor.shape[1]
            raw = np.frombuffer(source_data, np.uint8, before.size_bytes, before.offset)
            raw = raw.reshape(rows, -1)
            file.seek(after.offset)
            for begin in range(0, rows, _ROWS):
                wide = gguf.dequantize(
                    raw[begin : begin + _ROWS], gguf.GGMLQuantizationType[tensor.source.upper()]
                )
                with np.errstate(all="ignore"):  # llama.cpp has looked at the scales
                    packed = gguf.quantize(np.ascontiguousarray(wide, np.float32), kind)
                file.write(np.ascontiguousarray(packed).data)
