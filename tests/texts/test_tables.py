"""Tables as people have them: other delimiters, quotes, headers, values of other types."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemb.datasets.files import open_file
from gemb.errors import UsageError
from gemb.texts import inputs
from gemb.texts.inputs import Reading
from gemb.texts.records import Fields, as_json
from lfs_pointer import OLD_POINTER, POINTER

QUOTE_OPENS = (
    b'id\ttext\n1\tFirst line of words\n2\t"Second is an opened quote\n3\tThird line\n'
    b'4\tFourth" line\n5\tFifth\n'
)
PANDAS = b'query\tpositive\nq1\t"He said ""stop"" now"\nq2\t"Two\nlines here"\nq3\tThird plain\n'


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path, *text: str, **reading: object) -> list[str]:
    """The texts, or the errors' codes with their messages."""
    reading.setdefault("fields", Fields(text=text))
    records = inputs.read([str(path)], Reading(**reading))  # type: ignore[arg-type]
    return [
        f"{one.error.code}: {one.error.message}" if one.error else one.text
        for one in records
        if one
    ]


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_csv_with_another_delimiter_is_read_by_its_columns(
    sign: str, tmp_path: Path, capsys
) -> None:
    path = write(tmp_path, "a.csv", f"id{sign}text\r\n1{sign}A lamp, lit\r\n2{sign}A kettle\r\n")
    assert read(path) == ["A lamp, lit", "A kettle"]
    name = "tabs" if sign == "\t" else f"'{sign}'"
    assert f"a.csv: its columns are parted by {name}" in capsys.readouterr().err
    pairs = write(tmp_path, "b.csv", f"query{sign}positive\nwhat, then?{sign}A lamp\n")
    assert [row.values for row in open_file(pairs).rows()] == [
        {"query": "what, then?", "positive": "A lamp"}
    ]


def test_quoted_cells_of_excel_hold_its_delimiter_and_lines(tmp_path: Path) -> None:
    data = (
        'id;title;text\r\n1;Lamp;"A lamp that hums; quietly"\r\n2;Kettle;"Two\r\nlines"\r\n'
        "3;Tea, green;Tea\r\n"
    )
    expected = ["A lamp that hums; quietly", "Two\r\nlines", "Tea"]
    assert read(write(tmp_path, "a.csv", data)) == expected
    assert read(write(tmp_path, "b.csv", '"id";"text"\r\n"1";"A lamp"\r\n')) == ["A lamp"]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_first_line_may_name_the_delimiter(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f"\ufeff{line}\r\nquery;positive\r\n1;A lamp\r\n2;A, b\r\n")
    assert read(path, "positive") == ["A lamp", "A, b"]
    assert [row.number for row in open_file(path).rows()] == [3, 4]


def test_decimal_commas_and_a_wrong_row_do_not_hide_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id;score;text;\n1;3,5;A lamp;\n2;4,0;A, kettle;\n")
    assert read(path) == ["A lamp", "A, kettle"]
    rows = "".join(f"{row};text {row}\n" for row in range(8))
    path = write(tmp_path, "b.csv", f"id;text\n{rows}8;a;b\n")
    assert read(path)[-2:] == ["text 7", "bad_csv: 3 columns; the first line has 2"]


def test_pairs_without_column_names_are_parted_alike_in_all_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.csv", "What boils, then?;A kettle\nWhat shines?;A lamp, a sun\nWho?;We\n"
    )
    assert [dict(row.values or {}) for row in open_file(path).rows()] == [
        {"query": "What boils, then?", "positive": "A kettle"},
        {"query": "What shines?", "positive": "A lamp, a sun"},
        {"query": "Who?", "positive": "We"},
    ]


