"""The quick tokenizer gives the library's ids, and gives up where it would not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.models.from_gguf import tokenizer_files
from gemb.models.gguf import open_gguf
from gemb.models.quick_tokenizer import MOST_CHARS, LazyTokenizer, QuickTokenizer, quick_arrays
from gemb.models.references import bundled
from gemb.models.tokenizer import load_tokenizer, tokenize
from varied_texts import VARIED_TEXTS


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The tokenizer.json of the bundled model."""
    header = open_gguf(bundled()).header
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_files(header, 2048)["tokenizer.json"]))
    return path


@pytest.fixture(scope="module")
def library(file):
    return load_tokenizer(file, 53248)


@pytest.fixture(scope="module")
def quick(file, tmp_path_factory) -> QuickTokenizer:
    path = tmp_path_factory.mktemp("quick") / "q.npz"
    np.savez(path, **quick_arrays(json.loads(file.read_bytes())))
    return QuickTokenizer(np.load(path, allow_pickle=False))


def check(quick: QuickTokenizer, library, text: str) -> bool:
    ids = quick.tokenize([text])
    if ids is None:
        return False
    np.testing.assert_array_equal(ids[0], tokenize(library, [text])[0])
    assert ids[0].dtype == np.int32
    return True


def test_ids_are_the_librarys(quick, library) -> None:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))[::9]
    lines = [line for path in sources for line in path.read_text("utf-8").splitlines()][::7]
    texts = [*VARIED_TEXTS, *lines, "", " ", "a", "\x00", "▁", " ▁ ▁▁", "<0x41>", "é" * 40]
    answered = sum(check(quick, library, text) for text in texts)
    assert answered > 0.9 * len(texts)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_ids_of_any_text_are_the_librarys(quick, library, text) -> None:
    check(quick, library, text)


def test_it_gives_up_at_added_tokens_and_long_texts(quick, library) -> None:
    assert quick.tokenize(["a <bos> b"]) is None
    assert quick.tokenize(["two\n\nlines"]) is None or check(quick, library, "two\n\nlines")
    assert quick.tokenize(["a" * MOST_CHARS]) is not None
    assert quick.tokenize(["a" * MOST_CHARS, "b"]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(normalizer=None),
        lambda raw: raw.update(pre_tokenizer={"type": "Whitespace"}),
        lambda raw: raw.update(post_processor=None),
        lambda raw: raw["post_processor"]["single"].pop(),
        lambda raw: raw["model"].update(byte_fallback=False),
        lambda raw: raw["model"].update(ignore_merges=True),
        lambda raw: raw["model"].update(merges=[]),
        lambda raw: raw["added_tokens"][0].update(lstrip=True),
        lambda raw: raw["model"]["vocab"].pop("<0x00>"),
    ],
)
def test_a_tokenizer_of_another_form_has_none(file, change) -> None:
    raw = json.loads(file.read_bytes())
    change(raw)
    assert quick_arrays(raw) is None


def test_the_library_is_loaded_once_and_when_it_is_needed(quick, library) -> None:
    loaded = []

    def load():
        loaded.append(1)
        return library

    lazy = LazyTokenizer(quick, load)
    expected = tokenize(library, ["a question"])[0]
    np.testing.assert_array_equal(lazy.tokenize(["a question"])[0], expected)
    assert not loaded
    long = "many words " * 1000
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lazy.tokenize, [[long]] * 16))
    assert len(loaded) == 1
    for answer in answers:
        np.testing.assert_array_equal(answer[0], tokenize(library, [long])[0])
    np.testing.assert_array_equal(lazy.tokenize(["a question"])[0], expected)
    assert LazyTokenizer(None, load).tokenize([]) == []
    assert len(loaded) == 2
