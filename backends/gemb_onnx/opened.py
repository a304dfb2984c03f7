"""Open a model: prepare what the cache lacks, and put the encoder's parts together."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemb.backend import Runtime
from gemb.errors import GembError, UsageError
from gemb.io.atomic import process_folder, scratch_folder
from gemb.io.machine import processor_kind
from gemb.models.gguf import GgufModel
from gemb.models.quick_tokenizer import LazyTokenizer, QuickTokenizer, quick_arrays
from gemb_onnx.encode import OnnxEncoder, raw_vectors
from gemb_onnx.graph import FULL_RANGE, VERSION, write_graph
from gemb_onnx.prepared import of_process, prepared, remove
from gemb_onnx.probe import weight_range
from gemb_onnx.runtime import library, session, write_tuned
from gemb_onnx.smoothing import Smoothed

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gemb.models.checkpoint import Checkpoint
    from gemb_onnx.numbers import Numbers

TOKENIZER = "tokenizer.json"
GRAPH, WEIGHTS, VECTOR = "tuned.onnx", "tuned.bin", "vector.npy"
QUICK = "tokenizer.npz"
# Of a self-test's vector, beside its length. Runs of one graph on one processor are alike to the
# last bit; another version of the system's mathematics may round the last ones otherwise.
_TOLERANCE = 1e-5
_SELF_TEST = np.arange(2, 6, dtype=np.int32)[None]  # ids: BOS, and what follows it


def open_encoder(model: Checkpoint | GgufModel, runtime: Runtime) -> OnnxEncoder:
    """Return the open model.

    Raises:
        UsageError: the model's numbers or its tokenizer are broken, or int8 cannot be exact here.
        Missing: onnxruntime is not here.
        GembError: onnxruntime does not take what was prepared, twice.
    """
    largest = None if runtime.precision == "fp32" else weight_range()
    if runtime.precision == "auto" and largest != FULL_RANGE:
        largest = None  # products of AVX2 are as fast in fp32, and nearer
    if runtime.precision == "int8" and largest is None:
        raise UsageError("precision 'int8': this processor's integer products are not exact; fp32")
    dtype = "fp32" if largest is None else "int8"
    if isinstance(model, GgufModel):
        profile = replace(model.profile(), dtype=dtype)
    else:
        profile = model.profile(dtype)
    bits = "-7bit" if largest not in (None, FULL_RANGE) else ""
    made_by = f"{library().__version__}-{VERSION}-{processor_kind()}"
    name = f"{profile.fingerprint}-{dtype}{bits}-{made_by}"
    numbers = _numbers(model)
    fill = partial(_fill, model, numbers, largest)
    folder = prepared(name, fill)
    for is_last in (False, True):
        try:
            graph = _checked_graph(folder, numbers, is_verbose=runtime.verbose)
            tokenizer = _tokenizer(model, folder)
            break
        except Exception as error:  # onnxruntime's own classes, which have no common one
            if is_last:
                raise GembError(f"onnxruntime does not run {folder}: {error}") from error
        remove(folder)
        folder = of_process(fill) if folder.exists() else prepared(name, fill)
    return OnnxEncoder(numbers, graph, tokenizer, profile, runtime.threads)


def _numbers(model: Checkpoint | GgufModel) -> Numbers:
    if isinstance(model, GgufModel):
        from gemb_onnx.gguf_numbers import GgufNumbers

        return GgufNumbers(model)
    from gemb_onnx.folder_numbers import FolderNumbers

    return FolderNumbers(model)


def _tokenizer(model: Checkpoint | GgufModel, folder: Path) -> LazyTokenizer:
    """Return the tokenizer of a model whose prepared folder this is."""
    load = partial(_library_tokenizer, model, folder)
    with np.load(folder / QUICK, allow_pickle=False) as arrays:
        quick = QuickTokenizer(arrays) if arrays.files else None
    return LazyTokenizer(quick, load)


def _library_tokenizer(model: Checkpoint | GgufModel, folder: Path) -> Tokenizer:
    from gemb.models.tokenizer import load_tokenizer

    if not isinstance(model, GgufModel):
        return load_tokenizer(model.file(TOKENIZER), model.config.vocab_size)
    path = folder / TOKENIZER
    if not path.is_file():  # the cache was removed since the model was opened
        path = process_folder("tokenizer") / TOKENIZER
        _write_tokenizer(model, path)
    return load_tokenizer(path, model.vocabulary)


def _write_tokenizer(model: GgufModel, path: Path) -> Mapping[str, Any]:
    """Write a file's tokenizer as tokenizer.json, and return what was written."""
    from gemb.models.from_gguf import tokenizer_files

    tokenizer = tokenizer_files(model.header, model.max_tokens)[TOKENIZER]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    return tokenizer


