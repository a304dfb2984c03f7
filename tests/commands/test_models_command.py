"""`gemb models`, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_backend import write_model
from fake_hub import FakeHub, serve
from gemb.models.checkpoint import describe_folder, open_checkpoint

FOLDER = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b'{"b": 2}',
    "model.safetensors": bytes(1000),
}


@pytest.fixture
def gemb_at_hub(gemb, tmp_path):
    """`gemb` with an empty cache, and a hub on this machine that has org/model."""
    with serve(FakeHub(dict(FOLDER))) as hub:
        gemb.hub = hub
        gemb.cache = tmp_path / "hf" / "hub"
        gemb.environment.update(
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), XDG_DATA_HOME=str(tmp_path / "share")
        )
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            gemb.environment.pop(name, None)
        yield gemb


def test_show_says_what_a_model_is(gemb):
    write_model(gemb.folder / "a.fake", prompts={"query": "Q: "})
    answer = gemb("models", "show", "a.fake")
    assert answer.stdout.decode().splitlines() == [
        f"path          {gemb.folder / 'a.fake'}",
        "format        json",
        "engine        fake",
        "architecture  fake",
        "size          12.3 MB, 1.5 M parameters",
        "layers        2, 96 wide",
        "pooling       mean, dense 96 to 160, 160 to 768",
        "vectors       768 wide; also 512, 256, 128",
        "context       32 tokens",
        "vocabulary    50010 tokens",
        "types         token_embd q4_0",
        "              dense q8_0",
        "              norm f32",
        "prompts       query 'Q: '",
        f"fingerprint   00000000{crc('fake')}",
        "licence       gemma (Gemma Terms of Use: https://ai.google.dev/gemma/terms)",
        "              Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        "terms         gemb models show a.fake --terms",
    ]
    found = json.loads(gemb("models", "show", "--json", "a.fake").stdout)
    assert found["reference"] == "a.fake"
    assert found["path"] == str(gemb.folder / "a.fake")
    assert found["dense"] == [[96, 160], [160, 768]]
    assert found["types"] == {"token_embd": "q4_0", "norm": "f32", "dense": "q8_0"}
    assert found["prompts"] == {"query": "Q: "}
    assert found["size_bytes"] == 12345678


def test_show_says_for_which_types_a_model_was_trained(gemb, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "trained")
    types = {"token_embd": "q4_0", "attention": "q8_0", "ffn": "q4_0", "dense": "q8_0"}
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "gemb_qat": types}))
    assert gemb("export-gguf", str(folder), "-o", "a.gguf", "--no-verify").returncode == 0
    for model in (str(folder), "a.gguf"):
        shown = gemb("models", "show", model).stdout.decode()
        assert "trained for   q4_0 (token_embd, ffn), q8_0 (attention, dense)\n" in shown
        assert json.loads(gemb("models", "show", "--json", model).stdout)["trained_types"] == types
    assert b"trained for" not in gemb("models", "show", str(tiny_model)).stdout


def test_show_of_a_real_folder_is_what_its_files_say(gemb, tiny_model):
    from safetensors import safe_open

    found = json.loads(gemb("models", "show", "--json", str(tiny_model)).stdout)
    config = json.loads((tiny_model / "config.json").read_text())
    count = 0
    for path in tiny_model.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            count += sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert found["parameters"] == count
    assert found["layers"] == config["num_hidden_layers"]
    assert found["vocabulary"] == config["vocab_size"]
    assert found["max_tokens"] == config["max_position_embeddings"]
    assert found["matryoshka_dims"] == [96, 48]
    assert found["dense"] == [[96, 160], [160, 96]]
    assert found["types"] == dict.fromkeys(
        ("token_embd", "norm", "attention", "ffn", "dense"), "f32"
    )
    kept = [path for path in tiny_model.rglob("*") if path.is_file() and path.parent == tiny_model]
    kept += list(tiny_model.glob("*_Dense/*.safetensors"))
    assert found["size_bytes"] == sum(path.stat().st_size for path in kept)
    assert found["licence"] == ""


def test_show_needs_no_torch(gemb, tiny_model):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tokenizers'] = None\n"
        f"sys.argv = ['gemb', 'models', 'show', {str(tiny_model)!r}]\n"
        "from gemb.cli import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert b"gemma3_text" in answer.stdout


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, ""),
        ("---\ntags:\n- a\nlicense: gemma\n---\nlicense: other\n", "gemma"),
        ("---\ntitle: a---b\nlicense: 'gemma' # ours\n---\n", "gemma"),
        ("---\nlicense:\nlanguage: en\n---\n", ""),
        ("---\ntags: a\n---\nlicense: other\n", ""),
        ("license: other\n", ""),
    ],
)
def test_the_licence_is_read_from_the_model_card(tiny_model, tmp_path, card, licence):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if card is not None:
        (folder / "README.md").write_text(card)
    assert open_checkpoint(folder).licence() == licence
    assert describe_folder(folder).licence == licence


def crc(name: str) -> str:
    import zlib

    return f"{zlib.crc32(name.encode()):08x}"


def test_show_of_no_model_leaves_with_2_and_of_no_file_with_4(gemb):
    (gemb.folder / "notes.txt").write_text("x")
    answer = gemb("models", "show", "notes.txt")
    assert answer.returncode == 2
    assert answer.stderr.startswith(b"gemb: notes.txt: no model that a backend knows")
    answer = gemb("models", "show", "./nosuch")
    assert (answer.returncode, answer.stderr) == (4, b"gemb: nosuch: no such file or folder\n")


def test_ls_lists_what_can_be_run_and_marks_the_default(gemb_at_hub):
    answer = gemb_at_hub("models", "ls", "--json")
    found = {row["reference"]: row for row in json.loads(answer.stdout)}
    assert found["model.fake"]["default"]
    assert found["model.fake"]["dim"] == 768
    table = gemb_at_hub("models", "ls").stdout.decode().splitlines()
    assert table[0].split() == ["NAME", "SIZE", "TYPE", "DIM", "CONTEXT", "FINGERPRINT"]
    row = next(line for line in table if line.startswith("model.fake"))
    name, mark, *numbers, fingerprint = row.split()
    assert (name, mark, fingerprint) == ("model.fake", "(default)", f"00000000{crc('fake')}")
    assert numbers == ["12.3", "MB", "q4_0+q8_0", "768", "32"]


def test_ls_counts_what_gemb_cannot_run(gemb_at_hub):
    folder = gemb_at_hub.cache / "models--org--llm" / "snapshots" / "c1"
    folder.mkdir(parents=True)
    (folder / "chat.gguf").write_bytes(b"no model")
    answer = gemb_at_hub("models", "ls")
    assert b"chat.gguf" not in answer.stdout
    assert b"1 other model in " in answer.stderr
    assert answer.returncode == 0


def test_path_prints_where_a_model_is_and_downloads_nothing(gemb_at_hub):
    answer = gemb_at_hub("models", "path", "model.fake")
    assert answer.stdout.decode() == f"{gemb_at_hub.folder / 'model.fake'}\n"
    answer = gemb_at_hub("models", "path", "org/model")
    assert answer.returncode == 4
    assert b"gemb models pull org/model" in answer.stderr
    assert gemb_at_hub.hub.requests == []


def test_pull_says_size_and_licence_first_and_prints_the_path(gemb_at_hub):
    answer = gemb_at_hub("models", "pull", "org/model")
    assert answer.returncode == 0, answer.stderr
    [first, *_] = answer.stderr.decode().splitlines()
    assert first == (
        f"gemb: note: org/model: 1.02 kB in 3 files, licence gemma, to {gemb_at_hub.cache}"
    )
    folder = Path(answer.stdout.decode().strip())
    assert {path.name for path in folder.iterdir()} == set(FOLDER)
    assert gemb_at_hub("models", "path", "org/model").stdout == answer.stdout


def test_a_second_pull_checks_what_is_here(gemb_at_hub):
    folder = Path(gemb_at_hub("models", "pull", "org/model").stdout.decode().strip())
    answer = gemb_at_hub("models", "pull", "org/model")
    assert b"all of it is here, and as the hub has it (3 files checked)" in answer.stderr
    weights = (folder / "model.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(bytes(999) + b"x")
    answer = gemb_at_hub("models", "pull", "org/model")
    assert answer.returncode == 5
    assert b"model.safetensors: the download is broken, and removed; run the" in answer.stderr
    assert gemb_at_hub("models", "pull", "org/model").returncode == 0
    assert (folder / "model.safetensors").read_bytes() == bytes(1000)


def test_pull_offline_leaves_with_4(gemb_at_hub):
    gemb_at_hub.environment["HF_HUB_OFFLINE"] = "1"
    answer = gemb_at_hub("models", "pull", "org/model")
    assert answer.returncode == 4
    assert answer.stderr == (
        b"gemb: cannot ask the hub for org/model: HF_HUB_OFFLINE is set; unset it to pull\n"
    )
    answer = gemb_at_hub("embed", "-m", "org/model", stdin="a\n")
    assert answer.returncode == 4
    assert b"(no config.json), and HF_HUB_OFFLINE forbids to fetch it" in answer.stderr


def test_pull_of_a_path_or_a_typed_name_has_nothing_to_pull(gemb_at_hub):
    answer = gemb_at_hub("models", "pull", "model.fake")
    assert answer.returncode == 0
    assert b"nothing to pull" in answer.stderr
    answer = gemb_at_hub("models", "pull", "embeddinggemma-300m:q8_0")
    assert answer.returncode == 4
    assert b"gemb export-gguf embeddinggemma-300m --outtype q8_0 -o" in answer.stderr


def test_rm_needs_yes_off_a_terminal_and_frees_the_space(gemb_at_hub):
    gemb_at_hub("models", "pull", "org/model")
    answer = gemb_at_hub("models", "rm", "org/model")
    assert answer.returncode == 2
    assert answer.stderr == b"gemb: rm asks on a terminal; elsewhere it requires --yes\n"
    answer = gemb_at_hub("models", "rm", "--yes", "org/model")
    assert answer.returncode == 0
    assert b"removed org/model: 1.02 kB freed" in answer.stderr
    assert not (gemb_at_hub.cache / "models--org--model").exists()
    answer = gemb_at_hub("models", "rm", "--yes", "org/model")
    assert answer.returncode == 4
    assert b"org/model is not in the hub cache" in answer.stderr


def test_rm_touches_no_file_of_the_users(gemb_at_hub):
    answer = gemb_at_hub("models", "rm", "--yes", "model.fake")
    assert answer.returncode == 2
    assert b"model.fake is not in the hub cache; remove model.fake yourself" in answer.stderr
    assert (gemb_at_hub.folder / "model.fake").exists()


def test_rm_tells_nobody_to_remove_the_bundled_model(gemb_at_hub):
    answer = gemb_at_hub("models", "rm", "--yes", "mini")
    assert answer.returncode == 2
    assert answer.stderr == b"gemb: mini comes with gemb, and goes with it alone\n"


@pytest.mark.parametrize(
    "reference", ["org/repo:../../../../victim.txt", "{made}/../../../victim.txt"]
)
def test_rm_leaves_what_is_outside_of_the_cache(gemb_at_hub, tmp_path, reference: str):
    made = tmp_path / "share" / "gemb" / "models"
    made.mkdir(parents=True)
    snapshot = gemb_at_hub.cache / "models--org--repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = gemb_at_hub.cache / "models--org--repo" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    victims = [tmp_path / "victim.txt", gemb_at_hub.cache.parent / "victim.txt"]
    for victim in victims:
        victim.write_text("precious")
    answer = gemb_at_hub("models", "rm", "--yes", reference.format(made=made))
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count(b"\n") == 1
    assert [victim.read_text() for victim in victims] == ["precious", "precious"]


def test_rm_removes_a_file_that_was_made_here(gemb_at_hub, tmp_path):
    made = tmp_path / "share" / "gemb" / "models" / "embeddinggemma-300m-bf16.gguf"
    made.parent.mkdir(parents=True)
    made.write_bytes(bytes(2000))
    answer = gemb_at_hub("models", "rm", "--yes", "embeddinggemma-300m:bf16")
    assert answer.returncode == 0
    assert b"2 kB freed" in answer.stderr
    assert not made.exists()


def test_a_question_on_a_terminal_is_asked(gemb_at_hub):
    import pty

    gemb_at_hub("models", "pull", "org/model")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemb", "models", "rm", "org/model"],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=gemb_at_hub.environment,
        cwd=gemb_at_hub.folder,
    )
    os.close(theirs)
    os.write(ours, b"n\n")
    assert process.wait(30) == 130
    assert b"remove org/model? [y/N]" in os.read(ours, 10_000)
    os.close(ours)
    assert (gemb_at_hub.cache / "models--org--model").exists()
