"""Open a model: prepare what the cache lacks, and put the encoder's parts together."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.backend import Runtime
from gemb.errors import GembError
from gemb.io.atomic import scratch_folder
from gemb.io.machine import processor_kind
from gemb.models.checkpoint import Checkpoint
from gemb.models.from_gguf import tokenizer_files
from gemb.models.gguf import GgufModel
from gemb.models.tokenizer import load_tokenizer
from gemb_onnx.encode import OnnxEncoder, raw_vectors
from gemb_onnx.graph import FULL_RANGE, VERSION, write_graph
from gemb_onnx.numbers import FolderNumbers, GgufNumbers, Numbers
from gemb_onnx.prepared import prepared, remove
from gemb_onnx.probe import weight_range
from gemb_onnx.runtime import library, session, write_tuned

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

TOKENIZER = "tokenizer.json"
GRAPH, WEIGHTS, VECTOR = "tuned.onnx", "tuned.bin", "vector.npy"
# Of a self-test's vector, beside its length. Runs of one graph on one processor are alike to the
# last bit; another version of the system's mathematics may round the last ones otherwise.
_TOLERANCE = 1e-5
_SELF_TEST = np.arange(2, 6, dtype=np.int32)[None]  # ids: BOS, and what follows it


def open_encoder(model: Checkpoint | GgufModel, runtime: Runtime) -> OnnxEncoder:
    """Return the open model.

    Raises:
        UsageError: the model's numbers or its tokenizer are broken.
        Missing: onnxruntime is not here.
        GembError: onnxruntime does not take what was prepared, twice.
    """
    largest = None if runtime.precision == "fp32" else weight_range()
    dtype = "fp32" if largest is None else "int8"
    if isinstance(model, Checkpoint):
        profile = model.profile(dtype)
    else:
        profile = replace(model.profile(), dtype=dtype)
    bits = "-7bit" if largest not in (None, FULL_RANGE) else ""
    made_by = f"{library().__version__}-{VERSION}-{processor_kind()}"
    name = f"{profile.fingerprint}-{dtype}{bits}-{made_by}"
    numbers = FolderNumbers(model) if isinstance(model, Checkpoint) else GgufNumbers(model)
    vocabulary = model.config.vocab_size if isinstance(model, Checkpoint) else model.vocabulary
    for is_last in (False, True):
        folder = prepared(name, partial(_fill, model, numbers, largest))
        path = model.file(TOKENIZER) if isinstance(model, Checkpoint) else folder / TOKENIZER
        with ThreadPoolExecutor(1) as pool:
            # Each takes 0.1 s, and the library does not hold Python's lock: both at once.
            tokenizer = pool.submit(load_tokenizer, path, vocabulary)
            try:
                graph = _checked_graph(folder, numbers, is_verbose=runtime.verbose)
            except Exception as error:  # onnxruntime's own classes, which have no common one
                if is_last:
                    raise GembError(f"onnxruntime does not run {folder}: {error}") from error
                graph = None
        if graph is not None:
            break
        remove(folder)
    assert graph is not None, "the last turn ends so, or raises"
    return OnnxEncoder(numbers, graph, tokenizer.result(), profile, runtime.threads)


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
    """Return the vector of a few tokens, which every weight has a part in, [dim]."""
    vector: NDArray[np.float32] = raw_vectors(numbers, graph, _SELF_TEST)[0]
    return vector


def _fill(
    model: Checkpoint | GgufModel, numbers: Numbers, largest: int | None, folder: Path
) -> None:
    with scratch_folder("graph", folder) as scratch:
        plain = scratch / "plain.onnx"
        write_graph(numbers, plain, largest)
        try:
            write_tuned(plain, folder / GRAPH, WEIGHTS)
            vector = _self_test(numbers, session(folder / GRAPH, is_tuned=True))
        except Exception as error:  # onnxruntime's own classes, which have no common one
            path = model.folder if isinstance(model, Checkpoint) else model.header.path
            raise GembError(f"{path}: onnxruntime does not run its graph: {error}") from error
    np.save(folder / VECTOR, vector)
    if isinstance(model, GgufModel):
        files = tokenizer_files(model.header, model.max_tokens)
        (folder / TOKENIZER).write_text(json.dumps(files[TOKENIZER], ensure_ascii=False), "utf-8")
