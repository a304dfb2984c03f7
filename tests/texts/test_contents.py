"""What bytes are: text in which encoding, or none; each is a file or message that people sent."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gemb.errors import UsageError
from gemb.texts import inputs
from gemb.texts.contents import (
    checked_encoding,
    is_plain,
    marked_encoding,
    no_text,
    plain,
    refuse_foreign,
    whole_text,
)
from gemb.texts.inputs import Reading
from gemb.texts.lines import file_lines, text_lines
from gemb.texts.records import Fields, has_visible

# Windows PowerShell 5.1 writes so with `>`.
POWERSHELL = "\ufeffalpha release notes\r\nbeta release notes\r\ngamma\r\n".encode("utf-16-le")
EXCEL = "\ufeffid\ttext\r\n1\tA lamp\r\n2\tA kettle\r\n".encode("utf-16-le")
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\nxref\n"
CR_ONLY = b"First line about lamps\rOrders can be cancelled on their page\rThird line about tea\r"


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path, **reading: object) -> list[tuple[object, str]]:
    """The id with the text, or with the error's code."""
    records = inputs.read([str(path)], Reading(**reading))  # type: ignore[arg-type]
    return [(one.id, one.error.code if one.error else one.text) for one in records if one]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 400])
def test_utf16_and_utf32_are_decoded_by_their_mark(
    encoding: str, size: int, tmp_path: Path
) -> None:
    text = "alpha café 🙂\r\nbeta 中文\r\n"
    data = ("\ufeff" + text).encode(encoding)
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    assert b"".join(block for block in plain(pieces, "-") if block) == text.encode()
    expected = [(1, "alpha café 🙂"), (2, "beta 中文")]
    assert read(write(tmp_path, "a.txt", data)) == expected
    assert read(write(tmp_path, "a.txt.gz", gzip.compress(data))) == expected
    assert whole_text(data) == ("alpha café 🙂\nbeta 中文\n", True)
    assert no_text(data) is None