def _checked_graph(
    folder: Path, numbers: Numbers, *, is_verbose: bool
) -> onnxruntime.InferenceSession:
    """Return the open graph of a prepared folder.

    Raises:
        GembError: it does not compute what it did when it was prepared.
        Exception: of onnxruntime: it does not take it.
    """
    graph = session(folder / GRAPH, is_tuned=True, is_verbose=is_verbose)
    stored = np.load(folder / VECTOR, allow_pickle=False)
    vector = _self_test(numbers, graph)
    if vector.shape != stored.shape:
        raise GembError(f"a vector of {len(vector)} numbers, not {len(stored)}")
    share = float(np.linalg.norm(vector - stored) / np.linalg.norm(stored))
    if not share <= _TOLERANCE:
        raise GembError(f"the vector of a known text is {share:.0e} away")
    return graph


def _self_test(numbers: Numbers, graph: onnxruntime.InferenceSession) -> NDArray[np.float32]:
    """Return the vector of four tokens, which every layer has a part in, [dim]."""
    vector: NDArray[np.float32] = raw_vectors(numbers, graph, _SELF_TEST)[0]
    return vector


def _fill(
    model: Checkpoint | GgufModel, numbers: Numbers, largest: int | None, folder: Path
) -> None:
    with ThreadPoolExecutor(1) as beside:  # Python's work beside that of the libraries
        tokenizer = beside.submit(_fill_tokenizer, model, folder)
        _fill_graph(model, numbers, largest, folder)
        tokenizer.result()


def _fill_graph(
    model: Checkpoint | GgufModel, numbers: Numbers, largest: int | None, folder: Path
) -> None:
    with scratch_folder("graph", folder) as scratch:
        plain = scratch / "plain.onnx"
        write_graph(numbers if largest is None else Smoothed(numbers), plain, largest)
        try:
            write_tuned(plain, folder / GRAPH, WEIGHTS)
            vector = _self_test(numbers, session(folder / GRAPH, is_tuned=True))
        except Exception as error:  # onnxruntime's own classes, which have no common one
            needed = sum(file.stat().st_size for file in scratch.iterdir())
            if shutil.disk_usage(folder).free < needed:  # the library does not say so
                reason = os.strerror(errno.ENOSPC)
                raise OSError(errno.ENOSPC, reason, str(folder)) from error
            path = model.header.path if isinstance(model, GgufModel) else model.folder
            raise GembError(f"{path}: onnxruntime does not run its graph: {error}") from error
    np.save(folder / VECTOR, vector)


def _fill_tokenizer(model: Checkpoint | GgufModel, folder: Path) -> None:
    if isinstance(model, GgufModel):
        tokenizer = _write_tokenizer(model, folder / TOKENIZER)
    else:
        from gemb.models.config import MOST_TOKENIZER, read_json

        tokenizer = read_json(model.file(TOKENIZER), MOST_TOKENIZER)
    _library_tokenizer(model, folder)  # refuses what is not Gemma's
    arrays: dict[str, Any] = dict(quick_arrays(tokenizer) or {})
    np.savez(folder / QUICK, **arrays)
