"""`gemb index` as a process, with a backend found as a folder that a third party installed."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.embedding.vectors import unpacked
from gemb.index import differences
from gemb.index.manifest import read_manifest, write_manifest
from gemb.index.reader import Index
from gemb.index.sync import SyncJob, look
from index_cases import (
    ROWS,
    all_hits,
    error,
    inside,
    jsonl,
    log_texts,
    out,
    texts_encoded,
    vector_of,
    write_old,
    write_tree,
)


def test_lines_become_rows_with_their_file_line_and_vector(gemb: Gemb) -> None:
    (gemb.folder / "notes.txt").write_text("red\ngreen\nred\n")
    assert out(gemb, "index", "build", "n.gemb", "notes.txt").startswith("+3 ~0 -0 rows")
    hits = all_hits(gemb, "n.gemb")
    assert [(hit.id, hit.path, hit.line, hit.text) for hit in hits] == [
        (1, "notes.txt", 1, "red"),
        (2, "notes.txt", 2, "green"),
        (3, "notes.txt", 3, "red"),
    ]
    with Index.open(gemb.folder / "n.gemb") as index:
        assert (index.spec.dtype, index.stored.dtype, index.count) == ("f16", np.float16, 3)
        assert index.alive is None
        green = vector_of(gemb, "green").astype(np.float16)
        np.testing.assert_array_equal(index.stored[1], green)
        np.testing.assert_array_equal(index.stored[0], index.stored[2])
        assert abs(np.linalg.norm(index.unit_vectors(np.array([1]))) - 1) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-7), ("f16", 1e-3), ("int8", 0.02)])
def test_vectors_are_stored_in_the_type_and_width_that_was_asked_for(
    gemb: Gemb, dtype: str, tolerance: float
) -> None:
    out(gemb, "index", "build", "n.gemb", "--dtype", dtype, "--dim", "256", stdin="red\ngreen\n")
    full = vector_of(gemb, "green")[:256]
    with Index.open(gemb.folder / "n.gemb") as index:
        assert index.stored.shape == (2, 256)
        found = unpacked(index.stored[1:], dtype, 256)[0]
    # Half a step of the type at the largest component, some 0.2.
    np.testing.assert_allclose(found, full / np.linalg.norm(full), atol=tolerance)


def test_fields_are_kept_and_an_id_or_a_line_finds_its_row(gemb: Gemb) -> None:
    (gemb.folder / "rows.jsonl").write_text(jsonl(ROWS))
    out(gemb, "index", "build", "r.gemb", "rows.jsonl", "--id-field", "key")
    hits = all_hits(gemb, "r.gemb")
    assert [hit.id for hit in hits] == ["a", "b", "c"]
    assert hits[2].kept == {"year": 2025, "lang": "de"}
    assert (hits[2].title, hits[2].text, hits[2].line) == ("flowers", "rote Rosen", 3)
    with inside(gemb.folder), Index.open(Path("r.gemb")) as index:
        assert index.find("b") == index.find("rows.jsonl:2") == 1
        np.testing.assert_array_equal(
            index.stored[1], vector_of(gemb, "green pears", "fruit").astype(np.float16)
        )
        words = "SELECT rowid FROM words WHERE words MATCH 'rosen'"
        assert index.connection.execute(words).fetchall() == [(2,)]


def test_a_folder_becomes_passages_and_a_sync_embeds_only_what_changed(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n", b="green pears\n", c="blue plums\n")
    log_texts(gemb)
    assert out(gemb, "index", "build", "d.gemb", "docs").startswith("+3 ~0 -0 files (3 passages")
    texts_encoded(gemb)
    hits = all_hits(gemb, "d.gemb")
    assert [(hit.path, hit.line, hit.text) for hit in hits][:1] == [
        ("docs/a.txt", 1, "red apples"),
    ]
    assert all(hit.id is None for hit in hits)
    write_old(docs / "b.txt", "green and yellow pears\n")
    (docs / "c.txt").unlink()
    write_old(docs / "d.txt", "black berries\n")
    before = sorted((path.name, path.read_bytes()) for path in (gemb.folder / "d.gemb").iterdir())
    assert out(gemb, "index", "sync", "d.gemb", "-n") == ("+1 ~1 -1 files (2 passages to embed)\n")
    after = sorted((path.name, path.read_bytes()) for path in (gemb.folder / "d.gemb").iterdir())
    assert [name for name, _ in before] == [name for name, _ in after]
    assert before == after
    assert texts_encoded(gemb) == 0
    done = out(gemb, "index", "sync", "d.gemb")
    assert done == "+1 ~1 -1 files (2 passages embedded; 3 in all)\n"
    assert texts_encoded(gemb) == 2
    texts = {hit.path: hit.text for hit in all_hits(gemb, "d.gemb")}
    assert texts == {
        "docs/a.txt": "red apples",
        "docs/b.txt": "green and yellow pears",
        "docs/d.txt": "black berries",
    }
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~0 -0 files (0 passages")
    assert texts_encoded(gemb) == 0


def test_a_file_that_looks_as_it_did_is_not_opened(
    gemb: Gemb, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(gemb, a="red apples\n")
    time.sleep(0.2)  # longer than a tick of the clock
    out(gemb, "index", "build", "d.gemb", "docs")
    monkeypatch.setattr(differences, "read_text", lambda *_: pytest.fail("it was opened"))
    with inside(gemb.folder):
        assert look(SyncJob(folder=Path("d.gemb"))).same == 1


def test_a_change_that_keeps_size_and_time_is_seen(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n")
    os.utime(docs / "a.txt", (1, 1))
    time.sleep(0.2)
    out(gemb, "index", "build", "d.gemb", "docs")
    with (docs / "a.txt").open("r+") as file:  # the same inode
        file.write("new apples\n")
    os.utime(docs / "a.txt", (1, 1))
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~1 -0")
    assert [hit.text for hit in all_hits(gemb, "d.gemb")] == ["new apples"]


def test_a_file_written_in_the_moment_of_a_build_is_looked_at_again(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n")
    moment = time.time_ns() + 60 * 10**9  # of the build, however slow the machine is
    os.utime(docs / "a.txt", ns=(moment, moment))
    out(gemb, "index", "build", "d.gemb", "docs")
    with (docs / "a.txt").open("r+") as file:
        file.write("new apples\n")
    os.utime(docs / "a.txt", ns=(moment, moment))
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~1 -0")


def test_passages_that_move_keep_their_vectors(gemb: Gemb) -> None:
    paragraphs = ["".join(f"word{part}x{i} " for i in range(150)) for part in range(4)]
    docs = write_tree(gemb, a="\n\n".join(paragraphs) + "\n")
    log_texts(gemb)
    out(gemb, "index", "build", "d.gemb", "docs")
    old = all_hits(gemb, "d.gemb")
    assert texts_encoded(gemb) >= len(old) >= 4
    write_old(docs / "a.txt", "\n\n\n" + "\n\n".join(paragraphs) + "\n")
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~1 -0 files (0 passages embedded")
    assert texts_encoded(gemb) == 0
    new = all_hits(gemb, "d.gemb")
    assert [hit.text for hit in new] == [hit.text for hit in old]
    assert [hit.line for hit in new] == [(hit.line or 0) + 3 for hit in old]
    (docs / "sub").mkdir()
    (docs / "a.txt").rename(docs / "sub" / "a.txt")  # its title is the same
    out(gemb, "index", "sync", "d.gemb", "--yes")
    assert texts_encoded(gemb) == 0
    assert {hit.path for hit in all_hits(gemb, "d.gemb")} == {"docs/sub/a.txt"}


def test_a_line_that_moves_keeps_its_vector(gemb: Gemb) -> None:
    log_texts(gemb)
    (gemb.folder / "l.txt").write_text("a\nb\nc\nb\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    texts_encoded(gemb)
    (gemb.folder / "l.txt").write_text("new\na\nb\nc\nb\nb\n")
    done = out(gemb, "index", "sync", "l.gemb")
    assert done == "+2 ~0 -0 rows (1 row embedded; 1 had their vector already; 6 in all)\n"
    assert texts_encoded(gemb) == 1
    hits = sorted(all_hits(gemb, "l.gemb"), key=lambda hit: hit.line or 0)
    assert [(hit.id, hit.text) for hit in hits] == list(enumerate(["new", *"abcbb"], 1))
    (gemb.folder / "l.txt").write_text("new\na\nb\nC\nb\n")
    assert out(gemb, "index", "sync", "l.gemb").startswith("+0 ~1 -1 rows (1 row embedded")


def test_rows_are_told_apart_by_their_id(gemb: Gemb) -> None:
    (gemb.folder / "rows.jsonl").write_text(jsonl(ROWS))
    out(gemb, "index", "build", "r.gemb", "rows.jsonl", "--id-field", "key")
    log_texts(gemb)
    rows = [
        ROWS[2] | {"year": 1999},  # another field alone
        ROWS[0] | {"text": "red cherries"},
        {"key": "d", "text": "blue plums", "title": "fruit"},
    ]
    (gemb.folder / "rows.jsonl").write_text(jsonl(rows))
    assert out(gemb, "index", "sync", "r.gemb").startswith("+1 ~2 -1 rows (2 rows embedded")
    assert texts_encoded(gemb) == 2
    hits = {hit.id: hit for hit in all_hits(gemb, "r.gemb")}
    assert {name: hit.text for name, hit in hits.items()} == {
        "a": "red cherries",
        "c": "rote Rosen",
        "d": "blue plums",
    }
    assert hits["c"].kept["year"] == 1999
    with Index.open(gemb.folder / "r.gemb") as index:
        words = "SELECT count(*) FROM words WHERE words MATCH 'apples OR pears'"
        assert index.connection.execute(words).fetchone() == (0,)


def test_rows_that_fail_are_counted_and_left_out(gemb: Gemb) -> None:
    rows = [*ROWS, ROWS[0], {"key": "e", "text": ""}, {"key": "f", "text": "poison"}]
    (gemb.folder / "rows.jsonl").write_text(jsonl(rows))
    done = gemb("index", "build", "r.gemb", "rows.jsonl", "--id-field", "key")
    assert done.returncode == 3
    lines = done.stderr.decode().splitlines()
    assert "gemb: warning: 1 of 6 rows have no vector: duplicate_id (first: line 4)" in lines
    assert lines[-1] == "gemb: without a vector, and not in r.gemb: 3 rows"
    assert [hit.id for hit in all_hits(gemb, "r.gemb")] == ["a", "b", "c"]
    assert "nothing to index" in error(gemb, "index", "build", "no.gemb", stdin="")
    assert not (gemb.folder / "no.gemb.part").exists()


def test_removing_more_than_half_needs_a_yes(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red\n", b="green\n", c="blue\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    for name in "ab":
        (docs / f"{name}.txt").unlink()
    line = error(gemb, "index", "sync", "d.gemb")
    assert line == "gemb: 2 of 3 would be removed, which is more than half; --yes allows it"
    assert len(all_hits(gemb, "d.gemb")) == 3
    assert out(gemb, "index", "sync", "d.gemb", "--yes").startswith("+0 ~0 -2 files")
    assert len(all_hits(gemb, "d.gemb")) == 1
    docs.rename(gemb.folder / "elsewhere")
    line = error(gemb, "index", "sync", "d.gemb", "--yes")
    assert line.startswith("gemb: docs is not there: nothing was changed")
    assert len(all_hits(gemb, "d.gemb")) == 1
    (gemb.folder / "l.txt").write_text("a\nb\nc\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    (gemb.folder / "l.txt").write_text("a\n")
    assert "2 of 3 would be removed" in error(gemb, "index", "sync", "l.gemb")
    assert len(all_hits(gemb, "l.gemb")) == 3


def test_standard_input_must_be_given_again(gemb: Gemb) -> None:
    out(gemb, "index", "build", "s.gemb", stdin="a\nb\n")
    assert "... | gemb index sync s.gemb -" in error(gemb, "index", "sync", "s.gemb")
    assert out(gemb, "index", "sync", "s.gemb", "-", stdin="a\nc\n").startswith("+0 ~1 -0 rows")


def test_another_model_is_refused_and_its_own_is_taken(gemb: Gemb) -> None:
    (gemb.folder / "l.txt").write_text("a\nb\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    write_model(gemb.folder / "other.fake", name="other")
    gemb.environment["GEMB_MODEL"] = "other.fake"  # a default, not a wish
    (gemb.folder / "l.txt").write_text("a\nb\nc\n")
    line = error(gemb, "index", "sync", "l.gemb", "-m", "other.fake")
    assert "was built with another model" in line
    assert "gemb index build -f l.gemb" in line
    assert out(gemb, "index", "sync", "l.gemb").startswith("+1 ~0 -0")
    done = gemb("index", "verify", "l.gemb", "-m", "other.fake")
    assert done.returncode == 2
    assert b"was built with another model" in done.stderr


def test_paths_are_shown_as_one_types_them_here(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    with Index.open(gemb.folder / "d.gemb") as index:
        rows, scores = np.zeros(1, np.int64), np.ones(1, np.float32)
        for folder, path in (
            (gemb.folder, "docs/a.txt"),
            (docs, "a.txt"),
            (gemb.folder.parent, "work/docs/a.txt"),
            (Path("/"), str(docs / "a.txt")[1:]),
        ):
            with inside(folder):
                assert index.hits(rows, scores)[0].path == path
                assert index.find(f"{path}:1") == 0
    write_old(docs / "b.txt", "green pears\n")
    environment = {**gemb.environment, "GEMB_MODEL": str(gemb.model)}
    elsewhere = Gemb.__new__(Gemb)
    elsewhere.folder, elsewhere.environment = docs, environment
    assert out(elsewhere, "index", "sync", "../d.gemb").startswith("+1 ~0 -0 files")
    assert {hit.path for hit in all_hits(gemb, "d.gemb")} == {"docs/a.txt", "docs/b.txt"}


def test_an_index_in_its_own_folder_does_not_read_itself(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n")
    out(gemb, "index", "build", "docs/d.gemb", "docs")
    out(gemb, "index", "build", "docs/e.gemb", "docs")
    assert out(gemb, "index", "sync", "docs/d.gemb").startswith("+0 ~0 -0 files")
    assert docs.joinpath("d.gemb").is_dir()


def test_rows_go_by_id_by_path_by_folder_and_by_filter(gemb: Gemb) -> None:
    (gemb.folder / "rows.jsonl").write_text(jsonl(ROWS))
    out(gemb, "index", "build", "r.gemb", "rows.jsonl", "--id-field", "key")
    assert out(gemb, "index", "rm", "r.gemb", "b", "-n") == "-1 rows\n"
    assert out(gemb, "index", "rm", "r.gemb", "b") == "-1 rows (2 in all)\n"
    assert out(gemb, "index", "rm", "r.gemb", "--where", "year>2024") == "-1 rows (1 in all)\n"
    assert [hit.id for hit in all_hits(gemb, "r.gemb")] == ["a"]
    assert "nothing was removed" in error(gemb, "index", "rm", "r.gemb", "a", "zz")
    docs = write_tree(gemb, a="red\n", b="green\n", c="blue\n")
    for name in ("ab", "b0"):
        (docs / name).mkdir()
        write_old(docs / name / "x.txt", f"violet {name}\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    assert out(gemb, "index", "rm", "d.gemb", "docs/a.txt") == "-1 rows (4 in all)\n"
    assert out(gemb, "index", "rm", "d.gemb", "docs/ab/") == "-1 rows (3 in all)\n"
    left = {hit.path for hit in all_hits(gemb, "d.gemb")}
    assert left == {"docs/b.txt", "docs/c.txt", "docs/b0/x.txt"}
    assert "more than half" in error(gemb, "index", "rm", "d.gemb", "docs")
    assert out(gemb, "index", "sync", "d.gemb").startswith("+2 ~0 -0 files")


def test_compact_gives_the_space_back_and_disturbs_no_reader(gemb: Gemb) -> None:
    lines = [f"word{number}" for number in range(100)]
    (gemb.folder / "l.txt").write_text("\n".join(lines) + "\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    (gemb.folder / "l.txt").write_text("\n".join(lines[::2]) + "\n")
    out(gemb, "index", "sync", "l.gemb")
    folder = gemb.folder / "l.gemb"
    with Index.open(folder) as index:
        assert (index.count, len(index.stored)) == (50, 100)
        assert index.alive is not None
        before = {
            index.hits(np.array([row]), np.zeros(1))[0].text: index.stored[row].copy()
            for row in index.alive
        }
        done = out(gemb, "index", "compact", "l.gemb")
        assert done.startswith("50 removed rows left out: ")
        row = index.alive[7]
        assert index.hits(np.array([row]), np.zeros(1))[0].text == lines[14]
        np.testing.assert_array_equal(index.stored[row], before[lines[14]])
    with Index.open(folder) as index:
        assert (index.count, len(index.stored), index.alive) == (50, 50, None)
        rows = np.arange(50)
        for row, hit in enumerate(index.hits(rows, np.zeros(50))):
            np.testing.assert_array_equal(index.stored[row], before[hit.text])
    names = {path.name for path in folder.iterdir()}
    assert names == {"codes.2.bin", "lock", "manifest.json", "rows.2.sqlite", "vectors.2.f16"}
    out(gemb, "index", "verify", "l.gemb")
    assert out(gemb, "index", "compact", "l.gemb").startswith("0 removed rows")
    (gemb.folder / "l.txt").write_text("\n".join(lines) + "\n")
    out(gemb, "index", "sync", "l.gemb")
    out(gemb, "index", "verify", "l.gemb")


def test_info_says_what_an_index_is(gemb: Gemb) -> None:
    write_tree(gemb, a="red\n", b="green\n")
    out(gemb, "index", "build", "d.gemb", "docs", "--dtype", "int8", "-g", "*.txt", "--hidden")
    found = json.loads(out(gemb, "index", "info", "d.gemb", "--json"))
    assert (found["rows"], found["files"], found["removed"]) == (2, 2, 0)
    assert (found["dim"], found["dtype"], found["task"]) == (768, "int8", "document")
    assert found["model"] == str(gemb.model)
    assert found["source"]["globs"] == ["*.txt"]
    assert found["size_bytes"] > 2 * 768
    text = out(gemb, "index", "info", "d.gemb")
    assert "2 of 2 files" in text
    assert "'title: {title} | text: {text}'" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["build", "docs"],
            "docs is a folder with other files; name the index first: gemb index "
            "build docs.gemb docs",
        ),
        (["build", "l.txt", "l.txt"], "l.txt is a file; name a folder for the index: l.txt.gemb"),
        (["build", "l.gemb", "l.txt"], "gemb index sync l.gemb brings it up to date, -f builds it"),
        (["build", "x.gemb", "nothere"], "nothere"),
        (["build", "no/x.gemb", "l.txt"], "no such folder: no"),
        (["build", "x.gemb", "docs", "-"], "standard input has rows, not files"),
        (["build", "x.gemb", "docs", "--id-field", "id"], "are for rows of FILEs"),
        (["build", "x.gemb", "l.txt", "--dim", "100"], "100 dimensions: the model was trained for"),
        (
            ["build", "x.gemb", "docs", "--max-size", "much"],
            "'much' is no size, as 200M or 0.2G; 0: no bound",
        ),
        (["build", ".", "l.txt"], "is a folder with other files; name the index first"),
        (["info", "."], "is no index: it has no manifest.json"),
        (["build", "/", "l.txt"], "/ is no name for an index"),
        (["sync", "x.gemb"], "no index x.gemb; gemb index build x.gemb FILE|DIR makes one"),
        (["sync", "docs"], "docs is no index: it has no manifest.json"),
        (["info", "l.txt"], "l.txt is no index"),
        (["rm", "l.gemb"], "name an ID or a PATH, or --where FILTER"),
        (["rm", "l.gemb", "--where", "colour=1"], "--where: no field colour"),
        (["compact", "docs"], "docs is no index"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    gemb: Gemb, arguments: list[str], words: str
) -> None:
    write_tree(gemb, a="red\n")
    (gemb.folder / "l.txt").write_text("a\nb\n")
    out(gemb, "index", "build", "l.gemb", "l.txt")
    assert words in error(gemb, "index", *arguments)
    assert not list(gemb.folder.glob("x.gemb*"))


def test_force_replaces_an_index_when_the_new_one_is_whole(gemb: Gemb) -> None:
    out(gemb, "index", "build", "l.gemb", stdin="a\nb\n")
    done = gemb("index", "build", "-f", "l.gemb", stdin="poison\n")
    assert done.returncode == 2
    assert [hit.text for hit in all_hits(gemb, "l.gemb")] == ["a", "b"]
    out(gemb, "index", "build", "-f", "l.gemb", stdin="c\n")
    assert [hit.text for hit in all_hits(gemb, "l.gemb")] == ["c"]
    (gemb.folder / "link").symlink_to("l.gemb")
    out(gemb, "index", "build", "-f", "link", stdin="d\n")
    assert [hit.text for hit in all_hits(gemb, "l.gemb")] == ["d"]
    (gemb.folder / "link").unlink()
    assert sorted(path.name for path in gemb.folder.iterdir()) == ["l.gemb", "model.fake"]


def test_names_and_bytes_of_any_kind_are_indexed(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n")
    names = ["new\nline.txt", "esc\x1b[31m.txt", "qu'o\"te.txt", "ünïcode.txt"]
    for name in names:
        write_old(docs / name, f"text of {len(name)} letters\n")
    raw = os.fsencode(docs) + b"/no\xffutf8.txt"
    Path(os.fsdecode(raw)).write_bytes(b"caf\xe9 au lait\n")
    (docs / "loop").symlink_to(docs)
    (docs / "binary.bin").write_bytes(b"\0" * 100)
    (docs / "empty.txt").write_bytes(b"")
    done = gemb("index", "build", "d.gemb", "docs")
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stderr + done.stdout
    hits = {hit.path: hit.text for hit in all_hits(gemb, "d.gemb")}
    assert set(hits) == {
        "docs/a.txt",
        *(f"docs/{name}" for name in names),
        os.fsdecode(b"docs/no\xffutf8.txt"),
    }
    assert hits[os.fsdecode(b"docs/no\xffutf8.txt")] == "caf\ufffd au lait"
    out(gemb, "index", "verify", "d.gemb")
    assert out(gemb, "index", "rm", "d.gemb", "docs/new\nline.txt").startswith("-1 rows")
    raw_name = os.fsdecode(b"docs/no\xffutf8.txt")
    assert out(gemb, "index", "rm", "d.gemb", raw_name).startswith("-1 rows")
    line = error(gemb, "index", "rm", "d.gemb", "docs/esc\x1b[31m.txt2")
    assert "\x1b" not in line
    assert out(gemb, "index", "sync", "d.gemb").startswith("+2 ~0 -0 files")


def test_a_folder_and_a_filter_reach_names_that_are_no_utf8(gemb: Gemb) -> None:
    docs = write_tree(gemb, **{f"f{number}": f"text {number}\n" for number in range(9)})
    for folder in (b"sub", b"d\xff", b"sub2"):
        (docs / os.fsdecode(folder)).mkdir()
        write_old(docs / os.fsdecode(folder + b"/x\xff.txt"), f"in {folder!r}\n")
    write_old(docs / "sub" / "y.txt", "another\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    for where in (
        "path like 'docs/sub/%'",
        "path like '%SUB/%'",
        "path>='docs/sub/' and path<'docs/sub0'",
    ):
        assert out(gemb, "index", "rm", "d.gemb", "-n", "--where", where) == "-2 rows\n", where
    assert out(gemb, "index", "rm", "d.gemb", "docs/sub") == "-2 rows (11 in all)\n"
    raw_name = os.fsdecode(b"docs/d\xff")
    assert out(gemb, "index", "rm", "d.gemb", raw_name) == "-1 rows (10 in all)\n"
    left = {hit.path for hit in all_hits(gemb, "d.gemb")}
    assert os.fsdecode(b"docs/sub2/x\xff.txt") in left
    assert not {path for path in left if path and path.startswith(("docs/sub/", raw_name))}


def test_what_cannot_be_read_now_is_not_removed(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n", b="green pears\n", c="blue plums\n")
    out(gemb, "index", "build", "d.gemb", "docs")
    # A link to itself fails as a disk does that went away: not as a file that is gone.
    (docs / "b.txt").unlink()
    (docs / "b.txt").symlink_to("b.txt")
    done = gemb("index", "sync", "d.gemb", "--yes")
    assert len(all_hits(gemb, "d.gemb")) == 3, done
    (docs / "b.txt").unlink()
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~0 -1 files")


def test_a_source_that_is_not_there_is_named_as_what_it_could_be(gemb):
    done = gemb("index", "build", "x.gemb", "nowhere")
    assert (done.returncode, done.stderr) == (2, b"gemb: no such file or folder: nowhere\n")
    assert not (gemb.folder / "x.gemb").exists()


def passages(gemb: Gemb, name: str) -> list[tuple]:
    hits = all_hits(gemb, name)
    return sorted((hit.path, hit.line, hit.last_line, hit.title, hit.text) for hit in hits)


def test_a_change_of_the_rules_of_splitting_splits_all_files_again(gemb: Gemb) -> None:
    indents = ["", "    ", "        "] * 20
    lines = [f"{indent}call_{line}(argument_{line});" * 3 for line, indent in enumerate(indents)]
    write_tree(gemb, long="\n".join(lines), short="green pears\n")
    folder = gemb.folder / "d.gemb"
    out(gemb, "index", "build", "d.gemb", "docs", "--passages", "code")
    out(gemb, "index", "build", "expected.gemb", "docs", "--passages", "prose")
    before, expected = passages(gemb, "d.gemb"), passages(gemb, "expected.gemb")
    new = set(expected) - set(before)
    assert set(before) - set(expected), "the rules are others"
    assert set(before) & set(expected), "and make some passages alike"

    # The index as earlier rules would have made it: the same files were split in another way.
    manifest = read_manifest(folder)
    manifest = dataclasses.replace(manifest, source={**manifest.source, "split": "prose"})
    write_manifest(folder, manifest)
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~0 -0 files")
    write_manifest(folder, dataclasses.replace(manifest, splitting=manifest.splitting - 1))
    log_texts(gemb)
    done = gemb("index", "sync", "d.gemb", "-n")
    assert b"have changed: all files are split again" in done.stderr
    assert done.stdout.startswith(f"+0 ~1 -0 files ({len(new)} passages to embed".encode())
    done = gemb("index", "sync", "d.gemb")
    assert b"have changed: all files are split again" in done.stderr
    assert done.stdout.startswith(f"+0 ~1 -0 files ({len(new)} passages embedded".encode())
    assert passages(gemb, "d.gemb") == expected
    assert texts_encoded(gemb) <= len(new) + 32  # and the 32 probes of the background
    assert read_manifest(folder).splitting == manifest.splitting
    done = gemb("index", "sync", "d.gemb")
    assert (done.stdout[:14], done.stderr) == (b"+0 ~0 -0 files", b"")


def test_a_file_that_cannot_be_read_is_split_again_when_it_can_be(gemb: Gemb) -> None:
    docs = write_tree(gemb, a="red apples\n", b="green pears\n")
    folder = gemb.folder / "d.gemb"

    def unsettled() -> list[str]:
        with Index.open(folder) as index:
            query = "SELECT path FROM files WHERE ctime_ns = -1"
            return [path for (path,) in index.connection.execute(query)]

    out(gemb, "index", "build", "d.gemb", "docs")
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, splitting=manifest.splitting - 1))
    (docs / "b.txt").rename(gemb.folder / "b.txt")
    (docs / "b.txt").symlink_to("b.txt")
    gemb("index", "sync", "d.gemb")
    assert read_manifest(folder).splitting == manifest.splitting
    assert unsettled() == ["docs/b.txt"]
    (gemb.folder / "b.txt").replace(docs / "b.txt")
    assert out(gemb, "index", "sync", "d.gemb").startswith("+0 ~0 -0 files")
    assert unsettled() == []


def test_an_index_of_version_0_1_says_by_which_rules_it_was_split() -> None:
    manifest = Path(__file__).parents[1] / "data" / "v0.1.0" / "docs.gemb"
    assert read_manifest(manifest).splitting == 2
