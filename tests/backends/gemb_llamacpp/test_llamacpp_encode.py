"""The llama.cpp encoder through the backend's door: the oracle's vectors, order, isolation, tokens.

Bounds: ggml looks GELU up in a table of fp16, so its fp32 is right to about 1e-4 of a component.
Quantized weights meet activations rounded to the same width, and in a batch of another size ggml
may take another kernel, which rounds otherwise: a component then moves by some 1e-2 of these tiny
models' width of 96, by 1e-3 of the real one's 768.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.backend import Runtime
from gemb.errors import Missing, UsageError
from gemb.models.gguf import open_gguf
from gemb.plugins import for_model, named
from gemb_llamacpp import native
from gemb_llamacpp.encode import LlamaCppEncoder, groups, unit
from gemb_llamacpp.export import export
from reference import Reference

TWO = Runtime(device="cpu", threads=2)
VOCABULARY = 369
FP32_BOUND = 3e-4


@pytest.fixture(scope="module")
def encoder(tiny_gguf: Path) -> LlamaCppEncoder:
    return opened(tiny_gguf)


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in each type."""
    folder = tmp_path_factory.mktemp("types")
    found = {kind: folder / f"{kind}.gguf" for kind in ("bf16", "q8_0", "q4_0")}
    for kind, path in found.items():
        export(tiny_model, path, kind)
    return found


def opened(path: Path, runtime: Runtime = TWO) -> LlamaCppEncoder:
    encoder = named("llamacpp").open(path, runtime)
    assert isinstance(encoder, LlamaCppEncoder)
    return encoder


def random_ids(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(5, VOCABULARY, n).astype(np.int32) for n in lengths]


def test_importing_the_backend_loads_no_library():
    code = (
        "import sys, gemb_llamacpp; gemb_llamacpp.LlamaCppBackend(); "
        "print([m for m in ('llama_cpp', 'numpy', 'ctypes', 'gguf') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_profile_and_the_description_are_what_the_header_says(encoder, tiny_gguf):
    model = open_gguf(tiny_gguf)
    assert encoder.profile == model.profile()
    assert encoder.profile.dim == 96
    assert encoder.profile.max_tokens == 256
    assert encoder.profile.closing_tokens == 1
    assert encoder.profile.dtype == "f32"
    backend = for_model(tiny_gguf)
    assert backend.name == "llamacpp"
    assert backend.describe(tiny_gguf) == model.description()


def test_rows_come_back_in_order_and_are_the_oracles(encoder, tiny_model):
    """Lengths below, at and far beyond the window of 16, in one call."""
    batch = random_ids([3, 50, 1, 9, 256, 17, 8, 30, 2, 1, 16, 120, 18])
    got = encoder.encode(batch)
    reference = Reference(tiny_model)
    expected = np.stack([reference.vector(ids.tolist()) for ids in batch])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=FP32_BOUND, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_sentence_transformers_gives_the_same_vectors_for_texts(encoder, tiny_model):
    from sentence_transformers import SentenceTransformer

    texts = ["the quick brown fox", "", "日本語 😀", "a  b\n\n\nc", "fox " * 60]
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(texts)
    got = encoder.encode(encoder.tokenize(texts))
    np.testing.assert_allclose(got, expected, atol=FP32_BOUND, rtol=0)


def test_a_vector_does_not_depend_on_its_neighbours(encoder):
    batch = random_ids([20, 20, 7, 256, 1, 40, 20, 33] * 5, seed=1)
    together = encoder.encode(batch)
    alone = np.concatenate([encoder.encode([ids]) for ids in batch])
    # Another order of sums, and a step of the GELU table here and there; a stranger that is seen
    # moves components by 1e-1.
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)
    np.testing.assert_allclose(encoder.encode(batch[::-1])[::-1], together, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "cosine", "batching"),
    [("bf16", 0.9998, 5e-3), ("q8_0", 0.998, 2e-2), ("q4_0", 0.85, 2e-2)],
)
def test_smaller_types_are_near_the_oracle_and_steady(
    files, tiny_model, kind: str, cosine: float, batching: float
):
    """Random weights are the worst that a quantizer can meet: the real model's bars are higher."""
    small = opened(files[kind])
    assert small.profile.dtype == kind
    batch = random_ids([3, 50, 9, 256, 17, 30, 2], seed=3)
    got = small.encode(batch)
    reference = Reference(tiny_model)
    expected = np.stack([reference.vector(ids.tolist()) for ids in batch])
    assert (got * expected).sum(axis=1).min() > cosine
    alone = np.concatenate([small.encode([ids]) for ids in batch])
    np.testing.assert_allclose(got, alone, atol=batching, rtol=0)


