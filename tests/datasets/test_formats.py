"""Data in the formats that people hold, each with its own tool's names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from msgspec import structs

from gemb.datasets.beir import judgements
from gemb.datasets.rows import open_source
from gemb.datasets.sets import open_suite
from gemb.errors import UsageError
from gemb.recipe.schema import Source
from gemb.texts.examples import Text

DPR = {
    "dataset": "nq",
    "question": "what boils water",
    "answers": ["kettle"],
    "positive_ctxs": [{"title": "Kettle", "text": "A kettle boils water.", "score": 1000}],
    "negative_ctxs": [],
    "hard_negative_ctxs": [{"title": "Lamp", "text": "A lamp gives light."}],
}
TEVATRON_2 = {
    "query_id": "1",
    "query_text": "what boils water",
    "positive_document_ids": ["p1"],
    "negative_document_ids": ["p2"],
}
TRIPLES = (
    "what boils water\tA kettle boils water.\tA lamp gives light.\n"
    "what gives light\tA lamp gives light.\tA kettle boils.\n"
)
LLAMA_INDEX = {
    "queries": {"q1": "what boils water", "q2": "what gives light"},
    "corpus": {"d1": "A kettle boils.", "d2": "A lamp shines.", "d3": "Tea is green."},
    "relevant_docs": {"q1": ["d1"], "q2": ["d2"]},
    "mode": "text",
}


def write(folder: Path, name: str, data: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def rows(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Query, positive and negatives of each row."""
    found = open_source(Source(path=str(path)), path.parent / "cache", strict=True)
    return [
        (one.query.text, one.positive.text, tuple(text.text for text in one.negatives))
        for one in (found[row] for row in range(len(found)))
    ]


@pytest.mark.parametrize(
    "line",
    [
        "q1\t0\td1\t1",
        "q1 0 d1 1",
        "q1  Q0   d1  1",
        "q1\td1\t1",
        "q1 d1 1",
        "q1\t0\td1\t1\r",
        "q1\tQ0\td1\t 1.0 ",
    ],
)
def test_judgements_are_those_of_beir_or_of_trec(line: str, tmp_path: Path) -> None:
    (judgement,) = judgements(write(tmp_path, "qrels.tsv", line + "\n"))
    assert judgement[1:] == ("q1", "d1", 1.0, "")


@pytest.mark.parametrize(
    "header",
    [
        "query-id\tcorpus-id\tscore",
        "qid\titer\tdocid\trel",
        "\n\nquery-id\tcorpus-id\tScore",
        '"query-id"\t"corpus-id"\t"score"',
    ],
)
def test_a_header_of_judgements_is_none_of_them(header: str, tmp_path: Path) -> None:
    assert len(list(judgements(write(tmp_path, "q.tsv", f"{header}\nq1\td1\t1\n")))) == 1


@pytest.mark.parametrize("header", ["corpus-id\tquery-id\tscore", "docid\t0\tqid\trel"])
def test_judgements_whose_columns_are_named_in_another_order_are_refused(
    header: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "q.tsv", f"{header}\n1\t2\t1\n")
    with pytest.raises(UsageError, match=r"its columns are .*; they must be query-id, corpus-id"):
        list(judgements(path))


@pytest.mark.parametrize("line", ["q1 d1", "q1\t0\td1\t1\t2", "a b c d"])
def test_other_lines_of_judgements_are_named(line: str, tmp_path: Path) -> None:
    (judgement,) = judgements(write(tmp_path, "qrels.tsv", line + "\n"))
    assert judgement.reason


def test_a_folder_with_pyserinis_names_and_trec_judgements_is_a_retrieval_set(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        "set/corpus.jsonl",
        '{"id":"d1","contents":"A lamp"}\n{"docid":"d2","contents":"x"}\n',
    )
    write(tmp_path, "set/queries.jsonl", '{"id":"q1","contents":"lamp"}\n')
    write(tmp_path, "set/qrels.tsv", "q1 0 d1 1\nq1 0 d2 0\n")
    (found,) = open_suite(tmp_path / "set").sets
    assert (found.kind, found.units) == ("retrieval", 1)
    assert sorted(text.text for text in found.parts[1].texts) == ["A lamp", "x"]
    assert rows(tmp_path / "set") == [("lamp", "A lamp", ())]


STS = [("A lamp", "A light", 4.5), ("A, kettle", "Tea", 1.0), ("x", "y", 0.5)]


