"""Which engine runs a model, and the known vector that an engine must come near."""

from __future__ import annotations

import itertools

import pytest

from gemb import plugins
from gemb.backend import Runtime
from gemb.embedding import engine
from gemb.errors import GembError
from gemb.io.caches import engines_cache
from gemb.models.references import bundled
from gemb_onnx import OnnxBackend, probe
from gemb_onnx.graph import FULL_RANGE, HALF_RANGE
from varied_texts import VARIED_TEXTS


@pytest.fixture(autouse=True)
def nothing_is_cached(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMB_BACKEND", raising=False)


@pytest.fixture
def weights_are(monkeypatch):
    """Let the probe say what integer products this processor has."""

    def answer(largest: int | None) -> None:
        # In this order: what is imported for the first time takes the probe as it is.
        monkeypatch.setattr("gemb_onnx.opened.weight_range", lambda: largest)
        monkeypatch.setattr(probe, "weight_range", lambda: largest)

    return answer


def test_the_fast_engine_is_taken_where_int8_is_exact_and_fast(
    weights_are, tiny_gguf, tiny_model, monkeypatch
) -> None:
    for largest, file_runner, folder_runner in (
        (FULL_RANGE, "onnx", "onnx"),
        (HALF_RANGE, "llamacpp", "torch"),
        (None, "llamacpp", "torch"),
    ):
        weights_are(largest)
        assert plugins.for_model(tiny_gguf).name == file_runner
        assert plugins.for_model(tiny_model).name == folder_runner
    weights_are(FULL_RANGE)
    for precision, file_runner, folder_runner in (
        ("int8", "onnx", "onnx"),
        ("fp32", "onnx", "torch"),
        ("bf16", "llamacpp", "torch"),
    ):
        runtime = Runtime(precision=precision)
        assert plugins.for_model(tiny_gguf, runtime=runtime).name == file_runner
        assert plugins.for_model(tiny_model, runtime=runtime).name == folder_runner
    cuda = Runtime(device="cuda")
    assert plugins.for_model(tiny_gguf, runtime=cuda).name == "llamacpp"
    assert plugins.for_model(tiny_model, runtime=cuda).name == "torch"
    for backend in ("gemb_onnx", "gemb_torch"):
        monkeypatch.setattr(f"{backend}.has_gpu", lambda: True)
    for model in (tiny_model, tiny_gguf):
        assert plugins.for_model(model).name == "torch", "a GPU is faster"
        cpu = plugins.for_model(model, runtime=Runtime(device="cpu"))
        assert cpu.name == "onnx"
    assert plugins.for_model(tiny_model, "onnx").name == "onnx"


def test_the_stored_vector_is_that_of_fp32() -> None:
    known = engine.known_vector()
    encoder = OnnxBackend().open(bundled(), Runtime(precision="fp32"))
    assert encoder.profile.fingerprint == known.fingerprint
    assert engine.known_cosine(encoder) > 1 - 1e-6


def test_an_engine_is_tried_once_and_the_cache_remembers_it(tiny_gguf, monkeypatch) -> None:
    opened = engine.open_engine(tiny_gguf, name="llamacpp")
    (passed,) = engines_cache().glob("*.passed")
    assert float(passed.read_text()) > 0.999
    assert opened.encoder.profile.engine.startswith("llamacpp f32 (llama-cpp-python ")
    tried = []
    monkeypatch.setattr(engine, "known_cosine", lambda encoder: tried.append(encoder) or 1.0)
    engine.open_engine(tiny_gguf, name="llamacpp")
    assert not tried
    monkeypatch.setattr(engine, "__version__", "99.0")  # which writes other graphs, it may be
    engine.open_engine(tiny_gguf, name="llamacpp")
    assert len(tried) == 1


def test_an_engine_that_computes_wrongly_gives_way_to_the_next(
    weights_are, tiny_gguf, monkeypatch, capsys
) -> None:
    weights_are(FULL_RANGE)
    cosine = engine.known_cosine

    def known_cosine(encoder) -> float:
        return 0.5 if encoder.profile.dtype == "int8" else cosine(encoder)

    monkeypatch.setattr(engine, "known_cosine", known_cosine)
    assert engine.open_engine(tiny_gguf).backend.name == "llamacpp"
    assert (
        "backend 'onnx' computes wrongly on this machine: its vector of a known text has cosine "
        "0.500: install onnxruntime" in capsys.readouterr().err
    )
    with pytest.raises(
        GembError, match=r"'onnx' computes wrongly .* install onnxruntime [\d.]+ again"
    ):
        engine.open_engine(tiny_gguf, name="onnx")
    assert not list(engines_cache().glob("onnx*.passed")), "a failure is not remembered as passed"


def test_vectors_of_two_engines_agree_enough_to_stand_in_one_index() -> None:
    """The bar by which a cache holds the vectors of both.

    In the precisions that are taken where none is named: where int8 has seven bits (AVX2 alone, by
    name only), one text in Korean is at 0.977.
    """
    vectors = []
    for name, precision in (("onnx", "fp32"), ("onnx", "auto"), ("llamacpp", "auto")):
        encoder = plugins.named(name).open(bundled(), Runtime(precision=precision))
        vectors.append(encoder.encode([ids[:256] for ids in encoder.tokenize(VARIED_TEXTS[:60])]))
    mean, least = engine.AGREEMENT
    for first, second in itertools.combinations(vectors, 2):
        cosines = (first * second).sum(1)
        assert cosines.mean() >= mean
        assert cosines.min() >= least


def test_the_engine_is_recorded_in_the_profile(tiny_model) -> None:
    encoder = engine.open_engine(tiny_model, Runtime(precision="fp32"), "torch").encoder
    assert encoder.profile.engine.startswith("torch fp32 (torch ")
