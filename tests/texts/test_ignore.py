from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from gemb.texts.ignore import Rules
from gemb.texts.walk import Skipped, Walk, walk
from rule_files import gemb_finds, git_finds, make_tree, random_rules

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def write(root: Path, *names: str, content: str = "some words\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(root: str | Path, **how: object) -> list[str]:
    return [entry.path for entry in walk([str(root)], Walk(**how), Skipped())]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in; git has a home of its own, without settings."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return work


@needs_git
@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_out_is_what_git_leaves_out(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    make_tree(tmp_path, dice, 200)
    folders = [Path(folder) for folder, *_ in os.walk(tmp_path) if ".git" not in folder]
    taken = left_out = 0
    for _ in range(12):
        files = [tmp_path / ".gitignore", tmp_path / ".git" / "info" / "exclude"]
        files += [folder / ".gitignore" for folder in dice.sample(folders[1:], 2)]
        for file in files:
            file.write_bytes(random_rules(dice))
        expected = git_finds(tmp_path)
        assert gemb_finds(tmp_path) == expected, [(file, file.read_bytes()) for file in files]
        taken += len(expected)
        left_out += sum(len(inside) for *_, inside in os.walk(tmp_path)) - len(expected)
        for file in files:
            file.unlink()
    assert taken > 300
    assert left_out > 300


CASES = [  # rules, names that are left out, names that are not
    ("*.py[cod]", "a.pyc a.pyo b.pyd", "a.py a.pyx pyc"),
    ("[Bb]in/", "bin/x Bin/x", "bin BIN/x cabin/x"),
    ("a*b*c", "abc axbxc abcbc", "ab ac acb"),
    ("\\!a\n\\#b", "!a #b", "a b"),
    ("kept\\ \ntrailing   ", "kept\\  trailing", "kept trailing\\ "),
    ("a/**/z", "a/z a/b/z a/b/c/z", "z x/a/z a/zz"),
    ("**/b/c", "b/c x/b/c", "b/x/c"),
    ("b/**", "b/c b/c/d", "b x/b/c"),
    ("/top", "top top/x", "x/top"),
    ("foo**/bar", "foobar foox/bar", "x/foo/bar"),
    ("a?c", "abc", "ac a/c abbc"),
    ("[[:digit:]]x", "1x", "ax"),
    ("*\n!*.md\n!*/", "x d/x", "x.md d/x.md"),
    ("a*\n!ab\nabc", "a abc", "ab b"),
    ("x\r\ny\r\n", "x y", "x\r"),
]


@pytest.mark.parametrize(("rules", "out", "taken"), CASES)
def test_a_rule_leaves_out_what_it_says(here: Path, rules: str, out: str, taken: str) -> None:
    for number, group in enumerate((out, taken)):
        for name in group.replace("\\ ", "\0").split(" "):
            name = name.replace("\0", " ")
            folder = here / f"{number}" / name.replace("/", "_") / "root"
            write(folder, name)
            (folder / ".ignore").write_bytes(rules.encode())
            expected = [] if number == 0 else [name]
            assert [path.partition("/root/")[2] for path in names(folder)] == expected, name


def test_a_question_mark_is_a_byte_to_a_file_and_a_character_to_a_glob(here: Path) -> None:
    write(here, "é", "a")
    (here / ".ignore").write_text("?\n")
    assert names(".") == ["é"]  # as git and ripgrep have it
    (here / ".ignore").write_text("[é]?\n")
    assert names(".") == ["a"]
    assert names(".", ignore=False, globs=("?",)) == ["a", "é"]


def test_a_glob_has_no_comments_and_no_second_exclamation_mark(here: Path) -> None:
    write(here, "#draft", "!bang", "a ", "a")
    assert names(".", globs=("#*",)) == ["#draft"]
    assert names(".", globs=("!#draft",)) == ["!bang", "a", "a "]
    assert names(".", globs=("!!bang",)) == ["#draft", "a", "a "]
    assert names(".", globs=("a ",)) == ["a "]


STARS = "*a" * 12 + "*b"
HOSTILE = {
    "stars": STARS,
    "thousands of stars": "\n".join(f"*a*a*{number}*a*b" for number in range(40_000)),
    "one rule of a megabyte": "*a" * 500_000 + "b",
    "classes": "[a-z]*" * 40 + "[!a]",
    "a class of a megabyte": f"[{'b-y' * 300_000}]*x",
    "names of classes of a megabyte": f"[{'[:' * 500_000}x]*y",
    "question marks": "*?" * 60 + "b",
    "folders": "**/a/" * 12 + "b",
    "folders and stars": "**/*a*a/" * 12 + "**/b*",
    "folders of a megabyte": "**/a/" * 200_000 + "b",
    "deep stars": "a/" + "**a**/" * 12 + "b",
}


@pytest.mark.parametrize("rules", HOSTILE.values(), ids=HOSTILE)
def test_no_rule_holds_the_walk_up(here: Path, rules: str) -> None:
    write(here, "a" * 240)
    deep = here / "/".join("a" * 60)
    write(deep, "a" * 240)
    (here / ".ignore").write_text(rules + "\n")
    began = time.process_time()
    assert len(names(".")) == 2
    assert time.process_time() - began < 8
    if len(rules) < 1000:
        (here / ".ignore").unlink()
        assert names(".", globs=(rules,)) == []
        assert len(names(".", globs=(f"!{rules}",))) == 2
        assert time.process_time() - began < 8


MANY = {
    "names": "name{}",
    "paths": "/folder/{}/x",
    "ends": "*.{}x",
    "beginnings": "x{}*",
    "middles": "*x{}*",
    "stars": "x*{}*y",
    "folders": "a/*/{}",
}


@pytest.mark.parametrize("form", MANY.values(), ids=MANY)
def test_a_million_bytes_of_rules_take_about_a_second(form: str) -> None:
    data = "\n".join(form.format(number) for number in range(80_000)).encode()[:1_000_000]
    began = time.process_time()
    rules = Rules.of_file(data)
    for number in range(100):
        assert rules.decide(f"file{number}.txt", f"file{number}.txt", is_folder=False) is None
    path = form.format(777).replace("*", "q").removeprefix("/")
    assert rules.decide(path, path.rpartition("/")[2], is_folder=False) is True
    assert time.process_time() - began < 4


def test_a_file_of_a_million_rules_is_read(here: Path) -> None:
    write(here, "file777777.txt", "other.txt")
    (here / ".ignore").write_text("".join(f"file{number}.txt\n" for number in range(1_000_000)))
    began = time.process_time()
    assert names(".") == ["other.txt"]
    assert time.process_time() - began < 6


def test_a_file_of_rules_beyond_the_bound_is_named_and_has_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, "x", "y")
    with (here / ".ignore").open("wb") as file:
        file.write(b"x\n")
        file.truncate((1 << 25) + 1)
    assert names(".") == ["x", "y"]
    assert capsys.readouterr().err == (
        f"gemb: warning: {here}/.ignore: longer than 32 MiB; what it leaves out is taken\n"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("x/" + "a*" * 400_000, "a pattern of more than 4,096 parts is passed over"),
        ("*?" * 3000 + "b", "a pattern of more than 4,096 parts is passed over"),
        ("[ab]x*" * 2000, "a pattern of more than 4,096 parts is passed over"),
        (
            "\n".join(f"q*{'u' * 250}*{number}" for number in range(6_000)),
            "what follows 1,048,576 characters of patterns is passed over",
        ),
        (
            "\n".join("[!q]" * 100 + str(number) for number in range(700)),
            "what follows 1,048,576 characters of patterns is passed over",
        ),
    ],
)
def test_patterns_that_take_too_much_are_passed_over_and_the_others_hold(
    here: Path, capsys: pytest.CaptureFixture[str], rules: str, message: str
) -> None:
    write(here, "x", "y", "s1.tmp")
    (here / ".ignore").write_text(f"s*.t?p\n{rules}\ny\n")
    began = time.process_time()
    assert names(".") == ["x"]
    assert time.process_time() - began < 6
    assert capsys.readouterr().err == (
        f"gemb: warning: {here}/.ignore: {message}; what it leaves out is taken\n"
    )


