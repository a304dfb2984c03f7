"""Broken and hostile GGUF files: bytes, lengths, keys, types, values and tensors that are wrong.

`gemb models show` and `gemb embed` look at each: it is refused by both, exit code 2, or taken by
both, and then every row is a unit vector, or an error. Most are refused, which this process sees by
itself; of these the commands get one of twenty. Where the vectors of a file that was taken are
others than the whole file's, something must have changed that decides about them: the numbers of a
tensor, the vocabulary, or one of `DECIDES`.
"""

from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from campaign import Case, Fault, gemb, judge, main, refused

from gemb.models.gguf_header import VALUE_TYPES
from gemb_llamacpp import LlamaCppBackend

TEXTS = (
    "hello world",
    "  the quick\n\n brown <unused0> fox \t日本 zq ▁▁ <h1> É",
    " ".join(["the lazy dog and what is the planet known as"] * 4),
)
DECIDES = (  # keys, or how they begin: with another value of a right type a file is another model
    "gemb.prompt.",
    "gemma-embedding.attention.layer_norm_rms_epsilon",
    "gemma-embedding.attention.sliding_window",
    "gemma-embedding.context_length",
    "gemma-embedding.pooling_type",
    "gemma-embedding.rope.freq_base",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.tokens",
)
CODES = {code: format_ for code, (_, format_) in VALUE_TYPES.items()}
STRING, ARRAY = 8, 9


@dataclass
class Key:
    """One entry of the metadata; `raw` is the value as it stands in the file."""

    name: bytes
    type: int
    raw: bytes


@dataclass
class Tensor:
    """One entry of the tensors' table."""

    name: bytes
    shape: list[int]
    type: int
    offset: int

    def encoded(self) -> bytes:
        shape = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *self.shape)
        return _text(self.name) + shape + struct.pack("<IQ", self.type, self.offset)


@dataclass
class Gguf:
    """A file in its parts."""

    keys: list[Key]
    tensors: list[Tensor]
    data: bytes
    version: int = 3
    more_keys: int = 0  # that the count names beyond those that are there
    more_tensors: int = 0
    alignment: int = 32

    def encoded(self) -> bytes:
        counts = len(self.tensors) + self.more_tensors, len(self.keys) + self.more_keys
        parts = [b"GGUF", struct.pack("<IQQ", self.version, *(max(0, count) for count in counts))]
        parts += [_text(key.name) + struct.pack("<I", key.type) + key.raw for key in self.keys]
        parts += [tensor.encoded() for tensor in self.tensors]
        head = b"".join(parts)
        return head + bytes(-len(head) % self.alignment) + self.data


