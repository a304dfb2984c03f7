import itertools
import subprocess
import sys

import numpy as np
import pytest

from gemb.embedding.vectors import packed, unpacked
from gemb.errors import UsageError
from gemb.index import codes as code_scan
from gemb.index import ranking
from gemb.index.codes import Coder, by_faiss, by_numpy, nearest_codes
from gemb.index.ranking import Plan, StoredVectors, exact, plan, ranked
from gemb.search.recall import check_recall, rows_as_queries


def unit(rows, dim, seed=0, clusters=None):
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, dim)).astype(np.float32)
    if clusters:
        centres = random.standard_normal((clusters, dim)).astype(np.float32)
        x = centres[random.integers(0, clusters, rows)] + 0.5 * x
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def stored_as(vectors, dtype):
    return packed(vectors, dtype, vectors.shape[1])


def sorted_by_hand(queries, stored, dtype, k, rows=None):
    """Rank in float64, one query at a time."""
    vectors = unpacked(stored, dtype, queries.shape[1]).astype(np.float64)
    numbers = np.arange(len(vectors)) if rows is None else rows
    answer = []
    for query in queries.astype(np.float64):
        scores = vectors[numbers] @ query
        pairs = [(-s, int(n)) for s, n in zip(scores, numbers, strict=True) if not np.isnan(s)]
        answer.append(sorted(pairs)[:k])
    return answer


def agrees(found, answer, k):
    for rows, scores, pairs in zip(found.rows, found.scores, answer, strict=True):
        expected = [number for _, number in pairs]
        assert rows.tolist() == expected + [-1] * (k - len(expected))
        # float32 sums of some hundred products of float32 components.
        np.testing.assert_allclose(scores[: len(pairs)], [-s for s, _ in pairs], atol=2e-6)
        assert np.isneginf(scores[len(pairs) :]).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("rows", [None, "few", "a run", "none"])
