"""How much each column of each matrix matters to texts: the importance matrix of llama.cpp.

llama.cpp calls back for each operation of a computation; of a product of a matrix with what comes
in, the mean square of each column's input is kept, as its `llama-imatrix` does. ggml's struct of a
tensor is read for that, which is checked against the library first.
Source: llama.cpp `tools/imatrix/imatrix.cpp`, `ggml/include/ggml.h` (`struct ggml_tensor`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.backend import Runtime
from gemb.errors import GembError
from gemb.io.machine import cores
from gemb.models.gguf import open_gguf
from gemb.models.profile import cut_ids
from gemb_llamacpp.context import Context
from gemb_llamacpp.encode import LlamaCppEncoder
from gemb_llamacpp.native import function, llama, open_model, set_verbose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.arrays import TokenIds
    from gemb.backend import Importance

_F32 = 0  # GGML_TYPE_F32
_TOKENS = 512  # computed at once


class _GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # how many values in each dimension
        ("nb", ctypes.c_size_t * 4),  # bytes from one to the next
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


def importance(model: Path, texts: Sequence[str], runtime: Runtime) -> Importance:
    """Return the mean square of each column's input, float32 [row], by the name of the matrix.

    Args:
        model: a GGUF file of EmbeddingGemma.
        texts: with their prompts; one longer than the model takes is cut.
        runtime: how it is run; on the CPU.

    Raises:
        UsageError: the file is broken.
        GembError: llama.cpp's tensors have another shape than the one known here.
    """
    checked = open_gguf(model)
    set_verbose(runtime.verbose)
    pointer = open_model(model, device="cpu")
    encoder = LlamaCppEncoder(checked, pointer, Runtime(device="cpu"))
    squares = _Squares(frozenset(checked.header.tensors))
    watch = llama().ggml_backend_sched_eval_callback(squares)
    limit = min(checked.max_tokens, _TOKENS)
    context = Context(
        encoder.pointer,
        capacity=_TOKENS,
        dim=checked.dim,
        vocabulary=checked.vocabulary,
        flash=False,
        watch=watch,
    )
    context.set_threads(runtime.threads or cores())
    batch: list[TokenIds] = []
    tokens = 0
    for ids in encoder.tokenize(texts):
        cut = cut_ids(ids, limit, encoder.profile.closing_tokens)
        if batch and (tokens + len(cut) > _TOKENS or len(batch) == context.most_sequences):
            _run(context, batch, squares)
            batch, tokens = [], 0
        batch.append(cut)
        tokens += len(cut)
    if batch:
        _run(context, batch, squares)
    return squares.means()


def _run(context: Context, batch: list[TokenIds], squares: _Squares) -> None:
    context.run(batch)
    if squares.error is not None:
        raise squares.error


class _Squares:
    """llama.cpp's callback: before each operation, to choose it, and after each chosen one."""

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known  # names of the file's tensors
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._is_checked = False
        self._kind = function(llama()._lib, "ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)
        self.error: Exception | None = None  # one raised into C would be lost

    def __call__(self, pointer: int, asks: bool, _data: object) -> bool:
        try:
            return self._seen(pointer, asks=asks)
        except Exception as error:
            self.error = error
            return not asks  # False after an operation would end the computation

    def _seen(self, pointer: int, *, asks: bool) -> bool:
        if not self._is_checked:
            _check_layout(pointer)
            self._is_checked = True
        product = _GgmlTensor.from_address(pointer)
        if not product.src[0] or not product.src[1]:
            return False
        name = _GgmlTensor.from_address(product.src[0]).name.decode(errors="replace")
        if name not in self._known or self._kind(pointer) != b"MUL_MAT":
            return False
        if not asks:
            self._add(name, _GgmlTensor.from_address(product.src[1]))
        return True

    def _add(self, name: str, input_: _GgmlTensor) -> None:
        if input_.type != _F32 or input_.nb[0] != 4:
            raise GembError(f"what {name} is multiplied with is not in 32 bits")
        columns, rows, *rest = input_.ne
        if rest != [1, 1]:
            raise GembError(f"what {name} is multiplied with has {list(input_.ne)} values")
        step = input_.nb[1] // 4
        flat = np.ctypeslib.as_array(
            ctypes.cast(input_.data, ctypes.POINTER(ctypes.c_float)), ((rows - 1) * step + columns,)
        )
        values = np.lib.stride_tricks.as_strided(flat, (rows, columns), (4 * step, 4))
        wide = values.astype(np.float64)
        self._sums[name] = self._sums.get(name, np.zeros(columns)) + np.square(wide).sum(axis=0)
        self._counts[name] = self._counts.get(name, 0) + int(rows)

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean square of each column's input, by matrix."""
        return {
            name: (total / self._counts[name]).astype(np.float32)
            for name, total in self._sums.items()
        }


def _check_layout(pointer: int) -> None:
    """Refuse a library whose tensors have their name in another place."""
    name_of = function(llama()._lib, "ggml_get_name", ctypes.c_void_p, ctypes.c_void_p)
    if name_of(pointer) != pointer + _GgmlTensor.name.offset:
        raise GembError(
            "the installed llama.cpp has a tensor layout that gemb does not know, so --imatrix "
            "cannot read what the tensors are multiplied with; leave it out"
        )
