from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import pytest

from gemb.errors import UsageError
from gemb.texts import inputs
from gemb.texts.inputs import Reading
from gemb.texts.lines import split
from gemb.texts.records import Fields, Record
from gemb.texts.tables import cell_rows


def read(path: Path | list[Path], **reading: object) -> list[Record]:
    paths = path if isinstance(path, list) else [path]
    found = list(inputs.read([str(path) for path in paths], Reading(**reading)))  # type: ignore[arg-type]
    return [record for record in found if record is not None]


def texts(records: list[Record]) -> list[object]:
    """The id with the text, or with the error's code."""
    return [(one.id, one.error.code if one.error else one.text) for one in records]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_lines_drop_a_bom_and_carriage_returns_and_need_no_last_newline(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
    assert texts(read(path)) == [(1, "one"), (2, "two"), (3, "empty"), (4, "three")]


def test_a_byte_that_is_no_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    (bad,) = read(write(tmp_path, "a.txt", b"ab\xff"))
    assert bad.error is not None
    assert (bad.error.code, bad.error.message) == (
        "invalid_utf8",
        "byte 3 (0xff) is no valid UTF-8",
    )


def test_nul_ended_texts_hold_newlines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b"one\ntwo\0three\0")
    assert texts(read(path, separator=b"\0")) == [(1, "one\ntwo"), (2, "three")]


def test_nul_bytes_in_a_line_are_text_and_a_note_names_the_option(tmp_path: Path, capsys) -> None:
    assert texts(read(write(tmp_path, "a.txt", b"a\0b\n"))) == [(1, "a\0b")]
    assert "for texts that end in NUL: -0" in capsys.readouterr().err


def test_json_lines_are_seen_by_their_first_line_and_that_is_said(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, "a.txt", '{"text": "one"}\n')
    assert texts(read(path)) == [(1, "one")]
    assert "is read as JSON lines" in capsys.readouterr().err
    assert texts(read(path, format="lines")) == [(1, '{"text": "one"}')]
    assert texts(read(write(tmp_path, "b.txt", "{not json\n"))) == [(1, "{not json")]


def test_bad_json_lines_fail_alone(tmp_path: Path) -> None:
    lines = [
        '{"text": "one"}',
        "nope",
        "",
        '{"text": "\\ud800"}',
        '{"other": 1}',
        '{"text": 3}',
        '{"text": null}',
        "[1]",
        '"six"',
    ]
    records = read(write(tmp_path, "a.jsonl", "\n".join(lines).encode() + b'\n{"text": "\xff"}'))
    assert texts(records) == [
        (1, "one"),
        (2, "bad_json"),
        (4, "bad_json"),
        (5, "missing_field"),
        (6, "bad_field"),
        (7, "empty"),
        (8, "bad_json"),
        (9, "six"),
        (10, "invalid_utf8"),
    ]


def test_fields_give_text_title_id_and_what_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a":"x","b":"y","t":"T","k":7,"n":[1],"z":0}\n')
    fields = Fields(text=("a", "b"), title="t", id="k", keep=("n", "absent"))
    (record,) = read(path, fields=fields)
    assert (record.text, record.title, record.id) == ("x\ny", "T", 7)
    assert record.kept == {"n": [1], "absent": None}
    (record,) = read(path, fields=Fields(text=("a",), keep_all=True))
    assert record.kept == {"b": "y", "t": "T", "k": 7, "n": [1], "z": 0}


def test_csv_rows_have_the_number_of_the_line_they_begin_on(tmp_path: Path) -> None:
    data = 'id,text\n1,"two\nlines"\n\n2,"say ""hi"""\n3\n4,d,e\n5,\n6,f'
    assert texts(read(write(tmp_path, "a.csv", data))) == [
        (2, "two\nlines"),
        (5, 'say "hi"'),
        (6, "bad_csv"),
        (7, "bad_csv"),
        (8, "empty"),
        (9, "f"),
    ]


