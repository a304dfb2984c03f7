"""The search of mixtures: what is tried, that it finds, what a run leaves, that it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gemb.errors import Missing, UsageError
from gemb.recipe.file import load
from gemb.recipe.schema import Mixtures
from gemb.training import mixtures as search
from gemb.training.mixtures import (
    Mixture,
    Trial,
    best_mixtures,
    check_search,
    next_mixture,
    read_trials,
)
from model_files import contents, numbers
from tiny_model import TEXT

WORDS = TEXT.split()


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_model) -> Path:
    """A folder with a recipe of two sources, and a set to evaluate on."""
    folder = tmp_path_factory.mktemp("mixtures")
    generator = random.Random(0)
    for name in ("one", "two"):
        rows = [
            {key: " ".join(generator.choices(WORDS, k=6)) for key in ("query", "positive")}
            for _ in range(40)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [f"word {i} fox\tword {i + i % 4} dog\t{i % 5}" for i in range(30)]
    (folder / "sts.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    (folder / "my.yaml").write_text(f"""
stage: finetune
seed: 5
init: {{from: {tiny_model}}}
data:
  - {{path: one.jsonl, weight: 3}}
  - {{path: two.jsonl, weight: 1}}
batch: {{pairs: 4, micro_tokens: 160, max_tokens: 64}}
loss: {{matryoshka: [96, 32], contrastive: {{}}}}
optimizer: {{lr: 1e-3}}
run: {{steps: 3, precision: fp32}}
eval: {{data: sts.tsv, shared_documents: true}}
mixtures: {{trials: 4, seeds: 2, steps: 2, best: 2}}
""")
    return folder


def train(work: Path, *words: str, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemb", "train", "my.yaml", *words]
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache"), **more.pop("env", {})}
    return subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False, **more
    )


@pytest.fixture(scope="module")
def ended(work) -> subprocess.CompletedProcess[str]:
    return train(work, "-o", "run")


@pytest.fixture
def recipe(work, monkeypatch):
    monkeypatch.chdir(work)
    return load(Path("my.yaml"))


def _of_four(recipe, **changes):
    sources = tuple(structs.replace(recipe.data[0], name=str(i), weight=None) for i in range(4))
    wanted = structs.replace(recipe.mixtures, **changes)
    return structs.replace(recipe, data=sources, mixtures=wanted)


def test_the_first_mixture_is_the_recipes_own(recipe):
    assert next_mixture(recipe.mixtures, recipe, []) == Mixture(
        number=0, origin="own", weights=(0.75, 0.25)
    )
    four = _of_four(recipe)
    assert next_mixture(four.mixtures, four, []).weights == (0.25,) * 4


@pytest.mark.parametrize("concentration", [1.0, 5.0])
def test_drawn_mixtures_are_those_of_a_dirichlet_distribution(recipe, concentration):
    wide = _of_four(recipe, seeds=3000, trials=3001, concentration=concentration)
    drawn = []
    for number in range(1, 3001):
        trials = _Numbered(number)
        drawn.append(next_mixture(wide.mixtures, wide, trials).weights)
    shares = np.array(drawn)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=0.004)  # each is rounded
    # Mean 1/4; variance p (1 - p) / (4 a + 1). Three thousand draws: 4 standard errors.
    variance = 0.1875 / (4 * concentration + 1)
    np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=4 * (variance / 3000) ** 0.5)
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.15)


class _Numbered(list):
    """As many trials as asked for; what is drawn looks at no more."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def test_the_search_finds_better_mixtures_than_chance(recipe):
    """Nearness to a hidden mixture, found with twenty trials after ten drawn ones."""
    target = np.array([0.6, 0.3, 0.05, 0.05])

    def score(mixture: Mixture) -> float:
        return -float(np.square(np.array(mixture.weights) - target).sum())

    wins = 0
    for seed in range(5):
        found = {}
        for seeds in (10, 30):  # 20 searched; all drawn
            wanted = structs.replace(_of_four(recipe, seeds=seeds, trials=31), seed=seed)
            trials: list[Trial] = []
            while len(trials) < 31:
                mixture = next_mixture(wanted.mixtures, wanted, trials)
                trials.append(Trial(mixture=mixture, score=score(mixture)))
            assert [trial.mixture.origin for trial in trials].count("drawn") == seeds
            found[seeds] = max(trial.score for trial in trials)
        wins += found[10] > found[30]
    assert wins >= 4


def test_a_mixture_depends_on_the_trials_before_it_alone(recipe):
    wide = _of_four(recipe, seeds=2, trials=9)
    trials: list[Trial] = []
    while len(trials) < 9:
        mixture = next_mixture(wide.mixtures, wide, trials)
        assert next_mixture(wide.mixtures, wide, list(trials)) == mixture
        assert min(mixture.weights) >= 0.001
        trials.append(Trial(mixture=mixture, score=mixture.weights[0]))
    assert len({trial.mixture.weights for trial in trials}) == 9