def test_one_context_and_three_give_the_same_vectors(encoder, tiny_gguf):
    batch = random_ids(list(range(1, 120)), seed=2)
    for threads in (1, 3):
        other = opened(tiny_gguf, Runtime(threads=threads))
        np.testing.assert_allclose(other.encode(batch), encoder.encode(batch), atol=1e-4, rtol=0)


def test_more_sequences_than_llama_cpp_takes_at_once(encoder):
    batch = [np.array([5], np.int32)] * 700
    got = encoder.encode(batch)
    assert got.shape == (700, 96)
    np.testing.assert_allclose(got, got[:1].repeat(700, axis=0), atol=1e-4)


def test_an_empty_batch_has_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 96)
    assert encoder.tokenize([]) == []


def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(tiny_model, tmp_path):
    """A token whose vector is infinite: packed beside it, zero times infinity would be NaN."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    clean = opened_from(folder, tmp_path / "clean.gguf")
    weights["embed_tokens.weight"][7] = 3e38  # finite; times sqrt(96) it is not
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    spoilt = opened_from(folder, tmp_path / "spoilt.gguf")
    batch = random_ids([9, 30, 5, 14], seed=4)
    batch = [np.where(ids == 7, 8, ids) for ids in batch]
    expected = clean.encode(batch)
    bad = np.append(batch[1], np.int32(7))
    got = spoilt.encode([batch[0], bad, batch[2], batch[3]])
    assert np.isnan(got[1]).all()
    rest = [0, 2, 3]
    np.testing.assert_allclose(got[rest], expected[rest], atol=1e-4, rtol=0)


def opened_from(folder: Path, target: Path) -> LlamaCppEncoder:
    export(folder, target, "f32")
    return opened(target)


def test_no_length_is_no_unit_vector():
    rows = unit(np.array([[3, 4], [0, 0], [np.inf, 1], [1e-30, 0]], np.float32))
    np.testing.assert_array_equal(np.isnan(rows).all(axis=1), [False, True, True, False])
    np.testing.assert_allclose(rows[[0, 3]], [[0.6, 0.8], [1, 0]], atol=1e-7)


def test_two_threads_may_use_two_encoders_at_once(tiny_gguf):
    batch = random_ids([30] * 64, seed=5)
    encoders = [opened(tiny_gguf) for _ in range(2)]
    expected = encoders[0].encode(batch)
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(one.encode(batch))) for one in encoders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), max_size=300), st.integers(1, 600), st.integers(1, 9))
def test_each_row_is_in_one_group_that_keeps_to_the_budget(
    lengths: list[int], budget: int, contexts: int
):
    found = list(groups(np.array(lengths, np.int64), budget, contexts))
    rows = [int(row) for group in found for row in group]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)  # the tail is short
    for group in found:
        assert len(group) <= 256
        assert len(group) == 1 or sum(lengths[row] for row in group) <= budget


def test_contexts_finish_together():
    """80 short texts make no odd batch of 128 tokens at the end, which one context waits for."""
    lengths = np.full(80, 20, np.int64)
    free_at = [0, 0]
    for group in groups(lengths, 128, 2):
        free_at[int(free_at[1] < free_at[0])] += int(lengths[group].sum())
    assert sum(free_at) == 1600
    assert abs(free_at[0] - free_at[1]) <= 40


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_token_ids_are_those_of_tokenizers(encoder, tiny_model, text: str):
    from tokenizers import Tokenizer

    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        return  # neither takes a lone surrogate
    (ids,) = encoder.tokenize([text])
    assert ids.dtype == np.int32
    assert ids.tolist() == Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(text).ids


def test_nothing_is_cut_by_the_tokenizer(encoder):
    (ids,) = encoder.tokenize(["zq" * 100_000])
    assert len(ids) > 100_000
    assert ids[0] == 2
    assert ids[-1] == 1
    (short,) = encoder.tokenize(["zq"])
    assert short.tolist() == [2, *ids[1:3].tolist(), 1]


def test_a_text_longer_than_the_context_is_the_callers_bug(encoder):
    with pytest.raises(AssertionError, match="longer than"):
        encoder.encode(random_ids([257]))


def test_python_waits_for_no_interpreter_lock_in_llama_cpp(encoder, tiny_gguf):
    """Ctrl-C and the reader of the next window run while a batch is computed."""
    batch = random_ids([256] * 200, seed=6)
    worker = threading.Thread(target=opened(tiny_gguf).encode, args=[batch])
    worker.start()
    ticks = 0
    while worker.is_alive():
        ticks += 1
        worker.join(0.001)
    assert ticks > 20


def test_the_log_is_silent_unless_asked_for(tiny_gguf):
    code = (
        "import sys; from pathlib import Path; "
        "from gemb.backend import Runtime; from gemb.plugins import named; "
        "e = named('llamacpp').open(Path(sys.argv[1]), Runtime(verbose=sys.argv[2] == 'v')); "
        "print(e.encode(e.tokenize(['a'])).shape)"
    )
    for how in ("q", "v"):
        shown = subprocess.run(
            [sys.executable, "-c", code, tiny_gguf, how], capture_output=True, text=True, check=True
        )
        assert shown.stdout == "(1, 96)\n"
        assert ("llama_context" in shown.stderr) == (how == "v")
        assert how == "v" or shown.stderr == ""


def test_a_closed_stderr_is_no_obstacle(tiny_gguf: Path):
    command = f"{sys.executable} -m gemb embed -e fox -m {tiny_gguf} 2>&-"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True)
    assert b'"embedding":[' in done.stdout


def test_the_package_of_llama_cpp_can_still_be_imported_whole(encoder):
    code = (
        "from gemb_llamacpp import native; module = native.llama(); import sys; "
        "assert 'llama_cpp' not in sys.modules; import llama_cpp; "
        "print(llama_cpp.llama_cpp is module, llama_cpp.Llama.__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "True Llama\n"


@pytest.mark.parametrize(
    ("comment", "version"),
    [
        (b"\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0", (12, 2, 0)),
        (b"\0GCC: (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0\0", (13, 3, 0)),
        (b"\0GCC: (GNU) 14.2.1\0GCC: (Debian 12.2.0-14) 12.2.0\0", (12, 2, 0)),
        (b"\0GCC: (Debian 12.2.0-14) 12.2.0\0Debian clang version 14.0.6\0", (99,)),
        (b"\0GCC: (Debian 12.2.0-14) 12.2.0\0GNU C++17 -fno-dse -fno-tree-dse -O3\0", (99,)),
        (b"nothing", ()),
    ],
)
def test_the_compiler_of_the_library_is_known(tmp_path: Path, comment: bytes, version: object):
    (tmp_path / "libggml-cpu.so").write_bytes(b"\x7fELF" + comment)
    assert native.compiler(tmp_path) == version


def test_a_precision_or_device_that_is_not_there_is_refused(tiny_gguf):
    with pytest.raises(UsageError, match=r"--precision fp32: a GGUF file's own types decide"):
        opened(tiny_gguf, Runtime(precision="fp32"))
    with pytest.raises(UsageError, match="no device 'tpu'"):
        opened(tiny_gguf, Runtime(device="tpu"))
    if not native.llama().llama_supports_gpu_offload():
        with pytest.raises(Missing, match=r"built for the CPU alone.*CMAKE_ARGS=-DGGML_CUDA=on"):
            opened(tiny_gguf, Runtime(device="cuda"))


def test_doctor_names_the_library_and_what_it_was_built_for():
    found = {check.name: check for check in named("llamacpp").checks()}
    assert found["llama-cpp-python"].detail[0].isdigit()
    assert found["gemma-embedding"].ok
    assert found["built for"].detail == " ".join(native.features())


def test_a_library_without_a_record_of_its_installation_is_of_unknown_version(monkeypatch):
    monkeypatch.setattr("gemb_llamacpp.version", lambda package: None)
    backend = named("llamacpp")
    assert backend.engine() == "llama-cpp-python of unknown version"
    assert backend.checks()[0].detail.startswith("unknown version, ")


def test_memory_is_given_back(tiny_gguf):
    """llama.cpp fills a float for each token of the vocabulary and the batch; none is kept."""
    if sys.platform != "linux":
        pytest.skip("only Linux promises zeros after MADV_DONTNEED")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    encoder = opened(tiny_gguf, Runtime(threads=1))
    encoder.encode(random_ids([3]))
    before = resident()
    encoder.encode(random_ids([256] * 4))
    encoder.encode(random_ids([1] * 256))
    # 256 x 369 floats are 0.4 MB; compute buffers and arrays are what is left.
    assert resident() - before < 30e6
