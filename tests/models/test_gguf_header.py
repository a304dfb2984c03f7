"""The GGUF header: read right, and refused where it is broken, whatever the bytes."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemb.errors import UsageError
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import Array, looks_like_gguf, read_header, strings

KEY = "gemma-embedding."


def test_the_header_is_what_gguf_reads(tiny_gguf: Path):
    header = read_header(tiny_gguf)
    reader = gguf.GGUFReader(tiny_gguf)
    assert {t.name for t in reader.tensors} == header.tensors.keys()
    for tensor in reader.tensors:
        found = header.tensors[tensor.name]
        assert found.shape == tuple(tensor.shape)
        assert found.type == tensor.tensor_type.name.lower()
        assert (found.offset, found.size_bytes) == (tensor.data_offset, tensor.n_bytes)
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        value = header.metadata[key]
        if isinstance(value, Array):
            assert list(value.values or ()) == field.contents(), key
        else:
            assert value == field.contents(), key


def _written(path: Path, change: Callable[[gguf.GGUFWriter], None]) -> Path:
    """Write a small file with what `change` adds."""
    writer = gguf.GGUFWriter(path, "gemma-embedding")
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_long_array_is_stepped_over_and_found_again(tmp_path: Path):
    words = [f"word {i} é" for i in range(5000)]

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_array("words", words)
        writer.add_uint32("after", 7)

    header = read_header(_written(tmp_path / "a.gguf", change))
    array = header.metadata["words"]
    assert isinstance(array, Array)
    assert (array.length, array.values) == (5000, None)
    assert header.metadata["after"] == 7
    assert [word.decode() for word in strings(header, "words")] == words


def test_another_alignment_moves_the_tensors(tmp_path: Path):
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(256)
        writer.add_tensor("a", np.arange(5, dtype=np.float32))
        writer.add_tensor("b", np.arange(3, dtype=np.float32))

    header = read_header(_written(tmp_path / "a.gguf", change))
    assert header.data_start % 256 == 0
    second = header.tensors["b"]
    assert second.offset == header.data_start + 256
    raw = (tmp_path / "a.gguf").read_bytes()[second.offset :][: second.size_bytes]
    assert np.frombuffer(raw, np.float32).tolist() == [0, 1, 2]


def test_a_file_cut_short_names_the_tensor_and_both_sizes(tiny_gguf: Path, tmp_path: Path):
    whole = tiny_gguf.read_bytes()
    half = tmp_path / "half.gguf"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"cut short: tensor \S+ ends at byte (\d+), the file has"):
        read_header(half)
    almost = tmp_path / "almost.gguf"
    almost.write_bytes(whole[:-40])
    with pytest.raises(UsageError, match=f"ends at byte .*, the file has {len(whole) - 40};"):
        read_header(almost)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "shorter than any header"),
        (b"GGUF", "shorter than any header"),
        (b"PK\3\4" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3 << 24, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "1152921504606846976 entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + b"x" * 50, "the header requires byte"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 61),
            "2305843009213693952 strings",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 61),
            "more than the file holds",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
            "array of the unknown type 9",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(8), "no UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 0) + bytes(8), "'' is empty or occurs twice"),
    ],
)
def test_a_broken_header_is_refused_in_one_line(tmp_path: Path, raw: bytes, message: str):
    path = tmp_path / "broken.gguf"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=message) as error:
        read_header(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def _patched(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    raw = source.read_bytes()
    assert raw.count(old) == 1, old
    target.write_bytes(raw.replace(old, new))
    return target


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def test_a_tensor_in_the_wrong_place_or_twice_is_refused(tiny_gguf: Path, tmp_path: Path):
    name = _text("blk.0.attn_k.weight")
    raw = tiny_gguf.read_bytes()
    at = raw.index(name) + len(name) + 4 + 16 + 4
    (offset,) = struct.unpack_from("<Q", raw, at)
    for wrong in (offset + 1, offset - 32, 0, (1 << 64) - 1):
        moved = raw[:at] + struct.pack("<Q", wrong) + raw[at + 8 :]
        (tmp_path / "moved.gguf").write_bytes(moved)
        with pytest.raises(UsageError, match=f"is at offset {wrong}, not {offset}"):
            read_header(tmp_path / "moved.gguf")
    twice = _patched(tiny_gguf, tmp_path / "a.gguf", name, _text("blk.0.attn_q.weight"))
    with pytest.raises(UsageError, match=r"'blk.0.attn_q.weight' occurs twice"):
        read_header(twice)


def test_a_key_that_is_there_twice_is_refused(tiny_gguf: Path, tmp_path: Path):
    old, new = f"{KEY}dense_2_feat_in", f"{KEY}dense_3_feat_in"
    path = _patched(tiny_gguf, tmp_path / "a.gguf", _text(old), _text(new))
    with pytest.raises(UsageError, match="dense_3_feat_in' is empty or occurs twice"):
        read_header(path)


@settings(
    max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_gives_a_model_or_a_refusal(
    data: st.DataObject, tiny_gguf: Path, tmp_path: Path
):
    """Flipped bytes in the header and cuts: one clear error or a valid model, never a crash."""
    raw = bytearray(tiny_gguf.read_bytes())
    end = read_header(tiny_gguf).data_start
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw[:length])
    try:
        model = open_gguf(path)
    except UsageError as error:
        refusal = str(error)
        assert "\n" not in refusal
    else:
        assert model.header.tensors.keys() == read_header(tiny_gguf).tensors.keys()
        model.fingerprint()


def test_a_file_of_zeros_costs_no_time(tmp_path: Path):
    """A count of strings that the size allows, over a hole of 2 GB: refused by its number."""
    path = tmp_path / "hole.gguf"
    head = (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 200_000_000)
    )
    with path.open("wb") as file:
        file.write(head)
        file.truncate(2_000_000_000)
    start = time.perf_counter()
    with pytest.raises(UsageError, match="200000000 strings"):
        read_header(path)
    assert time.perf_counter() - start < 0.5


def test_a_gguf_file_is_known_by_its_name_or_its_first_bytes(tiny_gguf: Path, tmp_path: Path):
    other = tmp_path / "model.part"
    other.write_bytes(tiny_gguf.read_bytes())
    empty = tmp_path / "empty.gguf"
    empty.touch()
    text = tmp_path / "a.txt"
    text.write_text("hello")
    assert looks_like_gguf(tiny_gguf)
    assert looks_like_gguf(other)
    assert looks_like_gguf(empty)
    assert not looks_like_gguf(text)
    assert not looks_like_gguf(tmp_path)


@pytest.mark.real
def test_the_header_of_the_real_vocabulary_takes_less_than_60_ms(real_model: Path, tmp_path: Path):
    from gemb_llamacpp.export import export

    export(real_model, tmp_path / "real.gguf", "q4_0")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read_header(tmp_path / "real.gguf")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.060, times