@pytest.mark.parametrize("queries", [1, 3, 20])
def test_exact_ranking_is_what_sorting_all_scores_gives(dtype, rows, queries, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_COMPONENTS", 100 * 48)  # 100 rows: many blocks
    stored = stored_as(unit(1234, 48), dtype)
    wanted = {
        None: None,
        "few": np.array([3, 4, 5, 99, 100, 101, 1200]),
        "a run": np.arange(95, 420),
        "none": np.array([], np.int64),
    }[rows]
    queries = unit(queries, 48, seed=1)
    found = exact(queries, StoredVectors(stored, dtype), k=9, rows=wanted)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    agrees(found, sorted_by_hand(queries, stored, dtype, 9, wanted), 9)


def test_of_equal_rows_the_first_is_found_first(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_COMPONENTS", 10 * 4)
    # Powers of two: the dot products are exact, in whatever order they are summed.
    stored = np.tile(np.array([[0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]], np.float32), (50, 1))
    found = exact(np.array([[1, 0, 0, 0]], np.float32), StoredVectors(stored, "f32"), k=4)
    assert found.rows.tolist() == [[1, 3, 5, 7]]
    found = exact(np.array([[1, 0, 0, 0]], np.float32), StoredVectors(stored, "f32"), k=52)
    assert found.rows[0, 49:].tolist() == [99, 0, 2]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_row_that_failed_is_never_found(dtype, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_COMPONENTS", 10 * 8)
    vectors = unit(40, 8)
    vectors[::2] = np.nan
    found = exact(vectors[1:2], StoredVectors(stored_as(vectors, dtype), dtype), k=30)
    assert found.rows[0, 0] == 1
    assert sorted(found.rows[0].tolist()) == [-1] * 10 + list(range(1, 40, 2))


def test_nothing_to_rank_is_an_empty_answer():
    found = exact(unit(2, 8), StoredVectors(np.empty((0, 8), np.float16), "f16"), k=3)
    assert found.rows.tolist() == [[-1] * 3] * 2
    none = exact(np.empty((0, 8), np.float32), StoredVectors(unit(5, 8), "f32"), k=3)
    assert none.rows.shape == (0, 3)


def test_codes_of_wide_vectors_are_the_signs_of_the_first_components():
    vectors = unit(20, 768)
    vectors[3] = np.nan
    coder = Coder.fit(vectors)
    codes = coder.codes(vectors)
    assert codes.shape == (20, coder.bytes) == (20, 64)
    assert (codes == np.packbits(vectors[:, :512] > 0, axis=1)).all()
    assert not codes[3].any()


@pytest.mark.parametrize("dim", [7, 64, 100, 128, 256, 512, 1024])
def test_the_distance_of_codes_counts_the_thresholds_between_two_vectors(dim):
    vectors = unit(300, dim) * 3 + 0.1
    coder = Coder.fit(vectors)
    codes = coder.codes(vectors)
    assert codes.shape[1] == coder.bytes
    assert coder.bytes % 8 == 0
    distance = np.unpackbits(codes[0] ^ codes[1:], axis=1).sum(axis=1)
    levels = (vectors[:, None, :512] > coder.thresholds).sum(axis=1)
    assert (distance == np.abs(levels[1:] - levels[0]).sum(axis=1)).all()
    if len(coder.thresholds) > 1:  # evenly used levels, as the sample has them
        share = np.bincount(levels.ravel()) / levels.size
        np.testing.assert_allclose(share, 1 / len(share), atol=0.01)


def test_the_weights_of_bits_are_the_dot_product_with_what_the_codes_stand_for():
    """A code stands for the mean of a normal variable between two thresholds."""
    from scipy.stats import norm

    dim, coder = 256, Coder.of(256)
    edges = np.concatenate([[-np.inf], norm.ppf([1 / 3, 2 / 3]), [np.inf]])
    means = [norm.expect(lb=a, ub=b, conditional=True) for a, b in itertools.pairwise(edges)]
    vectors, queries = unit(50, dim), unit(3, dim, seed=1)
    levels = (vectors[:, None, :512] > coder.thresholds).sum(axis=1)
    stands_for = np.array(means)[levels] / np.sqrt(dim)
    estimates = np.unpackbits(coder.codes(vectors), axis=1) @ coder.weights(queries).T
    constant = queries.sum(axis=1) * means[0] / np.sqrt(dim)
    np.testing.assert_allclose(estimates + constant, stands_for @ queries.T, atol=1e-5)


def test_a_coder_is_the_same_after_a_manifest():
    import json

    coder = Coder.fit(unit(500, 128))
    again = Coder.from_json(json.loads(json.dumps(coder.to_json())))
    vectors = unit(30, 128, seed=4)
    assert (again.codes(vectors) == coder.codes(vectors)).all()
    assert (again.weights(vectors) == coder.weights(vectors)).all()
    assert Coder.fit(unit(500, 128)).to_json() == coder.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "from next year"},
        {"dim": 0},
        {"dim": "768"},
        {"dim": 100},
        {"levels": 3},
        {"levels": 0},
        {"thresholds": "?"},
        {"thresholds": ""},
        {"gaps": None},
        {"gaps": "AAAA"},
    ],
)
def test_a_coder_of_a_strange_manifest_is_refused(change):
    entries = Coder.of(128).to_json() | change
    with pytest.raises(UsageError, match="build"):
        Coder.from_json(entries)


@pytest.mark.parametrize("width", [8, 16, 64, 128])
@pytest.mark.parametrize("filtered", [False, True])
def test_the_scan_finds_the_codes_at_the_least_distance(width, filtered, monkeypatch):
    monkeypatch.setattr(code_scan, "BLOCK_ROWS", 100)
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (3001, width), np.uint8)
    queries = random.integers(0, 256, (4, width), np.uint8)
    rows = np.sort(random.choice(3001, 1500, replace=False)) if filtered else None
    looked_at = codes if rows is None else codes[rows]
    distances = np.unpackbits(queries[:, None] ^ looked_at, axis=2).sum(axis=2)
    expected = np.sort(distances, axis=1)[:, :70]
    ways = [[by_numpy(query, codes, 70, rows) for query in queries]]
    monkeypatch.setattr(code_scan, "GATHERED", 150)
    ways.append(by_faiss(queries, codes, 70, rows))
    for found in ways:
        for places, own, best in zip(found, distances, expected, strict=True):
            assert (np.diff(places) > 0).all()
            assert np.sort(own[places]).tolist() == best.tolist()


