"""An index with drafts: built at once, refined by and by, searched meanwhile, kept whole."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.index.drafts import wanted
from gemb.index.reader import Index
from index_cases import error, out, texts_encoded, write_old

KILLS = int(os.environ.get("GEMB_KILLS", "3"))
FAKE = f"{zlib.crc32(b'fake'):016x}"
# The program itself, with batches so short that many of them fall into a test.
QUICK = "import gemb.index.writer as w; w.COMMIT_S = 0.02; from gemb.__main__ import main; main()"
# The program itself, which tells its progress at each step.
TALKING = """
import gemb.io.progress as progress
progress.ProgressBar.line_every_s = 0
from gemb.__main__ import main
main()
"""
# The program itself, which Ctrl-C reaches within its fifth change of the words.
STOPPED = """
import gemb.index.writer as writer
work, calls = writer.{name}, []
def stopped(connection, slots):
    calls.append(slots)
    if len(calls) == 5:
        raise KeyboardInterrupt
    work(connection, slots)
writer.{name} = stopped
from gemb.__main__ import main
main()
"""
NOUNS = [f"noun{number}" for number in range(400)]


def text_of(number: int) -> str:
    dice = random.Random(number)
    return " ".join([f"topic{number}", *dice.choices(NOUNS, k=30)])


@pytest.fixture
def drafted(gemb: Gemb) -> Gemb:
    """An index `d.gemb` of 90 files, whose rows have drafts; they are biased, and half as wide."""
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    gemb.environment["GEMB_DRAFT"] = "draft.fake"
    log = str(gemb.folder / "log")
    write_model(gemb.model, is_bag=True, max_tokens=512, log=log)
    write_model(
        gemb.folder / "draft.fake",
        is_bag=True,
        max_tokens=512,
        name="draft",
        draft_of=[FAKE],
        bias=0.05,
    )
    (gemb.folder / "docs").mkdir()
    for number in range(90):
        write_old(gemb.folder / f"docs/{number:02}.txt", text_of(number) + "\n")
    said = out(gemb, "index", "build", "d.gemb", "docs", "--draft")
    assert "+90 ~0 -0 files (90 passages drafted; 90 in all)" in said
    assert texts_encoded(gemb) == 0, "no text saw the model"
    return gemb


def info(gemb: Gemb, name: str = "d.gemb") -> dict:
    return json.loads(out(gemb, "index", "info", name, "--json"))


def hits(gemb: Gemb, *arguments: str) -> list[dict]:
    return list(map(json.loads, out(gemb, "search", *arguments, "--json").splitlines()))


def check_whole(gemb: Gemb, *more: str) -> str:
    return out(gemb, "index", "verify", "d.gemb", *more)


def copy_of(gemb: Gemb, number: int) -> None:
    """Copy a file to another folder; its passage has the same title there."""
    (gemb.folder / "docs/more").mkdir()
    write_old(gemb.folder / f"docs/more/{number:02}.txt", text_of(number) + "\n")


def texts_of(folder: Path, *, drafts: bool) -> set[str]:
    with Index.open(folder) as index:
        alive = np.arange(len(index.stored)) if index.alive is None else index.alive
        rows = index.drafts if drafts else np.setdiff1d(alive, index.drafts)
        return {hit.text for hit in index.hits(rows, np.zeros(len(rows), np.float32))}


def test_drafts_answer_at_once_and_say_that_they_are(drafted: Gemb) -> None:
    facts = info(drafted)
    assert (facts["rows"], facts["drafts"], facts["draft"]["width"]) == (90, 90, 256)
    lines = out(drafted, "index", "info", "d.gemb")
    assert "0 of 90 rows have real ones (0 %); 90 are drafts: gemb index refine" in lines
    for number in (3, 88):
        query = " ".join(text_of(number).split()[5:25])
        hit = hits(drafted, query, "d.gemb", "-k3")[0]
        assert (hit["path"], hit["estimated"]) == (f"docs/{number:02}.txt", True)
    assert "all rows are drafts: none is embedded again" in check_whole(drafted)


def test_a_refined_index_answers_as_one_that_was_built_so(drafted: Gemb) -> None:
    out(drafted, "index", "build", "plain.gemb", "docs")
    said = out(drafted, "index", "refine", "d.gemb")
    assert said == "+90 vectors (0 of 90 rows are drafts)\n"
    assert "90 of 90 rows have real ones (100 %); none is a draft" in out(
        drafted, "index", "info", "d.gemb"
    )
    check_whole(drafted)
    query = " ".join(text_of(17).split()[:12])
    for more in ((), ("--hybrid",), ("--where", "path > 'docs/3'")):
        found = hits(drafted, query, "d.gemb", "--weak", *more)
        assert found == hits(drafted, query, "plain.gemb", "--weak", *more)
    before = info(drafted)["size_bytes"]
    out(drafted, "index", "compact", "d.gemb")
    assert info(drafted)["size_bytes"] < before
    assert hits(drafted, query, "d.gemb", "--weak") == hits(drafted, query, "plain.gemb", "--weak")
    check_whole(drafted)
    assert out(drafted, "index", "refine", "d.gemb") == "+0 vectors (0 of 90 rows are drafts)\n"


def test_what_searches_ranked_high_gets_its_vectors_first(drafted: Gemb) -> None:
    write_model(drafted.model, is_bag=True, max_tokens=512, sleep_s=0.3)
    for number in (70, 71, 71):
        hits(drafted, " ".join(text_of(number).split()[:20]), "d.gemb")
    out(drafted, "index", "refine", "d.gemb", "--for", "0.2s")
    real = texts_of(drafted.folder / "d.gemb", drafts=False)
    assert {text_of(70), text_of(71)} <= real
    assert 2 <= len(real) < 30
    drafts = info(drafted)["drafts"]
    assert drafts == 90 - len(real)
    left = wanted(drafted.folder / "d.gemb/wanted.bin")
    with Index.open(drafted.folder / "d.gemb") as index:
        assert left
        assert set(left) <= set(index.drafts.tolist())
    out(drafted, "index", "compact", "d.gemb")
    moved = wanted(drafted.folder / "d.gemb/wanted.2.bin")
    assert len(moved) == len(left)
    check_whole(drafted)


def test_drafts_and_vectors_are_held_against_their_own_backgrounds(drafted: Gemb) -> None:
    write_model(drafted.model, is_bag=True, max_tokens=512, sleep_s=0.05)
    out(drafted, "index", "refine", "d.gemb", "--for", "0.3s")
    real = texts_of(drafted.folder / "d.gemb", drafts=False)
    assert 5 <= len(real) <= 85
    for number in (0, 45, 89):
        # Drafts have a common part, so that their raw cosines are the higher ones.
        query = " ".join(text_of(number).split()[4:24])
        for more in ((), ("--hybrid",)):
            hit = hits(drafted, query, "d.gemb", "-k3", *more)[0]
            assert hit["text"] == text_of(number)
            assert hit.get("estimated", False) is (text_of(number) not in real)
    check_whole(drafted)


def test_a_refinement_that_is_killed_again_and_again_ends_whole(drafted: Gemb) -> None:
    write_model(drafted.model, is_bag=True, max_tokens=512, sleep_s=0.03)
    folder = drafted.folder / "d.gemb"
    moments = random.Random(3)
    left = 90
    for turn in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", QUICK, "index", "refine", "d.gemb"],
            cwd=drafted.folder,
            env=drafted.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None:
            with Index.open(folder) as index:
                assert index.count == 90
                if len(index.drafts) < left:
                    break
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        stop = signal.SIGKILL if turn % 2 else signal.SIGINT
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=60)
        with Index.open(folder) as index:
            assert index.count == 90
            assert len(index.drafts) <= left, "what was done is kept"
            left = len(index.drafts)
        if process.returncode == 130:
            assert b"gemb index refine goes on from there" in stderr
        check_whole(drafted, "--rows", "0")
    write_model(drafted.model, is_bag=True, max_tokens=512)
    said = out(drafted, "index", "refine", "d.gemb")
    assert said == f"+{left} vectors (0 of 90 rows are drafts)\n"
    assert texts_of(folder, drafts=False) == {text_of(number) for number in range(90)}
    check_whole(drafted)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("build", "e.gemb", "docs", "--draft"), "add_words_of"),
        (("refine", "e.gemb"), "add_words_of"),
        (("refine", "e.gemb"), "drop_words_of"),
    ],
)
def test_ctrl_c_in_the_middle_of_a_row_leaves_none_by_half(
    drafted: Gemb, command: tuple[str, ...], name: str
) -> None:
    if command[0] == "refine":
        out(drafted, "index", "build", "e.gemb", "docs", "--draft")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(name=name), "index", *command],
        cwd=drafted.folder,
        env=drafted.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr.decode()
    if command[0] == "refine":
        assert info(drafted, "e.gemb")["rows"] == 90
        out(drafted, "index", "verify", "e.gemb", "--rows", "0")
    out(drafted, "index", *command)
    facts = info(drafted, "e.gemb")
    assert (facts["rows"], facts["drafts"]) == (90, 90 if command[0] == "build" else 0)
    out(drafted, "index", "verify", "e.gemb", "--rows", "0")
    texts = texts_of(drafted.folder / "e.gemb", drafts=command[0] == "build")
    assert texts == {text_of(number) for number in range(90)}


def test_a_sync_makes_drafts_and_keeps_vectors(drafted: Gemb) -> None:
    out(drafted, "index", "refine", "d.gemb")
    texts_encoded(drafted)
    write_old(drafted.folder / "docs/90.txt", text_of(90))
    copy_of(drafted, 5)  # whose vector is there
    (drafted.folder / "docs/00.txt").unlink()
    assert "1 passage to draft" in out(drafted, "index", "sync", "d.gemb", "-n")
    said = out(drafted, "index", "sync", "d.gemb")
    assert "+2 ~0 -1 files (1 passage drafted; 1 had their vector already; 91 in all)" in said
    assert texts_encoded(drafted) == 0
    assert texts_of(drafted.folder / "d.gemb", drafts=True) == {text_of(90)}
    check_whole(drafted)
    assert hits(drafted, text_of(90), "d.gemb", "-k1")[0]["path"] == "docs/90.txt"
    out(drafted, "index", "rm", "d.gemb", "docs/90.txt", "--yes")
    assert info(drafted)["drafts"] == 0
    check_whole(drafted)


def test_a_copy_of_a_draft_is_a_draft(drafted: Gemb) -> None:
    copy_of(drafted, 5)
    out(drafted, "index", "sync", "d.gemb")
    assert info(drafted)["drafts"] == 91
    check_whole(drafted)
    assert hits(drafted, text_of(5), "d.gemb", "-k1")[0]["copies"] == 2


def test_without_its_draft_model_a_sync_makes_vectors(drafted: Gemb) -> None:
    drafted.environment["GEMB_DRAFT"] = "none"
    write_old(drafted.folder / "docs/90.txt", text_of(90))
    copy_of(drafted, 5)  # which is a draft
    done = drafted("index", "sync", "d.gemb")
    assert b"the draft model of this index is not here; new rows get real vectors" in done.stderr
    assert texts_of(drafted.folder / "d.gemb", drafts=False) == {text_of(90), text_of(5)}
    check_whole(drafted)
    texts_encoded(drafted)
    for number, draft in ((91, "none"), (92, "draft.fake")):
        # A real vector goes before a draft of the same text, whether there are drafts or not.
        drafted.environment["GEMB_DRAFT"] = draft
        (drafted.folder / f"docs/more/{number}").mkdir()
        write_old(drafted.folder / f"docs/more/{number}/05.txt", text_of(5) + "\n")
        planned = drafted("index", "sync", "d.gemb", "-n")
        said = drafted("index", "sync", "d.gemb")
        assert b"1 had their vector already" in planned.stdout
        assert b"1 had their vector already" in said.stdout
    assert texts_encoded(drafted) == 0
    assert info(drafted)["drafts"] == 90
    check_whole(drafted)


def test_a_dry_run_says_what_becomes_of_rows(drafted: Gemb) -> None:
    write_old(drafted.folder / "docs/90.txt", text_of(90))
    for draft, words in (("draft.fake", "1 passage to draft"), ("none", "1 passage to embed")):
        drafted.environment["GEMB_DRAFT"] = draft
        assert words in out(drafted, "index", "sync", "d.gemb", "-n")
    assert "1 passage embedded" in out(drafted, "index", "sync", "d.gemb")


def test_a_build_with_drafts_that_is_killed_goes_on(drafted: Gemb) -> None:
    write_model(
        drafted.folder / "draft.fake",
        is_bag=True,
        max_tokens=512,
        name="draft",
        draft_of=[FAKE],
        sleep_s=0.1,
    )
    program = QUICK.replace("from", "import gemb.index.sync as s; s.DRAFTED = 5; from", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", program, "index", "build", "e.gemb", "docs", "--draft"],
        cwd=drafted.folder,
        env=drafted.environment,
    )
    part = drafted.folder / "e.gemb.part"
    while process.poll() is None:
        try:
            with Index.open(part) as index:
                if index.count > 10:
                    break
        except Exception:
            time.sleep(0.005)
    process.kill()
    process.wait()
    done = drafted("index", "build", "e.gemb", "docs", "--draft")
    assert done.returncode == 0
    assert b"rows of a stopped build are there; it goes on from them" in done.stderr
    assert info(drafted, "e.gemb")["drafts"] == 90
    assert "all blocks as written" in out(drafted, "index", "verify", "e.gemb")


def test_a_draft_that_is_alone_is_found(drafted: Gemb) -> None:
    (drafted.folder / "one").mkdir()
    write_old(drafted.folder / "one/07.txt", text_of(7))
    out(drafted, "index", "build", "one.gemb", "one", "--draft")
    query = " ".join(text_of(7).split()[5:25])
    assert hits(drafted, query, "one.gemb")[0]["path"] == "one/07.txt"
    found = hits(drafted, query, "d.gemb", "--where", "path = 'docs/07.txt'")
    assert [hit["path"] for hit in found] == ["docs/07.txt"]


def test_a_new_draft_is_held_against_those_that_had_their_vectors(drafted: Gemb) -> None:
    out(drafted, "index", "refine", "d.gemb")
    text = "!!! ??? ### $$$ %%% &&& ***"  # without a word that would find it
    write_old(drafted.folder / "docs/90.txt", text)
    out(drafted, "index", "sync", "d.gemb")
    assert info(drafted)["drafts"] == 1
    (hit,) = hits(drafted, text, "d.gemb", "-k1")
    assert (hit["path"], hit["estimated"]) == ("docs/90.txt", True)


def test_recall_is_that_of_rows_with_vectors(drafted: Gemb) -> None:
    line = error(drafted, "search", "--check-recall", "3", "d.gemb")
    assert "--check-recall: all rows of d.gemb are drafts; gemb index refine d.gemb" in line
    write_old(drafted.folder / "docs/90.txt", "zebras are poison to both")
    out(drafted, "index", "sync", "d.gemb")
    out(drafted, "index", "refine", "d.gemb", code=3)
    report = json.loads(out(drafted, "search", "--check-recall", "1000", "d.gemb", "--json"))
    assert report["queries"] == 90


def test_copies_of_a_draft_do_not_hide_the_others(drafted: Gemb) -> None:
    (drafted.folder / "docs/more").mkdir()
    for number in range(150):
        write_old(drafted.folder / f"docs/more/{number:03}.txt", text_of(5) + "\n")
    out(drafted, "index", "sync", "d.gemb")
    found = hits(drafted, " ".join(text_of(5).split()[:20]), "d.gemb", "-k5", "--weak")
    assert len({hit["text"] for hit in found}) == 5
    assert (found[0]["text"], found[0]["copies"]) == (text_of(5), 151)


def test_narrow_drafts_and_failed_ones_are_whole_in_int8(drafted: Gemb) -> None:
    write_model(
        drafted.folder / "draft.fake",
        is_bag=True,
        max_tokens=512,
        name="draft",
        draft_of=[FAKE],
        dim=8,  # components so large that they are clipped
        dims=[8],
    )
    write_old(drafted.folder / "docs/90.txt", "zebras are poison to both")
    out(drafted, "index", "build", "i.gemb", "docs", "--draft", "--dtype", "int8")
    out(drafted, "index", "verify", "i.gemb", "--rows", "0")
    out(drafted, "index", "refine", "i.gemb", code=3)
    assert info(drafted, "i.gemb")["drafts"] == 1
    out(drafted, "index", "verify", "i.gemb", "--rows", "0")


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_a_failed_draft_is_none_where_drafts_are_as_wide_as_vectors(
    drafted: Gemb, dtype: str
) -> None:
    write_model(
        drafted.folder / "draft.fake",
        is_bag=True,
        max_tokens=512,
        name="draft",
        draft_of=[FAKE],
        bias=0.05,
        poison="hard",
    )
    text = "hard " + text_of(90)
    write_old(drafted.folder / "docs/90.txt", text)
    out(drafted, "index", "build", "w.gemb", "docs", "--draft", "--dim", "256", "--dtype", dtype)
    facts = info(drafted, "w.gemb")
    assert (facts["dim"], facts["draft"]["width"], facts["drafts"]) == (256, 256, 91)
    out(drafted, "index", "verify", "w.gemb", "--rows", "0")
    with Index.open(drafted.folder / "w.gemb") as index:
        vectors = index.unit_vectors(index.drafts)
        failed = np.flatnonzero(np.isnan(vectors).all(axis=1))
        (hit,) = index.hits(index.drafts[failed], np.zeros(len(failed), np.float32))
        assert hit.text == text
        assert not index.stored[index.drafts[failed]].any()
        assert np.isfinite(np.delete(vectors, failed, axis=0)).all()
    # Its words alone rank it: a draft that is like nothing would be far below the others' mean.
    query = " ".join(text_of(90).split()[5:25])
    assert hits(drafted, query, "w.gemb", "-k1")[0]["path"] == "docs/90.txt"
    out(drafted, "index", "refine", "w.gemb")
    connection = sqlite3.connect(drafted.folder / "w.gemb/rows.sqlite")
    assert connection.execute("SELECT count(*) FROM drafts").fetchone() == (90,)
    connection.close()
    out(drafted, "index", "verify", "w.gemb", "--rows", "0")
    assert hits(drafted, query, "w.gemb", "-k1")[0]["path"] == "docs/90.txt"
    out(drafted, "index", "compact", "w.gemb")
    out(drafted, "index", "verify", "w.gemb", "--rows", "0")


def test_a_vector_of_zeros_that_is_no_draft_is_damage(drafted: Gemb) -> None:
    out(drafted, "index", "refine", "d.gemb")
    with Index.open(drafted.folder / "d.gemb") as index:
        alive = int(index.alive[0]) if index.alive is not None else 0
    with (drafted.folder / "d.gemb/vectors.f16").open("r+b") as file:
        file.seek(alive * 768 * 2)
        file.write(bytes(768 * 2))
    done = drafted("index", "verify", "d.gemb", "--rows", "0")
    assert done.returncode == 1
    assert f"the vector of row {alive} is not of length 1" in done.stdout.decode()


def test_a_search_writes_through_no_link_and_waits_for_no_pipe(drafted: Gemb) -> None:
    (drafted.folder / "own").write_bytes(b"mine")
    path = drafted.folder / "d.gemb/wanted.bin"
    path.symlink_to("../own")
    assert hits(drafted, text_of(1), "d.gemb", "-k1")[0]["path"] == "docs/01.txt"
    assert (drafted.folder / "own").read_bytes() == b"mine"
    path.unlink()
    os.mkfifo(path)
    assert hits(drafted, text_of(1), "d.gemb", "-k1")[0]["path"] == "docs/01.txt"


def test_what_is_like_a_draft_is_found(drafted: Gemb) -> None:
    write_old(drafted.folder / "docs/90.txt", " ".join([*text_of(7).split()[:-2], "other", "end"]))
    out(drafted, "index", "sync", "d.gemb")
    found = hits(drafted, "--like", "docs/07.txt:1", "d.gemb", "-k1")
    assert found[0]["path"] == "docs/90.txt"


def test_an_index_that_cannot_be_written_is_searched(drafted: Gemb) -> None:
    folder = drafted.folder / "d.gemb"
    folder.chmod(0o500)
    try:
        assert hits(drafted, text_of(1), "d.gemb", "-k1")[0]["path"] == "docs/01.txt"
    finally:
        folder.chmod(0o700)


def harm_rows(gemb: Gemb, statement: str) -> None:
    """Change the stored rows of an index behind gemb's back."""
    connection = sqlite3.connect(gemb.folder / "d.gemb/rows.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        ("DELETE FROM drafts WHERE slot = 3", "drafts"),
        ("INSERT INTO drafts VALUES (1000, NULL)", "drafts"),
        ("UPDATE drafts SET vector = x'00' WHERE slot = 3", "drafts"),
    ],
)
def test_verify_sees_what_is_no_draft(drafted: Gemb, harm: str, name: str) -> None:
    harm_rows(drafted, harm)
    done = drafted("index", "verify", "d.gemb", "--rows", "0")
    assert done.returncode == 1
    bad = [line.split()[1] for line in done.stdout.decode().splitlines() if "BAD" in line]
    assert bad == [name]


