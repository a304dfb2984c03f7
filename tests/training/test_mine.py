"""Hard negatives: against a slow search, against sentence-transformers, and rule by rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.backend import Runtime
from gemb.datasets.rows import open_source
from gemb.embedding.nearest import nearest
from gemb.errors import UsageError
from gemb.models.prompts import for_task
from gemb.recipe.schema import Source
from gemb.texts.examples import Text, TextSpool
from gemb.training.mining import NegativeMiner, NegativeRule, chosen_ranks
from gemb.training.teacher import TeacherText
from gemb.training.teachers import open_teacher

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "red", "planet", "sum"]
RAW = (for_task("none", {}), for_task("none", {}))


class FixedTeacher:
    """A teacher whose vectors a test writes."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.names = list(vectors)
        rows = np.array(list(vectors.values()), np.float32)
        self.array = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def rows(self, wanted: list[TeacherText]) -> np.ndarray:
        return np.array([self.names.index(one.words) for one in wanted], np.int64)

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def angle(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def pairs(folder: Path, rows: list[dict[str, object]]):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(Source(path=str(path)), folder / "index", strict=True)


def mined(rows, teacher, rule, corpus=None):
    found = NegativeMiner(rows, corpus, RAW).run(teacher, rule)
    return [one for block in found for one in block]


def negatives(rows, teacher, rule, corpus=None):
    return [[text.text for text in one.negatives] for one in mined(rows, teacher, rule, corpus)]


ANGLES = {"q": 0, "p": 30, "far": 80, "near": 35, "nearer": 31, "false": 10, "back": 170}
ROWS = [{"query": "q", "positive": "p"}] + [
    {"query": f"other {name}", "positive": name} for name in list(ANGLES)[2:]
]


@pytest.fixture
def circle(tmp_path):
    """Texts on a circle: the query at 0 degrees, its positive at 30."""
    others = {f"other {name}": angle(300) for name in ANGLES}
    vectors = {name: angle(degrees) for name, degrees in ANGLES.items()} | others
    return pairs(tmp_path, ROWS), FixedTeacher(vectors)


def first_row(circle, **rule):
    rows, teacher = circle
    return negatives(rows, teacher, NegativeRule(**{"negatives": 2, **rule}))[0]


def test_what_scores_nearly_as_high_as_the_positive_is_no_negative(circle):
    # cos 30 = 0.866, 0.95 of it 0.823; cos 31 = 0.857 is above, cos 35 = 0.819 below.
    assert first_row(circle) == ["near", "far"]
    assert first_row(circle, margin=1.0) == ["nearer", "near"]
    assert first_row(circle, margin=0.9) == ["far", "back"]


def test_the_absolute_margin_and_the_highest_score_bound_too(circle):
    assert first_row(circle, margin=1.0, absolute_margin=0.02) == ["near", "far"]
    assert first_row(circle, margin=1.0, absolute_margin=0.1) == ["far", "back"]
    assert first_row(circle, margin=1.0, max_score=0.5) == ["far", "back"]


def test_what_is_too_like_the_positive_can_be_left_out(circle):
    # near is 5 degrees from the positive: cosine 0.9962.
    assert first_row(circle, max_likeness=0.99) == ["far", "back"]
    assert first_row(circle, max_likeness=0.997) == ["near", "far"]


def test_ranks_are_those_of_what_is_left(circle):
    assert first_row(circle, first_rank=2) == ["far", "back"]
    assert first_row(circle, first_rank=1, last_rank=1) == ["near"]
    assert first_row(circle, first_rank=4, last_rank=9) == []


def test_a_positive_below_zero_keeps_its_margin_below_it(tmp_path):
    rows = pairs(tmp_path, [{"query": "q", "positive": name} for name in "ab"][:1] + ROWS[1:2])
    angles = {"q": 0, "a": 120, "far": 119, "other far": 0}
    teacher = FixedTeacher({name: angle(degrees) for name, degrees in angles.items()})
    # The positive scores -0.5; a plain product would let -0.485 pass.
    assert negatives(rows, teacher, NegativeRule(negatives=1))[0] == []


def test_all_positives_of_a_query_are_none_of_its_negatives_and_the_least_sets_the_margin(tmp_path):
    rows = pairs(
        tmp_path,
        [
            {"query": "q", "positive": "a"},
            {"query": "x", "positive": "b"},
            {"query": "Q ", "positive": "c"},  # the same query but for case and spacing
        ],
    )
    angles = {"q": 0, "Q ": 1, "x": 90, "a": 10, "c": 60, "b": 40}
    teacher = FixedTeacher({name: angle(degrees) for name, degrees in angles.items()})
    found = negatives(rows, teacher, NegativeRule(negatives=2, margin=1.0))
    # b is nearer to q than c is, so it may be an answer, too.
    assert (found[0], found[2]) == ([], [])
    # c is nearer to x than its positive b; a is not.
    assert found[1] == ["a"]
    # With c at 30 degrees, nearer than b, the least of both positives lets b pass.
    angles["c"] = 30
    teacher = FixedTeacher({name: angle(degrees) for name, degrees in angles.items()})
    assert negatives(rows, teacher, NegativeRule(negatives=2, margin=1.0))[0] == ["b"]


def test_copies_of_the_positive_and_of_the_query_are_no_negatives(tmp_path):
    rows = pairs(
        tmp_path,
        [
            {"query": "q", "positive": "The  Answer"},
            {"query": "x", "positive": "the answer"},
            {"query": "y", "positive": "Q"},
            {"query": "z", "positive": "ﬁne"},
            {"query": "w", "positive": "fine"},
        ],
    )
    names = ["q", "x", "y", "z", "w", "The  Answer", "the answer", "Q", "ﬁne", "fine"]
    teacher = FixedTeacher({name: angle(n) for n, name in enumerate(names)})
    mine = NegativeMiner(rows, None, RAW)
    assert mine.candidates == 3
    found = negatives(rows, teacher, NegativeRule(negatives=2, margin=0.0, max_score=1.0))
    assert all(not each for each in found)  # margin 0: nothing is below zero here
    found = negatives(rows, teacher, NegativeRule(negatives=3, margin=1.0))
    assert "Q" not in found[0]
    assert "The  Answer" not in found[1]
    assert "ﬁne" not in found[4]


def test_with_a_corpus_positives_are_no_candidates_but_are_known_in_it(circle):
    rows, teacher = circle
    corpus = [Text("far"), Text("P"), Text("near"), Text("near")]
    teacher.names[teacher.names.index("back")] = "P"
    teacher.array[teacher.names.index("P")] = angle(34)
    found = NegativeMiner(rows, corpus, RAW)
    assert found.candidates == 3
    teacher.names.append("back")
    teacher.array = np.concatenate([teacher.array, [angle(170)]]).astype(np.float32)
    assert negatives(rows, teacher, NegativeRule(negatives=3), corpus)[0] == ["near", "far"]


def test_negatives_that_the_rows_have_are_candidates(tmp_path):
    rows = pairs(tmp_path, [{"query": "q", "positive": "p", "negatives": ["far", "near"]}])
    teacher = FixedTeacher({name: angle(degrees) for name, degrees in ANGLES.items()})
    assert negatives(rows, teacher, NegativeRule(negatives=2))[0] == ["near", "far"]
    assert NegativeMiner(rows, None, RAW).own_negatives == 1


def test_more_negatives_than_there_are_candidates_are_refused(circle):
    rows, _ = circle
    mine = NegativeMiner(rows, None, RAW)
    mine.check(NegativeRule(negatives=5))
    with pytest.raises(UsageError, match="6 negatives a row, and only 5 other texts to choose"):
        mine.check(NegativeRule(negatives=6))
    with pytest.raises(UsageError, match="4 negatives a row from rank 3 on, and only 5"):
        mine.check(NegativeRule(negatives=4, first_rank=3))
    NegativeMiner(rows, [Text(name) for name in "abc"], RAW).check(NegativeRule(negatives=3))


def test_a_random_choice_depends_on_seed_and_row_alone_and_is_hardest_first():
    rule = NegativeRule(negatives=3, first_rank=3, last_rank=20, seed=0)
    chosen = [list(chosen_ranks(100, rule, row)) for row in range(200)]
    assert chosen == [list(chosen_ranks(100, rule, row)) for row in range(200)]
    assert all(each == sorted(set(each)) and len(each) == 3 for each in chosen)
    taken = {rank for each in chosen for rank in each}
    assert taken == set(range(2, 20))
    other = NegativeRule(negatives=3, first_rank=3, last_rank=20, seed=1)
    assert chosen != [list(chosen_ranks(100, other, row)) for row in range(200)]
    assert list(chosen_ranks(4, rule, 0)) == [2, 3]


def slow(queries, candidates, depth, ceiling, left_out):
    """The nearest by a plain sort, with ties by number."""
    found = []
    pairs_ = set(zip(*(each.tolist() for each in left_out), strict=True))
    for row, query in enumerate(queries):
        scored = [
            (-float(score), number)
            for number, score in enumerate(candidates @ query)
            if score <= ceiling[row] and (row, number) not in pairs_
        ]
        found.append([number for _, number in sorted(scored)[:depth]])
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([1, 3, 16, 8192]))
def test_the_nearest_are_those_of_a_plain_sort_whatever_the_blocks(seed, depth, block):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    # Small whole numbers: sums are exact, and ties are many.
    candidates = random.integers(-2, 3, (count, 4)).astype(np.float32)
    queries = random.integers(-2, 3, (5, 4)).astype(np.float32)
    ceiling = random.integers(-3, 9, 5).astype(np.float32)
    left_out = (random.integers(0, 5, 9), random.integers(0, count, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemb.embedding.nearest.CANDIDATES", block)
        found = nearest(
            queries,
            lambda first, last: candidates[first:last],
            count,
            depth=depth,
            ceiling=ceiling,
            left_out=left_out,
        )
    expected = slow(queries, candidates, depth, ceiling, left_out)
    assert [[n for n in row.tolist() if n >= 0] for row in found.numbers] == expected
    for row, numbers in enumerate(expected):
        scores = found.scores[row]
        np.testing.assert_array_equal(scores[: len(numbers)], candidates[numbers] @ queries[row])
        assert (scores[len(numbers) :] == -np.inf).all()


def sentences(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def mined_by_both(tiny_model, tmp_path_factory):
    """The rows that gemb and sentence-transformers mine with one tiny model and equal rules."""
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("both")
    queries, positives = sentences(60, 1), sentences(60, 2)
    queries[7] = queries[3]  # two positives of one query
    both = [{"query": q, "positive": p} for q, p in zip(queries, positives, strict=True)]
    rows = pairs(folder, both)
    teacher = open_teacher(str(tiny_model), folder / "cache", Runtime(precision="fp32"))
    prompts = (for_task("query", teacher.prompts), for_task("document", teacher.prompts))

    def ours(rule):
        mine = NegativeMiner(rows, None, prompts)
        teacher.fill(mine.teacher_texts())
        return [
            (one.example.query.text, one.example.positive.text, [t.text for t in one.negatives])
            for block in mine.run(teacher, rule)
            for one in block
        ]

    model = transformers.SentenceTransformer(str(tiny_model), device="cpu")

    def theirs(**more):
        from sentence_transformers.util import mine_hard_negatives

        found = mine_hard_negatives(
            datasets.Dataset.from_list(both),
            model,
            query_prompt_name="query",
            corpus_prompt_name="document",
            output_format="labeled-list",
            range_max=60,
            verbose=False,
            **more,
        )
        column = found.column_names
        return {(row[column[0]], row[column[1]][0]): row[column[1]][1:] for row in found.to_list()}

    return ours, theirs


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (NegativeRule(negatives=3), {"num_negatives": 3, "relative_margin": 0.05}),
        (
            NegativeRule(negatives=2, margin=1.0, absolute_margin=0.03, first_rank=4),
            {"num_negatives": 2, "absolute_margin": 0.03, "range_min": 3},
        ),
        (
            NegativeRule(negatives=4, margin=1.0, max_score=0.8),
            {"num_negatives": 4, "absolute_margin": 0.0, "max_score": 0.8},
        ),
    ],
)
def test_negatives_are_those_of_sentence_transformers(mined_by_both, rule, options):
    ours, theirs = mined_by_both
    expected = theirs(**options)  # a row without negatives is left out
    rows = ours(rule)
    assert sum(bool(found) for _, _, found in rows) > 20
    differ = [row for row in rows if row[2] != expected.get(row[:2], [])]
    # Two scores that differ by less than float16's rounding of vectors may change places.
    assert len(differ) <= 1, differ


def test_a_spool_keeps_each_text_once_and_gives_it_back(tmp_path):
    spool = TextSpool()
    texts = [Text("a\nb"), Text("日本", "タイトル"), Text("A  b"), Text("x" * 100_000)]
    assert [spool.add(text) for text in texts] == [0, 1, 0, 2]
    assert len(spool) == 3
    assert [spool[n] for n in (2, 0, 1)] == [texts[3], texts[0], texts[1]]
    assert spool.number("a B") == 0
    assert spool.number("c") == -1
