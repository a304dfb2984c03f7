"""The ONNX backend beside the PyTorch one, and beside itself: alone, in company, from its cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from gemb.backend import Encoder, Runtime
from gemb.errors import GembError, Missing, UsageError
from gemb.io.atomic import remove_process_folders
from gemb.io.caches import engines_cache
from gemb.models.checkpoint import open_checkpoint
from gemb_onnx import OnnxBackend, prepared, probe, runtime
from gemb_onnx.encode import passes, raw_vectors, window_mask
from gemb_onnx.folder_numbers import FolderNumbers
from gemb_onnx.graph import FULL_RANGE, HALF_RANGE, rounded_rows, write_graph
from gemb_onnx.runtime import session
from gemb_onnx.smoothing import Smoothed
from gemb_torch import TorchBackend
from tiny_model import TEXT, TinyShape, write_tiny_model

LENGTHS = (3, 9, 9, 17, 40, 40, 41, 200)  # the window is 16


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def batch(encoder: Encoder) -> list[np.ndarray]:
    ids = np.concatenate(encoder.tokenize([TEXT] * 3))
    chance = np.random.default_rng(0)
    starts = chance.integers(0, len(ids) - max(LENGTHS), len(LENGTHS))
    return [ids[start : start + size] for start, size in zip(starts, LENGTHS, strict=True)]


def opened(model: Path, precision: str = "fp32", threads: int = 2) -> Encoder:
    return OnnxBackend().open(model, Runtime(precision=precision, threads=threads))


def test_fp32_is_pytorchs_to_the_fifth_digit(tiny_model, tiny_gguf) -> None:
    torch = TorchBackend().open(tiny_model, Runtime(precision="fp32"))
    texts = batch(torch)
    expected = torch.encode(texts)
    for model in (tiny_model, tiny_gguf):
        encoder = opened(model)
        assert np.abs(encoder.encode(texts) - expected).max() < 1e-5
        assert encoder.profile.dtype == "fp32"


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "attention"])
def test_every_pooling_is_pytorchs(tmp_path, pooling) -> None:
    from safetensors.numpy import save_file

    model = write_tiny_model(tmp_path / "model", TinyShape(seed=5))
    path = model / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("pooling_mode_mean_tokens", None)
    if pooling == "attention":
        from gemb.models.checkpoint import pooling_settings

        settings = dict(pooling_settings("attention", 96))
        queries = np.random.default_rng(1).normal(size=(4, 96)).astype(np.float32)
        save_file({"queries": queries}, model / "1_Pooling" / "model.safetensors")
    else:
        settings[f"pooling_mode_{pooling}{'_token' if pooling == 'cls' else ''}"] = True
        settings["pooling_mode"] = pooling
    path.write_text(json.dumps(settings))
    torch = TorchBackend().open(model, Runtime(precision="fp32"))
    texts = batch(torch)
    assert np.abs(opened(model).encode(texts) - torch.encode(texts)).max() < 1e-5


def test_a_text_has_the_same_vector_alone_and_in_company(tiny_model) -> None:
    for precision, tolerance in (("int8", 0), ("fp32", 1e-6)):
        encoder = opened(tiny_model, precision)
        texts = batch(encoder)
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([ids]) for ids in texts])
        assert np.abs(together - alone).max() <= tolerance
        assert np.array_equal(opened(tiny_model, precision, 1).encode(texts), together)


def test_int8_is_near_fp32(tiny_model, tiny_gguf) -> None:
    for model in (tiny_model, tiny_gguf):
        exact, rounded = opened(model), opened(model, "int8")
        texts = batch(exact)
        cosines = (exact.encode(texts) * rounded.encode(texts)).sum(1)
        assert rounded.profile.dtype == "int8"
        assert cosines.min() > 0.99
        assert cosines.max() < 1 - 1e-7, "it was not rounded"


class Uneven(FolderNumbers):
    """The numbers of a folder with one channel of each normed state made large: the same model."""

    def norm(self, name: str) -> np.ndarray:
        values = super().norm(name)
        if name.endswith((".input_layernorm", ".pre_feedforward_layernorm")):
            values[7] *= 64
        return values

    def matrix(self, name: str) -> np.ndarray:
        values = super().matrix(name)
        if name.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            values = values.copy()
            values[:, 7] /= 64
        return values


def test_channels_that_reach_far_are_evened_out(tiny_model, tmp_path, monkeypatch) -> None:
    exact = opened(tiny_model)
    texts = batch(exact)
    expected = exact.encode(texts)
    numbers = FolderNumbers(open_checkpoint(tiny_model))
    write_graph(Smoothed(numbers), tmp_path / "same.onnx", None)
    same = session(tmp_path / "same.onnx")
    for ids, vector in zip(texts, expected, strict=True):
        raw = raw_vectors(numbers, same, ids[None])[0]
        assert np.abs(raw / np.linalg.norm(raw) - vector).max() < 1e-5
    losses = []
    monkeypatch.setattr("gemb_onnx.folder_numbers.FolderNumbers", Uneven)
    for smoothed in (Smoothed, lambda numbers: numbers):
        monkeypatch.setattr("gemb_onnx.opened.Smoothed", smoothed)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(len(losses))))
        losses.append(1 - (opened(tiny_model, "int8").encode(texts) * expected).sum(1).mean())
    # The root of the factor 64 is left of it: the noise, an eighth, so its square a 64th; a tenth
    # leaves room for that of all other roundings.
    assert losses[0] < losses[1] / 10


def test_both_ranges_of_weights_give_the_products_of_numpy(tiny_model, monkeypatch) -> None:
    """With seven bits every processor is exact, so the graph can be compared with numbers."""
    chance = np.random.default_rng(0)
    weight = chance.normal(size=(64, 768)).astype(np.float32)
    weight[3] = 0
    for largest in (FULL_RANGE, HALF_RANGE):
        scales, rows = rounded_rows(weight, largest)
        assert np.abs(rows).max() == largest
        assert np.abs(scales[:, None] * rows - weight).max() <= scales.max() / 2 * 1.001
    vectors = {}
    for largest, by_itself in ((FULL_RANGE, "int8"), (HALF_RANGE, "fp32"), (None, "fp32")):
        monkeypatch.setattr("gemb_onnx.opened.weight_range", lambda largest=largest: largest)
        encoder = opened(tiny_model, "auto")
        vectors[largest] = encoder.encode(batch(encoder))
        assert encoder.profile.dtype == by_itself
    assert np.array_equal(vectors[None], opened(tiny_model).encode(batch(opened(tiny_model))))
    assert np.array_equal(vectors[None], vectors[HALF_RANGE])
    monkeypatch.setattr("gemb_onnx.opened.weight_range", lambda: HALF_RANGE)
    halved = opened(tiny_model, "int8")
    assert halved.profile.dtype == "int8"
    assert (vectors[None] * halved.encode(batch(halved))).sum(1).min() > 0.985
    monkeypatch.setattr("gemb_onnx.opened.weight_range", lambda: None)
    with pytest.raises(UsageError, match="precision 'int8': this processor's integer products"):
        opened(tiny_model, "int8")


def test_the_probe_knows_saturated_sums(monkeypatch) -> None:
    assert probe.weight_range() in (FULL_RANGE, HALF_RANGE, None)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        assert probe.weight_range() == FULL_RANGE
    elif "avx2" in flags:
        assert probe.weight_range() == HALF_RANGE
    probe.weight_range.cache_clear()
    monkeypatch.setattr(probe, "_is_exact", lambda most: False)
    assert probe.weight_range() is None
    assert "fp32" in probe.products()
    probe.weight_range.cache_clear()


def test_passes_are_of_one_length_and_hold_each_row_once() -> None:
    lengths = [5, 300, 5, 7, 300, *[20] * 60, 2048]
    rows = list(passes(lengths))
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    sizes = [{lengths[row] for row in part} for part in rows]
    assert all(len(size) == 1 for size in sizes)
    assert [max(size) for size in sizes] == sorted((max(size) for size in sizes), reverse=True)
    assert max(len(part) * lengths[part[0]] for part in rows if lengths[part[0]] < 512) <= 512
    assert list(passes([])) == []


def test_a_window_holds_half_of_it_on_either_side() -> None:
    seen = window_mask(40, 16)[20]
    assert np.flatnonzero(seen == 0).tolist() == list(range(12, 29))


def test_a_row_that_is_not_finite_spoils_no_other(tiny_model, monkeypatch) -> None:
    encoder = opened(tiny_model)
    texts = batch(encoder)
    whole = encoder.encode(texts)
    rows = encoder._numbers.token_rows
    bad = int(texts[4][5])
    monkeypatch.setattr(
        encoder._numbers,
        "token_rows",
        lambda ids: np.where((ids == bad)[:, None], np.float32(np.nan), rows(ids)),
    )
    spoiled = encoder.encode(texts)
    is_bad = np.array([bad in ids for ids in texts])
    assert np.isnan(spoiled[is_bad]).all()
    assert np.array_equal(spoiled[~is_bad], whole[~is_bad])


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "made", "foreign"])
def test_a_damaged_cache_is_prepared_again(tiny_gguf, damage) -> None:
    encoder = opened(tiny_gguf, "int8")
    texts = batch(encoder)
    whole = encoder.encode(texts)
    (folder,) = [path for path in engines_cache().iterdir() if path.is_dir()]
    match damage:
        case "cut":
            os.truncate(folder / "tuned.bin", 5000)
        case "flip":
            data = bytearray((folder / "tuned.bin").read_bytes())
            data[len(data) // 2] ^= 64
            (folder / "tuned.bin").write_bytes(data)
        case "gone":
            (folder / "tokenizer.json").unlink()
        case "made":
            (folder / prepared.MADE).write_text("{")
        case _:
            (folder / "tuned.onnx").write_bytes(b"\x08\x0a")
            files = sorted({path.name for path in folder.iterdir()} - {prepared.MADE})
            stamps = {
                name: [(folder / name).stat().st_size, prepared._checksum(folder / name)]
                for name in files
            }
            (folder / prepared.MADE).write_text(json.dumps(stamps))
    assert np.array_equal(opened(tiny_gguf, "int8").encode(texts), whole)
    assert prepared.is_whole(folder)


def test_weights_that_are_not_read_whole_are_judged_by_a_known_vector(
    tiny_gguf, monkeypatch
) -> None:
    monkeypatch.setattr(prepared, "_SMALL", 0)  # as of a file of hundreds of megabytes
    encoder = opened(tiny_gguf, "int8")
    texts = batch(encoder)
    whole = encoder.encode(texts)
    (folder,) = [path for path in engines_cache().iterdir() if path.is_dir()]
    data = bytearray((folder / "tuned.bin").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 64 for byte in data[middle : middle + 64])
    (folder / "tuned.bin").write_bytes(data)
    assert prepared.is_whole(folder)
    assert np.array_equal(opened(tiny_gguf, "int8").encode(texts), whole)
    assert (folder / "tuned.bin").read_bytes() != data
    monkeypatch.setattr("gemb_onnx.opened._TOLERANCE", -1)
    with pytest.raises(GembError, match=r"does not run .*: the vector of a known text is 0e"):
        opened(tiny_gguf, "int8")


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny_model, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole = opened(tiny_model)
    texts = batch(whole)
    shutil.rmtree(engines_cache())
    engines_cache().write_text("")
    encoder = opened(tiny_model)
    assert np.array_equal(encoder.encode(texts), whole.encode(texts))
    assert "the model is prepared for this run" in capsys.readouterr().err
    assert list(tmp_path.iterdir())
    remove_process_folders()
    assert not list(tmp_path.iterdir())


def test_what_was_used_least_lately_goes_where_all_is_too_much(tmp_path, monkeypatch) -> None:
    names = []
    for seed in range(3):
        model = write_tiny_model(tmp_path / f"m{seed}", TinyShape(seed=seed))
        opened(model)
        (new,) = [path.name for path in engines_cache().iterdir() if path.name not in names]
        names.append(new)
        os.utime(engines_cache() / new / prepared.MADE, (seed, seed))
    opened(tmp_path / "m0")  # it is the one that was used last
    size = sum(path.stat().st_size for path in (engines_cache() / names[0]).iterdir())
    monkeypatch.setattr(prepared, "MOST", 3.5 * size)
    opened(write_tiny_model(tmp_path / "m3", TinyShape(seed=3)))
    left = {path.name for path in engines_cache().iterdir()}
    assert len(left) == 3
    assert names[1] not in left
    assert {names[0], names[2]} <= left


def test_a_changed_model_has_a_cache_of_its_own(tmp_path) -> None:
    folders = set()
    for seed in (1, 2):
        model = write_tiny_model(tmp_path / str(seed), TinyShape(seed=seed))
        opened(model)
        folders |= {path.name for path in engines_cache().iterdir() if path.is_dir()}
    assert len(folders) == 2


def test_many_processes_prepare_once(tiny_model, cache) -> None:
    code = (
        "import sys; from pathlib import Path; from gemb.backend import Runtime; "
        "from gemb_onnx import OnnxBackend, opened; "
        "fill = opened._fill; "
        "opened._fill = lambda *a: (print('made', flush=True), fill(*a)); "
        "OnnxBackend().open(Path(sys.argv[1]), Runtime(precision='int8'))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, tiny_model], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert b"".join(outputs) == b"made\n"
    assert not list(engines_cache().glob("*.lock"))


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), GembError("no graph")])
def test_what_ends_the_preparation_waits_for_the_tokenizer_and_leaves_nothing(
    tiny_gguf, monkeypatch, reason
) -> None:
    has_begun, has_ended = threading.Event(), threading.Event()
    workers = []

    def write_tokenizer(*_: object) -> None:
        workers.append(threading.current_thread())
        has_begun.set()
        has_ended.wait(60)
        raise UsageError("no tokenizer")

    def write_graph(*_: object) -> None:
        has_begun.wait(60)
        has_ended.set()
        raise reason

    with monkeypatch.context() as patched:
        patched.setattr("gemb_onnx.opened._write_tokenizer", write_tokenizer)
        patched.setattr("gemb_onnx.opened.write_graph", write_graph)
        with pytest.raises(type(reason)):
            opened(tiny_gguf, "int8")
    assert not list(engines_cache().iterdir())
    assert not workers[0].is_alive()
    opened(tiny_gguf, "int8")


def test_a_tokenizer_that_is_refused_leaves_nothing(tiny_gguf, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("no tokenizer of Gemma's")

    monkeypatch.setattr("gemb_onnx.opened._write_tokenizer", refuse)
    with pytest.raises(UsageError, match="no tokenizer of Gemma's"):
        opened(tiny_gguf, "int8")
    assert not list(engines_cache().iterdir())


def test_what_is_refused(tiny_model, tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="precision 'bf16'; onnx has auto, int8, fp32"):
        opened(tiny_model, "bf16")
    with pytest.raises(UsageError, match="device 'cuda'; onnx has auto, cpu"):
        OnnxBackend().open(tiny_model, Runtime(device="cuda"))
    assert not OnnxBackend().can_open(tmp_path)
    monkeypatch.setattr("onnxruntime.__version__", "1.9.0")
    with pytest.raises(Missing, match=r"onnxruntime 1\.9\.0 is too old"):
        opened(tiny_model)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Missing, match="pip install onnxruntime"):
        opened(tiny_model)


def test_what_the_runtime_refuses_twice_is_one_line(tiny_model, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("gemb_onnx.opened.session", refuse)
    with pytest.raises(GembError, match=r"onnxruntime does not run its graph: no such operator"):
        opened(tiny_model)


def test_the_library_reports_nothing(tmp_path) -> None:
    """Without its switch onnxruntime keeps a number of this device in the cache, and sends it."""
    code = "from gemb_onnx.runtime import library; library()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment.pop("CI", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_version_is_that_of_pyproject() -> None:
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    assert f'"onnxruntime>={".".join(map(str, runtime.OLDEST))}"' in pyproject.read_text()
