"""`gemb.search(...)` and `gemb.Index`: the hits of `gemb search --json`, as Python objects."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

import gemb
from fake_backend import write_model
from file_trees import write
from gemb import Index, Model, SearchHit
from gemb.cli import gemb as command
from gemb.errors import Missing, UsageError
from gemb.index.where import WrongFilter

DOCS = {
    "docs/cat.md": "# Pets\n\nThe cat sleeps on the mat all day.\n\nIt eats fish.\n",
    "docs/dog.md": "# Pets\n\nThe dog barks at the postman.\n",
    "docs/tax.txt": "Declare your income by the end of July.\n",
}


@pytest.fixture
def folder(fake_backend, tmp_path, monkeypatch) -> Path:
    """A folder of three files and a model whose vectors are sums of words."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write(work, DOCS)
    write_model(work / "m.fake", is_bag=True)
    return work


@pytest.fixture
def index(folder) -> Path:
    run("index", "build", "docs.gemb", "docs", "-m", "m.fake")
    return folder / "docs.gemb"


def run(*words: str) -> str:
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def as_json(hits: list[SearchHit]) -> list[tuple]:
    return [
        (hit.path, hit.line, hit.last_line, hit.best_line, hit.text, round(hit.score, 6))
        for hit in hits
    ]


def told(output: str) -> list[tuple]:
    names = ("path", "line", "last_line", "best_line", "text", "score")
    return [tuple(json.loads(line)[name] for name in names) for line in output.splitlines()]


def test_hits_of_files_are_those_of_the_command(folder):
    question = "where does the cat sleep on the mat"
    hits = gemb.search(question, "docs", model="m.fake", weak=True)
    assert as_json(hits) == told(
        run("search", question, "docs", "-m", "m.fake", "--weak", "--json")
    )
    assert hits[0].path == "docs/cat.md"
    assert hits[0].best_line == 3


def test_hits_of_an_index_are_those_of_the_command(index):
    question = "the dog barks"
    with Index.open("docs.gemb") as opened:
        hits = opened.search(question, k=2)
        assert len(opened) == 3
        assert opened.search("the dog barks", where="path like '%tax%'", weak=True)[0].path == (
            "docs/tax.txt"
        )
        like = opened.search(like="docs/dog.md:3", k=1)
        assert repr(opened) == "Index('docs.gemb')"
    assert as_json(hits) == told(run("search", question, "docs.gemb", "-k", "2", "--json"))
    assert hits[0].path == "docs/dog.md"
    assert like[0].path != "docs/dog.md"
    assert gemb.search(question, "docs.gemb", k=2) == hits


def test_an_open_model_is_used_and_stays_open(index):
    with Model("m.fake") as model:
        with Index.open(index, model=model) as opened:
            assert opened.search("the dog barks")[0].text.endswith("postman.")
        assert gemb.search("the cat sleeps on the mat", ["docs/cat.md"], model=model)
        assert model.encode_query("still open").shape == (768,)


def test_an_index_is_followed_while_it_changes(index):
    with Index.open(index) as opened:
        assert len(opened) == 3
        write(index.parent, {"docs/new.md": "A zebra has stripes.\n"})
        run("index", "sync", "docs.gemb")
        assert opened.search("a zebra has stripes", k=1)[0].path.endswith("docs/new.md")
        run("index", "build", "-f", "docs.gemb", "docs/tax.txt", "-m", "m.fake")
        assert {hit.path for hit in opened.search("a zebra has stripes", weak=True)} == {
            opened.search("declare your income", weak=True)[0].path
        }


def test_threads_share_an_index(index):
    questions = ["the cat sleeps on the mat", "the dog barks", "declare your income"]
    with Index.open(index) as opened:
        alone = [as_json(opened.search(question)) for question in questions]
        barrier = threading.Barrier(6)

        def ask(question: str) -> list[tuple]:
            barrier.wait()
            return as_json(opened.search(question))

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, questions * 2)) == alone * 2


