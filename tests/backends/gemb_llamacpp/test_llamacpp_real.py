"""The real EmbeddingGemma-300M through llama.cpp: the card's numbers, and torch fp32 on 200 texts.

Writes each GGUF file into a temporary folder first (2.4 GB in all), or reads them from the folder
that GEMB_TEST_GGUF names, as `embeddinggemma-300m-TYPE.gguf`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Runtime
from gemb.models.checkpoint import open_checkpoint
from gemb.plugins import named
from gemb_llamacpp.encode import LlamaCppEncoder
from gemb_llamacpp.export import export
from varied_texts import VARIED_TEXTS

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

# Model card of google/embeddinggemma-300m, "Usage".
QUERY = "task: search result | query: Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
SCORES = [0.3011, 0.6359, 0.4930, 0.4889]

Open = Callable[[str], LlamaCppEncoder]


@pytest.fixture(scope="module")
def open_real(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Open the model in a type."""
    folder = tmp_path_factory.mktemp("gguf")

    def open_type(kind: str) -> LlamaCppEncoder:
        path = Path(os.environ.get("GEMB_TEST_GGUF", "")) / f"embeddinggemma-300m-{kind}.gguf"
        if not path.is_file():
            path = folder / f"{kind}.gguf"
            if not path.exists():
                export(real_model, path, kind)
        encoder = named("llamacpp").open(path, Runtime(device="cpu"))
        assert isinstance(encoder, LlamaCppEncoder)
        return encoder

    return open_type


@pytest.fixture(scope="module")
def expected(real_model: Path) -> np.ndarray:
    """Torch fp32's vectors of the 200 texts, [200, 768]."""
    pytest.importorskip("torch")
    from gemb_torch.model.encode import open_encoder

    encoder = open_encoder(open_checkpoint(real_model), Runtime(device="cpu"))
    return encoder.encode([cut(ids) for ids in encoder.tokenize(VARIED_TEXTS)])


def cut(ids: np.ndarray) -> np.ndarray:
    return ids if len(ids) <= 2048 else np.append(ids[:2047], ids[-1])


@pytest.mark.parametrize(
    # The card's own digits come from another machine; 4 bits move a score by a few hundredths.
    ("kind", "tolerance"),
    [("f32", 0.0005), ("bf16", 0.002), ("q8_0", 0.005), ("q4_0", 0.05)],
)
def test_the_red_planet_scores_of_the_model_card(open_real: Open, kind: str, tolerance: float):
    encoder = open_real(kind)
    texts = [QUERY, *(f"title: none | text: {text}" for text in DOCUMENTS)]
    vectors = encoder.encode(encoder.tokenize(texts))
    np.testing.assert_allclose(vectors[1:] @ vectors[0], SCORES, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    # llama.cpp rounds activations as the weights are. A handful of texts has activations that bear
    # it badly (Georgian, fifty zeros; torch in bf16 loses as much on them), so the least and the
    # mean have bars of their own.
    ("kind", "least", "mean"),
    [
        ("f32", 0.99999, 0.99999),
        ("bf16", 0.997, 0.9999),
        ("q8_0", 0.994, 0.999),
        ("q4_0", 0.8, 0.93),
    ],
)
def test_200_varied_texts_are_torchs_vectors(
    open_real: Open, expected: np.ndarray, kind: str, least: float, mean: float
):
    encoder = open_real(kind)
    ids = [cut(one) for one in encoder.tokenize(VARIED_TEXTS)]
    assert sum(len(one) == 2048 for one in ids) == 3
    cosines = (encoder.encode(ids) * expected).sum(axis=1)
    print(f"{kind}: cosine to torch fp32: least {cosines.min():.6f}, mean {cosines.mean():.6f}")
    worst = int(cosines.argmin())
    assert cosines.min() >= least, (worst, cosines[worst], VARIED_TEXTS[worst][:60])
    assert cosines.mean() >= mean


@pytest.mark.slow
@pytest.mark.parametrize(
    # In a batch of another size ggml takes another kernel; a last bit that differs turns the
    # rounding of activations over, in every layer. Seen: 1.4e-3, 6.3e-3, 7.2e-3, at most.
    ("kind", "bound", "cosine"),
    [("bf16", 3e-3, 0.9998), ("q8_0", 1.2e-2, 0.996), ("q4_0", 1.2e-2, 0.997)],
)
def test_a_real_vector_hardly_depends_on_its_neighbours(
    open_real: Open, kind: str, bound: float, cosine: float
):
    encoder = open_real(kind)
    some = [ids for ids in encoder.tokenize(VARIED_TEXTS) if len(ids) < 200][::5]
    together = encoder.encode(some)
    alone = np.concatenate([encoder.encode([ids]) for ids in some])
    print(f"{kind}: components move by at most {np.abs(together - alone).max():.1e}")
    np.testing.assert_allclose(together, alone, atol=bound, rtol=0)
    assert (together * alone).sum(axis=1).min() > cosine
