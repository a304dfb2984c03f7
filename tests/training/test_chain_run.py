"""Chains as they are run: what is done again and what is not, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemb.errors import UsageError
from gemb.models import fingerprint
from gemb.models.checkpoint import open_checkpoint
from gemb.models.fingerprint import path_fingerprint
from gemb.recipe.chain import read_chain
from gemb.recipe.yaml_text import Place, read_text
from gemb.training.chain_run import ChainRun
from rewritten import rewrite
from tiny_model import TinyShape, write_tiny_model

Answer = subprocess.CompletedProcess[str]
Go = Callable[..., Answer]
# Soups need no tensor library, and a soup of one is that one, bit for bit.
SOUPS = """\
stages:
  one: {run: soup ../a=1}
  two: {run: soup stage:one}
  both: {run: soup stage:two ../b}
  same: {run: verify stage:one stage:both --min-cosine -1}
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder beside two tiny models."""
    for seed, name in enumerate("ab"):
        write_tiny_model(tmp_path / name, TinyShape(seed=seed))
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def go(work: Path) -> Go:
    """Run a chain to its end."""

    def run(text: str, *words: str) -> Answer:
        (work / "my.yaml").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "gemb", "train", "my.yaml", *words],
            cwd=work,
            env=environment(work),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def environment(work: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}


def states(answer: Answer) -> dict[str, str]:
    """Return what was said of each stage."""
    assert answer.returncode == 0, answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines()]
    head = next(number for number, row in enumerate(rows) if row[:2] == ["STAGE", "KIND"])
    return {row[0]: row[2] for row in rows[head + 1 :]}


def refusal(answer: Answer, code: int) -> str:
    assert answer.returncode == code, answer.stderr
    return answer.stderr.splitlines()[-1]


def test_a_chain_makes_what_its_stages_say_and_a_second_run_makes_nothing(go, work):
    assert states(go(SOUPS, "-o", "run")) == dict.fromkeys(("one", "two", "both", "same"), "new")
    weights = [
        open_checkpoint(folder).tensors["embed_tokens.weight"].float32()
        for folder in (work / "../a", work / "../b", work / "run/both/model")
    ]
    assert ((weights[0] + weights[1]) / 2 == weights[2]).all()
    assert "cosine" in (work / "run/stages/same.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in (work / "run").rglob("model.safetensors")}
    again = go(SOUPS, "-o", "run")
    assert states(again) == dict.fromkeys(("one", "two", "both", "same"), "done")
    assert again.stdout.startswith("STAGE"), "nothing else was run"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    resolved = (work / "run/chain.yaml").read_text()
    assert set(states(go(resolved, "-o", "run")).values()) == {"done"}


def test_what_changed_is_run_again_and_what_rests_on_it(go, work):
    states(go(SOUPS, "-o", "run"))
    changed = SOUPS.replace("stage:two ../b", "stage:two=1 ../b=3")
    answer = go(changed, "-o", "run")
    assert states(answer) == {"one": "done", "two": "done", "both": "again", "same": "again"}
    assert "both: again (run is soup stage:two=1 ../b=3, was soup stage:two ../b)" in answer.stderr
    shutil.rmtree(work / "../a")
    write_tiny_model(work / "../a", TinyShape(seed=7))
    answer = go(changed, "-o", "run")
    assert set(states(answer).values()) == {"again"}
    assert "one: again (../a is another one now)" in answer.stderr


def test_a_stage_that_makes_the_same_again_changes_no_later_one(go, work):
    states(go(SOUPS, "-o", "run"))
    (work / "run/stages/one.json").unlink()
    assert states(go(SOUPS, "-o", "run")) == {
        "one": "new",
        "two": "done",
        "both": "done",
        "same": "done",
    }


def test_an_output_that_is_gone_is_missed_where_a_stage_needs_it(go, work):
    states(go(SOUPS, "-o", "run"))
    shutil.rmtree(work / "run/two/model")
    assert set(states(go(SOUPS, "-o", "run")).values()) == {"done"}, "no stage is to be run"
    line = refusal(go(SOUPS.replace("../b", "../b ../a"), "-o", "run"), 4)
    assert line == (
        "gemb: run/two/model: stage both needs it, and it is not there; put it back, or make it "
        "again with --from two"
    )
    again = go(SOUPS.replace("../b", "../b ../a"), "-o", "run", "--from", "two")
    assert states(again) == {"one": "done", "two": "new", "both": "new", "same": "new"}


def test_from_runs_a_stage_and_those_after_it_again(go, work):
    states(go(SOUPS, "-o", "run"))
    looked = go(SOUPS, "-o", "run", "--from", "both", "-n").stdout.splitlines()
    assert [line.split()[2] for line in looked[1:5]] == ["done", "done", "new", "new"]
    before = (work / "run/both/model/model.safetensors").stat().st_mtime_ns
    again = go(SOUPS, "-o", "run", "--from", "both")
    assert states(again) == {"one": "done", "two": "done", "both": "new", "same": "new"}
    assert (work / "run/both/model/model.safetensors").stat().st_mtime_ns > before
    assert set(states(go(SOUPS, "-o", "run")).values()) == {"done"}


def test_of_several_files_one_must_be_named(tmp_path):
    chain = read_chain(
        read_text(
            "stages:\n  small: {run: quantize mini -t q8_0}\n  next: {run: eval stage:small}\n",
            Place("my.yaml"),
        ),
        (),
        lambda words: None,
    )
    run = ChainRun(chain, tmp_path)
    (tmp_path / "small").mkdir()
    for name in ("model-q8_0.gguf", "model-q4_0.gguf"):
        (tmp_path / "small" / name).touch()
        if name == "model-q8_0.gguf":
            assert run.output("small") == tmp_path / "small" / name
    with pytest.raises(UsageError, match=r"is several files, model-q4_0\.gguf, model-q8_0\.gguf"):
        run.output("small")
    (tmp_path / "stages").mkdir()
    record = {"settings": chain["small"].settings, "inputs": {}, "ended": True}
    run.write_record(chain["small"], record)
    assert run.status(chain["small"]).word == "done"
    assert run.output("small", "/model-q4_0.gguf") == tmp_path / "small/model-q4_0.gguf"


def test_nothing_begins_when_an_input_of_a_later_stage_is_not_there(go, work):
    for text, path in (
        (SOUPS.replace("../b", "../c"), "../c"),
        (SOUPS + "  last: {run: eval stage:both --data dev/}\n", "dev"),
        (SOUPS + "  last: {train: smoke, with: {data: [{path: x.jsonl}]}}\n", "x.jsonl"),
    ):
        line = refusal(go(text, "-o", "run"), 4)
        assert line.startswith(f"gemb: {path}: stage ")
        assert line.endswith("needs it, and it is not there; put it there, or name another")
        assert not (work / "run").exists()


def test_every_file_that_tokens_are_counted_in_is_missed_before_anything_begins(go, work):
    (work / "here.txt").write_text("a text")
    cut = "  less: {run: cut stage:one --vocab 340 --vocab-from here.txt b.txt.gz c.txt.gz}\n"
    assert refusal(go(SOUPS + cut, "-o", "run"), 4) == (
        "gemb: b.txt.gz (the first of 2 that are not there): stage less needs it, and it is not "
        "there; put it there, or name another"
    )
    assert not (work / "run").exists()
    for output in ((), ("-o", "run")):
        looked = go(SOUPS + cut, "-n", *output)
        assert looked.returncode == 0
        assert looked.stdout.startswith("STAGE ")
        assert "gemb: note: b.txt.gz (the first of 2 that are not there): " in looked.stderr
        assert "gemb: note" not in go(SOUPS, "-n", *output).stderr


def test_a_stage_that_fails_ends_the_chain_with_its_code(go, work):
    differ = SOUPS.replace("--min-cosine -1", "--min-cosine 0.9999")
    answer = go(differ, "-o", "run")
    assert refusal(answer, 1) == (
        "gemb: stage same says no, see above and run/stages/same.txt; same.if_worse: go_on in the "
        "chain takes what it made"
    )
    assert "they differ" in answer.stderr, "its own line"
    goes_on = differ.replace("0.9999}", "0.9999, if_worse: go_on}")
    assert states(go(goes_on, "-o", "run"))["same"] == "unfinished"
    assert states(go(goes_on, "-o", "run"))["same"] == "done"
    write_tiny_model(work.parent / "wide", TinyShape(intermediate_size=96))
    broken = SOUPS.replace("soup stage:one}", "soup stage:one ../wide}")
    assert refusal(go(broken, "-o", "other"), 2) == (
        "gemb: stage two ended with exit code 2, for what stands above; the same command goes on "
        "there"
    )


def test_a_run_that_was_killed_before_it_had_written_its_chain_goes_on(go, work):
    (work / "run").mkdir()
    (work / "run/lock").write_text("4711")
    (work / "run/.chain.yaml.4711-01234567.part").write_text("stages:")
    assert states(go(SOUPS, "-o", "run"))["same"] == "new"
    assert not list((work / "run").glob(".*"))


def test_a_folder_of_others_is_left_alone(go, work):
    (work / "mine").mkdir()
    (work / "mine/letter.txt").write_text("dear")
    line = refusal(go(SOUPS, "-o", "mine"), 2)
    assert line == "gemb: mine is no run of a chain and not empty; name another folder"
    line = refusal(go(SOUPS, "-o", "my.yaml"), 2)
    assert line == "gemb: my.yaml is a file; name a folder for the chain's run"


def test_a_dry_run_tells_what_is_done_and_does_nothing(go, work):
    assert go(SOUPS, "-o", "run", "-n").returncode == 0
    assert not (work / "run").exists()
    states(go(SOUPS, "-o", "run"))
    (work / "run/stages/two.json").unlink()
    rows = [line.split() for line in go(SOUPS, "-o", "run", "-n").stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows[1:5]] == [
        ("one", "done"),
        ("two", "new"),
        ("both", "waits"),
        ("same", "waits"),
    ]


def test_a_fingerprint_is_of_names_and_bytes(tmp_path):
    def of(**files: str) -> str:
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        for name, text in files.items():
            (tmp_path / "x" / name).write_text(text)
        return path_fingerprint(tmp_path / "x")

    assert of(a="1", b="2") == of(b="2", a="1")
    different = [of(a="1", b="2"), of(a="1"), of(a="12"), of(a="1", c="2"), of(a="2", b="1")]
    assert len(set(different)) == len(different)
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    first = path_fingerprint(large)
    with large.open("r+b") as file:
        file.seek(40 << 20)
        file.write(b"x" * 100_000)
    assert path_fingerprint(large) != first


def test_a_large_table_whose_time_was_set_back_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "_MANY", 2)
    table = tmp_path / "large.jsonl"
    table.write_bytes(b"a" * 1000 + b"one" + b"a" * 1000)
    first = path_fingerprint(table)
    assert path_fingerprint(table) == first
    rewrite(table, b"one", b"two")
    assert path_fingerprint(table) != first


TRAINED = """\
stages:
  long:
    with:
      stage: pretrain
      init: {from: ../a}
      data: [{path: pairs.jsonl}]
      batch: {pairs: 4, max_tokens: 32, micro_tokens: 64}
      loss: {matryoshka: [96], contrastive: {}}
      run: {steps: 100000, log_every: 1, precision: fp32}
      checkpoint: {every_steps: 5, keep: 1}
  mean: {run: soup stage:long}
