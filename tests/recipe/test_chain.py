"""Chains as files: what is inherited, what is refused, and the arithmetic of what they cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gemb.cli import gemb as root
from gemb.commands import COMMANDS
from gemb.errors import GembError, UsageError
from gemb.models.checkpoint import expected_shapes, open_checkpoint
from gemb.recipe.chain import OUTPUTS, RUN_MODELS, Chain, dump_chain, is_chain, read_chain, resolved
from gemb.recipe.file import find, load, read_tree
from gemb.recipe.yaml_text import Place, read_text
from gemb.training.chain_cost import EMBEDDING_GEMMA, Cost, plan

SMALL = """\
stages:
  first:
    train: smoke
    with:
      run: {steps: 4}
      data: {1: {weight: 2.0}, 0: {weight: 1.0}, 2: {weight: 1.0}}
  second:
    train: stage:first
    with:
      init: {from: stage:first}
      data: {0: {weight: 5}}
  mean:
    run: soup stage:first=0.5 stage:second/best=0.5
    if_worse: go_on
"""


def read(text: str = SMALL, *overrides: str) -> Chain:
    return read_chain(read_text(text, Place("my.yaml")), overrides, lambda words: None)


def cost_of(text: str) -> Cost:
    """Return the cost of the last stage."""
    return plan(read(text))[0][-1]


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        read(text, *overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line in this process; return what it printed."""

    def go(*words: str) -> str:
        root.main(list(words), standalone_mode=False)
        return capsys.readouterr().out

    return go


def test_a_stage_has_its_recipe_with_the_changes_and_those_of_the_stage_it_names():
    first, second, mean = read().values()
    smoke = load(find("smoke"))
    assert first.recipe
    assert second.recipe
    assert first.recipe.optimizer == smoke.optimizer
    assert (first.recipe.run.steps, second.recipe.run.steps) == (4, 4)
    assert [each.weight for each in first.recipe.data] == [1.0, 2.0, 1.0]
    assert [each.weight for each in second.recipe.data] == [5.0, 2.0, 1.0]
    assert [each.path for each in second.recipe.data] == [each.path for each in smoke.data]
    assert second.recipe.init.model == "stage:first"
    assert mean.command == ("soup", "stage:first=0.5", "stage:second/best=0.5")
    assert (mean.goes_on_if_worse, first.goes_on_if_worse) == (True, False)


def test_an_override_changes_its_stage_and_those_that_take_its_recipe():
    first, second, mean = read(
        SMALL, "first.optimizer.lr=3e-5", "second.run.steps=9", "mean.run=soup stage:second"
    ).values()
    assert first.recipe
    assert second.recipe
    assert first.recipe.optimizer.lr == second.recipe.optimizer.lr == 3e-5
    assert (first.recipe.run.steps, second.recipe.run.steps) == (4, 9)
    assert mean.command == ("soup", "stage:second")


def test_references_become_paths_wherever_they_stand():
    def place(name: str, rest: str) -> Path:
        return Path(f"R/{name}{rest or '/model'}")

    for text, wanted in (
        ("stage:a", "R/a/model"),
        ("stage:a=0.5", "R/a/model=0.5"),
        ("stage:a/best", "R/a/best"),
        ("--baseline=stage:a/scores.json", "--baseline=R/a/scores.json"),
        ("backstage:a", "backstage:a"),
        ("task: x", "task: x"),
    ):
        assert resolved(text, place) == wanted


