"""Pulling: the real huggingface_hub, in a process of its own, against a hub on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fake_hub import FakeHub, serve
from gemb.errors import UsageError
from gemb.io.text import size_in_words
from gemb.models.hub import HubFile, _hub_file, check, is_needed, remove
from gemb.models.hub_cache import HubName, find
from gemb.models.references import locate

WEIGHTS = bytes(range(256)) * 2000
FOLDER = {
    "README.md": b"---\nlicense: gemma\n---\n",
    "docs/notes.md": b"# notes",
    "config.json": b'{"a": 1}',
    "tokenizer.json": b'{"b": 2}',
    "modules.json": b'[{"type": "x.Dense", "path": "2_Dense"}]',
    "model.safetensors": WEIGHTS,
    "2_Dense/config.json": b'{"c": 3}',
    "2_Dense/model.safetensors": b"dense weights",
    "2_Dense/pytorch_model.bin": b"a pickle",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"something else",
}
NEEDED = {name for name in FOLDER if is_needed(name)}


CODE = """
import sys
from gemb.errors import GembError
from gemb.io.notes import speak
from gemb.models.references import resolve
speak()
try:
    print(resolve(sys.argv[1]))
except GembError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


class Pull:
    """Run gemb's own functions, or a command of it, against the hub."""

    def __init__(self, hub: FakeHub, home) -> None:
        self.hub = hub
        self.home = home
        self.env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            self.env.pop(name, None)

    def resolve(self, reference: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CODE, reference]
        return subprocess.run(command, capture_output=True, text=True, env=self.env, check=False)

    def gemb(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gemb", *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self.env,
            check=False,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture
def pull(tmp_path):
    with serve(FakeHub(dict(FOLDER))) as hub:
        yield Pull(hub, tmp_path / "hf")


def test_only_what_opening_needs_is_downloaded_and_the_amount_is_said_first(pull):
    answer = pull.resolve("org/model")
    size = size_in_words(sum(len(FOLDER[name]) for name in NEEDED))
    assert f"downloading org/model: {size} in 7 files, licence gemma" in answer.stderr
    address = re.compile("/org/model/resolve/[^/]+/(.+)")
    got = {match[1] for _, path, _ in pull.hub.requests if (match := address.fullmatch(path))}
    assert got == NEEDED
    assert not any(name.endswith((".bin", ".onnx")) for name in got)
    folder = Path(answer.stdout.strip())
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == NEEDED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_what_is_in_the_cache_asks_the_network_nothing(pull):
    pull.resolve("org/model")
    pull.hub.requests.clear()
    answer = pull.resolve("org/model")
    assert answer.stdout.endswith("c" * 40 + "\n")
    assert (answer.stderr, pull.hub.requests) == ("", [])


def test_one_file_of_a_repository_is_pulled_alone(pull):
    pull.hub.files["q/m.gguf"] = b"GGUF and so on"
    answer = pull.resolve("org/model:q/m.gguf")
    assert answer.stdout.endswith("/q/m.gguf\n")
    assert "14 B in 1 file, licence gemma" in answer.stderr


def test_a_killed_download_goes_on_where_it_stopped(pull):
    large = np.random.default_rng(0).bytes(24_000_000)
    pull.hub.files["model.safetensors"] = large
    pull.hub.stall_after = 12_000_000
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "org/model"],
        env=pull.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    blobs = pull.home / "hub" / "models--org--model" / "blobs"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 10_000_000 for path in blobs.glob("*.gemb-partial")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    [partial] = blobs.glob("*.gemb-partial")
    begun = partial.stat().st_size
    assert 10_000_000 < begun < 24_000_000
    pull.hub.stall_after = 0
    pull.hub.requests.clear()
    answer = pull.resolve("org/model")
    small = sum(len(FOLDER[name]) for name in NEEDED - {"model.safetensors"})
    left = size_in_words(24_000_000 - begun + small)
    assert f"24 MB in 7 files, {left} of it" in answer.stderr
    gets = [
        span for method, path, span in pull.hub.requests if method == "GET" and "model.s" in path
    ]
    assert gets[0] == f"bytes={begun}-"
    assert (Path(answer.stdout.strip()) / "model.safetensors").read_bytes() == large
    assert not list(blobs.glob("*.gemb-partial"))


