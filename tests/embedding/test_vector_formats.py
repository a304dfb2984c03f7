"""The table of formats: an entry and a file with a writer and a reader are all that one needs."""

from __future__ import annotations

import ast
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb
from gemb.embedding.formats.base import VectorReader
from gemb.embedding.formats.read import holds_vectors, open_vectors
from gemb.embedding.formats.table import FORMATS, format_of, readable_suffixes

PACKAGE = Path(__file__).parents[2] / "gemb"

VEC = '''
import numpy as np
from gemb.embedding.formats.base import RowBatch, VectorReader, description_beside, no_description


class VecWriter:
    """Text: the id, and the numbers."""

    def __init__(self, output, layout):
        self._output = output

    def write(self, rows, vectors):
        for row, vector in zip(rows, vectors, strict=True):
            numbers = " ".join(map(repr, vector.tolist()))
            self._output.write(f"{row.record.id} {numbers}\\n".encode())

    def finish(self):
        pass


class VecReader(VectorReader):
    unit = "line"

    def __init__(self, path):
        self.path = path
        self.description = description_beside(path)
        if self.description is None:
            raise no_description(path)

    def _batches(self, fields):
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            row_id, *numbers = line.split()
            stored = np.array([numbers], np.float32)
            yield RowBatch([number], [{"id": int(row_id)}], stored, np.ones(1, bool))
'''
ENTRY = """
from gemb.embedding.formats.table import FORMATS, Format
FORMATS["vec"] = Format(
    name="vec",
    suffixes=(".vec",),
    writer="vec:VecWriter",
    reader="vec:VecReader",
    needs_sidecar=True,
    holds_fields=False,
    dtypes=("f32",),
)
from gemb.__main__ import main
main()
"""


class WithVec:
    """Runs `gemb` with one more entry in the table."""

    def __init__(self, gemb: Gemb) -> None:
        self.gemb = gemb
        (gemb.folder / "vec.py").write_text(VEC)

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ENTRY, *arguments],
            input=stdin,
            cwd=self.gemb.folder,
            env=self.gemb.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def test_a_new_format_is_one_entry_and_one_file(gemb: Gemb) -> None:
    with_vec = WithVec(gemb)
    assert "|vec]" in with_vec("embed", "--help").stdout.replace("\n", "").replace(" ", "")
    done = with_vec("embed", "-o", "a.vec", stdin="red\ngreen\nblue\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((gemb.folder / "a.vec.json").read_text())["rows"] == 3
    assert (gemb.folder / "a.vec").read_text().startswith("1 ")
    done = with_vec("embed", "-o", "b.vec", "--dtype", "int8", stdin="red\n")
    assert "-O vec is f32 alone; --dtype int8 goes with jsonl" in done.stderr
    done = with_vec("embed", "-o", "b.vec", "--keep", "a", stdin="red\n")
    assert "--keep: vec holds numbers alone" in done.stderr
    (gemb.folder / "b.vec.json").write_text("mine")
    done = with_vec("embed", "-o", "b.vec", stdin="red\n")
    assert "b.vec.json, and its name is needed" in done.stderr

    assert gemb("embed", "-o", "a.npy", stdin="red\ngreen\nblue\n").returncode == 0
    done = with_vec("verify", "--json", "a.vec", "a.npy")
    assert (done.returncode, json.loads(done.stdout)["count"]) == (0, 3)

    done = with_vec("index", "build", "v.gemb", "a.vec")
    assert (done.returncode, done.stdout) == (0, "+3 ~0 -0 rows (3 vectors taken over; 3 in all)\n")
    lines = (gemb.folder / "a.vec").read_text().splitlines(keepends=True)
    (gemb.folder / "a.vec").write_text(lines[0] + "2 0.5\n")
    done = with_vec("index", "build", "w.gemb", "a.vec")
    assert "a.vec: no vectors can be read from it: shape [1, 1] is not [rows, 768]" in done.stderr


def test_a_format_is_named_in_the_table_and_in_its_file_alone() -> None:
    # Names that mean nothing but a format of vectors.
    words = {"npz", ".npz", ".f32", ".base64"}
    assert {word.removeprefix(".") for word in words} <= FORMATS.keys()
    named_in = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in words
    }
    assert named_in == {"embedding/formats/table.py"}


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_the_classes_of_the_table_are_there(form) -> None:
    if form.reader:
        assert issubclass(form.reader_class, VectorReader)
    assert callable(form.new_writer)
    for suffix in form.suffixes:
        assert format_of(Path(f"v{suffix.upper()}")) is form
    assert set(readable_suffixes()) == {".jsonl", ".npy", ".npz", ".parquet", ".f32"}


