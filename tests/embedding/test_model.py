"""`gemb.Model`: the vectors of `gemb embed`, from threads, streams and reopened pickles."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fake_backend import write_model
from gemb import Model
from gemb.cli import gemb as command
from gemb.errors import GembError, Missing, SomeRowsFailed, UsageError
from gemb.models.references import bundled
from varied_texts import VARIED_TEXTS

TEXTS = ["the quick brown fox", "das Haus\tund der Hund", "0123456789 " * 40, "the quick brown fox"]


@pytest.fixture
def fake(fake_backend, tmp_path) -> Model:
    return Model(write_model(tmp_path / "m.fake", prompts={"query": "q: "}))


def embedded(model: Path, texts: list[str], tmp_path: Path, *options: str) -> np.ndarray:
    """Return what `gemb embed` writes into a .npy file."""
    source, target = tmp_path / "texts.jsonl", tmp_path / "out.npy"
    source.write_text("".join(f"{text}\n" for text in texts))
    words = ["embed", "-m", str(model), str(source), "-I", "lines", "-o", str(target), *options]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return np.load(target)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ((), {}),
        (("--task", "query", "--dim", "48"), {"task": "query", "dim": 48}),
        (("--dtype", "f16"), {"dtype": "f16"}),
        (("--dtype", "int8", "--dim", "48"), {"dtype": "int8", "dim": 48}),
        (("--dtype", "ubinary", "--task", "none"), {"dtype": "ubinary", "task": "none"}),
        (("--prompt", "x: {text}"), {"prompt": "x: {text}"}),
    ],
)
def test_vectors_are_those_of_gemb_embed_bit_by_bit(tiny_gguf, tmp_path, options, arguments):
    texts = [text for text in VARIED_TEXTS if "\n" not in text and text.strip()][:60]
    told = embedded(tiny_gguf, texts, tmp_path, *options)
    with Model(tiny_gguf) as model:
        vectors = model.encode(texts, **arguments)
    assert vectors.dtype == told.dtype
    assert np.array_equal(vectors, told)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_folders_vectors_are_those_of_gemb_embed_with_each_backend(
    tiny_model, tmp_path, backend, monkeypatch
):
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    texts = [text for text in VARIED_TEXTS if "\n" not in text and text.strip()][::4]
    told = embedded(tiny_model, texts, tmp_path, "--backend", backend, "-j", "1")
    with Model(tiny_model, backend=backend, threads=1) as model:
        assert model.backend == backend
        assert np.array_equal(model.encode_document(texts), told)


def test_the_bundled_models_vectors_are_those_of_gemb_embed(tmp_path):
    texts = ["Mars is often called the Red Planet.", "Venus ist heiß."]
    told = embedded(bundled(), texts, tmp_path, "--dim", "128")
    with Model() as model:
        assert np.array_equal(model.encode_document(texts, dim=128), told)
        assert model.profile.dim == 768


def test_titles_change_documents_alone(fake):
    plain = fake.encode_document(["a b"])
    titled = fake.encode_document(["a b"], titles=["t"])
    assert np.array_equal(titled, fake.encode(["title: t | text: a b"], "none"))
    assert np.array_equal(plain, fake.encode_document(["a b"], titles=[None]))
    with pytest.raises(UsageError, match=r"has no place for a title; the task document has one"):
        fake.encode(["a"], "query", titles=["t"])
    with pytest.raises(UsageError, match="titles is one string for several texts"):
        fake.encode_document(["a", "b"], titles="ab")
    with pytest.raises(UsageError, match="1 texts and 2 titles; give as many"):
        fake.encode_document(["a"], titles=["t", "u"])


def test_a_query_and_a_document_have_their_own_prompts(fake):
    assert np.array_equal(fake.encode_query(["a"]), fake.encode(["q: a"], "none"))
    assert np.array_equal(
        fake.encode_document(["a"]), fake.encode(["title: none | text: a"], "none")
    )


def test_one_string_is_one_vector_and_no_text_is_none(fake):
    assert np.array_equal(fake.encode("a b"), fake.encode(["a b"])[0])
    assert fake.encode([]).shape == (0, 768)
    assert fake.encode([], dtype="ubinary").shape == (0, 96)
    assert fake.encode(iter(["a", "b"]), dim=128).shape == (2, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "poem"}, "no task 'poem'; tasks: document, query"),
        ({"dim": 300}, "300 dimensions: the model was trained for 768, 512, 256, 128"),
        ({"dtype": "f64"}, r"dtype='f64'; it is one of f32, f16, int8, ubinary"),
        ({"on_long": "cut"}, r"on_long='cut'; it is one of truncate, error, skip"),
        ({"on_error": "skip"}, r"on_error='skip'; it is one of raise, nan"),
        ({"prompt": "x"}, r"prompt 'x' has no \{text\} where the text goes"),
    ],
)
def test_arguments_that_are_refused(fake, arguments, message):
    with pytest.raises(UsageError, match=message):
        fake.encode(["a"], **arguments)
    with pytest.raises(UsageError, match=message):
        fake.stream(["a"], **arguments)  # at once, not at the first vector


def test_what_is_no_text_is_named_with_its_place(fake):
    with pytest.raises(UsageError, match=r"texts\[1\] is int, not a string"):
        fake.encode(["a", 3])
    with pytest.raises(UsageError, match=r"titles\[0\] is bytes, not a string"):
        fake.encode(["a"], titles=[b"t"])
    with pytest.raises(UsageError, match="texts is one string; encode takes it"):
        fake.stream("abc")
    with pytest.raises(UsageError, match="precision='fp8'; it is one of auto, fp32, bf16, int8"):
        Model(fake.reference, precision="fp8")
    with pytest.raises(Missing, match=r"nosuch\.gguf: no such file or folder"):
        Model("nosuch.gguf")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", "the text is empty"),
        ("a \ud800", "character 3 is no valid UTF-8"),
        ("poison", "RuntimeError: poisoned"),
        ("notfinite", "the model gave numbers that are not finite"),
    ],
)
def test_a_text_without_a_vector_raises_or_is_nan(fake, text, reason):
    texts = ["a", text, "b"]
    with pytest.raises(SomeRowsFailed, match=rf"texts\[1\]: {reason}; on_error='nan' makes"):
        fake.encode(texts)
    vectors = fake.encode(texts, on_error="nan")
    assert np.isnan(vectors[1]).all()
    assert np.array_equal(vectors[[0, 2]], fake.encode(["a", "b"]))
    assert not fake.encode(texts, on_error="nan", dtype="int8")[1].any()
    streamed = fake.stream(texts)
    assert np.array_equal(next(streamed), vectors[0])
    with pytest.raises(SomeRowsFailed, match=r"texts\[1\]"):
        next(streamed)


def test_a_long_text_is_cut_refused_or_left_without_a_vector(fake):
    texts = ["w " * 100, "a"]
    assert np.isfinite(fake.encode(texts)).all()
    with pytest.raises(SomeRowsFailed, match=r"texts\[0\]: 106 tokens; the model takes 32"):
        fake.encode(texts, on_long="error")
    assert np.isnan(fake.encode(texts, on_long="skip")[0]).all()
    assert np.isfinite(fake.encode(texts, on_long="skip")[1]).all()


def test_a_model_that_fails_on_every_text_says_so(fake):
    with pytest.raises(GembError, match="the backend fails on every text: RuntimeError: poisoned"):
        fake.encode(["poison a", "poison b"], on_error="nan")


def test_a_stream_reads_little_ahead_and_gives_what_encode_gives(fake):
    texts = [f"text {number}" for number in range(3000)]
    taken = itertools.count()
    read = 0

    def source():
        nonlocal read
        for text in texts:
            read = next(taken) + 1
            yield text

    vectors = fake.stream(source(), dim=128)
    first = next(vectors)
    assert read < 400, "the stream was read as a list"
    assert np.array_equal(np.stack([first, *vectors]), fake.encode(texts, dim=128))
    vectors = fake.stream(itertools.count(), "query")
    with pytest.raises(UsageError, match=r"texts\[0\] is int"):
        next(vectors)


def test_threads_get_what_one_thread_gets(tiny_gguf):
    texts = [text for text in VARIED_TEXTS if text.strip()][:64]
    parts = [texts[begin::8] for begin in range(8)]
    with Model(tiny_gguf, threads=1) as model:
        alone = [model.encode(part, dim=48) for part in parts]
        barrier = threading.Barrier(8)

        def work(part: list[str]) -> np.ndarray:
            barrier.wait()
            return model.encode(part, dim=48)

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(work, parts))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_a_thread_that_never_rests_leaves_others_their_turn(fake_backend, tmp_path):
    path = write_model(tmp_path / "slow.fake", sleep_s=0.02)
    waits: list[int] = []  # calls of the other
    with Model(path) as model:
        is_done = threading.Event()
        number = 0

        def busy() -> None:
            nonlocal number
            while not is_done.is_set():
                number += 1
                model.encoder.encode([np.array([2, number % 99, 1], np.int32)])

        thread = threading.Thread(target=busy)
        thread.start()
        for turn in range(10):
            before = number
            model.encode_query(f"text {turn}")
            waits.append(number - before)
        is_done.set()
        thread.join()
    assert sorted(waits)[5] < 10  # it has two turns of its own


def test_similarity_is_the_cosine_in_every_type(fake):
    texts = ["a b c", "d e", "f"]
    whole = fake.encode(texts)
    cosines = whole.astype(float) @ whole.T.astype(float)
    assert np.allclose(fake.similarity(whole, whole), cosines, atol=1e-6)
    for dtype, error in (("f16", 1e-3), ("int8", 0.02)):
        stored = fake.encode(texts, dtype=dtype)
        assert np.allclose(fake.similarity(stored, stored), cosines, atol=error)
    bits = fake.encode(texts, dtype="ubinary")
    signs = np.where(whole > 0, 1.0, -1.0)
    assert np.allclose(fake.similarity(bits, bits), signs @ signs.T / 768, atol=1e-6)
    assert fake.similarity(whole[0], whole).shape == (3,)
    assert fake.similarity(whole[0], whole[0]).shape == ()
    assert fake.similarity(whole[:2], whole).dtype == np.float32
    with pytest.raises(UsageError, match="vectors of 768 and of 128 components; encode both"):
        fake.similarity(whole, fake.encode(texts, dim=128))


def test_a_closed_model_says_so(fake):
    with fake:
        fake.encode(["a"])
    fake.close()
    with pytest.raises(UsageError, match=r"the model is closed; open it again: Model\(...\)"):
        fake.encode(["a"])
    with pytest.raises(UsageError, match="the model is closed"):
        fake.stream(["a"])


def test_a_pickle_is_the_reference_and_opens_the_same_model(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model("m.fake")
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir("/")  # a worker may be elsewhere
    again = pickle.loads(data)
    assert np.array_equal(again.encode(["a b"]), model.encode(["a b"]))
    assert "m.fake" in repr(again)
    write_model(tmp_path / "m.fake", name="another")
    with pytest.raises(UsageError, match=r"m\.fake is another model here: its fingerprint is"):
        pickle.loads(data)


def test_the_name_of_a_model_stays_a_name_beside_a_folder_that_is_named_so(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    with Model("mini") as model:
        _, (reference, *_) = model.__reduce__()
    assert reference == "mini"


def test_a_pickle_keeps_what_it_was_opened_with(fake, monkeypatch):
    asked = []
    with Model(fake.reference, download=False) as model:
        data = pickle.dumps(model)

    def resolve(reference, *, download):
        asked.append(download)
        return Path(reference)

    monkeypatch.setattr("gemb.embedding.model.resolve", resolve)
    pickle.loads(data).close()
    pickle.loads(pickle.dumps(fake)).close()
    assert asked == [False, True]


def test_a_worker_process_reopens_the_model(fake, tmp_path):
    data = tmp_path / "model.pickle"
    data.write_bytes(pickle.dumps(fake))
    program = (
        "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb'));"
        "sys.stdout.buffer.write(model.encode(['a b', 'c']).tobytes())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program, str(data)],
        env=environment,
        capture_output=True,
        check=True,
    )
    vectors = np.frombuffer(done.stdout, np.float32).reshape(2, 768)
    assert np.array_equal(vectors, fake.encode(["a b", "c"]))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own(fake):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            fake.encode(["a"])
        except UsageError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert "opened before this process was forked" in pipe.read()
    assert fake.encode(["a"]).shape == (1, 768)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_may_close_it_while_its_parent_is_at_work(fake):
    with fake.encoder._turn:  # as a thread that is not in the child
        child = os.fork()
        if not child:
            fake.close()
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert fake.encode(["a"]).shape == (1, 768)