def test_a_class_of_megabytes_takes_no_more_than_its_characters() -> None:
    data = f"[{'a-yb-xc-w' * 20_000}]*x".encode()
    tracemalloc.start()
    rules = Rules.of_file(data)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    assert rules.decide("box", "box", is_folder=False)


def test_a_glob_that_takes_too_much_is_a_failure(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here, "x")
    skipped = Skipped()
    assert list(walk(["."], Walk(globs=("*a" * 5000,)), skipped)) == []
    assert skipped.failed == 1
    assert "-g: a pattern of more than 4,096 parts is passed over" in capsys.readouterr().err


def test_gitignore_counts_in_a_repository_alone_and_ignore_everywhere(here: Path) -> None:
    write(here, "a/private.md", "a/secret.md", "a/sub/private.md", "a/sub/secret.md", "a/sub/x.md")
    (here / "a/.gitignore").write_text("private.md\n")
    (here / "a/.ignore").write_text("secret.md\n")
    assert names("a") == ["a/private.md", "a/sub/private.md", "a/sub/x.md"]
    assert names("a/sub") == ["a/sub/private.md", "a/sub/x.md"]
    os.chdir("a/sub")
    assert names(".") == ["private.md", "x.md"]
    os.chdir(here)
    (here / "a/.rgignore").write_text("!secret.md\nx.md\n")
    assert names("a/sub") == ["a/sub/private.md", "a/sub/secret.md"]
    (here / ".git").mkdir()
    assert names("a") == ["a/secret.md", "a/sub/secret.md"]
    assert names("a/sub") == ["a/sub/secret.md"]
    os.chdir("a/sub")
    assert names(".") == ["secret.md"]
    assert names(".", ignore=False) == ["private.md", "secret.md", "x.md"]


