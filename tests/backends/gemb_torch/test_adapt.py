"""`gemb train` of the stage adapt, as it is typed: what it leaves, what stops it, if it learns."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.recipe.file import load
from gemb.training.log import read_metrics
from gemb.training.record import read_run
from gemb_torch.adapt.start import _files
from rewritten import rewrite
from tiny_decoder import write_tiny_decoder
from tiny_model import TEXT

STEPS = 6


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return write_tiny_decoder(tmp_path_factory.mktemp("decoder") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files: lines, and rows with a text; some are longer than 32 tokens."""
    choose = random.Random(0)
    folder = tmp_path_factory.mktemp("texts")

    def text() -> str:
        return " ".join(choose.choices(TEXT.split(), k=choose.randint(3, 30)))

    (folder / "lines.txt").write_text("".join(f"{text()}\n" for _ in range(80)))
    rows = [json.dumps({"text": text()}) for _ in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def _recipe(decoder: Path, texts: Path) -> str:
    return f"""
stage: adapt
init: {{from: {decoder}}}
data: [{{path: {texts / "lines.txt"}}}, {{path: {texts / "rows.jsonl"}, weight: null}}]
batch: {{max_tokens: 32, micro_tokens: 150}}
adapt: {{tokens: 400}}
optimizer: {{lr: 3e-3}}
run: {{steps: {STEPS}, log_every: 1, precision: fp32}}
checkpoint: {{every_steps: 2, keep: 9}}
"""


@pytest.fixture
def recipe(tmp_path, decoder, texts):
    path = tmp_path / "recipe.yaml"
    path.write_text(_recipe(decoder, texts))
    return path


class Train:
    """The command, in a folder of its own."""

    def __init__(self, recipe: Path) -> None:
        self.folder = recipe.parent
        self.command = [sys.executable, "-m", "gemb", "train", str(recipe), "-j", "1"]
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(recipe.parent / "cache")}

    def __call__(self, *arguments, **more):
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **more,
        )

    def start(self, *arguments):
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )


