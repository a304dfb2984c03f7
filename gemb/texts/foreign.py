"""Formats that hold no text as they stand, by their first bytes, and what makes text of each."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from gemb.io.lfs import BEGINNINGS


class Foreign(NamedTuple):
    """A format that holds no text as it stands."""

    magic: bytes  # pattern of the first bytes
    name: str
    way: str  # what makes text of it; {file} and {stem} are quoted for a shell
    by_pipe: str = ""  # the same for standard input


_TABLE_WAY = "convert it to Parquet"
_UNPACK = "unpack it, and name its files"
_FOREIGN = (
    Foreign(rb"\x28\xb5\x2f\xfd", "compressed", "zstdcat {file} > {stem}", "zstdcat"),
    Foreign(rb"BZh[1-9]1AY&SY", "compressed", "bzcat {file} > {stem}", "bzcat"),
    Foreign(rb"\xfd7zXZ", "compressed", "xzcat {file} > {stem}", "xzcat"),
    Foreign(rb"[\x50-\x5f]\x2a\x4d\x18", "compressed", "zstdcat {file} > {stem}", "zstdcat"),
    Foreign(rb"\x89LZO\0", "compressed", "lzop -dc {file} > {stem}", "lzop -dc"),
    Foreign(rb"LZIP[\0\x01]", "compressed", "lzip -dc {file} > {stem}", "lzip -dc"),
    Foreign(rb"\xff\x06\0\0sNaPpY", "compressed", "snzip -dc {file} > {stem}", "snzip -dc"),
    Foreign(rb"\x04\x22\x4d\x18", "compressed", "lz4cat {file} > {stem}", "lz4cat"),
    Foreign(rb"\x1f\x9d", "compressed", "zcat {file} > {stem}", "zcat"),
    Foreign(rb"\x5d\0\0.{2}", "compressed", "xzcat --format=lzma {file} > {stem}", "lzcat"),
    Foreign(rb"%PDF-", "a PDF file", "pdftotext {file} {stem}.txt", "pdftotext - -"),
    Foreign(
        rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", "ps2ascii {file} {stem}.txt", "ps2ascii"
    ),
    Foreign(rb"\{\\rtf", "an RTF document", "pandoc -t plain {file} -o {stem}.txt"),
    Foreign(
        rb"PK(\x03\x04|\x05\x06|\x07\x08)",
        "a zip archive, an Office document or NumPy's .npz",
        "unpack it, or save the document as text or CSV",
    ),
    Foreign(
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "save it as text or CSV"
    ),
    Foreign(rb"(?s).{257}ustar", "a tar archive", _UNPACK, "tar -xO"),
    Foreign(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    Foreign(rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    Foreign(
        rb"!<arch>\n|0707(0[12][0-9A-Fa-f]{104}|07[0-7]{70})|MSCF\0|\xed\xab\xee\xdb",
        "an archive",
        _UNPACK,
    ),
    Foreign(rb"ARROW1", "an Arrow file", f"{_TABLE_WAY}: pyarrow.feather.read_table"),
    Foreign(
        rb"\xff\xff\xff\xff.{2,3}\0",
        "an Arrow stream, as datasets keeps it",
        f"{_TABLE_WAY}: datasets.Dataset.from_file({{file}}).to_parquet(...)",
    ),
    Foreign(rb"FEA1", "a Feather file", f"{_TABLE_WAY}: pandas.read_feather"),
    Foreign(rb"ORC(?=[\0-\x1f])", "an ORC file", f"{_TABLE_WAY}: pandas.read_orc"),
    Foreign(rb"Obj\x01", "an Avro file", _TABLE_WAY),
    Foreign(
        rb"SQLite format 3\0",
        "an SQLite database",
        "sqlite3 -json {file} 'select ...' | jq -c '.[]' > {stem}.jsonl",
    ),
    Foreign(rb"\x37\x7f\x06[\x82\x83]", "the log of an SQLite database", "name the database"),
    Foreign(rb"(?s).{8}DUCK.{3}\0|\0\x01\0\0Standard (Jet|ACE) DB", "a database", _TABLE_WAY),
    Foreign(
        rb"RDX[23]\n|X\n\0\0\0[\x02\x03]|\$FL[23]@|<stata_dta>|\0{12}\xc2\xea\x81\x60",
        "data of R, SPSS, Stata or SAS",
        _TABLE_WAY,
    ),
    Foreign(rb"bplist00", "a binary property list", "plutil -convert json {file}"),
    Foreign(rb"\x93NUMPY", "a NumPy array", "it has numbers, no texts"),
    Foreign(
        rb"\x80[\x02-\x05](?=[\x00-\x1f\x28\x58\x5d\x63\x7d\x8a-\x95])|\([ld]p0\n|c[\w.]+\n\w+\np0\n|ccopy_reg\n",
        "a Python pickle",
        "write its texts as JSON lines",
    ),
    Foreign(rb"\x89HDF\r\n|MATLAB 5\.0 MAT-file", "an HDF5 or MATLAB file", _TABLE_WAY),
    Foreign(rb"AT&TFORM", "a DjVu document", "djvutxt {file} {stem}.txt"),
    Foreign(rb"GGUF([\x01-\x09]\0|\0\0\0[\x01-\x09])", "a GGUF model", "name a file of texts"),
    Foreign(rb"(?s).{4}\0\0\0\0\{", "a safetensors file", "name a file of texts"),
    Foreign(
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF(?s:.{4})WEBP|BM(?s:.{4})\0\0\0\0"
        rb"|8BPS\0|\0\0\x01\0[\x01-\x09]\0|\0\0\0\x0cjP  |(?s:.{4})ftyp(hei|hev|mif1|avif)",
        "an image",
        "tesseract {file} {stem} reads what is written in it",
    ),
    Foreign(
        rb"ID3[\x02-\x04]|\xff[\xf2\xf3\xfa\xfb]|FORM(?s:.{4})AIF[FC]|MThd\0|FLV\x01"
        rb"|OggS\0|fLaC\0|RIFF(?s:.{4})(WAVE|AVI )|(?s:.{4})ftyp|\x1a\x45\xdf\xa3",
        "sound or video",
        "gemb takes texts",
    ),
    Foreign(
        rb"\x7fELF|MZ[\x00-\xff]\0|\0asm|\xca\xfe\xba\xbe\0|\xcf\xfa\xed\xfe",
        "a program",
        "gemb takes texts",
    ),
    Foreign(rb"wOF[F2]|OTTO\0|ttcf\0|\0\x01\0\0\0", "a font", "gemb takes texts"),
    Foreign(
        b"|".join(map(re.escape, BEGINNINGS)), "a Git LFS pointer, not the file", "git lfs pull"
    ),
)

DOCUMENTS = (
    *("a PDF file", "a PostScript file", "an RTF document", "an old Office document"),
    "a DjVu document",
)
# A zip archive whose first file is one that Office and LibreOffice put first.
OFFICE = re.compile(
    rb"(?s)PK\x03\x04.{26}(\[Content_Types\]\.xml|_rels/|docProps/|word/|xl/|ppt/|"
    rb"mimetypeapplication/(vnd\.oasis|epub))"
)


def foreign(head: bytes) -> Foreign | None:
    """Return the format of a file that begins so, None where it is none of these."""
    return next((form for magic, form in _magics() if magic.match(head)), None)


@cache
def _magics() -> tuple[tuple[re.Pattern[bytes], Foreign], ...]:
    """Return the patterns compiled: a search asks them of every file."""
    return tuple((re.compile(form.magic), form) for form in _FOREIGN)