def test_rules_of_a_folder_hold_by_its_own_name_and_through_a_link(here: Path) -> None:
    write(here, "repo/docs/x.log", "repo/docs/y.txt")
    (here / "repo/.git").mkdir()
    (here / "repo/.gitignore").write_text("*.log\n")
    (here / "link").symlink_to("repo")
    assert names("link") == ["link/docs/y.txt"]
    assert names(here / "repo/docs") == [f"{here}/repo/docs/y.txt"]


SETTINGS = [  # ~/.gitconfig, and where the rules are
    ("[core]\n\texcludesFile = ~/rules\n", "home/rules"),
    ('[Core] ExcludesFile = "~/my rules" ; of mine\n', "home/my rules"),
    ("[core]\nexcludesfile = ~/old\n[user]\nname = x\n[core]\nexcludesfile=~/rules", "home/rules"),
    ("[core]\nexcludesfile = ~/ru\\\nles\n", "home/rules"),
    ("[include]\npath = more.ini\n", "home/rules"),
    ("[user]\nname = x\n", "home/.config/git/ignore"),
    ("[core]\nexcludesFile\n", ""),
    ("[core]\nexcludesFile = ~/rules\n[broken\n", "home/rules"),
    ('[core "x"]\nexcludesFile = ~/rules\n', "home/.config/git/ignore"),
    ("[core]\nexcludesFile = global\n", "work/global"),
]


