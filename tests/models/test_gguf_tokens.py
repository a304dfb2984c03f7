"""llama.cpp's token ids against those of `tokenizers`, on lines made to tell them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemb_llamacpp.export import export
from gguf_tokens import differences
from token_lines import token_lines


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