@pytest.mark.parametrize("score", ["score", "Label", "similarity_score"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", "semicolon.csv"])
def test_scored_sentence_pairs_are_an_sts_set_in_every_table(
    suffix: str, score: str, tmp_path: Path
) -> None:
    header = ("sentence1", "sentence2", score)
    if suffix == ".jsonl":
        data = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in STS)
    else:
        sign = {".csv": ",", ".tsv": "\t"}.get(suffix, ";")
        quote = '"' if sign == "," else ""
        lines = (sign.join(f"{quote}{cell}{quote}" for cell in row) for row in (header, *STS))
        data = "".join(f"{line}\n" for line in lines)
    path = write(tmp_path, f"sts/pairs{suffix}", data)
    for spec in (path, path.parent):
        (found,) = open_suite(spec).sets
        assert (found.kind, found.units, list(found.answers)) == ("sts", 3, [4.5, 1.0, 0.5])
        assert [text.text for text in found.parts[0].texts] == [left for left, *_ in STS]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", "sentence1,sentence1,sentence2,score\na,b,c,1\n", "the same name, 'sentence1'"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\n,d,2\n", "line 3: 'sentence1' is empty"),
        ("a.tsv", "one\ttwo\nthree\t\u200b\n", "line 2: column 2 is empty"),
        ("a.jsonl", '{"sentence1":"a","sentence2":["b"],"score":1}\n', "'sentence2' is no text"),
        ("a.jsonl", '{"sentence1":"a","sentence2":7,"score":1}\n', "'sentence2' is no text"),
        ("a.jsonl", '{"sentence1":"a","sentence2":null,"score":1}\n', "'sentence2' is empty"),
        ("a.jsonl", '{"text":"a","label":0.5}\n', "line 1: 'label' is no text or whole number"),
        ("a.jsonl", '{"text":7,"label":"x"}\n', "line 1: 'text' is no text"),
        (
            "a.json",
            '{"queries": {"q": ""}, "corpus": {"d": "x"}, "relevant_docs": {"q": ["d"]}}',
            "the query 'q' is empty",
        ),
    ],
)
def test_what_is_no_text_of_a_set_is_refused_by_name(
    name: str, data: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        open_suite(write(tmp_path, name, data))


def test_a_quoted_mark_before_the_names_of_a_set_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '"\ufeffsentence1",sentence2,score\na,b,1\nc,d,3\n')
    (found,) = open_suite(path).sets
    assert found.units == 2


def test_a_judgement_that_stands_twice_names_no_unknown_id(tmp_path: Path) -> None:
    parts = {"queries": {"q": "a"}, "corpus": {"d": "x"}, "relevant_docs": {"q": ["d", "d"]}}
    (found,) = open_suite(write(tmp_path, "qa.json", json.dumps(parts))).sets
    assert not found.left_out


def test_other_tables_beside_the_sets_of_a_folder_are_none(tmp_path: Path) -> None:
    write(tmp_path, "sets/results.csv", "model,score\nmini,0.5\n")
    write(tmp_path, "sets/sts.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t3\n")
    write(tmp_path, "sets/label.jsonl", '{"text":"a","label":"x"}\n{"text":"b","label":"y"}\n')
    assert sorted(one.name for one in open_suite(tmp_path / "sets").sets) == ["label", "sts"]


TRIPLET = ("what boils water", "A kettle boils water.", ("A lamp gives light.",))
TRAINING = [
    ("a.jsonl", json.dumps(DPR), TRIPLET),
    ("a.tsv", TRIPLES, TRIPLET),
    ("a.jsonl", '{"anchor":"a b","entailment":"c","contradiction":"d"}', ("a b", "c", ("d",))),
    ("a.csv", "sent0,sent1,hard_neg\na b,c,d\n", ("a b", "c", ("d",))),
    ("a.jsonl", '{"set":["a","b"]}', ("a", "b", ())),
    ("a.json", json.dumps(LLAMA_INDEX, indent=4), ("what boils water", "A kettle boils.", ())),
    ("a.jsonl", json.dumps(LLAMA_INDEX), ("what boils water", "A kettle boils.", ())),
]


@pytest.mark.parametrize(("name", "data", "row"), TRAINING)
def test_training_data_is_known_by_its_makers_names(
    name: str, data: str, row: tuple[str, str, tuple[str, ...]], tmp_path: Path
) -> None:
    assert rows(write(tmp_path, name, data + "\n"))[0] == row