@pytest.mark.parametrize(("settings", "rules"), SETTINGS)
def test_the_file_that_git_is_set_to_is_obeyed(
    here: Path, settings: str, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = here.parent
    write(here, "docs/old.bak.md", "docs/new.md")
    (here / ".git").mkdir()
    write(root, "home/.gitconfig", content=settings)
    write(root, "home/more.ini", content="[core]\nexcludesfile = ~/rules\n")
    if rules:
        write(root, rules, content="*.bak.md\n")
    found = [name for name in names(".") if name.startswith("docs")]
    assert found == ["docs/new.md"] if rules else ["docs/new.md", "docs/old.bak.md"]
    assert "docs/old.bak.md" in names(".", ignore=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert ("docs/old.bak.md" in names(".")) == (rules != "home/.config/git/ignore")


@needs_git
def test_settings_of_a_repository_and_of_the_environment_weigh_more(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = here.parent
    write(here, "a", "b", "c", "d")
    for letter in "abcd":
        write(root, f"rules-{letter}", content=f"{letter}\n")
    write(root, "home/.config/git/config", content=f"[core]\nexcludesfile = {root}/rules-a\n")
    subprocess.run(["git", "init", "-q"], check=True)
    assert names(".") == ["b", "c", "d"]
    write(root, "home/.gitconfig", content="[core]\nexcludesfile = ~/../rules-b\n")
    assert names(".") == ["a", "c", "d"]
    subprocess.run(["git", "config", "core.excludesFile", f"{root}/rules-c"], check=True)
    assert names(".") == ["a", "b", "d"]
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.excludesFile")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"{root}/rules-d")
    assert names(".") == ["a", "b", "c"]
    listed = subprocess.run(
        ["git", "ls-files", "-o", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == ["a", "b", "c"]


@needs_git
def test_a_worktree_has_the_rules_of_its_repository(here: Path) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q", "main"], check=True)
    subprocess.run(
        ["git", *who, "-C", "main", "commit", "-q", "--allow-empty", "-m", "x"], check=True
    )
    subprocess.run(["git", "-C", "main", "worktree", "add", "-q", "../other"], check=True)
    (here / "main/.git/info/exclude").write_text("*.tmp\n")
    write(here, "other/x.tmp", "other/y")
    assert names("other") == ["other/y"]
    assert names(here / "other") == [f"{here}/other/y"]


@pytest.mark.timeout(20)
def test_settings_that_include_themselves_many_times_end(here: Path) -> None:
    more = "[include]\n" + "path = config\n" * 8
    write(here, "rules", content="b\nrules\n")
    write(here, "a", "b")
    write(here, ".git/config", content=f"[core]\nexcludesFile = {here}/rules\n{more}")
    assert names(".") == ["a"]


def test_a_folder_of_settings_whose_name_has_a_nul_is_none(here: Path) -> None:
    write(here, "x")
    (here / ".git").mkdir()
    (here / ".git/commondir").write_bytes(b"a\0b\n")
    assert names(".") == ["x"]


@pytest.mark.parametrize("what", ["pipe", "folder", "link to /dev/zero", "itself"])
def test_settings_and_rules_that_are_no_files_do_no_harm(here: Path, what: str) -> None:
    write(here, "x")
    (here / ".git/info").mkdir(parents=True)
    write(here.parent, "home/.gitconfig", content=f"[include]\npath = {here}/.git/config\n")
    for name in (".gitignore", ".ignore", ".git/config", ".git/info/exclude", ".git/commondir"):
        path = here / name
        match what:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "itself":
                path.symlink_to(path)
            case _:
                path.symlink_to("/dev/zero")
    assert names(".") == ["x"]


def test_settings_that_include_one_another_again_and_again_are_read_up_to_a_bound(
    here: Path,
) -> None:
    write(here, "x", "y", content="text\n")
    write(here, ".git/config", content="[include]\n" + "path = config\n" * 200)
    write(here, "rules", content="y\n")
    write(here.parent, "home/.gitconfig", content="[core]\nexcludesFile = rules\n")
    began = time.process_time()
    assert names(".") == ["rules", "x"]
    assert time.process_time() - began < 8


@pytest.mark.parametrize("name", ["a\0b", "~a\0b/c", "~", "a/" * 3000])
def test_a_name_that_no_file_has_is_no_file_of_rules(here: Path, name: str) -> None:
    write(here, "x")
    write(here, ".git/config", content=f"[include]\npath = {name}\n[core]\nexcludesfile = {name}")
    assert names(".") == ["x"]
    (here / ".git/config").unlink()
    (here / ".git").rmdir()
    write(here, ".git", content=f"gitdir: {name}\n")
    assert names(".") == ["x"]
