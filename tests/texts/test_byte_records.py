from __future__ import annotations

import os
import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from gemb.texts import lines as byte_records
from gemb.texts.lines import Oversize, blocks, split


@given(st.lists(st.binary(max_size=8)), st.sampled_from([b"\n", b"\0"]))
def test_blocks_cut_anywhere_split_as_the_whole_does(pieces: list[bytes], separator: bytes) -> None:
    whole = b"".join(pieces)
    expected = whole.split(separator)
    if not expected[-1]:
        expected.pop()
    if expected:
        expected[0] = expected[0].removeprefix(b"\xef\xbb\xbf")
    assert list(split(iter(pieces), separator)) == expected


def test_a_record_over_the_limit_is_skipped_to_its_end_and_spoils_nothing(monkeypatch) -> None:
    monkeypatch.setattr(byte_records, "LONGEST", 10)
    stream = iter([b"one\n12345", b"6789", b"0abc", b"def\ntwo\n", b"x" * 11])
    assert list(split(stream, b"\n")) == [b"one", Oversize(16), b"two", Oversize(11)]


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
