from __future__ import annotations

import gzip
import os
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gemb.errors import UsageError
from gemb.texts import lines
from gemb.texts.contents import BOM, plain
from gemb.texts.lines import blocks, file_lines, split, text_lines

PACKED = gzip.compress(b"one\n" * 99, mtime=0)  # without the time: tests are named by it


@given(st.lists(st.binary(max_size=8)), st.sampled_from([b"\n", b"\0"]))
def test_blocks_cut_anywhere_split_as_the_whole_does(pieces: list[bytes], separator: bytes) -> None:
    whole = b"".join(pieces)
    expected = whole.split(separator) if separator == b"\0" else whole.splitlines()
    if separator == b"\0" and not expected[-1]:
        expected.pop()
    found = list(split(iter(pieces), separator))
    assert [line.data for line in found if line] == expected
    for number, line in enumerate(found, 1):
        assert line
        assert line.number == number
        assert whole[line.offset : line.offset + len(line.data)] == line.data
    assert sum(line.size for line in found if line) == len(whole)


@example(b"\0", [1], False)  # a mark of UTF-8 and a NUL make no UTF-16
@given(st.binary(max_size=40), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_a_stream_is_plain_text_wherever_it_is_cut(
    text: bytes, sizes: list[int], is_packed: bool
) -> None:
    text = b"a" + text  # so that it begins as nothing else does
    data = BOM + text
    data = gzip.compress(data[:9]) + b"\0\0" + gzip.compress(data[9:]) if is_packed else data
    pieces = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces += [data[:size], None]
        data = data[size:]
    found = [block for block in plain(iter(pieces), "-") if block is not None]
    assert b"".join(found) == text


def test_a_line_over_the_limit_is_skipped_to_its_end_and_spoils_nothing(monkeypatch) -> None:
    monkeypatch.setattr(lines, "LONGEST", 10)
    stream = iter([b"one\n12345", b"6789", b"0abc", b"def\ntwo\n", b"x" * 11])
    found = [line for line in split(stream, b"\n") if line]
    assert [(line.number, line.data, line.offset, line.size) for line in found] == [
        (1, b"one", 0, 4),
        (2, b"", 4, 17),
        (3, b"two", 21, 4),
        (4, b"", 25, 11),
    ]
    assert [line.error and line.error.message for line in found] == [
        None,
        "16 bytes; a row may have 10",
        None,
        "11 bytes; a row may have 10",
    ]


def test_a_mark_comes_while_a_pipe_idles_and_only_when_live() -> None:
    def feed(fd: int) -> None:
        os.write(fd, b"a\n")
        time.sleep(0.2)
        os.write(fd, b"b\n")
        os.close(fd)

    for live in (True, False):
        reader, writer = os.pipe()
        thread = threading.Thread(target=feed, args=(writer,))
        thread.start()
        found = list(blocks(reader, live=live))
        thread.join()
        os.close(reader)
        assert found[found.index(b"a\n") :] == (
            [b"a\n", None, b"b\n"] if live else [b"a\n", b"b\n"]
        )


def test_a_line_is_where_its_offset_says_behind_a_mark_too(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(BOM + b"one\r\ntwo")
    data = path.read_bytes()
    found = list(file_lines(path))
    assert [line.data for line in found] == [b"one", b"two"]
    assert [data[line.offset :][: len(line.data)] for line in found] == [b"one", b"two"]
    assert list(text_lines(path)) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", b"one\n\xff\n", "a, line 2: byte 1 (0xff) is no valid UTF-8"),
        ("a", b"PAR1....", "a is a Parquet file: name it .parquet, or give -I parquet"),
        ("a.xz", b"\xfd7zXZ\0", "a.xz is compressed: xzcat a.xz > a"),
        ("a.gz", b"one\n", "a.gz: no whole gzip file: it does not begin as one"),
        ("a.gz", PACKED[:-9], "a.gz: no whole gzip file: it ends too early"),
        ("a.gz", gzip.compress(PACKED, mtime=0), "a.gz is compressed twice"),
        ("a", PACKED + b"two", "a: no whole gzip file: Error -3 while"),
        ("gone", None, "no such file: gone"),
    ],
)
def test_what_is_no_text_is_refused_with_its_name(
    tmp_path, monkeypatch, name: str, data: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as refusal:
        list(text_lines(name))
    assert str(refusal.value).startswith(message)


def test_a_bomb_is_decompressed_piece_by_piece(tmp_path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"x" * 40_000_000))
    (line,) = file_lines(path)
    assert line.size == 40_000_000
    assert line.error
    sizes = [len(block) for block in plain(iter([path.read_bytes()]), path) if block]
    assert max(sizes) <= 1 << 18
