"""The first ranking by words and drafts, and what gets a real vector after it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from file_search import GatheredFiles
from file_trees import write
from gemb.embedding import drafts as draft_models
from gemb.embedding.drafts import DraftModel, open_draft
from gemb.errors import GembError, Missing, UsageError
from gemb.index.hits import Hit
from gemb.search import file_search, scoring
from gemb.search.answers import QueryHits, above, exit_code
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Sources, gather
from gemb.search.file_search import FileSearch
from gemb.search.files import run_files
from gemb.search.first import first_ranking
from gemb.search.first_reading import CHUNK, FirstReader
from gemb.search.forms import Silent
from gemb.search.kept_drafts import Drafts
from gemb.search.kept_words import KnownWords
from gemb.search.passage_texts import PassageTexts
from gemb.search.queries import Criteria, Query, SearchJob, Unsure, from_words
from gemb.search.scoring import SearchProgress, split_known
from gemb.search.stages import Stages
from gemb.texts.walk import Skipped
from word_encoder import WordEncoder

CAT = "The cat sleeps on the mat all day."


class SynonymEncoder(WordEncoder):
    """A draft: it knows that a kitten is a cat, and takes texts as they are."""

    def __init__(self, **settings: float) -> None:
        super().__init__(**settings)
        self.profile = dataclasses.replace(self.profile, fingerprint="00000000000d4af7")

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return super().tokenize([text.replace("cat", "kitten") for text in texts])


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of forty files, of which one speaks of a cat."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    dice = random.Random(0)
    nouns = [f"noun{number}" for number in range(300)]
    write(
        folder,
        {
            f"docs/{number:02}.txt": "\n\n".join(
                " ".join(dice.choices(nouns, k=100)) + "." for _ in range(6)
            )
            for number in range(40)
        },
    )
    write(folder, {"docs/cat.md": f"# Pets\n\n{CAT}\n"})
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def search(
    query: str,
    encoder: WordEncoder,
    *paths: str,
    cache: Path | None = None,
    draft: WordEncoder | None = None,
    **criteria: object,
) -> list[Hit]:
    """Return the hits of one query; seconds=1.0 of new vectors unless `criteria` say otherwise."""
    files = GatheredFiles(*(paths or ("docs",)), cache=cache)
    found = FileSearch(
        files.texts,
        files.cache(encoder.spec),
        [Query("1", query, "the query")],
        encoder.queries(query),
        encoder,
        Criteria(**{"seconds": 1.0, "is_weak": True, **criteria}),  # type: ignore[arg-type]
    )
    if found.needs_first:
        found.rank_first(files.reader(draft, encoder.spec.dim))
    (answer,) = found.answers()
    return answer.hits


def test_the_best_by_words_get_vectors_until_the_time_is_over(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.02)
    hits = search("where does the cat sleep", encoder, cache=cache, seconds=0.3, k=3)
    assert hits[0].path == "docs/cat.md"
    assert not hits[0].is_estimate
    assert 3 < encoder.texts < 30
    files = GatheredFiles("docs", cache=cache)
    assert files.missing(encoder.spec) == len(files) - encoder.texts + 1  # one was the query


def test_when_the_best_ones_do_not_change_the_rest_gets_no_vector(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.scoring.SETTLED", 20)
    encoder = WordEncoder()
    first = search("noun7 noun8 noun9", encoder, cache=cache, seconds=60.0, k=3)
    assert encoder.texts < 100
    before = encoder.texts
    again = search("noun7 noun8 noun9", encoder, cache=cache, seconds=60.0, k=3)
    assert again == first
    assert encoder.texts - before <= 1 + 20  # what was settled before is not settled again


def test_no_time_means_words_alone_and_scores_that_are_estimated(tree: Path) -> None:
    encoder = WordEncoder()
    hits = search("the cat sleeps", encoder, seconds=0.0, k=2)
    assert hits[0].path == "docs/cat.md"
    assert all(hit.is_estimate for hit in hits)
    assert encoder.texts == 1  # the query
    assert search("zebra", encoder, seconds=0.0) == []


def test_one_passage_alone_is_found_by_its_words(tree: Path) -> None:
    write(tree, {"one/cat.txt": f"{CAT}\n"})
    (hit,) = search("the cat sleeps", WordEncoder(), "one", seconds=0.0)
    assert (hit.path, hit.is_estimate) == ("one/cat.txt", True)
    assert search("zebra", WordEncoder(), "one", seconds=0.0) == []


def test_too_little_time_fills_up_with_estimates(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.2)
    hits = search("noun7 noun8 noun9", encoder, cache=cache, seconds=0.01, k=10)
    assert len(hits) == 10
    assert 0 < sum(not hit.is_estimate for hit in hits) < 10
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_without_a_budget_every_passage_gets_a_vector(tree: Path, cache: Path) -> None:
    encoder = WordEncoder()
    search("the cat", encoder, cache=cache, seconds=None)
    assert GatheredFiles("docs", cache=cache).missing(encoder.spec) == 0


def test_a_draft_finds_what_shares_no_word(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.01)
    without = search("kitten", encoder, seconds=0.2, k=3)
    assert "docs/cat.md" not in {hit.path for hit in without}
    hits = search("kitten", encoder, cache=cache, draft=SynonymEncoder(), seconds=0.2, k=300)
    tested = {hit.path for hit in hits if not hit.is_estimate}
    assert "docs/cat.md" in tested  # it has no word of the query, and so a low cosine
    ranked = search("kitten", encoder, draft=SynonymEncoder(), seconds=0.0, k=1)
    assert ranked[0].path == "docs/cat.md"


def test_drafts_are_kept_small_and_made_once(tree: Path, cache: Path) -> None:
    draft = SynonymEncoder()
    encoder = WordEncoder()
    for made in (True, False):
        before = draft.texts
        search("kitten", encoder, cache=cache, draft=draft, seconds=0.0)
        assert (draft.texts > before) is made
    model = DraftModel.of(draft, 64)
    assert model
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "gemb/search/drafts" / model.spec.fingerprint
    files = GatheredFiles("docs")
    assert (folder / "vectors.f16").stat().st_size == 2 * 64 * len(files)


@pytest.mark.parametrize("fault", ["short", "flipped", "foreign"])
def test_a_damaged_cache_of_drafts_is_no_harm(
    tree: Path, cache: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = SynonymEncoder()
    encoder = WordEncoder()
    search("the cat", encoder, cache=cache, draft=draft, seconds=0.0)
    model = DraftModel.of(draft, 64)
    assert model
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "gemb/search/drafts" / model.spec.fingerprint
    vectors = folder / "vectors.f16"
    if fault == "short":
        os.truncate(vectors, vectors.stat().st_size // 2 + 7)
    elif fault == "flipped":
        vectors.write_bytes(b"\xff\x7b" * (vectors.stat().st_size // 2))
    else:
        (folder / "store.json").write_text("{}")
    hits = search("the cat sleeps", encoder, cache=cache, draft=draft, seconds=0.0, k=1)
    assert hits[0].path == "docs/cat.md"
    notes = capsys.readouterr().err
    assert ("are damaged; they are made anew" in notes) is (fault != "short")
    made = draft.texts
    search("the cat sleeps", encoder, cache=cache, draft=draft, seconds=0.0, k=1)
    assert draft.texts == made, "it is whole again"
    assert not capsys.readouterr().err


def test_drafts_that_nobody_uses_go(tree: Path, cache: Path) -> None:
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "gemb/search/drafts"
    for name, days in (("old", 31), ("new", 3)):
        (folder / name).mkdir(parents=True)
        (folder / name / "vectors.f16").write_bytes(b"")
        then = time.time() - 86400 * days
        os.utime(folder / name / "vectors.f16", (then, then))
    search("the cat", WordEncoder(), cache=cache, draft=SynonymEncoder(), seconds=0.0)
    assert not (folder / "old").exists()
    assert (folder / "new").exists()


def test_a_passage_on_which_the_draft_fails_has_none(tree: Path) -> None:
    write(tree, {"docs/bad.txt": "this is poison"})
    encoder = WordEncoder()
    hits = search("this", encoder, draft=SynonymEncoder(), seconds=0.0, k=1, explains=True)
    assert hits[0].path == "docs/bad.txt"
    assert hits[0].ranks == {"words": 1, "draft": None, "vector": None}


def test_a_draft_that_fails_on_all_passages_is_none(tree: Path) -> None:
    write(tree, {f"bad/{number}.txt": f"this is poison {number}" for number in range(3)})
    hits = search("this 1", WordEncoder(), "bad", draft=SynonymEncoder(), seconds=0.0, k=3)
    assert hits[0].path == "bad/1.txt"


def test_a_folder_whose_name_is_no_text_is_searched(tree: Path) -> None:
    folder = os.fsdecode(b"docs/caf\xe9")
    write(tree, {f"{folder}/a.txt": "the zebra runs"})
    (hit,) = search("zebra", WordEncoder(), seconds=1.0, k=1)
    assert hit.path == f"{folder}/a.txt"


def test_what_is_gone_meanwhile_leaves_neither_draft_nor_words(tree: Path, cache: Path) -> None:
    files = GatheredFiles("docs", cache=cache)
    model = DraftModel.of(SynonymEncoder(), 64)
    assert model
    (tree / "docs/cat.md").rename(tree / "away.md")
    reader = FirstReader(lambda: KnownWords(cache / "words"), lambda: Drafts(model, cache))
    first = first_ranking(files.texts, reader)
    assert (first.rows < 0).sum() == 1
    assert (first.draft_rows < 0).sum() == 1
    assert not first.scores("cat sleeps", np.ones(64, np.float32)).words.any()
    (tree / "away.md").rename(tree / "docs/cat.md")
    assert search("the cat", WordEncoder(), cache=cache, k=1)[0].path == "docs/cat.md"


def test_estimates_are_no_answer_where_what_was_tested_is_none(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.2)
    given = {"seconds": 0.01, "k": 10, "is_weak": False}
    assert search("noun7 and whatever", encoder, cache=cache, min_score=0.9, **given) == []
    low = search("noun7 noun8", encoder, cache=cache, min_score=0.01, **given)
    assert low
    assert all(hit.score >= 0.01 for hit in low)


def test_too_few_vectors_do_not_say_that_nothing_is_relevant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    vector = np.zeros(2, np.float32)
    tested, estimate = Hit(score=0.3, text="x"), Hit(score=0.2, text="y", is_estimate=True)

    def answer(hits: list[Hit], unsure: Unsure | None, **criteria: float) -> QueryHits:
        return above(from_words("absent"), vector, hits, 0.4, Criteria(**criteria), unsure=unsure)

    reasons: dict[Unsure, str] = {
        "time": "too little time to tell what is relevant",
        "failed": "the model failed before it could be told what is relevant",
    }
    for reason, words in reasons.items():
        unsure = answer([tested, estimate], reason)
        assert (unsure.hits, unsure.unsure) == ([tested, estimate], reason)
        assert exit_code([unsure], 99, Criteria()) == 0
        assert words in capsys.readouterr().err
        nothing = answer([], reason)
        assert exit_code([nothing], 99, Criteria()) == 1
        assert words in capsys.readouterr().err
    for sure in (
        answer([tested, estimate], None),
        answer([tested, estimate], "time", min_score=0.4),  # a floor that was asked for is one
    ):
        assert (sure.hits, sure.unsure) == ([], None)
        assert exit_code([sure], 99, Criteria()) == 1
        assert "nothing relevant: the best of 99 scores 0.30, under 0.40" in capsys.readouterr().err
    good = Hit(score=0.5, text="z")
    found = answer([good, tested, estimate], "time")
    assert (found.hits, found.unsure) == ([good, estimate], None)
    better = Hit(score=0.5, text="z", is_estimate=True)
    untested = answer([better, estimate], "time", min_score=0.4)
    assert untested.hits == [better]


def answer_of(
    query: str, encoder: WordEncoder, *paths: str, cache: Path | None = None, **criteria: Any
) -> QueryHits:
    """Return the answer to one query, with a floor."""
    files = GatheredFiles(*paths, cache=cache)
    found = FileSearch(
        files.texts,
        files.cache(encoder.spec),
        [Query("1", query, "the query")],
        encoder.queries(query),
        encoder,
        Criteria(**criteria),
    )
    found.rank_first(files.reader())
    (answer,) = found.answers()
    return answer


@pytest.mark.parametrize(("word", "reason"), [("poison", "failed"), ("honey", "time")])
def test_a_model_that_fails_is_no_lack_of_time(
    tree: Path, cache: Path, word: str, reason: Unsure
) -> None:
    search("the dog", WordEncoder(), cache=cache, seconds=60.0)  # some have vectors
    rest = " and many other words of no use" * 40  # one text fills a window
    write(tree, {f"more/{number:02}.txt": f"{word} zebra{rest} {number}" for number in range(9)})
    encoder = WordEncoder(sleep_s=0.01)
    answer = answer_of("zebra walrus", encoder, "docs", "more", cache=cache, seconds=0.001)
    assert answer.unsure == reason


def test_texts_on_which_the_model_fails_hold_up_no_others(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The best by words come first, and fill whole windows.
    bad = "poison the cat sleeps " * 20
    write(tree, {f"docs/!{number:02}.txt": f"{bad}{number}" for number in range(90)})
    for seconds in (60.0, None):
        hits = search("the cat sleeps", WordEncoder(), seconds=seconds, k=1)
        assert hits[0].path == "docs/cat.md"
        assert not hits[0].is_estimate
        said = capsys.readouterr().err
        assert "passages: the backend fails on every text: RuntimeError: poisoned" in said
        assert "not tried" not in said


def test_a_model_that_fails_on_one_after_another_is_asked_no_more(
    tree: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "HOPELESS", 20)
    search("the dog", WordEncoder(), cache=cache, seconds=60.0)
    write(tree, {f"docs/!{number:03}.txt": f"poison cat {number}" for number in range(500)})
    for seconds in (60.0, None):
        answer = answer_of("zebra cat", WordEncoder(), "docs", cache=cache, seconds=seconds)
        said = capsys.readouterr().err
        assert " more passages: the model fails on one after another, and these were not" in said
        assert answer.unsure == ("failed" if seconds else None)


def test_a_model_that_fails_on_all_passages_is_an_error(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tree, {f"bad/{number}.txt": f"poison cat {number}" for number in range(3)})
    words = r"fails on all of 3 passages \(the backend .*: poisoned\); gemb doctor tries it"
    for seconds in (60.0, None):
        with pytest.raises(GembError, match=words):
            search("the cat", WordEncoder(), "bad", seconds=seconds)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_where_nothing_is_left_there_is_no_estimate(tree: Path, seconds: float | None) -> None:
    write(tree, {"few/bad.txt": "poison cat", "few/a.txt": CAT, "few/b.txt": "A dog."})
    encoder = WordEncoder()
    hits = search("the cat", encoder, "few", seconds=seconds)
    assert {hit.path for hit in hits} == {"few/a.txt", "few/b.txt"}
    files = GatheredFiles("few")
    *_, last = files.steps(encoder.queries("cat"), encoder, ["cat"], seconds=seconds)
    assert (last.ranking.count, last.total, last.is_settled) == (2, 3, True)


def test_what_has_copies_is_settled_when_one_of_each_has_a_vector(tree: Path) -> None:
    write(tree, {"few/LICENSE": CAT, "few/COPYING": CAT, "few/b.txt": "A dog."})
    files, encoder = GatheredFiles("few"), WordEncoder()
    query = Query("1", "the cat", "the query")
    vectors, cache = encoder.queries(query.text), files.cache(encoder.spec)
    criteria = Criteria(seconds=60.0, is_weak=True)
    found = FileSearch(files.texts, cache, [query], vectors, encoder, criteria)
    found.rank_first(files.reader())
    steps: list[SearchProgress] = []
    found.answers(lambda progress, _: steps.append(progress))
    assert steps[-1].ranking.count < steps[-1].total
    assert steps[-1].is_settled


def test_reading_that_is_stopped_keeps_its_drafts(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.first.CHUNK", 10)
    monkeypatch.setattr("gemb.search.first_reading.CHUNK", 10)
    monkeypatch.setattr("gemb.search.first_reading.AHEAD", 1)  # a chunk is done before the next
    files = GatheredFiles("docs", cache=cache)
    model = DraftModel.of(SynonymEncoder(), 64)
    assert model

    def stop(passages: int) -> None:
        if passages >= 100:
            raise KeyboardInterrupt

    reader = FirstReader(lambda: KnownWords(None), lambda: Drafts(model, cache))
    with pytest.raises(KeyboardInterrupt):
        first_ranking(files.texts, reader, read=stop)
    kept = Drafts(model, cache).find(files.corpus.keys)
    assert 10 <= (kept >= 0).sum() <= 100


def test_a_tree_that_changes_meanwhile_loses_what_is_gone(tree: Path) -> None:
    files = GatheredFiles("docs")
    (tree / "docs/00.txt").unlink()
    (tree / "docs/01.txt").write_text("something else")
    first = first_ranking(files.texts, files.reader())
    scores = first.scores("the cat", np.zeros(64, np.float32))
    assert len(scores.words) == len(files)
    assert files.corpus.files[files.corpus.files_of(np.array([scores.fused.argmax()]))[0]].path == (
        "docs/cat.md"
    )


def test_the_very_name_wins(tree: Path) -> None:
    write(
        tree,
        {
            "docs/a.py": "def banner(seasonal):\n    return seasonal, banner\n",
            "docs/b.py": "# words of another kind, many of them, and one\nseasonalBanner = 1\n",
        },
    )
    encoder = WordEncoder()
    hits = search("seasonalBanner", encoder, seconds=5.0, k=2)
    assert [hit.path for hit in hits] == ["docs/b.py", "docs/a.py"]
    hits = search("seasonalBanner", encoder, seconds=None, k=2)
    assert hits[0].path == "docs/b.py"


def test_the_very_name_wins_among_estimates(tree: Path, cache: Path) -> None:
    write(tree, {"docs/a.py": "# words of another kind, many of them\nseasonalBanner = noun1\n"})
    encoder = WordEncoder()
    query = "noun1 noun2 noun3 seasonalBanner"
    search(query, encoder, cache=cache, seconds=5.0, k=2)
    hits = search(query, encoder, cache=cache, seconds=0.0, k=40)
    assert hits[0].path == "docs/a.py"


def test_copies_are_one_hit_with_a_count(tree: Path) -> None:
    licence = "Permission is granted to use this cat as you like."
    write(tree, {f"docs/licence{number}.txt": licence for number in range(30)})
    encoder = WordEncoder()
    hits = search("permission to use this", encoder, k=4)
    assert hits[0].text == licence
    assert hits[0].copies == 30
    assert [hit.text for hit in hits].count(licence) == 1
    assert hits[1].copies == 1
    hits = search("permission to use this", encoder, k=40, is_once=False)
    assert [hit.text for hit in hits].count(licence) == 30


def test_many_copies_keep_nothing_else_out(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.scoring.SPARE", 2)
    licence = "Permission is granted to use this cat as you like."
    write(tree, {f"docs/licence{number}.txt": licence for number in range(30)})
    for seconds in (None, 5.0):
        hits = search("permission to use this", WordEncoder(), cache=cache, k=4, seconds=seconds)
        assert [hit.copies for hit in hits] == [30, 1, 1, 1]


def test_a_copy_is_not_both_tested_and_estimated(tree: Path, cache: Path) -> None:
    licence = "Permission is granted to use this cat as you like."
    write(tree, {f"docs/licence{number}.txt": licence for number in range(30)})
    encoder = WordEncoder(sleep_s=0.2)
    hits = search("permission to use this", encoder, cache=cache, seconds=0.01, k=10)
    assert [hit.text for hit in hits].count(licence) == 1
    assert not hits[0].is_estimate


def test_names_that_many_passages_have_are_no_reason_in_a_question(tree: Path) -> None:
    write(tree, {f"hub/{number:02}.md": f"GitHub {number} of other things" for number in range(40)})
    write(tree, {"hub/push.md": "how do I push a branch to a server"})
    write(tree, {"hub/app.md": "how is an app signed; see macOS"})
    encoder = WordEncoder()
    question = "how do I push a branch to GitHub"
    assert search(question, encoder, "hub", k=1)[0].path == "hub/push.md"
    assert "GitHub" in search("GitHub", encoder, "hub", k=1)[0].text
    assert "GitHub" in search("where is GitHub", encoder, "hub", k=1)[0].text
    assert search("how do I sign on macOS", encoder, "hub", k=1)[0].path == "hub/app.md"


def test_words_may_count_as_much_as_meaning(tree: Path, cache: Path) -> None:
    write(tree, {f"docs/copy{number}.md": "a zebra has noun1 and more" for number in range(9)})
    encoder = WordEncoder()
    query = "zebra noun1 noun2 noun3 noun4"
    plain = search(query, encoder, cache=cache, seconds=None, k=8)
    hits = search(query, encoder, cache=cache, seconds=None, k=8, is_hybrid=True, explains=True)
    places = [hit.path.startswith("docs/copy") for hit in hits]
    assert places.index(True) < [hit.path.startswith("docs/copy") for hit in plain].index(True)
    assert sum(places) == 1
    copy = hits[places.index(True)]
    assert copy.copies == 9
    assert copy.ranks["words"] is not None
    few = search(query, WordEncoder(), seconds=0.0, k=3, is_hybrid=True)
    assert all(hit.is_estimate for hit in few)
    assert len(few) == 3


def test_ranks_say_why_a_passage_is_there(tree: Path) -> None:
    encoder = WordEncoder()
    hits = search("the cat sleeps", encoder, draft=SynonymEncoder(), k=2, explains=True)
    assert hits[0].ranks == {"words": 1, "draft": 1, "vector": 1}
    assert hits[1].ranks["vector"] == 2
    assert hits[1].ranks["words"] is None
    no_draft = search("the cat sleeps", encoder, k=1, explains=True)
    assert no_draft[0].ranks == {"words": 1, "draft": None, "vector": 1}


def test_several_queries_share_the_time(tree: Path, cache: Path) -> None:
    write(tree, {"docs/dog.md": "# Pets\n\nThe dog eats bones.\n"})
    encoder = WordEncoder(sleep_s=0.01)
    files = GatheredFiles("docs", cache=cache)
    texts = ["the cat sleeps", "a dog eats bones"]
    found = FileSearch(
        files.texts,
        files.cache(encoder.spec),
        [Query(str(number), text, "q") for number, text in enumerate(texts)],
        encoder.queries(*texts),
        encoder,
        Criteria(seconds=0.1, is_weak=True, k=1),
    )
    found.rank_first(files.reader())
    assert [answer.hits[0].path for answer in found.answers()] == ["docs/cat.md", "docs/dog.md"]


def test_the_budget_is_that_of_the_whole_search(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = GatheredFiles("docs", cache=cache)
    encoder = WordEncoder()
    given: list[float | None] = []
    scored = file_search.scored
    monkeypatch.setattr(
        file_search,
        "scored",
        lambda *more, seconds, **named: (
            given.append(seconds) or scored(*more, seconds=0.0, **named)
        ),
    )
    for elapsed in (0.0, 3.0, 60.0):
        stages = Stages()
        monkeypatch.setattr(stages, "elapsed", lambda elapsed=elapsed: elapsed)
        found = FileSearch(
            files.texts,
            files.cache(encoder.spec),
            [Query(str(number), "the cat", "q") for number in range(3)],
            encoder.queries(*["the cat"] * 3),
            encoder,
            Criteria(seconds=6.0),
            stages,
        )
        found.rank_first(files.reader())
        found.answers()
    np.testing.assert_allclose(given, [3.6, 3.0, 2.0])  # not once for each query


def test_a_draft_is_that_of_the_model_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = WordEncoder()
    profile = encoder.profile
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    teachers = {"own": (profile.fingerprint,), "other": ("0123456789abcdef",)}
    monkeypatch.setattr(
        draft_models, "describe", lambda path: SimpleNamespace(draft_of=teachers[path.name])
    )
    monkeypatch.setattr(
        draft_models,
        "backends",
        lambda: {"fake": SimpleNamespace(can_open=lambda path: True)},
    )
    monkeypatch.setattr(
        draft_models, "open_engine", lambda *arguments: SimpleNamespace(encoder=encoder)
    )
    monkeypatch.setattr(draft_models, "BUNDLED", tmp_path / "own")
    monkeypatch.delenv("GEMB_DRAFT", raising=False)
    assert open_draft(profile.fingerprint) is encoder
    monkeypatch.setenv("GEMB_DRAFT", "none")
    assert open_draft(profile.fingerprint) is None
    monkeypatch.setenv("GEMB_DRAFT", str(tmp_path / "other"))
    assert open_draft(profile.fingerprint) is None
    assert "is a draft of the model 0123456789abcdef, not of" in capsys.readouterr().err
    monkeypatch.setenv("GEMB_DRAFT", str(tmp_path / "nowhere"))
    with pytest.raises(Missing, match="nowhere"):
        open_draft(profile.fingerprint)
    monkeypatch.delenv("GEMB_DRAFT")
    monkeypatch.setattr(draft_models, "BUNDLED", tmp_path / "absent")
    assert open_draft(profile.fingerprint) is None


def test_a_draft_that_is_wider_or_has_no_fitting_width() -> None:
    draft = SynonymEncoder()
    assert DraftModel.of(draft, 32) is None
    draft.profile = dataclasses.replace(draft.profile, dim=64, matryoshka_dims=(64, 32, 16))
    model = DraftModel.of(draft, 48)
    assert model
    assert model.spec.dim == 32
    vectors = model.vectors([("a title", "a text"), (None, "poison"), (None, "more")])
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 2]], axis=1), 1, rtol=1e-5)


def test_every_step_has_a_ranking_of_what_has_a_vector(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.005)
    files = GatheredFiles("docs", cache=cache)
    steps = files.steps(encoder.queries("cat"), encoder, ["cat"], seconds=0.4)
    done = [step.ranking.count for step in itertools.islice(steps, 3)]
    assert done[0] == 0 < done[1] < done[2]
    steps.close()
    known, _ = split_known(files.corpus, VectorCache(cache, encoder.spec))
    assert len(known.numbers) == done[2]


@pytest.mark.parametrize("fault", ["", "short", "flipped", "empty"])
def test_words_of_a_tree_are_kept_until_it_changes(
    tree: Path, cache: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.kept_words.LEAST", 10)
    encoder = WordEncoder()
    first = search("the cat sleeps", encoder, cache=cache, seconds=0.0, k=3)
    (kept,) = (Path(os.environ["XDG_CACHE_HOME"]) / "gemb/search").glob("words-*")
    data = bytearray(kept.read_bytes())
    if fault == "flipped":
        data[len(data) // 2] ^= 1
    kept.write_bytes({"short": data[:-5000], "empty": b""}.get(fault, data))
    read: list[int] = []
    record = PassageTexts.record
    monkeypatch.setattr(
        PassageTexts, "record", lambda self, at: read.append(at) or record(self, at)
    )
    assert search("the cat sleeps", encoder, cache=cache, seconds=0.0, k=3) == first
    assert bool(read) is bool(fault)
    read.clear()
    write(tree, {"docs/new.md": "A cat sleeps."})
    hits = search("the cat sleeps", encoder, cache=cache, seconds=0.0, k=3)
    assert {hit.path for hit in hits} == {"docs/cat.md", "docs/new.md"}
    new = {hit.path: hit for hit in hits}["docs/new.md"]
    assert len(set(read)) <= 1 + len(hits), "of the tree only what is new was read, and the hits"
    (tree / "docs/cat.md").unlink()
    assert search("the cat sleeps", encoder, cache=cache, seconds=0.0, k=3)[0].text == new.text


def test_words_are_read_anew_when_most_of_them_are_of_what_is_gone(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.kept_words.LEAST", 10)
    path = cache / "words"
    sizes = []
    for turn in range(5):
        write(tree, {f"docs/{number:02}.txt": f"turn{turn} words" for number in range(40)})
        files = GatheredFiles("docs", cache=cache)
        reader = FirstReader(lambda: KnownWords(path), lambda: None)
        first = first_ranking(files.texts, reader)
        scores = first.scores(f"turn{turn}", np.ones(64, np.float32))
        assert (scores.words > 0).sum() == 40
        sizes.append(len(KnownWords(path)))
    assert max(sizes) <= 3 * 41 + 10
    assert min(sizes[1:]) == 41


def test_words_of_old_trees_make_room(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.kept_words.LEAST", 1)
    encoder = WordEncoder()
    search("the cat", encoder, cache=cache, seconds=0.0)
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "gemb/search"
    (old,) = folder.glob("words-*")
    os.utime(old, (1, 1))
    monkeypatch.setattr("gemb.search.kept_words.MOST_BYTES", old.stat().st_size + 1000)
    search("the cat", encoder, "docs/cat.md", cache=cache, seconds=0.0)
    (new,) = folder.glob("words-*")
    assert new != old


def test_what_is_split_now_is_not_read_again(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DraftModel.of(SynonymEncoder(), 64)
    assert model
    monkeypatch.setattr("gemb.search.kept_words.LEAST", 1)
    words = cache / "words"
    reader = FirstReader(lambda: KnownWords(words), lambda: Drafts(model, cache))
    table, skipped = PassageTable(cache, "auto"), Skipped()
    corpus = gather(Sources(paths=("docs",)), table, skipped, split_now=reader.take)
    with monkeypatch.context() as patch:
        patch.setattr(PassageTexts, "record", None)
        ahead = first_ranking(PassageTexts(corpus, table, skipped), reader)
    assert len(KnownWords(words)) == 1 + ahead.rows.max(), "the next search reads none again"
    files = GatheredFiles("docs")
    after = first_ranking(files.texts, files.reader(SynonymEncoder(), 64))
    query = np.full(64, 1 / 8, np.float32)
    for kind in ("words", "drafts", "fused"):
        scores = [getattr(one.scores("the cat", query), kind) for one in (ahead, after)]
        np.testing.assert_allclose(*scores, atol=1e-6)
        assert scores[0].any()


def test_a_failure_while_files_are_split_ends_the_search(tree: Path) -> None:
    def fail() -> None:
        raise UsageError("GEMB_DRAFT: no such model")

    reader = FirstReader(lambda: KnownWords(None), fail)
    table, skipped = PassageTable(None, "auto"), Skipped()
    corpus = gather(Sources(paths=("docs",)), table, skipped, split_now=reader.take)
    with pytest.raises(UsageError, match="no such model"):
        first_ranking(PassageTexts(corpus, table, skipped), reader)


def test_a_long_file_is_read_in_parts() -> None:
    sizes: list[int] = []
    drafts = SimpleNamespace(make=lambda keys, _: sizes.append(len(keys)), save=lambda: None)
    words = KnownWords(None)
    reader = FirstReader(lambda: words, lambda: drafts)  # type: ignore[arg-type,return-value]
    keys = [number.to_bytes(16, "little") for number in range(1000)]
    reader.take("docs", keys, [(None, f"text {number}") for number in range(1000)])
    reader.finish()
    reader.close()
    assert (sum(sizes), len(words)) == (1000, 1000)
    assert max(sizes) < 2 * CHUNK


def test_a_search_like_nothing_keeps_the_drafts_that_were_made(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[FirstReader] = []
    close = FirstReader.close
    monkeypatch.setattr(FirstReader, "close", lambda self: closed.append(self) or close(self))
    job = SearchJob(
        queries=[],
        like="docs/no.txt:1",
        criteria=Criteria(),
        task=None,
        dim=None,
        model="",
        force=False,
    )
    sources = Sources(paths=("docs",))
    with pytest.raises(UsageError, match="not among the files"):
        run_files(job, sources, lambda _: WordEncoder(), Silent(), is_silent=False)
    assert closed
