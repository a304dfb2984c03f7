"""`gemb eval` as a user types it."""

from __future__ import annotations

import json
import time

import pytest

from fake_backend import write_model

SAME = "prompts of facts, words: 'task: search result | query: {text}' and 'title: {title} | text: "


@pytest.fixture
def sets(gemb):
    """A folder with a set for STS and one for retrieval."""
    folder = gemb.folder / "dev"
    (folder / "docs").mkdir(parents=True)
    rows = [f"w{i} x\tw{i + i % 4} x\t{3 - i % 4}\n" for i in range(40)]
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    for name, words in (("corpus", "text w"), ("queries", "w")):
        lines = [json.dumps({"_id": f"{i}", "text": f"{words}{i}"}) for i in range(30)]
        (folder / "docs" / f"{name}.jsonl").write_text("\n".join(lines))
    rows = [f"{i}\t{i}\t1\n" for i in range(30)]
    (folder / "docs" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return "dev"


def lines(answer):
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.decode().splitlines()


def test_without_words_it_measures_the_default_model_on_the_built_in_set(gemb):
    answer = gemb("eval")
    table = lines(answer)
    assert table[0].split() == ["set", "metric", "n", "768", "512", "256", "128"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["facts", "ndcg@10"],
        ["words", "ndcg@10"],
        ["mean", "ndcg@10"],
    ]
    assert SAME.encode() in answer.stderr
    assert b"note" not in gemb("eval", "-q").stderr
    assert lines(gemb("eval", "model.fake", "--data", "builtin:tiny")) == table


def test_the_users_sets_by_size_and_type(gemb, sets):
    answer = gemb("eval", "--data", sets, "--dims", "768,128", "--dtype", "f32,ubinary")
    table = lines(answer)
    assert table[0].split() == ["set", "metric", "n", "dtype", "768", "128"]
    found = [tuple(line.split()[:4]) for line in table[1:]]
    assert found == [
        ("docs", "ndcg@10", "30", "f32"),
        ("docs", "ndcg@10", "30", "ubinary"),
        ("pairs", "spearman", "40", "f32"),
        ("pairs", "spearman", "40", "ubinary"),
        ("mean", "mean", "f32", table[5].split()[3]),
        ("mean", "mean", "ubinary", table[6].split()[3]),
    ]


def test_json_has_every_metric_with_its_interval(gemb, sets):
    found = json.loads(gemb("eval", "--json", "--data", sets, "--dims", "128").stdout)
    assert {row["metric"] for row in found["rows"] if row["set"] == "docs"} == {
        "ndcg@10",
        "recall@10",
        "recall@100",
        "mrr@10",
        "map@100",
    }
    assert all(row["low"] <= row["high"] for row in found["rows"])
    assert "evidence" not in found
    every = lines(gemb("eval", "-a", "--data", sets, "--dims", "128"))
    assert len(every) == 1 + 5 + 1 + 1


def test_a_model_ties_with_itself_kept_or_run_again(gemb, sets):
    kept = gemb("eval", "--data", sets, "--dims", "768", "-o", "kept.json")
    for baseline in ("kept.json", "model.fake"):
        answer = gemb("eval", "--data", sets, "--dims", "768", "--baseline", baseline)
        *table, verdict = lines(answer)
        assert table == lines(kept)
        assert verdict.startswith("VERDICT TIE mean ")
        assert verdict.endswith("(+0.000, 95% CI +0.000 to +0.000)")


def test_a_worse_model_leaves_with_1_and_a_better_one_wins(gemb):
    # Its documents' words are another's: what it finds is chance.
    write_model(gemb.folder / "same.fake", prompts={"document": "", "query": ""})
    (gemb.folder / "dev").mkdir()
    for name in ("corpus", "queries"):
        rows = [json.dumps({"_id": f"{name}{i}", "text": f"w{i}"}) for i in range(30)]
        (gemb.folder / "dev" / f"{name}.jsonl").write_text("\n".join(rows))
    rows = [f"queries{i}\tcorpus{i}\t1\n" for i in range(30)]
    (gemb.folder / "dev" / "qrels.tsv").write_text("".join(rows))
    answer = gemb("eval", "model.fake", "--data", "dev", "--baseline", "same.fake")
    assert answer.returncode == 1
    assert "\nVERDICT REGRESSION ndcg@10 1.000 → 0." in answer.stdout.decode()
    assert (
        answer.stderr.decode()
        .splitlines()[-1]
        .startswith("gemb: worse than same.fake: REGRESSION ndcg@10 1.000 → 0.")
    )
    answer = gemb("eval", "same.fake", "--data", "dev", "--baseline", "model.fake", "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["verdict"]["verdict"] == "WIN"


def test_a_changed_set_is_refused_before_the_model_is_opened(gemb, sets):
    lines(gemb("eval", "--data", sets, "-o", "kept.json"))
    table = gemb.folder / "dev" / "pairs.tsv"
    table.write_text(table.read_text() + "new\tpair\t1\n")
    answer = gemb("eval", "gone.fake", "--data", sets, "--baseline", "kept.json")
    assert answer.returncode == 2
    assert b"the set 'pairs' has changed since the baseline" in answer.stderr
    answer = gemb("eval", "--data", "dev/docs", "--baseline", "kept.json")
    assert b"gemb: the new scores have no set 'pairs'; a comparison needs" in answer.stderr


def test_texts_that_are_cut_and_judgements_without_texts_are_told(gemb, sets):
    corpus = gemb.folder / "dev" / "docs" / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + "\n" + json.dumps({"_id": "long", "text": "w " * 100}))
    qrels = gemb.folder / "dev" / "docs" / "qrels.tsv"
    qrels.write_text(qrels.read_text() + "nobody\t3\t1\n")
    answer = gemb("eval", "-q", "--data", sets)
    assert answer.stderr.decode().splitlines() == [
        "gemb: warning: 1 of 103 texts were cut at 32 tokens",
        "gemb: warning: docs: 1 judgements name ids that are not in the files; they take no part",
    ]


def test_scores_replace_scores_and_nothing_else(gemb, sets):
    for _ in range(2):
        lines(gemb("eval", "--data", "dev/pairs.tsv", "-o", "kept.json"))
    corpus = gemb.folder / "dev" / "docs" / "corpus.jsonl"
    before = corpus.read_bytes()
    answer = gemb("eval", "--data", sets, "-o", "dev/docs/corpus.jsonl")
    assert answer.returncode == 2
    assert answer.stderr == (
        b"gemb: dev/docs/corpus.jsonl exists and holds no scores; name another file\n"
    )
    assert corpus.read_bytes() == before
    assert b"no such folder" in gemb("eval", "--data", sets, "-o", "gone/kept.json").stderr


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(gemb, sets):
    (gemb.folder / "there").mkdir()
    gemb.model.write_text(json.dumps({"sleep_s": 0.2, "log": "calls.txt"}))
    process = gemb.start("eval", "--data", sets, "-o", "there/kept.json")
    while not (gemb.folder / "calls.txt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    (gemb.folder / "there").rmdir()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert out.decode().splitlines()[-1].startswith("mean ")
    assert b"there/kept.json" in err


def test_a_result_that_nobody_reads_is_kept_all_the_same(gemb, sets):
    process = gemb.start("eval", "-q", "--data", sets, "-o", "kept.json", stdin=None)
    process.stdout.close()
    assert process.wait(60) == 141
    assert lines(gemb("eval", "--data", sets, "--baseline", "kept.json"))[-1].startswith("VERDICT")


def test_a_wrong_width_or_type_is_refused_before_a_model_is_loaded(gemb, sets):
    # `encode` of these leaves a line: none was called.
    gemb.model.write_text(json.dumps({"log": "calls.txt"}))
    narrow = write_model(gemb.folder / "narrow.fake", dims=[768, 256], log="calls.txt")
    broken = write_model(gemb.folder / "broken.fake", prompts=0)
    answer = gemb("eval", broken.name, "--data", sets, "--dims", "99")
    assert answer.stderr == b"gemb: 99 dimensions: the model was trained for 768, 512, 256, 128\n"
    for words in (("--baseline", narrow.name), (narrow.name, "--baseline", "model.fake")):
        answer = gemb("eval", *words, "--data", sets, "--dims", "128")
        assert answer.returncode == 2
        assert answer.stderr == b"gemb: 128 dimensions: the model was trained for 768, 256\n"
    assert not (gemb.folder / "calls.txt").exists()
    lines(gemb("eval", "--data", sets, "-o", "kept.json"))
    answer = gemb("eval", "gone.fake", "--data", sets, "--baseline", "kept.json", "--dtype", "int8")
    assert b"one side is of vectors in f32, the other in int8" in answer.stderr


REFUSED = {
    ("--data", "gone"): "no such file or folder: gone",
    ("--data", "https://example.org/dev"): "https://example.org/dev: gemb reads files on this "
    "machine alone; download it (curl -LO, hf download), then name the file",
    ("--data", "builtin:huge"): "no built-in set 'huge'; there is: builtin:tiny",
    ("--dims", "48"): "48 dimensions: the model was trained for 768, 512, 256, 128",
    ("--dims", "wide"): "--dims wide: widths with commas between, as 768,256 (see gemb eval "
    "--help)",
    ("--dtype", "f32,int4"): "--dtype int4: one of f32, f16, int8, ubinary (see gemb eval --help)",
    ("--baseline", "gone.json"): "no such file: gone.json",
    ("--data", "mteb:A", "--data", "dev"): "mteb: tasks and other sets are evaluated in separate "
    "commands (see gemb eval --help)",
    ("mteb:A", "-a"): "--baseline, -o, -a and --dtype are not for mteb: tasks (see gemb eval "
    "--help)",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused_in_one_line(gemb, words):
    answer = gemb("eval", *words)
    assert (answer.returncode, answer.stdout) == (2, b"")
    assert answer.stderr.decode() == f"gemb: {REFUSED[words]}\n"


@pytest.fixture
def one_query(gemb):
    """A folder with a set of one query."""
    folder = gemb.folder / "one"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id":"a","text":"w1"}\n{"_id":"b","text":"w2"}\n')
    (folder / "queries.jsonl").write_text('{"_id":"q","text":"w1"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    return "one"


def test_one_query_makes_no_interval_and_no_verdict(gemb, one_query):
    common = ("--data", one_query, "--dims", "768")
    saved = gemb("eval", *common, "-o", "kept.json")
    assert len(lines(saved)[1].split()) == 4  # the value has no interval beside it
    assert b"one: n=1: no interval of fewer than 10" in saved.stderr
    write_model(gemb.folder / "better.fake", is_bag=True)
    for model in ("model.fake", "better.fake"):
        answer = gemb("eval", model, *common, "--baseline", "kept.json")
        assert answer.returncode == 0
        assert lines(answer)[-1].startswith("VERDICT TOO FEW ndcg@10 0.631 → ")
        assert lines(answer)[-1].endswith("n=1: no interval)")
        assert b"n=1 is too few for a verdict: each set needs 10" in answer.stderr
        gated = gemb("eval", model, *common, "--baseline", "kept.json", "--gate", "--json")
        assert gated.returncode == 1
        assert b"gemb: not comparable with kept.json: TOO FEW ndcg@10" in gated.stderr
        found = json.loads(gated.stdout)
        assert found["verdict"]["verdict"] == "TOO FEW"
        assert found["verdict"]["low"] is None
        assert found["rows"][0]["low"] is None
    alone = gemb("eval", *common, "--gate")
    assert alone.returncode == 2
    assert b"--gate judges a comparison: name its --baseline" in alone.stderr


def test_a_gate_lets_a_tie_pass(gemb, sets):
    assert gemb("eval", "--data", sets, "--dims", "768", "-o", "kept.json").returncode == 0
    answer = gemb("eval", "--data", sets, "--dims", "768", "--gate", "--baseline", "kept.json")
    assert answer.returncode == 0, answer.stderr
    assert lines(answer)[-1].startswith("VERDICT TIE ")
