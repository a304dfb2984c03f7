from __future__ import annotations

import io
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from file_search import Found, GatheredFiles
from file_trees import OLD, write
from gemb.errors import GembError, UsageError
from gemb.search.cache import PassageTable
from gemb.search.corpus import passage_key
from gemb.search.first import first_ranking
from gemb.search.scoring import nearest_first, sample, split_known
from gemb.texts.inputs import Reading
from gemb.texts.passages import split
from gemb.texts.records import Fields
from word_encoder import WordEncoder


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of forty files, of which three speak of cats."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
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
    write(folder, {"docs/cat.md": "# Pets\n\nThe cat sleeps on the mat all day.\n"})
    write(folder, {"docs/dog.md": "# Pets\n\nThe dog and the cat eat together, and play.\n"})
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def found(
    encoder: WordEncoder,
    *paths: str,
    query: str = "the cat sleeps on the mat",
    cache: Path | None = None,
    k: int | None = 5,
) -> Found:
    files = GatheredFiles(*paths, cache=cache)
    answer = files.search(encoder.queries(query), encoder, [query], k)
    assert answer.done == answer.total == len(files)
    return answer


def places(answer: Found) -> list[tuple[str | None, int | None]]:
    return [(hit.path, hit.line) for hit in answer.hits[0]]


def test_the_ranking_is_that_of_all_passages_compared_one_by_one(tree: Path, cache: Path) -> None:
    encoder = WordEncoder()
    queries = ["the cat sleeps", "noun7 noun8 noun9"]
    vectors = encoder.queries(*queries)
    wanted: list[list[tuple[float, str, int]]] = [[], []]
    for path in sorted(Path("docs").iterdir()):
        text = path.read_text()
        for one in split(text, path.name):
            prompted = f"title: {one.title} | text: {text[one.start : one.end]}"
            scores = encoder.queries(prompted)[0] @ vectors.T
            for place, score in enumerate(scores.tolist()):
                wanted[place].append((-score, str(path), one.line))
    for folder in (None, cache, cache):
        files = GatheredFiles("docs", cache=folder)
        answer = files.search(vectors, encoder, words=queries, k=7)
        for hits, all_ in zip(answer.hits, wanted, strict=True):
            best = sorted(all_)[:7]
            assert [(hit.path, hit.line) for hit in hits] == [row[1:] for row in best]
            scores = [hit.score for hit in hits]
            np.testing.assert_allclose(scores, [-row[0] for row in best], atol=2e-3)  # float16


def test_a_second_search_embeds_nothing_and_opens_no_file_but_those_of_hits(
    tree: Path, cache: Path
) -> None:
    encoder = WordEncoder()
    first = found(encoder, "docs", cache=cache)
    opened: list[str] = []
    is_watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if is_watching[0] and event == "open" and str(arguments[0]).startswith(str(tree)):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    before = encoder.texts
    second = found(encoder, "docs", cache=cache)
    is_watching[0] = False
    assert encoder.texts == before + 1  # the query
    assert second.hits == first.hits
    assert second.tokens == 0
    assert {Path(path).name for path in opened} == {
        Path(hit.path or "").name for hit in second.hits[0]
    }


def test_only_what_has_changed_is_embedded_again(tree: Path, cache: Path) -> None:
    encoder = WordEncoder()
    found(encoder, "docs", cache=cache)
    write(tree, {"docs/new.txt": "A kitten is a young cat."}, OLD + 1)
    text = (tree / "docs/00.txt").read_text()
    write(tree, {"docs/00.txt": "A first paragraph that is new.\n\n" + text}, OLD + 2)
    (tree / "docs/cat.md").unlink()
    before = encoder.texts
    answer = found(encoder, "docs", cache=cache, query="a kitten is a young cat")
    assert 2 < encoder.texts - before < 8
    assert places(answer)[0] == ("docs/new.txt", 1)
    assert ("docs/cat.md", 1) not in places(answer)
    again = encoder.texts
    found(encoder, "docs", cache=cache)
    assert encoder.texts == again + 1


def test_a_file_of_the_same_size_and_time_that_was_just_written_is_read_again(
    tree: Path, cache: Path
) -> None:
    encoder = WordEncoder()
    (tree / "now.txt").write_text("the cat is here")
    when = (tree / "now.txt").stat().st_mtime_ns
    found(encoder, "now.txt", cache=cache)
    with (tree / "now.txt").open("r+") as file:
        file.write("the dog is here")
    os.utime(tree / "now.txt", ns=(when, when))
    answer = found(encoder, "now.txt", cache=cache)
    assert answer.hits[0][0].text == "the dog is here"