def test_one_query_does_without_faiss(tmp_path):
    script = """
import sys, numpy as np
from gemb.index.codes import nearest_codes
codes = np.random.default_rng(0).integers(0, 256, (1000, 96), np.uint8)
print(len(nearest_codes(codes[:1], codes, count=10)[0]), "faiss" in sys.modules)
"""
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["10", "False"]


def test_many_queries_are_scanned_by_faiss_with_the_same_answer(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 256, (500, 96), np.uint8)
    one_by_one = [by_numpy(query, codes, 30, None) for query in codes]
    monkeypatch.setattr(code_scan, "QUERIES_AT_A_TIME", 100)
    monkeypatch.setattr(code_scan, "FAISS_PAYS", 1000)
    for query, own, other in zip(
        codes, one_by_one, nearest_codes(codes, codes, count=30), strict=True
    ):
        distances = np.unpackbits(query ^ codes, axis=1).sum(axis=1)
        assert sorted(distances[own]) == sorted(distances[other])


def test_a_scan_of_few_codes_finds_all():
    codes = np.zeros((5, 8), np.uint8)
    assert nearest_codes(codes[:2], codes, count=5)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("dim", [128, 768])
def test_two_stages_find_what_one_does(dtype, dim, tmp_path):
    vectors = unit(20_000, dim, clusters=300)
    stored = stored_as(vectors, dtype)
    coder = Coder.fit(vectors[:2000])
    codes = coder.codes(vectors)
    queries = vectors[::1000] + 0.02 * unit(20, dim, seed=9)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    whole = exact(queries, StoredVectors(stored, dtype), k=10)
    found = ranked(queries, StoredVectors(stored, dtype, codes, coder), Plan(900), k=10)
    shared = [
        len(set(a) & set(b)) for a, b in zip(whole.rows.tolist(), found.rows.tolist(), strict=True)
    ]
    assert np.mean(shared) >= 9.9
    assert (found.rows[:, 0] == whole.rows[:, 0]).all()
    np.testing.assert_allclose(found.scores[:, 0], whole.scores[:, 0], atol=1e-6)
    # As many candidates as rows: no longer an approximation.
    all_of_them = ranked(queries, StoredVectors(stored, dtype, codes, coder), Plan(60_000), k=10)
    assert (all_of_them.rows == whole.rows).all()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
def test_a_filter_leaves_k_wherever_there_are_k(share):
    vectors = unit(5000, 64, clusters=20)
    coder = Coder.fit(vectors)
    random = np.random.default_rng(1)
    rows = np.sort(random.choice(5000, int(5000 * share), replace=False))
    whole = exact(vectors[:7], StoredVectors(vectors, "f32"), k=10, rows=rows)
    stored = StoredVectors(vectors, "f32", coder.codes(vectors), coder)
    found = ranked(vectors[:7], stored, Plan(1200), k=10, rows=rows)
    expected = min(10, len(rows))
    assert ((found.rows >= 0).sum(axis=1) == expected).all()
    assert np.isin(found.rows[found.rows >= 0], rows).all()
    assert np.mean(found.rows == whole.rows) > 0.95


def test_two_stages_read_memory_maps(tmp_path):
    vectors = unit(3000, 96)
    coder = Coder.of(96)
    stored_as(vectors, "f16").tofile(tmp_path / "vectors.f16")
    coder.codes(vectors).tofile(tmp_path / "codes.bin")
    stored = np.memmap(tmp_path / "vectors.f16", np.float16, "r", shape=(3000, 96))
    codes = np.memmap(tmp_path / "codes.bin", np.uint8, "r", shape=(3000, coder.bytes))
    stored = StoredVectors(stored, "f16", codes, coder)
    found = ranked(vectors[40:41], stored, Plan(300), k=5)
    assert found.rows[0, 0] == 40


