"""`Embedder`: batches of three libraries, pickled, and in Daft and Spark where they are."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_backend import write_model
from gemb import Model
from gemb.errors import UsageError
from gemb.integrations.ray import Embedder
from gemb.integrations.ray.files import resolved
from gemb.integrations.ray.parts import PartFolder

pyarrow = pytest.importorskip("pyarrow")

import pyarrow.parquet as parquet  # noqa: E402

TEXTS = ["red fox", "", "green poison", None, "long " * 50, "red fox"]
ERRORS = [
    None,
    "empty: the text is empty",
    "failed: RuntimeError: poisoned",
    "empty: the text is empty: field 'text' is null",
    None,
    None,
]
GOOD = [0, 4, 5]


@pytest.fixture
def reference(fake_backend, tmp_path: Path) -> str:
    return str(write_model(tmp_path / "m.fake"))


@pytest.fixture
def expected(reference: str) -> np.ndarray:
    return Model(reference).encode_document([TEXTS[row] for row in GOOD])


def test_a_dict_of_arrays(reference, expected):
    batch = {"n": np.arange(6), "text": np.array(TEXTS, object)}
    answer = Embedder(model=reference)(batch)
    assert list(answer) == ["n", "text", "embedding", "error"]
    assert answer["embedding"].shape == (6, 768)
    assert np.array_equal(answer["embedding"][GOOD], expected)
    assert np.isnan(answer["embedding"][[1, 2, 3]]).all()
    assert answer["error"].tolist() == ERRORS
    assert "embedding" not in batch


@pytest.mark.parametrize("kind", ["table", "record_batch"])
def test_arrow(kind, reference, expected):
    batch = getattr(pyarrow, kind)({"body": TEXTS, "error": ["old"] * 6})
    answer = Embedder(model=reference, text="body", dtype="f16", dim=128)(batch)
    assert type(answer) is type(batch)
    assert answer.schema.names == ["body", "embedding", "error"]
    assert answer.schema.field("embedding").type == pyarrow.list_(pyarrow.float16(), 128)
    rows = answer.column("embedding").to_pylist()
    assert [row is None for row in rows] == [error is not None for error in ERRORS]
    model = Model(reference)
    half = model.encode([TEXTS[row] for row in GOOD], dim=128, dtype="f16")
    assert np.array_equal(np.array([rows[row] for row in GOOD], np.float16), half)
    assert [error if error is None else error.replace("'text'", "") for error in ERRORS] == [
        error if error is None else error.replace("'text'", "")
        for error in answer.column("error").to_pylist()
    ]


def test_batches_hold_lists_as_spark_has_them(reference, expected):
    batch = pyarrow.record_batch({"text": TEXTS})
    (answer,) = Embedder(model=reference).batches([batch])
    assert answer.schema.field("embedding").type == pyarrow.list_(pyarrow.float32())
    rows = answer.column("embedding").to_pylist()
    assert [row is None for row in rows] == [error is not None for error in ERRORS]
    assert np.array_equal(np.array([rows[row] for row in GOOD], np.float32), expected)
    assert answer.column("error").to_pylist() == ERRORS


def test_pandas(reference, expected):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "title": ["T", *[None] * 5]}, index=range(10, 16))
    answer = Embedder(model=reference, title="title")(frame)
    assert list(answer.index) == list(range(10, 16))
    assert answer["embedding"].map(lambda vector: vector is None).tolist() == [
        error is not None for error in ERRORS
    ]
    titled = Model(reference).encode_document(["red fox"], titles=["T"])
    assert np.array_equal(answer["embedding"].iloc[0], titled[0])
    assert np.array_equal(answer["embedding"].iloc[5], expected[2])


def test_pickled_it_is_its_settings_and_means_the_same_elsewhere(
    reference, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    embedder = Embedder(model="m.fake", task="query")
    first = embedder.embed(["red fox"]).vectors
    data = pickle.dumps(embedder)
    assert len(data) < 2000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(data)
    assert again == embedder
    assert np.array_equal(again.embed(["red fox"]).vectors, first)
    assert not np.array_equal(first[0], expected[0])  # the prompt of queries


def test_what_is_no_batch_of_texts_is_one_line(reference):
    with pytest.raises(UsageError, match=r"a batch has no column 'text'; it has: a, b$"):
        Embedder(model=reference)({"a": [1], "b": [2]})
    with pytest.raises(UsageError, match=r"a batch is builtins.list; give a dict of arrays"):
        Embedder(model=reference)([1])
    with pytest.raises(UsageError, match=r"prompt .x. has no \{text\}"):
        Embedder(model=reference, prompt="x").embed(["a"])


@pytest.mark.parametrize(
    "address", ["nope://key:secret@a/b?secret_key=secret", "nope://key:se/cret@a/b"]
)
def test_an_address_that_cannot_be_opened_is_told_without_its_key(address):
    with pytest.raises(UsageError, match=r"no address that can be opened: .*nope") as raised:
        resolved(address)
    assert "cret" not in str(raised.value)


def test_a_part_that_a_run_did_not_write_is_refused(tmp_path):
    table = pyarrow.table({"id": [1]}).replace_schema_metadata({"gemb": '{"fingerprint": "f"}'})
    parquet.write_table(table, tmp_path / "part-000000-000000.parquet")
    for fingerprint in ("f", "g"):
        with pytest.raises(UsageError, match=r"part-000000-000000.parquet is of another run"):
            list(PartFolder.of(str(tmp_path)).counts(fingerprint))


def test_daft(reference, expected):
    daft = pytest.importorskip("daft")

    @daft.cls
    class Vectors:
        def __init__(self) -> None:
            self.embedder = Embedder(model=reference)

        @daft.method.batch(return_dtype=daft.DataType.fixed_size_list(daft.DataType.float32(), 768))
        def of(self, texts):
            return list(self.embedder.embed(texts.to_pylist()).vectors)

    frame = daft.from_pydict({"text": ["red fox", "long " * 50, "red fox"]})
    answer = frame.with_column("embedding", Vectors().of(daft.col("text"))).to_pydict()
    assert np.array_equal(np.array(answer["embedding"], np.float32), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_spark(reference, expected, monkeypatch):
    sql = pytest.importorskip("pyspark.sql")
    if not shutil.which("java"):
        pytest.skip("Spark needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        frame = spark.createDataFrame([(text,) for text in TEXTS], "text string").coalesce(1)
        schema = "text string, embedding array<float>, error string"
        rows = frame.mapInArrow(Embedder(model=reference).batches, schema).collect()
    finally:
        spark.stop()
    assert [row.error for row in rows] == ERRORS
    assert np.array_equal(np.array([rows[row].embedding for row in GOOD], np.float32), expected)
