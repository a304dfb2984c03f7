"""The bundled draft: whose it is, under which terms, how large, how right and how fast."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb
from gemb.backend import Runtime
from gemb.models.card import NOTICE, NOTICE_FILE, TERMS_FILE, terms
from gemb.models.references import DRAFT, bundled, bundled_draft, names, resolve
from gemb.models.static import check_draft
from gemb.plugins import describe, for_model
from gemb.recipe.file import find, load

TEXTS = (
    "def read_ini(path):\n    parser = configparser.ConfigParser()\n    parser.read(path)\n"
    "    return {name: dict(parser[name]) for name in parser.sections()}",
    "tar -xzf archive.tar.gz -C /opt unpacks a compressed archive into a folder.",
    "A thread that waits for a lock does not run until another one releases it.",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n"
    "    def pop(self):\n        return self.items.pop()",
    "The red panda eats bamboo and lives in the eastern Himalayas.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3",
)
QUERIES = (
    "load settings from a configuration file",
    "how to extract an archive on the command line",
    "mutual exclusion of threads",
    "last in first out data structure",
    "animal of the mountains in Asia",
    "customers with more than three purchases",
)


@pytest.fixture(scope="module")
def draft():
    return for_model(resolve(DRAFT)).open(resolve(DRAFT), Runtime())


@pytest.fixture(scope="module")
def mini():
    return for_model(bundled()).open(bundled(), Runtime())


def test_it_is_a_folder_of_the_package_and_a_draft_of_mini(draft, mini) -> None:
    assert resolve("draft") == bundled_draft() == bundled().parent / "draft"
    assert DRAFT in names()
    check_draft(draft.profile.draft_of, mini.profile.fingerprint, "draft")
    described = describe(bundled_draft())
    assert described.draft_of == (describe(bundled()).fingerprint,)
    assert described.matryoshka_dims == (768, 512, 256, 128)
    recipe = load(find("draft"))
    assert recipe.init.model == "mini"
    assert recipe.draft is not None
    assert described.dense == ((recipe.draft.width, recipe.draft.hidden), (1024, 768))


def test_it_takes_less_than_20_mb_with_everything() -> None:
    assert sum(path.stat().st_size for path in bundled_draft().rglob("*")) < 20e6


def test_its_terms_and_its_card_are_beside_it() -> None:
    folder = bundled_draft()
    assert describe(folder).licence == "gemma"
    assert (folder / TERMS_FILE).read_text() == terms()
    assert (folder / NOTICE_FILE).read_text().startswith(NOTICE)
    card = (folder / "README.md").read_text()
    assert f"\n{NOTICE}\n" in card
    assert f"| fingerprint | {describe(folder).fingerprint} |" in card
    for title in ("How it was made", "What was measured", "Limits", "Licence"):
        assert f"\n## {title}\n" in card
    notice = (bundled().parent / "GEMMA-NOTICE.txt").read_text()
    assert "the folder draft" in notice


def test_the_card_names_the_texts_of_the_recipe() -> None:
    used = re.findall(r"train/([\w-]+)\.jsonl\.gz", find("draft").read_text(encoding="utf-8"))
    card = (bundled_draft() / "README.md").read_text()
    table = card.partition("\n### Texts\n")[2]
    rows = re.findall(r"^\| ([\w-]+(?:, [\w-]+)*) \|", table, re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")} - {"texts"}
    assert listed - {"passages"} == set(used)


def test_its_vectors_lie_where_minis_do(draft, mini) -> None:
    own = draft.encode(draft.tokenize(TEXTS))
    right = mini.encode(mini.tokenize([f"title: none | text: {text}" for text in TEXTS]))
    cosines = own @ right.T
    assert (cosines.argmax(axis=1) == np.arange(len(TEXTS))).all()
    assert cosines.diagonal().mean() > 0.5


@pytest.mark.parametrize("width", [768, 256, 128])
def test_minis_queries_find_its_documents(draft, mini, width) -> None:
    documents = draft.encode(draft.tokenize(TEXTS))[:, :width]
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = mini.encode(mini.tokenize([f"task: search result | query: {q}" for q in QUERIES]))
    best = (queries[:, :width] @ documents.T).argmax(axis=1)
    assert (best == np.arange(len(QUERIES))).all()


def test_its_tokens_are_minis_without_begin_and_end(draft, mini) -> None:
    for own, whole in zip(draft.tokenize(TEXTS), mini.tokenize(TEXTS), strict=True):
        assert own.tolist() == whole[1:-1].tolist()


def test_it_embeds_a_hundred_thousand_tokens_a_second_with_tokenizing(draft) -> None:
    texts = [" ".join(TEXTS[at % 6 :]) + f" {at}" for at in range(1000)]
    began = time.process_time()
    ids = draft.tokenize(texts)
    draft.encode(ids)
    assert sum(map(len, ids)) / (time.process_time() - began) > 100_000


def test_commands_take_it_by_its_name(gemb: Gemb) -> None:
    (gemb.folder / "rows.txt").write_text("one text\nanother text\n")
    answer = gemb("embed", "-m", "draft", "--dim", "128", "rows.txt")
    vectors = [json.loads(line)["embedding"] for line in answer.stdout.splitlines()]
    assert [len(vector) for vector in vectors] == [128, 128]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    shown = gemb("models", "show", "draft").stdout.decode()
    assert f"draft of      {describe(bundled()).fingerprint}\n" in shown
    assert "licence       gemma" in shown
    listed = gemb("models", "ls").stdout.decode()
    assert re.search(r"^draft .* i8\+f16 +768 ", listed, re.MULTILINE)
    card = gemb("models", "show", "draft", "--card").stdout.decode()
    assert card == (bundled_draft() / "README.md").read_text()
    answer = gemb("models", "rm", "--yes", "draft")
    assert answer.stderr == b"gemb: draft comes with gemb, and goes with it alone\n"
    assert Path(bundled_draft()).is_dir()
