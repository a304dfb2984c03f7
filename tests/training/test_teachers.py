"""Teachers: vectors that are computed once, kept on disk through kills, and read back fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb
from gemb.backend import Runtime
from gemb.embedding.store import VectorStore, key_of
from gemb.errors import GembError, UsageError
from gemb.io.caches import rows_cache, teachers_cache
from gemb.models.prompts import for_task
from gemb.training.teacher import TeacherText
from gemb.training.teachers import open_teacher
from rewritten import rewrite

TEXTS = ["the quick brown fox", "a red planet", "what is it", "der Hund", "日本語", "sum of x"]
LONG = "the quick brown fox jumps over the lazy dog " * 60


@pytest.fixture
def teacher(tiny_model, tmp_path):
    return open_teacher(str(tiny_model), tmp_path / "cache", Runtime())


def wanted(texts, prompt="{text}"):
    return [
        TeacherText(prompt.replace("{text}", text), f"x.jsonl:{n}") for n, text in enumerate(texts)
    ]


def encoded(model, texts):
    """The vectors straight from the backend, cut as a teacher cuts."""
    from gemb.plugins import for_model

    encoder = for_model(model).open(model, Runtime())
    most = encoder.profile.max_tokens
    ids = [
        one if len(one) <= most else np.concatenate([one[: most - 1], one[-1:]])
        for one in encoder.tokenize(texts)
    ]
    return encoder.encode(ids)


def units(count, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_are_those_of_the_model_with_repeats_in_any_order(teacher, tiny_model):
    texts = [*TEXTS, *TEXTS[::-1]]
    assert teacher.missing(wanted(texts)) == len(TEXTS)
    assert teacher.fill(wanted(texts)) == len(TEXTS)
    found = teacher.vectors(wanted(texts))
    assert found.dtype == np.float32
    # float16 holds a component to 2^-11 of itself: 5e-4 of at most 0.5 here.
    np.testing.assert_allclose(found, encoded(tiny_model, texts), atol=3e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_stored_form_of_a_vector_has_nearly_its_direction(tmp_path):
    store = VectorStore(tmp_path / "s", 768)
    vectors = units(500, 768)
    keys = [key_of(str(n)) for n in range(500)]
    with store.locked():
        store.append(keys, vectors)
    found, vectors = (each.astype(float) for each in (store.gather(store.find(keys)), vectors))
    products = np.einsum("nd,nd->n", found, vectors)
    cosines = products / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
    # Roundings of up to 2^-11 of each component turn a vector by 2^-11 / sqrt 3 at most.
    assert (1 - cosines).max() < 1e-7


def test_a_model_describes_itself_and_its_prompts_without_being_loaded(teacher, tiny_model):
    assert teacher.prompts["query"] == "task: search result | query: "
    assert teacher.dim == 96
    assert "torch" not in str(type(teacher._encoder))
    assert teacher._encoder is None


def test_what_was_filled_once_is_there_in_another_run(teacher, tiny_model, tmp_path):
    teacher.fill(wanted(TEXTS))
    again = open_teacher(str(tiny_model), tmp_path / "cache", Runtime())
    assert again.fill(wanted(TEXTS)) == 0
    assert again._encoder is None, "no model is needed"
    np.testing.assert_array_equal(again.vectors(wanted(TEXTS)), teacher.vectors(wanted(TEXTS)))


def test_one_process_sees_what_another_has_filled_in(teacher, tiny_model, tmp_path):
    other = open_teacher(str(tiny_model), tmp_path / "cache", Runtime())
    teacher.fill(wanted(TEXTS))
    assert other.vectors(wanted(TEXTS)).shape == (len(TEXTS), 96)


def test_repeats_on_both_sides_of_a_window_are_computed_once(teacher, tiny_model, monkeypatch):
    monkeypatch.setattr("gemb.training.teachers.WINDOW_TEXTS", 4)
    monkeypatch.setattr("gemb.embedding.store.RECENT", 5)
    texts = [f"fox {n // 3} {n % 3 * (n % 7)}" for n in range(60)]
    different = len(set(texts))
    assert different < len(texts)
    texts += texts[::-1]
    assert teacher.fill(wanted(texts)) == different
    found = teacher.vectors(wanted(texts))
    np.testing.assert_allclose(found, encoded(tiny_model, texts), atol=3e-4)
    assert (teacher.folder / "keys.bin").stat().st_size == 16 * different


def test_a_prompt_makes_another_text(teacher):
    plain, prompted = wanted(["fox"]), wanted(["fox"], "query: {text}")
    teacher.fill([*plain, *prompted])
    assert float(teacher.vectors(plain)[0] @ teacher.vectors(prompted)[0]) < 0.999


def test_a_teacher_can_see_as_little_of_a_text_as_its_student(teacher, tiny_model, tmp_path):
    short = open_teacher(str(tiny_model), tmp_path / "cache", Runtime(), max_tokens=16)
    assert short.fingerprint != teacher.fingerprint
    texts = wanted([LONG])
    short.fill(texts)
    teacher.fill(texts)
    assert float(short.vectors(texts)[0] @ teacher.vectors(texts)[0]) < 0.9999


def test_models_and_precisions_do_not_share_vectors(tiny_model, tmp_path):
    fingerprints = {
        open_teacher(str(tiny_model), tmp_path, Runtime(precision=precision)).fingerprint
        for precision in ("fp32", "bf16")
    }
    assert len(fingerprints) == 2


def test_a_cache_of_another_arithmetic_is_refused(teacher, tiny_model, tmp_path):
    teacher.fill(wanted(TEXTS[:1]))
    path = teacher.folder / "store.json"
    path.write_text(path.read_text().replace('"fp32"', '"bf16"'))
    again = open_teacher(str(tiny_model), tmp_path / "cache", Runtime())
    with pytest.raises(UsageError, match="holds vectors computed in bf16, and this run computes"):
        again.fill(wanted(TEXTS))


def test_long_texts_are_cut_and_counted(teacher, tiny_model, capsys):
    teacher.fill(wanted([LONG, "fox"]))
    assert "warning: 1 of 2 texts were cut at 256 tokens" in capsys.readouterr().err
    found = teacher.vectors(wanted([LONG]))
    np.testing.assert_allclose(found, encoded(tiny_model, [LONG]), atol=3e-4)


def test_a_text_that_was_not_filled_in_is_named(teacher):
    teacher.fill(wanted(TEXTS[:2]))
    with pytest.raises(GembError, match=r"2 texts have no vector .* the first: x.jsonl:2 \('what"):
        teacher.vectors(wanted(TEXTS[:4]))


def test_numbers_that_are_not_finite_stop_with_the_text_and_keep_the_others(gemb):
    code = """
