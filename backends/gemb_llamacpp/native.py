"""llama.cpp's library: loaded once, without output, and kept from aborting the process.

Only the ctypes module of llama-cpp-python is used: it knows the structs of the library beside it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from gemb.errors import GembError, Missing
from gemb.io.text import visible_lines

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
DONTNEED = 4  # Linux's MADV_DONTNEED
_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU

# Older compilers drop the stores into the tile configuration before ggml loads it, because the
# header's asm statement does not say that it reads them; the first product is then a segmentation
# fault. Source: gcc's amxtileintrin.h, `_tile_loadconfig`; ggml-cpu/amx/mmq.cpp.
_FIRST_GCC_FOR_AMX = (13, 2, 1)
_KEEPS_STORES = (b"-fno-dse", b"-fno-tree-dse")  # with which an older one is right, too

_errors: deque[str] = deque(maxlen=3)
_is_verbose = False
_log_lines: list[str] | None = None  # the library's log, while `captured_log`
_callbacks: list[object] = []


@cache
def llama() -> ModuleType:
    """Return the ctypes module of llama.cpp, its log caught and its backends ready."""
    # ggml would start a debugger to print where it aborted.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    # OpenMP's threads spin for a millisecond at each barrier by default, and where something else
    # uses the cores, each spins a whole time slice away: a text then takes four times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    module = _ctypes_module()
    callback = module.llama_log_callback(_log)
    _callbacks.append(callback)  # the library keeps a bare pointer to it
    module.llama_log_set(callback, None)
    with _silence():  # some lines are written past the log
        module.llama_backend_init()
        if uses_broken_amx(module):
            _leave_out_amx(module._lib)
    return module


def set_verbose(verbose: bool) -> None:
    """Show or hide the library's own messages on stderr from now on."""
    global _is_verbose
    _is_verbose = verbose


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Yield a list that receives the library's log from now on, in pieces of lines."""
    global _log_lines
    pieces: list[str] = []
    _log_lines = pieces
    try:
        yield pieces
    finally:
        _log_lines = None


def last_errors() -> str:
    """Return the library's last error messages on one line, and clear them."""
    message = "; ".join(_errors)
    _errors.clear()
    return message


def open_model(path: Path, *, device: str) -> int:
    """Return a pointer to the loaded model; its weights stay in the file where they can.

    Args:
        path: a file that `gemb.models.gguf.open_gguf` has checked.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        Missing: a GPU is asked for, and this library has no support for any.
        GembError: the library refuses the file, or there is not enough memory.
    """
    library = llama()
    parameters = library.llama_model_default_params()
    if not uses_gpu(device):
        parameters.n_gpu_layers = 0
    else:
        parameters.n_gpu_layers = 1 << 16  # all
        if ":" in device:
            parameters.main_gpu = int(device.partition(":")[2])
            parameters.split_mode = library.LLAMA_SPLIT_MODE_NONE
    last_errors()
    model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise GembError(f"{path}: llama.cpp does not load it: {last_errors() or 'no reason given'}")
    _forget_file(path)
    return int(model)


def uses_gpu(device: str) -> bool:
    """Return whether a model on this device runs on a GPU.

    Raises:
        Missing: one is asked for, and this library has no support for any.
    """
    if device == "cpu":
        return False
    if llama().llama_supports_gpu_offload():
        return True
    if device == "auto":
        return False
    raise Missing(
        f"device {device}: this llama-cpp-python was built for the CPU alone; build it again: "
        "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python"
    )


def features() -> list[str]:
    """Return the processor features that the library was built for: AVX512, AMX_INT8, ..."""
    text = llama().llama_print_system_info().decode()
    return re.findall(r"(\w+) = 1", text)


def uses_broken_amx(module: ModuleType) -> bool:
    """Return whether the library would use AMX and its compiler is not known to do that rightly."""
    if b"AMX_INT8 = 1" not in module.llama_print_system_info():
        return False
    return compiler(Path(module._lib._name).parent) < _FIRST_GCC_FOR_AMX


