"""Recipes: strict YAML, limits, what goes together, overrides by the same checks, and back."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect, structs

from gemb.errors import UsageError
from gemb.models.tensors import QAT_TYPES
from gemb.recipe.checks import problems
from gemb.recipe.file import dump, find, load
from gemb.recipe.keys import REQUIRED, ROOT, Key, every_key, json_schema, to_plain
from gemb.recipe.layers import LayerChoice, layer_choice
from gemb.recipe.names import FOLDER, builtin_recipes, recipe_names, resolve_data, sample_names
from gemb.recipe.read import RecipeReader
from gemb.recipe.schema import Distill, Loss, Recipe, Source, SpreadOut
from gemb.recipe.yaml_text import Place, read_text, scalar
from lfs_pointer import POINTER

LEAST = """\
stage: finetune
init: {from: mini}
data:
  - path: pairs.jsonl
loss:
  contrastive: {}
"""

RECIPES = ("adapt", "distill", "domain", "draft", "finetune", "pretrain", "qat", "smoke")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write a recipe, and load it by the name `my.yaml`."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes = LEAST, *overrides: str) -> Recipe:
        Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(Path("my.yaml"), overrides)

    return write


def refusal(recipe, text: str | bytes = LEAST, *overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        recipe(text, *overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_not_said_has_its_default(recipe):
    loaded = recipe()
    assert loaded.init.model == "mini"
    assert loaded.data == (Source(path="pairs.jsonl"),)
    assert loaded.loss.contrastive is not None
    assert loaded.loss.contrastive.temperature == 0.02
    assert loaded.loss.distill is None
    assert loaded.loss.matryoshka == (768, 512, 256, 128)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-.5e+1", -5.0),
        ("010", 10),
        ("+3", 3),
        ("0", 0),
        ("", None),
        ("~", None),
        ("true", True),
        ("False", False),
        # what YAML 1.1 reads as something else
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("n", "n"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2026-11-23", "2026-11-23"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("٣", "٣"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert (scalar(text), type(scalar(text))) == (value, type(value))


def test_numbers_of_every_notation_arrive_as_numbers(recipe):
    loaded = recipe(LEAST + "optimizer: {lr: 1e-5, eps: 1E-9, weight_decay: 0}\nseed: 010\n")
    assert (loaded.optimizer.lr, loaded.optimizer.eps, loaded.seed) == (1e-5, 1e-9, 10)
    assert isinstance(loaded.optimizer.weight_decay, float)


def test_where_text_is_wanted_a_number_is_the_text_as_written(recipe):
    loaded = recipe(LEAST.replace("mini", "mini, keep_layers: 05"))
    assert loaded.init.keep_layers == "05"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimiser: {}", "my.yaml:7: unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("lr: 1e-5", "my.yaml:7: unknown key 'lr'; did you mean 'optimizer.lr'?"),
        (
            "batch:\n\n  paris: 3",
            "my.yaml:9: unknown key 'batch.paris'; did you mean 'pairs'?",
        ),
        (
            "checkpoint: {zzz: 3}",
            "my.yaml:7: unknown key 'checkpoint.zzz'; there are every_steps, every_minutes, keep",
        ),
        (
            "optimizer:\n  lr: 1\n  lr: 2",
            "my.yaml:9: key 'lr' is given twice, first in line 8",
        ),
        ("stage: distill", "my.yaml:7: key 'stage' is given twice, first in line 1"),
        (
            "optimizer:\n  lr: fast",
            "my.yaml:8: optimizer.lr must be a number above 0, not 'fast'",
        ),
        ("optimizer: {lr: '1e-5'}", "optimizer.lr must be a number above 0, not '1e-5'"),
        ("optimizer: {lr: 0}", "optimizer.lr must be a number above 0, not 0"),
        ("optimizer: {lr: .inf}", "optimizer.lr must be a number above 0, not .inf"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be a number above 0, not .nan"),
        ("optimizer: {lr: true}", "optimizer.lr must be a number above 0, not true"),
        ("optimizer: {lr: }", "optimizer.lr must be a number above 0, not empty"),
        ("optimizer: {lr: [1]}", "optimizer.lr must be a number above 0, not a list"),
        ("optimizer: {lr: {}}", "optimizer.lr must be a number above 0, not a block"),
        ("optimizer: {beta1: 1}", "optimizer.beta1 must be a number from 0 to below 1, not 1"),
        (
            "optimizer: {warmup_fraction: 1.5}",
            "optimizer.warmup_fraction must be a number from 0 to 1, not 1.5",
        ),
        ("batch: {pairs: 1}", "batch.pairs must be a whole number from 2, not 1"),
        ("batch: {pairs: 64.0}", "batch.pairs must be a whole number from 2, not 64.0"),
        ("seed: 99999999999999999999", "seed must be a whole number from 0, not 9999999999"),
        ("seed: 9223372036854775808", "seed must be a whole number from 0, not 92233720368"),
        ("run: {compile: yes}", "run.compile must be true or false, not 'yes'"),
        ("run: {compile: 1}", "run.compile must be true or false, not 1"),
        (
            "run: {precision: fp16}",
            "run.precision must be one of bf16, fp32, not 'fp16': EmbeddingGemma's activations "
            "reach 800,000, and fp16 ends at 65,504; take bf16",
        ),
        (
            "optimizer: {decay: cosin}",
            "must be one of cosine, linear, none, not 'cosin'; did you mean 'cosine'?",
        ),
        ("eval: {dims: 768}", "eval.dims must be a list, each a whole number from 1, not 768"),
        ("eval: {dims: [768, x]}", "eval.dims.1 must be a whole number from 1, not 'x'"),
        ("eval: {dims: [0]}", "eval.dims.0 must be a whole number from 1, not 0"),
        (
            "eval: {dims: [128, 256]}",
            "my.yaml:7: eval.dims must have the widest first, each once: [256, 128], not",
        ),
        ("eval: {data: null}", "eval.data must be text, not null"),
        ("eval: {data: }", "eval.data must be text, not empty"),
        ("eval: {data: [x]}", "eval.data must be text, not a list"),
        (
            "eval:",
            "eval must be a block with the keys data, encoding, every_steps, dims, "
            "shared_documents, not "
            "empty",
        ),
        (
            "eval: null",
            "eval must be a block with the keys data, encoding, every_steps, dims, "
            "shared_documents, not "
            "null",
        ),
        (
            "batch: {micro_tokens: 100}",
            "my.yaml:7: batch has micro_tokens 100, fewer than max_tokens 512: the longest",
        ),
        ("x: &a 1", "my.yaml:7: anchors and aliases (& and *) are not taken; write it out"),
        ("x: *a", "my.yaml:7: anchors and aliases (& and *) are not taken; write it out"),
        ("x: !!python/object:os.system {}", "my.yaml:7: tags (!) are not taken; quote the text"),
        ("--- {}", "my.yaml:7: a second document; a recipe is one"),
        ("? [a]\n: b", "my.yaml:7: a list cannot be a key"),
        ("seed: [", "my.yaml:8: not YAML: while parsing a flow node, expected the node content"),
        ("\tseed: 1", "my.yaml:7: not YAML: "),
        ("seed: 1: 2", "my.yaml:7: not YAML: mapping values are not allowed here"),
        ("seed: '\x07'", "my.yaml:7: not YAML: there is a control character"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(recipe, line, message):
    assert message in refusal(recipe, LEAST + line + "\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "stage: finetune\n",
            "",
            "my.yaml:1: the recipe lacks 'stage': adapt (a decoder), pretrain (pairs), finetune "
            "(triplets), distill (a teacher) or draft (a static encoder); it is one of adapt, "
            "pretrain, finetune, distill, draft",
        ),
        ("init: {from: mini}", "init: {}", "my.yaml:2: init lacks 'from': model reference"),
        (
            "init: {from: mini}",
            "init: mini",
            "init must be a block with the keys from, keep_layers",
        ),
        ("from: mini", "model: mini", "my.yaml:2: unknown key 'init.model'; "),
        ("from: mini", "from: ' '", "my.yaml:2: init.from is empty; name a model"),
        ("- path: pairs.jsonl", "path: pairs.jsonl", "data must be a list, each a block with the"),
        ("- path: pairs.jsonl", "- name: a", "my.yaml:4: data.0 lacks 'path': JSONL, CSV"),
        ("- path: pairs.jsonl", "- path: ''", "my.yaml:4: data.0.path is empty; name a file"),
        (
            "path: pairs.jsonl",
            "path: '@sample/none.jsonl'",
            "my.yaml:4: data.0.path is not there: @sample/none.jsonl: no such sample data; there",
        ),
        ("- path: pairs.jsonl", "[]", "my.yaml:3: data has no entry; give at least one"),
        (
            "- path: pairs.jsonl",
            "- {path: a, weight: 1}\n  - path: b",
            "my.yaml:5: data.1 has no weight, and others have; give all or none one",
        ),
        (
            "- path: pairs.jsonl",
            "- {path: a, name: n}\n  - path: b\n    name: n",
            "my.yaml:6: data.1.name 'n' is the name of data.0, too",
        ),
        (
            "- path: pairs.jsonl",
            "- {path: a, prompts: {query: 'search:'}}",
            "my.yaml:4: data.0.prompts.query has no {text} where the text goes: 'search:'",
        ),
        (
            "contrastive: {}",
            "spread_out: {}",
            "my.yaml:5: loss has nothing that draws texts together; give loss.contrastive",
        ),
        ("  contrastive: {}", "  contrastive: null", "loss has nothing that draws texts together"),
        (
            "  contrastive: {}",
            "  contrastive:",
            "my.yaml:6: loss.contrastive is empty: write {} for its defaults, null for none",
        ),
        ("contrastive: {}", "contrastive: {weight: 0}", "loss has no weight above 0 on what"),
        (
            "contrastive: {}",
            "contrastive: {temperature: 0}",
            "temperature must be a number above 0",
        ),
        ("contrastive: {}", "distill: {}", "my.yaml:6: loss.distill lacks 'teacher': model"),
        (
            "contrastive: {}",
            "distill: {teacher: ''}",
            "loss.distill.teacher is empty; name a model or a file of vectors",
        ),
        (
            "contrastive: {}",
            "distill: {teacher: t, sides: []}",
            "loss.distill.sides is empty; null for loss.distill switches it off",
        ),
        (
            "contrastive: {}",
            "distill: {teacher: t, sides: [query, query]}",
            "loss.distill.sides names a side twice",
        ),
        (
            "contrastive: {}",
            "distill: {teacher: t, sides: [document]}",
            "loss.distill.sides.0 must be one of query, positive, negative, not 'document'",
        ),
        ("contrastive: {}", "contrastive: {}\n  matryoshka: []", "loss.matryoshka is empty; [768]"),
        (
            "contrastive: {}",
            "contrastive: {}\n  matryoshka: [768, 768]",
            "my.yaml:7: loss.matryoshka must have the widest first, each once: [768], not [768",
        ),
        (
            "stage: finetune",
            "stage: distill",
            "my.yaml:1: stage is distill, which needs loss.distill, with its teacher",
        ),
        (
            "mini",
            "mini, keep_layers: first",
            "init.keep_layers 'first' is no choice: numbers from 0, as in 0-5,11; or all",
        ),
    ],
)
def test_what_does_not_go_together_is_named_with_its_line(recipe, old, new, message):
    assert old in LEAST
    assert message in refusal(recipe, LEAST.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml is empty; gemb recipes cp finetune FILE writes a full one"),
        ("# nothing\n", "my.yaml is empty; gemb recipes cp finetune FILE writes a full one"),
        ("- a\n", "my.yaml:1: a recipe is keys with values, not a list"),
        ("finetune", "my.yaml:1: a recipe is keys with values, not 'finetune'"),
        (b"stage: a\nx: \xff\n", "my.yaml:2: not UTF-8; save the recipe as UTF-8"),
        ("stage: a\n".encode("utf-16"), "my.yaml:1: not UTF-8; save the recipe as UTF-8"),
        (b"#" * 300_000, "my.yaml: more than 256 KiB; a recipe is a short text"),
        ('x: "\\UFFFFFFFF"', "my.yaml: not YAML: an escape stands for no character"),
        ("[" * 1000, "my.yaml:1: too deep; a recipe has four levels"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe, text, message):
    assert refusal(recipe, text) == message


def test_a_byte_order_mark_and_windows_lines_are_no_matter(recipe):
    text = "\ufeff" + LEAST.replace("\n", "\r\n")
    assert recipe(text) == recipe(LEAST)


def test_paths_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for path, message in (
        ("none.yaml", "none.yaml: no such recipe file"),
        ("run", "run is a folder; name the recipe file in it"),
        ("/dev/zero", "/dev/zero: more than 256 KiB"),
        ("a\0b", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            load(Path(path))


def test_a_billion_laughs_end_at_once(recipe):
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        laughs += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    before = time.process_time()
    assert "anchors and aliases" in refusal(recipe, laughs)
    assert time.process_time() - before < 1


def test_an_override_replaces_what_the_file_says(recipe):
    loaded = recipe(
        LEAST,
        "optimizer.lr=2e-5",
        "data.0.path=other.jsonl",
        "data.0.prompts.query=task: search | query: {text}",
        "data.0.name=[x]",
        "data.1.path=second.csv",
        "loss.contrastive.temperature=0.05",
        "loss.distill.teacher=embeddinggemma-300m",
        "loss.distill.sides=[query, positive]",
        "loss.matryoshka=[512, 64]",
        "eval.data=",
        "run.compile=true",
        "init.from=a=b",
        "stage=distill",
        "seed=1",
        "seed=2",
    )
    assert loaded.optimizer.lr == 2e-5
    assert [source.path for source in loaded.data] == ["other.jsonl", "second.csv"]
    assert loaded.data[0].prompts.query == "task: search | query: {text}"
    assert loaded.data[0].name == "[x]"
    assert loaded.loss.contrastive is not None
    assert loaded.loss.contrastive.temperature == 0.05
    assert loaded.loss.distill == Distill(
        teacher="embeddinggemma-300m", sides=("query", "positive")
    )
    assert loaded.loss.matryoshka == (512, 64)
    assert (loaded.eval.data, loaded.run.compile, loaded.init.model) == ("", True, "a=b")
    assert (loaded.stage, loaded.seed) == ("distill", 2)


def test_an_override_switches_an_optional_block_off_and_on(recipe):
    text = LEAST + "  spread_out: {weight: 3}\n"
    assert recipe(text).loss.spread_out == SpreadOut(weight=3)
    assert recipe(text, "loss.spread_out=null").loss.spread_out is None
    assert recipe(text, "loss.spread_out={}").loss.spread_out == SpreadOut()
    off = text.replace("{weight: 3}", "null")
    assert recipe(off, "loss.spread_out.weight=2").loss.spread_out == SpreadOut(weight=2)


def test_overrides_alone_can_give_what_is_missing(recipe):
    loaded = recipe("stage: finetune\n", "init.from=mini", "data.0.path=a", "loss.contrastive={}")
    assert loaded == structs.replace(recipe(), data=(Source(path="a"),))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer.lr", "'optimizer.lr' is no KEY=VALUE, such as optimizer.lr=2e-5"),
        ("=3", "'=3' is no KEY=VALUE, such as optimizer.lr=2e-5"),
        (
            "optimizer.lr=oops",
            "optimizer.lr=oops: optimizer.lr must be a number above 0, not 'oops'",
        ),
        ("optimizer.lr=-1", "optimizer.lr=-1: optimizer.lr must be a number above 0, not -1"),
        ("optimizer.lr=", "optimizer.lr=: optimizer.lr must be a number above 0, not empty"),
        ("optimizer.lrr=1", "optimizer.lrr=1: unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        ("optimizer.lr.x=1", "optimizer.lr.x=1: optimizer.lr has no keys below it"),
        ("lr=1", "lr=1: unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("data.1=x", "data.1=x: data.1 must be a block with the keys path, name, weight, task"),
        ("data.2.path=x", "data.2.path=x: no data.2; there is data.0 to data.1, which adds one"),
        ("data.x.path=x", "data.x.path=x: no data.x; there is data.0 to data.1, which adds one"),
        ("data.1.name=x", "data.1.name=x: data.1 lacks 'path': JSONL"),
        ("data=[]", "data=[]: data has no entry"),
        ("data=[{pth: x}]", "data=[{pth: x}]: unknown key 'data.0.pth'; did you mean 'path'?"),
        (
            "loss.matryoshka.0=5",
            "loss.matryoshka.0=5: loss.matryoshka has no keys below it; give the whole list, "
            "as in loss.matryoshka=[768, 256]",
        ),
        ("loss.matryoshka=[128, 768]", "loss.matryoshka=[128, 768]: loss.matryoshka must have the"),
        ("loss.contrastive=", "loss.contrastive=: loss.contrastive is empty: write {} for"),
        ("batch.max_tokens=4096", "batch.max_tokens=4096: batch has micro_tokens 2048, fewer"),
        ("loss.contrastive=null", "loss.contrastive=null: loss has nothing that draws"),
        ("run.precision=fp16", "run.precision=fp16: run.precision must be one of bf16, fp32, not"),
        ("seed={a: &x 1}", "seed={a: &x 1}: seed must be a whole number from 0, not '{a: &x 1}'"),
        ("seed={a: 1, a: 2}", "seed={a: 1, a: 2}: seed must be a whole number"),
    ],
)
def test_an_override_is_checked_like_the_file_and_named(recipe, words, message):
    assert refusal(recipe, LEAST, words).startswith(message)


def test_a_name_or_a_path_finds_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("smoke") == builtin_recipes() / "smoke.yaml"
    Path("smoke").mkdir()
    assert find("smoke") == builtin_recipes() / "smoke.yaml"  # a folder named alike is no matter
    Path("mine.yaml").touch()
    assert find("mine.yaml") == Path("mine.yaml")
    for word, message in (
        ("smok", "no recipe 'smok', neither a file nor a name; did you mean 'smoke'?"),
        ("recipes/smok.yaml", "did you mean 'smoke'?"),
        (
            "zzz",
            "gemb's own are adapt, distill, domain, draft, embeddinggemma, embeddinggemma-mini, ",
        ),
        ("./smoke", "./smoke is a folder; name the file in it"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            find(word)
    Path("smoke/recipe.yaml").touch()
    with pytest.raises(UsageError, match=r"is a folder; did you mean smoke/recipe\.yaml\?"):
        find("./smoke")


# What a dataclass can hold, by its own types and limits.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["1e-5", "null", "~", "yes", "true", "", "0x1", "- a", "a: b", "#", "'", '"', " x ", "{text}",
     "=", "<<", "\ufeff", "\x85", "\u2028", "\x00", "\udc80", "\U0001f600", "\n", "2026-11-23"]
)  # fmt: skip


def values(key: Key) -> st.SearchStrategy[object]:
    given_ = _values(key)
    return st.none() | given_ if key.optional else given_


def _values(key: Key) -> st.SearchStrategy[object]:
    kind = key.type
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    if key.item:
        return st.lists(values(key.item), max_size=3).map(tuple)
    if isinstance(kind, inspect.StructType):
        names = {entry.name: entry.encode_name for entry in structs.fields(kind.cls)}
        return st.builds(
            kind.cls, **{name: values(key.keys[inside]) for name, inside in names.items()}
        )
    if isinstance(kind, inspect.BoolType):
        return st.booleans()
    if isinstance(kind, inspect.IntType):
        return st.integers(int(kind.ge or 0), 2**63 - 1)
    if isinstance(kind, inspect.FloatType):
        return st.floats(
            0,
            kind.lt if kind.le is None else kind.le,
            exclude_min=kind.gt is not None,
            exclude_max=kind.lt is not None,
            allow_infinity=False,
        )
    return WORDS


@settings(max_examples=60, deadline=None)
@given(values(ROOT))
def test_what_is_dumped_loads_as_the_same(tmp_path_factory, recipe):
    text = dump(recipe)
    assert RecipeReader().read(read_text(text, Place("recipe.yaml"))) == recipe
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    # Every value alone is fit; what does not go together is refused, and that alone.
    if wrong := list(problems(recipe)):
        with pytest.raises(UsageError, match=re.escape(" ".join(wrong[0])[:40])):
            load(path)
    else:
        assert load(path) == recipe


def test_dumped_yaml_means_the_same_to_other_readers(recipe):
    loaded = recipe(LEAST, "data.0.name=1e-5", "optimizer.lr=0.5", "data.0.path=yes")
    plain = yaml.safe_load(dump(loaded))
    assert plain["data"][0]["name"] == "1e-5"
    assert plain["data"][0]["path"] == "yes"
    assert plain == json.loads(json.dumps(to_plain(loaded))) | {
        "optimizer": plain["optimizer"]  # YAML 1.1 has no 1e-08
    }


@pytest.mark.parametrize("name", RECIPES)
class TestShippedRecipes:
    def test_it_loads_and_again_from_its_dump(self, name, tmp_path):
        loaded = load(find(name))
        (tmp_path / "again.yaml").write_text(dump(loaded), encoding="utf-8")
        assert load(tmp_path / "again.yaml") == loaded

    def test_it_has_every_key_with_a_comment(self, name):
        path = find(name)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# [A-Z].*\.", lines[0]), "what it is for"
        missing = []

        def look(node: yaml.Node, key: Key, at: str) -> None:
            if key.item:
                if key.item.keys:
                    for i, item in enumerate(node.value):
                        # After a full entry, one in a line says how it differs: {path: x}.
                        if not (i and item.flow_style):
                            look(item, key.item, f"{at}.{i}")
                return
            if not key.keys or isinstance(node, yaml.ScalarNode):
                return
            given_ = {name.value: (name, value) for name, value in node.value}
            for name, inner in key.keys.items():
                if name not in given_:
                    missing.append(f"{at}.{name}")
                    continue
                mark, value = given_[name]
                line = lines[mark.start_mark.line]
                holds_more = inner.keys or (inner.item and inner.item.keys)
                if not holds_more and not re.search(r"  # \S.{3}", line):
                    missing.append(f"{at}.{name}'s comment")
                look(value, inner, f"{at}.{name}")

        look(yaml.compose(path.read_text(encoding="utf-8")), ROOT, "")
        assert missing == []


@pytest.mark.parametrize("key", ["qat", "mixtures"])
def test_adaptation_refuses_what_it_would_not_do(key):
    with pytest.raises(UsageError, match=f"^{key}={{}}: {key} .* take null$"):
        load(find("adapt"), [f"{key}={{}}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("draft.hidden=300", "hidden is 300; it begins as a linear layer, which takes 512, two of"),
        ("draft.documents=200000", "documents is 200000, more than draft.queries 70000"),
        ("loss.distill={teacher: mini}", "loss.distill is of other stages: draft has weights"),
        ("loss.contrastive={}", "loss.contrastive is of other stages"),
        ("loss.spread_out={}", "loss.spread_out is of other stages"),
        ("qat={}", "qat is of models with layers, which a draft has not; take null"),
        ("mixtures={}", "mixtures is of models with layers"),
        ("eval.data=dev", "needs one model for both sides"),
        ("stage=finetune", "draft is of the stage draft, not of finetune; null leaves it out"),
        ("draft.temperature=0", "draft.temperature must be a number above 0, not 0"),
    ],
)
def test_a_draft_refuses_what_it_would_not_do(override, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        load(find("draft"), [override])


def test_a_draft_needs_a_weight():
    with pytest.raises(UsageError, match="draft has no weight above 0: give contrast"):
        load(find("draft"), ["draft.contrast=0", "draft.cosine=0", "draft.likeness=0"])


def test_those_are_the_shipped_recipes():
    chains = ["embeddinggemma", "embeddinggemma-mini", "mini"]
    assert recipe_names() == sorted([*RECIPES, *chains])


def test_the_smoke_recipe_needs_nothing_but_the_package():
    smoke = load(find("smoke"))
    assert smoke.init.model == "mini"
    assert [resolve_data(source.path).is_file() for source in smoke.data] == [True] * 3
    assert smoke.eval.data.startswith("builtin:")


def test_sample_data_is_small_pairs_each_once_with_its_licence():
    files = [FOLDER / name for name in sample_names()]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 150_000
    rows = [json.loads(line) for path in files for line in path.read_text("utf-8").splitlines()]
    assert len(rows) == 600
    assert all(set(row) == {"query", "positive"} and all(row.values()) for row in rows)
    assert len({row["query"] for row in rows}) == len({row["positive"] for row in rows}) == 600
    licences = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"| {path.name} | " in licences for path in files)


def test_sample_data_is_found_by_name_and_other_paths_are_the_shells(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_data("@sample/facts.jsonl").is_file()
    assert resolve_data("a/b.jsonl") == Path("a/b.jsonl")
    assert resolve_data("~/b.jsonl") == Path("/home/someone/b.jsonl")
    assert resolve_data("@samples/x") == Path("@samples/x")
    for name in ("@sample", "@sample/none.jsonl", "@sample/../../cli.py"):
        with pytest.raises(UsageError, match=r"no such sample data; there are @sample/facts"):
            resolve_data(name)


def test_every_key_has_a_meaning_and_a_default_that_fits():
    for path, key in every_key():
        assert key.meaning, path
        if key.default is not REQUIRED:
            assert msgspec.convert(msgspec.to_builtins(key.default), key.annotation) == key.default
    assert {"init.from", "data.N.prompts.query", "loss.distill.teacher"} <= {
        path for path, _ in every_key()
    }


def test_qat_has_the_types_that_a_model_may_be_trained_for():
    for key in ROOT.keys["qat"].keys.values():
        assert key.choices == QAT_TYPES


def test_the_json_schema_says_what_the_types_say():
    schema = json_schema()
    blocks = schema["$defs"]
    assert schema["$ref"] == "#/$defs/Recipe"
    assert blocks["Recipe"]["required"] == ["stage", "init", "data"]
    assert blocks["Recipe"]["additionalProperties"] is False
    assert set(blocks["Recipe"]["properties"]) == set(ROOT.keys)
    optimizer = blocks["Optimizer"]["properties"]
    assert optimizer["lr"]["exclusiveMinimum"] == 0
    assert optimizer["lr"]["default"] == 2e-5
    assert optimizer["lr"]["description"].startswith("peak; ")
    assert set(optimizer["decay"]["enum"]) == {"cosine", "linear", "none"}
    loss = blocks["Loss"]["properties"]
    assert loss["distill"]["anyOf"][1] == {"type": "null"}
    assert loss["matryoshka"]["items"] == {"type": "integer", "minimum": 1}
    assert set(loss) == {entry.name for entry in structs.fields(Loss)}
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("all", LayerChoice()),
        ("0-2,5", LayerChoice(layers=(0, 1, 2, 5))),
        ("greedy:12", LayerChoice(greedy=12)),
    ],
)
def test_layers_are_chosen(text, choice):
    assert layer_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("greedy", "greedy requires the number of layers to keep, as in greedy:12"),
        ("greedy:0", "greedy requires the number of layers to keep, as in greedy:12"),
        ("", "numbers from 0, as in 0-5,11"),
        ("5-3", "5-3 ends before it begins"),
        ("99999", "no model has layer 99999"),
        ("²", "numbers from 0"),
    ],
)
def test_a_choice_of_layers_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_choice(text)


def test_a_pointer_of_git_lfs_is_named(recipe):
    with pytest.raises(UsageError, match=r"my.yaml: a Git LFS pointer, .* git lfs pull"):
        recipe(POINTER)