def test_commas_that_part_all_lines_count_more_than_what_stands_in_names(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,text;de\n1,Lampe; hell\n2,Kessel\n")
    assert read(path, "text;de") == ["Lampe; hell", "Kessel"]


def test_a_table_whose_delimiter_is_not_clear_is_refused(tmp_path: Path) -> None:
    uneven = write(tmp_path, "a.csv", "id;text\n1;A lamp\n2;A; kettle\n")
    with pytest.raises(UsageError, match=r"a\.csv: are its columns parted by ';'"):
        read(uneven)
    both = write(tmp_path, "b.csv", "id;text|x\n1;A|b\n")
    with pytest.raises(UsageError, match=r"parted by ';' or '\|'"):
        read(both)
    assert read(write(tmp_path, "c.csv", '"text; or so"\nA lamp\nb;c\n')) == ["A lamp", "b;c"]
    assert read(write(tmp_path, "d.csv", "text\nA; b\nc\td\n")) == ["A; b", "c\td"]


def test_a_tsv_that_has_commas_is_no_single_column(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.tsv", "id,text\n1,A lamp\n2,A kettle\n")) == [
        "A lamp",
        "A kettle",
    ]


def test_tsv_has_no_quotes_in_any_reader(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", QUOTE_OPENS)
    texts = [
        "First line of words",
        '"Second is an opened quote',
        "Third line",
        'Fourth" line',
        "Fifth",
    ]
    assert read(path) == texts
    pairs = write(tmp_path, "b.tsv", QUOTE_OPENS.replace(b"id\ttext", b"query\tpositive"))
    assert [row.values["positive"] for row in open_file(pairs).rows() if row.values] == texts


def test_tsv_that_looks_quoted_is_told_and_an_option_reads_it(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, "a.tsv", PANDAS)
    assert read(path, "positive")[0] == '"He said ""stop"" now"'
    assert "a.tsv:2: quotes are taken as they stand" in capsys.readouterr().err
    assert read(path, "positive", quoting="csv") == [
        'He said "stop" now',
        "Two\nlines here",
        "Third plain",
    ]
    assert not capsys.readouterr().err
    plain = write(tmp_path, "b.csv", 'id,text\n1,"a" said b\n2,"c\n')
    assert read(plain, quoting="none") == ['"a" said b', '"c']


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name, header in (("a.csv", "text,id, text "), ("b.tsv", "text\tid\ttext")):
        with pytest.raises(UsageError, match=f"{name}: two columns have the same name, 'text'"):
            read(write(tmp_path, name, header + "\n"))


@pytest.mark.parametrize("header", [" text ,id", "Text,id", "TEXT , ID", "\u200btext\u00a0,id"])
def test_names_of_columns_are_trimmed_and_their_case_does_not_count(
    header: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "a.csv", header + "\nA lamp,7\n")
    fields = Fields(id="id", keep=("id",))
    (record,) = filter(None, inputs.read([str(path)], Reading(fields=fields)))
    assert (record.text, record.id, record.kept) == ("A lamp", "7", {"id": "7"})


def test_an_exact_name_counts_more_than_one_in_other_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "Text,text\nupper,lower\n")
    assert read(path) == ["lower"]
    assert read(path, "Text") == ["upper"]


def test_null_and_bytes_are_named_as_what_they_are(tmp_path: Path) -> None:
    rows = write(tmp_path, "a.jsonl", '{"text":"a","id":null}\n{"text":null,"id":1}\n')
    assert read(rows, fields=Fields(id="id")) == [
        "missing_field: field 'id' is null",
        "empty: the text is empty: field 'text' is null",
    ]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [b"\0\xff", b"a"], "id": [None, "b"], "when": [1, 2]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert read(path) == ["bad_field: field 'text' is bytes, not text"] * 2
    assert (
        read(path, "id", fields=Fields(text=("id",), id="text"))
        == ["bad_field: field 'text' is bytes, not an id"] * 2
    )
    assert as_json({"a": b"\0\xff"}) == '{"a":"AP8="}'


def test_two_columns_of_parquet_with_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, names in enumerate((["text", "text"], ["text", "text "])):
        path = tmp_path / f"{number}.parquet"
        columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), path)
        with pytest.raises(UsageError, match="two columns have the same name, 'text'"):
            read(path)


