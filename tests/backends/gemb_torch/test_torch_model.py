"""The model and its frozen form against numpy, transformers and sentence-transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemb.models.checkpoint import open_checkpoint
from reference import Reference
from tiny_model import TinyShape, write_tiny_model

torch = pytest.importorskip("torch")

from gemb_torch.model.frozen import (  # noqa: E402
    FrozenEncoder,
    can_freeze,
)
from gemb_torch.model.packing import pack  # noqa: E402
from gemb_torch.model.weights import load  # noqa: E402

# Window 16: a token sees 8 on either side, so 9 is the longest text that never meets the window.
LENGTHS = [1, 40, 9, 10, 9, 2, 17, 40, 18, 1, 25]
SHAPES = {
    "3 heads on 1 key, every 2nd global": TinyShape(),
    "4 heads on 2 keys, every 3rd global": TinyShape(
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=10,
        sliding_window_pattern=3,
        seed=1,
    ),
    "2 heads on 2 keys, all global, narrow dense": TinyShape(
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        sliding_window_pattern=1,
        dense_middle=48,
        seed=2,
    ),
    "1 head, none global, window of 2": TinyShape(
        num_attention_heads=1,
        num_hidden_layers=2,
        sliding_window=2,
        sliding_window_pattern=9,
        seed=3,
    ),
}
# fp32 against fp64 or another order of sums; a wrong mask, base, norm or scale moves 1e-3 and more.
CLOSE = 1e-5


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("shape") / "model", SHAPES[request.param])
    if SHAPES[request.param].seed == 1:  # an eps that can be seen, and other scores
        raw = json.loads((folder / "config.json").read_text())
        raw |= {"rms_norm_eps": 0.05, "query_pre_attn_scalar": 40}
        (folder / "config.json").write_text(json.dumps(raw))
    return folder


def sequences(folder: Path, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    size = open_checkpoint(folder).config.vocab_size
    return [[2, *generator.integers(5, size, n)][:n] for n in lengths]


def flat(batch: list[list[int]]) -> torch.Tensor:
    return torch.tensor([token for ids in batch for token in ids])


def plain(folder: Path, batch: list[list[int]], max_padding: float = 0.0) -> np.ndarray:
    checkpoint = open_checkpoint(folder)
    packing = pack(
        [len(ids) for ids in batch],
        window=checkpoint.config.sliding_window,
        max_padding=max_padding,
    )
    with torch.inference_mode():
        return load(checkpoint)(flat(batch), packing).numpy()


def frozen(folder: Path, batch: list[list[int]], max_padding: float = 0.0) -> np.ndarray:
    checkpoint = open_checkpoint(folder)
    packing = pack(
        [len(ids) for ids in batch],
        window=checkpoint.config.sliding_window,
        max_padding=max_padding,
    )
    encoder = FrozenEncoder(load(checkpoint), torch.float32)
    return encoder(flat(batch), packing).numpy()


FORMS = [
    plain,
    pytest.param(
        frozen,
        marks=pytest.mark.skipif(not can_freeze(torch.float32), reason="this torch has no oneDNN"),
    ),
]


@pytest.mark.parametrize("form", FORMS)
# 0: equal neighbours alone share a call; 0.9: all are padded to one rectangle with a mask.
@pytest.mark.parametrize("max_padding", [0.0, 0.3, 0.99])
def test_a_mixed_batch_gives_the_oracles_vectors(folder, form, max_padding):
    batch = sequences(folder, LENGTHS)
    reference = Reference(folder)
    expected = np.stack([reference.vector(ids) for ids in batch])
    got = form(folder, batch, max_padding)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(got, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_backbone_and_head_are_transformers_and_sentence_transformers(folder, form):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    batch = sequences(folder, LENGTHS)
    longest = max(LENGTHS)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch])
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in LENGTHS])
    with torch.inference_mode():
        features = model({"input_ids": padded, "attention_mask": mask})
    expected = features["sentence_embedding"].numpy()
    np.testing.assert_allclose(form(folder, batch), expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("max_padding", [0.0, 0.99])
def test_2048_tokens_beside_one_token_are_transformers_vectors(tmp_path, form, max_padding):
    from sentence_transformers import SentenceTransformer

    shape = replace(TinyShape(), max_tokens=2048, sliding_window=64)
    folder = write_tiny_model(tmp_path / "model", shape)
    batch = sequences(folder, [2048, 1, 700, 257])
    model = SentenceTransformer(str(folder), device="cpu")
    expected = []
    with torch.inference_mode():
        for ids in batch:
            row = torch.tensor([ids])
            out = model({"input_ids": row, "attention_mask": torch.ones_like(row)})
            expected.append(out["sentence_embedding"][0].numpy())
    got = form(folder, batch, max_padding)
    np.testing.assert_allclose(got, np.stack(expected), atol=CLOSE, rtol=0)


def test_the_hidden_states_are_transformers_states_before_any_pooling(folder):
    from transformers import AutoModel

    ids = sequences(folder, [30])[0]
    checkpoint = open_checkpoint(folder)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0]
        packing = pack([30], window=checkpoint.config.sliding_window)
        got = load(checkpoint).hidden(torch.tensor(ids), packing)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)  # states are about 1 to 10 wide


def test_gradients_reach_every_parameter_and_are_those_of_one_text_at_a_time(tiny_model):
    checkpoint = open_checkpoint(tiny_model)
    batch = sequences(tiny_model, [5, 30, 12])
    target = torch.from_numpy(np.random.default_rng(0).normal(size=(3, checkpoint.dim))).float()

    def gradients(parts: list[list[int]], max_padding: float) -> dict[str, torch.Tensor]:
        model = load(checkpoint)
        for rows in parts:
            lengths = [len(batch[row]) for row in rows]
            packing = pack(lengths, window=16, max_padding=max_padding)
            ids = flat([batch[row] for row in rows])
            (model(ids, packing) * target[rows]).sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    together = gradients([[0, 1, 2]], 0.99)
    alone = gradients([[0], [1], [2]], 0.0)
    for name, gradient in together.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        scale = alone[name].abs().max()
        torch.testing.assert_close(gradient / scale, alone[name] / scale, atol=1e-4, rtol=0)


def test_bf16_products_stay_near_the_oracle(folder):
    if not can_freeze(torch.bfloat16):
        pytest.skip("this CPU has no bf16 products")
    checkpoint = open_checkpoint(folder)
    batch = sequences(folder, LENGTHS)
    encoder = FrozenEncoder(load(checkpoint), torch.bfloat16)
    packing = pack(LENGTHS, window=checkpoint.config.sliding_window)
    got = encoder(flat(batch), packing).numpy()
    expected = np.stack([Reference(folder).vector(ids) for ids in batch])
    cosines = (got * expected).sum(axis=1)
    assert cosines.min() > 0.999  # bf16 keeps 8 bits; a wrong formula gives less than 0.99


def test_bf16_and_fp16_files_give_the_vectors_of_their_own_numbers(tiny_model, tmp_path):
    """Weights stored in half precision are widened exactly, not rounded again."""
    import shutil

    from safetensors.torch import load_file, save_file

    batch = sequences(tiny_model, LENGTHS)
    for dtype in (torch.bfloat16, torch.float16):
        halved, widened = tmp_path / f"{dtype}-halved", tmp_path / f"{dtype}-widened"
        for folder in (halved, widened):
            shutil.copytree(tiny_model, folder)
        for name in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
            half = {k: v.to(dtype) for k, v in load_file(tiny_model / name).items()}
            save_file(half, halved / name)
            save_file({k: v.float() for k, v in half.items()}, widened / name)
        expected = np.stack([Reference(widened).vector(ids) for ids in batch])
        np.testing.assert_allclose(plain(halved, batch), expected, atol=CLOSE, rtol=0)
        np.testing.assert_allclose(frozen(halved, batch), expected, atol=CLOSE, rtol=0)


def test_loading_does_not_change_the_files_when_a_parameter_is_written(tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        load(open_checkpoint(folder)).embed_tokens.weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
