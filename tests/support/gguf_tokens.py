"""llama.cpp's token ids of lines, beside those of `tokenizers`."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
from tokenizers import Tokenizer

from gemb_llamacpp.native import llama


@contextmanager
def _vocabulary(gguf: Path) -> Iterator[ctypes.c_void_p]:
    llama()  # silences the library, for as long as the process lives
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), parameters)
    assert model, "llama.cpp does not load the file"
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


def _llama_ids(vocabulary: ctypes.c_void_p, text: str) -> list[int]:
    raw = text.encode()
    ids = (llama_cpp.llama_token * (len(raw) + 8))()
    # add_special: BOS and EOS; parse_special: literal special tokens count, as in `tokenizers`.
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), True, True)
    assert count >= 0, text
    return list(ids[:count])


def _tokenizer(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer without added tokens beyond the table, as gemb runs it."""
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < rows]
    return Tokenizer.from_str(json.dumps(raw))


def differences(gguf: Path, folder: Path, lines: Sequence[str]) -> list[str]:
    """Return the lines whose ids differ."""
    encodings = _tokenizer(folder).encode_batch_fast(list(lines))
    with _vocabulary(gguf) as vocabulary:
        return [
            line
            for line, encoding in zip(lines, encodings, strict=True)
            if _llama_ids(vocabulary, line) != encoding.ids
        ]
