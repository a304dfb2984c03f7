from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from file_trees import as_nobody
from gemb.io.stamps import Stamp
from gemb.texts.walk import Entry, Skipped, Walk, is_stream, open_text, read_text, shown_size, walk


def write(root: Path, *names: str, content: str = "some words\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(*roots: str | Path, skipped: Skipped | None = None, **how: object) -> list[str]:
    found = walk([str(root) for root in roots], Walk(**how), skipped or Skipped())
    return [entry.path for entry in found]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return tmp_path


def test_files_come_in_byte_order_as_the_user_would_type_them(here: Path) -> None:
    write(here, "docs/b.md", "docs/a/z.md", "docs/a.md", "docs/B.md")
    assert names("docs") == ["docs/B.md", "docs/a/z.md", "docs/a.md", "docs/b.md"]
    assert names("docs/") == names("docs")
    assert names(".") == names("docs")
    assert names(here / "docs")[0] == str(here / "docs/B.md")
    assert names("docs/../docs/a") == ["docs/../docs/a/z.md"]


def test_a_file_that_is_named_twice_comes_once(here: Path) -> None:
    write(here, "docs/a.md", "docs/b.md")
    assert names("docs/b.md", "docs", here / "docs/a.md") == ["docs/b.md", "docs/a.md"]


def test_a_name_that_looks_like_an_option_does_not(here: Path) -> None:
    write(here, "-rf")
    assert names(".") == ["./-rf"]


def test_hidden_files_come_when_asked_for_and_when_named(here: Path) -> None:
    write(here, ".env", ".config/x", "a/.b", ".git/config", "c")
    assert names(".") == ["c"]
    assert names(".", hidden=True) == [".config/x", ".env", "a/.b", "c"]
    assert ".git/config" in names(".", hidden=True, ignore=False)
    assert names(".env") == [".env"]
    assert names(".config") == [".config/x"]


def test_globs_choose_leave_out_and_weigh_more_than_rules(here: Path) -> None:
    write(here, "a.py", "a.md", "src/b.py", "src/c.c", "src/test/d.py", "build/e.py")
    (here / ".git").mkdir()
    (here / ".gitignore").write_text("build/\n*.md\n")
    assert names(".", globs=("*.py",)) == ["a.py", "src/b.py", "src/test/d.py"]
    assert names(".", globs=("*.py", "!test/")) == ["a.py", "src/b.py"]
    assert names(".", globs=("!*.py",)) == ["src/c.c"]
    assert names(".", globs=("*.md",)) == ["a.md"]
    assert names(".", globs=("src/*.py",)) == ["src/b.py"]
    assert names("src", globs=("src/*.py",)) == ["src/b.py"]
    assert names("src", globs=("/*.py",)) == ["src/b.py"]
    assert names(".", globs=("src",)) == ["src/b.py", "src/c.c", "src/test/d.py"]
    assert names(".", globs=("*.{a,b}",)) == []
    assert names("a.md", globs=("*.py",)) == ["a.md"]  # it is named


def test_an_ignore_file_weighs_more_than_gitignore(here: Path) -> None:
    write(here, "a.log", "b.txt", "c.txt")
    (here / ".git").mkdir()
    (here / ".gitignore").write_text("*.log\n")
    (here / ".ignore").write_text("!a.log\nb.txt\n")
    assert names(".") == ["a.log", "c.txt"]
    (here / ".rgignore").write_text("!b.txt\nc.txt\n")
    assert names(".") == ["a.log", "b.txt"]


def test_rules_that_cannot_be_read_are_named_once_and_leave_nothing_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        monkeypatch.setenv("XDG_CONFIG_HOME", f"{name}/none")
        write(root, "a.log", "sub/b.log")
        (root / ".git").mkdir()
        for rules in (".gitignore", "sub/.ignore"):
            (root / rules).write_text("*.log\n")
            (root / rules).chmod(0)
        skipped = Skipped()
        with as_nobody(root):
            found = [entry.path for entry in walk([name, f"{name}/sub"], Walk(), skipped)]
    assert found == [f"{name}/a.log", f"{name}/sub/b.log"]
    assert skipped.failed == 0
    assert capsys.readouterr().err.splitlines() == [
        f"gemb: warning: {name}/{rules}: permission denied; what it leaves out is taken"
        for rules in (".gitignore", "sub/.ignore")
    ]


def test_a_repository_inside_has_its_own_rules(here: Path) -> None:
    write(here, "x.log", "inner/x.log", "inner/y.tmp")
    (here / ".git").mkdir()
    (here / ".gitignore").write_text("*.log\n")
    (here / "inner/.git/info").mkdir(parents=True)
    (here / "inner/.git/info/exclude").write_text("*.tmp\n")
    assert names(".") == ["inner/x.log"]


def test_links_are_left_alone_or_followed_once(here: Path) -> None:
    write(here, "a/x.md", "elsewhere/y.md")
    (here / "a/loop").symlink_to("..")
    (here / "a/self").symlink_to("self")
    (here / "a/gone").symlink_to("nothing")
    (here / "a/file").symlink_to("../elsewhere/y.md")
    skipped = Skipped()
    assert names("a", skipped=skipped) == ["a/x.md"]
    followed = names("a", skipped=skipped, follow=True)
    assert followed == ["a/file", "a/loop/elsewhere/y.md", "a/x.md"]
    assert skipped.failed == 0
    assert names("a/file") == ["a/file"]  # what is named is followed


def test_pipes_and_sockets_are_left_out_of_a_folder(here: Path) -> None:
    os.mkfifo(here / "pipe")
    write(here, "x")
    assert names(".") == ["x"]
    assert is_stream("pipe")
    assert is_stream("-")
    assert not is_stream("x")
    assert not is_stream("absent")
    assert names("pipe") == []


def test_a_very_deep_tree_and_odd_names_are_walked(here: Path) -> None:
    deep = "/".join(["d"] * 1200)
    folder = here
    for _ in range(12):
        folder /= "/".join(["d"] * 100)
        folder.mkdir(parents=True)
    write(here, f"{deep}/x")
    odd = [b"new\nline", b"\x1b[31mred", b"\xff\xfe latin", b"quo\"te's"]
    for name in odd:
        (Path(os.fsdecode(os.fsencode(here) + b"/" + name))).write_text("x")
    try:
        found = names(".")
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)  # too deep for shutil, and so for pytest
    assert f"{deep}/x" in found
    assert {os.fsencode(name) for name in found} > set(odd)


