"""Making a draft: what is drawn, the losses beside NumPy, the first values, whole small runs."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from gemb.backend import Runtime, Training
from gemb.datasets.rows import open_source
from gemb.embedding.store import key_of
from gemb.errors import GembError, Stopped, UsageError
from gemb.io.caches import rows_cache
from gemb.models.checkpoint import open_checkpoint
from gemb.models.static import check_draft
from gemb.plugins import for_model
from gemb.recipe.file import load
from gemb.recipe.schema import Draft, Recipe
from gemb_torch.draft.loss import LIKENESS_TEMPERATURE, contrast, cosine_distance, likeness_gap
from gemb_torch.draft.model import MEAN, DraftModel, sif_weights
from gemb_torch.draft.run import DraftRun, draft
from gemb_torch.draft.texts import Bags, Passage, bags_of, pair_sources, read_passages
from gemb_torch.train.stop import EarlyStop
from tiny_model import TEXT

WORDS = TEXT.split()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def sentence(dice: np.random.Generator, size: int) -> str:
    return " ".join(dice.choice(WORDS, size))


@pytest.fixture
def recipe(tmp_path, tiny_model) -> Recipe:
    dice = np.random.default_rng(0)
    for name, count in (("a", 40), ("b", 12)):
        rows = [
            {"query": f"{at} {sentence(dice, 4)}", "positive": sentence(dice, 12), "title": "t"}
            for at in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    with gzip.open(tmp_path / "passages.jsonl.gz", "wt") as file:
        for at in range(10):
            row = {"text": sentence(dice, 20), **({"title": "code.py"} if at % 2 else {})}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "my.yaml").write_text(
        f"""stage: draft
init: {{from: {tiny_model}}}
data: [{{path: {tmp_path}/a.jsonl, weight: 3}}, {{path: {tmp_path}/b.jsonl, weight: 1}}]
batch: {{pairs: 8, max_tokens: 96}}
draft: {{width: 16, hidden: 48, queries: 40, documents: 16, texts: 6,
  passages: {tmp_path}/passages.jsonl.gz, passage_rows: 8}}