def test_a_powershell_file_is_three_texts_in_every_reader(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.txt", POWERSHELL)
    texts = ["alpha release notes", "beta release notes", "gamma"]
    assert [text for _, text in read(path)] == texts
    assert [text for _, text in text_lines(path)] == texts
    assert [line.data.decode() for line in file_lines(path)] == texts
    assert inputs.total_size([str(path)], Reading()) is None  # sizes of rows are of UTF-8


def test_excel_unicode_text_is_a_table(tmp_path: Path) -> None:
    fields = Fields(text=("text",), id="id")
    assert read(write(tmp_path, "a.tsv", EXCEL), fields=fields) == [
        ("1", "A lamp"),
        ("2", "A kettle"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text",
    [
        "alpha release notes\nbeta\n",
        "заметки о выпуске\nещё\n",
        "发布说明一二三四\n第二行说明\n",
        "मंगल लाल ग्रह है\nशुक्र गर्म है\n",
        "செவ்வாய் சிவப்பு\nவெள்ளி\n",
        "അരുണൻ ചുവന്ന\nശുക്രൻ\n",
        "🚀🔥 😀\n🌍🌎\n",
    ],
)
def test_utf16_and_utf32_without_a_mark_are_refused_by_name(
    encoding: str, text: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "a.txt", text.encode(encoding))
    with pytest.raises(UsageError, match=f"a.txt is {encoding.upper()} without a byte-order mark"):
        read(path)
    assert [row for _, row in read(path, encoding=checked_encoding(encoding))] == text.splitlines()
    with pytest.raises(UsageError, match=f"--encoding {encoding}"):
        read(path, separator=b"\0")


def test_texts_with_a_nul_and_texts_that_end_in_one_are_no_utf16(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", b"a\0b\ncd\0\n")) == [(1, "a\0b"), (2, "cd\0")]
    letters = write(tmp_path, "b.txt", b"a\0b\0c\0")
    assert read(letters, separator=b"\0") == [(1, "a"), (2, "b"), (3, "c")]


def test_a_wrong_unit_fails_its_row_alone(tmp_path: Path) -> None:
    data = "\ufeffone\n".encode("utf-16-le") + b"\x00\xd8" + "two\nthree\n".encode("utf-16-le")
    assert read(write(tmp_path, "a.txt", data)) == [(1, "one"), (2, "invalid_utf8"), (3, "three")]
    cut = "\ufeffone\ntwo".encode("utf-16-le") + b"\x41"
    assert read(write(tmp_path, "b.txt", cut)) == [(1, "one"), (2, "invalid_utf8")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cp1252", "café – 20 €"),
        ("shift_jis", "東京タワー"),
        ("gb18030", "发布说明"),
        ("koi8-r", "привет"),
        ("latin-1", "naïve"),
    ],
)
def test_an_encoding_is_named(name: str, text: str, tmp_path: Path) -> None:
    data = (text + "\nplain\n").encode(name)
    path, encoding = write(tmp_path, "a.txt", data), checked_encoding(name)
    assert read(path, encoding=encoding) == [(1, text), (2, "plain")]
    assert read(path)[0] == (1, "invalid_utf8")
    assert whole_text(data, encoding) == (text + "\nplain\n", True)
    assert not is_plain(data, encoding)


def test_a_mark_counts_more_than_the_encoding_that_is_named(tmp_path: Path) -> None:
    encoding = checked_encoding("cp1252")
    assert read(write(tmp_path, "a.txt", "\ufeffcafé"), encoding=encoding) == [(1, "café")]
    assert read(write(tmp_path, "b.txt", POWERSHELL), encoding=encoding)[2] == (3, "gamma")
    assert whole_text("\ufeffcafé".encode(), encoding) == ("café", True)


def test_a_byte_that_its_encoding_does_not_have_is_told_as_that(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"ab\x81\n")
    records = inputs.read([str(path)], Reading(encoding=checked_encoding("cp1252")))
    (error,) = [one.error for one in records if one]
    assert error
    assert error.message == "character 3 is not valid in the file's encoding"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cp12522", "did you mean cp125"),
        ("shiftjs", "did you mean shift"),
        ("rot13", "unknown"),
        ("base64", "unknown"),
        ("unicode_escape", "unknown"),
        ("a\0b", "unknown"),
    ],
)
def test_an_unknown_encoding_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        checked_encoding(name)


def test_utf8_is_no_other_encoding() -> None:
    assert checked_encoding("UTF-8") == checked_encoding("utf-8-sig") == checked_encoding("") == ""


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("word/document.xml", "<w:p/>")
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        about = tarfile.TarInfo("a.txt")
        about.size = 5
        archive.addfile(about, io.BytesIO(b"hello"))
    return data.getvalue()


def database(folder: Path) -> bytes:
    path = folder / "made.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table texts (text)")
    return path.read_bytes()


def arrow(*, is_stream: bool) -> bytes:
    import pyarrow

    table = pyarrow.table({"text": ["A lamp", "A kettle"]})
    sink = io.BytesIO()
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def array() -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    return data.getvalue()