def test_what_may_not_be_read_is_named_and_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root, "open.txt", "shut/x.txt", "list/x.txt", "\x1b[31mshut.txt")
        (root / "\x1b[31mshut.txt").chmod(0)
        (root / "shut").chmod(0)
        (root / "list").chmod(0o644)  # its names can be read, but not what they name
        skipped = Skipped()
        with as_nobody(root):
            roots = [name, str(root / "absent"), f"{name}/list"]
            entries = list(walk(roots, Walk(), skipped))
            texts = [read_text(entry, skipped) for entry in entries]
        (root / "shut").chmod(0o755)
        (root / "list").chmod(0o755)
    assert texts == [None, "some words\n"]
    assert skipped.failed == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"gemb: warning: {root}/list/x.txt: permission denied",
        f"gemb: warning: {root}/shut/: permission denied",
        f"gemb: warning: {root}/absent: no such file or directory",
        f"gemb: warning: {root}/list/x.txt: permission denied",
        f"gemb: warning: {root}/\\x1b[31mshut.txt: permission denied",
    ]


def test_a_long_file_is_left_out_with_a_note_that_says_how_to_take_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, "a.txt")
    for name, start in (("big.log", b"text\n"), ("big.bin", b"\0")):
        with (here / name).open("wb") as file:
            file.write(start + b"x" * 10_000)
            file.truncate(2_100_000_000)
    skipped = Skipped()
    assert names(".", skipped=skipped) == ["a.txt"]
    skipped.say()
    said = capsys.readouterr().err
    assert said == (
        "gemb: note: left out: 1 binary file, 1 long file (the largest: big.log, 2.1G; "
        "--max-size 3G takes all)\n"
    )
    assert skipped.failed == 0
    named = Skipped()
    assert names("big.log", skipped=named) == []
    assert named.failed == 1
    said = capsys.readouterr().err
    assert said == ("gemb: warning: big.log: 2.1G is long for a text; --max-size 3G takes it\n")
    assert names("big.bin", skipped=named) == []
    named.say()
    assert capsys.readouterr().err == "gemb: note: left out: 1 binary file\n"
    assert names("big.log", most_bytes=0) == ["big.log"]
    assert [shown_size(size) for size in (7, 1500, 20_000_000)] == ["7", "1.5K", "20.0M"]


