from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gemb.embedding.formats.base import FileLayout
from gemb.embedding.formats.read import open_vectors, read_vectors
from gemb.embedding.formats.table import FORMATS
from gemb.embedding.pipeline import OutputRow
from gemb.embedding.vectors import DTYPES, VectorSpec, packed, sidecar, unpacked
from gemb.errors import GembError, UsageError
from gemb.io.streams import AtomicFile
from gemb.texts.records import Record, RowError
from lfs_pointer import OLD_POINTER, POINTER

SPEC = VectorSpec(model="0" * 16, prompt="{text}", dim=16, dtype="f32", max_tokens=32)


def unit_rows(count: int, dim: int = 16) -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Memory:
    """An output that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def commit(self) -> None: ...

    def abandon(self) -> None: ...


def rows_of(count: int, failed: int = -1) -> list[OutputRow]:
    error = RowError("empty", "the text is empty")
    return [
        OutputRow(Record(number + 1, "", "x", kept={"k": f"v{number}"}), 5, False)
        if number != failed
        else OutputRow(Record(number + 1, "", "", kept={"k": "bad"}), error=error)
        for number in range(count)
    ]


def written(form: str, spec: VectorSpec, vectors: np.ndarray, failed: int = -1, **layout) -> bytes:
    output = Memory()
    writer = FORMATS[form].new_writer(output, FileLayout(spec=spec, task="document", **layout))
    rows = rows_of(len(vectors), failed)
    for start in range(0, len(rows), 3):  # windows of three
        writer.write(rows[start : start + 3], vectors[start : start + 3])
    writer.finish()
    return output.data


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8", "ubinary"])
@pytest.mark.parametrize("form", ["npy", "npz", "parquet"])
def test_arrays_come_back_as_they_were_packed(form: str, dtype: str, tmp_path: Path) -> None:
    vectors = unit_rows(10)
    vectors[4] = np.nan
    spec = dataclasses.replace(SPEC, dtype=dtype)
    path = tmp_path / f"v.{form}"
    path.write_bytes(written(form, spec, vectors, failed=4))
    if FORMATS[form].needs_sidecar:
        sidecar(path).write_text(spec.to_json())
    found = read_vectors(path)
    assert found.spec == spec
    assert list(found.ids) == list(range(1, 11))
    # One step of the scale, or the last place of a half: 0.5 is the largest component here.
    tolerance = {"f32": 0, "f16": 5e-4, "int8": spec.int8_clip / 127, "ubinary": 0}[dtype]
    expected = np.where(vectors > 0, 1, -1) if dtype == "ubinary" else vectors
    good = np.arange(10) != 4
    np.testing.assert_allclose(found.vectors[good], expected[good], atol=tolerance)
    if (form, dtype) not in {("npy", "int8"), ("npz", "int8")}:  # zeros are numbers, too
        assert np.isnan(found.vectors[4]).all()


def test_npy_is_what_numpy_reads_and_a_pipe_has_the_same_bytes_as_a_file(tmp_path: Path) -> None:
    vectors = unit_rows(7)
    file = AtomicFile(tmp_path / "v.npy")
    writer = FORMATS["npy"].new_writer(file, FileLayout(spec=SPEC, task="document"))
    writer.write(rows_of(7), vectors)
    writer.finish()
    file.commit()
    assert np.array_equal(np.load(tmp_path / "v.npy", allow_pickle=False), vectors)
    assert (tmp_path / "v.npy").read_bytes() == written("npy", SPEC, vectors)


@pytest.mark.parametrize("form", ["npy", "npz", "parquet", "jsonl", "csv", "f32"])
def test_no_rows_make_a_good_empty_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"v.{form}"
    path.write_bytes(written(form, SPEC, unit_rows(0)))
    sidecar(path).write_text(SPEC.to_json())
    if form == "csv":
        assert path.read_text().startswith("id,error,v0,v1")
    else:
        assert len(read_vectors(path).vectors) == 0


def test_json_lines_hold_the_shortest_digits_that_give_the_float_back(tmp_path: Path) -> None:
    vectors = unit_rows(5)
    path = tmp_path / "v.jsonl"
    path.write_bytes(written("jsonl", SPEC, vectors, failed=2))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(lines[0]) == ["id", "k", "embedding", "tokens", "task", "fingerprint"]
    assert lines[0]["fingerprint"] == SPEC.fingerprint
    assert lines[2] == {
        "id": 3,
        "k": "bad",
        "error": {"code": "empty", "message": "the text is empty"},
    }
    found = read_vectors(path)
    good = [0, 1, 3, 4]
    assert np.array_equal(found.vectors[good], vectors[good])
    assert np.isnan(found.vectors[2]).all()


def test_csv_is_read_back_by_csv(tmp_path: Path) -> None:
    vectors = unit_rows(4)
    text = written("csv", SPEC, vectors, failed=1, kept=["k"]).decode()
    header, *rows = csv.reader(io.StringIO(text))
    assert header[:4] == ["id", "k", "error", "v0"]
    assert {len(row) for row in rows} == {len(header)}
    assert rows[1][:4] == ["2", "bad", "empty", ""]
    assert np.array_equal(np.array(rows[3][3:], np.float32), vectors[3])


def test_base64_and_raw_are_little_endian_numbers(tmp_path: Path) -> None:
    vectors = unit_rows(4)
    assert written("f32", SPEC, vectors) == vectors.astype("<f4").tobytes()
    lines = written("base64", SPEC, vectors).splitlines()
    assert np.array_equal(np.frombuffer(base64.b64decode(lines[2]), "<f4"), vectors[2])


def test_int8_of_a_text_does_not_depend_on_its_batch() -> None:
    vectors = unit_rows(50)
    together = packed(vectors, "int8", 16)
    for place in range(50):
        assert np.array_equal(packed(vectors[place : place + 1], "int8", 16)[0], together[place])


def test_int8_is_a_fixed_scale_and_stops_at_127() -> None:
    row = np.zeros((1, 6400), np.float32)  # clip 8 / 80
    row[0, :5] = [0.1, -0.1, 0.05, 0.5, -0.5]
    assert packed(row, "int8", 6400)[0, :5].tolist() == [127, -127, 64, 127, -127]


def test_bits_are_one_where_positive_and_the_first_is_the_highest() -> None:
    row = np.array([[1, -1, 1, 0, -1, -1, -1, 1, -1, 1] + [-1] * 6], np.float32)
    assert packed(row, "ubinary", 16).tolist() == [[0b10100001, 0b01000000]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 12])
def test_the_width_of_a_spec_is_that_of_the_packed_rows(dtype: str, dim: int) -> None:
    vectors = unit_rows(3, dim)
    stored = packed(vectors, dtype, dim)
    assert stored.shape == (3, dataclasses.replace(SPEC, dtype=dtype, dim=dim).width)
    assert unpacked(stored, dtype, dim).shape == vectors.shape


@pytest.mark.parametrize(
    "change",
    [{"model": "1" * 16}, {"prompt": "a {text}"}, {"dim": 8}, {"dtype": "f16"}, {"max_tokens": 9}],
)
def test_a_fingerprint_depends_on_all_that_decides_the_numbers(change: dict[str, object]) -> None:
    assert dataclasses.replace(SPEC, **change).fingerprint != SPEC.fingerprint
    assert VectorSpec.from_json(SPEC.to_json(rows=3)) == SPEC


def test_parquet_keeps_fields_and_refuses_types_that_change(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "v.parquet"
    path.write_bytes(written("parquet", SPEC, unit_rows(4), failed=1, kept=["k"], text_ids=True))
    table = parquet.read_table(path).to_pydict()
    assert table["id"] == ["1", "2", "3", "4"]
    assert table["k"] == ["v0", "bad", "v2", "v3"]
    assert table["error"] == [None, "empty: the text is empty", None, None]
    assert table["embedding"][1] is None
    writer = FORMATS["parquet"].new_writer(
        Memory(), FileLayout(spec=SPEC, task="document", kept=["k"])
    )
    rows = [OutputRow(Record(1, "", kept={"k": value})) for value in ("text", 3)]
    writer.write(rows, unit_rows(2))
    with pytest.raises(GembError, match="--keep k: its values are of several types"):
        writer.finish()


def test_files_that_hold_no_vectors_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(name: str, data: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UsageError, match=message):
            read_vectors(path)

    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("a.npy", objects.getvalue(), "Python objects in dtype")
    refused("b.npy", b"", "no vectors can be read")
    refused("b.npz", b"PK", "no vectors can be read")
    refused("c.jsonl", b"nope\n", "line 1: no row of vectors")
    refused(
        "d.f32", bytes(64), r"its sidecar d\.f32\.json, which describes the vectors, is missing"
    )
    refused("e.txt", b"", r"vectors are read from \.jsonl, \.npy, ")
    flat = io.BytesIO()
    np.save(flat, np.zeros(3, np.float32))
    refused("f.npy", flat.getvalue(), r"shape \[3\] is not \[rows, dim\]")
    with pytest.raises(UsageError, match="no such file"):
        read_vectors(tmp_path / "absent.npy")


def npy_header(shape: tuple[int, ...], dtype: str = "<f4", *, by_columns: bool = False) -> bytes:
    header = io.BytesIO()
    about = {"descr": dtype, "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def write_npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def test_an_encrypted_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, vectors=unit_rows(2))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"no vectors can be read from it: File .* is encrypted"):
        read_vectors(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_is_packed_as_numpy_packs(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("vectors.npy", npy_header((1, 2)) + bytes(8))
    with pytest.raises(UsageError, match=f"vectors is compressed by method {method}"):
        read_vectors(tmp_path / "a.npz")


def test_an_archive_is_read_a_batch_at_a_time_however_much_it_holds(tmp_path: Path) -> None:
    count = 100_000  # 300 MB
    path = tmp_path / "a.npz"
    write_npz(path, vectors=npy_header((count, 768)) + bytes(count * 768 * 4))
    tracemalloc.start()
    try:
        reader = open_vectors(path)
        assert sum(len(batch.numbers) for batch in reader.batches()) == count
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"vectors": npy_header((1, 1 << 30)) + bytes(9)}, "vectors has a row of 4.29 GB"),
        ({"vectors": npy_header((9, 2)) + bytes(9)}, "vectors is shorter than its header says"),
        ({"vectors": npy_header((1, 2)) + bytes(9)}, "vectors is longer than its header says"),
        ({"vectors": npy_header((-1, 2))}, "vectors has the shape"),
        ({"vectors": npy_header((1, 2)) + bytes(8), "ids": npy_header((0,))}, "different lengths"),
        ({"vectors": npy_header((1, 2)) + bytes(8), "ids": npy_header(())}, "ids is no list"),
        ({"vectors": b"", "meta": npy_header((), f"<U{1 << 28}") + b"{}"}, "meta is no text"),
        (
            {"vectors": npy_header((1 << 20, 768), by_columns=True) + bytes(9)},
            "1048576 rows stored by columns of 3.22 GB",
        ),
    ],
)
def test_an_archive_whose_arrays_are_not_what_they_say_is_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    write_npz(tmp_path / "a.npz", **members)
    with pytest.raises(UsageError, match=message):
        read_vectors(tmp_path / "a.npz")


def test_an_archive_of_another_program_is_read_by_rows_and_by_columns(tmp_path: Path) -> None:
    rows = unit_rows(5)
    for order in ("C", "F"):
        path = tmp_path / f"{order}.npz"
        np.savez_compressed(
            path, vectors=np.asarray(rows, order=order), ids=np.array(list("abcde"))
        )
        file = read_vectors(path)
        np.testing.assert_array_equal(file.vectors, rows)
        assert list(file.ids) == list("abcde")


@pytest.mark.parametrize("name", ["a.npy", "a.f32"])
def test_a_sidecar_that_is_no_small_regular_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    np.save(tmp_path / "a.npy", unit_rows(2))
    (tmp_path / "a.f32").write_bytes(unit_rows(2).tobytes())
    beside = sidecar(path)
    with beside.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        UsageError, match=f"{beside.name}: 1.1e\\+03 GB, and such a file has at most"
    ):
        read_vectors(path)
    beside.unlink()
    os.mkfifo(beside)
    with pytest.raises(UsageError, match=f"{beside.name}: no regular file"):
        read_vectors(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.f32", "a.parquet", "a.jsonl"])
def test_a_pointer_of_git_lfs_in_place_of_vectors_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UsageError, match=rf"{name}.* a Git LFS pointer, .*git lfs pull"):
        read_vectors(tmp_path / name)


def test_a_pointer_of_git_lfs_in_place_of_a_sidecar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.f32").write_bytes(bytes(64))
    (tmp_path / "a.f32.json").write_text(OLD_POINTER)
    with pytest.raises(UsageError, match=r"a.f32.json: a Git LFS pointer"):
        read_vectors(tmp_path / "a.f32")


def test_json_lines_that_are_no_rows_of_one_width_are_refused_with_their_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    first = '{"embedding":[1,2]}\n'
    for second, message in (
        ("[1]", "line 2: no row of vectors"),
        ('{"embedding":["a"]}', "line 2: no row of vectors"),
        ('{"embedding":[1]}', r"line 2: a vector of shape \[1\]; the rows before: \[2\]"),
        ('{"embedding":[[1,2]]}', r"line 2: a vector of shape \[1, 2\]"),
        ('{"embedding":[1,2],"dtype":"int8"}', "line 2: int8 after rows of f32"),
    ):
        path.write_text(first + second)
        with pytest.raises(UsageError, match=message):
            read_vectors(path)


def test_vectors_of_other_than_real_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.complex64))
    with pytest.raises(UsageError, match="complex64 is no type of real numbers"):
        read_vectors(tmp_path / "a.npy")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"embedding": [[1.0], [1.0, 2.0]]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="not lists of one length"):
        read_vectors(tmp_path / "a.parquet")


def test_kept_objects_are_json_in_csv() -> None:
    output = Memory()
    writer = FORMATS["csv"].new_writer(output, FileLayout(spec=SPEC, task="document", kept=["k"]))
    writer.write([OutputRow(Record(1, "", kept={"k": {"a": ["é", None]}}))], unit_rows(1))
    (_, row) = csv.reader(io.StringIO(output.data.decode()))
    assert row[1] == '{"a":["é",null]}'
