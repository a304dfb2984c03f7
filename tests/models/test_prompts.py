"""Which words a model sees around a text: its own under any usual name, its default, the card's."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest

from changed_gguf import ABSENT, changed
from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.gguf import open_gguf
from gemb.models.prompts import CARD, DICTIONARY, ModelPrompts, for_task
from gemb_llamacpp.export import export
from tiny_model import PROMPTS

SETTINGS = "config_sentence_transformers.json"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path):
    """Return a function that gives a copy of the tiny model these prompts, and opens it."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))

    def given(prompts: object, default: object = None) -> ModelPrompts:
        raw = json.loads((folder / SETTINGS).read_text())
        raw |= {"prompts": prompts, "default_prompt_name": default}
        (folder / SETTINGS).write_text(json.dumps(raw))
        return open_checkpoint(folder).prompts

    return given


def words(task: str, prompts: dict[str, str]) -> str:
    """Return what stands before a text without a title."""
    return for_task(task, prompts).render("")


@pytest.mark.parametrize(
    "name",
    [
        *("document", "passage", "corpus", "doc", "search_document", "Retrieval-document"),
        *("retrieval.passage", "RETRIEVAL_DOCUMENT", "Search-Document", "Passage", "docs"),
    ],
)
def test_documents_have_the_models_own_words_under_any_usual_name(model, name, capsys):
    assert words("document", model({"query": "q: ", name: "p: "})) == "p: "
    assert words("query", model({"query": "q: ", name: "p: "})) == "q: "
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["query", "search_query", "Retrieval-query", "retrieval.query", "s2p_query", "Queries"]
)
def test_queries_have_the_models_own_words_under_any_usual_name(model, name):
    assert words("query", model({name: "q: ", "passage": "p: "})) == "q: "


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("similarity", "text-matching"),
        ("similarity", "sts"),
        ("classification", "classification"),
        ("clustering", "CLUSTERING"),
        ("qa", "question_answering"),
        ("fact", "Fact Verification"),
        ("code", "code.query"),
    ],
)
def test_other_tasks_have_the_models_own_words(model, task, name):
    assert words(task, model({"query": "q: ", name: "own: "})) == "own: "


def test_of_several_names_the_task_s_own_comes_first(model):
    own = {"corpus": "c: ", "passage": "p: ", "Document": "D: ", "document": "d: "}
    assert words("document", model(own)) == "d: "
    del own["document"]
    assert words("document", model(own)) == "p: "


def test_an_empty_prompt_is_a_prompt(model, capsys):
    """As sentence-transformers 6 saves a model that has none for queries or documents."""
    prompts = model({"query": "q: ", "document": ""})
    assert words("document", prompts) == ""
    assert words("document", model({"query": "q: ", "document": None})) == ""
    assert capsys.readouterr().err == ""


def test_the_default_prompt_counts_where_a_task_has_none(model, capsys):
    prompts = model({"own": "o: ", "query": "q: "}, "own")
    assert words("document", prompts) == "o: "
    assert words("similarity", prompts) == "o: "
    assert words("query", prompts) == "q: "
    assert words("none", prompts) == ""
    assert capsys.readouterr().err == ""


def test_a_default_that_is_no_prompt_is_refused(model):
    with pytest.raises(UsageError, match=r"default_prompt_name 'own' is none of its prompts: que"):
        model({"query": "q: "}, "own")
    for prompts, default in (({"query": 3}, None), ([], 7), (["q"], None)):
        with pytest.raises(UsageError, match="prompts must map names to texts"):
            model(prompts, default)


@pytest.mark.parametrize("prompts", [{}, None])
def test_a_note_says_once_that_the_cards_words_stand_in(model, prompts, capsys):
    own = model(prompts)
    for _ in range(2):
        assert words("document", own) == CARD["document"]
    err = capsys.readouterr().err
    assert err.count("has no prompt for 'document': the words of EmbeddingGemma's model card") == 1
    assert "'title: none | text: '" in err
    assert words("query", own) == CARD["query"]
    assert "no prompt for 'query'" in capsys.readouterr().err


def test_the_note_names_what_the_model_has(model, capsys):
    assert words("document", model({"query": "q: "})) == CARD["document"]
    assert "has no prompt for 'document' (it has query): the words" in capsys.readouterr().err


@pytest.mark.parametrize("prompts", [DICTIONARY, PROMPTS])
def test_a_model_that_was_trained_with_the_cards_words_gets_them_without_a_note(
    model, prompts, capsys
):
    for task, text in CARD.items():
        assert words(task, model(prompts)) == text
    assert capsys.readouterr().err == ""


def test_a_file_keeps_the_default_prompt(model, tiny_gguf, tmp_path, capsys):
    model({"own": "o: "}, "own")
    export(tmp_path / "model", tmp_path / "a.gguf", "f32")
    assert words("document", open_gguf(tmp_path / "a.gguf").prompts) == "o: "
    assert capsys.readouterr().err == ""
    absent = {f"gemb.prompt.{name}": ABSENT for name in PROMPTS}
    plain = open_gguf(changed(tiny_gguf, tmp_path / "plain.gguf", absent)).prompts
    assert words("query", plain) == CARD["query"]
    assert "plain.gguf has no prompt for 'query': the words" in capsys.readouterr().err


def test_copies_keep_the_default(model):
    prompts = model({"own": "o: "}, "own")
    for copied in (copy.deepcopy(prompts), pickle.loads(pickle.dumps(prompts))):
        assert words("query", copied) == "o: "