"""


@pytest.fixture
def pairs(work: Path) -> Path:
    rows = [f'{{"query": "the fox {i}", "positive": "a dog {i}"}}\n' for i in range(40)]
    (work / "pairs.jsonl").write_text("".join(rows))
    return work / "pairs.jsonl"


@pytest.fixture
def start(work: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start the chain, and end it after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        (work / "my.yaml").write_text(TRAINED)
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "gemb", "train", "my.yaml", "-o", "run"],
                cwd=work,
                env=environment(work),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def steps(work: Path) -> int:
    log = work / "run/long/metrics.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_stops_the_stage_saved_and_the_same_command_goes_on(work, pairs, start, go):
    reached = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start()
        while steps(work) < reached + 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 75, said
        last = said.splitlines()[-1]
        name = signal.Signals(number).name
        assert last == f"gemb: stopped by {name} at stage long; the same command goes on there"
        assert f"stopped by {name} after step" in said, "the stage's own words"
        assert ("resumed at step" in said) == (reached > 0)
        reached = steps(work)
        assert not (work / "run/long/model").exists()
    process = start()
    while steps(work) < reached + 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.kill(int((work / "run/long/lock").read_text().split()[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 5, said
    assert said.splitlines()[-1] == (
        "gemb: stage long was killed by SIGKILL, as a system without memory does; the same "
        "command goes on there"
    )
    # Other settings are another run; what was trained is kept.
    short = TRAINED.replace("100000", "2")
    answer = go(short, "-o", "run")
    assert states(answer) == {"long": "again", "mean": "new"}
    assert "long: again (run.steps is 2, was 100000)" in answer.stderr
    assert list((work / "run/long.before-1/checkpoints").glob("step-*"))
    assert path_fingerprint(work / "run/long/model/model.safetensors") == path_fingerprint(
        work / "run/mean/model/model.safetensors"
    )
    # How often it is saved changes no number.
    more = short.replace("every_steps: 5", "every_steps: 1")
    assert set(states(go(more, "-o", "run")).values()) == {"done"}


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_mini_chain_runs_to_its_end(tmp_path):
    if not os.environ.get("GEMB_NIGHTLY"):
        pytest.skip("GEMB_NIGHTLY is not set: it takes some five minutes")
    words = ["train", "embeddinggemma-mini", "-o", "run"]
    done, again = (
        subprocess.run(
            [sys.executable, "-m", "gemb", *words],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        for _ in range(2)
    )
    assert set(states(done).values()) == {"new"}
    assert set(states(again).values()) == {"done"}
    for name in ("quantize/model-q4_0.gguf", "export-qat/model.gguf", "eval-qat/scores.json"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        "[1]",
        "{",
        "[" * 100_000,
        '{"settings": {}, "inputs": []}',
        '{"settings": {}, "inputs": {}, "seconds": "1"}',
        '{"settings": {}, "inputs": {}, "seconds": NaN}',
    ],
)
def test_a_record_of_others_is_named_with_the_way_out(tmp_path: Path, text: str):
    chain = read_chain(read_text(SOUPS, Place("my.yaml")), (), lambda words: None)
    run = ChainRun(chain, tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "one.json").write_text(text)
    with pytest.raises(UsageError, match=r"stages/one.json is no JSON of gemb's; remove it"):
        run.status(chain["one"])
