"""Exit codes and error lines, made in one place; what every command has in common."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from gemb.commands import COMMANDS, all_commands

# A command that raises what it is told to, run through gemb's own main.
RAISE = """
import os, sys
import click
from gemb import cli, errors

@click.command()
def fail():
    click.echo("data")
    {statement}

cli.gemb.add_command(fail)
sys.argv = ["gemb", "fail"]
cli.main()
"""


def run(*words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemb", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **settings
    )


def fail(statement: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RAISE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
    )


@pytest.mark.parametrize(
    ("statement", "code", "line"),
    [
        ("raise errors.NegativeAnswer('the answer is no')", 1, "gemb: the answer is no"),
        ("raise errors.UsageError('not so')", 2, "gemb: not so"),
        ("raise click.UsageError('Not so.')", 2, "gemb: not so (see gemb fail --help)"),
        ("raise click.ClickException('not so')", 2, "gemb: not so"),
        ("raise errors.SomeRowsFailed('3 rows failed')", 3, "gemb: 3 rows failed"),
        ("raise errors.Missing('no model')", 4, "gemb: no model"),
        ("raise errors.GembError('it failed')", 5, "gemb: it failed"),
        (
            f"raise OSError({errno.ENOSPC}, 'No space left on device', 'out.npy')",
            5,
            "gemb: out.npy: no space left on device; free some space, or write elsewhere",
        ),
        (
            f"raise OSError({errno.EACCES}, 'Permission denied', 'out.npy')",
            5,
            "gemb: out.npy: permission denied; check its permissions",
        ),
        (
            "raise MemoryError",
            5,
            "gemb: out of memory; a smaller model, fewer threads or shorter texts may fit",
        ),
        # click begins a new line, after the ^C that a terminal shows.
        ("raise KeyboardInterrupt", 130, "\ngemb: interrupted"),
        ("raise click.Abort", 130, "gemb: interrupted"),
        ("raise BrokenPipeError", 141, None),
        (
            "raise ValueError('first\\nsecond')",
            5,
            "gemb: a bug in gemb: ValueError: first second "
            "(GEMB_DEBUG=1 shows where; please report it)",
        ),
        ("sys.exit(0)", 0, None),
    ],
)
def test_what_happens_becomes_one_line_and_an_exit_code(statement, code, line):
    answer = fail(statement)
    assert answer.returncode == code
    assert answer.stderr == (f"{line}\n" if line else "")
    assert answer.stdout == "data\n"


def test_a_real_full_disk_is_said_so():
    answer = fail("sys.stdout = open('/dev/full', 'w'); click.echo('x' * 100_000)")
    assert answer.returncode == 5
    assert "no space left on device; free some space" in answer.stderr


def test_the_traceback_is_there_for_who_asks():
    answer = fail("raise ValueError('first')", GEMB_DEBUG="1")
    assert "Traceback" in answer.stderr
    assert "Traceback" not in fail("raise ValueError('first')").stderr


@pytest.mark.parametrize(
    "statement",
    [
        "for _ in range(100_000): click.echo('x' * 1000)",
        "for _ in range(100_000): print('x' * 1000)",
        "for _ in range(100_000): os.write(1, b'x' * 1000)",
    ],
)
def test_a_reader_that_leaves_ends_the_run_quietly(statement):
    command = [sys.executable, "-c", RAISE.format(statement=statement)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, b"gemb: terminated\n"), (signal.SIGINT, 130, b"\ngemb: interrupted\n")],
)
def test_signals_unwind_and_have_their_codes(number, code, line, tmp_path):
    flag = tmp_path / "unwound"
    statement = f"""
    import time
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        open({str(flag)!r}, "w").close()"""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            RAISE.format(statement=statement.strip().replace("\n    ", "\n    ")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"data\n"
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, line)
    assert flag.exists()


def test_a_misspelt_command_gets_the_nearest_name():
    answer = run("modles")
    assert answer.returncode == 2
    assert answer.stderr == "gemb: no command 'modles'; did you mean 'models'? (see gemb --help)\n"
    assert run("models", "shwo").stderr == (
        "gemb: no command 'shwo'; did you mean 'show'? (see gemb models --help)\n"
    )
    assert run("zzzz").stderr == "gemb: no command 'zzzz' (see gemb --help)\n"


def test_what_other_tools_have_as_commands_is_named():
    assert run("version").stderr == (
        "gemb: no command 'version'; did you mean 'gemb --version'? (see gemb --help)\n"
    )
    assert run("models", "help").stderr == (
        "gemb: no command 'help'; did you mean 'gemb help models'? (see gemb models --help)\n"
    )


@pytest.mark.parametrize("words", [(), ("models",), ("recipes",), ("index",)])
def test_no_command_is_listed_with_its_sentence_cut_off(words):
    wide = {**os.environ, "COLUMNS": "80"}
    listed = run(*words, "--help", env=wide).stdout.partition("Commands:")[2]
    assert listed
    assert not [line for line in listed.splitlines() if line.endswith("...")]


def test_an_unknown_option_gets_the_nearest_one():
    answer = run("models", "ls", "--jsno")
    assert answer.returncode == 2
    assert answer.stderr.startswith("gemb: no such option")
    assert "--json" in answer.stderr
    assert answer.stderr.endswith("(see gemb models ls --help)\n")
    assert answer.stderr.count("\n") == 1


def test_names_of_options_are_not_abbreviated():
    assert run("models", "ls", "--js").returncode == 2


def test_the_version_is_the_newest_of_the_changelog():
    changes = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S*)", changes, re.MULTILINE)
    assert newest
    assert run("--version").stdout == f"gemb {newest[1]}\n"


def test_the_module_is_the_command():
    assert run("--help").stdout.startswith("Usage: gemb [OPTIONS] COMMAND")


def every_command() -> list[tuple[str, click.Command]]:
    found = []
    for command in all_commands():
        found.append((str(command.name), command))
        if isinstance(command, click.Group):
            found += [(f"{command.name} {name}", sub) for name, sub in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), every_command(), ids=lambda value: str(value)[:30])
def test_help_begins_with_one_sentence(name, command):
    first = (command.help or "").strip().split("\n\n")[0]
    assert re.fullmatch(r"[A-Z][^\n]*(\n[^\n]+)*[.]", first), first
    assert ". " not in first.replace("e.g. ", ""), "more than one sentence"


@pytest.mark.parametrize(("name", "command"), every_command(), ids=lambda value: str(value)[:30])
def test_every_option_has_help(name, command):
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"gemb {name} {parameter.opts[0]}"


def test_one_letter_means_the_same_in_every_command():
    meaning: dict[str, set[str]] = {}
    for _, command in every_command():
        for parameter in command.params:
            long = {name for name in parameter.opts if name.startswith("--")}
            for name in set(parameter.opts) - long:
                if isinstance(parameter, click.Option):
                    meaning.setdefault(name, set()).update(long)
    # search asks with -f as grep does; -k is how many are found, be they hits or negatives.
    assert {name: longs for name, longs in meaning.items() if len(longs) > 1} == {
        "-f": {"--force", "--queries"},
        "-k": {"--top-k", "--negatives"},
    }


def test_no_module_of_commands_is_left_out():
    folder = Path(click.__file__).parent
    assert folder.exists()
    modules = {p.stem for p in (Path(__file__).parents[2] / "gemb" / "commands").glob("*.py")}
    kinds = {command.callback.__module__.rpartition(".")[2] for command in all_commands()}
    shared = {"__init__", "chains", "index_options", "index_push", "options", "params", "printing"}
    shared |= {"cluster_options", "embed_ray", "quantize_table"}
    shared |= {"search_checks", "search_options", "search_output"}
    assert modules - kinds == shared


def test_a_closed_stdout_is_no_traceback():
    answer = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m gemb --version >&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in answer.stderr


INTERRUPTED_IMPORT = """
import builtins, os, signal
from gemb.__main__ import main
real = builtins.__import__
def hook(name, *arguments, **named):
    if name == "gemb.cli":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments, **named)
builtins.__import__ = hook
main()
"""


def test_ctrl_c_while_the_command_is_imported_is_quiet():
    answer = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "")


def test_an_error_of_several_lines_becomes_one():
    answer = subprocess.run(
        [sys.executable, "-m", "gemb", "completion"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "Choose from: bash, zsh, fish" in answer.stderr


def test_help_comes_at_once_while_stdin_stays_open():
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemb", "--help"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.read().startswith(b"Usage")
    process.communicate()
    assert time.monotonic() - started < 10


def test_an_option_that_was_removed_names_what_stands_in_its_place():
    assert run("search", "--format", "{path}", "x").stderr == (
        "gemb: no option '--format' any more: write lines of your own with --json | jq -r: "
        "gemb help search has one\n"
    )
    assert "train adapt takes a real Gemma 3 text model" in run("cut", "--as-decoder", "m").stderr


def test_a_command_is_listed_as_its_help_begins():
    for name, entry in COMMANDS.items():
        command = entry.load()
        assert command.name == name
        assert (command.help or "").splitlines()[0] == f"{entry.summary}."
