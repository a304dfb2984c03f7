"""The static backend beside NumPy in float64 and beside sentence-transformers; bad folders."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Runtime
from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.prompts import TASKS, for_task
from gemb.models.safetensors import NewTensor, read_header, write_file
from gemb.models.static import check_draft, int8_rows, open_static
from gemb.plugins import for_model
from gemb_static import StaticBackend
from gemb_static.encode import BLOCK_TEXTS, StaticEncoder
from tiny_model import TEXT
from tiny_static import DIM, HIDDEN, TEACHER, WIDTH, random_head, write_tiny_static

TEXTS = [*TEXT.splitlines(), "the the the fox", "def", "x" * 300, TEXT * 20]


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    tokens = open_checkpoint(tiny_model).config.vocab_size
    return write_tiny_static(tmp_path / "static", tiny_model / "tokenizer.json", tokens)


def opened(folder: Path) -> StaticEncoder:
    encoder = StaticBackend().open(folder, Runtime())
    assert isinstance(encoder, StaticEncoder)
    return encoder


def units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def expected(folder: Path, batch: list[np.ndarray]) -> np.ndarray:
    """Return the vectors in float64: mean of the rows, length one, two layers, length one."""
    stored = read_header(folder / "model.safetensors", integers=True)
    table = stored["embeddings"].float32().astype(float) * stored["weights"].float32()[:, None]
    states = units(np.array([table[ids].mean(axis=0) for ids in batch]))
    for name, activation in (("2_Dense", lambda x: np.maximum(x, 0)), ("3_Dense", lambda x: x)):
        layer = read_header(folder / name / "model.safetensors")
        weight, bias = (layer[f"linear.{part}"].float32() for part in ("weight", "bias"))
        states = activation(states @ weight.T.astype(float) + bias)
    return units(states)


def test_vectors_are_those_of_the_definition(folder) -> None:
    encoder = opened(folder)
    batch = encoder.tokenize(TEXTS)
    assert np.abs(encoder.encode(batch) - expected(folder, batch)).max() < 5e-6
    assert encoder.encode([]).shape == (0, DIM)


def test_neighbours_and_order_change_nothing(folder) -> None:
    encoder = opened(folder)
    batch = encoder.tokenize(TEXTS) * 60  # several blocks
    assert len(batch) > 2 * BLOCK_TEXTS
    together = encoder.encode(batch)
    alone = np.concatenate([encoder.encode([ids]) for ids in batch])
    assert (together == alone).all()
    assert (encoder.encode(batch[::-1])[::-1] == together).all()


def test_sentence_transformers_gives_the_same_vectors(folder) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    encoder = opened(folder)
    assert np.abs(encoder.encode(encoder.tokenize(TEXTS)) - theirs).max() < 1e-5


def test_rows_are_rounded_to_the_nearest_step() -> None:
    table = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    table[7] = 0
    rows, scales = int8_rows(table)
    assert rows.dtype == np.int8
    assert (np.abs(rows).max(axis=1)[table.any(axis=1)] == 127).all()
    assert (np.abs(rows * scales[:, None] - table) <= scales[:, None] * 0.5001).all()
    assert not rows[7].any()


def plain_table(folder: Path, table: np.ndarray) -> None:
    """Make the folder one of a table without a head."""
    raw = table.astype("<f4").reshape(-1).view(np.uint8)
    tensors = {"embedding.weight": NewTensor("F32", table.shape, [raw])}
    write_file(folder / "model.safetensors", tensors)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "a.StaticEmbedding"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").unlink()


def test_a_plain_table_of_floats_opens_too(folder) -> None:
    table = np.random.default_rng(2).standard_normal((open_static(folder).table.shape[0], 5))
    plain_table(folder, table)
    encoder = opened(folder)
    batch = encoder.tokenize(["the fox"])
    assert np.allclose(encoder.encode(batch), units(table[batch[0]].mean(axis=0)[None]), atol=1e-6)
    assert (encoder.profile.dim, encoder.profile.draft_of) == (5, ())


def test_a_mean_of_zeros_is_nan_and_spoils_no_other(folder) -> None:
    table = np.random.default_rng(2).standard_normal((open_static(folder).table.shape[0], 5))
    table[9] = 0
    plain_table(folder, table)
    good, bad = np.array([20, 21], np.int32), np.array([9], np.int32)
    vectors = opened(folder).encode([good, bad, good])
    assert np.isnan(vectors[1]).all()
    assert np.isfinite(vectors[[0, 2]]).all()


def test_numbers_that_are_not_finite_are_refused(folder) -> None:
    table = np.random.default_rng(2).standard_normal((open_static(folder).table.shape[0], 5))
    table[9, 3] = np.nan
    plain_table(folder, table)
    with pytest.raises(UsageError, match="numbers that are not finite"):
        opened(folder)


def test_a_mean_of_zeros_goes_through_the_head_as_zeros(folder) -> None:
    stored = read_header(folder / "model.safetensors", integers=True)
    rows = stored["embeddings"].raw().copy().reshape(stored["embeddings"].shape)
    rows[9] = 0
    tensors = {
        "embeddings": NewTensor("I8", rows.shape, [rows.reshape(-1)]),
        "weights": NewTensor("F32", stored["weights"].shape, [stored["weights"].raw().copy()]),
    }
    write_file(folder / "model.safetensors", tensors)
    [vector] = opened(folder).encode([np.array([9], np.int32)])
    layers = [read_header(folder / name / "model.safetensors") for name in ("2_Dense", "3_Dense")]
    (w1, b1), (w2, b2) = [
        (layer["linear.weight"].float32(), layer["linear.bias"].float32()) for layer in layers
    ]
    assert w1.shape == (HIDDEN, WIDTH)
    assert np.allclose(vector, units((np.maximum(b1, 0) @ w2.T + b2)[None])[0], atol=1e-5)


def test_an_empty_text_has_an_id_and_a_vector(folder) -> None:
    encoder = opened(folder)
    [ids] = encoder.tokenize([""])
    assert len(ids) == 1
    assert np.isfinite(encoder.encode([ids])).all()


def test_gemb_takes_this_backend_and_describes_the_folder(folder, tiny_model) -> None:
    assert for_model(folder).name == "static"
    assert not StaticBackend().can_open(tiny_model)
    assert not StaticBackend().can_open(folder / "tokenizer.json")
    described = StaticBackend().describe(folder)
    assert (described.hidden, described.dim) == (WIDTH, DIM)
    assert described.dense == ((WIDTH, HIDDEN), (HIDDEN, DIM))
    assert described.types == {"token_embd": "i8", "dense": "f16"}
    assert described.draft_of == (TEACHER,)
    profile = opened(folder).profile
    assert described.fingerprint == profile.fingerprint
    assert profile.matryoshka_dims == (DIM, DIM // 2)
    assert set(profile.prompts.values()) == {""}


def test_prompts_and_width_are_those_of_the_settings(folder) -> None:
    prompts = {"query": "q: ", "passage": "p: ", "Clustering": None}
    edit(folder / SETTINGS, prompts=prompts, default_prompt_name="passage", truncate_dim=8)
    profile = opened(folder).profile
    words = {task: for_task(task, profile.prompts).template for task in TASKS}
    default = dict.fromkeys(TASKS, "p: {text}")
    assert words == default | {"query": "q: {text}", "clustering": "{text}", "none": "{text}"}
    assert (profile.dim, profile.width) == (DIM, 8)
    assert profile.matryoshka_dims == (DIM, DIM // 2, 8)
    assert StaticBackend().describe(folder).default_dim == 8
    assert opened(folder).narrowed(DIM // 2).profile.width == DIM // 2


def test_a_task_without_a_prompt_has_no_words(folder) -> None:
    edit(folder / SETTINGS, prompts={"query": "q: "})
    prompts = opened(folder).profile.prompts
    assert for_task("document", prompts).template == "{text}"
    assert for_task("query", prompts).template == "q: {text}"


def test_the_fingerprint_is_of_every_byte(folder) -> None:
    before = open_static(folder).fingerprint()
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1  # one row of the table
    path.write_bytes(data)
    assert open_static(folder).fingerprint() != before


def test_a_draft_of_another_model_is_refused(folder) -> None:
    draft_of = opened(folder).profile.draft_of
    check_draft(draft_of, TEACHER, "d")
    with pytest.raises(UsageError, match=f"d is a draft of the model {TEACHER}, not of ffff; "):
        check_draft(draft_of, "ffff", "d")
    with pytest.raises(UsageError, match="mini is no draft of a model"):
        check_draft((), TEACHER, "mini")


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def without_scales(folder: Path) -> None:
    stored = read_header(folder / "model.safetensors", integers=True)["embeddings"]
    tensors = {"embeddings": NewTensor("I8", stored.shape, [stored.raw().copy()])}
    write_file(folder / "model.safetensors", tensors)


DENSE, SETTINGS = "2_Dense/config.json", "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing from the model"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer that can be read"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing from the"),
        (lambda f: cut(f / "model.safetensors"), "cut short at tensor weights; fetch it again"),
        (without_scales, "whole numbers without weights, one for each token"),
        (lambda f: (f / "2_Dense/model.safetensors").unlink(), "model.safetensors: missing from"),
        (lambda f: edit(f / DENSE, in_features=7), "in_features 7; what comes before gives 24"),
        (
            lambda f: edit(f / DENSE, out_features=7),
            r"its config.json makes them linear.weight \[7",
        ),
        (
            lambda f: edit(f / DENSE, activation_function="torch.nn.GELU"),
            "activation GELU; gemb has",
        ),
        (lambda f: edit(f / DENSE, use_residual=True), "use_residual is not supported"),
        (lambda f: edit(f / SETTINGS, draft_of="x"), "draft_of must be a list of fingerprints"),
        (lambda f: edit(f / SETTINGS, prompts=[1]), "prompts must map names to texts"),
        (
            lambda f: edit(f / SETTINGS, default_prompt_name="x"),
            "default_prompt_name 'x' is none of its prompts: it has none",
        ),
        (lambda f: edit(f / SETTINGS, truncate_dim="8"), "truncate_dim must be a positive whole"),
        (lambda f: edit(f / SETTINGS, matryoshka_dims=[16]), r"matryoshka_dims \[16\] must be"),
        (lambda f: (f / "modules.json").write_text("3"), "modules.json: not a list of modules"),
        (lambda f: (f / "modules.json").write_text("[]"), "modules.json: no module"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder, harm, message) -> None:
    harm(folder)
    with pytest.raises(UsageError, match=message) as error:
        opened(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("Transformer", "", "its first module is Transformer, no StaticEmbedding"),
        ("StaticEmbedding", "../other", "'../other' is no folder in the model's"),
    ],
)
def test_another_first_module_is_refused(folder, kind, path, message) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"type": kind, "path": path}
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match=message):
        opened(folder)


def test_a_module_that_gemb_has_not_is_refused(folder) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="module LSTM; gemb has Dense and Normalize"):
        opened(folder)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Runtime(device="cuda"), "device 'cuda'; static has auto, cpu"),
        (Runtime(precision="int8"), "precision 'int8'; static has auto, fp32"),
    ],
)
def test_what_it_cannot_do_is_refused(folder, runtime, message) -> None:
    with pytest.raises(UsageError, match=message):
        StaticBackend().open(folder, runtime)


def test_the_head_of_the_small_model_is_no_identity() -> None:
    """Else a forgotten layer would not be seen."""
    first, second = random_head()
    assert first.weight.shape == (HIDDEN, WIDTH)
    assert second.weight.shape == (DIM, HIDDEN)


def test_a_table_sum_takes_a_million_tokens_a_second(folder) -> None:
    encoder = opened(folder)
    dice = np.random.default_rng(0)
    batch = [ids.astype(np.int32) for ids in dice.integers(0, 200, (500, 200))]
    encoder.pooled(batch[:10])
    began = time.process_time()
    encoder.encode(batch)
    assert 100_000 / (time.process_time() - began) > 1e6


@pytest.mark.parametrize("dim", [1, 5, 7, 8])
def test_the_first_components_alone_are_those_of_the_whole(folder, dim) -> None:
    whole = StaticEncoder(open_static(folder))
    narrow = whole.narrowed(dim)
    ids = whole.tokenize(["a text", "another one", ""])
    expected = whole.encode(ids)[:, :dim]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert narrow.profile.dim == dim
    np.testing.assert_allclose(narrow.encode(ids), expected, atol=1e-5)
    assert whole.encode(ids).shape == (3, whole.profile.dim)
