"""Odd rows into `gemb embed`, `ROWS` a case: of each the id, place and vector are checked.

The input is lines, texts that end in NUL, JSON lines, CSV, TSV or Parquet, in several encodings;
the output JSON lines or CSV. What comes out is known beforehand: a row that is right has the vector
that the model gives to its text, each other one an error of its kind.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Case, Ended, Fault, gemb, judge, main

from fake_backend import install, write_model

ROWS = 200
PROMPT = "title: none | text: "
WORDS = (
    *("red", "lamp", "kettle", "42", "{", "}", "[", '"', "'", ",", ";", "\\", "/", "|", "#", "-"),
    *(
        "é",
        "e\u0301",
        "中文",
        "日本",
        "שלום",
        "\U0001f600",
        "\u200b",
        "\u00a0",
        "\u2028",
        "\x85",
        "\x0b",
    ),
    *("\x0c", "\x1b[31m", "\x07", "\x7f", "=1+1", "@x", "a,b", "a;b", 'a"b', '""', "null", "NaN"),
    *(
        "title:",
        "<bos>",
        "\ud7ff",
        "\uffff",
        "x" * 300,
        "\u00ad",
        "\ufe0f",
        "%s",
        "$(x)",
        "\\u0000",
    ),
)
UNSEEN = ("", " ", "\u200b", "\u00ad", "\x01", "\u3000", "\t", "\x0b", "\ufe0f", "\u2060", "\u2800")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "gzip", "gb18030")


@dataclass
class Row:
    """A row, and what becomes of it."""

    id: int | str
    text: str
    error: str = ""  # code; empty: it has a vector


@dataclass
class Input:
    """A file of rows."""

    data: bytes
    options: list[str]
    rows: list[Row]
    name: str
    encodable: bool = True  # it is text: another encoding may hold it


def campaign(folder: Path) -> Case:
    """Return the case: a file of rows through `gemb embed`."""
    plugins = install(folder / "plugins")
    sys.path.insert(0, str(plugins))
    model = write_model(folder / "model.fake")
    fake = importlib.import_module("gemb_fake")
    encoder = fake.FakeEncoder(fake.FakeModel())
    for module in ("gemb.commands.embed", "gemb.embedding.run", "orjson", "gemb.embedding.output"):
        importlib.import_module(module)  # once for all children

    def case(dice: random.Random, place: Path) -> str:
        make = dice.choice((lines, nul_ended, json_lines, csv_rows, tsv_rows, parquet_rows))
        given = make(dice)
        _mark_collisions(given.rows, encoder, fake.word_id)
        data = written(given, dice)
        path = place / given.name
        path.write_bytes(data)
        on_error = dice.choice(("inline", "inline", "skip"))
        form = dice.choice(("jsonl", "jsonl", "csv"))
        options = [*given.options, "--on-error", on_error, "-O", form, "-m", model]
        is_stream = not path.name.endswith(".parquet") and dice.random() < 0.3
        if is_stream and path.suffix in (".csv", ".tsv", ".jsonl"):
            options += ["-I", path.suffix[1:]]
        names = ["-"] if is_stream else [str(path)]
        ended = gemb("embed", *options, *names, folder=place, stdin=data if is_stream else b"")
        rows = [row for row in given.rows if not row.error or on_error == "inline"]
        code = 3 if any(row.error for row in given.rows) else 0
        if judge(ended) != code:
            raise Fault(f"exit code {ended.code}, not {code}", ended.stderr)
        found = read_json(ended) if form == "jsonl" else read_csv(ended)
        check(rows, found, encoder)
        return make.__name__

    return case


def _mark_collisions(rows: list[Row], encoder: Any, word_id: Callable[[str], int]) -> None:
    """Mark rows of which a word has the id of one at which the fake model fails by intention."""
    good = [one for one in rows if not one.error]
    for one, ids in zip(good, cut_ids(good, encoder), strict=True):
        if word_id("poison") in ids:
            one.error = "failed"
        elif word_id("notfinite") in ids:
            one.error = "not_finite"


def cut_ids(rows: list[Row], encoder: Any) -> list[np.ndarray[Any, Any]]:
    """Return the token ids of each row with its prompt, as many as the model takes."""
    most = encoder.model.max_tokens
    ids = encoder.tokenize([PROMPT + one.text for one in rows])
    return [np.append(one[: most - 1], one[-1:]) if len(one) > most else one for one in ids]


def text_of(dice: random.Random, *, without: str = "") -> str:
    """Return a text, most often one that can be seen, without these characters."""
    if dice.random() < 0.06:
        return dice.choice([text for text in UNSEEN if not set(text) & set(without)])
    glue = dice.choice((" ", " ", " ", "", "\n", "\r", "\t", "  "))
    text = glue.join(dice.choices(WORDS, k=dice.randint(1, 12) if dice.random() < 0.9 else 80))
    return "".join(" " if character in without else character for character in text)


def row(number: int | str, text: str) -> Row:
    """Return a row of a text, which has a vector if it can be seen."""
    is_seen = any(not (c.isspace() or c in "".join(UNSEEN)) and _has_ink(c) for c in text)
    return Row(number, text, "" if is_seen else "empty")


def _has_ink(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp")


def lines(dice: random.Random) -> Input:
    """Return texts, one a line."""
    end = dice.choice(("\n", "\n", "\r\n", "\r"))
    ends = "\n\r"
    rows = [Row(1, "first row")]
    rows += [row(n, text_of(dice, without=ends + "\0")) for n in range(2, ROWS + 1)]
    data = "".join(one.text + end for one in rows).encode()
    if dice.random() < 0.3:
        data = data.removesuffix(end.encode())
    given = Input(data, dice.choice(([], ["-I", "lines"])), rows, "rows.txt")
    if given.rows[-1].text == "" and not data.endswith(end.encode()):
        given.rows.pop()  # nothing stands after the last end
    return given


def nul_ended(dice: random.Random) -> Input:
    """Return texts that end in NUL."""
    rows = [Row(1, "first row")]
    rows += [row(n, text_of(dice, without="\0")) for n in range(2, ROWS + 1)]
    data = "".join(one.text + "\0" for one in rows).encode()
    return Input(data, ["-0", "-I", "lines"], rows, "rows.bin", encodable=False)


def json_lines(dice: random.Random) -> Input:
    """Return JSON lines, with bad ones among them."""
    parts: list[str] = []
    rows: list[Row] = []
    has_ids = dice.random() < 0.5
    number = 0
    while len(rows) < ROWS:
        number += 1
        if dice.random() < 0.03 and rows:
            parts.append(dice.choice(("", "  ", "\t")))
            continue
        text = text_of(dice) + dice.choice(("", "", "", "\0x", "\ny"))
        own: Any = dice.choice(
            (number * 7, f"id {number}", f'"{number}",\n', "é" * 3 + str(number))
        )
        one = row(own if has_ids else number, text)
        values: dict[str, Any] = {"id": own, "other": dice.choice((1, None, [1], float("nan")))}
        values["text"] = text
        encoded = None
        bad = dice.random() if rows else 1.0
        if bad < 0.02:
            del values["text"]
            one.error = "missing_field"
        elif bad < 0.04:
            values["text"] = dice.choice((7, True, [text], {"a": text}))
            one.error = "bad_field"
        elif bad < 0.05:
            values["text"], one.error = None, "empty"
        elif bad < 0.07:
            encoded = dice.choice(
                ('{"text": "x"', "{]", '{"text": "x"} y', "nul", '{"text": "\\x"}')
            )
            one = Row(number, "", "bad_json")
        elif bad < 0.08:
            encoded = '{"id": 1, "text": "\\ud800"}'
            one = Row(number, "", "bad_json")
        rows.append(one)
        parts.append(encoded or json.dumps(values, ensure_ascii=dice.random() < 0.5))
    end = dice.choice(("\n", "\r\n"))
    options = ["--id-field", "id"] if has_ids else []
    return Input((end.join(parts) + end).encode(), options, rows, "rows.jsonl")


def csv_rows(dice: random.Random) -> Input:
    """Return a table with quotes."""
    end = dice.choice(("\n", "\r\n"))
    target = io.StringIO(newline="")
    writer = csv.writer(
        target, lineterminator=end, quoting=dice.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
    )
    writer.writerow(["id", "text"])
    rows = []
    for n in range(ROWS):
        text = text_of(dice).replace("\r", "\n")  # Python's csv does not quote a lone one
        rows.append(row(f"r{n}", text))
        writer.writerow([f"r{n}", text])
        if dice.random() < 0.02:
            target.write(end)
        if dice.random() < 0.02:
            target.write(f"x,y,z{end}")
            rows.append(Row("", "", "bad_csv"))
    data = target.getvalue().encode()
    return Input(data, ["--id-field", "id", "--text-field", "text"], rows, "rows.csv")


def tsv_rows(dice: random.Random) -> Input:
    """Return a table without quotes."""
    end = dice.choice(("\n", "\r\n"))
    rows = [row(f"r{n}", text_of(dice, without="\t\n\r")) for n in range(ROWS)]
    body = "".join(f"{one.id}\t{one.text}{end}" for one in rows)
    data = f"id\ttext{end}{body}".encode()
    return Input(data, ["--id-field", "id", "--text-field", "text"], rows, "rows.tsv")


def parquet_rows(dice: random.Random) -> Input:
    """Return a Parquet file; without pyarrow JSON lines."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return json_lines(dice)
    rows = [row(n, text_of(dice) + dice.choice(("", "\0"))) for n in range(1, ROWS + 1)]
    texts: list[str | None] = [one.text for one in rows]
    for n in dice.sample(range(ROWS), 3):
        texts[n], rows[n].error = None, "empty"
    target = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), target)
    return Input(target.getvalue(), [], rows, "rows.parquet", encodable=False)


