"""A backend without a tensor library, as a third party would install it: a folder on the path.

Its vectors depend on every token id and its place, so that a wrong, lost or swapped text shows. A
model is a JSON file `*.fake`; its keys are those of `FakeModel` below. A text with the word
`poison` makes `encode` raise, one with `notfinite` gives NaN, and one with `deadly` kills the
process, as the system does that has no more memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

PLUGIN = """
import json, os, re, resource, signal, time, zlib
from dataclasses import dataclass, field
from pathlib import Path

from gemb.backend import Backend, Check, ModelDescription, ModelProfile
from gemb.errors import UsageError

BOS, EOS = 2, 1


@dataclass(frozen=True)
class FakeModel:
    dim: int = 768
    dims: tuple = (768, 512, 256, 128)
    max_tokens: int = 32
    prompts: dict = field(default_factory=dict)
    sleep_s: float = 0.0  # each time that encode is called
    log: str = ""  # file to which encode appends the number of texts, a line a call
    name: str = "fake"
    is_leaky: bool = False  # a text's vector depends on the other texts of its batch
    bias: float = 0.0  # that all vectors have in common
    draft_of: tuple = ()  # fingerprints
    is_bag: bool = False  # a text's vector is the sum of its words', prompts and titles left out
    poison: str = "poison"  # the word on which it fails
    file_limit: int = 0  # bytes of a file, from the first text on: a disk that is full


def word_id(word):
    return 10 + zlib.crc32(word.encode()) % 50000


class FakeEncoder:
    def __init__(self, model):
        import numpy as np
        self.np = np
        self.model = model
        self.profile = ModelProfile(
            dim=model.dim, matryoshka_dims=tuple(model.dims), max_tokens=model.max_tokens,
            closing_tokens=1, prompts=model.prompts, dtype="fp32",
            fingerprint=f"{zlib.crc32(model.name.encode()):016x}",
            draft_of=tuple(model.draft_of),
        )
        random = np.random.default_rng(0)
        self.tables = random.standard_normal((2, 1021, model.dim)).astype(np.float32)
        self.weights = random.integers(1, 1 << 40, (2, 1 << 17))

    def tokenize(self, texts):
        np = self.np
        return [
            np.array([BOS, *(word_id(word) for word in text.split()), EOS], np.int32)
            for text in texts
        ]

    def encode(self, batch):
        np = self.np
        if self.model.log:
            with open(self.model.log, "a") as log:
                log.write(f"{len(batch)}\\\\n")
        time.sleep(self.model.sleep_s)
        if self.model.file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.model.file_limit,) * 2)
        for ids in batch:
            if word_id("deadly") in ids:
                os.kill(os.getpid(), signal.SIGKILL)
            assert 1 <= len(ids) <= self.model.max_tokens and ids.dtype == np.int32
            if word_id(self.model.poison) in ids:
                raise RuntimeError("poisoned")
        slots = np.array([
            [int((self.weights[side, :len(ids)] * ids).sum() >> 7) % 1021 for side in (0, 1)]
            for ids in batch
        ])
        vectors = self.tables[0][slots[:, 0]] + self.tables[1][slots[:, 1]]
        if self.model.is_bag:
            vectors = np.array([self.bag(ids) for ids in batch])
        if self.model.is_leaky:
            vectors = vectors + vectors.mean(axis=0)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + self.model.bias
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for row, ids in enumerate(batch):
            if word_id("notfinite") in ids:
                vectors[row] = np.nan
        return vectors


    def bag(self, ids):
        np = self.np
        words = [one for one in ids.tolist() if one not in (BOS, EOS)]
        for mark in ("text:", "query:"):
            if word_id(mark) in words:
                words = words[words.index(word_id(mark)) + 1:]
        return sum(
            (np.random.default_rng(one).standard_normal(self.model.dim) for one in words),
            np.full(self.model.dim, 1e-3),
        ).astype(np.float32)


class FakeBackend(Backend):
    name = "fake"

    def can_open(self, model):
        return model.suffix == ".fake"

    def open(self, model, runtime):
        return FakeEncoder(FakeModel(**json.loads(Path(model).read_text())))

    def describe(self, model):
        text = Path(model).read_text()
        if not text.startswith("{"):
            raise UsageError(f"{model}: not JSON")
        fake = FakeModel(**json.loads(text))
        return ModelDescription(
            path=model, format="json", architecture="fake", layers=2, hidden=96, dim=fake.dim,
            matryoshka_dims=tuple(fake.dims), max_tokens=fake.max_tokens, vocabulary=50010,
            parameters=1500000, pooling="mean", dense=((96, 160), (160, fake.dim)),
            prompts=fake.prompts, types={"token_embd": "q4_0", "norm": "f32", "dense": "q8_0"},
            size_bytes=12345678, fingerprint=f"{zlib.crc32(fake.name.encode()):016x}",
            licence="gemma", draft_of=tuple(fake.draft_of),
        )

    def checks(self):
        if os.environ.get("FAKE_BROKEN"):
            return [Check("library", False, "not installed", "pip install fake")]
        return [Check("library", True, "1.0")]
""".replace("\\\\n", "\\n")


def install(folder: Path) -> Path:
    """Write the plugin as an installed distribution into the folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gemb_fake.py").write_text(PLUGIN)
    info = folder / "gemb_fake_dist-1.0.dist-info"
    info.mkdir(exist_ok=True)
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: gemb-fake-dist\nVersion: 1.0\n"
    )
    info.joinpath("entry_points.txt").write_text("[gemb.backends]\nfake = gemb_fake:FakeBackend\n")
    return folder


def write_model(path: Path, **settings: object) -> Path:
    """Write a model that the fake backend opens, and return its path."""
    path.write_text(json.dumps(settings))
    return path


class Gemb:
    """Runs `gemb` as a process that has the fake backend, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        plugins = install(folder.parent / f"{folder.name}-plugins")
        self.model = write_model(folder / "model.fake")
        self.environment = {
            **os.environ,
            # Before what is there: that may be the tree under test.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(plugins), os.environ.get("PYTHONPATH", "")])
            ),
            "GEMB_MODEL": "model.fake",
            "PYTHONUNBUFFERED": "",
        }

    def __call__(
        self, *arguments: str, stdin: bytes | str = b"", **more: object
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `gemb` with these arguments to its end."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return subprocess.run(
            self.command(*arguments),
            input=data,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=False,
            **{"timeout": 180, **more},
        )

    def start(self, *arguments: str, **more: object) -> subprocess.Popen[bytes]:
        """Start `gemb` with pipes on all three streams."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.environment, **{**pipes, **more}
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what is still running, and close its pipes."""
        for process in self._started:
            process.kill()
            process.wait()
            for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gemb", *arguments]