def test_tsv_and_a_bad_byte_in_a_cell(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", b"text\tx\na,b\t1\n\xff\t2\nc\t\xff\n")
    assert texts(read(path)) == [(2, "a,b"), (3, "invalid_utf8"), (4, "c")]
    kept = read(path, fields=Fields(keep=("x",)))
    assert texts(kept)[-1] == (4, "invalid_utf8")


def test_a_table_without_a_clear_text_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,body\n1,x\n")
    with pytest.raises(UsageError, match=r"which column is the text\? --text-field id, body"):
        read(path)
    with pytest.raises(UsageError, match="no column 'txt'; it has: id, body"):
        read(path, fields=Fields(text=("txt",)))
    assert texts(read(write(tmp_path, "b.csv", "body\nx\n"))) == [(2, "x")]


def test_a_row_of_a_million_columns_is_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,b\n" + ",".join("a" * 1_000_000) + "\nx,y\n")
    records = read(path)
    assert texts(records) == [(2, "bad_csv"), (3, "x")]
    assert records[0].error is not None
    assert records[0].error.message == "1000000 columns; the first line has 2"


def test_an_idle_mark_inside_a_quoted_cell_does_not_end_the_row() -> None:
    blocks = iter([b"text\n", None, b'"a\n', None, b'b"\n', None, b"c"])
    rows = cell_rows(split(blocks, b"\n"), ",")
    found = list(inputs.table_records(rows, Fields(), "x", None))
    assert [one and one.text for one in found if one] == ["a\nb", "c"]
    assert list(itertools.takewhile(lambda one: one is None, found)) == [None]
    assert found[-2] is None or found[-3] is None, "a mark between rows is passed on"


def test_parquet_rows_as_pyarrow_wrote_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = {"body": ["one", None, "three"] * 1000, "n": list(range(3000)), "other": [0.5] * 3000}
    parquet.write_table(pyarrow.table(table), path)
    records = read(path, fields=Fields(text=("body",), id="n", keep=("other",)))
    assert texts(records)[:4] == [(0, "one"), (1, "empty"), (2, "three"), (3, "one")]
    assert len(records) == 3000
    assert records[-1].kept == {"other": 0.5}
    with pytest.raises(UsageError, match="no readable Parquet file"):
        read(write(tmp_path, "b.parquet", b"nothing"))


def test_gzip_is_read_as_what_its_name_says_without_gz(tmp_path: Path) -> None:
    for name, data in (
        ("a.txt.gz", "x\ny\n"),
        ("a.jsonl.gz", '{"text": "x"}\n{"text": "y"}\n'),
        ("a.csv.gz", "text\nx\ny\n"),
    ):
        path = write(tmp_path, name, gzip.compress(data.encode()))
        assert [record.text for record in read(path)] == ["x", "y"]
        assert inputs.total_size([str(path)], Reading()) is None
    path = write(tmp_path, "b.txt", "x\ny\n")
    assert inputs.total_size([str(path)], Reading()) == sum(record.size for record in read(path))


def test_several_files_have_ids_with_their_path(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.txt", "x\ny\n"), write(tmp_path, "b.jsonl", '{"text":"z"}')
    assert texts(read([a, b])) == [(f"{a}:1", "x"), (f"{a}:2", "y"), (f"{b}:1", "z")]


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file: two words; .* -e 'two words'"):
        inputs.check(["two words"])
    with pytest.raises(UsageError, match="is a folder"):
        inputs.check([str(tmp_path)])
    with pytest.raises(UsageError, match=r"given twice"):
        inputs.check(["-", "-"])
    with pytest.raises(UsageError, match=r"is compressed: zstdcat .*a\.txt\.zst > a\.txt$"):
        read(write(tmp_path, "a.txt.zst", b"\x28\xb5\x2f\xfd\x08\0"))
    with pytest.raises(UsageError, match="plain lines have no field 'body'"):
        read(write(tmp_path, "b.txt", "x\n"), fields=Fields(text=("body",)))


def test_an_id_keeps_its_digits_and_an_object_is_json(tmp_path: Path) -> None:
    lines = ["100000000000000000001", "1.50", "7", '{"a":[1]}', "true"]
    data = "".join(f'{{"text":"x","k":{value}}}\n' for value in lines)
    found = read(write(tmp_path, "a.jsonl", data), fields=Fields(id="k"))
    assert [record.id for record in found] == ["100000000000000000001", "1.50", 7, *lines[3:]]


def test_an_id_inside_of_another_field_keeps_its_digits(tmp_path: Path) -> None:
    rows = '{"text":"a","m":{"id":12345678901234567890123}}\n{"text":"b","m.id":1.50}\n'
    path = write(tmp_path, "a.jsonl", rows)
    records = read(path, fields=Fields(id="m.id", keep_all=True))
    assert texts(records) == [("12345678901234567890123", "a"), ("1.50", "b")]
    assert records[0].kept == {"m": {"id": 12345678901234567890123.0}}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_an_id_that_is_empty_or_null_is_missing(tmp_path: Path, name: str) -> None:
    data = {
        "a.csv": 'id,text\n1,a\n,b\n"",c\n',
        "a.tsv": "id\ttext\n1\ta\n\tb\n",
        "a.jsonl": '{"id":"1","text":"a"}\n{"id":"","text":"b"}\n{"id":null,"text":"c"}\n',
    }
    first, *others = read(write(tmp_path, name, data[name]), fields=Fields(id="id"))
    assert first.id == "1"
    errors = [(record.error.code, record.error.message) for record in others if record.error]
    empty = ("missing_field", "field 'id' is empty")
    null = ("missing_field", "field 'id' is null")
    assert errors == {"a.csv": [empty] * 2, "a.tsv": [empty], "a.jsonl": [empty, null]}[name]


def test_a_kept_field_nested_too_deep_is_an_error_of_its_row(tmp_path: Path) -> None:
    deep = '{"text":"a","x":' + "[" * 800 + "]" * 800 + "}\n"
    found = read(
        write(tmp_path, "a.jsonl", deep + '{"text":"b","x":[1]}'), fields=Fields(keep=["x"])
    )
    assert texts(found) == [(1, "bad_field"), (2, "b")]
    assert found[0].error is not None
    deepest = '{"text":"a","k":1e30,"x":' + "[" * 1010 + "]" * 1010 + "}"
    assert texts(read(write(tmp_path, "b.jsonl", deepest), fields=Fields(id="k"))) == [
        (1, "bad_json")
    ]
    assert found[0].error.message == "field 'x' is nested over 200 deep"


def test_a_quote_that_is_never_closed_is_an_error_with_its_line(tmp_path: Path) -> None:
    found = read(write(tmp_path, "a.csv", 'text,b\nx,y\n"two\nlines","open\nz,w\n'))
    assert texts(found) == [(2, "x"), (3, "bad_csv")]
    assert found[1].error is not None
    assert found[1].error.message == "a quote opened on line 4 is never closed"


def test_a_quote_inside_a_cell_is_read_leniently(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path, "a.csv", 'text\n"a"b\nc"d\n'))) == [(2, "ab"), (3, 'c"d')]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"text\nhello\n', "a quote opened on line 1 is never closed"),
        (b"a" * (17 << 20) + b"\nhello\n", "a row may have 16777216 bytes"),
        (b"text,caf\xe9\nhello,1\n", "is no valid UTF-8"),
        (b"\x28\xb5\x2f\xfd\n\n", r"a\.csv is compressed: zstdcat "),
    ],
)
def test_a_table_whose_header_cannot_be_read_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(write(tmp_path, "a.csv", data), fields=Fields(keep_all=True))