@pytest.mark.parametrize(
    "header",
    ['"\ufeffquery",positive', "query,\u200bpositive", "query\u00a0,Positive ", ",query,positive,"],
    ids=["quoted mark", "no width", "blanks", "without names"],
)
def test_names_of_columns_are_trimmed_as_in_all_tables(header: str, tmp_path: Path) -> None:
    cells = ["1", "a", "b", "2"] if header.startswith(",") else ["a", "b"]
    path = write(tmp_path, "a.csv", f"{header}\n{','.join(cells)}\n")
    assert rows(path) == [("a", "b", ())]


def test_dpr_titles_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps(DPR) + "\n")
    found = open_source(Source(path=str(path)), tmp_path / "cache", strict=True)
    assert found[0].positive.title == "Kettle"
    assert found[0].negatives[0].title == "Lamp"
    assert found.format.startswith("DPR JSONL (question, positive_ctxs[], hard_negative_ctxs[])")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", json.dumps(TEVATRON_2), "its rows name documents by id, and there is no "),
        ("a.tsv", "premise\thypothesis\tlabel", "3 columns, .* names no query and positive"),
        ("a.csv", "id,text\n1,a kettle\n", "no training data by its columns"),
        ("a.csv", "question,url\na,b\n", "2 columns, .* names no query and positive"),
        ("a.csv", "query,positive,query\na,b,c\n", "two columns have the same name, 'query'"),
        ("a.jsonl", '{"sentence1":"a","sentence2":"b","Score":1}', "'Score' grades the pairs"),
        ("a.tsv", "1185869\t0\t2942565", "3 columns, and the first line names none known"),
        ("a.tsv", "what is it\tA kettle boils.\t0.5", "3 columns, and the first line names none"),
        ("a.jsonl", '{"set":["a"]}', "its 'set' is not a list of two texts"),
        ("a.jsonl", '{"set":["a",2]}', "its 'set' is not a list of two texts"),
        ("a.json", '{"queries": {"q": 1}, "corpus": {}}', "no data of LlamaIndex"),
        (
            "a.jsonl",
            f"[\n{json.dumps(DPR)},\n{json.dumps(DPR)}\n]",
            "is one JSON array; of an array",
        ),
        ("a.json", json.dumps(DPR, indent=1), "is a JSON object over several lines; of it make"),
        ("a.json", '{"queries": {"q": "a"', "no valid JSON"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(
    name: str, data: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        rows(write(tmp_path, name, data + "\n"))


DOCUMENTS = (
    {"docid": "p2", "text": "A lamp gives light.", "title": None},
    {"docid": "p1", "text": "A kettle boils water.", "title": "Kettle"},
    {"docid": 7, "contents": "Tea is green."},
    {"docid": "image", "text": None},
)


def tevatron_rows(folder: Path, *changes: dict[str, object], corpus: str = "corpus.jsonl") -> Path:
    write(folder, corpus, "".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    lines = "".join(json.dumps(TEVATRON_2 | change) + "\n" for change in changes)
    return write(folder, "train.jsonl", lines)


def test_tevatrons_ids_are_those_of_the_corpus_beside_the_rows(tmp_path: Path) -> None:
    path = tevatron_rows(tmp_path, {}, {"positive_document_ids": [7, "p2"]})
    opened = open_source(Source(path=str(path)), tmp_path / "cache", strict=True)
    assert [
        (row.query.text, row.positive, row.negatives) for row in map(opened.__getitem__, range(3))
    ] == [
        (
            "what boils water",
            Text("A kettle boils water.", "Kettle"),
            (Text("A lamp gives light."),),
        ),
        ("what boils water", Text("Tea is green."), (Text("A lamp gives light."),)),
        ("what boils water", Text("A lamp gives light."), (Text("A lamp gives light."),)),
    ]
    assert opened.format == "Tevatron 2 JSONL with corpus.jsonl (query, positive, negative)"


def test_a_corpus_of_another_name_stands_in_the_recipe(tmp_path: Path) -> None:
    path = tevatron_rows(tmp_path, {}, corpus="wiki/docs.jsonl")
    source = Source(path=str(path), corpus=str(tmp_path / "wiki/docs.jsonl"))
    assert len(open_source(source, tmp_path / "cache", strict=True)) == 1
    pairs = write(tmp_path, "pairs.jsonl", json.dumps(DPR) + "\n")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
        folder = write(tmp_path / "beir", name, "").parent
    for needless in (pairs, folder):
        with pytest.raises(UsageError, match="leave out 'corpus'"):
            open_source(
                structs.replace(source, path=str(needless)), tmp_path / "cache", strict=True
            )


def test_a_changed_corpus_is_joined_anew(tmp_path: Path) -> None:
    path = tevatron_rows(tmp_path, {})
    assert rows(path)[0][1] == "A kettle boils water."
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("A kettle", "A boiler"))
    assert rows(path)[0][1] == "A boiler boils water."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"positive_document_ids": ["p9"]}, "document 'p9' is not in corpus.jsonl"),
        ({"negative_document_ids": ["p9"]}, "document 'p9' is not in corpus.jsonl"),
        ({"positive_document_ids": "p1"}, "'positive_document_ids' is no list of ids"),
        ({"positive_document_ids": [None]}, "'positive_document_ids' is no list of ids"),
        ({"positive_document_ids": []}, "'positive' is empty"),
        ({"positive_document_ids": ["image"]}, "'positive' is an object without a text, not text"),
        ({"query_text": None}, "'query' is empty"),
    ],
)
def test_a_row_whose_documents_are_not_there_is_left_out(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = tevatron_rows(tmp_path, {}, change)
    opened = open_source(Source(path=str(path)), tmp_path / "cache", strict=False)
    assert (len(opened), opened.bad) == (1, [("train.jsonl:2", reason)])


def test_a_corpus_is_read_however_it_is_written(tmp_path: Path) -> None:
    right = rows(tevatron_rows(tmp_path / "plain", {}))
    corpus = (tmp_path / "plain/corpus.jsonl").read_text()
    for number, data in enumerate(
        (
            gzip.compress(corpus.encode()),
            corpus.encode("utf-16"),
            corpus.replace('"docid": 7', '"score": NaN, "docid": 7').encode(),
        )
    ):
        path = tevatron_rows(tmp_path / f"{number}", {}, {"positive_document_ids": [7]})
        path.with_name("corpus.jsonl").write_bytes(data)
        assert rows(path)[0] == right[0]
        assert rows(path)[1][1] == "Tea is green."


@pytest.mark.parametrize("corpus", ["docs.jsonl", "docs.parquet"])
def test_a_corpus_of_another_kind_or_encoding(corpus: str, tmp_path: Path) -> None:
    path = tevatron_rows(tmp_path, {"positive_document_ids": ["p2"]}, corpus="docs.jsonl")
    documents = [{"docid": "p2", "text": "Caf\u00e9"}]
    if corpus.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.Table.from_pylist(documents), tmp_path / corpus
        )
    else:
        line = json.dumps(documents[0], ensure_ascii=False)
        (tmp_path / corpus).write_bytes(line.encode("cp1252"))
    source = Source(path=str(path), corpus=str(tmp_path / corpus), encoding="cp1252")
    opened = open_source(source, tmp_path / "cache", strict=True)
    assert opened[0].positive.text == "Caf\u00e9"


