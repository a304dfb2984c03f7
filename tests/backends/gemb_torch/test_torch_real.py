"""The real EmbeddingGemma-300M: the card's numbers, and sentence-transformers on 200 texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Runtime
from gemb.models.checkpoint import open_checkpoint
from varied_texts import VARIED_TEXTS

torch = pytest.importorskip("torch")

from gemb_torch.model.encode import (  # noqa: E402
    TorchEncoder,
    open_encoder,
)

pytestmark = pytest.mark.real

# Model card of google/embeddinggemma-300m, "Usage".
QUERY = "task: search result | query: Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
SCORES = [0.3011, 0.6359, 0.4930, 0.4889]


@pytest.fixture(scope="module")
def fp32(real_model: Path) -> TorchEncoder:
    return open_encoder(open_checkpoint(real_model), Runtime(device="cpu"))


@pytest.fixture(scope="module")
def varied_ids(fp32: TorchEncoder) -> list[np.ndarray]:
    """The 200 texts' ids, cut as sentence-transformers cuts: the last token stays."""
    ids = fp32.tokenize(VARIED_TEXTS)
    most = fp32.profile.max_tokens
    return [one if len(one) <= most else np.append(one[: most - 1], one[-1]) for one in ids]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_red_planet_scores_of_the_model_card(real_model, precision):
    runtime = Runtime(device="cpu", precision=precision)
    encoder = open_encoder(open_checkpoint(real_model), runtime)
    texts = [QUERY, *(f"title: none | text: {text}" for text in DOCUMENTS)]
    vectors = encoder.encode(encoder.tokenize(texts))
    # The card's own digits come from another machine; bf16 keeps 8 bits of each product.
    tolerance = 0.0005 if precision == "fp32" else 0.003
    np.testing.assert_allclose(vectors[1:] @ vectors[0], SCORES, atol=tolerance, rtol=0)


@pytest.mark.slow
def test_200_varied_texts_are_sentence_transformers_vectors(fp32, varied_ids, real_model):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(real_model), device="cpu")
    assert sum(len(ids) == 2048 for ids in varied_ids) == 3
    expected = model.encode(list(VARIED_TEXTS), batch_size=4)
    cosines = (fp32.encode(varied_ids) * expected).sum(axis=1)
    worst = int(cosines.argmin())
    assert cosines.min() >= 0.99999, (worst, cosines[worst], VARIED_TEXTS[worst][:60])


@pytest.mark.slow
def test_bf16_is_near_fp32_on_200_varied_texts(fp32, varied_ids, real_model):
    encoder = open_encoder(open_checkpoint(real_model), Runtime(device="cpu", precision="bf16"))
    cosines = (fp32.encode(varied_ids) * encoder.encode(varied_ids)).sum(axis=1)
    assert cosines.mean() > 0.9995
    assert cosines.min() > 0.995


@pytest.mark.slow
def test_a_real_vector_does_not_depend_on_its_neighbours(fp32, varied_ids):
    some = [ids for ids in varied_ids if len(ids) < 300][::10]
    some.append(varied_ids[61][:600])  # meets the window
    together = fp32.encode(some)
    alone = np.concatenate([fp32.encode([ids]) for ids in some])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


def test_the_image_token_that_has_no_embedding_is_plain_text(fp32):
    (ids,) = fp32.tokenize(["a <image_soft_token> b"])
    assert ids.max() < 262_144
    assert np.isfinite(fp32.encode([ids])).all()
