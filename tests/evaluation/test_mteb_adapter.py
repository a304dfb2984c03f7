"""MTEB's own code evaluates a model of gemb, and finds what gemb finds."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from fake_encoder import FakeEncoder
from gemb.datasets.sets import builtins, open_suite
from gemb.errors import UsageError
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.mteb import GembEncoder, prompt_for, run, tasks_named

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="mteb is not installed")
# Its imports, and the libraries that it loads data with, warn of each other.
quiet = pytest.mark.filterwarnings("ignore")
CARD = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Retrieval-query": "R: ",
    "Retrieval-document": "D: ",
    "STS": "S: ",
    "Summarization": "task: summarization | query: ",
}


def test_a_kind_of_task_has_the_models_own_prompt_and_else_that_of_gembs_task():
    def words(kind, side=None):
        return prompt_for(kind, side, CARD).template

    assert words("STS") == "S: {text}"
    assert words("Summarization") == "task: summarization | query: {text}"
    assert words("Retrieval", "query") == "R: {text}"
    assert words("Retrieval", "document") == "D: {text}"
    assert words("Reranking", "query") == "task: search result | query: {text}"
    assert words("Reranking", "document") == "title: none | text: {text}"
    assert words("Clustering") == "task: clustering | query: {text}"
    assert words("InstructionRetrieval", "query") == "task: code retrieval | query: {text}"
    with pytest.raises(UsageError, match=r"^mteb: the model reads text, and has no prompt for ta"):
        words("ImageClustering")


@pytest.mark.skipif(find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_the_install_command_is_named(gemb):
    answer = gemb("eval", "mteb:STSBenchmark")
    assert answer.returncode == 4
    assert answer.stderr == (
        b"gemb: mteb: tasks require the package mteb: pip install 'gemb[mteb]'\n"
    )


@needs_mteb
@quiet
def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"^mteb:STSBenchmrk: .*Did you mean: 'STSBenchmark'\?$"):
        tasks_named(["STSBenchmrk"])


@needs_mteb
@quiet
def test_the_encoder_is_one_for_mteb():
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(GembEncoder(FakeEncoder(), 64, {}), EncoderProtocol)


@needs_mteb
@quiet
def test_mteb_finds_the_spearman_and_the_ndcg_that_gemb_finds(tmp_path):
    import mteb
    from datasets import Dataset, DatasetDict

    random = np.random.default_rng(0)
    left, right = ([f"{side}{row}" for row in range(60)] for side in "ab")
    gold = random.integers(6, size=60).astype(float).tolist()
    sts = mteb.get_task("STSBenchmark")
    columns = {"sentence1": left, "sentence2": right, "score": gold}
    sts.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
    lines = [f"{a}\t{b}\t{c}\n" for a, b, c in zip(left, right, gold, strict=True)]
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(lines))

    folder = builtins()["tiny"] / "words"
    corpus, queries = (
        [
            {"id": row["_id"], "text": row["text"], "title": ""}
            for row in map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        ]
        for name in ("corpus", "queries")
    )
    judged = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        judged[query] = {document: int(grade)}
    retrieval = mteb.get_task("SciFact")
    split = {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list([{"id": q["id"], "text": q["text"]} for q in queries]),
        "relevant_docs": judged,
        "top_ranked": None,
    }
    retrieval.dataset = {"default": {"test": split}}
    sts.data_loaded = retrieval.data_loaded = True

    # Queries are near their answers, so that the score is between 0 and 1.
    answers = {row["id"]: row["text"] for row in corpus}
    vectors = {text: random.normal(size=64) for text in answers.values()}
    for query in queries:
        (document,) = judged[query["id"]]
        vectors[query["text"]] = vectors[answers[document]] + 4 * random.normal(size=64)
    encoder = FakeEncoder(vectors)
    found = {(one.task, one.dim): one for one in run([sts, retrieval], encoder, (64, 32))}
    ours = evaluate(open_suite(tmp_path / "sts.tsv", folder), encoder)
    for dim in (64, 32):
        assert found["STSBenchmark", dim].metric == "cosine_spearman"
        assert found["SciFact", dim].metric == "ndcg_at_10"
        # float32 cosines, summed in another order: a pair may change places with its neighbour
        spearman = ours.main("sts", dim).value
        assert found["STSBenchmark", dim].value == pytest.approx(spearman, abs=1e-3)
        # MTEB rounds to five decimals.
        ndcg = ours.main("words", dim).value
        assert 0.2 < ndcg < 0.95
        assert found["SciFact", dim].value == pytest.approx(ndcg, abs=1e-5)