def test_a_row_on_which_the_model_fails_keeps_its_draft(drafted: Gemb) -> None:
    write_old(drafted.folder / "docs/90.txt", "zebras are poison to both")
    out(drafted, "index", "sync", "d.gemb")
    assert info(drafted)["drafts"] == 91
    done = drafted("index", "refine", "d.gemb")
    assert done.returncode == 3
    assert done.stdout.decode() == "+90 vectors (1 of 91 rows is a draft)\n"
    assert (
        done.stderr.decode()
        .splitlines()[-1]
        .endswith("without a real vector: 1 row, which keeps its draft")
    )
    assert "90 of 91 rows have real ones (98 %); 1 is a draft: gemb index refine" in out(
        drafted, "index", "info", "d.gemb"
    )
    check_whole(drafted)
    assert hits(drafted, "zebras", "d.gemb", "-k1")[0]["path"] == "docs/90.txt"


def test_what_cannot_be_is_one_line(drafted: Gemb) -> None:
    (drafted.folder / "none").mkdir()
    assert "no index absent" in error(drafted, "index", "refine", "absent")
    assert "none is no index" in error(drafted, "index", "refine", "none")
    line = error(drafted, "index", "refine", "d.gemb", "--for", "soon")
    assert "'soon' is no time such as 5s, 500ms, 2m or 0" in line
    write_model(drafted.folder / "other.fake", name="other", is_bag=True, max_tokens=512)
    line = error(drafted, "index", "refine", "d.gemb", "-m", "other.fake")
    assert "d.gemb was built with another model" in line
    drafted.environment["GEMB_DRAFT"] = "none"
    line = error(drafted, "index", "build", "e.gemb", "docs", "--draft")
    assert "--draft: there is no draft of model.fake with 768 components or fewer; " in line
    out(drafted, "embed", "-e", "a text", "-o", "v.jsonl")
    line = error(drafted, "index", "build", "e.gemb", "v.jsonl", "--draft")
    assert "--draft: these rows come with their vectors; leave it out" in line
    assert not (drafted.folder / "e.gemb.part").exists()


