"""Bad files never reach llama.cpp, which would end the process; what it refuses is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemb.backend import Runtime
from gemb.errors import GembError, UsageError
from gemb.models.gguf_header import read_header
from gemb.plugins import named
from gemb_llamacpp import native


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        named("llamacpp").open(path, Runtime())
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_cut_in_half_is_refused_with_both_sizes(tiny_gguf, tmp_path):
    data = tiny_gguf.read_bytes()
    path = tmp_path / "half.gguf"
    path.write_bytes(data[: len(data) // 2])
    assert "cut short" in refusal(path)
    assert str(len(data) // 2) in refusal(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\0" * 4096, b"no model at all" * 100])
def test_what_is_no_gguf_is_refused(tmp_path, content: bytes):
    path = tmp_path / "none.gguf"
    path.write_bytes(content)
    assert "not a whole GGUF file" in refusal(path)


def test_a_folder_or_a_missing_file_is_no_gguf(tmp_path):
    assert not named("llamacpp").can_open(tmp_path)
    assert "no such GGUF file" in refusal(tmp_path / "absent.gguf")


def test_without_its_dense_layers_the_file_and_the_way_out_are_named(tiny_gguf, tmp_path):
    data = tiny_gguf.read_bytes()
    path = tmp_path / "no-dense.gguf"
    path.write_bytes(data.replace(b"dense_2.weight", b"other_2.weight"))
    assert "its dense layers (dense_2, dense_3) are missing" in refusal(path)
    assert "gemb export-gguf FOLDER" in refusal(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("gemma-embedding2", "EmbeddingGemma 2"), ("llama", "gemb runs gemma-embedding files")],
)
def test_another_architecture_is_refused_with_its_reason(tmp_path, architecture: str, message: str):
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert f"architecture {architecture}: " in refusal(path)
    assert message in refusal(path)


def test_what_llama_cpp_itself_refuses_is_one_line_with_its_reason(tiny_gguf, tmp_path, capfd):
    """A header that gemb has not looked at: the last line of defence."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"))
    with pytest.raises(GembError, match=r"does not load it: .*blk.0.attn_q.weight") as error:
        native.open_model(path, device="cpu")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_random_bytes_behind_a_whole_header_give_numbers_or_nan(tiny_gguf, tmp_path):
    import numpy as np

    data = bytearray(tiny_gguf.read_bytes())
    start = read_header(tiny_gguf).data_start
    data[start:] = np.random.default_rng(0).bytes(len(data) - start)
    path = tmp_path / "noise.gguf"
    path.write_bytes(data)
    encoder = named("llamacpp").open(path, Runtime(threads=1))
    rows = encoder.encode(encoder.tokenize(["a b c", "the quick brown fox"]))
    lengths = np.linalg.norm(rows, axis=1)
    assert (np.isnan(lengths) | (abs(lengths - 1) < 1e-5)).all()


def test_what_the_librarys_log_quotes_of_a_file_is_not_obeyed_by_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(native, "_is_verbose", True)
    native._log(2, b"notice = \x1b]0;PWNED\x07 \xc2\x9b\xe2\x80\xae\tend\r\n", None)
    assert capsys.readouterr().err == "notice = \\x1b]0;PWNED\\x07 \\x9b\\u202e\tend\n"
