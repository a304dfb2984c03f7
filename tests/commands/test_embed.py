"""`gemb embed` as a process, with a backend found as a folder that a third party installed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.embedding.formats.read import read_vectors


def rows(output: bytes) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def test_lines_become_vectors_in_order_with_the_document_prompt(gemb: Gemb) -> None:
    done = gemb("embed", stdin="red\ngreen\nred\n")
    assert (done.returncode, done.stderr) == (0, b"")
    found = rows(done.stdout)
    assert [row["id"] for row in found] == [1, 2, 3]
    assert found[0]["embedding"] == found[2]["embedding"] != found[1]["embedding"]
    assert abs(np.linalg.norm(found[0]["embedding"]) - 1) < 1e-6
    assert {row["task"] for row in found} == {"document"}
    assert found[0]["tokens"] == len(["<bos>", "title:", "none", "|", "text:", "red", "<eos>"])
    spelt = gemb("embed", "--prompt", "title: none | text: {text}", "-e", "red")
    assert rows(spelt.stdout)[0]["embedding"] == found[0]["embedding"]
    assert rows(spelt.stdout)[0]["task"] == "custom"
    raw = gemb("embed", "--task", "none", "-e", "title: none | text: red")
    assert rows(raw.stdout)[0]["embedding"] == found[0]["embedding"]


def test_the_models_own_prompts_are_used_and_change_the_fingerprint(gemb: Gemb) -> None:
    write_model(gemb.model, prompts={"query": "ask: "})
    query = rows(gemb("embed", "--task", "query", "-e", "red").stdout)[0]
    spelt = rows(gemb("embed", "--prompt", "ask: {text}", "-e", "red").stdout)[0]
    other = rows(gemb("embed", "-e", "red").stdout)[0]
    assert query["embedding"] == spelt["embedding"] != other["embedding"]
    assert query["fingerprint"] == spelt["fingerprint"] != other["fingerprint"]


def test_an_empty_row_becomes_an_error_and_spoils_nothing(gemb: Gemb) -> None:
    done = gemb("embed", stdin=b"red\n\nbad \xff\ngreen poison\ngreen\n")
    assert done.returncode == 3
    found = rows(done.stdout)
    assert [row.get("error", {}).get("code") for row in found] == [
        None,
        "empty",
        "invalid_utf8",
        "failed",
        None,
    ]
    green = rows(gemb("embed", "-e", "green").stdout)[0]
    assert found[4]["embedding"] == green["embedding"]
    lines = done.stderr.decode().splitlines()
    assert "gemb: warning: 1 of 5 rows have no vector: empty (first: line 2)" in lines
    assert lines[-1] == "gemb: 3 of 5 rows failed: they have an error in the place of a vector"


def test_an_empty_input_is_no_failure_and_is_said(gemb: Gemb) -> None:
    done = gemb("embed")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == "gemb: note: the input has no text, so there are no vectors\n"
    assert gemb("embed", "-q").stderr == b""


def test_a_suffix_that_names_no_format_is_said(gemb: Gemb) -> None:
    done = gemb("embed", "-e", "red", "-o", "v.npi")
    assert done.returncode == 0
    assert done.stderr.decode() == "gemb: note: v.npi gets JSON lines; -O names another format\n"
    assert len(rows((gemb.folder / "v.npi").read_bytes())) == 1
    for name, more in (("v.jsonl", ()), ("v.json", ()), ("v", ()), ("v.dat", ("-O", "npy"))):
        assert gemb("embed", "-e", "red", "-o", name, *more).stderr == b""


def test_failed_rows_can_be_left_out_or_end_the_run(gemb: Gemb) -> None:
    done = gemb("embed", "--on-error", "skip", stdin="red\n\ngreen\n")
    assert (done.returncode, [row["id"] for row in rows(done.stdout)]) == (3, [1, 3])
    done = gemb("embed", "--on-error", "fail", "-o", "v.npy", stdin="red\n\ngreen\n")
    assert done.returncode == 3
    assert b"gemb: line 2: the text is empty; stopped (--on-error fail)" in done.stderr
    assert not (gemb.folder / "v.npy").exists()


def test_long_rows_are_cut_and_counted(gemb: Gemb) -> None:
    long = " ".join(f"w{number}" for number in range(50_000))
    text = f"red\n{long}\n"
    began = time.monotonic()
    done = gemb("embed", stdin=text)
    assert time.monotonic() - began < 10
    assert (done.returncode, rows(done.stdout)[1]["truncated"]) == (0, True)
    assert rows(done.stdout)[1]["tokens"] == 50_000 + 6
    assert b"1 of 2 rows were cut at 32 tokens (first: line 2); see --on-long" in done.stderr
    done = gemb("embed", "--on-long", "error", stdin=text)
    assert (done.returncode, rows(done.stdout)[1]["error"]["code"]) == (3, "too_long")
    done = gemb("embed", "--on-long", "skip", stdin=text)
    assert (done.returncode, len(rows(done.stdout))) == (0, 1)
    assert b"1 of 2 rows had over 32 tokens and were left out" in done.stderr


def test_an_array_has_nan_for_a_failed_row_and_its_description_beside_it(gemb: Gemb) -> None:
    done = gemb("embed", "--dim", "256", "-o", "v.npy", stdin="red\n\ngreen\n")
    assert done.returncode == 3
    assert b"1 of 3 rows failed: they are NaN" in done.stderr
    found = read_vectors(gemb.folder / "v.npy")
    full = rows(gemb("embed", "-e", "green").stdout)[0]["embedding"]
    cut = np.array(full[:256]) / np.linalg.norm(full[:256])
    np.testing.assert_allclose(found.vectors[2], cut, atol=1e-7)  # float32 rounding
    assert np.isnan(found.vectors[1]).all()
    assert found.spec is not None
    assert found.spec.dim == 256
    assert sorted(path.name for path in gemb.folder.iterdir()) == [
        "model.fake",
        "v.npy",
        "v.npy.json",
    ]


@pytest.mark.parametrize("form", ["jsonl", "npy", "npz", "parquet", "csv", "f32", "base64"])
def test_a_pipe_has_the_same_bytes_as_a_file(gemb: Gemb, form: str) -> None:
    text = "".join(f"word{number} of many\n" for number in range(300))
    piped = gemb("embed", "-O", form, stdin=text)
    assert gemb("embed", "-O", form, "-o", "v", stdin=text).returncode == piped.returncode == 0
    if form not in ("jsonl", "parquet"):  # their rows may be grouped otherwise
        assert (gemb.folder / "v").read_bytes() == piped.stdout
    assert len(piped.stdout) > 300 * 768


def test_fields_of_a_table_are_used_and_kept(gemb: Gemb) -> None:
    (gemb.folder / "r.csv").write_text("key,body,title,stars\nk1,red,T,5\nk2,green,,1\n")
    arguments = ("--text-field", "body", "--title-field", "title", "--id-field", "key")
    found = rows(gemb("embed", "r.csv", *arguments, "--keep", "stars").stdout)
    assert [(row["id"], row["stars"]) for row in found] == [("k1", "5"), ("k2", "1")]
    titled = rows(gemb("embed", "--task", "none", "-e", "title: T | text: red").stdout)[0]
    assert found[0]["embedding"] == titled["embedding"]
    assert gemb("embed", "r.csv", *arguments, "--keep", "all", "-o", "v.parquet").returncode == 0
    assert list(read_vectors(gemb.folder / "v.parquet").ids) == ["k1", "k2"]


def test_shards_together_are_the_whole(gemb: Gemb) -> None:
    text = "".join(f"word{number}\n" for number in range(10))
    whole = gemb("embed", stdin=text).stdout.splitlines()
    parts = [
        gemb("embed", "--shard", f"{part}/3", stdin=text).stdout.splitlines() for part in (1, 2, 3)
    ]
    assert [part[0] for part in parts] == whole[:3]
    assert sorted(line for part in parts for line in part) == sorted(whole)


def test_vectors_come_while_the_input_idles(gemb: Gemb) -> None:
    process = gemb.start("embed")
    assert process.stdin
    assert process.stdout
    for number in (1, 2):
        process.stdin.write(b"red\n")
        process.stdin.flush()
        # Would wait for ever if the row were held back until the input ends.
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdin.close()
    assert process.wait(10) == 0


def test_a_reader_that_leaves_ends_it_quietly(gemb: Gemb) -> None:
    process = gemb.start("embed")
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(BrokenPipeError):  # endless input, one row read
        process.stdin.write(b"red and green\n" * 100)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        while True:
            process.stdin.write(b"red and green\n" * 100)
            process.stdin.flush()
    assert process.wait(10) == 141
    assert process.stderr
    assert process.stderr.read() == b""


def test_ctrl_c_stops_within_a_second_and_keeps_what_was_written(gemb: Gemb) -> None:
    write_model(gemb.model, sleep_s=30.0)
    for presses in (1, 2):
        process = gemb.start("embed")
        assert process.stdin
        process.stdin.write(b"red\n")
        process.stdin.flush()
        time.sleep(1.0)
        began = time.monotonic()
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
        code = process.wait(10)
        assert time.monotonic() - began < 1.5
        assert code == 130 if presses == 1 else code in (130, -signal.SIGINT)
        assert process.stderr
        assert process.stderr.read().strip() in (b"gemb: interrupted", b"")


def test_a_terminal_gets_a_preview_and_a_pipe_the_numbers(gemb: Gemb) -> None:
    ours, theirs = pty.openpty()
    process = gemb.start("embed", "-e", "red", stdout=theirs)
    assert process.wait(10) == 0
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    vector = rows(gemb("embed", "-e", "red").stdout)[0]["embedding"]
    assert shown.startswith(f"1  [{vector[0]:+.4f} {vector[1]:+.4f} ")
    assert "...]  768 dims, 7 tokens" in shown
    assert len(shown) < 100


def test_a_terminal_for_input_gets_help_not_silence(gemb: Gemb) -> None:
    ours, theirs = pty.openpty()
    process = gemb.start("embed", stdin=theirs)
    assert process.wait(10) == 2
    os.close(theirs)
    os.close(ours)
    assert process.stderr
    assert b"Nothing to embed: standard input is a terminal" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["hello"], 2, "no such file: hello; to embed the words: gemb embed -e hello"),
        (["."], 2, ". is a folder; name its files: gemb embed ./*"),
        (
            ["-e", "x", "--dim", "300"],
            2,
            "300 dimensions: the model was trained for 768, ",
        ),
        (["-e", "x", "--backend", "nosuch"], 2, "no backend 'nosuch'; installed: fake, "),
        (["-e", "x", "-m", "no/such.fake"], 4, "no/such.fake"),
        (["-e", "x", "-o", "."], 2, ". is a folder; -o names a file in it"),
        (["-e", "x", "-o", "no/v.npy"], 2, "no such folder: no; make it first: mkdir -p no"),
        ([""], 2, "an empty name for a FILE"),
        (["-e", "x", "-o", ""], 2, "an empty name for -o"),
        (["-e", "x", "--resume"], 2, "--resume needs -o FILE"),
        (["-e", "x", "y"], 2, "-e TEXT and FILE are both given"),
        (["-e", "x", "--prompt", "words"], 2, "--prompt 'words' has no {text}"),
        (["-e", "x", "--prompt", "{text}", "--task", "qa"], 2, "--prompt and --task are both"),
        (
            ["-e", "x", "-O", "f32", "--dtype", "int8"],
            2,
            "-O f32 is f32 alone; --dtype int8",
        ),
        (["-e", "x", "--keep", "id"], 2, "--id-field id makes it the row's id"),
        (["-e", "x", "-O", "npy", "--keep", "a"], 2, "--keep: npy holds numbers alone"),
        (["-e", "x", "--shard", "9/3"], 2, "--shard 9/3: I goes from 1 to N"),
    ],
)
def test_what_is_wrong_is_one_line(gemb: Gemb, arguments: list[str], code: int, line: str) -> None:
    done = gemb("embed", *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    (shown,) = done.stderr.decode().splitlines()
    assert shown.startswith("gemb: ")
    assert line in shown


def test_closed_streams_are_one_line(gemb: Gemb) -> None:
    command = "exec " + " ".join(gemb.command("embed"))
    for shell, line in (
        (f"{command} <&-", "standard input is closed; give a FILE or -e TEXT"),
        (f"{command} -e x >&-", "standard output is closed; write to a file with -o FILE"),
        (f"{command} -e x >/dev/full", "standard output: no space left on device; free some space"),
    ):
        done = subprocess.run(
            ["bash", "-c", shell],
            cwd=gemb.folder,
            env=gemb.environment,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode in (2, 5)
        (shown,) = done.stderr.decode().splitlines()
        assert line in shown


def test_binary_input_is_counted_row_by_row(gemb: Gemb) -> None:
    data = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    done = gemb("embed", "--task", "none", stdin=data)
    assert done.returncode == 3
    found = rows(done.stdout)
    assert len(found) == len(data.splitlines())
    assert [row["id"] for row in found] == list(range(1, len(found) + 1))
    assert b"rows have no vector: invalid_utf8" in done.stderr


def test_repeats_are_computed_once(gemb: Gemb, tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_model(gemb.model, log=str(log))
    assert gemb("embed", stdin="red\ngreen\n" * 3000).returncode == 0
    assert sum(map(int, log.read_text().split())) == 2


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_for_a_terminals_stderr_alone(gemb: Gemb, quiet: bool) -> None:
    write_model(gemb.model, sleep_s=0.3)
    (gemb.folder / "t.txt").write_text("".join(f"word{number}\n" for number in range(3000)))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    arguments = ["embed", "t.txt", "-o", "v.npy", *(["-q"] if quiet else [])]
    process = gemb.start(*arguments, stderr=theirs)
    assert process.wait(30) == 0
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    if quiet:
        assert shown == b""
    else:
        assert b" rows, " in shown
        assert b" tokens/s]" in shown
        assert b"%|" in shown, "the size of a file is known, so a share is shown"


def test_latin_1_is_an_error_of_its_row_wherever_it_comes_from(gemb: Gemb) -> None:
    (gemb.folder / "l.csv").write_bytes(b"id,text\n1,caf\xe9\n2,ok\n")
    for arguments in (["l.csv", "--text-field", "text"], ["-e", os.fsdecode(b"a\xff"), "-e", "ok"]):
        done = gemb("embed", *arguments)
        assert done.returncode == 3
        assert [row.get("error", {}).get("code") for row in rows(done.stdout)] == [
            "invalid_utf8",
            None,
        ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-e", "a", "--text-field", "x"], "-e TEXT is embedded as it stands"),
        (["-e", "a", "-I", "csv"], "-e TEXT is embedded as it stands"),
        (["-0", "-I", "csv"], "-0 is for texts and JSON that end in NUL, not for csv"),
        (["--title-field", "t", "--task", "query"], "has no place for a title"),
        (["--title-field", "t", "--prompt", "{text}"], "has no place for a title"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    gemb: Gemb, arguments: list[str], line: str
) -> None:
    done = gemb("embed", *arguments, stdin='{"text":"a","t":"b"}\n')
    assert (done.returncode, done.stdout) == (2, b"")
    (shown,) = done.stderr.decode().splitlines()
    assert line in shown