def test_threads_that_come_first_open_one_model(index, monkeypatch):
    opened = []
    both = threading.Barrier(2)

    class Slow(Model):
        def __init__(self, *words, **options):
            opened.append(words)
            with suppress(threading.BrokenBarrierError):
                both.wait(0.5)  # a second one that opens it, too, would be here by now
            super().__init__(*words, **options)

    monkeypatch.setattr("gemb.search.interface.Model", Slow)
    with Index.open(index) as shared, ThreadPoolExecutor(2) as pool:
        assert all(pool.map(shared.search, ["the cat sleeps", "the dog barks"]))
    assert len(opened) == 1


def test_an_index_of_another_model_opens_its_own(index, folder):
    write_model(folder / "other.fake", name="other", is_bag=True)
    question = "the cat sleeps on the mat"
    with Model("m.fake") as its, Model("other.fake") as other:
        assert Index.suiting(index, its)._encoder("") is its.encoder
        with Index.suiting(index, other) as opened:
            assert as_json(opened.search(question)) == as_json(Index.open(index).search(question))
        (folder / "m.fake").unlink()
        assert Index.suiting(index, its).search(question)
        with (
            Index.open(index, model=other) as opened,
            pytest.raises(UsageError, match=r"of another model \(.*m\.fake\), not of other\.fake"),
        ):
            opened.search(question)
        with pytest.raises(Missing, match=r"was built with the model .*m\.fake, which is not here"):
            Index.suiting(index, other).search(question)


def test_an_index_that_is_replaced_by_one_of_another_model_is_searched_with_that(index, folder):
    write_model(folder / "other.fake", name="other", is_bag=True)
    question = "the cat sleeps on the mat"
    with Model("m.fake") as model, Index.suiting(index, model) as suiting, Index.open(index) as own:
        before = as_json(own.search(question))
        assert as_json(suiting.search(question)) == before
        run("index", "build", "-f", "docs.gemb", "docs", "-m", "other.fake")
        for opened in (suiting, own):
            assert [hit.path for hit in opened.search(question, k=1)] == ["docs/cat.md"]
            assert opened._encoder("other.fake").profile.fingerprint != model.profile.fingerprint
        run("index", "build", "-f", "docs.gemb", "docs", "-m", "m.fake")
        assert as_json(suiting.search(question)) == as_json(own.search(question)) == before
        assert suiting._encoder("") is model.encoder
        write_model(folder / "m.fake", name="another", is_bag=True)
        with (
            Index.open(index) as changed,
            pytest.raises(UsageError, match="is not what it was when the index was built"),
        ):
            changed.search(question)
    assert model.reference == "m.fake"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": ""}, "the query: it is empty"),
        ({"question": 3}, "the question is int, not a string"),
        ({"paths": "nosuch"}, "nosuch: no such file or folder"),
        ({"paths": []}, "no path to search"),
        ({"paths": ["", "docs"]}, "an empty name: no such file"),
        ({"paths": ["docs.gemb", "docs"]}, "docs.gemb is an index; it is searched alone"),
        ({"where": "a = 1"}, "where= is for an index"),
        ({"k": 0}, "k=0; it is 1 or more, or None"),
        ({"k": -1}, "k=-1; it is 1 or more, or None"),
        ({"min_score": "1"}, "min_score='1'; it is a cosine"),
        ({"budget": "5"}, "budget='5'; it is a number of seconds"),
        ({"budget": -1}, "budget=-1; it is a number of seconds"),
        ({"min_score": 2}, "min_score=2; it is a cosine, from -1 to 1"),
        ({"passages": "verse"}, "passages='verse'; it is one of auto, lines"),
        ({"task": "poem"}, "no task 'poem'"),
        ({"paths": "docs.gemb", "dim": 128}, "--dim 128: the vectors of docs.gemb have 768"),
    ],
)
def test_arguments_that_are_refused(index, arguments, message):
    values = {"question": "cat", "paths": "docs", "model": "m.fake", **arguments}
    with pytest.raises(UsageError, match=message):
        gemb.search(values.pop("question"), values.pop("paths"), **values)