def test_the_accuracy_decides_how_many_candidates():
    assert plan("exact", 10**7, 10) == Plan(None)
    assert plan("auto", 1000, 10) == Plan(None)
    assert plan("auto", 10**6, 10) == plan("balanced", 10**6, 10) == Plan(1600)
    assert plan("balanced", 10**4, 10) == Plan(1600)
    assert plan("balanced", 10**3, 10) == plan("fast", 10**6, 50_000) == Plan(None)
    assert plan("fast", 10**6, 10) == Plan(400)
    assert plan("fast", 10**6, 100) == Plan(2000)
    assert plan("fast", 10**7, 10) == Plan(800)
    assert plan("fast", 0, 10) == Plan(None)
    assert str(Plan(None)) == "exact"
    assert str(Plan(1600)) == "two-stage, 1600 candidates"


def test_a_plan_decides_how_it_is_ranked():
    vectors = unit(3000, 64)
    coder = Coder.of(64)
    codes = coder.codes(vectors)
    whole = exact(vectors[:20], StoredVectors(vectors, "f32"), k=10)
    stored = StoredVectors(vectors, "f32", codes, coder)
    without_coder = StoredVectors(vectors, "f32", codes)
    for how, of in ((Plan(None), stored), (Plan(30), without_coder)):
        assert (ranked(vectors[:20], of, how, k=10).rows == whole.rows).all()
    assert (ranked(vectors[:20], stored, Plan(30), k=10).rows != whole.rows).any()


@pytest.mark.parametrize("filtered", [False, True])
def test_recall_is_the_share_of_the_exact_answer(filtered):
    vectors = unit(2000, 64, clusters=30)
    coder = Coder.fit(vectors)
    codes = coder.codes(vectors)
    queries = unit(15, 64, seed=5)
    rows = np.arange(0, 2000, 3) if filtered else None
    stored = StoredVectors(vectors, "f32", codes, coder)
    how = Plan(40)
    measured = check_recall(queries, stored, how, k=10, rows=rows)
    whole = exact(queries, stored, k=10, rows=rows).rows
    found = ranked(queries, stored, how, k=10, rows=rows).rows
    shares = [
        len(set(a) & set(b)) / 10 for a, b in zip(whole.tolist(), found.tolist(), strict=True)
    ]
    assert measured.recall == pytest.approx(np.mean(shares))
    assert 0 < measured.worst == min(shares) < 1
    assert (measured.queries, measured.k) == (15, 10)
    assert measured.exact_ms > 0
    assert measured.plan_ms > 0
    sure = check_recall(queries, stored, Plan(None), k=10, rows=rows)
    assert (sure.recall, sure.worst) == (1, 1)


def test_a_row_as_a_query_does_not_find_itself():
    """Vectors so far apart that the codes find nothing but the row itself for certain."""
    vectors = unit(1000, 64)
    vectors[5] = np.nan
    coder = Coder.of(64)
    codes = np.random.default_rng(0).permutation(coder.codes(vectors))  # of other rows
    stored = StoredVectors(vectors, "f32", codes, coder)
    drawn = rows_as_queries(stored, count=1000)
    assert len(drawn.queries) == 999
    assert 5 not in drawn.rows
    np.testing.assert_allclose(drawn.queries, vectors[drawn.rows], atol=1e-7)  # of length 1 again
    own = check_recall(drawn.queries, stored, Plan(6), k=1, own=drawn.rows)
    assert own.recall < 0.1
    right = StoredVectors(vectors, "f32", coder.codes(vectors), coder)
    honest = check_recall(drawn.queries, right, Plan(6), k=1)
    assert honest.recall == 1  # each finds itself
    within = rows_as_queries(stored, count=20, rows=np.arange(300, 400))
    assert len(within.rows) == 20
    assert within.rows.min() >= 300
    assert within.rows.max() < 400
    again = rows_as_queries(stored, count=20, rows=np.arange(300, 400))
    assert (again.rows == within.rows).all()


def test_any_of_several_equal_rows_counts_as_found():
    vectors = np.repeat(unit(50, 64), 40, axis=0)
    coder = Coder.of(64)
    stored = StoredVectors(vectors, "f32", coder.codes(vectors), coder)
    measured = check_recall(vectors[::40], stored, Plan(30), k=10)
    assert measured.recall == 1
