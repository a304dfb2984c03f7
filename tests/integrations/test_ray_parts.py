"""Parts of a run on Ray, without Ray: what a worker writes and says, what a kill leaves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Runtime
from gemb.embedding.pipeline import Embedder
from gemb.errors import UsageError
from gemb.integrations.ray.cluster import ClusterOptions
from gemb.integrations.ray.files import listed
from gemb.integrations.ray.parts import LOCK_NAME, MANIFEST, PartFolder, PartKey
from gemb.integrations.ray.run import RayRun, _take, run_on_ray
from gemb.integrations.ray.worker import PartJob, write_part
from gemb.models.profile import ModelProfile
from gemb.texts.inputs import Reading
from gemb.texts.records import Fields, Record, RowError, from_fields

pytest.importorskip("pyarrow")

DIM = 16


class Encoder:
    """A model with one vector for all texts."""

    profile = ModelProfile(
        dim=DIM,
        matryoshka_dims=(DIM,),
        max_tokens=512,
        closing_tokens=0,
        prompts={},
        dtype="fp32",
        fingerprint="0123456789abcdef",
    )

    def tokenize(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([2, 3], np.int32) for _ in texts]

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        return np.full((len(batch), DIM), DIM**-0.5, np.float32)


def part_job(folder: Path, embedder: Embedder, on_error: str) -> PartJob:
    return PartJob(
        model="mini",
        backend="fake",
        runtime=Runtime(),
        spec=embedder.spec,
        task="document",
        on_long="truncate",
        on_error=on_error,
        text_ids=True,
        hashes_ids=True,
        folder=PartFolder.of(str(folder)),
    )


@pytest.mark.parametrize(
    ("on_error", "written"), [("skip", ["a", "b"]), ("inline", ["a", "c", "b", "c"])]
)
def test_the_ids_of_a_part_are_those_that_it_holds(
    tmp_path: Path, on_error: str, written: list[str]
) -> None:
    """Ids that repeat are looked for in the parts: that of a row that was left out is in none."""
    embedder = Embedder.of(Encoder(), "document")
    rows = [("a", "one"), ("c", ""), ("b", "two"), ("c", "")]
    fields = Fields(text=("text",), id="id")
    records = [
        from_fields({"id": row_id, "text": text}, fields, n, f"line {n}", 1)
        for n, (row_id, text) in enumerate(rows, 1)
    ]
    job = part_job(tmp_path, embedder, on_error)
    counts, ids = write_part(PartKey(0, 0), records, embedder, job, is_last=True)
    assert (counts.rows, counts.failed) == (4, 2)
    assert ids == written == job.folder.ids(PartKey(0, 0))


def ray_run(tmp_path: Path, *, resume: bool) -> RayRun:
    (tmp_path / "texts.txt").write_text("one\n")
    system, files = listed([str(tmp_path / "texts.txt")])
    return RayRun(
        files=files,
        system=system,
        reading=Reading(),
        part_rows=32,
        job=part_job(tmp_path / "vectors", Embedder.of(Encoder(), "document"), "inline"),
        resume=resume,
        arithmetic="fp32",
    )


def test_a_run_begins_again_after_a_kill_before_its_first_part(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / f".{MANIFEST}.{'0' * 32}").write_bytes(b"{")
    (folder / LOCK_NAME).write_text("1 on a machine\n")  # nobody has it
    run = ray_run(tmp_path, resume=False)
    with run.job.folder.locked():
        _take(run, run.job.folder)
    assert [path.name for path in folder.iterdir()] == [MANIFEST]


def test_a_second_driver_of_a_folder_is_refused(tmp_path: Path) -> None:
    run = ray_run(tmp_path, resume=True)
    run.job.folder.make()
    words = (
        f"vectors is being written by process {os.getpid()} on {os.uname().nodename}: wait for it, "
        "stop it, or name another folder"
    )
    with run.job.folder.locked(), pytest.raises(UsageError) as raised:
        run_on_ray(run, ClusterOptions(address="", workers=1, cpus=1, gpus=0))
    assert str(raised.value).endswith(words)
    assert not list((tmp_path / "vectors").iterdir())


@pytest.mark.parametrize("named", ["docs", "docs/caf\udce9.txt"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, named: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "caf\udce9.txt").write_text("one\n")
    with pytest.raises(UsageError, match=r"/docs/caf\S+\.txt: Ray takes no name that is not UTF-8"):
        listed([str(tmp_path / named)])


def test_a_part_ends_after_so_many_characters_of_texts_and_titles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = pytest.importorskip("gemb.integrations.ray.source")
    monkeypatch.setattr(source, "PART_CHARS", 10)
    error = RowError("too_long", "it is too long")
    records = [
        Record(1, "line 1", "é" * 9),
        Record(2, "line 2", "b", title="c"),
        Record(3, "line 3", "d" * 4, title="e" * 6),
        Record(4, "line 4", "f" * 100, error=error),  # its text is left out
        Record(5, "line 5", "g"),
    ]
    cut = [([record.id for record in part], last) for part, last in source.parts(records, 3)]
    assert cut == [([1, 2], False), ([3], False), ([4, 5], True)]