import sys
from pathlib import Path
from gemb.backend import Runtime
from gemb.training.teacher import TeacherText
from gemb.training.teachers import open_teacher
teacher = open_teacher("model.fake", Path("cache"), Runtime())
texts = [f"text {n} " + "word " * n for n in range(20)]
texts[3] = "this is notfinite"
try:
    teacher.fill([TeacherText(t, f"p.jsonl:{n}") for n, t in enumerate(texts)])
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gemb.folder,
        env=gemb.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == (
        "GembError the teacher model.fake has no vector for p.jsonl:3 ('this is notfinite'): "
        "the model gave numbers that are not finite\n"
    )


FILL = """
import sys
from pathlib import Path
from gemb.backend import Runtime
from gemb.io import notes
from gemb.training import teachers
notes.speak()
teachers.FLUSH_S, teachers.FIRST_CHARS = 0.01, 200
teacher = teachers.open_teacher("model.fake", Path("cache"), Runtime())
wanted = [teachers.TeacherText(f"text {n}") for n in range(400)]
print("filling", flush=True)
done = teacher.fill(wanted)
found = teacher.vectors(wanted)
import numpy as np
np.save(sys.argv[1], found)
print(done)
"""


def fill(gemb: Gemb, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILL, name],
        cwd=gemb.folder,
        env=gemb.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_keys(gemb: Gemb, count: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        sizes = [path.stat().st_size for path in gemb.folder.glob("cache/*/keys.bin")]
        if sizes and sizes[0] >= 16 * count:
            return
        time.sleep(0.01)
    raise AssertionError("nothing was flushed")


def test_a_killed_fill_goes_on_where_it_was_and_gives_the_same_vectors(gemb):
    gemb.model.write_text(json.dumps({"sleep_s": 0.02}))
    first = fill(gemb, "a.npy")
    wait_for_keys(gemb, 20)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = next(gemb.folder.glob("cache/*/keys.bin"))
    count = kept.stat().st_size // 16
    assert 20 <= count < 400
    for name in ("keys.bin", "vectors.f16"):  # as a kill in the middle of a write leaves them
        with (kept.parent / name).open("ab") as file:
            file.write(b"torn " * 7)
    out, error = fill(gemb, "a.npy").communicate(timeout=60)
    assert out == f"filling\n{400 - count}\n", error
    kept.unlink()
    fill(gemb, "whole.npy").communicate(timeout=60)
    resumed, whole = (np.load(gemb.folder / name) for name in ("a.npy", "whole.npy"))
    np.testing.assert_array_equal(resumed, whole)


def test_of_two_that_fill_at_once_the_second_waits_and_computes_nothing_again(gemb):
    first = fill(gemb, "a.npy")
    first.communicate(timeout=60)
    folder = next(gemb.folder.glob("cache/*"))
    (folder / "keys.bin").unlink()
    store = VectorStore(folder, 768)
    vectors = units(5, 768)
    with store.locked():
        second = fill(gemb, "b.npy")
        assert f"note: process {os.getpid()} on " in second.stderr.readline()
        store.append([key_of(f"text {n}") for n in range(5)], vectors)
    out, _ = second.communicate(timeout=60)
    assert out == "filling\n395\n"
    a, b = (np.load(gemb.folder / name) for name in ("a.npy", "b.npy"))
    np.testing.assert_array_equal(a[5:], b[5:])
    np.testing.assert_allclose(b[:5], vectors, atol=1e-4)


def test_keys_with_one_first_half_are_told_apart(tmp_path):
    keys = [b"same8888" + bytes([n] * 8) for n in (3, 1, 2)] + [b"other888" + b"x" * 8]
    store = VectorStore(tmp_path / "s", 8)
    vectors = units(4, 8)
    with store.locked():
        store.append(keys, vectors)
    for each in (store, VectorStore(tmp_path / "s", 8)):  # in the dictionary, and sorted
        absent = [b"same8888" + bytes([9] * 8), b"\xff" * 16, b"\0" * 16]
        assert each.find([*keys[::-1], *absent]).tolist() == [3, 2, 1, 0, -1, -1, -1]


def test_many_appends_are_found_whether_sorted_in_or_recent(tmp_path, monkeypatch):
    monkeypatch.setattr("gemb.embedding.store.RECENT", 10)
    store = VectorStore(tmp_path / "s", 8)
    vectors = units(100, 8)
    keys = [key_of(str(n)) for n in range(100)]
    with store.locked():
        for first in range(0, 100, 3):
            store.append(keys[first : first + 3], vectors[first : first + 3])
            late = VectorStore(tmp_path / "s", 8)
            assert store.find(keys).tolist() == late.find(keys).tolist()
    assert store.find(keys).tolist() == list(range(100))


def test_a_vector_without_its_key_is_overwritten(tmp_path):
    folder = tmp_path / "s"
    store = VectorStore(folder, 8)
    vectors = units(3, 8)
    with store.locked():
        store.append([key_of("a")], vectors[:1])
    with (folder / "vectors.f16").open("ab") as file:
        file.write(bytes(16))
    late = VectorStore(folder, 8)
    with late.locked():
        late.append([key_of("b"), key_of("c")], vectors[1:])
    rows = late.find([key_of(name) for name in "abc"])
    np.testing.assert_allclose(late.gather(rows), vectors, atol=1e-3)


def test_damage_is_named_and_never_read_as_vectors(tmp_path):
    folder = tmp_path / "s"
    store = VectorStore(folder, 8)
    with store.locked():
        store.append([key_of("a"), key_of("b")], units(2, 8))
    with (folder / "vectors.f16").open("r+b") as file:
        file.write(bytes(16))
    late = VectorStore(folder, 8)
    with pytest.raises(GembError, match=r"vectors\.f16 is damaged; remove the folder"):
        late.gather(late.find([key_of("a")]))
    with pytest.raises(UsageError, match="of width 8, not 9"):
        VectorStore(folder, 8).describe() or VectorStore(folder, 9)
    (folder / "store.json").write_text("{}")
    with pytest.raises(UsageError, match="not what gemb wrote there"):
        VectorStore(folder, 8)


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from gemb.embedding.store import VectorStore, key_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = VectorStore(Path(sys.argv[1]), 512)
vectors = np.full((20, 512), 512 ** -0.5, np.float32)
with store.locked():
    store.append([key_of(str(n)) for n in range(20)], vectors)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    try:
        store.append([key_of(str(n)) for n in range(20, 40)], vectors)
    except OSError as error:
        print(Path(error.filename).name)
late = VectorStore(Path(sys.argv[1]), 512)
print(len(late), late.find([key_of("19"), key_of("20")]).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "vectors.f16\n20 [19, -1]\n"


def test_a_batch_of_training_is_read_in_a_few_milliseconds(tmp_path):
    store = VectorStore(tmp_path / "s", 768)
    keys = [key_of(str(n)) for n in range(50_000)]
    with store.locked():
        for first in range(0, 50_000, 10_000):
            store.append(keys[first : first + 10_000], units(10_000, 768, first))
    store = VectorStore(tmp_path / "s", 768)
    random = np.random.default_rng(0)
    took = []
    for _ in range(20):
        chosen = [keys[n] for n in random.integers(0, 50_000, 384)]
        began = time.thread_time()  # its own: other tests run on the other cores
        store.gather(store.find(chosen))
        took.append(time.thread_time() - began)
    # Measured: 1 ms; the bound leaves room for a busy machine.
    assert sorted(took)[10] < 0.005


# Files of vectors.

ROWS = [
    {"text": "a red planet"},
    {"text": "the fox", "title": "Fox"},
    {"text": "what is it"},
]


def vectors_file(gemb: Gemb, name: str, *more: str) -> Path:
    (gemb.folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = gemb("embed", "texts.jsonl", "--keep", "text,title", *more, "-o", name)
    assert done.returncode == 0, done.stderr
    return gemb.folder / name


def document(text, title=None):
    return TeacherText(for_task("document", {}).render(text, title))


@pytest.mark.parametrize("name", ["v.jsonl", "v.parquet"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
def test_a_file_of_vectors_is_a_teacher_by_text_title_and_task(gemb, tmp_path, name, dtype):
    from gemb.embedding.formats.read import read_vectors

    path = vectors_file(gemb, name, "--title-field", "title", "--dtype", dtype)
    teacher = open_teacher(str(path), tmp_path / "cache", Runtime())
    some = [document("the fox", "Fox"), document("a red planet")]
    assert teacher.fill(some) == 0
    assert teacher.prompts == {}
    expected = read_vectors(path).vectors[[1, 0]]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(teacher.vectors(some), expected, atol=1e-4)


def test_a_file_that_lacks_texts_says_how_many_and_how_to_make_them(gemb, tmp_path):
    path = vectors_file(gemb, "v.jsonl", "--title-field", "title")
    teacher = open_teacher(str(path), tmp_path / "cache", Runtime())
    query = TeacherText(for_task("query", {}).render("what is it"), "p.jsonl:3")
    with pytest.raises(UsageError) as caught:
        teacher.fill([document("a red planet"), document("the fox"), query, query])
    assert "lacks 2 of the texts, the first: 'title: none | text: the fox'" in str(caught.value)
    assert "gemb embed -m MODEL --task document --keep text" in str(caught.value)


def test_several_files_are_one_teacher(gemb, tmp_path):
    documents = vectors_file(gemb, "d.parquet", "--title-field", "title")
    queries = vectors_file(gemb, "q.parquet", "--task", "query")
    query = TeacherText(for_task("query", {}).render("what is it"))
    both = open_teacher(f"{gemb.folder}/*.parquet", tmp_path / "cache", Runtime())
    assert both.fill([document("a red planet"), query]) == 0
    found = both.vectors([document("what is it"), query])
    assert float(found[0] @ found[1]) < 0.999
    assert documents != queries


def test_a_prompt_of_ones_own_is_known_from_parquet_alone(gemb, tmp_path):
    own = ("--prompt", "mine: {text}")
    path = vectors_file(gemb, "v.parquet", *own)
    teacher = open_teacher(str(path), tmp_path / "cache", Runtime())
    assert teacher.fill([TeacherText("mine: a red planet")]) == 0
    path = vectors_file(gemb, "v.jsonl", *own)
    with pytest.raises(
        UsageError, match=r"v.jsonl, line 1: its prompt is not in the file \(task '"
    ):
        open_teacher(str(path), tmp_path / "cache", Runtime())


def test_a_changed_file_is_read_anew(gemb, tmp_path):
    path = vectors_file(gemb, "v.jsonl")
    before = open_teacher(str(path), tmp_path / "cache", Runtime())
    lines = path.read_text().replace("a red planet", "a new planet")
    path.write_text(lines)
    after = open_teacher(str(path), tmp_path / "cache", Runtime())
    assert before.fingerprint != after.fingerprint
    assert after.missing([document("a new planet"), document("a red planet")]) == 1


def test_a_changed_file_whose_time_was_set_back_is_read_anew(gemb, tmp_path):
    path = vectors_file(gemb, "v.jsonl")
    before = open_teacher(str(path), tmp_path / "cache", Runtime())
    rewrite(path, b"a red planet", b"a new planet")
    after = open_teacher(str(path), tmp_path / "cache", Runtime())
    assert before.fingerprint != after.fingerprint
    assert after.missing([document("a new planet"), document("a red planet")]) == 1


def test_rows_that_failed_are_counted_and_lacking(gemb, tmp_path, capsys):
    path = vectors_file(gemb, "v.jsonl")
    with path.open("a") as file:
        file.write('{"id": 9, "text": "gone", "error": {"code": "failed", "message": "x"}}\n')
    teacher = open_teacher(str(path), tmp_path / "cache", Runtime())
    assert "warning: " in (said := capsys.readouterr().err)
    assert "1 rows have an error in the place of a vector" in said
    with pytest.raises(UsageError, match="lacks 1 of the texts"):
        teacher.fill([document("gone")])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"embedding": [1, 0], "task": "query"}', "line 1: no field 'text' with the text"),
        ('{"text": "a", "task": "query"}', "no vector in it"),
        ("nonsense", "line 1: no row of vectors"),
        ('{"text": "a", "task": "query", "embedding": [0, 0]}', "a vector whose length is not 1"),
        (
            '{"text": "a", "task": "query", "embedding": [1, 0]}\n'
            '{"text": "b", "task": "query", "embedding": [1, 0, 0]}',
            r"line 2: a vector of shape \[3\]; the rows before: \[2\]",
        ),
        (
            '{"text": "a", "task": "query", "embedding": [1, 255], "dtype": "ubinary"}',
            "ubinary vectors are too coarse for a teacher",
        ),
    ],
)
def test_a_file_that_is_no_teacher_is_refused_in_one_line(tmp_path, lines, message):
    path = tmp_path / "v.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(UsageError, match=message):
        open_teacher(str(path), tmp_path / "cache", Runtime())


def test_files_that_hold_no_texts_or_are_not_there_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"and \.npy has none: gemb embed --keep text"):
        open_teacher("v.npy", tmp_path, Runtime())
    with pytest.raises(UsageError, match=r"gone\.jsonl: no such file of vectors"):
        open_teacher(str(tmp_path / "gone.jsonl"), tmp_path, Runtime())


def test_the_cache_is_where_xdg_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert teachers_cache() == Path("/somewhere/gemb/teachers")
    assert rows_cache() == Path("/somewhere/gemb/rows")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert teachers_cache() == Path("/home/x/.cache/gemb/teachers")


def test_a_prediction_counts_what_is_missing_and_leaves_out_the_time_to_load(tiny_model, tmp_path):
    teacher = open_teacher(str(tiny_model), tmp_path / "cache", Runtime())
    texts = wanted([f"{TEXTS[n % 6]} {n}" for n in range(600)])
    filling = teacher.predict(texts)
    assert filling.texts == 600
    assert teacher._encoder is None
    assert teacher.missing(texts) == 600 - 72
    began = time.monotonic()
    teacher.fill(texts)
    took = time.monotonic() - began
    # Of a busy machine no more can be asked than the order of magnitude.
    assert 0.05 * took < filling.seconds < 20 * took
    assert teacher.predict(texts) == (0, 0.0)