def test_a_connection_that_breaks_again_and_again_is_taken_up_where_it_broke(pull):
    pull.hub.break_after = 200_000
    answer = pull.resolve("org/model")
    assert (Path(answer.stdout.strip()) / "model.safetensors").read_bytes() == WEIGHTS
    spans = [
        span
        for method, path, span in pull.hub.requests
        if method == "GET" and path.endswith("/model.safetensors") and "2_Dense" not in path
    ]
    assert spans == ["bytes=0-", "bytes=200000-", "bytes=400000-"]


def test_a_file_of_which_nothing_more_comes_is_kept_for_the_next_time(pull):
    pull.hub.break_after, pull.hub.total = 200_000, 400_000
    answer = pull.resolve("org/model")
    assert answer.returncode != 0
    assert answer.stderr.splitlines()[-1].startswith("4 cannot get org/model/model.safetensors: ")
    assert "it sends nothing of model.safetensors beyond byte 400000" in answer.stderr
    [partial] = (pull.home / "hub" / "models--org--model" / "blobs").glob("*.gemb-partial")
    assert partial.read_bytes() == WEIGHTS[:400_000]


def test_a_revision_is_noted_so_that_it_is_found_again_without_the_network(pull):
    first = pull.resolve("org/model@v1")
    assert first.stdout.endswith("/models--org--model/snapshots/" + "c" * 40 + "\n")
    refs = pull.home / "hub" / "models--org--model" / "refs"
    assert {path.name: path.read_text() for path in refs.iterdir()} == {"v1": "c" * 40}
    pull.env["HF_HUB_OFFLINE"] = "1"
    for reference in ("org/model@v1", "org/model@" + "c" * 40):
        assert pull.resolve(reference).stdout == first.stdout
    assert "gemb models pull org/model" in pull.resolve("org/model").stderr, "no main"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_says_is_removed(pull, name):
    pull.hub.lie = name
    answer = pull.resolve("org/model")
    assert answer.stderr.splitlines()[-1] == (
        f"5 {name}: the download is broken, and removed; run the command again"
    )
    snapshot = pull.home / "hub" / "models--org--model" / "snapshots" / ("c" * 40)
    assert not (snapshot / name).exists()


def test_a_gated_model_says_where_to_click_and_what_to_set(pull):
    pull.hub.gated = True
    answer = pull.resolve("org/model")
    assert answer.stderr.splitlines()[-1].endswith(
        f"is gated: accept its licence at {pull.hub.url}/org/model, "
        "then set HF_TOKEN or run: hf auth login"
    )
    assert answer.stderr.splitlines()[-1].startswith("4 ")
    assert "licence gemma, gated" in answer.stderr


def test_a_repository_that_is_not_there_may_have_been_meant_as_a_path(pull):
    answer = pull.resolve("org/other")
    assert answer.stderr.startswith("4 'org/other' is no path here and no model on the hub")
    assert answer.stderr.count("\n") == 1


def test_a_repository_of_gguf_files_alone_names_them(pull):
    pull.hub.files.clear()
    pull.hub.files.update({"a.gguf": b"1", "b.gguf": b"2"})
    answer = pull.resolve("org/model")
    assert answer.stderr == (
        "2 org/model on the hub is no model folder: it has no config.json; "
        "it has a.gguf, b.gguf: name one after a colon\n"
    )
    answer = pull.resolve("org/model:c.gguf")
    assert answer.stderr.startswith("4 org/model on the hub has no file 'c.gguf'; it has a.gguf,")


