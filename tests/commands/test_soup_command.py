"""`gemb soup` as a user types it: what is refused, in one line, and the choice by scores."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Runtime
from gemb.datasets.sets import open_suite
from gemb.errors import UsageError
from gemb.evaluation.metrics import Statistic
from gemb.evaluation.scores import MetricRow, Scores, SetDescription, Size
from gemb.models.checkpoint import open_checkpoint
from gemb.models.prompts import for_task
from gemb.plugins import for_model
from gemb.weights.ingredients import (
    Ingredient,
    IngredientSpec,
    ingredient_spec,
    last_checkpoints,
    open_ingredients,
)
from gemb.weights.soup_scores import Scorer, greedy
from model_files import contents, rewritten
from tiny_model import TinyShape, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a, b, c: models that differ in their numbers; others that differ in more; a run; sets."""
    folder = tmp_path_factory.mktemp("soups")
    for i, name in enumerate("abc"):
        write_tiny_model(folder / name, TinyShape(seed=i))
    write_tiny_model(folder / "deep", TinyShape(num_hidden_layers=4, sliding_window=32))
    rewritten(folder / "a", folder / "half", lambda name, values: ("BF16", values))
    rewritten(folder / "a", folder / "nan", lambda name, values: ("F32", values + np.nan))
    for name, file, change in (
        ("words", "tokenizer.json", lambda raw: raw["model"]["merges"].pop()),
        ("prompts", "config_sentence_transformers.json", lambda raw: raw["prompts"].pop("STS")),
        ("dims", "config_sentence_transformers.json", lambda raw: raw.update(matryoshka_dims=[96])),
        (
            "pooled",
            "1_Pooling/config.json",
            lambda raw: raw.update(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
        ),
    ):
        path = shutil.copytree(folder / "a", folder / name) / file
        raw = json.loads(path.read_bytes())
        change(raw)
        path.write_text(json.dumps(raw))
    run = folder / "run"
    for step, model in ((8, "a"), (9, "b"), (10, "c")):
        shutil.copytree(folder / model, run / "checkpoints" / f"step-{step}" / "model")
    shutil.copytree(folder / "a", run / "model")
    (run / "recipe.yaml").write_text("stage: finetune\n")
    (folder / "x.gguf").write_bytes(b"GGUF")
    (folder / "plain").mkdir()
    rows = [f"word {i} fox\tword {i + i % 4} dog\t{i % 5}" for i in range(30)]
    (folder / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    return folder


def run(folder: Path, *words: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemb", "soup", *words]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **more
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cache"}


REFUSED = [
    ("a x.gguf", 2, "x.gguf is a file; soup takes model folders"),
    ("a nosuch", 2, "no model 'nosuch' and no such path"),
    ("a ./nosuch", 4, "nosuch: no such file or folder"),
    ("a plain", 2, "plain: no model folder: it has no config.json"),
    ("a run", 2, "run is a run; name run/best, run/model, or give --last N for its checkpoints"),
    ("a=1 b", 2, "b has no weight, and others have; give all or none one"),
    ("a=0 b=1", 2, "a=0: a weight must be a number above 0; leave out what has none"),
    ("a=-1 b=1", 2, "a=-1: a weight must be a number above 0; leave out what has none"),
    ("a=nan b=1", 2, "a=nan: a weight must be a number above 0; leave out what has none"),
    ("=0.3 b", 2, "=0.3: a weight without a model; write MODEL=0.3"),
    ("a b c --method slerp", 2, "slerp is between two models, not 3"),
    ("a b --method greedy", 2, "greedy chooses by scores: name sets with --eval"),
    (
        "a=1 b=2 --method greedy --eval sts.tsv",
        2,
        "greedy chooses by itself: MODEL=WEIGHT is for --method mean and slerp",
    ),
    ("a=30% b=1", 2, "a=30%: '30%' is no weight: a number, as a=0.3"),
    ("a b --keep win", 2, "--keep win is of --method greedy; mean keeps all"),
    ("a b --eval nosuch.tsv", 2, "no such file or folder: nosuch.tsv"),
    ("run --last 4", 2, "run has 3 checkpoints, not 4; checkpoint.keep of its recipe says how"),
    ("a --last 2", 2, "a is no run: --last takes the folders that gemb train -o wrote"),
    ("run=1 --last 2", 2, "--last and MODEL=WEIGHT do not go together"),
    ("a nan", 2, "nan/model.safetensors: tensor embed_tokens.weight has nan at [0, 0]; leave"),
    ("a deep", 2, "these models cannot be averaged: num_hidden_layers, sliding_window, is_sliding"),
    ("a words", 2, "these models cannot be averaged: tokenizer.json differs"),
    ("a prompts", 2, "these models cannot be averaged: prompt STS differs"),
    ("a dims", 2, "these models cannot be averaged: matryoshka_dims differs"),
    ("a pooled", 2, "these models cannot be averaged: pooling differs"),
]


@pytest.mark.parametrize(("words", "code", "line"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_is_refused_and_nothing_is_written(folder, words, code, line):
    before = names(folder)
    answer = run(folder, *words.split(), "-o", "out")
    *table, last = answer.stderr.splitlines()
    assert (answer.returncode, answer.stdout) == (code, "")
    assert last.startswith("gemb: ")
    assert line in last
    assert bool(table) == ("cannot be averaged" in last)
    assert names(folder) == before


def test_a_difference_is_a_table(folder):
    answer = run(folder, "a", "b", "deep", "-o", "out")
    lines = [line.split() for line in answer.stderr.splitlines()]
    assert lines[0] == ["a", "deep"]  # b is as a
    assert ["num_hidden_layers", "3", "4"] in lines
    assert ["is_sliding", "sGs", "sGsG"] in lines
    assert ["layers.3.mlp.down_proj.weight", "-", "F32", "96x128"] in lines
    assert ["and", "8", "more", "tensors"] in lines
    lines = run(folder, "a", "prompts", "-o", "out").stderr.splitlines()
    assert lines[1].split(maxsplit=2)[:2] == ["prompt", "STS"]
    assert lines[1].endswith("'task: sentence similarity | query: '  -")


@pytest.mark.parametrize("output", ["a", "plain2", "x.gguf"])
def test_what_is_there_is_not_replaced_unasked(folder, output):
    (folder / "plain2").mkdir(exist_ok=True)
    (folder / "plain2" / "notes.txt").write_text("mine")
    before = contents(folder / "a")
    answer = run(folder, "a", "b", "-f", "-o", output)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert contents(folder / "a") == before
    assert names(folder / "plain2") == {"notes.txt"}


def test_a_soup_is_written_replaced_and_told_of(folder):
    answer = run(folder, "a", "b", "-o", "made")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "made: mean of 2 models, 0.3 M parameters\n"
    again = run(folder, "a=3", "b=1", "-o", "made")
    assert (again.returncode, again.stderr) == (2, "gemb: made exists; -f overwrites it\n")
    answer = run(folder, "a=3", "b=1", "-o", "made", "-f", "--json")
    told = json.loads(answer.stdout)
    assert told["fingerprint"] == open_checkpoint(folder / "made").fingerprint()
    assert {one["model"]: one["weight"] for one in told["ingredients"]} == {"a": 0.75, "b": 0.25}
    shutil.rmtree(folder / "made")


def test_a_dry_run_predicts_and_writes_nothing(folder):
    before = names(folder)
    answer = run(folder, "a", "b", "-o", "out", "-n")
    assert answer.stdout.startswith("would write out from 2 models: 43 tensors, 0.3 M parameters")
    told = json.loads(run(folder, "a", "b", "-o", "out", "-n", "--json").stdout)
    assert told["size_bytes"] > 1_000_000
    assert names(folder) == before


def test_the_same_model_twice_is_said(folder):
    answer = run(folder, "a", "b", "run/model", "-o", "out", "-n")
    assert "warning: run/model and a are the same model: it counts twice" in answer.stderr


def test_the_last_checkpoints_of_a_run_are_its_last_steps(folder):
    (folder / "run" / "checkpoints" / "step-11.kept-aside" / "model").mkdir(parents=True)
    assert [path.parent.name for path in last_checkpoints(folder / "run", 2)] == [
        "step-9",
        "step-10",
    ]
    assert run(folder, "run", "--last", "2", "-o", "last").returncode == 0
    assert run(folder, "b", "c", "-o", "named").returncode == 0
    assert (
        contents(folder / "last")["model.safetensors"]
        == (contents(folder / "named")["model.safetensors"])
    )
    for name in ("last", "named"):
        shutil.rmtree(folder / name)


def test_a_soup_of_models_that_were_trained_for_few_bits_is_told_that_it_is_not(folder):
    types = dict.fromkeys(("token_embd", "attention", "ffn", "dense"), "q4_0")
    for name in "ab":
        config = shutil.copytree(folder / name, folder / f"qat-{name}") / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_bytes()), "gemb_qat": types}))
    one = run(folder, "qat-a", "-o", "one")
    assert one.stderr == ""
    assert json.loads((folder / "one" / "config.json").read_bytes())["gemb_qat"] == types
    # Whichever of them gives the soup its config.json.
    for words in (("qat-a", "qat-b"), ("qat-a", "b"), ("a", "qat-b")):
        answer = run(folder, *words, "-o", "both", "-f")
        assert answer.stderr.startswith("gemb: note: these models were trained for few bits (QAT),")
        assert len(answer.stderr.splitlines()) == 1
        mixed = json.loads((folder / "both" / "config.json").read_bytes())
        assert mixed == json.loads((folder / "a" / "config.json").read_bytes()), words
        assert run(folder, *words, "-o", "both", "-f", "-q").stderr == ""
    for name in ("qat-a", "qat-b", "one", "both"):
        shutil.rmtree(folder / name)


def test_a_disk_that_is_full_half_way_leaves_nothing(folder):
    before = names(folder)
    limit = 500_000  # bytes a file; the backbone has 880,000
    answer = run(
        folder,
        "a",
        "b",
        "-o",
        "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert answer.returncode == 5
    assert answer.stderr == f"gemb: {folder / 'out'}: file too large\n"
    assert names(folder) == before


def test_a_disk_without_the_room_is_refused_before(folder, monkeypatch, tmp_path):
    from click.testing import CliRunner

    from gemb.commands.soup import soup as command
    from gemb.errors import GembError

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    result = CliRunner().invoke(
        command, [str(folder / "a"), str(folder / "b"), "-o", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, GembError)
    assert "0 MB are free, and the soup takes 1 MB" in str(result.exception)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("m=0.3", IngredientSpec("m", 0.3)),
        ("m=3e-1", IngredientSpec("m", 0.3)),
        ("m", IngredientSpec("m", None)),
        ("lr=0.1", IngredientSpec("lr=0.1", None)),  # a path that exists
        ("lr=0.1=2", IngredientSpec("lr=0.1", 2.0)),
        ("runs/x=y", IngredientSpec("runs/x=y", None)),
    ],
)
def test_a_weight_comes_after_the_last_sign(tmp_path, monkeypatch, word, right):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert ingredient_spec(word) == right


# Greedy: the choice, with scores that are given; then the whole command.


class GivenScores:
    """Scores of soups by the names of their ingredients: hits of 100 queries."""

    def __init__(self, hits: dict[str, list[float]]) -> None:
        self.hits = hits
        self.asked: list[str] = []

    def scores(self, ingredients):
        name = "".join(sorted(one.name for one in ingredients))
        self.asked.append(name)
        values = np.array(self.hits[name])
        one = SetDescription(
            name="s", kind="retrieval", metric="m", units=100, fingerprint="f00d", prompts=()
        )
        size = Size(8, "f32")
        mean = float(values.mean())
        row = MetricRow(set="s", metric="m", dim=8, dtype="f32", value=mean, low=mean, high=mean)
        return Scores(
            model=name,
            arithmetic="fp32",
            suite="s",
            texts=1,
            cut=0,
            sets=(one,),
            sizes=(size,),
            rows=(row,),
            evidence={("s", size): Statistic("mean", values)},
        )


def _hits(count: int) -> list[float]:
    return [1.0] * count + [0.0] * (100 - count)


HITS = {
    "a": _hits(50),
    "b": _hits(60),  # the best
    "c": _hits(55),
    "bc": _hits(61),  # a little better
    "abc": _hits(59),  # worse
    "ab": _hits(80),  # much better
}


def _ingredients(folder: Path) -> list[Ingredient]:
    found = open_ingredients([IngredientSpec(str(folder / name), None) for name in "abc"])
    return [Ingredient(**{**vars(one), "name": Path(one.name).name}) for one in found]


def test_greedy_begins_with_the_best_and_keeps_what_does_not_lower_the_score(folder):
    scorer = GivenScores(HITS)
    chosen, tries = greedy(_ingredients(folder), scorer)
    assert [one.name for one in chosen] == ["b", "c"]
    assert [(step.added, step.to, step.kept) for step in tries] == [
        ("b", (), True),
        ("c", ("b",), True),
        ("a", ("b", "c"), False),
    ]
    assert [round(step.after, 2) for step in tries] == [0.6, 0.61, 0.59]
    assert (tries[0].low, tries[0].high) == (None, None), "nothing was compared yet"
    assert sorted(scorer.asked) == ["a", "abc", "b", "bc", "c"]


def test_greedy_can_ask_for_more_than_chance(folder):
    chosen, tries = greedy(_ingredients(folder), GivenScores(HITS), "win")
    assert [one.name for one in chosen] == ["b", "a"]
    assert tries[1].low <= 0 < tries[1].after - tries[1].before  # c: better, but not surely
    assert tries[2].low > 0


def test_greedy_by_real_scores_and_from_the_cache(folder):
    words = ["a", "b", "c", "--method", "greedy", "--eval", "sts.tsv", "-f", "-o", "greedy"]
    first = run(folder, *words, "--json")
    assert first.returncode in (0, 1), first.stderr
    told = json.loads(first.stdout)
    suite = open_suite(folder / "sts.tsv")
    manifest = json.loads((folder / "greedy" / "gemb_soup.json").read_bytes())
    assert manifest["evaluation"]["tries"] == told["tries"]
    assert manifest["evaluation"]["sets"] == suite.fingerprints()
    assert first.stderr.count("gemb: note: ") == 3
    # The scores are those of gemb eval, of the ingredient and of the soup.
    for name, model in (("a", "a"), ("soup", "greedy")):
        words_ = [sys.executable, "-m", "gemb", "eval", model, "--data", "sts.tsv", "--json"]
        found = subprocess.run([*words_, "-q"], cwd=folder, capture_output=True, check=True)
        assert json.loads(found.stdout)["means"][0]["value"] == pytest.approx(told["scores"][name])
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.json")}
    assert len(kept) >= 5
    again = run(folder, *words, "--json")
    assert again.stdout == first.stdout
    assert kept == {p.name: p.stat().st_mtime_ns for p in (folder / "cache").rglob("*.json")}
    assert not list(folder.glob(".gemb-soup-*"))
    # What a full disk left of a kept score is computed again.
    broken = next(iter((folder / "cache").rglob("*.json")))
    broken.write_bytes(b"{")
    assert run(folder, *words, "--json").stdout == first.stdout
    shutil.rmtree(folder / "greedy")


def test_a_soup_that_is_worse_than_an_ingredient_is_written_and_exit_1(folder, monkeypatch):
    # The similarities that b itself sees are the truth, so that b is perfect and no soup is.
    model = for_model(folder / "b").open(folder / "b", Runtime(threads=1))
    pairs = [(f"word {i} fox", f"word {i * i % 17} dog {i % 3}") for i in range(60)]
    prompt = for_task("similarity", model.profile.prompts)
    first, second = (
        model.encode(model.tokenize([prompt.render(pair[side]) for pair in pairs]))
        for side in (0, 1)
    )
    truth = (first * second).sum(1).tolist()
    rows = [f"{one}\t{two}\t{score:.9f}" for (one, two), score in zip(pairs, truth, strict=True)]
    (folder / "of-b.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    suite = open_suite(folder / "of-b.tsv")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    scorer = Scorer(suite=suite, near=folder)
    singles = [scorer.scores([one]).mean(96) for one in _ingredients(folder)]
    assert singles[1] > 0.999
    answer = run(folder, "a", "b", "c", "--eval", "of-b.tsv", "-o", "scored", "-q")
    lines = answer.stdout.splitlines()
    assert lines[0] == "scored: mean of 3 models, 0.3 M parameters"
    for line, name, score in zip(lines[1:], "abc", singles, strict=False):
        assert line.split() == [name, f"{score:.4f}"]
    assert lines[4].split()[0] == "soup"
    assert lines[5].startswith("VERDICT REGRESSION")
    assert lines[5].endswith(", from b")
    assert answer.returncode == 1
    assert open_checkpoint(folder / "scored")
    shutil.rmtree(folder / "scored")


def test_an_unknown_run_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is no run"):
        last_checkpoints(tmp_path, 1)