FOREIGN = [
    ("a.pdf", lambda _: PDF, "is a PDF file, not text: pdftotext a.pdf"),
    ("a.docx", lambda _: zipped(), "is a zip archive, an Office document"),
    ("a.tar", lambda _: tarred(), "is a tar archive, not text: unpack it"),
    ("a.db", database, "is an SQLite database, not text: sqlite3 -json"),
    ("a.npy", lambda _: array(), "is a NumPy array, not text"),
    ("a.pkl", lambda _: pickle.dumps(["a"]), "is a Python pickle"),
    ("c.pkl", lambda _: pickle.dumps(["a", "b"], 0), "is a Python pickle"),
    ("a.mat", lambda _: b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "is an HDF5 or MATLAB file"),
    ("b.pkl", lambda _: pickle.dumps({"a": 1}, 2), "is a Python pickle"),
    ("a.arrow", lambda _: arrow(is_stream=True), "is an Arrow stream.*to_parquet"),
    ("b.arrow", lambda _: arrow(is_stream=False), "is an Arrow file"),
    ("a.xz", lambda _: lzma.compress(b"hello"), "is compressed: xzcat a.xz > a"),
    ("a.lzma", lambda _: lzma.compress(b"hello", lzma.FORMAT_ALONE), "is compressed"),
    ("a.7z", lambda _: b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive"),
    ("a.png", lambda _: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image"),
    ("a.jpg", lambda _: b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is an image"),
    ("a.doc", lambda _: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "is an old Office document"),
    ("a.rtf", lambda _: rb"{\rtf1\ansi hello}", "is an RTF document"),
    ("a.gguf", lambda _: b"GGUF\3\0\0\0", "is a GGUF model"),
    ("a.bin", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ("b.bin", lambda _: b"version https://hawser.github.com/spec/v1\n", "is a Git LFS pointer"),
    ("a.mp4", lambda _: b"\0\0\0\x18ftypmp42\0\0\0\0", "is sound or video"),
    ("a.mp3", lambda _: b"\xff\xfb\x90\x64\0\0", "is sound or video"),
    ("a.heic", lambda _: b"\0\0\0\x18ftypheic\0\0\0\0", "is an image"),
    ("a.psd", lambda _: b"8BPS\0\1\0\0", "is an image"),
    ("a.woff2", lambda _: b"wOF2\0\1\0\0", "is a font"),
    ("a.deb", lambda _: b"!<arch>\ndebian-binary   1410122664\n", "is an archive"),
    ("a.db-wal", lambda _: b"\x37\x7f\x06\x82\0\x2d\xe2\x18", "is the log of an SQLite database"),
    ("a.sav", lambda _: b"$FL2@(#) SPSS DATA FILE", "is data of R, SPSS"),
    ("a.lzo", lambda _: b"\x89LZO\0\r\n\x1a\n", "is compressed: lzop -dc"),
    ("b.gguf", lambda _: b"GGUF\0\0\0\3\0\0", "is a GGUF model"),
    ("d.pkl", lambda _: pickle.dumps(Path("x"), 0), "is a Python pickle"),
]


@pytest.mark.parametrize(("name", "make", "words"), FOREIGN, ids=[name for name, *_ in FOREIGN])
def test_a_known_binary_format_is_refused_by_name_with_the_way_out(
    name: str, make, words: str, tmp_path: Path
) -> None:
    data = make(tmp_path)
    path = write(tmp_path, name, data)
    for reader in (read, lambda path: list(text_lines(path)), lambda path: list(file_lines(path))):
        with pytest.raises(
            UsageError,
            match=f"{name} {words}".replace("pdftotext a", "pdftotext .*a").replace(
                "xzcat a", "xzcat .*a"
            ),
        ):
            reader(path)
    assert no_text(data[:8192])
    assert not marked_encoding(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x1b\0\0\0\x02text\0\x0c\0\0\0Mars is red\0\0",
        b"CDF\x01\0\0\0\0",
        pickle.dumps([{"text": "Mars"}], 1),
        b"a line\n" + bytes(40) + b"another line\n",
    ],
    ids=["BSON", "NetCDF", "pickle", "hole"],
)
def test_nuls_in_a_row_or_among_control_codes_are_no_text(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", data)
    for reader in (read, lambda path: list(text_lines(path)), lambda path: list(file_lines(path))):
        with pytest.raises(UsageError, match=r"a.txt is binary, not text: .*tr -d"):
            reader(path)
    assert read(write(tmp_path, "b.txt", b"a\0\0b\0"), separator=b"\0")


def test_a_foreign_format_inside_of_gzip_is_unpacked_first(tmp_path: Path) -> None:
    for data, words in ((PDF, "a PDF file"), (b"PAR1\x15\4", "a Parquet file")):
        with pytest.raises(UsageError, match=f"a.gz holds {words}.*: gunzip it first"):
            read(write(tmp_path, "a.gz", gzip.compress(data)))


def test_japanese_of_seven_bits_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "火星は赤い\n金星\n".encode("iso2022_jp"))
    with pytest.raises(UsageError, match=r"a.txt is ISO-2022-JP: --encoding iso2022_jp"):
        read(path)
    texts = read(path, encoding=checked_encoding("iso2022_jp"))
    assert [text for _, text in texts] == ["火星は赤い", "金星"]
    assert read(write(tmp_path, "b.txt", b"\x1b[31mred\x1b[0m $B\n")) == [
        (1, "\x1b[31mred\x1b[0m $B")
    ]


def test_words_that_begin_like_a_format_are_text(tmp_path: Path) -> None:
    for text in (
        "BM25 ranks words",
        "ID3 tags",
        "MZ is a team",
        "GIF89 was late",
        "II",
        "ORC ate",
        "RIFF and raff",
        "FLAC, fLaC",
        "7zip",
        "Obj",
    ):
        refuse_foreign(text.encode(), "a.txt")
        assert read(write(tmp_path, "a.txt", text)) == [(1, text)]


def test_a_lone_carriage_return_ends_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", CR_ONLY)
    assert [text for _, text in read(path)] == [
        "First line about lamps",
        "Orders can be cancelled on their page",
        "Third line about tea",
    ]
    assert whole_text(CR_ONLY)[0].count("\n") == 3
    bar = write(tmp_path, "log.txt", b"start\n10%\r20%\r100%\r\ndone\n")
    assert read(bar) == [(1, "start"), (2, "10%"), (3, "20%"), (4, "100%"), (5, "done")]
    table = write(tmp_path, "old.csv", b'id,text\r1,"A\rlamp"\r2,A kettle\r')
    fields = Fields(text=("text",), id="id")
    assert read(table, fields=fields) == [("1", "A\rlamp"), ("2", "A kettle")]
    rows = write(tmp_path, "old.jsonl", b'{"text":"a"}\r{"text":"b"}\r')
    assert read(rows) == [(1, "a"), (2, "b")]


def test_a_mark_in_the_middle_of_joined_files_is_dropped(tmp_path: Path) -> None:
    mark = "\ufeff"
    assert read(write(tmp_path, "a.txt", f"{mark}one\n{mark}two\n")) == [(1, "one"), (2, "two")]
    rows = write(tmp_path, "a.jsonl", f'{mark}{{"text":"one"}}\n{mark}{{"text":"two"}}\n')
    assert read(rows) == [(1, "one"), (2, "two")]
    lines = list(file_lines(rows))
    data = rows.read_bytes()
    assert [json.loads(data[line.offset :][: len(line.data)])["text"] for line in lines] == [
        "one",
        "two",
    ]
    assert sum(line.size for line in lines) == len(data) - 3
    assert whole_text(f"{mark}one\n{mark}two\n".encode())[0] == "one\ntwo\n"
    wide = f"{mark}one\n{mark}two\n".encode("utf-16-le")
    assert read(write(tmp_path, "b.txt", wide)) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize(
    "text",
    ["\u200b", "\ufeff", "\u00ad", "\u2060", "\0", "\x01", "\u3000\u00a0", "\u200d \u200e\t",
     "\u2800", "\u3164", "\ufe0f", "\u034f", "\U000e0061"],
)  # fmt: skip
def test_a_row_without_a_visible_character_is_empty(text: str, tmp_path: Path) -> None:
    rows = write(tmp_path, "a.jsonl", json.dumps({"text": text}) + "\n" + '{"text":"seen"}\n')
    assert read(rows) == [(1, "empty"), (2, "seen")]
    assert not has_visible(text)
    assert list(text_lines(write(tmp_path, "a.txt", f"one\n{text}\ntwo\n"))) == [
        (1, "one"),
        (3, "two"),
    ]


@pytest.mark.parametrize("text", ["a", "\u200b.", "🙂", "\u0301", "\ue000", "中", "\u0e31", "-"])
def test_letters_marks_and_private_characters_are_visible(text: str) -> None:
    assert has_visible(text)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{\n  "text": "one"\n}\n', "is a JSON object over several lines"),
        ('{\n\n\t"text": "one"\n}\n{\n  "text": "two"\n}\n', "is a JSON object over several"),
        ('[\n  {"text": "one"},\n  {"text": "two"}\n]\n', "is one JSON array"),
        ('[\n  "one",\n  "two"\n]\n', "is one JSON array"),
    ],
)
def test_pretty_printed_json_is_refused(name: str, data: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} {words}"):
        read(write(tmp_path, name, data))


def test_an_object_of_json_that_begins_with_a_field_is_refused_too(tmp_path: Path) -> None:
    for name in ("a.json", "a.txt"):
        with pytest.raises(UsageError, match="its first line is not a whole JSON object"):
            read(write(tmp_path, name, '{"text": "one",\n "id": 1}\n'))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('\n\n{\n  "text": "one"\n}\n', "is a JSON object over several lines"),
        ('{ "id": 1,\n  "text": "one" }\n', "first line is not a whole JSON object"),
        ('{"text": "one"},\n{"text": "two"},\n', "first line is not a whole JSON object"),
        ('{"text": "one"}{"text": "two"}\n', "first line is not a whole JSON object"),
        ('[{"text": "one"},\n{"text": "two"}]\n', "is one JSON array"),
    ],
)
def test_json_in_other_shapes_is_refused_in_a_file_of_any_name(
    data: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        read(write(tmp_path, "a.txt", data))


def test_blank_lines_before_json_lines_hide_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", '\n \n{"text": "one"}\n')) == [(3, "one")]
    assert read(write(tmp_path, "b.txt", "\n\none\n")) == [(1, "empty"), (2, "empty"), (3, "one")]
    assert len(read(write(tmp_path, "c.txt", "\n" * 3000 + "one\n"))) == 3001


def test_lines_of_code_that_begin_with_a_brace_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "{\nint x;\n}\n")
    assert read(path) == [(1, "{"), (2, "int x;"), (3, "}")]
    pretty = write(tmp_path, "b.json", '{\n"text": "one"\n}\n')
    assert len(read(pretty, format="lines")) == 3


