"""Completion: the scripts are current, and real shells complete real words with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemb.commands.completion import SHELLS, script

ROOT = Path(__file__).parents[2]
FILES = {"bash": "gemb.bash", "zsh": "_gemb", "fish": "gemb.fish"}


@pytest.fixture
def environment(tmp_path):
    """A PATH on which `gemb` is this interpreter's, an empty home and an empty cache."""
    tool = tmp_path / "bin" / "gemb"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from gemb.cli import main; main()" "$@"\n'
    )
    tool.chmod(0o755)
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "models" / "a.gguf").touch()
    (work / "models" / "notes.txt").touch()
    (work / "mine.gguf").touch()
    cached = tmp_path / "hf" / "hub" / "models--org--some"
    (cached / "snapshots" / "c1").mkdir(parents=True)
    (cached / "snapshots" / "c1" / "x.gguf").touch()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c1")
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    environment["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
    environment["PWD"] = str(work)
    for name in ("GEMB_MODEL", "HF_HUB_CACHE", "XDG_DATA_HOME"):
        environment.pop(name, None)
    return environment


def complete(environment: dict[str, str], line: str) -> list[str]:
    """Ask gemb as the script for fish does, without a shell."""
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'gemb'; from gemb.cli import main; main()",
        ],
        env={
            **environment,
            "COMP_WORDS": line,
            "COMP_CWORD": line.rpartition(" ")[2],
            "_GEMB_COMPLETE": "fish_complete",
        },
        cwd=environment["PWD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == ""
    rows = [row for row in answer.stdout.splitlines() if row]
    return [row.split(",", 1)[1].split("\t")[0] for row in rows]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_files_are_what_the_command_prints(shell):
    assert (ROOT / "completions" / FILES[shell]).read_text() == script(shell)


def test_clicks_bash_protocol_completes_a_command(environment):
    answer = subprocess.run(
        ["gemb"],
        env={
            **environment,
            "COMP_WORDS": "gemb em",
            "COMP_CWORD": "1",
            "_GEMB_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "plain,embed\n", "")


def test_model_references_are_completed_names_first(environment):
    assert complete(environment, "gemb embed -m m") == ["mini", "mine.gguf", "models/"]
    assert complete(environment, "gemb embed --model models/") == ["models/a.gguf"]
    assert complete(environment, "gemb embed -m embeddinggemma-300m:q") == [
        "embeddinggemma-300m:q4_0",
        "embeddinggemma-300m:q8_0",
    ]
    assert complete(environment, "gemb models show org") == ["org/some:x.gguf"]


@pytest.mark.parametrize("before", ["embed ", "embed -o ", "mine -o ", "eval --data "])
def test_files_are_left_to_the_shell_to_complete(environment, before):
    assert complete(environment, f"gemb {before}pla") == ["pla"]  # and its type, file, before it


def test_files_that_may_stand_for_a_model_are_completed(environment):
    (Path(environment["PWD"]) / "a.npy").touch()
    (Path(environment["PWD"]) / "a.json").touch()
    assert complete(environment, "gemb verify a") == ["a.npy"]
    assert complete(environment, "gemb eval --baseline a") == ["a.json"]


def test_an_unreadable_folder_completes_to_nothing(environment):
    assert complete(environment, "gemb models show nosuch/x") == []


def test_recipe_names_come_from_the_folder_of_recipes(tmp_path, monkeypatch):
    import click

    from gemb.commands.params import RecipeName
    from gemb.recipe import names as recipe_names

    monkeypatch.setattr(recipe_names, "builtin_recipes", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune.yaml").touch()
    (tmp_path / "full.yaml").touch()
    context = click.Context(click.Command("train"))
    option = click.Argument(["recipe"])
    found = RecipeName().shell_complete(context, option, "fi")
    assert [item.value for item in found] == ["finetune", "finetune.yaml"]


def in_bash(environment: dict[str, str], line: str) -> list[str]:
    """Complete a line with the script in a real bash, and return what it would offer."""
    code = """
    source "$1"
    COMP_LINE=$2 COMP_POINT=${#2}
    compopt() { :; }  # bash allows it only while it completes
    _gemb_completion gemb
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    answer = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", str(ROOT / "completions" / "gemb.bash"), line],
        env=environment,
        cwd=environment["PWD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == ""
    return answer.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_commands_values_and_after_a_colon(environment):
    assert in_bash(environment, "gemb em") == ["embed"]
    assert in_bash(environment, "gemb embed --dty") == ["--dtype"]
    assert in_bash(environment, "gemb embed -e 'two words' -m mi") == ["mini", "mine.gguf"]
    # bash itself keeps `embeddinggemma-300m:`, so only what follows is offered.
    assert in_bash(environment, "gemb embed -m embeddinggemma-300m:q4") == ["q4_0"]
    assert in_bash(environment, "gemb embed --model=mini") == ["mini"]
    assert in_bash(environment, "gemb models show org/some:") == ["x.gguf"]


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_has_no_objection_to_the_script():
    path = ROOT / "completions" / "gemb.bash"
    subprocess.run(["bash", "--norc", "-n", str(path)], check=True)
    answer = subprocess.run(
        ["bash", "--norc", "-c", f"source {path}; complete -p gemb"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-F _gemb_completion gemb" in answer.stdout


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish")
def test_fish_completes_commands_and_values(environment):
    def offered(line: str) -> list[str]:
        answer = subprocess.run(
            ["fish", "--no-config", "-c", f"source completions/gemb.fish; complete -C '{line}'"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [row.split("\t")[0] for row in answer.stdout.splitlines()]

    assert offered("gemb em") == ["embed"]
    assert offered("gemb embed -m embeddinggemma-300m:b") == ["embeddinggemma-300m:bf16"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
def test_zsh_completes_commands(environment):
    # The script's own parts, with zsh's completion functions replaced by ones that print.
    code = """
    compdef() { :; }
    source completions/_gemb
    compadd() { print -l -- $completions; }
    _describe() { print -l -- $completions_with_descriptions; }
    words=(gemb em) CURRENT=2
    _gemb_completion
    """
    answer = subprocess.run(
        ["zsh", "-f", "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith("embed:")