def test_the_table_is_read_without_what_writes_and_reads() -> None:
    code = (
        "import sys, gemb.embedding.formats.table\n"
        "print(sorted({'numpy', 'orjson', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_texts_are_told_from_vectors_in_a_format_of_both(tmp_path: Path) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"text": "red"}\n')
    assert not holds_vectors(texts)
    vectors = tmp_path / "v.jsonl"
    vectors.write_text(
        '{"id": 1, "error": {"code": "empty", "message": "the text is empty"}}\n\n'
        '{"id": 2, "embedding": [1, 0], "task": "query", "fingerprint": "0"}\n'
    )
    assert not holds_vectors(tmp_path / "absent.npy")
    assert not holds_vectors(texts.rename(tmp_path / "t.txt"))
    reader = open_vectors(vectors)
    assert (reader.description.dim, reader.description.task, reader.unit) == (2, "query", "line")
    (batch,) = reader.batches()
    assert (list(batch.numbers), batch.has_vector.tolist()) == ([1, 3], [False, True])
    np.testing.assert_array_equal(batch.vectors(reader.description), [[np.nan] * 2, [1, 0]])


def test_every_csv_reader_reads_back_ids_and_fields_with_line_ends(gemb: Gemb):
    odd = ["a\r", "\rb", "c\r\nd", 'e"\r', "f,\r", "g\n", "\r", "plain"]
    rows = [json.dumps({"id": value, "text": f"t {value}", "k": value}) for value in odd]
    (gemb.folder / "in.jsonl").write_text("\n".join(rows))
    words = ["--id-field", "id", "--text-field", "text", "--keep", "k,text", "-O", "csv", "-q"]
    answer = gemb("embed", "in.jsonl", *words)
    read = list(csv.DictReader(io.StringIO(answer.stdout.decode(), newline="")))
    assert [row["id"] for row in read] == [row["k"] for row in read] == odd
    (gemb.folder / "v.csv").write_bytes(answer.stdout)
    again = gemb("embed", "v.csv", "--text-field", "text", "--id-field", "id", "-q")
    assert (again.returncode, again.stderr) == (0, b"")
    assert [json.loads(line)["id"] for line in again.stdout.splitlines()] == odd


@pytest.mark.parametrize(("kind", "most"), [("lines", 3000), ("parquet", 4500)])
def test_a_batch_ends_after_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    texts = [f"{number}" * 1000 for number in range(7)]
    vectors = np.eye(7, 8, dtype=np.float32)
    path = tmp_path / {"lines": "v.jsonl"}.get(kind, "v.parquet")
    if kind == "lines":
        rows = zip(range(7), texts, vectors.tolist(), strict=True)
        names = ("id", "text", "embedding")
        path.write_text(
            "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        )
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        embedding = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), 8)
        table = pa.table({"id": list(range(7)), "text": texts, "embedding": embedding})
        parquet.write_table(table, path, use_dictionary=False)
    monkeypatch.setattr(f"gemb.embedding.formats.{kind}.BATCH_BYTES", most)
    batches = list(open_vectors(path).batches())
    assert [len(batch.fields) for batch in batches] == [3, 3, 1]
    assert [row["text"] for batch in batches for row in batch.fields] == texts
    assert np.array_equal(np.concatenate([batch.stored for batch in batches]), vectors)