def entry_of(path: Path, *, is_named: bool = False) -> Entry:
    found = path.stat()
    return Entry(path.name, str(path), Stamp.of(found), is_named)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain\r\nwindows\r\n", "plain\nwindows\n"),
        ("\ufeffmark é".encode(), "mark é"),
        ("sixteen é\n".encode("utf-16"), "sixteen é\n"),
        (b"", ""),
        (b"x" * 9000 + b"\0late", "x" * 9000 + "\0late"),
        (b"early\0", None),
        (b"%PDF-1.7 \n", None),
        (b"\x1f\x8b\x08plain", None),
    ],
)
def test_a_file_is_read_as_what_it_is(tmp_path: Path, content: bytes, text: str | None) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    skipped = Skipped()
    assert read_text(entry_of(path), skipped) == text
    assert skipped.no_text.total() == (text is None)
    assert open_text(entry_of(path)).is_whole


def test_what_is_left_out_for_what_it_is_is_counted_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a.pdf": b"%PDF-1.7\n",
        "b.docx": b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml",
        "c.odt": b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.text",
        "d.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "e.rtf": b"{\\rtf1 x}",
        "f.zip": b"PK\x03\x04" + bytes(26) + b"x.txt",
        "g.png": b"\x89PNG\r\n",
        "h.bin": b"x\0y",
        "i.txt": b"text",
        "j.log": b"text" * 30,
        "k.log": b"text" * 60,
    }
    for name, data in files.items():
        (here / name).write_bytes(data)
    skipped = Skipped()
    texts = [read_text(entry, skipped) for entry in walk(["."], Walk(most_bytes=100), skipped)]
    assert [text for text in texts if text is not None] == ["text"]
    skipped.say()
    assert capsys.readouterr().err == (
        "gemb: note: left out: 5 documents (PDF, Office; pdftotext or pandoc makes text of them), "
        "3 binary files, 2 long files (the largest: k.log, 240; --max-size 240 takes all)\n"
    )
    assert skipped.failed == 0


def test_what_is_no_utf8_is_read_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "latin"
    path.write_bytes("café au lait\n".encode("latin-1"))
    skipped = Skipped()
    assert read_text(entry_of(path), skipped) == "caf\ufffd au lait\n"
    skipped.say()
    assert capsys.readouterr().err == (
        "gemb: note: 1 file is not all UTF-8 (first: latin); what is none was read as U+FFFD\n"
    )


def test_a_file_that_vanishes_grows_shrinks_or_becomes_a_pipe_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("first line\n")
    entry = entry_of(path)
    with path.open("a") as file:
        file.write("second line\n")
    skipped = Skipped()
    assert read_text(entry, skipped) == "first line\n"
    os.truncate(path, 5)
    assert read_text(entry, skipped) == "first"
    path.unlink()
    assert read_text(entry, skipped) is None
    assert skipped.failed == 0
    assert read_text(entry._replace(is_named=True), Skipped()) is None
    os.mkfifo(path)
    assert read_text(entry, skipped) is None
