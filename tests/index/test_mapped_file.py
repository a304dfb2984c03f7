import mmap
import os

import numpy as np
import pytest

from gemb.errors import GembError
from gemb.index.mapped import MappedRows, gathered, read_ahead

PAGE = mmap.PAGESIZE


class Recorder(mmap.mmap):
    """A map that remembers for what it was asked, and passes it on."""

    def madvise(self, option, start, length):
        asked.append((option, start, length))
        super().madvise(option, start, length)


asked = []


@pytest.fixture
def file(tmp_path):
    asked.clear()
    path = tmp_path / "vectors"
    path.write_bytes(bytes(10 * PAGE))
    with path.open("rb") as opened:
        yield Recorder(opened.fileno(), 0, access=mmap.ACCESS_READ)


def pages():
    """The pages that were asked for, by number."""
    assert all(option == mmap.MADV_WILLNEED for option, _, _ in asked)
    assert all(start % PAGE == 0 for _, start, _ in asked)
    return sorted(
        {n for _, start, size in asked for n in range(start // PAGE, -(-(start + size) // PAGE))}
    )


def test_all_of_a_map_is_asked_for(file):
    read_ahead(np.ndarray((10, PAGE), np.uint8, buffer=file))
    assert pages() == list(range(10))


def test_some_rows_are_asked_for_wherever_the_array_begins(file):
    array = np.ndarray((9, PAGE // 4), np.float32, buffer=file, offset=PAGE // 2)
    read_ahead(np.asarray(array[1:]), np.array([0, 6]))  # rows 1 and 7, half a page further
    assert pages() == [1, 2, 7, 8]
    asked.clear()
    read_ahead(array, np.array([], np.int64))
    assert asked == []


def test_memmaps_and_arrays_in_memory_take_it(tmp_path):
    np.zeros((100, 768), np.float16).tofile(tmp_path / "v")
    mapped = np.memmap(tmp_path / "v", np.float16, "r", shape=(100, 768))
    read_ahead(mapped)
    read_ahead(mapped[50:], np.array([0, 49]))
    read_ahead(np.zeros((3, 4)), np.array([1]))
    read_ahead(np.zeros((0, 4)))


def test_scattered_rows_are_those_of_the_map_and_are_not_mapped(tmp_path):
    path = tmp_path / "v"
    expected = np.random.default_rng(0).standard_normal((4000, 768)).astype(np.float16)
    expected.tofile(path)
    stored = MappedRows.open(path, expected.dtype, 3999, 768)
    rows = np.arange(0, 3999, 43)
    np.testing.assert_array_equal(gathered(stored, rows), expected[rows])
    np.testing.assert_array_equal(gathered(stored[1:], rows[:9]), expected[1:][rows[:9]])
    assert gathered(stored, rows[:0]).shape == (0, 768)
    path.unlink()  # by a compaction
    assert gathered(stored, rows[-1:])[0, 0] == expected[rows[-1], 0]


def test_a_file_that_was_cut_short_meanwhile_is_one_line(tmp_path):
    path = tmp_path / "v"
    np.zeros((100, 768), np.float16).tofile(path)
    stored = MappedRows.open(path, np.dtype("<f2"), 100, 768)
    os.truncate(path, 768 * 2 * 50 + 1)
    assert gathered(stored, np.array([49])).shape == (1, 768)
    with pytest.raises(GembError, match="v was cut short meanwhile; gemb index verify"):
        gathered(stored, np.array([3, 50]))
