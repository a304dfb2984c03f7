"""`gemb recipes`, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from gemb.commands.recipes import Override, RecipeKey
from gemb.recipe.file import find, load
from gemb.recipe.keys import to_plain
from gemb.recipe.names import recipe_names


def lines(answer: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert (answer.returncode, answer.stderr) == (0, b"")
    return answer.stdout.decode().splitlines()


def refusal(answer: subprocess.CompletedProcess[bytes]) -> str:
    assert (answer.returncode, answer.stdout) == (2, b"")
    (line,) = answer.stderr.decode().splitlines()
    return line


def test_ls_names_the_recipes_and_what_they_are_for(gemb):
    table = lines(gemb("recipes", "ls"))
    assert [line.split()[0] for line in table] == ["NAME", *recipe_names()]
    assert table[-1] == (
        "smoke                A whole training run in under a minute on a CPU, with what comes "
        "with gemb."
    )
    rows = json.loads(gemb("recipes", "ls", "--json").stdout)
    assert [(row["name"], row["path"]) for row in rows] == [
        (name, str(find(name))) for name in recipe_names()
    ]
    assert all(line.endswith(row["about"]) for line, row in zip(table[1:], rows, strict=True))


def test_show_prints_the_file_as_it_is(gemb):
    assert gemb("recipes", "show", "smoke").stdout == find("smoke").read_bytes()


def test_cp_writes_a_file_that_checks_and_overwrites_none(gemb):
    assert lines(gemb("recipes", "cp", "finetune", "my.yaml")) == ["my.yaml"]
    assert (gemb.folder / "my.yaml").read_bytes() == find("finetune").read_bytes()
    assert lines(gemb("recipes", "check", "my.yaml")) == [
        "my.yaml: fine; finetune from embeddinggemma-300m, 1 source, 128 pairs a step, epochs: 1, "
        "contrastive + spread-out"
    ]
    again = refusal(gemb("recipes", "cp", "smoke", "my.yaml"))
    assert again == "gemb: my.yaml exists; -f overwrites it"
    lines(gemb("recipes", "cp", "-f", "smoke", "my.yaml"))
    assert (gemb.folder / "my.yaml").read_bytes() == find("smoke").read_bytes()


def test_check_names_the_line_or_the_override(gemb):
    lines(gemb("recipes", "cp", "smoke", "my.yaml"))
    assert refusal(gemb("recipes", "check", "my.yaml", "optimizer.lr=oops")) == (
        "gemb: optimizer.lr=oops: optimizer.lr must be a number above 0, not 'oops'"
    )
    file = gemb.folder / "my.yaml"
    file.write_text(file.read_text().replace("  lr: 1e-4", "  rl: 1e-4"))
    line = 1 + file.read_text().splitlines().index(
        next(line for line in file.read_text().splitlines() if line.startswith("  rl:"))
    )
    assert refusal(gemb("recipes", "check", "my.yaml")).startswith(
        f"gemb: my.yaml:{line}: unknown key 'optimizer.rl'; there are lr, head_lr"
    )
    assert refusal(gemb("recipes", "check", "smok")).endswith("; did you mean 'smoke'?")


def test_check_prints_the_whole_recipe_with_the_overrides(gemb, tmp_path):
    words = ("smoke", "optimizer.lr=3e-5", "data.3.path=more.csv", "loss.spread_out=null")
    wanted = load(find("smoke"), words[1:])
    answer = gemb("recipes", "check", "--resolved", *words)
    (tmp_path / "resolved.yaml").write_bytes(answer.stdout)
    assert load(tmp_path / "resolved.yaml") == wanted
    plain = json.loads(gemb("recipes", "check", "--json", *words).stdout)
    assert plain == json.loads(json.dumps(to_plain(wanted)))
    assert (plain["optimizer"]["lr"], plain["loss"]["spread_out"]) == (3e-5, None)
    both = refusal(gemb("recipes", "check", "smoke", "--json", "--resolved"))
    assert both == "gemb: --resolved prints YAML; give it or --json"


def test_check_reads_a_pipe(gemb):
    answer = gemb("recipes", "check", "/dev/stdin", stdin=find("smoke").read_bytes())
    assert lines(answer)[0].startswith("/dev/stdin: fine; finetune from mini")


def test_schema_prints_type_default_and_meaning(gemb):
    assert lines(gemb("recipes", "schema", "loss.contrastive.temperature")) == [
        "KEY                           TYPE            DEFAULT  MEANING",
        "loss.contrastive.temperature  number above 0  0.02     of the cosines; the paper is "
        "silent: jina-embeddings-v5",
    ]
    table = lines(gemb("recipes", "schema", "checkpoint"))
    assert [line.split()[0] for line in table[1:]] == [
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
    ]
    assert lines(gemb("recipes", "schema", "loss.matryoshka"))[1].startswith(
        "loss.matryoshka  list of whole numbers from 1  [768, 512, 256, 128]"
    )
    for key in ("data", "data.0", "data.N"):
        (path,) = (x for x in lines(gemb("recipes", "schema", key)) if ".path" in x)
        assert path.split()[1:3] == ["text", "required"]
    assert len(lines(gemb("recipes", "schema"))) > 50


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimzer", "gemb: unknown key 'optimzer'; did you mean 'optimizer'?"),
        ("optimizer.lr.x", "gemb: optimizer.lr has no keys below it"),
        ("loss.matryoshka.0", "gemb: loss.matryoshka has no keys below it"),
    ],
)
def test_schema_of_what_is_no_key_is_refused(gemb, key, message):
    assert refusal(gemb("recipes", "schema", key)) == message


def test_the_json_schema_is_one_document(gemb):
    whole = json.loads(gemb("recipes", "schema", "--json").stdout)
    assert set(whole["$defs"]["Recipe"]["properties"]) == set(to_plain(load(find("smoke"))))
    part = json.loads(gemb("recipes", "schema", "optimizer", "--json").stdout)
    assert part["$defs"]["Optimizer"] == whole["$defs"]["Optimizer"]


def test_keys_are_completed():
    def offered(kind: RecipeKey, begun: str) -> list[str]:
        context = click.Context(click.Command("check"))
        parameter = click.Argument(["key"])
        return [item.value for item in kind.shell_complete(context, parameter, begun)]

    assert offered(RecipeKey(), "loss.sp") == ["loss.spread_out", "loss.spread_out.weight"]
    assert offered(Override(), "loss.sp") == ["loss.spread_out=", "loss.spread_out.weight="]
    assert offered(Override(), "optimizer.b") == ["optimizer.beta1=", "optimizer.beta2="]
    assert offered(Override(), "data.0.pr") == ["data.0.prompts.query=", "data.0.prompts.positive="]


def test_listing_loads_no_yaml():
    code = (
        "import sys\nfrom gemb.cli import gemb\n"
        "gemb.main(['recipes', 'ls'], standalone_mode=False)\n"
        "assert not {'yaml', 'msgspec', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