def test_what_shares_words_with_the_query_comes_first(tree: Path) -> None:
    encoder = WordEncoder(sleep_s=0.002)
    files = GatheredFiles("docs")
    queries = encoder.queries("the cat sleeps on the mat")
    steps = files.steps(queries, encoder, ["cat sleeps mat"], k=3)
    assert next(steps).ranking.count == 0  # nothing is known
    first = files.found(next(steps))
    assert 0 < first.done < first.total / 4
    assert first.hits[0][0].path == "docs/cat.md"
    done = [step.ranking.count for step in steps]
    assert len(done) > 3
    assert done == sorted(done)
    assert done[-1] == first.total


def test_an_interrupted_search_keeps_what_it_embedded(tree: Path, cache: Path) -> None:
    encoder = WordEncoder(sleep_s=0.001)
    files = GatheredFiles("docs", cache=cache)
    queries = encoder.queries("cat")
    steps = files.steps(queries, encoder, ["cat"])
    done = [step.ranking.count for step in itertools.islice(steps, 4)][-1]
    steps.close()
    assert 0 < done < len(files)
    later = GatheredFiles("docs", cache=cache)
    assert later.missing(encoder.spec) == len(files) - done
    steps = later.steps(queries, encoder, ["cat"])
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert later.missing(encoder.spec) < len(files)
    later.search(queries, encoder, words=["cat"])
    assert GatheredFiles("docs", cache=cache).missing(encoder.spec) == 0


def test_equal_passages_are_embedded_once_and_all_found(tree: Path, cache: Path) -> None:
    write(tree, {f"same/{name}/x.txt": "One text in many places." for name in "abcd"})
    encoder = WordEncoder()
    answer = found(encoder, "same", cache=cache, query="many places")
    assert encoder.texts == 2
    assert places(answer) == [(f"same/{name}/x.txt", 1) for name in "abcd"]
    assert len({hit.score for hit in answer.hits[0]}) == 1


def test_a_floor_and_no_k_give_all_that_reach_it(tree: Path) -> None:
    encoder = WordEncoder()
    files = GatheredFiles("docs")
    queries = encoder.queries("noun1 noun2 noun3")
    everything = files.search(queries, encoder, k=None).hits[0]
    assert len(everything) == len(files)
    floor = everything[20].score
    some = files.search(queries, encoder, k=None, floor=floor).hits[0]
    assert some == [hit for hit in everything if hit.score >= floor]
    none = files.search(queries, encoder, floor=1.1).hits
    assert none == [[]]


