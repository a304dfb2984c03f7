"""Sets are read as they lie, every text is embedded once, and scores are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from fake_encoder import FakeEncoder
from gemb.datasets.sets import builtins, open_suite
from gemb.errors import GembError, UsageError
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.scores import Scores

QRELS = "query-id\tcorpus-id\tscore\n"


def jsonl(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def beir(folder, documents, queries, qrels, header=QRELS):
    """Write a set: texts by id, and judgements (query, document, grade)."""
    jsonl(folder / "corpus.jsonl", [{"_id": key, "text": text} for key, text in documents.items()])
    jsonl(folder / "queries.jsonl", [{"_id": key, "text": text} for key, text in queries.items()])
    lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels)
    (folder / "qrels.tsv").write_text(header + lines)
    return folder


@pytest.fixture
def tree(tmp_path):
    """A folder with a set of each kind."""
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(200)]
    (tmp_path / "sts").mkdir()
    rows = [f"{words[i]} a\t{words[i]} b\t{random.random() * 5:.1f}\n" for i in range(30)]
    (tmp_path / "sts" / "similar.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    rows = [f"{words[i]}\t{words[i + 1]}\t{i % 2}\n" for i in range(20)]
    (tmp_path / "same.tsv").write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    rows = [f"{words[i]}\tmot{i}\n" for i in range(12)]
    (tmp_path / "translated.tsv").write_text("".join(rows))
    documents = {f"d{i}": f"{words[i]} text" for i in range(40)}
    queries = {f"q{i}": f"{words[i]} asked" for i in range(10)}
    beir(tmp_path / "found", documents, queries, [(f"q{i}", f"d{i}", 1) for i in range(8)])
    judged = [(f"q{i}", f"d{i + j}", int(j == 0)) for i in range(8) for j in range(4)]
    beir(tmp_path / "rerank" / "ordered", documents, queries, judged)
    labelled = [{"text": words[i], "label": f"kind{i % 3}"} for i in range(60)]
    jsonl(tmp_path / "topic-train.jsonl", labelled[:40])
    jsonl(tmp_path / "topic-val.jsonl", labelled[40:])
    jsonl(tmp_path / "alone.jsonl", labelled)
    (tmp_path / "README.md").write_text("not a set")
    return tmp_path


def test_a_tree_holds_a_set_of_each_kind(tree):
    suite = open_suite(tree)
    found = {one.name: (one.kind, one.metric, one.units) for one in suite.sets}
    assert found == {
        "similar": ("sts", "spearman", 30),
        "same": ("pairs", "ap", 20),
        "translated": ("bitext", "accuracy", 12),
        "found": ("retrieval", "ndcg@10", 8),
        "ordered": ("rerank", "map@100", 8),
        "topic-val": ("classification", "accuracy", 20),
        "alone": ("classification", "accuracy", 60),
    }
    assert [one.name for one in open_suite(tree / "topic-val.jsonl").sets] == ["topic-val"]
    assert [one.name for one in open_suite(tree / "sts", tree / "found").sets] == [
        "similar",
        "found",
    ]


def scored_texts(spec) -> set[str]:
    sets = open_suite(spec).sets
    return {text.text for one in sets for part in one.scored for text in part.texts}


def test_scored_are_all_texts_that_are_tested_and_no_more(tree):
    assert scored_texts(tree / "topic-val.jsonl") == {f"word{number}" for number in range(40, 60)}
    assert scored_texts(tree / "alone.jsonl") == {f"word{number}" for number in range(60)}
    assert "word7 asked" in scored_texts(tree / "found")
    assert "word7 text" in scored_texts(tree / "found")
    assert "word9 asked" not in scored_texts(tree / "found"), "it has no judgement"


def test_all_kinds_are_scored_in_every_size_and_kept(tree, tmp_path):
    encoder = FakeEncoder()
    scores = evaluate(open_suite(tree), encoder, dtypes=("f32", "int8", "ubinary"))
    assert len(scores.sizes) == 6
    assert scores.metric == "mean"
    mains = [row for row in scores.rows if row.metric in ("spearman", "ap", "accuracy")]
    assert len(mains) == 5 * 6
    units = {one.name: one.units for one in scores.sets}
    for row in scores.rows:
        if row.low is None:  # few units, or pairs of which no resample differs
            assert row.high is None
            assert units[row.set] < 10 or (row.metric, row.value) == ("ap", 1)
            continue
        assert row.low <= row.value <= row.high or row.high - row.low < 0.2
        assert -1 <= row.low <= row.high <= 1
    by_hand = np.mean([scores.main(one.name, 32, "int8").value for one in scores.sets])
    assert scores.mean(32, "int8") == pytest.approx(by_hand, abs=1e-12)
    scores.save(tmp_path / "scores.json")
    again = Scores.load(tmp_path / "scores.json")
    assert again.to_json() == scores.to_json()
    for key, statistic in scores.evidence.items():
        assert again.evidence[key].value() == statistic.value()


def test_every_distinct_text_is_embedded_once_for_all_sizes(tree):
    encoder = FakeEncoder()
    evaluate(open_suite(tree), encoder)
    assert len(encoder.texts) == len(set(encoder.texts))
    assert evaluate(open_suite(tree), FakeEncoder()).texts == len(encoder.texts)


def test_each_kind_has_its_prompts(tree):
    scores = evaluate(open_suite(tree), FakeEncoder())
    prompts = {one.name: one.prompts for one in scores.sets}
    assert prompts["similar"] == ("S: {text}", "S: {text}")
    assert prompts["found"] == ("Q: {text}", "title: {title} | text: {text}")
    assert prompts["translated"] == ("Q: {text}", "Q: {text}")
    assert prompts["topic-val"][0] == "task: classification | query: {text}"


def test_a_set_may_name_the_task_of_its_queries_and_documents_keep_their_titles(tmp_path):
    folder = beir(tmp_path / "code", {"a": "x", "b": "y"}, {"q": "find x"}, [("q", "a", 1)])
    jsonl(
        folder / "corpus.jsonl",
        [{"_id": "a", "title": "T", "text": "x"}, {"_id": "b", "text": "y"}],
    )
    (folder / "set.json").write_text('{"task": "code"}')
    encoder = FakeEncoder()
    evaluate(open_suite(folder), encoder)
    assert sorted(encoder.texts) == [
        "task: code retrieval | query: find x",
        "title: T | text: x",
        "title: none | text: y",
    ]


def test_sts_is_scipys_spearman_of_the_cosines(tmp_path):
    random = np.random.default_rng(0)
    vectors = {f"t{number}": random.normal(size=64) for number in range(40)}
    gold = random.integers(6, size=20)
    lines = [f"t{2 * row}\tt{2 * row + 1}\t{gold[row]}\n" for row in range(20)]
    path = tmp_path / "sts.tsv"
    path.write_text("sentence1\tsentence2\tscore\n" + "".join(lines))
    scores = evaluate(open_suite(path), FakeEncoder(vectors))
    for dim in (64, 32):
        cut = [np.array(vectors[f"t{number}"][:dim]) for number in range(40)]
        units = [one / np.linalg.norm(one) for one in cut]
        cosines = [units[2 * row] @ units[2 * row + 1] for row in range(20)]
        expected = stats.spearmanr(cosines, gold).statistic
        assert scores.mean(dim) == pytest.approx(expected, abs=1e-6)


def test_stored_types_score_what_gemb_embed_would_store(tmp_path):
    # The query has the signs of `b`, though `a` is nearer: sign bits alone confuse the two.
    query, a, b = np.ones(64), np.ones(64), np.full(64, 0.01)
    a[0], b[0] = -0.1, 5.0
    vectors = {"find": query, "near": a, "signs": b}
    documents = {"1": "near", "2": "signs"}
    folder = beir(tmp_path / "set", documents, {"q": "find"}, [("q", "1", 1)])
    scores = evaluate(open_suite(folder), FakeEncoder(vectors), dtypes=("f32", "int8", "ubinary"))
    assert scores.mean(64, "f32") == 1
    assert scores.mean(64, "int8") == 1
    assert scores.mean(64, "ubinary") == pytest.approx(1 / np.log2(3))


def test_equal_documents_are_tied_and_the_greater_id_is_first(tmp_path):
    vectors = {"find": np.arange(64.0), "same": np.arange(64.0)}
    documents = {f"d{number}": "same" for number in range(9)} | {"d10": "same", "x": "other"}
    folder = beir(tmp_path / "set", documents, {"q": "find"}, [("q", "d10", 1)])
    scores = evaluate(open_suite(folder), FakeEncoder(vectors), dtypes=("f32", "int8", "ubinary"))
    # d8, d7, ..., d2, d10, d1, d0 in the order of bytes: the eighth.
    for dtype in ("f32", "int8", "ubinary"):
        assert scores.mean(64, dtype) == pytest.approx(1 / np.log2(9)), dtype


def test_the_query_itself_among_the_documents_is_no_answer_unless_judged(tmp_path):
    vectors = {"claim": np.arange(64.0), "reply": np.arange(64.0) + 5}
    documents = {"q": "claim", "r": "reply", "s": "else"}
    folder = beir(tmp_path / "a", documents, {"q": "claim"}, [("q", "r", 1)])
    assert evaluate(open_suite(folder), FakeEncoder(vectors)).mean(64) == 1
    folder = beir(tmp_path / "b", documents, {"q": "claim"}, [("q", "q", 1)])
    assert evaluate(open_suite(folder), FakeEncoder(vectors)).mean(64) == 1
    # The same id alone is chance: another text.
    documents = {"q": "reply", "r": "else"}
    folder = beir(tmp_path / "c", documents, {"q": "claim"}, [("q", "r", 1)])
    assert evaluate(open_suite(folder), FakeEncoder(vectors)).mean(64) < 1


def test_reranking_looks_at_judged_documents_alone(tmp_path):
    vectors = {"ask": np.arange(64.0), "best": np.arange(64.0), "good": np.arange(64.0) + 9}
    documents = {"a": "best", "b": "good", "c": "bad"}
    judged = [("q", "b", 1), ("q", "c", 0)]
    folder = beir(tmp_path / "rerank" / "set", documents, {"q": "ask"}, judged)
    assert evaluate(open_suite(folder), FakeEncoder(vectors)).mean(64) == 1
    (folder / "set.json").write_text('{"kind": "retrieval"}')
    assert evaluate(open_suite(folder), FakeEncoder(vectors)).mean(64) < 1


def test_bitext_counts_both_directions(tmp_path):
    x, y, z = np.eye(64)[:3]
    # a finds 1 and 1 finds a; b finds 1, though 2 finds b.
    vectors = {"a": x, "1": x, "b": 0.8 * x + 0.6 * y, "2": 0.6 * y + 0.8 * z}
    path = tmp_path / "pairs.tsv"
    path.write_text("a\t1\nb\t2\n")
    assert evaluate(open_suite(path), FakeEncoder(vectors)).mean(64) == pytest.approx(0.75)


def test_texts_that_are_cut_are_counted(tmp_path):
    folder = beir(tmp_path / "set", {"1": "x" * 300, "2": "y"}, {"q": "z"}, [("q", "1", 1)])
    assert evaluate(open_suite(folder), FakeEncoder(max_tokens=100)).cut == 1


def test_a_text_without_a_vector_ends_the_evaluation_and_is_named(tmp_path):
    folder = beir(tmp_path / "set", {"1": "poison", "2": "y"}, {"q": "z"}, [("q", "1", 1)])
    with pytest.raises(GembError, match=r"^a text of set: 'poison' has no vector: .*poi"):
        evaluate(open_suite(folder), FakeEncoder())


def test_untrained_widths_and_unknown_types_are_refused(tree):
    with pytest.raises(UsageError, match=r"^48 dimensions: the model was trained for 64, 32$"):
        evaluate(open_suite(tree), FakeEncoder(), dims=(48,))
    with pytest.raises(UsageError, match=r"^no type 'int4' of vectors; types: f32, f16, int8, ub"):
        evaluate(open_suite(tree), FakeEncoder(), dtypes=("int4",))


def test_the_fingerprint_sees_every_text_and_answer_and_no_more(tmp_path):
    documents, queries = {"a": "x", "b": "y"}, {"q": "z", "unjudged": "w"}

    def of(name, documents, queries, qrels):
        return open_suite(beir(tmp_path / name, documents, queries, qrels)).sets[0].fingerprint

    first = of("1", documents, queries, [("q", "a", 1)])
    assert of("2", documents, {"q": "z"}, [("q", "a", 1)]) == first
    others = {
        of("3", documents, queries, [("q", "b", 1)]),
        of("4", documents, queries, [("q", "a", 2)]),
        of("5", {"a": "x", "b": "other"}, queries, [("q", "a", 1)]),
        of("6", documents, {"q": "other"}, [("q", "a", 1)]),
    }
    assert len(others | {first}) == 5


def test_qrels_may_lie_in_a_folder_of_parts_and_lack_a_header(tmp_path):
    folder = beir(tmp_path / "set", {"a": "x", "b": "y"}, {"q": "z", "r": "w"}, [])
    (folder / "qrels.tsv").unlink()
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text(QRELS + "q\ta\t1\n")
    assert open_suite(folder).sets[0].units == 1
    (folder / "qrels" / "test.tsv").write_text("q\ta\t1\nr\tb\t1\n")
    assert open_suite(folder).sets[0].units == 2


def test_what_cannot_be_scored_is_counted(tmp_path):
    judged = [("q", "a", 1), ("q", "gone", 1), ("nobody", "a", 1), ("r", "b", 0)]
    folder = beir(tmp_path / "set", {"a": "x", "b": "y"}, {"q": "z", "r": "w"}, judged)
    assert open_suite(folder).sets[0].left_out == (
        "2 judgements name ids that are not in the files; 1 queries have no relevant document"
    )


def test_sets_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for language in ("de", "fr"):
        beir(tmp_path / language / "dev", {"a": "x", "b": "y"}, {"q": "z"}, [("q", "a", 1)])
    assert [one.name for one in open_suite(tmp_path).sets] == ["de/dev", "fr/dev"]
    with pytest.raises(UsageError, match=r"two sets are named 'de/dev'; rename one of them$"):
        open_suite(tmp_path / "de", tmp_path / "de")


def test_the_built_in_set_opens_and_is_small():
    suite = open_suite("builtin:tiny")
    assert [(one.name, one.units) for one in suite.sets] == [("facts", 40), ("words", 60)]
    assert {one.metric for one in suite.sets} == {"ndcg@10"}
    files = [path for path in builtins()["tiny"].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    assert "WordNet" in (builtins()["tiny"] / "README.md").read_text()


def test_the_built_in_set_shares_no_text_with_the_sample_data():
    sample = builtins()["tiny"].parents[1] / "sample"
    known = set()
    for path in sample.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            known |= set(json.loads(line).values())
    assert len(known) > 1000
    assert not known & scored_texts("builtin:tiny")


def test_a_home_is_meant_by_its_sign_and_an_address_is_refused(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert open_suite("~/same.tsv").sets[0].units == 20
    for address in ("https://example.org/dev.tsv", "hf://datasets/a/b"):
        with pytest.raises(UsageError) as caught:
            open_suite(address)
        assert str(caught.value) == (
            f"{address}: gemb reads files on this machine alone; download it (curl -LO, hf "
            "download), then name the file"
        )


BAD = {
    "no_such": (None, "no such file or folder: {}"),
    "empty/": ({}, "{}: no evaluation set in it (see gemb eval --help)"),
    "table.txt": ("a,b\n", "{}: evaluation sets are .tsv, .csv or .jsonl files, LlamaIndex's"),
    "two.csv": ("a,b\n", "{}: 1 pairs; at least two are needed"),
    "nohead.csv": (
        "a cat,a dog,1.0\n",
        "{}: its first line must name the columns sentence1, sentence2 and score; it is 'a cat,",
    ),
    "nohead.tsv": (
        "a cat\ta dog\t1.0\n",
        "{}: its first line must name the columns sentence1, sentence2 and score, with tabs "
        "between; it is 'a cat\\ta dog\\t1.0'",
    ),
    "score.tsv": (
        "sentence1\tsentence2\tscore\na\tb\t1\nc\td\thigh\n",
        "{}, line 3: the score 'high' is no number",
    ),
    "ragged.tsv": (
        "sentence1\tsentence2\tscore\na\tb\n",
        "{}, line 2: 2 columns; the first line has 3",
    ),
    "flat.tsv": (
        "sentence1\tsentence2\tscore\na\tb\t2\nc\td\t2\n",
        "{}: every score is 2; there is nothing to rank",
    ),
    "one.tsv": ("sentence1\tsentence2\tscore\na\tb\t2\n", "{}: 1 pairs; at least two are needed"),
    "latin.tsv": (
        b"sentence1\tsentence2\tscore\n\xe9\tb\t2\n",
        "{}, line 2: character 1 is no valid UTF-8",
    ),
    "label.jsonl": (
        '{"text": "a", "kind": 1}\n',
        "{}, line 1: no 'text' and 'label'; it has: text, kind",
    ),
    "json.jsonl": ('{"text"\n', "{}, line 1: no valid JSON: "),
    "list.jsonl": ("[1]\n", "{}, line 1: no JSON object"),
    "same.jsonl": (
        '{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n',
        "{}: one label alone; there is nothing to tell apart",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_set_is_one_line(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        open_suite(path)
    assert str(caught.value).startswith(message.format(path))
    assert "\n" not in str(caught.value)


def test_a_label_that_was_not_trained_is_named(tmp_path):
    jsonl(tmp_path / "a-train.jsonl", [{"text": "x", "label": "p"}, {"text": "y", "label": "n"}])
    jsonl(tmp_path / "a-test.jsonl", [{"text": "x", "label": "other"}])
    with pytest.raises(
        UsageError, match=r"a-test.jsonl, row 1: a-train.jsonl has no label 'other'"
    ):
        open_suite(tmp_path)


def broken(name, folder):
    files = {
        "no corpus": ("corpus.jsonl", None),
        "no queries": ("queries.jsonl", None),
        "no qrels": ("qrels.tsv", None),
        "empty corpus": ("corpus.jsonl", ""),
        "empty query": ("queries.jsonl", '{"_id": "q", "text": " "}'),
        "no id": ("corpus.jsonl", '{"key": "a", "text": "x"}'),
        "no text": ("corpus.jsonl", '{"_id": "a", "body": "x"}'),
        "twice": ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}'),
        "strangers": ("qrels.tsv", QRELS + "other\tids\t1\n"),
        "nothing relevant": ("qrels.tsv", QRELS + "q\ta\t0\n"),
        "only a header": ("qrels.tsv", QRELS),
        "two columns": ("qrels.tsv", QRELS + "q\ta\n"),
        "bad grade": ("qrels.tsv", QRELS + "q\ta\tyes\n"),
        "two grades": ("qrels.tsv", QRELS + "q\ta\t1\nq\ta\t1.0\nq\ta\t0\n"),
        "bad settings": ("set.json", '{"tasks": "code"}'),
        "bad task": ("set.json", '{"task": "poetry"}'),
    }
    file, content = files[name]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)


BROKEN = {
    "no corpus": "no such file: {}/corpus.jsonl",
    "no queries": "no such file: {}/queries.jsonl",
    "no qrels": "{} has no qrels.tsv and no qrels/test.tsv",
    "empty corpus": "{}/corpus.jsonl: it is empty",
    "empty query": "{}/queries.jsonl, line 1: no 'text'; it has: _id, text",
    "no id": "{}/corpus.jsonl, line 1: no '_id'; it has: key, text",
    "no text": "{}/corpus.jsonl, line 1: no 'text'; it has: _id, body",
    "twice": "{}/corpus.jsonl, line 2: the id 'a' stands there twice",
    "strangers": "{}/qrels.tsv: not one of its 1 judgements names ids of queries.jsonl and "
    "corpus.jsonl; do the files belong together?",
    "nothing relevant": "{}/qrels.tsv: no query has a document with a grade above 0",
    "only a header": "{}/qrels.tsv: it judges nothing; its lines are query-id, corpus-id, score",
    "two columns": "{}/qrels.tsv, line 2: 2 columns, not query-id, corpus-id, score with tabs "
    "between, or TREC's four",
    "bad grade": "{}/qrels.tsv, line 2: the score 'yes' is no number",
    "two grades": "{}/qrels.tsv, line 4: query 'q' and document 'a' have grade 0 here, and 1 in a "
    "line before",
    "bad settings": "{}/set.json: unknown key 'tasks'; keys: kind, task",
    "bad task": "{}/set.json: task is 'poetry'; one of retrieval, code, qa, fact, similarity",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_retrieval_set_is_one_line(tmp_path, name):
    folder = beir(tmp_path / "set", {"a": "x", "b": "y"}, {"q": "z"}, [("q", "a", 1)])
    broken(name, folder)
    with pytest.raises(UsageError) as caught:
        open_suite(folder)
    assert str(caught.value) == BROKEN[name].format(folder)


def test_an_unknown_built_in_name_is_refused():
    with pytest.raises(UsageError, match=r"^no built-in set 'huge'; there is: builtin:tiny$"):
        open_suite("builtin:huge")


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_has_its_score_on_the_built_in_set(real_model):
    from gemb.backend import Runtime
    from gemb.plugins import for_model

    encoder = for_model(real_model).open(real_model, Runtime(precision="fp32"))
    scores = evaluate(open_suite("builtin:tiny"), encoder, dims=(768, 128))
    # Without the words of its prompts it has 0.63, with six of its layers 0.13.
    assert scores.mean(768) == pytest.approx(0.72, abs=0.02)
    assert scores.mean(128) > 0.55