def test_a_hub_that_cannot_be_reached_is_one_line(pull):
    pull.env["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing listens there
    answer = pull.resolve("org/model")
    assert answer.stderr.startswith(
        "4 cannot get org/model: http://127.0.0.1:9 cannot be reached ("
    )
    assert answer.stderr.count("\n") == 1


def test_a_removed_model_is_gone_and_another_revision_keeps_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--model"
    for folder in ("blobs", "refs", "snapshots/c1", "snapshots/c2"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("c1")
    (repo / "blobs" / "b1").write_bytes(b"12345")
    for commit in ("c1", "c2"):
        (repo / "snapshots" / commit / "m.gguf").symlink_to("../../blobs/b1")
    assert remove(HubName("org/model", "m.gguf")) == 0
    assert (repo / "snapshots/c2/m.gguf").read_bytes() == b"12345"
    assert remove(HubName("org/model", "m.gguf", "c2")) == 5
    assert not (repo / "blobs" / "b1").exists()
    (repo / "blobs" / "b2").write_bytes(b"1234567")
    (repo / "snapshots/c1/config.json").symlink_to("../../blobs/b2")
    assert remove(HubName("org/model")) == 7
    assert not repo.exists()


def test_a_download_that_never_came_to_a_snapshot_is_removed_and_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "b1.gemb-partial").write_bytes(b"12345")
    assert remove(HubName("org/model")) == 5
    assert not blobs.parent.exists()


def test_what_a_stopped_download_left_beside_a_snapshot_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--model"
    for folder in ("blobs", "refs", "snapshots/c1"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("c1")
    (repo / "blobs" / "b1").write_bytes(b"1234567")
    (repo / "blobs" / "b2.gemb-partial").write_bytes(b"12345")
    (repo / "snapshots/c1/config.json").symlink_to("../../blobs/b1")
    assert remove(HubName("org/model")) == 12
    assert not repo.exists()


def test_a_digest_is_gits_for_small_files(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`
    check(path, HubFile("a", 6, "", "ce013625030ba8dba906f756967f9e9ca394464a"))


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (33_385_008, "33.4 MB"), (1_251_000_000, "1.25 GB")],
)
def test_sizes_are_shown_in_powers_of_ten(size, shown):
    assert size_in_words(size) == shown


@pytest.mark.parametrize(
    "reference",
    [
        "org/repo:../../../../victim.txt",
        "org/repo:a/../../b.gguf",
        "org/repo:/etc/passwd",
        "org/repo@../..",
        "org/repo@../../../x:m.gguf",
        "org/repo@/etc",
        "org/repo:..",
        f"org/repo:{'a' * 256}.gguf",
    ],
)
def test_a_name_that_leaves_the_repository_is_refused(reference: str):
    with pytest.raises(UsageError, match="leaves the repository, or is too long; write it"):
        locate(reference)


def test_dots_inside_a_name_are_a_name():
    assert locate("org/repo:a..b/..c.gguf") == HubName("org/repo", "a..b/..c.gguf")
    assert locate("org/repo@refs/pr/1") == HubName("org/repo", "", "refs/pr/1")


def test_removing_a_file_removes_nothing_outside_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--model"
    for folder in ("blobs", "refs", "snapshots/c1"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("c1")
    victim = tmp_path / "outside" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("precious")
    (repo / "snapshots/c1/link.gguf").symlink_to(victim)
    (repo / "snapshots/c1/folder").symlink_to(victim.parent)
    assert remove(HubName("org/model", "link.gguf")) == 0  # the link goes, not what it leads to
    assert not (repo / "snapshots/c1/link.gguf").is_symlink()
    with pytest.raises(UsageError, match="a link leads out of the hub cache"):
        remove(HubName("org/model", "folder/victim.txt"))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("commit", ["../../../outside", "/etc", "..", ""])
def test_a_ref_that_leads_out_of_the_cache_is_no_model(tmp_path, monkeypatch, commit: str):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "m.gguf").write_bytes(b"GGUF")
    (repo / "refs" / "main").write_text(commit)
    assert find(HubName("org/model", "m.gguf")) is None


@pytest.mark.parametrize(
    ("name", "digest"), [("../x.json", ""), ("/x.json", ""), ("x.safetensors", "../../x")]
)
def test_a_hub_that_names_a_file_outside_the_cache_is_refused(name: str, digest: str):
    sibling = SimpleNamespace(
        rfilename=name, size=1, lfs={"sha256": digest} if digest else None, blob_id="0"
    )
    with pytest.raises(UsageError, match="would be written outside the cache; pull another model"):
        _hub_file(HubName("org/model"), sibling)