def written(given: Input, dice: random.Random) -> bytes:
    """Return the file's bytes, in another encoding perhaps."""
    encoding = dice.choice(ENCODINGS) if given.encodable else "utf-8"
    if encoding == "gzip":
        return gzip.compress(given.data, 1)
    if encoding == "utf-8":
        return given.data
    if encoding == "gb18030":
        given.options += ["--encoding", "gb18030"]
    return given.data.decode().encode(encoding)


Found = list[tuple[str, "np.ndarray[Any, Any] | None", str]]  # id, vector, code of the error


def read_json(ended: Ended) -> Found:
    """Return the rows of JSON lines."""
    found: Found = []
    for line in ended.stdout.split(b"\n")[:-1]:
        value = json.loads(line)
        error = value.get("error")
        vector = None if error else np.array(value["embedding"], np.float32)
        found.append((str(value["id"]), vector, error["code"] if error else ""))
    return found


def read_csv(ended: Ended) -> Found:
    """Return the rows of CSV, as Python reads it."""
    rows = csv.reader(io.StringIO(ended.stdout.decode(), newline=""))
    names = next(rows)
    found: Found = []
    for cells in rows:
        values = dict(zip(names, cells, strict=True))
        numbers = [values[name] for name in names if name[0] == "v" and name[1:].isdigit()]
        error = values.get("error", "")
        vector = None if error else np.array(list(map(float, numbers)), np.float32)
        found.append((values["id"], vector, error.partition(":")[0]))
    return found


def check(rows: list[Row], found: Found, encoder: Any) -> None:
    """Raise Fault where a row is lost, out of order, or has not what it should have."""
    if len(found) != len(rows):
        raise Fault("other number of rows", f"{len(found)} of {len(rows)}")
    good = [one for one in rows if not one.error]
    vectors = iter(encoder.encode(cut_ids(good, encoder)) if good else ())
    of_text: dict[str, bytes] = {}
    for one, (row_id, vector, error) in zip(rows, found, strict=True):
        if one.error != error:
            raise Fault(f"error '{error}', not '{one.error}'", repr(one))
        if one.error != "bad_csv" and str(one.id) != row_id:
            raise Fault("another id", f"{row_id!r}: {one!r}")
        if error:
            continue
        assert vector is not None, "a row without an error"
        if not np.allclose(vector, next(vectors), atol=1e-5):
            raise Fault("another vector than the text's", repr(one))
        if of_text.setdefault(one.text, vector.tobytes()) != vector.tobytes():
            raise Fault("equal texts, other vectors", repr(one))


if __name__ == "__main__":
    main(__file__, campaign)