@pytest.mark.parametrize("sign", ["\x1f", "\x01", "^", "~", "¦"])
def test_rarer_delimiters_are_seen(sign: str, tmp_path: Path, capsys) -> None:
    path = write(tmp_path, "a.csv", f"id{sign}text\n1{sign}A lamp, red\n2{sign}A kettle\n")
    assert read(path) == ["A lamp, red", "A kettle"]
    shown = f"U+{ord(sign):04X}" if sign < " " else f"'{sign}'"
    assert f"its columns are parted by {shown}" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["sep=", "sep=;,", "sep=tab", "SEP=xy"])
def test_a_line_that_names_no_delimiter_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no delimiter of one character"):
        read(write(tmp_path, "a.csv", f"{line}\nid;text\n1;A lamp\n"))


def test_a_tab_is_named_in_words(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", "sep=\\t\nid\ttext\n1\tA lamp, red\n")) == ["A lamp, red"]


def test_fields_inside_of_fields_are_named_with_dots(tmp_path: Path) -> None:
    rows = write(
        tmp_path,
        "a.jsonl",
        '{"doc":{"text":"A lamp","meta":{"lang":"en"}},"a.b":{"c":"x"}}\n{"doc":{}}\n{"doc":"y"}\n',
    )
    fields = Fields(text=("doc.text",), keep=("doc.meta.lang", "a.b.c"))
    first, second, third = (one for one in inputs.read([str(rows)], Reading(fields=fields)) if one)
    assert (first.text, first.kept) == ("A lamp", {"doc.meta.lang": "en", "a.b.c": "x"})
    assert second.error and third.error  # noqa: PT018
    assert second.error.message == "no field 'doc.text'; it has: doc"
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"doc": [{"text": "A lamp"}], "n": [1]}), path)
    assert read(path, "doc.text") == ["A lamp"]
    with pytest.raises(UsageError, match=r"no column 'other.text'; it has: doc, n"):
        read(path, "other.text")


def test_a_row_with_a_title_alone_is_no_empty_row(tmp_path: Path) -> None:
    data = '{"title":"Lamps","text":""}\n{"title":" ","text":""}\n{"text":""}\n'
    path = write(tmp_path, "a.jsonl", data)
    fields = Fields(title="title", title_may_lack=True)
    records = [one for one in inputs.read([str(path)], Reading(fields=fields)) if one]
    assert [(one.title, one.error and one.error.code) for one in records] == [
        ("Lamps", None),
        (" ", "empty"),
        (None, "empty"),
    ]
    assert read(path)[0].startswith("empty")  # a title that is not asked for is none


@pytest.mark.parametrize("key", ["id", "docid"])
def test_a_corpus_of_pyserini_has_its_text_in_contents(key: str, tmp_path: Path) -> None:
    rows = write(tmp_path, "a.jsonl", f'{{"{key}":"d1","contents":"A lamp"}}\n')
    assert read(rows) == ["A lamp"]
    assert read(write(tmp_path, "a.csv", f"{key},contents\nd1,A kettle\n")) == ["A kettle"]


@pytest.mark.parametrize("pointer", [POINTER, OLD_POINTER])
def test_a_pointer_of_git_lfs_in_place_of_parquet_is_named(tmp_path: Path, pointer: str) -> None:
    path = write(tmp_path, "a.parquet", pointer)
    with pytest.raises(UsageError, match=r"a.parquet: a Git LFS pointer, .* git lfs pull"):
        read(path)
    with pytest.raises(UsageError, match=r"a.parquet: a Git LFS pointer, .* git lfs pull"):
        open_file(path)
    with (
        path.open("rb") as file,
        pytest.raises(UsageError, match=r"b.parquet: a Git LFS pointer"),
    ):
        list(inputs.read_opened(file, "b.parquet", Reading(), None))
