from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from file_search import GatheredFiles
from file_trees import OLD, as_nobody, write
from gemb.errors import GembError
from gemb.search.cache import FIELDS, FileRow, PassageTable, VectorCache
from word_encoder import WordEncoder

SPEC = WordEncoder().spec


def row(name: str, *, mtime_ns: int = OLD * 10**9, count: int = 1) -> FileRow:
    return FileRow(name.encode(), 5, mtime_ns, 6, 7, 0, np.ones(count, FIELDS).tobytes(), '["a"]')


def search(folder: str, cache: Path) -> tuple[list[str], int]:
    """Search for a cat; return texts of hits and how many texts were embedded."""
    encoder = WordEncoder()
    files = GatheredFiles(folder, cache=cache)
    answer = files.search(encoder.queries("cat"), encoder)
    return [hit.text for hit in answer.hits[0]], encoder.texts - 1


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    write(folder, {f"{name}.txt": f"the {name} sleeps" for name in ("cat", "dog", "bird")})
    return folder


def test_files_are_known_below_a_folder_by_path_rules_and_name(tmp_path: Path) -> None:
    table = PassageTable(tmp_path, "auto")
    names = ["/a/x", "/a/b/y", "/a b", "/a0", "/a/", "/a/b\xff", "/"]
    table.put([row(name) for name in names])
    assert set(table.under("/a")) == {b"/a/x", b"/a/b/y", "/a/b\xff".encode()}
    assert set(table.under("/a/x")) == {b"/a/x"}
    assert set(table.under("/")) >= {b"/a/x", b"/a0"}
    assert table.under("/a/x")[b"/a/x"].passages == row("").passages
    assert PassageTable(tmp_path, "lines").under("/a") == {}
    assert PassageTable(tmp_path, "auto").titles("/a/x") == ["a"]
    table.forget([b"/a/x"])
    assert table.under("/a/x") == {}


def test_a_file_that_may_change_within_the_clocks_tick_is_not_kept(tmp_path: Path) -> None:
    import time

    table = PassageTable(tmp_path, "auto")
    table.put([row("/new", mtime_ns=time.time_ns()), row("/old")])
    assert set(table.under("/")) == {b"/old"}