class Parser:
    """Reads a file, step by step; `at` is the next byte."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 4

    def take(self, format_: str) -> tuple:
        values = struct.unpack_from("<" + format_, self.data, self.at)
        self.at += struct.calcsize("<" + format_)
        return values

    def text(self) -> bytes:
        (length,) = self.take("Q")
        return self.take(f"{length}s")[0]

    def key(self) -> Key:
        name = self.text()
        (kind,) = self.take("I")
        start = self.at
        item, length = self.take("IQ") if kind == ARRAY else (kind, 1)
        if item == STRING:
            for _ in range(length):
                self.text()
        else:
            self.take(f"{length * struct.calcsize('<' + CODES[item])}s")
        return Key(name, kind, self.data[start : self.at])

    def tensor(self) -> Tensor:
        name = self.text()
        (dimensions,) = self.take("I")
        return Tensor(name, list(self.take(f"{dimensions}Q")), *self.take("IQ"))


def parsed(data: bytes) -> Gguf:
    """Return the parts of a file.

    Raises:
        struct.error, KeyError: it is broken.
    """
    parser = Parser(data)
    version, tensor_count, key_count = parser.take("IQQ")
    keys = [parser.key() for _ in range(key_count)]
    tensors = [parser.tensor() for _ in range(tensor_count)]
    alignment = next(
        (struct.unpack("<I", key.raw)[0] for key in keys if key.name == b"general.alignment"), 32
    )
    start = -(-parser.at // alignment) * alignment
    return Gguf(keys, tensors, data[start:], version, alignment=alignment)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


NUMBERS = (0, 1, 2, 3, 7, 16, 31, 32, 96, 255, 256, 512, 65535, 1 << 20, (1 << 31) - 1, 1 << 31)
REALS = (0.0, -1.0, 1e-6, 1e-30, 1e30, 1e4, 1e6, float("nan"), float("inf"), -float("inf"))


def random_value(rng: random.Random, kind: int) -> bytes:
    """Return a value of a type, as it stands in a file."""
    if kind == STRING:
        return _text(
            rng.choice([b"", b"llama", b"none", b"\xff\xfe", b"\x1b[2J", b"a\nb", b"x" * 5000])
        )
    if kind == ARRAY:
        item = rng.choice([0, 4, 5, 6, 7, STRING, 12])
        length = rng.choice([0, 1, 3, 369, 5000])
        values = b"".join(random_value(rng, item) for _ in range(length))
        return struct.pack("<IQ", item, length) + values
    code = CODES[kind]
    if code in "fd":
        return struct.pack("<" + code, rng.choice(REALS))
    number = rng.choice([*NUMBERS, rng.randrange(600)])
    return number.to_bytes(8, "little")[: struct.calcsize(code)]


class Cases:
    """The files that are broken, and what is made of them."""

    def __init__(self, folder: Path) -> None:
        import gemb_llamacpp.encode  # noqa: F401 - all of it is here before the first fork
        from gemb_llamacpp import native
        from gemb_llamacpp.export import export
        from tiny_model import TinyShape, write_tiny_model

        model = write_tiny_model(folder / "model", TinyShape())
        self.files: list[bytes] = []
        self.vectors: list[np.ndarray] = []
        for kind in ("f32", "q4_0", "bf16"):
            export(model, folder / f"{kind}.gguf", kind)
            self.files.append((folder / f"{kind}.gguf").read_bytes())
        library = Path(native.llama()._lib._name).parent / "libllama.so"
        names = re.findall(
            rb"\0(%s\.[a-z0-9_.]{3,}|(?:general|tokenizer|split)\.[a-z0-9_.]{3,})",
            library.read_bytes(),
        )
        self.names = sorted({name.replace(b"%s", b"gemma-embedding") for name in names})
        for kind in ("f32", "q4_0", "bf16"):
            ended, vectors = self.embedded(folder / f"{kind}.gguf", folder)
            assert judge(ended) == 0, ended
            assert vectors is not None
            self.vectors.append(vectors)

    def embedded(self, path: Path, folder: Path):
        words = [word for text in TEXTS for word in ("-e", text)]
        output = folder / "vectors.npy"
        ended = gemb(
            "embed",
            "--backend",
            "llamacpp",
            "-m",
            path,
            *words,
            "-o",
            output,
            folder=folder,
            seconds=20,
        )
        return ended, np.load(output) if output.exists() else None

    def __call__(self, rng: random.Random, folder: Path) -> str:
        number = rng.randrange(len(self.files))
        whole = self.files[number]
        kind = rng.choice(["bytes", "bytes", "length", "key", "key", "llama", "tensor", "counts"])
        data = getattr(self, f"_{kind}")(rng, whole)
        path = folder / "broken.gguf"
        path.write_bytes(data)
        refusal = refused(lambda: LlamaCppBackend().describe(path))
        if refusal and rng.randrange(20):
            return "refused"
        shown = gemb("models", "show", path, folder=folder, seconds=20)
        if judge(shown, (0, 2)) != (2 if refusal else 0):
            raise Fault("the command says something else", f"{refusal}\n{shown.stderr}")
        return self.outcome(path, refusal, whole, self.vectors[number])

    def outcome(self, path: Path, refusal: str, whole: bytes, right: np.ndarray) -> str:
        """Return what came of a file.

        Raises:
            Fault: not what should have come.
        """
        ended, vectors = self.embedded(path, path.parent)
        code = judge(ended, (0, 2, 3))
        if (code == 2) != bool(refusal) and "not Gemma's tokenizer" not in ended.stderr:
            raise Fault("models show and embed disagree", f"{refusal}\n{ended.stderr}")
        if code == 2:
            return "refused"
        assert vectors is not None
        lengths = np.linalg.norm(vectors, axis=1)
        good = np.abs(lengths - 1) < 0.01
        if (code == 3) == good.all() or np.isfinite(vectors[~good]).any():
            raise Fault("vectors that are not of length one", lengths)
        if code == 3:
            return "rows failed"
        if vectors.shape == right.shape and np.abs(vectors - right).max() < 1e-6:
            return "taken, the same vectors"
        reason = decided_by(whole, path.read_bytes())
        if not reason:
            raise Fault("other vectors without a reason", f"{(vectors * right).sum(axis=1)}")
        return "taken, another model"

    def _bytes(self, rng: random.Random, whole: bytes) -> bytes:
        """Half of them among the keys, before the long arrays of the vocabulary."""
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
            most = rng.choice([1500, len(whole) - len(parsed(whole).data), len(whole)])
            at = rng.randrange(most)
            data[at] = rng.choice([data[at] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255])
        return bytes(data)

    def _length(self, rng: random.Random, whole: bytes) -> bytes:
        at = rng.randrange(len(whole))
        return rng.choice([whole[:at], whole + bytes(at), whole[:at] + whole[at + 1 :], whole[at:]])

    def _key(self, rng: random.Random, whole: bytes) -> bytes:
        file = parsed(whole)
        key = rng.choice(file.keys)
        match rng.randrange(6):
            case 0:
                file.keys.remove(key)
            case 1:
                file.keys.append(Key(key.name, key.type, key.raw))
            case 2:
                key.name = rng.choice([key.name[:-1], key.name + b"_swa", key.name.upper(), b""])
            case 3 if key.type == ARRAY:
                at = rng.randrange(len(key.raw))
                key.raw = key.raw[:at] + bytes([rng.randrange(256)]) + key.raw[at + 1 :]
            case 3 | 4:
                key.raw = random_value(rng, key.type)
            case 5:
                key.type = rng.choice([*CODES])
                key.raw = random_value(rng, key.type)
        return file.encoded()

    def _llama(self, rng: random.Random, whole: bytes) -> bytes:
        """A key that the library has a name for, of any type."""
        file = parsed(whole)
        name = rng.choice(self.names)
        file.keys = [key for key in file.keys if key.name != name]
        kind = rng.choice([0, 2, 4, 4, 4, 5, 6, 7, STRING, ARRAY, 10])
        file.keys.insert(rng.randrange(len(file.keys)), Key(name, kind, random_value(rng, kind)))
        return file.encoded()

    def _tensor(self, rng: random.Random, whole: bytes) -> bytes:
        file = parsed(whole)
        tensor = rng.choice(file.tensors)
        match rng.randrange(7):
            case 0:
                file.tensors.remove(tensor)
            case 1:
                tensor.name = rng.choice(
                    [tensor.name[:-1], rng.choice(file.tensors).name, b"a" * 70]
                )
            case 2:
                at = rng.randrange(len(tensor.shape))
                tensor.shape[at] = rng.choice([0, 1, tensor.shape[at] * 2, 1 << 40, (1 << 64) - 1])
            case 3:
                tensor.shape = rng.choice([tensor.shape[::-1], [*tensor.shape, 1], [], [1] * 5])
            case 4:
                tensor.type = rng.choice([0, 1, 2, 8, 12, 14, 24, 26, 30, 31, 38, 99, 1 << 31])
            case 5:
                tensor.offset = rng.choice([0, 1, 32, tensor.offset + 32, 1 << 63, len(file.data)])
            case 6:
                other = rng.choice(file.tensors)
                tensor.offset, other.offset = other.offset, tensor.offset
        return file.encoded()

    def _counts(self, rng: random.Random, whole: bytes) -> bytes:
        file = parsed(whole)
        match rng.randrange(4):
            case 0:
                file.more_keys = rng.choice([-1, 1, 1 << 20, 1 << 62])
            case 1:
                file.more_tensors = rng.choice([-1, 1, 1 << 20, 1 << 62])
            case 2:
                file.version = rng.choice([0, 1, 2, 4, 1 << 24, 3 << 24])
            case 3:
                file.alignment = rng.choice([1, 2, 8, 16, 64, 4096, 48])
                number = rng.choice([file.alignment, 0, 1 << 31])
                file.keys.append(Key(b"general.alignment", 4, struct.pack("<I", number)))
        return file.encoded()


def decided_by(whole: bytes, broken: bytes) -> str:
    """Return what makes another model of a file that was taken; empty: nothing that may."""
    right = parsed(whole)
    try:
        file = parsed(broken)
    except (struct.error, KeyError) as error:
        raise Fault("a file that cannot be read is taken", error) from error
    before = {key.name: (key.type, key.raw) for key in right.keys}
    after = {key.name: (key.type, key.raw) for key in file.keys}
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name) and name.decode().startswith(DECIDES):
            return name.decode()
    types = [[(tensor.name, tensor.type) for tensor in parts.tensors] for parts in (right, file)]
    if types[0] != types[1]:  # f16 and bf16 are of one size
        return "the types"
    return "the numbers" if right.data != file.data[: len(right.data)] else ""


def campaign(folder: Path) -> Case:
    return Cases(folder)


if __name__ == "__main__":
    main(__file__, campaign)