def compiler(folder: Path) -> tuple[int, ...]:
    """Return the version of gcc that built ggml's CPU code, () where that is not known.

    (99,) stands for a compiler that has no such fault: clang, or gcc with `_KEEPS_STORES`. The file
    names its compiler in `.comment`, its flags (-frecord-gcc-switches) in `.GCC.command.line`.
    """
    for path in sorted(folder.glob("libggml-cpu*.so")):
        data = path.read_bytes()
        if b"clang version" in data or all(flag in data for flag in _KEEPS_STORES):
            return (99,)
        versions = re.findall(rb"GCC: \([^)]*\) (\d+)\.(\d+)\.(\d+)", data)
        if versions:
            return min(tuple(map(int, version)) for version in versions)
    return ()


def _ctypes_module() -> ModuleType:
    """Import `llama_cpp.llama_cpp` without its package, whose `__init__` takes 80 ms for chat.

    The package is left to be imported in full by whoever needs it. Where the module does not stand
    alone, the ordinary import is what remains.
    """
    name = "llama_cpp"
    spec = find_spec(name)
    if name not in sys.modules and spec and spec.submodule_search_locations:
        stand_in = ModuleType(name)
        stand_in.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = stand_in
        try:
            return importlib.import_module(f"{name}.{name}")
        except (ImportError, AttributeError):
            sys.modules.pop(f"{name}.{name}", None)
        finally:
            del sys.modules[name]
    try:
        return importlib.import_module(f"{name}.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise Missing(
            f"llama-cpp-python does not load ({reason}); install it again: "
            "pip install --force-reinstall --no-cache-dir llama-cpp-python"
        ) from error


def _log(level: int, text: bytes | None, _data: object) -> None:
    line = (text or b"").decode(errors="replace")
    if _log_lines is not None:
        _log_lines.append(line)
    if _is_verbose and sys.stderr is not None:
        sys.stderr.write(visible_lines(line))  # it quotes the file
    if level == _ERROR and line.strip():
        _errors.append(" ".join(line.split()))


def _leave_out_amx(library: ctypes.CDLL) -> None:
    """Take AMX out of the CPU's list of buffer types, so that no weight is packed for it."""
    pointer = ctypes.c_void_p
    device_of = function(library, "ggml_backend_dev_by_type", pointer, ctypes.c_int)
    registry_of = function(library, "ggml_backend_dev_backend_reg", pointer, pointer)
    address_of = function(
        library, "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p
    )
    name_of = function(library, "ggml_backend_buft_name", ctypes.c_char_p, pointer)
    device = device_of(_CPU_DEVICE)
    address = address_of(registry_of(device), b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return
    types = ctypes.CFUNCTYPE(ctypes.POINTER(pointer), pointer)(address)(device)
    every: list[int] = []
    while types[len(every)]:  # ended by a null pointer
        every.append(types[len(every)])
    without_amx = [kind for kind in every if name_of(kind) != b"AMX"]
    for index in range(len(every)):
        types[index] = without_amx[index] if index < len(without_amx) else None


def function(library: ctypes.CDLL, name: str, result: type, *arguments: type) -> Callable[..., Any]:
    """Return a function of the library, with the types of its result and arguments."""
    function = library[name]  # a new one each time: others' types stay as they are
    function.restype = result
    function.argtypes = arguments
    return function


def _forget_file(path: Path) -> None:
    """Take the file's pages out of this process; the kernel has them, and gives back what is used.

    llama.cpp maps all of it in advance, but of the tokens' table only a few rows are ever read, and
    weights that it has packed anew are not read again.
    """
    if sys.platform != "linux":
        return
    name = os.fsencode(path.resolve())
    advise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        if line.endswith(b" " + name):
            start, end = (int(part, 16) for part in line.split(b" ", 1)[0].split(b"-"))
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what is written to file descriptor 2 while the block runs."""
    if _is_verbose or sys.stderr is None:  # None: it was closed before the start
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