@pytest.fixture
def train(recipe):
    return Train(recipe)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def logged(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return list(read_metrics(path)) if path.exists() else []


def test_a_run_leaves_an_encoder_that_every_command_takes(train, tmp_path, decoder):
    done = train("-o", "run", "run.steps=40", "checkpoint.every_steps=0")
    assert done.returncode == 0, done.stderr
    assert "gemb: note: encoder run/model, report run/report.html" in done.stderr
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.5
    assert {name for line in logged(tmp_path / "run") for name in line["parts"]} == {
        "span3-15", "span12-50", "span32-15", "span32-50", "suffix-75"
    }  # fmt: skip
    model = open_checkpoint(tmp_path / "run" / "model")
    begin = open_checkpoint(tmp_path / "run" / "start" / "encoder")
    trained, stored = (load_file(each.folder / "model.safetensors") for each in (model, begin))
    assert all((trained[name] != stored[name]).any() for name in stored)
    for path in ("2_Dense", "3_Dense"):  # fresh, and not trained
        files = [each.folder / path / "model.safetensors" for each in (model, begin)]
        assert files[0].read_bytes() == files[1].read_bytes()
    for arguments in (
        ["embed", "-m", "run/model"],
        ["export-gguf", "run/model", "-o", "m.gguf"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gemb", *arguments],
            cwd=tmp_path, input="the red planet\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    record = read_run(tmp_path / "run")
    assert [source.name for source in record.sources] == ["lines", "rows"]
    assert record.examples[0].sides[0][0] == "input"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, decoder, texts):
    """The files of a run that nobody stopped, with its decoder and moments."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "recipe.yaml"
    path.write_text(_recipe(decoder, texts))
    done = Train(path)("-o", "run", "-q")
    assert done.returncode == 0, done.stderr
    return weights(folder / "run" / "checkpoints" / f"step-{STEPS:06d}")


def last(run: Path) -> dict[str, bytes]:
    return weights(run / "checkpoints" / f"step-{STEPS:06d}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_rest_is_the_same_run(
    number, train, undisturbed, tmp_path
):
    run = tmp_path / "run"
    process = train.start("-q", "-o", "run", "checkpoint.every_steps=0")
    until = time.monotonic() + 60
    while not logged(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "the same command with --resume auto goes on" in said.splitlines()[-1]
    done = train("-q", "-o", "run", "checkpoint.every_steps=0", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert last(run) == undisturbed
    assert [line["step"] for line in logged(run)] == list(range(1, STEPS + 1))


def test_a_run_goes_on_from_each_of_its_checkpoints(train, undisturbed, tmp_path):
    assert train("-q", "-o", "run").returncode == 0
    for step in (2, 4):
        shutil.rmtree(tmp_path / "run" / "model")
        done = train("-q", "-o", "run", "--resume", f"run/checkpoints/step-{step:06d}")
        assert done.returncode == 0, done.stderr
        assert last(tmp_path / "run") == undisturbed
    # Ended: nothing is trained again.
    done = train("-o", "run", "--resume", "auto")
    assert "run has ended; its model is run/model" in done.stderr


def test_a_random_cross_attention_learns_alone_first(train, tmp_path):
    options = ["adapt.cross_attention=random", "adapt.cross_warmup_steps=3", "-q", "-o", "run"]
    options.append("checkpoint.every_steps=1")
    done = train(*options)
    assert done.returncode == 0, done.stderr
    found = {
        step: tmp_path / "run" / "checkpoints" / f"step-{step:06d}" for step in range(1, STEPS + 1)
    }
    begin = load_file(tmp_path / "run" / "start" / "encoder" / "model.safetensors")
    encoders = {step: load_file(path / "model/model.safetensors") for step, path in found.items()}
    assert all((encoders[3][name] == begin[name]).all() for name in begin)
    assert all((encoders[4][name] != begin[name]).any() for name in begin)
    decoders = {step: load_file(path / "state/decoder.safetensors") for step, path in found.items()}
    for name in decoders[1]:
        assert (decoders[1][name] != decoders[3][name]).any() == ("cross_attn" in name), name
    whole = weights(found[STEPS])
    # Each of them goes on to the same end: in the warm-up, at its end, and after it.
    for step in (2, 3, 5):
        shutil.rmtree(tmp_path / "run" / "model")
        done = train(*options, "--resume", str(found[step]))
        assert done.returncode == 0, done.stderr
        assert weights(found[STEPS]) == whole, step


def test_the_micro_batch_changes_nothing_but_rounding(train, tmp_path):
    for run, tokens in (("a", "100"), ("b", "400")):
        done = train("-q", "-o", run, f"batch.micro_tokens={tokens}", "run.steps=2")
        assert done.returncode == 0, done.stderr
    one, two = (logged(tmp_path / run) for run in "ab")
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_as_one(train, tmp_path):
    for run, processes in (("one", "1"), ("two", "2")):
        done = train("-q", "-o", run, "--nproc", processes, "run.steps=3", "--device", "cpu")
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / run / "model/model.safetensors") for run in ("one", "two"))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    # Adam's first steps have the size of lr, 3e-3, whatever the gradient's: where that is about
    # zero, rounding decides.
    far = [(np.abs(one[name] - two[name]) > 3e-4).mean() for name in one]
    assert max(far) < 0.02


def test_prefix_lm_by_choice_in_bf16_with_recomputed_layers(train, tmp_path):
    options = ["adapt.objective=prefix_lm", "run.precision=bf16"]
    done = train("-q", "-o", "run", *options, "run.activation_checkpointing=true", "run.steps=30")
    assert done.returncode == 0, done.stderr
    lines = logged(tmp_path / "run")
    assert all(set(line["parts"]) == {"prefix_lm"} for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_layers_and_tokens_can_be_cut_and_marks_are_kept(train, tmp_path):
    done = train("-q", "-o", "run", "init.keep_layers=0-1", "init.vocab=380", "run.steps=1")
    assert done.returncode == 0, done.stderr
    config = open_checkpoint(tmp_path / "run" / "model").config
    assert (config.num_hidden_layers, config.vocab_size) == (2, 380)


def test_a_look_shows_the_texts_and_writes_nothing(train, tmp_path, recipe):
    done = train("-n")
    assert done.returncode == 0, done.stderr
    for words in ("lines", "rows.jsonl:", "input     <bos>", "target    <unused0>", "tokens/s"):
        assert words.replace("rows.jsonl:", "JSONL (text)") in done.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"recipe.yaml", "cache"}


def limit_files() -> None:
    """Let no file become longer than 200,000 bytes: as a full disk, but without a disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_disk_that_is_full_ends_the_run_in_one_line(train, tmp_path, undisturbed):
    done = train("-q", "-o", "run", preexec_fn=limit_files)
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "file too large" in done.stderr.lower()
    assert not list((tmp_path / "run").glob("start/*"))
    done = train("-q", "-o", "run", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert last(tmp_path / "run") == undisturbed


def test_texts_that_changed_since_the_checkpoint_are_refused(train, tmp_path, texts):
    own = tmp_path / "own.txt"
    own.write_bytes((texts / "lines.txt").read_bytes())
    options = ("-q", "-o", "run", f"data.0.path={own}", "--resume", "auto")
    process = train.start(*options)
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    own.write_text(own.read_text() + "one more text\n")
    done = train(*options)
    assert done.returncode == 2
    assert "own changed since the checkpoint" in done.stderr
    own.unlink()
    done = train(*options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"{own}: no such file or folder of texts" in done.stderr


def test_a_decoder_whose_time_was_set_back_is_another(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    before = _files(tmp_path)
    assert _files(tmp_path) == json.loads(json.dumps(before)) == before
    rewrite(tmp_path / "config.json", b"1", b"2")
    assert _files(tmp_path) != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("init.from={tiny_model}",), 2, "it is an encoder already; the stages pretrain"),
        (("init.from=nowhere.gguf",), 4, "nowhere.gguf: no such file or folder"),
        (("data.0.path=gone.jsonl",), 2, "gone.jsonl: no such file or folder of texts"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(train, tiny_model, arguments, code, message):
    done = train("-q", "-o", "run", *(one.format(tiny_model=tiny_model) for one in arguments))
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.max_tokens=396", "has tokens 400: a text of 396 tokens (batch.max_tokens)"),
        ("loss.contrastive={}", "loss.contrastive is of vectors, and adaptation"),
        ("eval.data=builtin:tiny", "is of vectors, which adaptation does not train"),
        ("run.shard=fsdp2", "is fsdp2, which adaptation does not have; take none"),
        ("adapt.objective=bert", "must be one of ul2, prefix_lm"),
        ("adapt.cross_attention=random", "leaves none of 6 steps (run.steps) to the rest"),
        ("stage=pretrain", "is of the stage adapt, not of pretrain; null leaves it out"),
    ],
)
def test_what_does_not_go_together_is_named(recipe, override, message):
    with pytest.raises(UsageError) as refusal:
        load(recipe, [override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_numbers_that_are_not_finite_stop_with_the_step_and_its_texts(train):
    done = train("-q", "optimizer.lr=1e30", "optimizer.max_grad_norm=0", "-o", "run")
    assert done.returncode == 5
    (line,) = done.stderr.strip().splitlines()
    assert "is not finite; rows " in line
    assert "lines:" in line or "rows:" in line


def test_too_few_marks_are_refused(train, tiny_model, tmp_path):
    from gemb.models.tokenizer import load_tokenizer
    from gemb.training.ul2 import UL2
    from gemb_torch.adapt.start import ids_of

    tokenizer = load_tokenizer(tiny_model / "tokenizer.json", 10_000)
    assert ids_of(tokenizer, tiny_model, UL2, 10).marks.tolist() == [5]
    with pytest.raises(UsageError, match=r"1 marks .* a text of 200 tokens may need 10; lower"):
        ids_of(tokenizer, tiny_model, UL2, 200)


def test_losses_and_gradients_are_cross_entropys(monkeypatch):
    from gemb_torch.model import seq2seq as token_loss

    monkeypatch.setattr(token_loss, "_LOGITS", 50 * 7)  # 7 tokens at a time
    generator = torch.manual_seed(0)
    states = torch.randn(30, 12, generator=generator, requires_grad=True)
    table = torch.randn(50, 12, generator=generator, requires_grad=True)
    targets = torch.randint(50, [30], generator=generator)
    total, each = token_loss.token_losses(states, table, targets)
    (total * 0.5).backward()
    ours = states.grad, table.grad
    states.grad = table.grad = None
    expected = torch.nn.functional.cross_entropy(states @ table.T, targets, reduction="none")
    torch.testing.assert_close(each, expected.detach())
    (expected.sum() * 0.5).backward()
    torch.testing.assert_close(ours[0], states.grad)
    torch.testing.assert_close(ours[1], table.grad)
