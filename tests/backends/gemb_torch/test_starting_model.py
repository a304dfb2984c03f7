"""`init: {from, keep_layers, vocab}`: the folder that training starts from, made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import gemb_torch.train.start as starting_model
from gemb.backend import Cut, Runtime
from gemb.datasets.plain_texts import Texts, counted_texts
from gemb.errors import Missing, UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.references import bundled
from gemb.plugins import able
from gemb.recipe.schema import Init
from gemb_torch.train.start import quick_init, starting_folder
from tiny_model import TEXT

FP32 = Runtime(device="cpu", precision="fp32")


def _lines(name: str, *lines: str) -> Texts:
    return Texts(name, lambda: iter(lines))


SOURCES = (
    _lines("fox", "the quick brown fox jumps over the lazy dog", "what is the planet"),
    _lines("code", "def main(args): return sum(x for x in args if x)"),
)


def _unread() -> Iterator[str]:
    raise AssertionError("nothing is to be cut, so nothing is read")
    yield


def _start(model: Path | str, work: Path, *, texts=SOURCES, **init) -> Path:
    return starting_folder(Init(model=str(model), **init), work, texts=texts, runtime=FP32)


def _made(folder: Path) -> dict[str, int]:
    """Return the inode of each file: another one has been written anew."""
    return {str(path): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_a_whole_folder_is_taken_as_it_is(tiny_model: Path, tmp_path: Path):
    work = tmp_path / "work"
    assert _start(tiny_model, work, texts=(Texts("unread", _unread),)) == tiny_model
    assert not work.exists()


def test_a_gguf_file_is_unpacked_once(tiny_model: Path, tiny_gguf: Path, tmp_path: Path):
    folder = _start(tiny_gguf, tmp_path, texts=(Texts("unread", _unread),))
    assert folder == tmp_path / "unpacked" / "tiny"
    assert open_checkpoint(folder).config == open_checkpoint(tiny_model).config
    before = _made(folder)
    assert _start(tiny_gguf, tmp_path) == folder
    assert _made(folder) == before


def test_another_file_of_that_name_is_unpacked_anew(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
):
    from gemb_llamacpp.export import export

    first = open_checkpoint(_start(tiny_gguf, tmp_path)).fingerprint()
    other = tmp_path / "other" / tiny_gguf.name
    other.parent.mkdir()
    export(tiny_model, other, "bf16")
    assert open_checkpoint(_start(other, tmp_path)).fingerprint() != first


def test_layers_and_tokens_are_cut_as_gemb_cut_does(tiny_model: Path, tmp_path: Path):
    """From the same texts in files, `gemb cut` writes the same bytes."""
    files = []
    for source in SOURCES:
        files.append(tmp_path / f"{source.name}.txt")
        files[-1].write_text("\n".join(source.read()), encoding="utf-8")
    able("cut").cut(
        tiny_model, tmp_path / "cut", Cut(layers=(1, 2), vocab=325, vocab_texts=tuple(files))
    )
    folder = _start(tiny_model, tmp_path / "work", keep_layers="1-2", vocab=325)
    assert folder == tmp_path / "work" / "start"
    for path in (tmp_path / "cut").rglob("*"):
        if path.is_file():
            ours = folder / path.relative_to(tmp_path / "cut")
            assert ours.read_bytes() == path.read_bytes(), path


def test_sources_count_alike_however_long_they_are(tiny_model: Path, tmp_path: Path):
    long = _lines("long", *["что это она они"] * 2000)
    short = _lines("short", "中文 日本語 한국어")

    def kept(work: str, *texts: Texts) -> set[str]:
        folder = _start(tiny_model, tmp_path / work, texts=texts, vocab=325)
        vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        return vocab.keys() & set("中文日本語한국어")

    assert len(kept("a", long, short)) > len(kept("b", long))


def test_what_was_made_is_used_again_until_something_changes(tiny_model: Path, tmp_path: Path):
    folder = _start(tiny_model, tmp_path, keep_layers="0,1", vocab=325)
    before = _made(folder)
    assert _start(tiny_model, tmp_path, keep_layers="0-1", vocab=325) == folder
    assert _made(folder) == before
    for change in (
        {"keep_layers": "1,2", "vocab": 325},
        {"keep_layers": "0,1", "vocab": 326},
        {"keep_layers": "0,1", "vocab": 325, "texts": (_lines("fox", "日本 日本 日本"),)},
        {"keep_layers": "0,1"},
    ):
        _start(tiny_model, tmp_path, **change)
        after = _made(folder)
        assert after != before, change
        before = after
    assert open_checkpoint(folder).config.vocab_size == 369


def test_a_change_in_the_last_text_makes_another_start(tiny_model: Path, tmp_path: Path):
    before = _lines("long", *["the planet"] * 1500)
    after = _lines("long", *["the planet"] * 1499, "日本 日本 日本")
    made = _made(_start(tiny_model, tmp_path, texts=(before,), vocab=325))
    assert _made(_start(tiny_model, tmp_path, texts=(before,), vocab=325)) == made
    assert _made(_start(tiny_model, tmp_path, texts=(after,), vocab=325)) != made


def test_a_folder_without_the_note_of_what_it_is_made_from_is_made_anew(
    tiny_model: Path, tmp_path: Path
):
    """As after a kill between the folder and the note."""
    folder = _start(tiny_model, tmp_path, keep_layers="0,1")
    (folder / "made_from.json").unlink()
    (folder / "config.json").write_text("{}")
    assert open_checkpoint(_start(tiny_model, tmp_path, keep_layers="0,1")).config


def test_greedy_layers_of_a_gguf_file_with_fewer_tokens(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path, capsys
):
    folder = _start(tiny_gguf, tmp_path, keep_layers="greedy:2", vocab=325)
    removed = json.loads((tmp_path / "layers.json").read_text())["removed"]
    config = open_checkpoint(folder).config
    assert (config.num_hidden_layers, config.vocab_size) == (2, 325)
    assert len(removed) == 1
    assert set(config.is_sliding) == {True, False}
    kept = [layer for layer in range(3) if layer != removed[0]["layer"]]
    before, after = (open_checkpoint(path).tensors for path in (tiny_model, folder))
    for new, old in enumerate(kept):
        name = "mlp.up_proj.weight"
        np.testing.assert_array_equal(
            after[f"layers.{new}.{name}"].float32(), before[f"layers.{old}.{name}"].float32()
        )
    assert "Modified from tiny by `gemb cut`: 2 of 3 layers" in (folder / "README.md").read_text()
    capsys.readouterr()
    _start(tiny_gguf, tmp_path, keep_layers="greedy:2", vocab=325)
    assert "removed before, in this order" in capsys.readouterr().err


def test_tokens_are_counted_in_the_beginning_of_a_long_source(
    tiny_model: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(starting_model, "_COUNTED", 100)
    read: list[int] = []

    def lines() -> Iterator[str]:
        for number in range(1_000_000):
            read.append(number)
            yield TEXT[:90]

    _start(tiny_model, tmp_path, texts=(Texts("endless", lines),), vocab=325)
    assert len(read) == 6  # three with more than 100 characters, to tell sources apart and to count
    assert "endless: tokens are counted in its first 100 characters" in capsys.readouterr().err


def test_the_bundled_model_can_be_started_from(tmp_path: Path):
    if not bundled().is_file():
        pytest.skip("the bundled model is not in this checkout")
    checkpoint = open_checkpoint(_start("mini", tmp_path))
    assert checkpoint.folder.name == "mini"
    assert (checkpoint.dim, checkpoint.licence()) == (768, "gemma")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"keep_layers": "0,3"}, "cannot keep layers 0,3: name some of 0 to 2"),
        ({"keep_layers": "2-1"}, r"init.keep_layers '2-1': 2-1 ends before it begins"),
        ({"keep_layers": "greedy:4"}, "it has 3 layers"),
        ({"vocab": 1000}, "has 369 tokens; 1000 cannot be kept"),
        ({"vocab": 300}, "tokens are always kept; 300 are too few"),
        ({"vocab": 325, "texts": ()}, "no text to count tokens in"),
        ({"vocab": 325, "texts": (_lines("void"),)}, "void: no text in it"),
    ],
)
def test_what_cannot_be_kept_is_refused(tiny_model: Path, tmp_path: Path, init, message: str):
    with pytest.raises(UsageError, match=message) as error:
        _start(tiny_model, tmp_path / "work", **init)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "work" / "start").exists()


def test_what_is_no_model_is_refused(tiny_gguf: Path, tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(tiny_gguf.read_bytes()[:4000])
    with pytest.raises(UsageError, match=r"a.gguf: not a whole GGUF file"):
        _start(tmp_path / "a.gguf", tmp_path / "work")
    with pytest.raises(Missing, match=r"no-such.gguf: no such file or folder"):
        _start(tmp_path / "no-such.gguf", tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no model folder: it has no config.json"):
        _start(tmp_path / "empty", tmp_path / "work")
    assert not (tmp_path / "work" / "unpacked").exists()


def test_files_can_be_the_texts(tiny_model: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"query": "日本", "positive": "日本語 日本語"}) + "\n", "utf-8")
    folder = _start(tiny_model, tmp_path, texts=(counted_texts(rows),), vocab=330)
    assert "日" in Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


@pytest.mark.parametrize("layers", ["all", "0,2", "greedy:2"])
def test_a_look_starts_from_as_many_layers_as_the_run_will(
    tiny_model: Path, tmp_path: Path, layers: str
):
    """Else it estimates the speed and memory of another model."""
    runs = _start(tiny_model, tmp_path / "run", keep_layers=layers, vocab=325)
    init = quick_init(Init(model=str(tiny_model), keep_layers=layers, vocab=325))
    unread = [Texts("unread", _unread)]
    look = starting_folder(init, tmp_path / "look", texts=unread, runtime=FP32)
    deep = [open_checkpoint(folder).config.num_hidden_layers for folder in (runs, look)]
    assert deep[0] == deep[1] == {"all": 3}.get(layers, 2)
