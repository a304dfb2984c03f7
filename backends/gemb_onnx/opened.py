"""Open a model: prepare what the cache lacks, and put the encoder's parts together."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemb.backend import Runtime
from gemb.errors import GembError
from gemb.models.checkpoint import Checkpoint
from gemb.models.from_gguf import tokenizer_files
from gemb.models.gguf import GgufModel
from gemb.models.tokenizer import load_tokenizer
from gemb_onnx.encode import OnnxEncoder
from gemb_onnx.graph import FULL_RANGE, GRAPH, VERSION, write_graph
from gemb_onnx.numbers import FolderNumbers, GgufNumbers, Numbers
from gemb_onnx.prepared import prepared, remove
from gemb_onnx.probe import weight_range
from gemb_onnx.runtime import library, session

TOKENIZER = "tokenizer.json"


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
    name = f"{profile.fingerprint}-{dtype}{bits}-{library().__version__}-{VERSION}"
    numbers = FolderNumbers(model) if isinstance(model, Checkpoint) else GgufNumbers(model)
    fill = partial(_fill, model, numbers, largest)
    for is_last in (False, True):
        made = prepared(name, fill)
        try:
            graph = session(made / GRAPH, threads=1, is_verbose=runtime.verbose)
        except Exception as error:  # onnxruntime's own classes, which have no common one
            if is_last:
                raise GembError(f"onnxruntime does not open {made}: {error}") from error
            remove(made)
            continue
        break
    path = model.file(TOKENIZER) if isinstance(model, Checkpoint) else made / TOKENIZER
    vocabulary = model.config.vocab_size if isinstance(model, Checkpoint) else model.vocabulary
    tokenizer = load_tokenizer(path, vocabulary)
    return OnnxEncoder(numbers, graph, tokenizer, profile, runtime.threads)


def _fill(
    model: Checkpoint | GgufModel, numbers: Numbers, largest: int | None, folder: Path
) -> None:
    write_graph(numbers, folder, largest)
    if isinstance(model, GgufModel):
        files = tokenizer_files(model.header, model.max_tokens)
        (folder / TOKENIZER).write_text(json.dumps(files[TOKENIZER], ensure_ascii=False), "utf-8")
