"""llama.cpp's token ids against those of `tokenizers`, on lines made to tell them apart."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest
from tokenizers import Tokenizer

from gemb_llamacpp.export import export
from gemb_llamacpp.native import llama
from token_lines import token_lines


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


def test_the_lines_are_many_varied_and_the_same_each_time():
    lines = token_lines(20_000)
    assert lines == token_lines(20_000)
    assert len(lines) == 20_000
    assert len(set(lines)) > 17_000
    assert any("\0" in line for line in lines)
    assert any("<eos>" in line for line in lines)


def test_llama_cpp_gives_the_ids_of_tokenizers(tiny_gguf: Path, tiny_model: Path):
    assert differences(tiny_gguf, tiny_model, token_lines(20_000)) == []


def test_a_wrong_score_is_noticed(tiny_model: Path, tmp_path: Path, monkeypatch):
    """The comparison has teeth: with two scores exchanged, the ids differ."""
    import gemb_llamacpp.export as vocabulary

    right = vocabulary._scores

    def wrong(*args):
        scores = right(*args)
        scores["th"], scores["ar"] = scores["la"], scores["t▁i"]
        scores["he"] = 1.0
        return {token: -score for token, score in scores.items()}

    monkeypatch.setattr(vocabulary, "_scores", wrong)
    export(tiny_model, tmp_path / "wrong.gguf", "f32")
    assert differences(tmp_path / "wrong.gguf", tiny_model, token_lines(2000))


@pytest.mark.real
@pytest.mark.slow
def test_llama_cpp_gives_the_ids_of_tokenizers_on_the_real_vocabulary(
    real_model: Path, tmp_path: Path
):
    export(real_model, tmp_path / "real.gguf", "q4_0")
    assert differences(tmp_path / "real.gguf", real_model, token_lines(20_000)) == []