def test_a_json_array_is_refused_with_the_command_that_makes_lines(tmp_path: Path) -> None:
    for name, data in (("a.json", '[{"text":"x"}]'), ("b.json", "[\n{}]"), ("c", '[{"text":"x"}]')):
        path = write(tmp_path, name, data)
        with pytest.raises(UsageError, match=r"is one JSON array; .* jq -c '\.\[\]' .*gemb embed"):
            read(path)
        assert len(read(path, format="lines")) >= 1
    assert texts(read(write(tmp_path, "d.txt", "[1] a note\n[2]\n"))) == [
        (1, "[1] a note"),
        (2, "[2]"),
    ]


def test_a_field_that_no_json_line_has_is_said_with_a_count(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, "a.jsonl", '{"text":"a","k":1}\n{"text":"b"}\n')
    read(path, fields=Fields(title="titel", keep=("k",)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("a.jsonl: none of its 2 rows has a field 'titel'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused_alike(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "x")
    for closed in (path, tmp_path):
        closed.chmod(0)
        with pytest.raises(UsageError, match=r"a\.txt: permission denied; check its permissions"):
            inputs.check([str(path)])
        closed.chmod(0o700)


def test_a_text_that_is_too_long_for_a_file_name_gets_the_hint() -> None:
    with pytest.raises(UsageError, match="to embed the words"):
        inputs.check(["word " * 2000])
