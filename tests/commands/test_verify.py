"""`gemb verify`: models and files of vectors, the same or not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fake_backend import write_model


def save(path, vectors, **spec) -> None:
    """Write a .npy file, and its description if there is one."""
    np.save(path, vectors)
    if spec:
        entries = {"gemb": 1, "model": "0" * 16, "prompt": "{text}", "max_tokens": 2048, **spec}
        path.with_name(path.name + ".json").write_text(json.dumps(entries))


@pytest.fixture
def vectors():
    rows = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_model_is_itself(gemb):
    answer = gemb("verify", "model.fake", "model.fake")
    assert answer.returncode == 0
    assert answer.stderr == b""
    lines = dict(line.split("  ", 1) for line in answer.stdout.decode().splitlines()[:6])
    assert lines["rows compared"].strip() == "64"
    assert lines["cosine, least"].strip() == "1.000000"
    assert lines["ten nearest shared"].strip() == "100.00%"
    assert b"by script           latin" in answer.stdout


def test_models_that_differ_leave_with_1_and_name_the_worst_text(gemb):
    write_model(gemb.folder / "other.fake", prompts={"query": "other words before "})
    assert gemb("verify", "model.fake", "other.fake").returncode == 0
    answer = gemb("verify", "--task", "query", "model.fake", "other.fake")
    assert answer.returncode == 1
    assert answer.stderr.startswith(b"gemb: they differ: row ")
    assert b"the bar is 0.99999 (--min-cosine)" in answer.stderr
    assert answer.stderr.count(b"\n") == 1


def test_models_of_two_widths_leave_with_1(gemb):
    write_model(gemb.folder / "other.fake", dim=512)
    answer = gemb("verify", "model.fake", "other.fake")
    assert (answer.returncode, answer.stdout) == (1, b"")
    assert answer.stderr == b"gemb: the models differ: vectors of 768 and 512\n"


def test_the_users_own_texts_are_used(gemb):
    (gemb.folder / "texts.txt").write_bytes(b"one\n\ntwo words\r\nmore\nlast")
    answer = gemb("verify", "--json", "--texts", "texts.txt", "model.fake", "model.fake")
    found = json.loads(answer.stdout)
    assert (found["same"], found["count"], found["bar"]) == (True, 4, 0.99999)
    answer = gemb("verify", "--json", "--texts", "-", "model.fake", "model.fake", stdin="a\nb\n")
    assert json.loads(answer.stdout)["count"] == 2
    answer = gemb("verify", "--texts", "-", "model.fake", "model.fake", stdin="\n")
    assert answer.returncode == 2
    assert answer.stderr == b"gemb: standard input: no text to compare the models on\n"


def test_the_bar_can_be_set(gemb):
    write_model(gemb.folder / "leaky.fake", is_leaky=True)
    words = ("verify", "--json", "model.fake", "leaky.fake")
    found = json.loads(gemb(*words, "--min-cosine", "0").stdout)
    assert found["same"]
    assert 0.3 < found["min_cosine"] < 0.995
    answer = gemb(*words, "--min-cosine", "0.995")
    assert answer.returncode == 1
    assert not json.loads(answer.stdout)["same"]


def test_two_files_of_the_same_vectors_are_the_same(gemb, vectors):
    save(gemb.folder / "a.npy", vectors)
    save(gemb.folder / "b.npy", vectors.astype(np.float16), dim=64, dtype="f16")
    answer = gemb("verify", "a.npy", "b.npy")
    assert answer.returncode == 0, answer.stderr
    assert b"rows compared       30" in answer.stdout


def test_files_that_differ_in_a_row_say_which(gemb, vectors):
    save(gemb.folder / "a.npy", vectors)
    vectors[[7, 8]] = vectors[[8, 7]]
    save(gemb.folder / "b.npy", vectors)
    answer = gemb("verify", "a.npy", "b.npy")
    assert answer.returncode == 1
    assert b"they differ: row 8 has cosine" in answer.stderr


def test_files_of_two_lengths_or_with_other_ids_differ(gemb, vectors):
    save(gemb.folder / "a.npy", vectors)
    save(gemb.folder / "b.npy", vectors[:20])
    answer = gemb("verify", "a.npy", "b.npy")
    assert answer.returncode == 1
    assert answer.stderr == b"gemb: the vectors differ in shape: 30 x 64 and 20 x 64\n"
    for name, ids in (("c", "pq"), ("d", "pr")):
        rows = [{"id": id_, "embedding": [1.0, 0.0]} for id_ in ids]
        (gemb.folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = gemb("verify", "c.jsonl", "d.jsonl")
    assert answer.returncode == 1
    assert answer.stderr == b"gemb: they differ: row 2 is 'q' in c.jsonl, 'r' in d.jsonl\n"


def test_a_row_that_failed_on_one_side_alone_is_a_difference(gemb, vectors):
    save(gemb.folder / "a.npy", vectors)
    vectors[3] = np.nan
    save(gemb.folder / "b.npy", vectors)
    answer = gemb("verify", "a.npy", "b.npy")
    assert answer.returncode == 1
    assert answer.stderr == b"gemb: they differ: 1 rows failed on one side only\n"
    assert gemb("verify", "b.npy", "b.npy").returncode == 0


def test_sign_bits_are_compared_with_sign_bits_alone(gemb, vectors):
    save(gemb.folder / "a.npy", vectors)
    save(gemb.folder / "bits.npy", np.packbits(vectors > 0, axis=1), dim=64, dtype="ubinary")
    assert gemb("verify", "bits.npy", "bits.npy").returncode == 0
    answer = gemb("verify", "a.npy", "bits.npy")
    assert answer.returncode == 2
    assert b"one of a.npy and bits.npy holds sign bits, the other numbers" in answer.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.npy", "model.fake"], b"two models or two files of vectors, not one of each"),
        (["--task", "query", "a.npy", "a.npy"], b"--texts and --task are for models"),
        (["a.npy", "nosuch.npy"], b"no such file: nosuch.npy"),
        (["--min-cosine", "2", "a.npy", "a.npy"], b"2.0 is not in the range"),
    ],
)
def test_wrong_usage_leaves_with_2(gemb, vectors, words, message):
    save(gemb.folder / "a.npy", vectors)
    answer = gemb("verify", *words)
    assert answer.returncode == 2
    assert message in answer.stderr


def test_texts_that_cannot_be_read_are_refused_with_their_line(gemb):
    (gemb.folder / "texts.txt").write_bytes(b"one\n\n\xff bytes\n")
    for name, message in (
        ("texts.txt", b"is no valid UTF-8"),
        ("nosuch", b"nosuch"),
    ):
        answer = gemb("verify", "--texts", name, "model.fake", "model.fake")
        assert (answer.returncode, answer.stderr.count(b"\n")) == (2, 1)
        assert message in answer.stderr


def test_texts_are_read_as_in_all_commands(gemb):
    (gemb.folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    (gemb.folder / "texts.csv").write_text("id;text\n1;one\n2;two\n")
    for name in ("texts.jsonl", "texts.csv"):
        answer = gemb("verify", "--json", "--texts", name, "model.fake", "model.fake")
        assert json.loads(answer.stdout)["count"] == 2
    (gemb.folder / "pretty.json").write_text('{\n"text": "one"\n}\n')
    answer = gemb("verify", "--texts", "pretty.json", "model.fake", "model.fake")
    assert answer.returncode == 2
    assert b"is a JSON object over several lines; of it make lines: jq -c . pretty.json\n" in (
        answer.stderr
    )


def test_the_worst_text_keeps_its_quotes(gemb):
    (gemb.folder / "texts.txt").write_text("say 'nested\n")
    answer = gemb("verify", "--texts", "texts.txt", "model.fake", "model.fake")
    assert b'worst row           1  "say \'nested"\n' in answer.stdout
    write_model(gemb.folder / "other.fake", prompts={"query": "other words "})
    answer = gemb("verify", "--task", "query", "--texts", "texts.txt", "model.fake", "other.fake")
    assert b'they differ: row 1 ("say \'nested") has cosine' in answer.stderr


@pytest.mark.parametrize(
    ("dtype", "code", "message"),
    [("f16", 0, b""), ("int8", 0, b""), ("ubinary", 2, b"holds sign bits, the other numbers")],
)
def test_json_lines_say_their_type(gemb, dtype, code, message):
    texts = "".join(f"word{number}\n" for number in range(40))
    gemb("embed", "-o", "full.jsonl", stdin=texts)
    gemb("embed", "-o", "small.jsonl", "--dtype", dtype, stdin=texts)
    gemb("embed", "-o", "small.npy", "--dtype", dtype, stdin=texts)
    answer = gemb("verify", "full.jsonl", "small.jsonl")
    assert (answer.returncode, message in answer.stderr) == (code, True), answer.stderr
    found = json.loads(gemb("verify", "--json", "small.npy", "small.jsonl").stdout)
    assert found["min_cosine"] > 0.999999
    assert found["bar"] == {"f16": 0.9999, "int8": 0.999, "ubinary": 0.98}[dtype]