def test_a_damaged_table_is_made_anew(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    (cache / "passages.sqlite").write_bytes(b"no database at all" * 100)
    for leftover in cache.glob("passages.sqlite-*"):
        leftover.unlink()
    assert search(str(pets), cache) == (first[0], 0)
    assert capsys.readouterr().err == (
        f"gemb: note: {cache}/passages.sqlite is damaged; it is made anew\n"
    )
    assert search(str(pets), cache) == (first[0], 0)
    assert capsys.readouterr().err == ""


def test_a_page_that_is_damaged_costs_the_table_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    write(folder, {f"{number:03}.txt": f"cat number {number} " * 30 for number in range(200)})
    cache = tmp_path / "cache"
    first = search(str(folder), cache)
    database = sqlite3.connect(cache / "passages.sqlite")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = bytearray((cache / "passages.sqlite").read_bytes())
    data[8192:16384] = b"\xa5" * 8192
    (cache / "passages.sqlite").write_bytes(data)
    assert search(str(folder), cache) == (first[0], 0)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_row_with_a_flipped_bit_is_made_anew(pets: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    database = sqlite3.connect(cache / "passages.sqlite", isolation_level=None)
    for real, passages in database.execute("SELECT real, passages FROM files").fetchall():
        flipped = passages[:30] + bytes([passages[30] ^ 4]) + passages[31:]
        database.execute("UPDATE files SET passages = ? WHERE real = ?", (flipped, real))
    database.close()
    assert search(str(pets), cache) == (first[0], 0)


@pytest.mark.parametrize(
    "change",
    [
        "titles = '[1'",
        "titles = 5",
        "titles = NULL",
        "titles = CAST(x'ff' AS TEXT)",
        "titles = '[\"another\"]'",
        "passages = CAST('abc' AS TEXT)",
        "passages = NULL",
        "passages = 7",
        "passages = x'00', crc = 0",
        "flags = 1",
        "flags = 'a'",
        "mtime_ns = mtime_ns + 1",
        "inode = x'00'",
        "crc = 'x'",
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_as_none(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    table = PassageTable(cache, "auto")
    real = str(pets / "cat.txt")
    before = table.under(str(pets))
    assert os.fsencode(real) in before
    database = sqlite3.connect(cache / "passages.sqlite", isolation_level=None)
    database.execute(f"UPDATE files SET {change} WHERE real = ?", (os.fsencode(real),))
    database.close()
    assert table.under(str(pets)).keys() == before.keys() - {os.fsencode(real)}
    assert table.titles(real) == []
    assert search(str(pets), cache) == (first[0], 0)
    assert table.under(str(pets)) == before
    assert capsys.readouterr().err == ""


def test_a_table_of_an_older_version_is_replaced(pets: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    database = sqlite3.connect(cache / "passages.sqlite")
    database.execute("CREATE TABLE files(other TEXT)")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert search(str(pets), cache)[1] == 3
    assert search(str(pets), cache)[1] == 0


def test_a_cache_that_may_not_be_written_is_read_and_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pets, cache = root / "pets", root / "cache"
        write(pets, {f"{one}.txt": f"the {one} sleeps" for one in ("cat", "dog", "bird")})
        search(str(pets), cache)
        folders = [cache, cache / SPEC.fingerprint]
        for folder in folders:
            folder.chmod(0o555)
        with as_nobody(root):
            assert search(str(pets), cache)[1] == 0
            assert capsys.readouterr().err == ""
        write(pets, {"fish.txt": "the fish sleeps"})
        with as_nobody(root):
            assert search(str(pets), cache)[1] == 1
            assert search(str(pets), cache)[1] == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert all(
            line.startswith(f"gemb: note: vectors cannot be kept in {cache / SPEC.fingerprint} (")
            for line in lines
        )
        with as_nobody(root):
            absent = search(str(pets), root / "absent")
        assert absent[1] == 4
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert said[0].startswith(f"gemb: note: the cache {root}/absent/passages.sqlite cannot be")
        for folder in folders:
            folder.chmod(0o755)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
from pathlib import Path
from gemb.io.notes import speak
from test_passage_cache import search
speak()
print(*search(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.parametrize("limit", [0, 100, 9000, 40_000])
def test_a_full_disk_costs_the_cache_and_not_the_search(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "many"
    write(folder, {f"{number:03}.txt": f"cat number {number} " * 30 for number in range(300)})
    calm = search(str(folder), tmp_path / "calm")
    here = Path(__file__).parent
    paths = (str(here), str(here.parent / "support"), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": ":".join(paths)}
    command = [sys.executable, "-c", LIMITED, str(folder), str(tmp_path / "cache"), str(limit)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{calm[0]} {calm[1]}\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("gemb: note: ")
    # With room again, what was kept is whole.
    assert search(str(folder), tmp_path / "cache")[0] == calm[0]
    assert search(str(folder), tmp_path / "cache") == (calm[0], 0)


def test_vectors_come_back_from_disk_and_memory_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((10, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = [bytes([number]) * 16 for number in range(10)]
    for folder in (None, tmp_path):
        cache = VectorCache(folder, SPEC)
        assert (cache.find(keys) == -1).all()
        cache.add(keys[:6], vectors[:6])
        cache.add(keys[4:], vectors[4:])  # two are there already
        rows = cache.find([*keys, b"x" * 16])
        assert rows[-1] == -1
        assert len(set(rows.tolist())) == 11
        np.testing.assert_allclose(cache.gather(rows[:-1][::-1]), vectors[::-1], atol=2e-4)
    np.testing.assert_array_equal(VectorCache(tmp_path, SPEC).find(keys) >= 0, np.ones(10, bool))


def test_a_cache_that_is_removed_during_a_search_does_no_harm(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    write(pets, {"fish.txt": "the fish sleeps"})
    encoder = WordEncoder()
    files = GatheredFiles(str(pets), cache=cache)
    assert files.missing(SPEC) == 1
    shutil.rmtree(cache / SPEC.fingerprint)
    answer = files.search(encoder.queries("cat"), encoder)
    assert answer.hits[0][0].text == first[0][0]
    assert answer.done == 4
    assert "it was removed meanwhile" in capsys.readouterr().err
    assert search(str(pets), cache)[1] == 4
    assert search(str(pets), cache)[1] == 0


def test_a_damaged_file_of_vectors_is_named(pets: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    search(str(pets), cache)
    path = cache / SPEC.fingerprint / "vectors.f16"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(GembError, match=rf"^{path} is damaged; remove the folder {path.parent}$"):
        search(str(pets), cache)


def test_another_model_has_vectors_of_its_own(pets: Path, tmp_path: Path) -> None:
    search(str(pets), tmp_path)
    files = GatheredFiles(str(pets), cache=tmp_path)
    other = WordEncoder(dim=32)
    assert files.missing(other.spec) == 3
    files.search(other.queries("cat"), other)
    assert files.missing(other.spec) == files.missing(SPEC) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", ["keys.bin", "vectors.f16", "passages.sqlite-journal"])
def test_a_pipe_in_the_cache_holds_no_search_up(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    path = cache / file if file.startswith("passages") else cache / SPEC.fingerprint / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert search(str(pets), cache)[0] == first[0]
    said = capsys.readouterr().err
    assert "no regular file" in said
    assert str(cache) in said
    assert len(said.splitlines()) == 1


def test_what_a_link_in_the_cache_leads_to_is_not_written_over(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = search(str(pets), cache)
    path = cache / SPEC.fingerprint / "keys.bin"
    path.unlink()
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    path.symlink_to(mine)
    assert search(str(pets), cache)[0] == first[0]
    assert mine.read_bytes() == b"mine"
    assert "no regular file" in capsys.readouterr().err