loss: {{matryoshka: [96, 32]}}
optimizer: {{lr: 0.03, head_lr: 3.0e-3, weight_decay: 0}}
run: {{steps: 90, log_every: 1}}
checkpoint: {{every_steps: 30}}
"""
    )
    return load(tmp_path / "my.yaml")


def run(recipe: Recipe, folder: Path, resume: str = "never", *, dry_run: bool = False) -> None:
    from gemb_torch import TorchBackend

    training = Training(
        run=folder, resume=resume, dry_run=dry_run, runtime=Runtime(threads=1), launch="none"
    )
    TorchBackend().train(recipe, training)


def losses(folder: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_makes_a_draft_that_learns(recipe, tmp_path, tiny_model) -> None:
    run(recipe, tmp_path / "run")
    shown = losses(tmp_path / "run")
    assert len(shown) == 90
    assert np.mean(shown[-5:]) < 0.8 * np.mean(shown[:5])
    folder = tmp_path / "run" / "model"
    encoder = for_model(folder).open(folder, Runtime())
    teacher = for_model(tiny_model).open(tiny_model, Runtime())
    check_draft(encoder.profile.draft_of, teacher.profile.fingerprint, "draft")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    texts = [row["positive"] for row in rows]
    own = encoder.encode(encoder.tokenize([f"t\n{text}" for text in texts]))
    right = teacher.encode(teacher.tokenize([f"title: t | text: {text}" for text in texts]))
    cosines = own @ right.T
    assert cosines.diagonal().mean() > cosines.mean() + 0.05
    assert "Made by gemb as a draft of" in (folder / "README.md").read_text()
    assert "stage draft" in (tmp_path / "run" / "report.html").read_text()


def test_a_stopped_run_goes_on_as_if_it_had_not(recipe, tmp_path) -> None:
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (parts / "model").rename(tmp_path / "gone")
    for later in (parts / "checkpoints").glob("step-000090"):
        later.rename(tmp_path / "later")
    run(recipe, parts, resume="auto")
    assert losses(parts) == losses(whole)
    for name in ("model.safetensors", "3_Dense/model.safetensors", "tokenizer.json"):
        assert (parts / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_a_signal_saves_and_the_rest_is_the_same_run(recipe, tmp_path, monkeypatch) -> None:
    run(recipe, tmp_path / "whole")
    step = DraftRun.step

    def interrupted(self, before, optimizer):
        if before.step == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, before, optimizer)

    with monkeypatch.context() as patch:
        patch.setattr(DraftRun, "step", interrupted)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 41 of 90; saved"):
            run(recipe, tmp_path / "parts")
    run(recipe, tmp_path / "parts", resume="auto")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_another_device_is_refused(recipe, tmp_path) -> None:
    training = Training(run=tmp_path / "run", dry_run=True, runtime=Runtime(device="cuda"))
    with pytest.raises(UsageError, match="a draft is trained on the CPU, not on --device cuda"):
        draft(recipe, training, EarlyStop(None))


def test_a_look_writes_nothing_and_counts(recipe, tmp_path, capsys) -> None:
    run(recipe, tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()
    out = capsys.readouterr().out
    assert "a: 30 pairs, 12 documents" in out
    assert "b: 10 pairs, 4 documents" in out
    assert "passages: 8" in out
    assert "held out: 0 rows with a text of an evaluation set" in out
    assert "steps 90, of 8 pairs and 6 documents" in out


def test_more_rows_hold_the_fewer(recipe, tiny_model, tmp_path) -> None:
    drawn = DraftRun(recipe, Training(run=tmp_path / "run", dry_run=True))
    rows = open_source(recipe.data[0], rows_cache(), strict=False)
    more = pair_sources(
        [rows], Draft(queries=35, documents=5), drawn.teacher, _tokenizer(tiny_model), 32
    )
    keys = [key_of(text.words.partition("query: ")[2]) for text in more[0].queries]
    assert keys == sorted(keys)
    fewer = [text.words for text in drawn.sources[0].queries]
    assert [text.words for text in more[0].queries][: len(fewer)] == fewer


def test_rows_that_are_held_out_are_not_taken(recipe, tiny_model, tmp_path) -> None:
    drawn = DraftRun(recipe, Training(run=tmp_path / "run", dry_run=True))
    rows = open_source(recipe.data[1], rows_cache(), strict=False)
    rows.held_out = np.arange(3, 12)
    taken = pair_sources([rows], Draft(queries=40), drawn.teacher, _tokenizer(tiny_model), 32)
    assert len(taken[0].bags) == 3


def _tokenizer(tiny_model: Path):
    from gemb.models.tokenizer import read_tokenizer

    vocabulary = open_checkpoint(tiny_model).config.vocab_size
    return read_tokenizer(tiny_model / "tokenizer.json", vocabulary)


def test_a_step_has_pairs_of_one_source_and_no_equal_negatives(recipe, tmp_path) -> None:
    drawn = DraftRun(recipe, Training(run=tmp_path / "run", dry_run=True))
    drawn.fill()
    drawn.sources[0].positive_ids[:] = 7  # all positives are equal
    names = set()
    for number in range(20):
        step = drawn.drawn(number)
        names.add(step.source)
        assert len(step.queries) == 8
        assert len(step.bags) == 8 + 6
        assert not step.same.diagonal().any()
        assert step.same.sum() == (8 * 7 if step.source == "a" else 0)
    assert names == {"a", "b"}
    again, other = drawn.drawn(3), drawn.drawn(4)
    assert (again.queries == drawn.drawn(3).queries).all()
    assert again.source != other.source or (again.queries != other.queries).any()


def test_the_tokenizer_of_a_gguf_file_is_its_folders(recipe, tiny_gguf, tmp_path) -> None:
    from msgspec import structs

    of_file = structs.replace(recipe, init=structs.replace(recipe.init, model=str(tiny_gguf)))
    drawn = DraftRun(of_file, Training(run=tmp_path / "run", dry_run=True))
    whole = DraftRun(recipe, Training(run=tmp_path / "run", dry_run=True))
    assert (drawn.documents.ids == whole.documents.ids).all()
    assert drawn.tokens == whole.tokens


def test_a_full_disk_names_the_file_that_was_written(recipe, tmp_path, monkeypatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as error:
        run(recipe, tmp_path / "run")
    assert Path(error.value.filename).is_relative_to(tmp_path / "run")
    assert error.value.filename.endswith("tokenizer.json")


def test_bags_are_the_counts_of_the_first_tokens(tiny_model) -> None:
    tokenizer = _tokenizer(tiny_model)
    texts = ["the fox the fox the", "", "def main " * 50]
    bags = bags_of(texts, tokenizer, 12)
    assert len(bags) == 3
    begin = 0
    for text, end in zip(texts, bags.ends, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:12] or [0]
        different, counts = np.unique(ids, return_counts=True)
        assert (bags.ids[begin:end] == different).all()
        assert (bags.counts[begin:end] == counts).all()
        begin = end
    some = bags.take(np.array([2, 0, 2]))
    joined = Bags.joined([bags.take(np.array([2])), bags.take(np.array([0])), some])
    assert (joined.take(np.array([0, 1])).ids == some.take(np.array([0, 1])).ids).all()
    assert (some.ends == np.cumsum([bags.ends[2] - bags.ends[1], bags.ends[0]] * 2)[:3] - 0).all()
    assert len(Bags.joined([bags.take(np.zeros(0, np.int64)), bags])) == 3


@pytest.mark.parametrize("width", [12, 20])  # a narrow teacher has fewer components than a row
def test_the_first_vectors_are_the_components_of_the_tokens(width: int) -> None:
    dice = np.random.default_rng(0)
    vectors = dice.standard_normal((30, 12)).astype(np.float32)
    has = np.arange(30) != 4
    model = DraftModel(30, width, 2 * width, 12)
    share = model.begin(vectors, has, np.ones(30))
    assert share == pytest.approx(1)
    bags = Bags(np.array([5], np.int32), np.ones(1, np.float32), np.array([1]))
    with torch.no_grad():
        [own] = model(model.embed_tokens.weight, torch.tensor([5]), bags).numpy()
    mean = vectors[has].mean(axis=0)
    centred = vectors[5] - mean
    assert np.allclose(own, centred / np.linalg.norm(centred) + MEAN * mean, atol=1e-5)
    assert not model.embed_tokens.weight[4].any()


def test_rare_tokens_weigh_more() -> None:
    bags = Bags(np.array([0, 1], np.int32), np.array([97, 1], np.float32), np.array([2]))
    weights = sif_weights(bags, 3, 0.01)
    shares = np.array([98, 2, 1]) / 101
    assert np.allclose(weights, 0.01 / (0.01 + shares))


def units(vectors: np.ndarray, width: int) -> np.ndarray:
    part = vectors[:, :width].astype(float)
    return part / np.linalg.norm(part, axis=1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_losses_are_those_of_their_definitions() -> None:
    dice = np.random.default_rng(1)
    right, own = (dice.standard_normal((7, 10)).astype(np.float32) for _ in range(2))
    same = np.zeros((7, 7), bool)
    same[2, 5] = same[5, 2] = True
    given = [torch.from_numpy(x) for x in (right, own)]
    expected: dict[str, list[float]] = {"contrast": [], "cosine": [], "likeness": []}
    for width in (10, 4):
        a, b = units(right, width), units(own, width)
        logits = np.where(same, -np.inf, a @ b.T / 0.1)
        both = [np.diag(log_softmax(x)).mean() for x in (logits, logits.T)]
        expected["contrast"].append(-sum(both))
        expected["cosine"].append((1 - (a * b).sum(1)).mean())
        others = ~np.eye(7, dtype=bool)
        p, q = (log_softmax((x @ x.T / LIKENESS_TEMPERATURE)[others].reshape(7, 6)) for x in (a, b))
        expected["likeness"].append((np.exp(p) * (p - q)).sum() / 7)
    parts = {
        "contrast": contrast(*given, torch.from_numpy(same), (10, 4), 0.1),
        "cosine": cosine_distance(*given, (10, 4)),
        "likeness": likeness_gap(*given, (10, 4)),
    }
    for name, value in parts.items():
        assert float(value) == pytest.approx(np.mean(expected[name]), rel=1e-5), name


def test_passages_are_taken_by_their_hash(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{at}", "title": "x"}) + "\n" for at in range(9)))
    every = read_passages(str(path), 0)
    assert len(every) == 9
    assert read_passages(str(path), 3) == every[:3]
    assert every[0].words == f"x\n{every[0].text}"
    assert Passage("a", None, "").words == "a"
    assert read_passages("", 5) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "not an object"),
        ('{"text": {"a": 1}}', "field 'text' is an object, not text"),
        ('{"text": " "}', "a passage is an object with text, and perhaps title"),
        ('{"text": "\\u200b"}', "a passage is an object with text, and perhaps title"),
        ('{"body": "x"}', "a passage is an object with text, and perhaps title"),
    ],
)
def test_a_line_without_a_text_is_named(tmp_path, line, message) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UsageError, match=rf"^p\.jsonl:2: {message}$"):
        read_passages(str(path), 0)


def test_passages_are_read_as_all_texts_are(tmp_path) -> None:
    lines = '{"text": "a", "title": null}\n\n{"title": "b"}\n{"text": "c", "title": "d"}\n'
    plain = tmp_path / "p.jsonl"
    plain.write_text(lines)
    passages = read_passages(str(plain), 0)
    assert sorted((title or "", text) for text, title, _ in passages) == [
        ("", "a"),
        ("b", ""),
        ("d", "c"),
    ]
    plain.write_bytes(lines.encode("utf-16"))
    assert read_passages(str(plain), 0) == passages
    short = tmp_path / "short.jsonl.gz"
    short.write_bytes(gzip.compress(lines.encode())[:-12])
    for path, message in ((short, "short.jsonl.gz"), (tmp_path / "none", "no such file of passa")):
        with pytest.raises(UsageError, match=message):
            read_passages(str(path), 0)


def test_a_loss_that_is_not_finite_changes_nothing(recipe, tmp_path) -> None:
    training = Training(run=tmp_path / "run", dry_run=True, runtime=Runtime(threads=1))
    drawn = DraftRun(recipe, training)
    drawn.fill()
    progress, optimizer = drawn._restored(None)
    with torch.no_grad():
        drawn.model.dense[1].bias.fill_(float("nan"))
    before = drawn.model.embed_tokens.weight.clone()
    with pytest.raises(GembError, match=r"step 1\b.*loss"):
        drawn.step(progress, optimizer)
    assert torch.equal(before, drawn.model.embed_tokens.weight)


def test_what_cannot_be_is_one_line(recipe, tmp_path) -> None:
    from msgspec import structs

    wide = structs.replace(recipe, loss=structs.replace(recipe.loss, matryoshka=(4096, 128)))
    with pytest.raises(UsageError, match=r"loss\.matryoshka: 4096 is wider than the teacher's"):
        DraftRun(wide, Training(run=tmp_path / "run", dry_run=True))
    few = structs.replace(recipe, draft=structs.replace(recipe.draft, queries=1, documents=1))
    with pytest.raises(UsageError, match="data: no source has two rows"):
        DraftRun(few, Training(run=tmp_path / "run", dry_run=True))


def test_another_drafts_checkpoint_is_refused(recipe, tmp_path) -> None:
    from msgspec import structs

    run(recipe, tmp_path / "run")
    other = structs.replace(recipe, draft=structs.replace(recipe.draft, width=8))
    drawn = DraftRun(other, Training(run=tmp_path / "other", runtime=Runtime(threads=1)))
    drawn.fill()
    with pytest.raises(UsageError, match="is of another draft"):
        drawn._restored(tmp_path / "run" / "checkpoints" / "step-000090")
