"""How hits are written: as grep does, as JSON lines, as names, as a run."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemb.index.hits import Hit
from gemb.io.colours import Paint
from gemb.io.text import cut, width_of, wrapped
from gemb.models.prompts import Prompt
from gemb.search.excerpts import Excerpt, LineContext, compared, excerpts
from gemb.search.forms import GrepLines, JsonHits, NameList, OutputForm, ShownAnswer, TrecRun
from gemb.search.queries import Query, Unsure
from gemb.search.terminal import TerminalHits, part_with
from gemb.texts.words import wanted_stems, words_of
from word_encoder import WordEncoder

PLAIN = Paint(is_on=False)
ORDERS = """def cancel_order(number):
    \"\"\"Cancel an order, and refund what was paid.\"\"\"
    order = find(number)
    order.state = "gone"
"""
NASTY = 'a"b\nc\x1b[31md'


def hit(**changes: object) -> Hit:
    settings = {"score": 0.714, "text": ORDERS, "path": "shop.py", "line": 11, "last_line": 14}
    return Hit(**{**settings, **changes})  # type: ignore[arg-type]


def shown(
    make: object,
    hits: Sequence[Hit],
    words: str = "refund an order",
    unsure: Unsure | None = None,
) -> bytes:
    written: list[bytes] = []
    form: OutputForm = make(written.append)  # type: ignore[operator]
    query = Query("q 1", words, "the query")
    form.show(ShownAnswer(query=query, excerpts=excerpts(words, hits), unsure=unsure))
    return b"".join(written)


def grep(hits: Sequence[Hit], before: int = 0, after: int = 0, **more: object) -> str:
    context = LineContext(before, after, is_inside=True)
    return shown(lambda write: GrepLines(write, context, PLAIN, **more), hits).decode()


def terminal(hits: Sequence[Hit], width: int = 60, *, is_on: bool = False, **more: object) -> str:
    context = LineContext(1, 2, is_inside=True)
    paint = Paint(is_on=is_on)
    make = lambda write: TerminalHits(write, context, paint, width, **more)  # noqa: E731
    return shown(make, hits).decode()


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("refund an order", 1),
        ("Refunding payments", 1),
        ("find the number", 2),
        ("is its state gone", 3),
        ("cancellation", 0),
        ("nothing of this is here", 0),
    ],
)
def test_the_best_line_shares_most_with_the_query_in_any_form_of_its_words(query: str, best: int):
    (found,) = excerpts(query, [hit()])
    assert found.best == best
    assert found.number(best) == 11 + best


def test_words_that_are_rare_in_the_hits_weigh_more():
    text = "order order order list\nthe order was lost\nthe parcel was lost\n"
    others = [hit(text="an order\n" * 20, line=1, last_line=20)]
    found = excerpts("order a parcel", [hit(text=text, line=1, last_line=3), *others])[0]
    assert found.lines[found.best] == "the parcel was lost"


class OneWord:
    """An encoder for which texts with the word `money` are near to everything, and no others."""

    profile = WordEncoder().profile

    def __init__(self) -> None:
        self.seen: list[str] = []

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.seen += texts
        return [np.array([1, "money" in text], np.int32) for text in texts]

    def encode(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([[ids[1], 1 - ids[1]] for ids in batch], np.float32)


def test_the_model_finds_the_best_line_where_words_do_not():
    text = "def refund(order):\n    give the money back\n    return order\n"
    one = hit(text=text, line=1, last_line=3)
    query, encoder = np.array([1, 0], np.float32), OneWord()
    prompt = Prompt("title: {title} | text: {text}")
    plain = excerpts("how are people repaid after an order", [one])
    assert plain[0].best != 1
    (found,) = compared(plain, query, encoder, prompt)  # type: ignore[arg-type]
    assert (found.best, found.good) == (1, frozenset({1}))
    assert "title: none | text: give the money back" in encoder.seen
    encoder = OneWord()
    (found,) = compared(excerpts("refund order", [one]), query, encoder, prompt)  # type: ignore[arg-type]
    assert (found.best, encoder.seen) == (0, []), "all words of the query are in the line"


def test_a_line_that_is_cut_ends_with_the_closing_token():
    class Recording(WordEncoder):
        def encode(self, batch):
            self.batches = [ids.tolist() for ids in batch]
            return super().encode(batch)

    encoder = Recording()
    encoder.profile = replace(encoder.profile, max_tokens=5)
    excerpt = excerpts("repaid", [hit(text="give all the money back to them\nnothing else\n")])
    compared(excerpt, np.ones(64, np.float32), encoder, Prompt("{text}"))  # type: ignore[arg-type]
    whole = encoder.tokenize(["give all the money back to them", "nothing else"])
    assert encoder.batches == [[*whole[0][:4].tolist(), 1], whole[1].tolist()]


def test_the_model_is_asked_about_few_lines():
    encoder = OneWord()
    hits = [hit(text=f"order {number}\nsome money\n" * 40) for number in range(10)]
    found = compared(
        excerpts("people repaid after an order", hits),
        np.array([1, 0], np.float32),
        encoder,  # type: ignore[arg-type]
        Prompt("{text}"),
    )
    assert 0 < len(encoder.seen) <= 8
    assert len(found) == 10


def test_identifiers_and_other_scripts_are_words():
    assert wanted_stems("cancelOrder HTTPError cancel_orders2") == {
        "cance",
        "order",
        "http",
        "error",
        "2",
    }
    assert [text.stem for text in words_of("der Bücherschrank, été")] == ["der", "büche", "été"]
    assert {"注文", "をキ"} <= wanted_stems("注文をキャンセル")


def test_words_that_stand_everywhere_count_only_where_there_are_no_others():
    assert wanted_stems("how do I cancel this") == {"cance"}
    assert wanted_stems("to be or not to be") == {"to", "be", "or", "not"}


def test_a_pipe_gets_path_line_and_the_best_line():
    line = '    """Cancel an order, and refund what was paid."""'
    assert grep([hit()]) == f"shop.py:12:{line}\n"
    assert grep([hit()], is_null=True) == f"shop.py\x0012:{line}\n"
    assert grep([hit(path=None)]) == f"{line}\n"
    assert grep([hit(path=None)], with_names=True) == f"(standard input):12:{line}\n"
    assert grep([hit(path=None, line=None, last_line=None, id=7)]) == f"7:{line}\n"


def test_lines_around_have_dashes_and_hits_have_two_between_them():
    first, second = grep([hit(), hit(path="b.py")], before=1, after=1).split("--\n")
    assert first.splitlines() == [
        "shop.py-11-def cancel_order(number):",
        'shop.py:12:    """Cancel an order, and refund what was paid."""',
        "shop.py-13-    order = find(number)",
    ]
    assert second == first.replace("shop.py", "b.py")


def test_lines_around_come_from_the_file_beyond_the_passage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"line {number}" for number in range(1, 11)]
    (tmp_path / "shop.py").write_text("\n".join(lines) + f"\n{ORDERS}after\n\nlast\n")
    context = LineContext(3, 4)
    found = shown(lambda write: GrepLines(write, context, PLAIN), [hit()]).decode()
    assert [line.split("py", 1)[1][:9] for line in found.splitlines()] == [
        *("-9-line 9", "-10-line ", "-11-def c", ':12:    "', "-13-    o", "-14-    o"),
        *("-15-after", "-16-"),
    ]


def test_no_line_follows_the_last_one_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text("\n" * 10 + f"{ORDERS}last\n")
    found = shown(lambda write: GrepLines(write, LineContext(0, 9), PLAIN), [hit()]).decode()
    assert found.splitlines()[-1].endswith("-last")


@pytest.mark.parametrize("content", [None, b"something else\n" * 30, b"\0" * 10])
def test_a_file_that_has_changed_or_is_gone_gives_no_lines_around(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "shop.py").write_bytes(content)
    found = shown(lambda write: GrepLines(write, LineContext(9, 9), PLAIN), [hit()]).decode()
    assert [line[:10] for line in found.splitlines()] == [
        *("shop.py-11", "shop.py:12", "shop.py-13", "shop.py-14"),
    ]


def test_a_part_of_a_very_long_line_stays_a_part_among_the_lines_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("before\n" + "x " * 900 + "the refund of an order\nafter\n")
    part = hit(path="long.txt", text="the refund of an order", line=2, last_line=2)
    found = shown(lambda write: GrepLines(write, LineContext(1, 1), PLAIN), [part]).decode()
    assert found == "long.txt-1-before\nlong.txt:2:the refund of an order\nlong.txt-3-after\n"


def test_a_row_of_a_table_has_one_number_whatever_lines_its_text_has():
    row = hit(path="a.jsonl", text="one\nthe refund\nthree", line=5, last_line=5)
    assert grep([row]) == "a.jsonl:5:the refund\n"


def test_names_show_nothing_that_a_terminal_obeys_unless_they_end_in_nul():
    assert grep([hit(path=NASTY)]).startswith('a"b⏎c\\x1b[31md:12:')
    assert grep([hit(path=NASTY)], is_null=True).startswith(NASTY + "\x0012:")
    assert "\x1b" not in terminal([hit(path=NASTY, title="t\x1b]0;x\x07")])


def test_a_terminal_gets_no_escape_code_of_a_text():
    text = "the \x1b[2Jrefund\tof\x07 it"
    one = hit(text=text, line=1, last_line=1)
    assert grep([one]) == f"shop.py:1:{text}\n"
    assert grep([one], is_terminal=True) == "shop.py:1:the \\x1b[2Jrefund  of\\x07 it\n"
    assert "\x1b" not in terminal([one])


def test_a_terminal_shows_files_by_their_best_hit_with_scores_and_lines():
    hits = [
        hit(title="shop.py › class Shop"),
        hit(path="b.py", score=0.6, text="refund", line=3, last_line=3),
        hit(score=0.5, text="the refunds", line=90, last_line=90),
    ]
    assert terminal(hits).splitlines() == [
        "shop.py",
        "0.71  class Shop",
        "11- def cancel_order(number):",
        '12:     """Cancel an order, and refund what was paid."""',
        "13-     order = find(number)",
        '14-     order.state = "gone"',
        "0.50",
        "90: the refunds",
        "",
        "b.py",
        "0.60",
        "3: refund",
    ]


def test_of_many_queries_a_terminal_says_why_one_has_no_hits():
    assert terminal([], with_query=True).splitlines()[1:] == ["nothing relevant"]
    make = lambda w: TerminalHits(w, LineContext(1, 2), PLAIN, 60, with_query=True)  # noqa: E731
    assert shown(make, [], unsure="time").endswith(b"\ntoo little time to tell\n")
    assert shown(make, [], unsure="failed").endswith(b"\nthe model failed\n")


def test_colours_are_those_of_grep_and_the_best_line_is_bold():
    one = hit(text="a refund here", line=1, last_line=1)
    lines = terminal([one], is_on=True).splitlines()
    assert lines == [
        "\x1b[1;35mshop.py\x1b[m",
        "\x1b[33m0.71\x1b[m",
        "\x1b[32m1\x1b[m\x1b[36m:\x1b[m \x1b[1ma \x1b[m\x1b[1;31mrefund\x1b[m\x1b[1m here\x1b[m",
    ]
    context = LineContext(0, 0)
    found = shown(lambda w: GrepLines(w, context, Paint(is_on=True)), [one])
    assert found == (
        b"\x1b[35mshop.py\x1b[m\x1b[36m:\x1b[m\x1b[32m1\x1b[m\x1b[36m:\x1b[m"
        b"a \x1b[1;31mrefund\x1b[m here\n"
    )


def test_of_a_long_line_a_terminal_shows_the_part_that_answers():
    text = "word " * 300 + "here is the refund of the order, at last " + "word " * 300
    one = hit(text=text.strip(), line=1, last_line=1)
    rows = terminal([one], width=40).splitlines()
    assert "refund" in "".join(rows)
    assert len(rows) == 5
    assert all(len(row) <= 40 for row in rows)
    whole = terminal([one], width=40, is_whole=True)
    assert " ".join(whole.split("1: ")[1].split()) == text.strip()


def test_lines_of_standard_input_are_one_row_each_on_a_terminal():
    lines = [
        hit(path=None, text="a refund", line=4, last_line=4),
        hit(path=None, text="b", line=1, last_line=1),
    ]
    assert terminal(lines) == "0.71  4: a refund\n0.71  1: b\n"


def test_columns_of_a_text_are_those_of_its_characters():
    assert width_of("Größe › Привет…") == 15
    assert width_of("e\N{COMBINING ACUTE ACCENT}") == 1
    assert width_of("漢字") == 4
    assert width_of("👍 ok") == 5
    assert cut("漢字漢字", 6) == "漢字…"


@given(st.text(max_size=60), st.integers(2, 20))
def test_rows_are_no_wider_than_asked_and_lose_no_word(text: str, width: int):
    rows = wrapped(text, width)
    assert all(width_of(row) <= width for row in rows)
    assert "".join("".join(rows).split()) == "".join(text.split())
    assert width_of(cut(text, width)) <= width


@given(st.text(max_size=200), st.integers(30, 100))
def test_a_part_of_a_text_is_no_longer_than_asked(text: str, most: int):
    assert len(part_with(text, frozenset(["a"]), most)) <= most + 2


def test_json_lines_have_the_passage_its_place_and_what_was_kept():
    one = hit(id="x", title="T", kept={"lang": "en", "score": "own", "nested": {"a": [1]}})
    found = json.loads(shown(JsonHits, [one]))
    assert found == {
        "rank": 1,
        "score": 0.714,
        "id": "x",
        "path": "shop.py",
        "line": 11,
        "last_line": 14,
        "best_line": 12,
        "title": "T",
        "text": ORDERS,
        "lang": "en",
        "nested": {"a": [1]},
        "kept": {"score": "own"},
    }
    estimate = hit(is_estimate=True, kept={"unsure": "own"})
    unsure = json.loads(shown(JsonHits, [estimate], unsure="time"))
    assert (unsure["estimated"], unsure["unsure"], unsure["kept"]) == (
        True,
        "time",
        {"unsure": "own"},
    )
    with_query = shown(lambda write: JsonHits(write, with_query=True), [one])
    assert list(json.loads(with_query))[:2] == ["query", "rank"]


def test_a_path_that_is_not_utf8_keeps_its_bytes_in_a_pipe_and_is_shown_on_a_terminal():
    name = b"caf\xe9.txt"
    one = hit(path=name.decode(errors="surrogateescape"))
    found = json.loads(shown(JsonHits, [one]))
    assert found["path"] == "caf\ufffd.txt"
    assert base64.b64decode(found["path_base64"]) == name
    names = lambda w: NameList(w, PLAIN, is_null=True, counts=False, most=None)  # noqa: E731
    assert shown(names, [one]) == name + b"\0"
    context = LineContext(0, 0)
    lines = shown(lambda w: GrepLines(w, context, PLAIN), [one])
    assert lines.startswith(name + b":12:")
    names = lambda w: NameList(w, PLAIN, is_null=False, counts=True, most=None)  # noqa: E731
    assert shown(names, [one]) == name + b":1\n"
    # What ends a line or is obeyed stays out of a pipe, too.
    odd = hit(path="\udce9\n\x1b[31m")
    assert shown(names, [odd]) == b"\xe9\xe2\x8f\x8e\\x1b[31m:1\n"
    assert grep([one], is_terminal=True).startswith("caf\\xe9.txt:12:")
    assert "caf\\xe9.txt" in terminal([one])


def test_names_come_once_best_first_and_counts_stand_behind_them():
    hits = [hit(path="b"), hit(path="a"), hit(path="b", line=90, last_line=93), hit(path="c")]

    def names(**settings: object) -> bytes:
        chosen = {"is_null": False, "counts": False, "most": None, **settings}
        return shown(lambda write: NameList(write, PLAIN, **chosen), hits)

    assert names() == b"b\na\nc\n"
    assert names(most=2) == b"b\na\n"
    assert names(counts=True) == b"b:2\na:1\nc:1\n"
    assert names(is_null=True) == b"b\0a\0c\0"
    assert names(is_null=True, counts=True) == b"b\x002\na\x001\nc\x001\n"


def test_a_run_has_six_columns_whatever_stands_in_the_ids():
    hits = [hit(id="a b%"), hit(path="dir/x y.md"), hit(path=None, line=3)]
    lines = [line.split(" ") for line in shown(TrecRun, hits).decode().splitlines()]
    assert [line[:4] for line in lines] == [
        ["q%201", "Q0", "a%20b%25", "1"],
        ["q%201", "Q0", "dir/x%20y.md:11", "2"],
        ["q%201", "Q0", "-:3", "3"],
    ]
    assert {len(line) for line in lines} == {6}
    assert float(lines[0][4]) == 0.714
    by_rank = shown(lambda write: TrecRun(write, by_rank=True), hits).decode().splitlines()
    assert [line.split(" ")[4] for line in by_rank] == ["1", "0.5", "0.333333333"]


def test_an_excerpt_of_an_empty_text_has_one_line():
    (found,) = excerpts("anything", [hit(text="\n", line=1, last_line=1)])
    assert isinstance(found, Excerpt)
    assert found.lines == ("",)


def test_megabytes_in_one_line_take_no_time():
    text = "order word " * 400_000 + "the refund"
    one = hit(text=text, line=1, last_line=1)
    began = time.process_time()
    rows = terminal([one], width=60).splitlines()
    assert len(rows) == 5
    assert grep([one]) == f"shop.py:1:{text}\n"
    assert time.process_time() - began < 5  # it was minutes
