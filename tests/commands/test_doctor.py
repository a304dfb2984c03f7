"""`gemb doctor`: what it says of a sound machine and of an ill one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fake_backend import write_model
from gemb import doctor
from gemb.doctor import BATCH_TOLERANCE, SELF_TEST_TEXTS
from gemb.evaluation.agreement import compare
from gemb.io.locks import locked
from gemb.models.checkpoint import open_checkpoint
from tiny_static import write_tiny_static


def checks_of(answer) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(answer.stdout)["checks"]}


def test_every_part_is_looked_at(gemb):
    found = checks_of(gemb("doctor", "--json"))
    bundled = {"bundled model", "bundled draft"}
    assert {"python", "processor", "memory", "hub cache", *bundled} <= set(found)
    assert found["bundled draft"]["detail"].endswith("gemb/data/draft, 19 MB")
    assert found["fake: library"] == {
        "name": "fake: library",
        "ok": True,
        "detail": "1.0",
        "fix": "",
    }
    test = found["self-test of model.fake"]
    assert test["ok"]
    assert "fake fp32: loaded in" in test["detail"]


def test_each_engine_is_tried_with_the_known_vector(gemb):
    found = checks_of(gemb("doctor", "--json"))["llamacpp: known vector"]
    assert found["ok"]
    assert found["detail"].startswith("cosine 0.999")
    assert checks_of(gemb("doctor", "--json", "-m", "mini"))["self-test of mini"][
        "detail"
    ].startswith("llamacpp q4_0 (llama-cpp-python ")


def test_a_draft_of_another_model_is_told(monkeypatch, tmp_path, tiny_model):
    tokens = open_checkpoint(tiny_model).config.vocab_size
    folder = write_tiny_static(tmp_path / "draft", tiny_model / "tokenizer.json", tokens)
    monkeypatch.setattr(doctor, "bundled_draft", lambda: folder)
    check = doctor._bundled_draft()
    assert (check.ok, check.detail) == (False, f"{folder} is not of the bundled model")
    (folder / "model.safetensors").unlink()
    check = doctor._bundled_draft()
    assert (check.ok, check.fix) == (False, "pip install --force-reinstall gemb")
    assert "model.safetensors: missing" in check.detail


def test_what_is_kept_is_told_with_its_size(gemb, tmp_path):
    gemb.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    assert checks_of(gemb("doctor", "--json"))["caches"]["detail"].startswith(
        f"{tmp_path}/cache/gemb, empty"
    )
    (tmp_path / "cache/gemb/search/deep").mkdir(parents=True)
    (tmp_path / "cache/gemb/search/deep/x").write_bytes(bytes(2_500_000))
    found = checks_of(gemb("doctor", "--json"))["caches"]
    assert found["detail"] == (
        f"{tmp_path}/cache/gemb, search 2.5 MB; any of it may be removed with rm -r"
    )


def test_a_failing_line_has_its_fix_and_the_exit_code_is_1(gemb):
    gemb.environment["FAKE_BROKEN"] = "1"
    answer = gemb("doctor")
    lines = answer.stdout.decode().splitlines()
    at = lines.index("FAIL  fake: library: not installed")
    assert lines[at + 1] == "      pip install fake"
    assert answer.returncode == 1
    assert b"to mend, marked FAIL above" in answer.stderr


def test_every_failing_check_has_a_fix(gemb):
    gemb.environment.update({"FAKE_BROKEN": "1", "HOME": "/nowhere"})
    for check in checks_of(gemb("doctor", "--json", "-m", "nosuch.gguf")).values():
        assert check["ok"] or check["fix"], check


def test_a_backend_that_mixes_texts_up_is_found(gemb):
    write_model(gemb.folder / "leaky.fake", is_leaky=True)
    test = checks_of(gemb("doctor", "--json", "-m", "leaky.fake"))["self-test of leaky.fake"]
    assert not test["ok"]
    assert "a text's vector depends on its neighbours: components differ by" in test["detail"]


def test_a_file_that_cannot_be_read_is_a_failing_check(gemb, tmp_path, monkeypatch):
    def refuse(reference, *, download):
        raise PermissionError(13, "Permission denied", reference)

    monkeypatch.setattr(doctor, "resolve", refuse)
    check = doctor._self_test("secret.gguf")
    assert not check.ok
    assert "Permission denied: 'secret.gguf'" in check.detail


def test_a_model_that_is_not_there_is_a_failing_check_and_nothing_is_downloaded(gemb):
    test = checks_of(gemb("doctor", "--json", "-m", "org/repo"))["self-test of org/repo"]
    assert not test["ok"]
    assert "not in the hub cache" in test["detail"]


def test_what_processor_says_is_in_cpuinfo(gemb):
    import pathlib

    info = pathlib.Path("/proc/cpuinfo").read_text()
    detail = checks_of(gemb("doctor", "--json"))["processor"]["detail"]
    for flag in doctor.CPU_FLAGS:
        assert (f" {flag} " in f" {detail} ".replace("\n", " ")) == (flag in info.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:1], "vectors of shape (1, 8) where 12 of 8 were asked for"),
        (lambda v: v * np.nan, "the vectors are not finite"),
        (lambda v: v * 2, "the vectors are not unit vectors: length 2.000"),
        (lambda v: v[::-1], "a text's vector depends on its neighbours"),
        (lambda v: v, ""),
    ],
)
def test_each_fault_of_vectors_is_named(change, message):
    vectors = np.random.default_rng(0).normal(size=(len(SELF_TEST_TEXTS), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fault = doctor._fault(vectors, change(vectors), 8)
    assert fault.startswith(message)
    assert bool(fault) == bool(message)


def test_one_vector_for_two_texts_is_a_fault():
    same = np.full((len(SELF_TEST_TEXTS), 4), 0.5, np.float32)
    assert doctor._fault(same, same, 4) == "two different texts have one vector"


@pytest.mark.real
def test_the_tolerance_of_the_self_test_holds_for_the_real_model(real_model):
    from gemb.backend import Runtime
    from gemb.plugins import for_model

    encoder = for_model(real_model).open(real_model, Runtime())
    texts = SELF_TEST_TEXTS[:2]
    together = encoder.encode(encoder.tokenize(texts))
    alone = [encoder.encode(encoder.tokenize([text]))[0] for text in texts]
    # Swapped texts must be far outside the tolerance, right ones well inside.
    assert np.abs(together - np.stack(alone)).max() < BATCH_TOLERANCE / 10
    assert np.abs(together[0] - together[1]).max() > 10 * BATCH_TOLERANCE
    assert compare(encoder, encoder, texts).min_cosine > 0.9999


def test_what_killed_runs_left_is_named_with_its_size(gemb, tmp_path):
    gemb.environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    assert checks_of(gemb("doctor", "--json"))["leftovers"]["detail"] == "none"
    (tmp_path / "cache/gemb/rows/.rows-01.7-0123abcd.part").mkdir(parents=True)
    (tmp_path / "cache/gemb/rows/.rows-01.7-0123abcd.part/x").write_bytes(bytes(1000))
    (gemb.folder / ".m.gguf.12-0123abcd.part").write_bytes(bytes(2_500_000))
    (tmp_path / ".gemb-quantize-a_b1c2d3").mkdir()
    answer = gemb("doctor", "--json")
    found = checks_of(answer)["leftovers"]
    assert found["ok"]
    assert found["detail"].startswith(".m.gguf.12-0123abcd.part 2.5 MB, ")
    for part in (".gemb-quantize-a_b1c2d3 0 B", ".rows-01.7-0123abcd.part 1 kB, of killed runs"):
        assert part in found["detail"]


def test_what_a_stopped_download_left_is_named_unless_it_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blob = tmp_path / "models--org--model" / "blobs" / "b1.gemb-partial"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"12345")
    assert f"{blob} 5 B" in doctor._leftovers().detail
    with locked(blob, lambda holder: None):
        assert str(blob) not in doctor._leftovers().detail


def test_a_model_that_a_killed_run_moved_away_is_to_be_moved_back(gemb):
    (gemb.folder / ".my model.12-0123abcd.old").mkdir()
    found = checks_of(gemb("doctor", "--json"))["leftovers"]
    assert not found["ok"]
    assert found["fix"] == "mv -- '.my model.12-0123abcd.old' 'my model'"