def test_of_mixtures_that_are_nearly_alike_the_best_is_taken():
    tried = [((0.5, 0.5), 0.3), ((0.52, 0.48), 0.4), ((0.9, 0.1), 0.2), ((0.1, 0.9), 0.1)]
    trials = [
        Trial(mixture=Mixture(number=i, origin="drawn", weights=weights), score=score)
        for i, (weights, score) in enumerate(tried)
    ]
    assert [one.number for one in best_mixtures(trials, 2)] == [1, 2]
    assert [one.number for one in best_mixtures(trials, 9)] == [1, 2, 3]


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"pip install 'gemb\[mixtures\]'; with mixtures.trials=11"):
        check_search(Mixtures())
    check_search(Mixtures(trials=11, seeds=10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval.data=", r"mixtures needs eval.data: by it the best mixture is chosen$"),
        ("mixtures.best=5", r"mixtures.best is 5, of 4 trials$"),
        ("mixtures.concentration=0", r"mixtures.concentration must be a number above 0, not 0$"),
        ("mixtures.trails=9", r"did you mean 'trials'"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, words, message):
    with pytest.raises(UsageError, match=message):
        load(Path("my.yaml"), [words])


def test_one_source_is_no_mixture(recipe, work):
    text = (work / "my.yaml").read_text().replace("  - {path: two.jsonl, weight: 1}\n", "")
    Path("single.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mixtures needs two sources or more in data"):
        load(Path("single.yaml"))


def test_a_search_leaves_its_trials_its_runs_and_their_soup(work, ended):
    assert ended.returncode in (0, 1), ended.stderr
    run = work / "run"
    trials = read_trials(run / "mixtures.json")
    assert [trial.mixture.origin for trial in trials] == ["own", "drawn", "drawn", "searched"]
    for trial in trials:
        folder = run / "tried" / f"{trial.mixture.number:02}"
        scores = json.loads((folder / "scores-final.json").read_bytes())
        assert scores["means"][0]["value"] == trial.score
        assert load(folder / "recipe.yaml").run.steps == 2
        weights = tuple(source.weight for source in load(folder / "recipe.yaml").data)
        assert weights == trial.mixture.weights
        assert not any((folder / name).exists() for name in ("model", "checkpoints", "best"))
    folders = [run / "finetuned" / f"{one.number:02}" for one in best_mixtures(trials, 2)]
    assert len(folders) == 2
    assert sorted(path.name for path in (run / "finetuned").iterdir()) == sorted(
        folder.name for folder in folders
    )
    before = [numbers(folder / "model") for folder in folders]
    for name, values in numbers(run / "model").items():
        np.testing.assert_allclose(values, (before[0][name] + before[1][name]) / 2, rtol=1e-6)
    manifest = json.loads((run / "model" / "gemb_soup.json").read_bytes())
    assert [one["weight"] for one in manifest["ingredients"]] == [0.5, 0.5]
    assert ended.stdout.startswith("VERDICT ")
    assert ended.stderr.count("gemb: note: mixture ") == 4
    assert json.loads((run / "verdict.json").read_bytes())["line"] == ended.stdout.strip()


def test_a_stopped_search_goes_on_and_ends_as_it_would_have(work, ended):
    command = [sys.executable, "-m", "gemb", "train", "my.yaml", "-o", "stopped"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    kept = work / "stopped" / "mixtures.json"
    for stop, number in ((signal.SIGTERM, 1), (signal.SIGKILL, 3)):
        process = subprocess.Popen(
            [*command, "--resume", "auto", "-q"], cwd=work, env=environment, stderr=subprocess.PIPE
        )
        while process.poll() is None:
            if kept.is_file() and len(read_trials(kept)) >= number:
                process.send_signal(stop)
                break
            time.sleep(0.05)
        process.communicate()
        assert process.returncode in (75, 143, -9)
    answer = train(work, "-o", "stopped", "--resume", "auto", "-q")
    assert answer.returncode == ended.returncode, answer.stderr
    assert answer.stdout == ended.stdout
    assert kept.read_bytes() == (work / "run" / "mixtures.json").read_bytes()
    ours, theirs = contents(work / "stopped" / "model"), contents(work / "run" / "model")
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    # Once more is nothing to do; more trials and runs may be asked for; another recipe may not.
    assert train(work, "-o", "stopped", "--resume", "auto").stdout == ended.stdout
    again = train(work, "-o", "stopped")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "holds a run; --resume auto goes on with it" in again.stderr
    for change in ("mixtures.steps=3", "eval.dims=[96]", "optimizer.lr=1e-4"):
        other = train(work, change, "-o", "stopped", "--resume", "auto")
        assert other.returncode == 2
        assert "resume with the same recipe" in other.stderr
    more = train(work, "mixtures.trials=5", "-o", "stopped", "--resume", "auto", "-q")
    assert more.returncode in (0, 1), more.stderr
    assert len(read_trials(kept)) == 5


def test_a_look_says_what_will_be_and_writes_nothing(work):
    before = {path.name for path in work.iterdir()} | {"cache"}
    answer = train(work, "-n")
    assert answer.returncode == 0, answer.stderr
    assert "4 mixtures of 2 sources, 2 steps each; then the best 2 as below" in answer.stderr
    assert {path.name for path in work.iterdir()} <= before


def test_what_a_search_cannot_do_is_one_line(work):
    for words, more, message in (
        (["--resume", "x"], {}, "--resume x: a search of mixtures goes on with auto"),
        (["--nnodes", "2"], {}, "a search of mixtures works on one machine: --nnodes 1"),
        ([], {"RANK": "0", "WORLD_SIZE": "1"}, "gemb train --nproc N, not torchrun"),
    ):
        answer = train(work, "-o", "other", *words, env=more)
        assert answer.returncode == 2
        assert message in answer.stderr
        assert answer.stderr.count("\n") == 1
        assert not (work / "other").exists()


def test_what_is_no_list_of_mixtures_is_said(tmp_path):
    path = tmp_path / "mixtures.json"
    for text in ("{", "[]", '{"trials": [{}]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="no mixtures that gemb train wrote"):
            read_trials(path)