def test_what_an_index_refuses(index):
    with pytest.raises(UsageError, match="docs"):
        Index.open("docs")
    with Index.open(index) as opened:
        with pytest.raises(UsageError, match="accuracy='best'; it is one of auto, exact"):
            opened.search("cat", accuracy="best")
        with pytest.raises(UsageError, match="a question and like= are both given"):
            opened.search("cat", like="docs/cat.md:3")
        with pytest.raises(UsageError, match="nosuch"):
            opened.search("cat", where="nosuch = 1")
    (index.parent / "m.fake").unlink()
    with (
        Index.open(index) as opened,
        pytest.raises(Missing, match=r"was built with the model .*m\.fake, which is not here"),
    ):
        opened.search("cat")


def test_a_filter_ends_after_the_time_that_it_is_given(index, monkeypatch):
    monkeypatch.setattr("gemb.index.where.STEPS", 2)
    with Index.open(index) as opened:
        assert opened.search("the cat sleeps on the mat", where="line > 0", where_seconds=60)
        with pytest.raises(WrongFilter, match=r"^--where: it takes over 0 s$"):
            opened.search("the cat sleeps on the mat", where="line > 0", where_seconds=0)


def test_nothing_relevant_is_an_empty_list_and_prints_nothing(folder, capfd, caplog):
    logger = logging.getLogger("gemb")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    try:
        assert gemb.search("quantum chromodynamics", "docs", model="m.fake") == []
    finally:
        logger.handlers, logger.propagate, logger.level = before
    assert capfd.readouterr() == ("", "")


def test_hits_say_whether_they_are_sure(folder):
    rest = " and other words of no use" * 50  # one text fills a window
    write(folder, {f"more/{number}.txt": f"zebra {number}{rest}\n" for number in range(50)})
    write_model(folder / "m.fake", is_bag=True, max_tokens=512, sleep_s=0.2)
    with Model("m.fake") as model:
        hits = gemb.search("walrus with a zebra", "more", model=model, budget=0.001)
        assert isinstance(hits, list)
        assert (len(hits), hits.unsure) == (10, "time")
        hits = gemb.search("quantum chromodynamics", "docs", model=model, budget=0)
        assert (hits, hits.unsure) == ([], "time")
    write_model(folder / "m.fake", is_bag=True, max_tokens=512)
    hits = gemb.search("quantum chromodynamics", "more", model="m.fake", budget=None)
    assert (hits, hits.unsure) == ([], None)
    copy = pickle.loads(pickle.dumps(gemb.search("zebra", "more", model="m.fake")))
    assert copy.unsure is None
    assert copy[0].path.startswith("more/")


def test_an_open_model_keeps_its_draft_open(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "gemb.embedding.model.open_draft", lambda fingerprint: opened.append(fingerprint)
    )
    with Model("m.fake") as model:
        for question in ("the cat sleeps", "the dog barks"):
            assert gemb.search(question, "docs", model=model, budget=0.0)
            write(folder, {"docs/new.md": f"{question}: new words"})
        assert opened == [model.profile.fingerprint]


def test_a_file_named_like_standard_input_is_a_file(folder):
    write(folder, {"-": "The walrus swims in cold water.\n"})
    hits = gemb.search("the walrus swims in cold water", "-", model="m.fake")
    assert [hit.text.strip() for hit in hits] == ["The walrus swims in cold water."]


def test_the_package_is_a_function_and_still_a_package():
    import gemb.search.files as files

    assert callable(gemb.search)
    assert gemb.search.files is files
    with pytest.raises(AttributeError, match="module 'gemb' has no attribute 'nosuch'"):
        _ = gemb.nosuch
    assert {"Model", "Index", "search", "__version__"} <= set(dir(gemb))
