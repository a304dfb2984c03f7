"""`gemb cut`: what is kept is the same, every text still comes back whole, the folder is whole."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from gemb.backend import Backend, Cut, Runtime
from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.safetensors import read_header
from gemb.plugins import able
from gemb_llamacpp.export import export
from gguf_tokens import differences
from tiny_model import TEXT, TinyShape, write_tiny_model
from token_lines import token_lines

SOME = "the quick brown fox jumps over the lazy dog\nwhat is the planet\n\n\nthe end"


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemb", "cut", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return able("cut")


@pytest.fixture(scope="module")
def some_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(SOME, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(tiny_model: Path, backend: Backend, some_text: Path, tmp_path_factory) -> Path:
    """The tiny model with 325 of its 369 tokens."""
    target = tmp_path_factory.mktemp("cut") / "small"
    backend.cut(tiny_model, target, Cut(vocab=325, vocab_texts=(some_text,)))
    return target


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _vectors(backend: Backend, folder: Path, texts: list[str]) -> np.ndarray:
    model = backend.open(folder, Runtime(precision="fp32"))
    return model.encode(model.tokenize(texts))


def test_texts_of_kept_tokens_have_the_same_pieces_and_vectors(
    tiny_model: Path, small: Path, backend: Backend
):
    before, after = _tokenizer(tiny_model), _tokenizer(small)
    known = after.get_vocab().keys()
    texts = [f" {line}" for line in (SOME + "\n" + TEXT).splitlines()]
    texts += [" ".join(line.split()[:4]) for line in texts]
    kept = [text for text in texts if set(before.encode(text).tokens) <= known]
    assert len(kept) >= 6
    for text in kept:
        assert after.encode(text).tokens == before.encode(text).tokens
    # The same arithmetic on the same numbers; 1e-6 leaves room for another order of batches.
    np.testing.assert_allclose(
        _vectors(backend, small, kept), _vectors(backend, tiny_model, kept), atol=1e-6
    )


def test_every_text_still_comes_back_whole(tiny_model: Path, small: Path):
    before, after = _tokenizer(tiny_model), _tokenizer(small)
    for line in token_lines(5000):
        ids = after.encode(line).ids
        assert max(ids) < 325
        # A literal U+2581 becomes a space in the full tokenizer, too.
        right = before.decode(before.encode(line).ids, skip_special_tokens=False)
        assert after.decode(ids, skip_special_tokens=False) == right, line


def test_tokenizers_and_llama_cpp_agree_on_the_smaller_vocabulary(small: Path, tmp_path: Path):
    export(small, tmp_path / "small.gguf", "q4_0")
    assert differences(tmp_path / "small.gguf", small, token_lines(20_000)) == []


def test_exactly_n_tokens_are_kept_and_the_first_five_keep_their_ids(small: Path):
    vocab = _tokenizer(small).get_vocab()
    assert sorted(vocab.values()) == list(range(325))
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert [vocab[token] for token in first] == [0, 1, 2, 3, 4]
    assert all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    assert open_checkpoint(small).config.vocab_size == 325


def test_every_kept_token_is_reached_by_its_own_text(small: Path):
    tokenizer = _tokenizer(small)
    tokens = [token for token in tokenizer.get_vocab() if not token.startswith("<")]
    assert len(tokens) > 40
    for token in tokens:
        assert tokenizer.encode(token, add_special_tokens=False).tokens == [token]


def test_used_tokens_are_kept_before_unused_ones(
    tiny_model: Path, backend: Backend, tmp_path: Path
):
    text = tmp_path / "a.txt"
    text.write_text("日本 日本 日本\n", encoding="utf-8")
    target = tmp_path / "small"
    backend.cut(tiny_model, target, Cut(vocab=340, vocab_texts=(text,)))
    vocab = _tokenizer(target).get_vocab()
    assert {"日", "本"} <= vocab.keys()
    assert "한" not in vocab
    assert "<unused0>" not in vocab


def test_each_file_counts_alike(tiny_model: Path, backend: Backend, tmp_path: Path):
    """A long file of one script does not push out all of a short one."""
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("что это она они " * 2000, encoding="utf-8")
    short.write_text("中文 日本語 한국어", encoding="utf-8")
    size = len(
        _kept(backend, tiny_model, tmp_path / "a", 325, long, short) & set("中文日本語한국어")
    )
    assert size > len(
        _kept(backend, tiny_model, tmp_path / "b", 325, long) & set("中文日本語한국어")
    )


def _kept(backend: Backend, model: Path, target: Path, size: int, *texts: Path) -> set[str]:
    backend.cut(model, target, Cut(vocab=size, vocab_texts=texts))
    return set(_tokenizer(target).get_vocab())


def test_rows_of_the_table_and_all_other_weights_are_bit_for_bit_the_same(
    tiny_model: Path, small: Path
):
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, small))
    old, new = _tokenizer(tiny_model).get_vocab(), _tokenizer(small).get_vocab()
    for token, i in new.items():
        row = before["embed_tokens.weight"][old[token]]
        np.testing.assert_array_equal(after["embed_tokens.weight"][i], row)
    for name in before.keys() - {"embed_tokens.weight"}:
        np.testing.assert_array_equal(after[name], before[name])


def test_bf16_stays_bf16(tiny_model: Path, some_text: Path, backend: Backend, tmp_path: Path):
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = {name: t.to(torch.bfloat16) for name, t in load(model / "model.safetensors").items()}
    save({f"model.{name}": tensor for name, tensor in tensors.items()}, model / "model.safetensors")
    backend.cut(model, tmp_path / "cut", Cut(vocab=330, vocab_texts=(some_text,)))
    written = load(tmp_path / "cut" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert torch.equal(written["norm.weight"], tensors["norm.weight"])
    assert (
        read_header(tmp_path / "cut" / "model.safetensors")["embed_tokens.weight"].shape[0] == 330
    )


def test_all_layers_and_all_tokens_are_the_source(
    tiny_model: Path, some_text: Path, backend: Backend, tmp_path: Path
):
    whole = Cut(vocab=369, vocab_texts=(some_text,), layers=(0, 1, 2))
    backend.cut(tiny_model, tmp_path / "same", whole)
    for file in tiny_model.rglob("*"):
        if file.is_file() and file.name != "model.safetensors":
            copy = tmp_path / "same" / file.relative_to(tiny_model)
            if file.suffix == ".json":
                assert json.loads(copy.read_text()) == json.loads(file.read_text()), file
    assert (
        load_file(tmp_path / "same" / "model.safetensors").keys()
        == load_file(tiny_model / "model.safetensors").keys()
    )
    texts = ["hello", "the quick brown fox"]
    np.testing.assert_array_equal(
        _vectors(backend, tmp_path / "same", texts), _vectors(backend, tiny_model, texts)
    )


def test_kept_layers_keep_their_kind_and_llama_cpp_is_told(backend: Backend, tmp_path: Path):
    import gguf

    shape = TinyShape(num_hidden_layers=6, sliding_window_pattern=3)
    model = write_tiny_model(tmp_path / "model", shape)
    backend.cut(model, tmp_path / "cut", Cut(layers=(0, 2, 3, 5)))
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    kinds = ["sliding", "full", "sliding", "full"]
    assert config["layer_types"] == [f"{kind}_attention" for kind in kinds]
    assert config["num_hidden_layers"] == 4
    assert "_sliding_window_pattern" not in config
    before, after = (load_file(f / "model.safetensors") for f in (model, tmp_path / "cut"))
    for new, old in enumerate((0, 2, 3, 5)):
        name = "self_attn.v_proj.weight"
        np.testing.assert_array_equal(after[f"layers.{new}.{name}"], before[f"layers.{old}.{name}"])
    assert "layers.4.mlp.up_proj.weight" not in after
    export(tmp_path / "cut", tmp_path / "cut.gguf", "f32")
    fields = gguf.GGUFReader(tmp_path / "cut.gguf").fields
    pattern = fields["gemma-embedding.attention.sliding_window_pattern"].contents()
    assert pattern == [True, False, True, False]


def test_sentence_transformers_opens_the_folder_and_agrees(small: Path, backend: Backend):
    from sentence_transformers import SentenceTransformer

    texts = ["the quick brown fox", "日本 é 🙂", "def main(args): return\n\n\n  x"]
    theirs = SentenceTransformer(str(small), device="cpu").encode(texts)
    # fp32 on both sides, other orders of addition: 1e-5 as between any two right programs.
    np.testing.assert_allclose(_vectors(backend, small, texts), theirs, atol=1e-5)


def test_files_of_the_tokenizer_name_only_what_is_there(
    tiny_model: Path, some_text: Path, backend: Backend, tmp_path: Path
):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    raw = json.loads((model / "tokenizer.json").read_text("utf-8"))
    image = raw["added_tokens"][4] | {"id": 369, "content": "<image>", "special": True}
    raw["added_tokens"].append(image)
    (model / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
        "added_tokens_decoder": {
            str(t.pop("id")): t for t in json.loads(json.dumps(raw))["added_tokens"]
        },
    }
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"bos_token": {"content": "<bos>"}, "image_token": "<image>"}
    (model / "special_tokens_map.json").write_text(json.dumps(special))
    (model / "added_tokens.json").write_text(json.dumps({"<image>": 369}))
    (model / "tokenizer.model").write_bytes(b"sentencepiece")
    target = tmp_path / "cut"
    backend.cut(model, target, Cut(vocab=330, vocab_texts=(some_text,)))
    assert not (target / "tokenizer.model").exists()
    assert not (target / "added_tokens.json").exists()
    assert json.loads((target / "special_tokens_map.json").read_text()).keys() == {"bos_token"}
    found = json.loads((target / "tokenizer_config.json").read_text())
    assert "image_token" not in found
    assert found["extra_special_tokens"] == {}
    vocab = _tokenizer(target).get_vocab()
    decoder = {int(i): token["content"] for i, token in found["added_tokens_decoder"].items()}
    assert {vocab[content] for content in decoder.values()} == set(decoder)
    assert "<image>" not in vocab


def test_texts_are_read_from_gzipped_json_rows_too(
    tiny_model: Path, backend: Backend, tmp_path: Path
):
    path = tmp_path / "rows.jsonl.gz"
    rows = [{"query": "日本", "positive": "語", "other": "한"}, {"title": "\ud800 中", "text": 7}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    kept = _kept(backend, tiny_model, tmp_path / "a", 340, path)
    assert set("日本語中") <= kept
    assert "한" not in kept


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a.jsonl:2: no JSON object"),
        ("a.jsonl", b'{"other": "a"}\n', "no text in it"),
        ("a.txt.gz", b"not gzip", "no whole gzip file"),
        ("a.txt", b"", "no text in it"),
    ],
)
def test_a_text_that_cannot_be_counted_is_refused(
    tiny_model: Path, backend: Backend, tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        backend.cut(tiny_model, tmp_path / "x", Cut(vocab=330, vocab_texts=(tmp_path / name,)))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("layers", ["2,1", "0,0", "3", "x", "1-", ""])
def test_layers_that_are_not_there_are_refused(tiny_model: Path, tmp_path: Path, layers: str):
    done = _run(tiny_model, "-o", tmp_path / "x", "--keep-layers", layers)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_cannot_be_are_refused(tiny_model: Path, tmp_path: Path, some_text: Path):
    for size, message in (("100", "tokens are always kept"), ("400", "has 369 tokens; 400 cannot")):
        done = _run(tiny_model, "-o", tmp_path / "x", "--vocab", size, "--vocab-from", some_text)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "go together" in _run(tiny_model, "-o", tmp_path / "x", "--vocab", "330").stderr
    assert "nothing to cut" in _run(tiny_model, "-o", tmp_path / "x").stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_replaces_only_when_forced_and_prints(
    tiny_model: Path, tmp_path: Path, some_text: Path
):
    target = tmp_path / "out"
    command = (tiny_model, "-o", target, "--vocab", "330", "--vocab-from", some_text, some_text)
    assert "would write" in _run(*command, "-n").stdout
    assert not target.exists()
    done = _run(*command)
    assert done.returncode == 0, done.stderr
    assert "330 tokens, 3 layers" in done.stdout
    assert "330 of 369 tokens cover 97.30% of 74 in the texts" in done.stderr
    (target / "mine.txt").write_text("mine")
    done = _run(*command)
    assert (done.returncode, (target / "mine.txt").exists()) == (2, True)
    done = _run(*command, "--keep-layers", "0,2", "-f", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"] == 2
    assert not (target / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(
    tiny_model: Path, tmp_path: Path, some_text: Path, backend: Backend, monkeypatch
):
    import gemb_torch.cut.cut as cut

    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cut, "write_file", full)
    with pytest.raises(OSError, match=f"No space.*'{target}'"):
        backend.cut(tiny_model, target, Cut(vocab=330, vocab_texts=(some_text,)))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_the_licence_and_the_changes_stand_in_the_folder(
    tiny_model: Path, tmp_path: Path, backend: Backend
):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "README.md").write_text("---\nlicense: gemma\n---\n")
    backend.cut(model, tmp_path / "cut", Cut(layers=(1, 2)))
    text = (tmp_path / "cut" / "README.md").read_text()
    assert "/model by `gemb cut`: 2 of 3 layers (1, 2), 369 of 369 tokens" in text
    assert "Gemma Terms of Use found at ai.google.dev/gemma/terms" in text
    assert open_checkpoint(tmp_path / "cut").licence() == "gemma"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep-layers", "99"], "cannot keep layers 99: name some of 0 to 2"),
        (["--keep-layers", "5-2"], "--keep-layers '5-2': 5-2 ends before it begins"),
        (["--keep-layers", "0,0"], "cannot keep layers 0,0: name some of 0 to 2, each once"),
        (["--keep-layers", "0-99999999999"], "no model has layer 99999999999"),
        (["--vocab", "5", "--vocab-from", "some.txt"], "tokens are always kept; 5 are too few"),
        (["--vocab", "999999999", "--vocab-from", "some.txt"], "999999999 cannot be kept"),
        (["--vocab", "330", "--vocab-from", "empty.txt"], "empty.txt: no text in it"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    tiny_model: Path, tmp_path: Path, monkeypatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text(SOME, encoding="utf-8")
    Path("empty.txt").touch()
    dry, wet = (_run(tiny_model, "-o", "x", *arguments, *more) for more in (["-n"], []))
    assert (dry.returncode, dry.stderr) == (wet.returncode, wet.stderr)
    assert (dry.returncode, message in dry.stderr) == (2, True), dry.stderr
    assert not Path("x").exists()


def test_a_dry_run_prints_json(tiny_model: Path, tmp_path: Path):
    done = _run(tiny_model, "-o", tmp_path / "x", "--keep-layers", "0-1", "-n", "--json")
    found = json.loads(done.stdout)
    assert (found["dry_run"], found["layers"], found["vocabulary"]) == (True, 2, 369)
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_a_model_or_nothing_alone_and_never_the_source(
    tiny_model: Path, tmp_path: Path
):
    work = tmp_path / "work"
    model = Path(shutil.copytree(tiny_model, work / "model"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    for target, message in (
        (tmp_path / "other", "is no model folder"),
        (model, "is the model itself"),
        (model / "2_Dense", "is a part of the model"),
        (work, "holds the model"),
        ("-", "cannot go to standard output"),
        ("", "the name is empty"),
    ):
        done = _run(model, "-o", target, "--keep-layers", "0,1", "-f")
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    done = _run(model, "-o", tmp_path / "link", "--keep-layers", "0,1", "-f")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert open_checkpoint(tmp_path / "empty").config.num_hidden_layers == 2


def test_layers_of_one_kind_are_warned_of(tiny_model: Path, tmp_path: Path):
    done = _run(tiny_model, "-o", tmp_path / "x", "--keep-layers", "0,2")
    assert done.returncode == 0
    assert "warning: every kept layer has sliding attention, which llama.cpp" in done.stderr
    done = _run(tiny_model, "-o", tmp_path / "y", "--keep-layers", "0,1")
    assert done.stderr == ""