def test_rows_on_which_the_model_fails_hold_up_no_others(drafted: Gemb) -> None:
    for number in range(40):  # they come first, and fill whole windows
        write_old(drafted.folder / f"docs/!{number:02}.txt", f"poison number{number}")
    out(drafted, "index", "build", "e.gemb", "docs", "--draft")
    said = out(drafted, "index", "refine", "e.gemb", code=3)
    assert said == "+90 vectors (40 of 130 rows are drafts)\n"
    real = texts_of(drafted.folder / "e.gemb", drafts=False)
    assert real == {text_of(number) for number in range(90)}


def test_a_model_that_fails_on_all_rows_is_an_error(drafted: Gemb) -> None:
    (drafted.folder / "bad").mkdir()
    for number in range(3):
        write_old(drafted.folder / f"bad/{number:02}.txt", f"poison number{number}")
    out(drafted, "index", "build", "e.gemb", "bad", "--draft")
    done = drafted("index", "refine", "e.gemb")
    assert done.returncode == 5
    line = done.stderr.decode().splitlines()[-1]
    assert "the model fails on all of 3 rows of e.gemb; gemb doctor tries it" in line
    assert info(drafted, "e.gemb")["drafts"] == 3


def test_copies_of_a_passage_get_its_vector_together(drafted: Gemb) -> None:
    copy_of(drafted, 5)
    out(drafted, "index", "sync", "d.gemb")
    hits(drafted, " ".join(text_of(5).split()[:20]), "d.gemb")
    write_model(drafted.model, is_bag=True, max_tokens=512, sleep_s=0.3)
    out(drafted, "index", "refine", "d.gemb", "--for", "0.2s")
    assert text_of(5) in texts_of(drafted.folder / "d.gemb", drafts=False)
    assert text_of(5) not in texts_of(drafted.folder / "d.gemb", drafts=True)
    check_whole(drafted)