def test_what_is_dumped_is_the_same_chain():
    chain = read()
    again = read(dump_chain(chain))
    assert list(again.items()) == list(chain.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {}", "my.yaml:1: stages must be a block of stages by name, not a block"),
        ("stages: [smoke]", "my.yaml:1: stages must be a block of stages by name, not a list"),
        ("stages: {a: {run: soup x}}\nstage: x", "my.yaml:2: unknown key 'stage'; a chain has"),
        ("stages:\n  a: {run: soup x}\n  a: {run: soup x}", "my.yaml:3: key 'a' is given twice"),
        ("stages:\n  a: {tran: smoke}", "my.yaml:2: unknown key 'a.tran'; did you mean 'train'?"),
        ("stages:\n  a: {optimizer: {}}", "unknown key 'a.optimizer'; did you mean 'with.optim"),
        ("stages:\n  a: {}", "my.yaml:2: a lacks train, a recipe, or run, a command"),
        ("stages:\n  a: smoke", "my.yaml:2: a must be a block with the keys train, with"),
        ("stages:\n  a: {run: soup x, with: {}}", "a has both run and train or with"),
        ("stages:\n  ../a: {run: soup x}", "../a cannot be a stage's name"),
        ("stages:\n  stages: {run: soup x}", "stages cannot be a stage's name"),
        ("stages:\n  a: {train: smok}", "no recipe 'smok', neither a file nor a name; did you"),
        ("stages:\n  a: {train: embeddinggemma}", "a.train: embeddinggemma is a chain; name a"),
        ("stages:\n  a: {train: smoke, with: 3}", "my.yaml:2: a.with must be a block of a rec"),
        ("stages:\n  a: {train: smoke, with: {sed: 1}}", "my.yaml:2: unknown key 'sed'; did you"),
        ("stages:\n  a: {train: smoke, with: {seed: x}}", "my.yaml:2: seed must be a whole number"),
        (
            "stages:\n  a: {train: smoke, with: {data: {9: {}}}}",
            "my.yaml:2: no data.9; there is",
        ),
        ("stages:\n  a: {train: smoke, if_worse: no}", "a.if_worse must be one of stop, go_on"),
        ("stages:\n  a: {train: stage:b}", "stage:b: no stage 'b' before this one; before it are"),
        (
            "stages:\n  aa: {train: smoke}\n  b: {train: smoke, with: {init: {from: stage:aaa}}}",
            "my.yaml:3: b: stage:aaa: no stage 'aaa' before this one; did you mean 'aa'?",
        ),
        ("stages:\n  a: {run: soup stage:a}", "no stage 'a' before this one"),
        ("stages:\n  a: {run: verify x y}\n  b: {run: soup stage:a}", "a makes nothing that a"),
        ("stages:\n  a: {run: soup x}\n  b: {train: stage:a}", "b.train: a is a command, and no"),
        ("stages:\n  a: {run: soup x}\n  b: {run: soup stage:a/../..}", "has no .. in its name"),
        ("stages:\n  a: {run: sop x}", "begins with 'sop', no command of a stage; did you mean"),
        ("stages:\n  a: {run: train smoke}", "begins with 'train', no command of a stage"),
        ("stages:\n  a: {run: 'soup \"x'}", "a.run: no closing quotation"),
        ("stages:\n  a: {run: ''}", "a.run must be text"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, message):
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frst.seed=1", "frst.seed=1: of a chain write STAGE.KEY=VALUE; did you mean 'first'?"),
        ("seed=1", "its stages are first, second, mean"),
        ("first.sed=1", "first.sed=1: unknown key 'sed'; did you mean 'seed'?"),
        (
            "first.run.steps=x",
            "first.run.steps=x: run.steps must be a whole number from 0, not 'x'",
        ),
        ("mean.seed=1", "mean is a command; its one key is run"),
    ],
)
def test_an_override_is_checked_as_the_file_is(override, message):
    assert message in refusal(SMALL, override)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("soup mini --methd mean", "no such option '--methd'. (Did you mean"),
        ("soup mini --method", "(see gemb soup --help)"),
        ("soup mini -o there", "leave -o out: the chain says where outputs go"),
        ("soup mini --output=there", "leave --output=there out: the chain says where outputs go"),
        ("soup mini -n", "leave -n out: a stage makes something"),
        ("soup --help", "leave --help out: a stage makes something"),
    ],
)
def test_a_command_is_checked_by_its_own_options(run, tmp_path, command, message):
    file = tmp_path / "my.yaml"
    file.write_text(f"stages:\n  it: {{run: {command}}}\n")
    with pytest.raises(UsageError) as error:
        run("recipes", "check", str(file))
    assert str(error.value).startswith(f"{file}:2: it.run: ")
    assert message in str(error.value)


def test_the_commands_of_stages_have_the_options_that_a_chain_hands_on():
    for name in OUTPUTS:
        parameters = COMMANDS[name].load().params
        options = {option for parameter in parameters for option in parameter.opts}
        assert ("-o" in options) == bool(OUTPUTS[name]), name
        assert ({"-j", "-q"} <= options) == (name in RUN_MODELS), name


@pytest.mark.parametrize("name", ["embeddinggemma", "embeddinggemma-mini", "mini"])
def test_the_shipped_chains_are_fine_and_say_what_they_are_for(run, tmp_path, name):
    assert is_chain(read_tree(find(name)))
    assert re.fullmatch(r"# [A-Z].*\.", find(name).read_text().splitlines()[0])
    assert run("recipes", "check", name).startswith(f"{name}: fine; a chain of ")
    (tmp_path / "again.yaml").write_text(run("recipes", "check", name, "--resolved"))
    once = run("recipes", "check", name, "--json")
    assert run("recipes", "check", str(tmp_path / "again.yaml"), "--json") == once


def test_the_mini_chain_needs_nothing_but_the_package_and_has_every_kind_of_stage(run):
    planned = json.loads(run("recipes", "plan", "embeddinggemma-mini", "--json"))
    assert planned["assumed"] == []
    assert {cost["kind"] for cost in planned["costs"]} >= {
        *("pretrain", "finetune", "soup", "qat"),
        *("export-gguf", "quantize", "verify", "eval"),
    }


def test_a_plan_shows_the_beginning_of_a_long_command_and_json_has_it_whole(run):
    shown = run("recipes", "plan", "mini").splitlines()[1]
    assert re.fullmatch(r"cut +cut +cut embeddinggemma-300m --keep-layers .* \.\.\.", shown)
    assert len(shown) < 180
    whole = json.loads(run("recipes", "plan", "mini", "--json"))["costs"][0]["does"]
    assert whole.endswith(" train/debian-desc-xx.jsonl.gz")


