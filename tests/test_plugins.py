"""Which backend is taken: by rank, by what it can do, and by the libraries that are installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from gemb import plugins
from gemb.backend import Backend, ModelDescription, Runtime
from gemb.errors import Missing, UsageError

MODEL = Path("model.any")


class Opener(Backend):
    """Opens any model; its description is its own name."""

    def can_open(self, model):
        return True

    def open(self, model, runtime):
        return self.name

    def describe(self, model) -> ModelDescription:
        return self.name


class Absent(Opener):
    requires: ClassVar = {"gemb_no_such_module": "gemb[none]"}


def backend(name: str, base: type[Backend] = Opener, rank: int = 0) -> type[Backend]:
    return type(name, (base,), {"name": name, "rank": rank})


@pytest.fixture
def install(monkeypatch):
    """Make these classes the installed backends."""

    def install(*classes):
        entries = [
            SimpleNamespace(name=kind.name, load=lambda kind=kind: kind, package="test")
            for kind in classes
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
        plugins.backends.cache_clear()
        plugins._failed.clear()

    yield install
    monkeypatch.undo()
    plugins.backends.cache_clear()


def test_the_highest_rank_opens_a_model_and_names_decide_between_equals(install):
    install(backend("aa"), backend("zz", rank=5), backend("mm", rank=5))
    assert plugins.for_model(MODEL).name == "mm"
    assert plugins.able("open").name == "mm"
    assert plugins.describe(MODEL) == "mm"
    assert list(plugins.backends()) == ["mm", "zz", "aa"]
    assert plugins.for_model(MODEL, "aa").name == "aa"


def test_a_backend_without_its_libraries_gives_way_to_one_that_has_them(install):
    install(backend("best", Absent, rank=9), backend("here", rank=-1))
    assert plugins.for_model(MODEL).name == "here"
    assert plugins.able("open").name == "here"
    assert plugins.describe(MODEL) == "here", "the one that would open it"
    with pytest.raises(Missing, match="backend 'best' needs the module 'gemb_no_such_module': pip"):
        plugins.for_model(MODEL, "best")


def test_where_none_has_its_libraries_that_of_the_best_is_named(install):
    install(backend("aa", Absent), backend("zz", Absent, rank=1))
    for find in (lambda: plugins.for_model(MODEL), lambda: plugins.able("open")):
        with pytest.raises(Missing, match=r"backend 'zz' needs .* pip install 'gemb\[none\]'"):
            find()
    assert plugins.describe(MODEL) == "zz", "the model's files need no library"


def test_what_a_backend_can_is_what_it_overrides(install):
    class Bare(Backend):
        name = "bare"

        def can_open(self, model):
            return True

    class Trainer(Backend):
        name = "trainer"

        def train(self, recipe, training):
            pass

    install(Bare, Trainer, backend("opener"))
    methods = ("open", "describe", "export_gguf", "quantize", "importance", "cut", "train")
    assert [method for method in methods if Bare().can(method)] == []
    assert [method for method in methods if Trainer().can(method)] == ["train"]
    assert plugins.able("train").name == "trainer"
    assert plugins.able("train", "trainer").name == "trainer"
    assert plugins.describe(MODEL) == "opener", "one that can, before one that only opens"
    with pytest.raises(UsageError, match=r"^backend 'opener' cannot train; use --backend trainer$"):
        plugins.able("train", "opener")
    with pytest.raises(UsageError, match=r"^backend 'trainer' cannot export-gguf$"):
        plugins.able("export_gguf", "trainer")
    with pytest.raises(UsageError, match=r"^no installed backend can export-gguf$"):
        plugins.able("export_gguf")
    with pytest.raises(UsageError, match=r"^backend 'bare' cannot quantize$"):
        Bare().quantize(MODEL, None, None)


def test_a_model_that_none_opens_and_a_name_that_none_has(install):
    install(type("Closed", (Backend,), {"name": "closed"}))
    with pytest.raises(UsageError, match=r"model\.any: no model that a backend knows"):
        plugins.for_model(MODEL)
    with pytest.raises(UsageError, match="no backend 'open'; installed: closed"):
        plugins.named("open")


def test_a_named_one_that_does_not_open_the_model_says_who_does(install):
    class Other(Opener):
        def can_open(self, model):
            return False

    install(backend("this"), backend("other", Other))
    expected = r"model\.any: backend 'other' does not open such a model; use this$"
    with pytest.raises(UsageError, match=expected):
        plugins.for_model(MODEL, "other")


def test_the_built_in_ones_have_ranks_above_a_plugin_that_says_none():
    ranks = {name: each.rank for name, each in plugins.backends().items()}
    assert ranks["onnx"] > ranks["torch"] > ranks["llamacpp"] > Backend.rank


def test_one_that_does_not_suit_stands_behind_the_others(install, monkeypatch):
    class Unsuited(Opener):
        def suits(self, model, runtime):
            return runtime.precision == "int8"

    monkeypatch.delenv("GEMB_BACKEND", raising=False)
    install(backend("low"), backend("high", Unsuited, rank=9))
    names = [opener.name for opener in plugins.candidates(MODEL)]
    assert names == ["low", "high"]
    assert plugins.for_model(MODEL, runtime=Runtime(precision="int8")).name == "high"
    assert plugins.for_model(MODEL, "high").name == "high", "a name always wins"


def test_the_environment_names_a_backend_or_leaves_one_out(install, monkeypatch):
    install(backend("low"), backend("high", rank=9))
    for named, name in (("low", "low"), ("-high", "low"), ("-low", "high"), ("", "high")):
        monkeypatch.setenv("GEMB_BACKEND", named)
        assert plugins.for_model(MODEL).name == name
        assert plugins.for_model(MODEL, "high").name == "high"
    monkeypatch.setenv("GEMB_BACKEND", "none")
    with pytest.raises(UsageError, match="no backend 'none'; installed: high, low"):
        plugins.for_model(MODEL)


def test_one_to_leave_out_that_is_not_there_is_told_once(install, monkeypatch, capsys):
    install(backend("low"), backend("high", rank=9))
    monkeypatch.setenv("GEMB_BACKEND", "-hihg")
    for _ in range(2):
        assert plugins.for_model(MODEL).name == "high"
    words = "gemb: warning: GEMB_BACKEND=-hihg leaves none out; installed: high, low\n"
    assert capsys.readouterr().err == words