def test_lines_of_standard_input_are_passages_and_are_cached(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = WordEncoder()
    data = b"a dog\n\nthe cat sleeps\n\xff\xfe\na bird\n"
    for texts in (4, 1):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        before = encoder.texts
        files = GatheredFiles("-", cache=cache)
        queries = encoder.queries("cat")
        hits = files.search(queries, encoder).hits[0]
        assert encoder.texts - before == texts
        assert (hits[0].text, hits[0].path, hits[0].line) == ("the cat sleeps", None, 3)
        assert hits[0].id == 3
        assert len(hits) == 3
        assert files.skipped.failed == 1


def test_rows_of_tables_keep_their_fields(tree: Path, cache: Path) -> None:
    write(
        tree,
        {"pets.jsonl": '{"text": "a dog", "n": 1}\n{"text": "the cat", "title": "Tom", "n": 2}\n'},
    )
    encoder = WordEncoder()
    fields = Fields(text=("text",), title="title", title_may_lack=True, keep_all=True)
    rows = Reading(fields=fields)
    files = GatheredFiles("pets.jsonl", "docs", rows=rows, cache=cache)
    assert len(files.corpus.records) == 2
    queries = encoder.queries("title Tom text the cat")
    hit = files.search(queries, encoder).hits[0][0]
    assert (hit.path, hit.line, hit.title, hit.kept) == ("pets.jsonl", 2, "Tom", {"n": 2})
    with pytest.raises(UsageError, match="plain lines have no field 'text'"):
        GatheredFiles("docs/cat.md", rows=rows)


def test_a_pipe_is_read_as_standard_input_is(tree: Path) -> None:
    encoder = WordEncoder()
    reading, writing = os.pipe()
    os.write(writing, b"the cat\nthe dog\n")
    os.close(writing)
    path = f"/dev/fd/{reading}"
    hits = found(encoder, path, query="dog").hits[0]
    os.close(reading)
    assert (hits[0].path, hits[0].line, hits[0].text) == (path, 2, "the dog")


def test_one_bad_passage_fails_alone_and_is_named(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tree, {"docs/bad.txt": "this is poison"})
    encoder = WordEncoder()
    files = GatheredFiles("docs")
    queries = encoder.queries("cat")
    answer = files.search(queries, encoder)
    assert answer.hits[0][0].path in ("docs/cat.md", "docs/dog.md")
    assert files.skipped.failed == 1
    assert capsys.readouterr().err == ("gemb: warning: docs/bad.txt:1: RuntimeError: poisoned\n")


def test_hits_are_checked_against_their_files(
    tree: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = WordEncoder()
    query = encoder.queries("title cat md Pets text Pets The cat sleeps on the mat all day")
    files = GatheredFiles("docs", cache=cache)
    files.search(query, encoder)
    text = (tree / "docs/cat.md").read_text()
    write(tree, {"docs/cat.md": "Some words before, which are many.\n" * 6 + "\n" + text})
    moved = files.search(query, encoder, k=1).hits[0][0]
    assert (moved.path, moved.line, moved.last_line) == ("docs/cat.md", 8, 10)
    (tree / "docs/cat.md").unlink()
    gone = files.search(query, encoder, k=1).hits[0][0]
    assert gone.path != "docs/cat.md"
    assert files.skipped.changed == 1
    files.skipped.say()
    line = "gemb: note: 1 passage has changed during the search and is left out\n"
    assert capsys.readouterr().err == line


def test_a_file_that_can_no_longer_be_read_is_named_and_counted(
    tree: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = WordEncoder()
    query = encoder.queries("title cat md Pets text Pets The cat sleeps on the mat all day")
    GatheredFiles("docs", cache=cache).search(query, encoder)
    files = GatheredFiles("docs", cache=cache)  # every file is known: none is opened
    (tree / "docs/cat.md").unlink()
    (tree / "docs/cat.md").symlink_to("cat.md")  # to itself
    with pytest.raises(UsageError, match=r"^docs/cat.md: it cannot be read any more"):
        files.texts.hit_at("docs/cat.md", 1)
    for _ in range(2):
        answer = files.search(query, encoder, k=3)
        assert "docs/cat.md" not in {hit.path for hit in answer.hits[0]}
    files.skipped.say()
    assert (files.skipped.failed, files.skipped.changed) == (1, 0)
    assert capsys.readouterr().err == (
        "gemb: warning: docs/cat.md: too many levels of symbolic links\n"
    )


def test_a_passage_is_found_by_file_and_line(tree: Path) -> None:
    files = GatheredFiles("docs")
    text = (tree / "docs/03.txt").read_text()
    second = split(text, "03.txt")[1]
    hit = files.texts.hit_at(str(tree / "docs/03.txt"), second.line)
    assert hit.text == text[second.start : second.end]
    assert hit.path == "docs/03.txt"
    with pytest.raises(UsageError, match=r"^docs/03.txt: no passage has line 99; name a line"):
        files.texts.hit_at("docs/03.txt", 99)
    with pytest.raises(UsageError, match=r"^elsewhere is not among the files"):
        files.texts.hit_at("elsewhere", 1)


def test_a_sample_is_of_what_has_a_vector(tree: Path, cache: Path) -> None:
    encoder = WordEncoder()
    files = GatheredFiles("docs", cache=cache)
    vectors = files.cache(encoder.spec)
    known, _ = split_known(files.corpus, vectors)
    assert sample(known, vectors, 10).shape == (0, 64)
    files.search(encoder.queries("cat"), encoder)
    known, _ = split_known(files.corpus, vectors)
    some = sample(known, vectors, 10)
    assert some.shape == (10, 64)
    assert sample(known, vectors, 10_000).shape == (len(files), 64)
    np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-6)


def test_nothing_to_search_is_an_empty_answer(tree: Path, cache: Path) -> None:
    (tree / "empty").mkdir()
    encoder = WordEncoder()
    assert found(encoder, "empty", cache=cache).hits == [[]]
    assert found(encoder, cache=cache).hits == [[]]


def test_two_titles_make_two_passages_of_one_text() -> None:
    assert passage_key("a", "b") != passage_key("", "b") == passage_key(None, "b")


SEARCHER = """
import sys
from pathlib import Path
from file_search import GatheredFiles
from word_encoder import WordEncoder

encoder = WordEncoder(sleep_s=float(sys.argv[2]))
files = GatheredFiles("docs", cache=Path(sys.argv[1]))
queries = encoder.queries("cat mat")
for step in files.steps(queries, encoder, ["cat"]):
    print(step.ranking.count, flush=True)
hits = files.found(step, is_last=True).hits[0]
print(*(f"{hit.path}:{hit.line}:{hit.score:.3f}" for hit in hits))
"""


def searching(cache: Path, sleep_s: float) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-c", SEARCHER, str(cache), str(sleep_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_two_searches_at_once_share_the_cache(tree: Path, cache: Path) -> None:
    both = [searching(cache, 0.001) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
    encoder = WordEncoder()
    files = GatheredFiles("docs", cache=cache)
    assert files.missing(encoder.spec) == 0
    keys = (cache / encoder.spec.fingerprint / "keys.bin").read_bytes()
    assert len(keys) == 16 * len({keys[at : at + 16] for at in range(0, len(keys), 16)})


@pytest.mark.parametrize("answers", [1, 3, 6])
def test_a_killed_search_leaves_a_cache_that_works(tree: Path, cache: Path, answers: int) -> None:
    calm = searching(cache.parent / "calm", 0).communicate(timeout=120)[0].splitlines()[-1]
    process = searching(cache, 0.003)
    assert process.stdout
    for _ in range(answers):
        process.stdout.readline()
    process.kill()
    process.communicate()
    again = searching(cache, 0)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert output.splitlines()[-1] == calm
    assert GatheredFiles("docs", cache=cache).missing(WordEncoder().spec) == 0


def test_passages_that_failed_before_do_not_end_a_search_in_which_they_are_alone(
    tree: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tree, {"docs/bad.txt": "this is poison", "docs/worse.txt": "more poison"})
    encoder = WordEncoder()
    for failed in (2, 1):
        files = GatheredFiles("docs", cache=cache)
        answer = files.search(encoder.queries("cat"), encoder)
        assert answer.hits[0][0].path in ("docs/cat.md", "docs/dog.md")
        assert answer.done == answer.total - 2
        assert files.skipped.failed == failed
    assert capsys.readouterr().err.splitlines()[2:] == [
        "gemb: warning: 2 passages: the backend fails on every text: RuntimeError: poisoned"
    ]
    files = GatheredFiles("docs/bad.txt", "docs/worse.txt", cache=cache)
    with pytest.raises(GembError, match="the backend fails on every text"):
        files.search(encoder.queries("cat"), encoder)


def test_a_name_that_is_no_utf8_does_no_harm(tree: Path, cache: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \x1b[1m\n.txt")
    write(tree, {f"odd/{name}": "the cat in the cafe"})
    encoder = WordEncoder()
    for _ in range(2):
        hit = found(encoder, "odd", cache=cache).hits[0][0]
        assert hit.path == f"odd/{name}"
        assert hit.title == "caf\ufffd \x1b[1m\n.txt"
    assert GatheredFiles("odd", cache=cache).texts.hit_at(f"odd/{name}", 1).text == hit.text


def test_a_walk_that_is_stopped_keeps_what_it_split(tree: Path, cache: Path) -> None:
    def stop(files: int) -> None:
        if files == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GatheredFiles("docs", cache=cache, looked=stop)
    table = PassageTable(cache, "auto")
    assert len(table.under(str(tree / "docs"))) == 20


def test_the_most_promising_passages_come_first_and_then_files_whole(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemb.search.scoring.FIRST_BEST", 5)
    (tree / "docs/17.txt").rename(tree / "docs/quux.txt")
    encoder = WordEncoder()
    files = GatheredFiles("docs")
    _, missing = split_known(files.corpus, files.cache(encoder.spec))
    first = first_ranking(files.texts, files.reader())
    queries = ["a cat", "a file named quux"]
    scores = [first.scores(query, np.zeros(64, np.float32)).fused for query in queries]
    order = nearest_first(missing, scores)
    assert sorted(order) == list(range(len(files)))  # each once
    corpus = files.corpus
    names = [corpus.files[file].path for file in corpus.files_of(np.array(order)).tolist()]
    assert set(names[:4]) == {"docs/cat.md", "docs/dog.md", "docs/quux.txt"}
    assert order[5:] == sorted(order[5:])