def test_the_plan_of_the_paper_has_its_tokens(run):
    """Token counts: arXiv 2509.20354 (2.1 T in all, 314 B, 20 B for a mixture)."""
    costs = json.loads(run("recipes", "plan", "embeddinggemma", "--json"))["costs"]
    tokens = {cost["stage"]: cost["tokens"] for cost in costs}
    assert tokens["adapt"] == pytest.approx(1.77e12, rel=1e-3)
    assert tokens["pretrain"] == pytest.approx(314e9, rel=1e-3)
    for name in ("finetune-a", "finetune-b", "finetune-c"):
        assert tokens[name] == pytest.approx(20e9, rel=1e-3)
    assert tokens["adapt"] + tokens["pretrain"] + tokens["finetune-a"] == pytest.approx(
        2.1e12, rel=0.01
    )
    for name in ("soup", "export", "quantize", "verify", "eval"):
        assert tokens[name] is None


def test_the_plan_counts_the_real_model_s_numbers():
    # 307,581,696 numbers of which are in no matrix of a layer: the table, two dense layers, norms.
    table, dense, norms = 262_144 * 768, 2 * 768 * 3072, 24 * 3584 + 768
    assert EMBEDDING_GEMMA.count * EMBEDDING_GEMMA.numbers == 307_581_696 - table - dense - norms


def test_the_plan_counts_a_model_that_is_here_and_what_is_made_of_it(tiny_model):
    start = f"init: {{from: {tiny_model}, keep_layers: %s}}"
    text = f"stages:\n  a: {{train: smoke, with: {{{start}}}}}\n  b: {{run: soup stage:a}}\n"
    text += "  c: {train: smoke, with: {init: {from: stage:b, keep_layers: all}}}\n"
    shapes = expected_shapes(open_checkpoint(tiny_model).config, [(96, 384), (384, 96)])
    layers = [math.prod(s) for n, s in shapes.items() if n.startswith("layers.") and len(s) == 2]
    assert cost_of(text % "all").parameters == sum(layers)
    assert cost_of(text % "greedy:2").parameters == sum(layers) * 2 // 3
    assert cost_of(text % "0-1").parameters == sum(layers) * 2 // 3


def test_a_plan_is_six_operations_for_each_token_and_number(tiny_model):
    text = (
        f"stages:\n  a: {{train: smoke, with: {{init: {{from: {tiny_model}, keep_layers: all}}, "
        "batch: {pairs: 4, max_tokens: 32, negatives: 1}, run: {steps: 10}}}"
    )
    cost = cost_of(text)
    layers = 3 * (96 * (2 * 96 + 2 * 32) + 3 * 96 * 128)  # q, o, k, v; gate, up, down
    assert (cost.tokens, cost.parameters) == (10 * 4 * 3 * 32, layers)
    assert cost.operations == 6 * layers * cost.tokens
    assert cost.hours(100) == pytest.approx(cost.operations / 100e12 / 3600)
    packed = cost_of(
        f"stages:\n  a: {{train: adapt, with: {{init: {{from: {tiny_model}}}, run: {{steps: 10}}, "
        "data: [{path: x.txt}], adapt: {tokens: 4000}}}"
    )
    assert packed.tokens == 40_000


def test_a_plan_of_mixtures_counts_the_trials_and_the_full_runs():
    searched = "run: {steps: 10}, mixtures: {trials: 5, steps: 3, best: 2}"
    assert cost_of(f"stages:\n  a: {{train: smoke, with: {{{searched}}}}}").steps == 5 * 3 + 2 * 10


def test_the_plan_says_what_it_assumes_and_what_it_cannot_know(run, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("stages:\n  a: {train: finetune, with: {init: {from: ./not-here}}}\n")
    printed = run("recipes", "plan", str(file), "--tflops", "150")
    assert "of a GPU that reaches 150 TFLOP/s" in printed
    assert "not here, and assumed as large as EmbeddingGemma-300M: ./not-here" in printed
    assert "the length depends on the data: a (run.epochs)" in printed
    assert run("recipes", "plan", "pretrain").splitlines()[1].startswith("pretrain  pretrain")


def test_a_chain_is_no_recipe(run, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(SMALL)
    with pytest.raises(GembError, match="is a chain, which has no --json"):
        run("train", str(file), "-o", str(tmp_path / "run"), "--json")
    with pytest.raises(GembError, match="a chain goes on by itself"):
        run("train", str(file), "-o", str(tmp_path / "run"), "--resume", "there")
    with pytest.raises(GembError, match="--from mea: no such stage; there are first, sec"):
        run("train", str(file), "-o", str(tmp_path / "run"), "--from", "mea")
    with pytest.raises(GembError, match="smoke is no chain, which --from is for"):
        run("train", "smoke", "-o", str(tmp_path / "run"), "--from", "mean")
    assert not Path(tmp_path / "run").exists()
