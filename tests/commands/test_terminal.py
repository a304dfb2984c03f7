"""Nothing of a file, a name or a model reaches a terminal as it is; a pipe gets the bytes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from changed_gguf import changed

ESC = "\x1b]0;title\x07\x1b[31m"
SHOWN = "\\x1b]0;title\\x07\\x1b[31m"
NAME = "n\x1b[2J\u202e\x9b31m"  # of a file: an escape, a direction, a control of one byte
NAME_SHOWN = "n\\x1b[2J\\u202e\\x9b31m"
# What a terminal obeys; the line ends are the terminal's own.
OBEYED = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]"
)


@pytest.fixture(scope="module")
def files(tiny_model, tiny_gguf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    kind = gguf.GGUFValueType.STRING
    entries = {"gemb.prompt.query": f"{ESC}{{text}}", "general.license": ESC}
    strings = {key: (value, kind) for key, value in entries.items()}
    changed(tiny_gguf, folder / "m.gguf", {**strings, f"gemb.prompt.{ESC}": ("{text}", kind)})
    changed(tiny_gguf, folder / "arch.gguf", {}, arch=ESC)
    changed(tiny_gguf, folder / "tokenizer.gguf", {"tokenizer.ggml.model": (ESC, kind)})
    shutil.copytree(tiny_model, folder / "folder")
    (folder / "folder/README.md").write_text(f"---\nlicense: {ESC}\n---\n{ESC}\r\n")
    modules = json.loads((folder / "folder/modules.json").read_text())
    shutil.copytree(folder / "folder", folder / "modules")
    modules[1]["type"] = ESC
    (folder / "modules/modules.json").write_text(json.dumps(modules))
    (folder / "table.csv").write_text(f"query,{ESC}\na{ESC},b\n")
    (folder / NAME).write_text("hello\n")
    (folder / f"{NAME}.d").mkdir()
    (folder / os.fsdecode(b"\xff\xfe.txt")).write_text("hello\n")
    rows = "".join(f"a {number}\tb\t0.{number}\n" for number in range(1, 7))
    (folder / "sets").mkdir()
    (folder / "sets" / f"{NAME}.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}")
    return folder


def on_terminal(words: list[str], folder: Path) -> bytes:
    """Return what a command prints on a terminal, both streams."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "XDG_CACHE_HOME": f"{folder}/cache"}
    command = [sys.executable, "-m", "gemb", *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, cwd=folder,
        env=environment,
    ):  # fmt: skip
        os.close(terminal)
        printed = b""
        while True:
            try:
                part = os.read(screen, 65536)
            except OSError:  # of Linux, where the last writer has gone
                break
            if not part:
                break
            printed += part
    os.close(screen)
    return printed


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("models show m.gguf", SHOWN),
        ("models show m.gguf --json", "\\u001b]0;title\\u0007"),
        ("models show arch.gguf", SHOWN),
        ("embed -m arch.gguf -e a", SHOWN),
        ("models show tokenizer.gguf", SHOWN),
        ("models show folder", SHOWN),
        ("models show folder --card", SHOWN),
        ("embed -m modules -e a", SHOWN),
        ("embed table.csv --text-field x", SHOWN),
        ("embed table.csv", SHOWN),
        ("embed table.csv --text-field query --keep all -O csv", SHOWN),
        ("embed table.csv --text-field query --keep all -O jsonl", "embedding"),
        (f"models path {NAME}", NAME_SHOWN),
        (f"models show {NAME}.d", NAME_SHOWN),
        (f"embed -m {NAME} -e a", NAME_SHOWN),
        (f"eval mini --data {NAME}.d", NAME_SHOWN),
        ("eval m.gguf --data sets", NAME_SHOWN),
        (f"eval m.gguf --data {NAME}.d", NAME_SHOWN),
        (f"verify {NAME} mini", NAME_SHOWN),
        (f"soup {NAME} {NAME} -o s", NAME_SHOWN),
        (f"export-gguf {NAME} -o e", NAME_SHOWN),
        (f"recipes check {NAME}", NAME_SHOWN),
        (f"quantize {NAME} -o q", NAME_SHOWN),
        (f"train {NAME} -n", NAME_SHOWN),
        (f"doctor -m {NAME}.d", NAME_SHOWN),
        (f"embed --{ESC}", "no such option"),
        (f"{ESC}", "no command"),
    ],
)
def test_a_terminal_is_told_nothing_by_what_is_printed(words, shown, files):
    printed = on_terminal(words.split(" "), files)
    assert not OBEYED.search(printed), printed
    assert shown in printed.decode(), printed


def piped(words: list[str], folder: Path) -> bytes:
    command = [sys.executable, "-m", "gemb", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


def test_a_pipe_gets_the_bytes(files):
    card = (files / "folder/README.md").read_bytes()
    assert piped(["models", "show", "folder", "--card"], files) == card
    for name in (NAME, os.fsdecode(b"\xff\xfe.txt")):
        assert piped(["models", "path", name], files) == os.fsencode(files / name) + b"\n"
    words = ["embed", "table.csv", "--text-field", "query", "--keep", "all", "-O", "csv", "-q"]
    assert piped(words, files).startswith(f"id,{ESC},error,v0,".encode())


def test_json_of_text_without_a_character_is_json(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m/config_sentence_transformers.json"
    document = json.loads(path.read_text())
    document["prompts"]["\udce9 \ud800"] = "x "
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "gemb", "models", "show", str(tmp_path / "m"), "--json"]
    answer = subprocess.run(command, capture_output=True, check=False)
    if answer.returncode:  # or it is refused in a line
        assert answer.stderr.count(b"\n") == 1
        assert b"a bug" not in answer.stderr
    else:
        json.loads(answer.stdout)
