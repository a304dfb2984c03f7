"""What is said before the first step: right numbers, no training on the evaluation, safe lines."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gemb.datasets.batches import BatchOrder
from gemb.datasets.overlap import TextsOf, evaluation_texts, hold_out, overlapping
from gemb.datasets.rows import Rows, open_source, prompts_of
from gemb.datasets.sets import open_suite
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.models.prompts import Prompt
from gemb.recipe.schema import Batch, Evaluation, Init, Prompts, Recipe, Source
from gemb.training.preflight import Preflight, preflight


@dataclass
class Characters:
    """A renderer whose tokens, characters, can be counted by hand."""

    sources: Sequence[Rows]

    @property
    def prompts(self) -> list[tuple[Prompt, Prompt]]:
        return [prompts_of(rows.source, {}) for rows in self.sources]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(map(ord, text)) for text in texts]


def source(path: Path, rows: Sequence[object], **settings: object) -> Rows:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    words = Prompts(query="Q:{text}", positive="{title}|{text}")
    whole = Source(path=str(path), prompts=words, **settings)  # type: ignore[arg-type]
    return open_source(whole, path.parent / "cache", strict=False)


def check(
    sources: Sequence[Rows],
    *,
    steps: int = 7,
    evaluation: Path | None = None,
    shared_documents: bool = False,
    held_out: Path | None = None,
    **batch: int,
) -> Preflight:
    settings = Batch(**{"pairs": 2, **batch})
    if held_out:
        hold_out(sources, open_suite(held_out))
    recipe = Recipe(
        stage="finetune",
        init=Init(model="none"),
        data=tuple(rows.source for rows in sources),
        held_out=(held_out.name,) if held_out else (),
        batch=settings,
        eval=Evaluation(shared_documents=shared_documents),
    )
    return preflight(
        recipe,
        Characters(sources),
        BatchOrder(sources, pairs=settings.pairs, seed=1),
        steps=steps,
        suite=open_suite(evaluation) if evaluation else None,
        overlap_listing=evaluation.parent / "overlap.tsv" if evaluation else None,
    )


def test_the_numbers_are_those_of_the_data(tmp_path: Path) -> None:
    rows = [
        {"query": "a" * 8, "positive": "b" * 15, "title": "t" * 4, "negatives": ["n" * 5, "m"]},
        {"query": "a" * 8, "positive": "c" * 5},
        {"query": "d" * 18, "positive": "b" * 15},
        {"query": "d" * 18, "positive": "b" * 15, "title": "other"},
        {"query": "d"},
    ]
    first = source(tmp_path / "first.jsonl", rows)
    second = source(tmp_path / "second.jsonl", [[f"q{row}", f"p{row}"] for row in range(12)])
    found = check([first, second], max_tokens=20)
    one, two = found.sources
    assert (one.rows, one.bad, two.rows, two.bad) == (4, 1, 12, 0)
    assert (found.rows, found.bad, found.steps, found.epochs) == (16, 1, 7, 7 * 2 / 16)
    assert (one.share, two.share) == (0.25, 0.75)
    assert one.passes == pytest.approx(7 * 0.25 * 2 / 4)
    assert (one.duplicates, one.equal_queries, one.equal_positives) == (1, 2, 2)
    assert (two.duplicates, two.equal_queries, two.equal_positives) == (0, 0, 0)
    # By hand: Q: and the query; the title (or none), a bar, and the text; one negative a row.
    query, positive = [10, 10, 20, 20], [20, 10, 20, 21, 10]
    for lengths, sizes in (
        (one.query, query),
        (one.positive, positive),
        (one.tokens, query + positive),
    ):
        assert lengths.median == np.median(sizes)
        assert lengths.p95 == pytest.approx(np.quantile(sizes, 0.95))
        assert lengths.max == max(sizes)
    assert one.cut == pytest.approx(1 / 9)
    assert one.row_tokens == pytest.approx((sum(query) + sum(positive) - 1) / 4)
    row_tokens = 0.25 * one.row_tokens + 0.75 * (4 * 10 + 7 * 10 + 5 * 2 + 8 * 2) / 12
    assert found.step_tokens == pytest.approx(2 * row_tokens, rel=0.05)
    assert found.total_tokens == pytest.approx(7 * found.step_tokens)
    assert [example.source for example in found.examples] == ["second", "first", "second"]
    again = check([first, second], max_tokens=20)
    assert again == found


def test_a_positive_that_is_its_own_negative_is_told(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "positive": "Same  text", "negatives": ["same text"]},
        {"query": "b", "positive": "p", "negatives": ["n", "p"]},
        {"query": "c", "positive": "other", "negatives": ["text"]},
    ]
    triplets = source(tmp_path / "triplets.jsonl", rows)
    told = "triplets: 1 of 3 rows have their positive as a negative, too; training works against"
    assert any(line.startswith(told) for line in check([triplets]).lines())
    assert check([triplets], negatives=2).sources[0].contradictions == 2
    assert check([triplets], negatives=0).sources[0].contradictions == 0


def test_texts_that_have_a_prompt_already_are_told(tmp_path: Path) -> None:
    rows = [["plain", "text"], ["task: search result | query: b", "p"]]
    prompted = source(tmp_path / "pairs.jsonl", rows)
    told = "pairs: texts begin with a prompt, 'task: search result | query: ', and the source's is"
    assert any(line.startswith(told) for line in check([prompted]).lines())
    plain = source(tmp_path / "plain.jsonl", [["a", "b"], ["task: do it", "title: x"]])
    assert not any("begin with a prompt" in line for line in check([plain]).lines())
    bare = Source(
        path=str(tmp_path / "pairs.jsonl"), prompts=Prompts(query="{text}", positive="{text}")
    )
    as_they_are = open_source(bare, tmp_path / "cache", strict=False)
    assert not any("begin with a prompt" in line for line in check([as_they_are]).lines())


def test_a_step_has_all_its_batches(tmp_path: Path) -> None:
    rows = source(tmp_path / "rows.jsonl", [[f"q{row}", f"p{row}"] for row in range(12)])
    one, three = check([rows], steps=9), check([rows], steps=3, accumulate=3)
    assert (three.steps, three.pairs, three.epochs) == (3, 6, one.epochs)
    assert three.step_tokens == pytest.approx(3 * one.step_tokens)
    assert three.total_tokens == pytest.approx(one.total_tokens)
    assert three.sources[0].passes == one.sources[0].passes


def test_the_examples_show_what_the_model_sees(tmp_path: Path) -> None:
    row = {"query": "sky?", "positive": "blue", "title": "Air", "negatives": ["x", "y"]}
    found = check([source(tmp_path / "a.jsonl", [row])], pairs=1, negatives=1)
    (example,) = found.examples
    assert example.place == "a.jsonl:1"
    sides = (("query", "Q:sky?"), ("positive", "Air|blue"), ("negative", "none|x"))
    assert example.sides == sides
    lines = found.lines()
    assert "  query     Q:sky?" in lines
    assert "  negative  none|x" in lines
    assert json.loads(json.dumps(found.to_json()))["examples"][0]["sides"] == [*map(list, sides)]


def test_no_character_of_the_data_is_obeyed_by_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;mine\x07\x1b[2J\u202eevil\u2066\r\n\x9b31m"
    rows = [{"query": f"{evil}{row}", "positive": evil * 100, evil: 1} for row in range(3)]
    bad = {"query": evil, evil: 2}
    data = source(tmp_path / "a.jsonl", [*rows, bad], name=f"name{evil}")
    found = check([data], pairs=1)
    text = "".join(found.lines())
    assert text.isprintable()
    assert "\\x1b[2J\\u202eevil" in text
    assert json.dumps(found.to_json())


def test_the_lines_are_a_table_with_its_columns_under_each_other(tmp_path: Path) -> None:
    rows = [[f"q{row}", "p" * row] for row in range(1, 1200)]
    sources = [source(tmp_path / "a.jsonl", rows[:3]), source(tmp_path / "longer.jsonl", rows)]
    lines = check(sources).lines()
    end = lines[0].index("  format")
    for line, count in zip(lines[1:3], ("3", "1,199"), strict=True):
        assert line[end:].startswith("  JSONL (query, positive)")
        assert line[: lines[0].index("rows") + 4].endswith(f" {count}")


def evaluation(folder: Path, texts: Sequence[str]) -> Path:
    folder = folder / "dev"
    folder.mkdir()
    lines = [
        "sentence1\tsentence2\tscore",
        *(f"{text}\tother {text}\t{at}.5" for at, text in enumerate(texts)),
    ]
    (folder / "mine.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("row", "side"),
    [
        ({"query": "Is the  SKY blue ", "positive": "p"}, "query"),
        ({"query": "q", "positive": "other is the sky blue"}, "positive"),
        ({"query": "q", "positive": ["p", "is\nthe sky blue"]}, "positive"),
        ({"query": "q", "positive": "p", "negatives": ["n", "IS THE SKY BLUE"]}, "negative"),
    ],
)
def test_a_training_text_of_the_evaluation_stops_the_run(
    row: dict[str, object], side: str, tmp_path: Path
) -> None:
    rows = [[f"query {number}", f"positive {number}"] for number in range(40)]
    sources = [
        source(tmp_path / "clean.jsonl", rows),
        source(tmp_path / "spoilt.jsonl", [{"query": "a", "positive": "b"}, row, row]),
    ]
    dev = evaluation(tmp_path, ["is the sky blue", "how far is the moon"])
    with pytest.raises(UsageError) as stopped:
        check(sources, evaluation=dev, pairs=1)
    message = str(stopped.value)
    assert message.startswith(
        "2 training rows hold texts of the evaluation (2 of spoilt), first spoilt.jsonl:2: its "
        f"{side} '"
    )
    assert "stands in mine" in message
    assert message.isprintable()
    listing = (tmp_path / "overlap.tsv").read_text().splitlines()
    assert [line.split("\t")[:3] for line in listing] == [
        ["spoilt.jsonl:2", "mine", side],
        ["spoilt.jsonl:3", "mine", side],
    ]
    found = check(sources[:1], evaluation=dev)
    assert found.evaluation_texts == 4
    assert any("none: no training text is one of the 4 texts" in line for line in found.lines())


def test_what_a_probe_is_trained_on_may_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for part, texts in (("train", ["shared", "other"]), ("val", ["tested"])):
        lines = [json.dumps({"text": text, "label": str(len(text) % 2)}) for text in texts]
        (tmp_path / "dev" / f"topic-{part}.jsonl").write_text("\n".join(lines))
    dev = tmp_path / "dev"
    found = check([source(tmp_path / "a.jsonl", [["shared", "x"], ["q", "p"]])], evaluation=dev)
    assert found.evaluation_texts == 1
    with pytest.raises(UsageError, match="its query 'Tested' stands in topic-val"):
        check([source(tmp_path / "b.jsonl", [["Tested", "x"], ["q", "p"]])], evaluation=dev)


def corpus(folder: Path) -> Path:
    folder = folder / "dev"
    folder.mkdir()
    rows = [{"_id": f"d{row}", "text": f"document {row}"} for row in range(9)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a question"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    return folder


def test_a_corpus_that_is_shared_can_be_allowed_and_its_questions_cannot(tmp_path: Path) -> None:
    dev = corpus(tmp_path)
    shared = source(tmp_path / "a.jsonl", [["mine", "Document 3"], ["yours", "new"]])
    words = r"1 training rows hold texts of the evaluation, all of them as documents of a corpus \("
    with pytest.raises(UsageError, match=words):
        check([shared], evaluation=dev)
    found = check([shared], evaluation=dev, shared_documents=True)
    assert found.shared_rows == 1
    assert found.lines()[-1].startswith("overlap  1 rows have documents of the 10 texts of ")
    for at, pair in enumerate((["A question", "x"], ["x", "a question"], ["document 1", "x"])):
        spoilt = source(tmp_path / f"{at}.jsonl", [["mine", "Document 3"], pair])
        with pytest.raises(UsageError, match=rf"1 training rows .* first {at}\.jsonl:2: .* data$"):
            check([spoilt], evaluation=dev, shared_documents=True)


def test_rows_of_a_set_that_is_held_out_are_counted_and_do_not_stop_the_run(tmp_path: Path) -> None:
    dev = corpus(tmp_path)
    lines = [
        ["mine", "Document 3"],
        ["yours", "new"],
        ["theirs", "a"],
        {"query": "A  QUESTION", "positive": ["x", "y"]},  # two rows, both of them
        ["whose", "b"],
    ]
    spoilt = source(tmp_path / "a.jsonl", lines)
    clean = source(tmp_path / "b.jsonl", [["mine", "other"], ["yours", "new"]])
    found = check([spoilt, clean], held_out=dev)
    assert spoilt.held_out.tolist() == [0, 3, 4]
    assert found.lines()[-1] == ("held out  3 rows have a text of dev and are never drawn: 3 of a")
    assert not any(line.startswith("overlap") for line in found.lines())
    assert (
        check([spoilt, clean], held_out=dev, evaluation=dev)
        .lines()[-2]
        .startswith("overlap   none: no training text is one of the 10 texts of ")
    )
    assert check([clean], held_out=dev).lines()[-1].endswith("none: no training text is one of dev")
    with pytest.raises(
        UsageError, match=r"^c: each of its 1 rows holds a text of .*dev, which held"
    ):
        check([source(tmp_path / "c.jsonl", [["document 1", "x"]])], held_out=dev)
    beside = tmp_path / "pairs.tsv"
    beside.write_text("sentence1\tsentence2\tscore\nyours\tnothing\t0.5\none\ttwo\t0.25\n")
    with pytest.raises(
        UsageError, match=r"2 training rows .*1 of a, 1 of b.*name the set in held_out"
    ):
        check([spoilt, clean], held_out=dev, evaluation=beside)


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def test_overlap_is_that_of_plain_sets(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    words = ["Red", "red ", "BLUE", "blue\tgreen", "Blue green", "straße", "STRASSE", "é", "e"]
    words += ["ﬁne", "fine", "Ｒｅｄ", "e\N{COMBINING ACUTE ACCENT}"]
    pairs = [[str(one) for one in random.choice(words, 2)] for _ in range(200)]
    rows = source(tmp_path / "a.jsonl", pairs)
    for sample in (words[:1], ["strasse", "x"], ["blue green", "É"], ["FINE"], ["nothing"], []):
        wanted = [
            number
            for number, pair in enumerate(pairs)
            if set(map(plain, pair)) & set(map(plain, sample))
        ]
        assert overlapping(rows, evaluation_texts([TextsOf("a", sample)])).tolist() == wanted


def test_prompts_are_the_tasks_unless_the_recipe_has_words() -> None:
    dictionary = {"query": "ask: ", "document": "title: none | read: ", "STS": "same: "}
    query, positive = prompts_of(Source(path="a"), dictionary)
    assert query.render("x") == "ask: x"
    assert positive.render("x", "T") == "title: T | read: x"
    assert positive.render("x") == "title: none | read: x"
    both = prompts_of(Source(path="a", task="similarity"), dictionary)
    assert [one.render("x", "T") for one in both] == ["same: x", "same: x"]
    code, document = prompts_of(Source(path="a", task="code"), {})
    assert code.render("x") == "task: code retrieval | query: x"
    assert document.render("x") == "title: none | text: x"
    for task in ("retrieval", "qa", "fact", "classification", "clustering"):
        assert all(prompts_of(Source(path="a", task=task), {})), task
    own = Source(path="a", prompts=Prompts(query="Q {text}"))
    assert prompts_of(own, dictionary)[0].render("x") == "Q x"
    assert prompts_of(own, dictionary)[1].render("x") == "title: none | read: x"
    with pytest.raises(UsageError, match=r"^prompts\.positive 'text' has no \{text\}"):
        prompts_of(Source(path="a", prompts=Prompts(positive="text")), dictionary)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("zażółć 空 👩‍🚀", "zażółć 空 👩‍🚀"),
        ("a\tb\nc", "a⇥b⏎c"),
        ("\x1b[31m\x00\x7f\x85", "\\x1b[31m\\x00\\x7f\\x85"),
        ("\u202e\u2028\ud800\U000e0001", "\\u202e\\u2028\\ud800\\U000e0001"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_keeps_its_ends_and_says_how_much_is_gone() -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(1000))
    assert visible(text, 1000) == text
    assert visible(text, 90) == f"{text[:60]} … 910 more characters … {text[-30:]}"