def test_a_line_of_the_corpus_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tevatron_rows(tmp_path, {}, {"positive_document_ids": ["p9"]})
    with (tmp_path / "corpus.jsonl").open("ab") as file:
        file.write(b'{"docid": "p9", "text": "Caf\xe9"}\n')
    opened = open_source(Source(path=str(path)), tmp_path / "cache", strict=False)
    ((_, reason),) = opened.bad
    assert reason.startswith(
        "document 'p9' is not in corpus.jsonl; a line of it cannot be read (corpus.jsonl:5: "
    )


def test_a_title_without_a_text_is_a_passage(tmp_path: Path) -> None:
    passages = [{"title": "Kettle", "text": ""}, {"title": "Lamp", "text": ""}]
    negatives = [{"title": "Tea", "text": ""}]
    row = {"query": "q", "positive_passages": passages, "negative_passages": negatives}
    path = write(tmp_path, "a.jsonl", json.dumps(row) + "\n")
    opened = open_source(Source(path=str(path)), tmp_path / "cache", strict=True)
    assert [opened[number].positive for number in range(2)] == [
        Text("", "Kettle"),
        Text("", "Lamp"),
    ]
    assert opened[0].negatives == (Text("", "Tea"),)
    assert len(set(opened.positive_ids.tolist())) == 2


def test_a_file_of_llama_index_is_a_retrieval_set(tmp_path: Path) -> None:
    (found,) = open_suite(write(tmp_path, "qa.json", json.dumps(LLAMA_INDEX, indent=2))).sets
    assert (found.name, found.kind, found.units) == ("qa", "retrieval", 2)
    assert len(found.parts[1].texts) == 3
    lost = {**LLAMA_INDEX, "relevant_docs": {"q1": ["d1"], "q9": ["d1"]}}
    (found,) = open_suite(write(tmp_path, "lost.json", json.dumps(lost))).sets
    assert found.left_out == "1 judgements name ids that are not in the files"