def test_the_progress_of_a_refinement_ends_with_all_rows(drafted: Gemb) -> None:
    (drafted.folder / "docs/more").mkdir()
    for number in range(80):  # far apart, so that some are not read when one has its vector
        write_old(drafted.folder / f"docs/more/{number:03}.txt", text_of(number % 4) + "\n")
    for number in range(3):
        write_old(drafted.folder / f"docs/bad{number}.txt", f"poison number{number}")
    out(drafted, "index", "sync", "d.gemb")
    done = subprocess.run(
        [sys.executable, "-c", TALKING, "index", "refine", "d.gemb"],
        cwd=drafted.folder,
        env=drafted.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr.decode()
    lines = [line for line in done.stderr.decode().splitlines() if "refining: " in line]
    counts = [int(line.split("refining: ")[1].split(" of ")[0]) for line in lines]
    assert counts == sorted(counts)
    assert lines[-1].split("refining: ")[1].startswith("173 of 173 rows, ")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("INSERT INTO drafts VALUES (1000, NULL)", "row 1000 is a draft, and not there"),
        ("INSERT INTO drafts VALUES (-1, NULL)", "row -1 is a draft, and not there"),
        ("DROP TABLE drafts", "the table of drafts is not there"),
    ],
)
def test_damaged_drafts_are_one_line(drafted: Gemb, harm: str, message: str) -> None:
    harm_rows(drafted, harm)
    for command in (("search", "a text", "d.gemb"), ("index", "refine", "d.gemb")):
        line = error(drafted, *command, code=5)
        assert f"d.gemb/rows.sqlite is damaged ({message}); copy it again, or build" in line


def test_the_engine_of_an_index_is_that_of_its_real_vectors(drafted: Gemb) -> None:
    assert info(drafted)["engines"] == []
    out(drafted, "index", "refine", "d.gemb", "--for", "0.01s")
    assert len(info(drafted)["engines"]) == 1