def test_nan_in_a_field_that_is_not_asked_for_harms_nothing(tmp_path: Path) -> None:
    data = '{"text": "one", "score": NaN}\n{"text": "two", "score": [-Infinity, {"x": NaN}]}\n'
    path = write(tmp_path, "a.jsonl", data)
    assert read(path) == [(1, "one"), (2, "two")]
    assert read(path, fields=Fields(keep_all=True)) == [(1, "one"), (2, "two")]
    assert read(path, fields=Fields(keep=("score",)))[0] == (1, "bad_field")
    assert read(write(tmp_path, "b.jsonl", '{"text": NaN}\n')) == [(1, "bad_field")]
    assert read(write(tmp_path, "c.jsonl", '{"text": "a", "b": NaN\n')) == [(1, "bad_json")]


def test_the_way_out_replaces_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data, way in (
        ("dump", b"\x28\xb5\x2f\xfd", "zstdcat dump > dump-text"),
        ("p.txt", b"%PDF-1.7", "pdftotext p.txt p-text.txt"),
        ("rows.zst", b"\x28\xb5\x2f\xfd", "zstdcat rows.zst > rows"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError) as refused:
            refuse_foreign(data, name)
        assert str(refused.value).endswith(f": {way}")


@pytest.mark.parametrize(
    "data",
    [
        "\u200b\n\ufeff\n\u00ad\n\0\n\1\n\u2060\n".encode(),
        b"a lamp\n\0\0\0\n\1\n",
        b"a lamp\n" * 100 + b"\0\1\2 control\n",
    ],
)
def test_lines_of_control_codes_alone_make_no_binary_file(data: bytes) -> None:
    assert b"".join(plain(iter([data]), "x.txt")) == data


@pytest.mark.parametrize("data", [b"8BPX\0\1\0\0\nA lamp\n", b"A lamp\0\0\1\0 kettle\n" * 9])
def test_control_codes_among_letters_do(data: bytes) -> None:
    with pytest.raises(UsageError, match="is binary, not text"):
        b"".join(plain(iter([data]), "x.txt"))
