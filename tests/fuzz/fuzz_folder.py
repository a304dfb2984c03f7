"""Broken and hostile model folders: JSON, tensors, tokenizers, and files that are none.

Every command that opens a folder may meet it: `models show` and `embed`, and one of `export-gguf`,
`cut`, `soup`, `verify`. A folder is refused, exit code 2, or used; most are refused, which this
process sees by itself, and of these the commands get one of ten. Where the vectors of a folder that
was taken are others than the right ones, something must have changed that decides about them
(`_decides`): a number of the arithmetic, a tensor's bytes, the vocabulary.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Case, Fault, gemb, judge, main, refused

from gemb.models.checkpoint import describe_folder

TEXTS = (
    "hello world",
    "  the quick\n\n brown <unused0> fox \t日本 zq ▁▁ <h1> É",
    " ".join(["the lazy dog and what is the planet known as"] * 4),
)
JSON_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
)
WEIGHTS = ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors")
ODD = (
    *(None, True, False, 0, -1, 1, 2, 3, 17, 255, 2**31 - 1, 2**31, 2**63, 2**64, 10**400),
    *(0.5, -0.0, 1e-300, 1e300, float("inf"), float("nan"), "", "x", "\ud800", "\x1b[2J", "a\nb"),
    *("../../etc/passwd", "/dev/zero", "float32", [], [[]], [1], ["x"], {}, {"a": 1}, {"": {}}),
)
DECIDES = {  # file -> keys, or the path of keys, whose other values make another model
    "config.json": (
        *("rms_norm_eps", "query_pre_attn_scalar", "rope_theta", "rope_local_base_freq"),
        *("rope_parameters", "sliding_window", "_sliding_window_pattern", "layer_types"),
        "max_position_embeddings",
    ),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "truncate_dim"),
    "sentence_bert_config.json": ("max_seq_length",),
    "tokenizer_config.json": ("model_max_length",),
    "tokenizer.json": ("model.vocab", "model.merges", "added_tokens"),
    "1_Pooling/config.json": ("pooling_mode",),
}


class Cases:
    """The folders that are broken, and what is made of them."""

    def __init__(self, folder: Path) -> None:
        import torch

        import gemb_torch.cut.cut
        import gemb_torch.model.encode  # noqa: F401 - all of it is here before the first fork
        from tiny_model import TinyShape, write_tiny_model

        torch.set_num_threads(1)  # a fork has no threads of its parent's
        self.model = write_tiny_model(folder / "model", TinyShape())
        self.texts = folder / "texts.txt"
        self.texts.write_text("\n".join(TEXTS))
        ended, vectors = self.embedded(self.model, folder)
        assert judge(ended) == 0, ended
        self.vectors = vectors

    def embedded(self, model: Path, folder: Path):
        words = [word for text in TEXTS for word in ("-e", text)]
        output = folder / "vectors.npy"
        ended = gemb(
            "embed",
            "--backend",
            "torch",
            "-m",
            model,
            *words,
            "-o",
            output,
            folder=folder,
            seconds=60,
        )
        return ended, np.load(output) if output.exists() else None

    def __call__(self, rng: random.Random, folder: Path) -> str:
        model = folder / "model"
        shutil.copytree(self.model, model)
        name, detail = self.broken(rng, model)
        try:
            return self.outcome(rng, folder, model, decides=_decides(name, detail))
        except Fault as fault:
            raise Fault(fault.kind, f"{name}: {detail}\n{fault.detail}") from fault

    def broken(self, rng: random.Random, model: Path) -> tuple[str, str]:
        """Break something; return the file's name, and what was done to it."""
        kind = rng.choice(["json", "json", "json", "tokenizer", "bytes", "header", "file", "index"])
        if kind == "json":
            name = rng.choice(JSON_FILES)
            return name, _break_json(rng, model / name)
        if kind == "tokenizer":
            return "tokenizer.json", _break_tokenizer(rng, model / "tokenizer.json")
        if kind == "header":
            name = rng.choice(WEIGHTS)
            return name, _break_header(rng, model / name)
        if kind == "index":
            return "model.safetensors.index.json", _add_index(rng, model)
        name = rng.choice([*JSON_FILES, *WEIGHTS])
        if kind == "bytes":
            return name, _break_bytes(rng, model / name)
        return name, _no_file(rng, model / name)

    def outcome(self, rng: random.Random, folder: Path, model: Path, *, decides: bool) -> str:
        refusal = refused(lambda: describe_folder(model), seconds=30)
        self.others(rng, folder, model)
        if refusal and rng.randrange(10):
            return "refused"
        shown = gemb("models", "show", model, folder=folder, seconds=60)
        ended, vectors = self.embedded(model, folder)
        code = judge(ended, (0, 2, 3))
        if not (judge(shown) == 2) == (code == 2) == bool(refusal):
            raise Fault("models show and embed disagree", f"{refusal}\n{shown}\n{ended}")
        if code == 2:
            return "refused"
        assert vectors is not None
        good = np.abs(np.linalg.norm(vectors, axis=1) - 1) < 0.01
        if (code == 3) == good.all() or np.isfinite(vectors[~good]).any():
            raise Fault("vectors that are not of length one", np.linalg.norm(vectors, axis=1))
        if code == 3:
            return "rows failed"
        if vectors.shape == self.vectors.shape and np.abs(vectors - self.vectors).max() < 1e-5:
            return "taken, the same vectors"
        if not decides:
            raise Fault("other vectors without a reason", (vectors * self.vectors).sum(axis=1))
        return "taken, another model"

    def others(self, rng: random.Random, folder: Path, model: Path) -> None:
        """Give the folder to another command, one time of ten."""
        if rng.randrange(10):
            return
        output = folder / "output"
        words: list[Any] = rng.choice(
            [
                ["export-gguf", model, "-o", output.with_suffix(".gguf")],
                ["cut", model, "-o", output, "--vocab", "350", "--vocab-from", self.texts],
                ["cut", model, "-o", output, "--layers", "2"],
                ["soup", model, self.model, "-o", output],
                ["verify", model, self.model, "--texts", self.texts],
            ]
        )
        ended = gemb(*words, folder=folder, seconds=60)
        try:
            code = judge(ended, (0, 1, 2), table=words[0] == "soup")
        except Fault as fault:
            raise Fault(f"{words[0]}: {fault.kind}", fault.detail) from fault
        if code and list(folder.glob("*output*")):
            raise Fault(f"{words[0]}: leftovers", ended.stderr)


def _decides(name: str, detail: str) -> bool:
    """Return whether what was done to a file may make another model of the folder."""
    if name in WEIGHTS:
        return detail.startswith("bytes")
    if detail.startswith(("bytes", "link")):
        return True  # it is JSON still, with another letter
    return detail.startswith(DECIDES.get(name, ()))


def _places(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield container, key and path of every value, of long lists the first few."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))[:40]
    for key, inner in items:
        where = f"{path}.{key}" if path else str(key)
        yield value, key, where
        if isinstance(inner, dict | list):
            yield from _places(inner, where)


def _break_json(rng: random.Random, path: Path) -> str:
    value = json.loads(path.read_bytes())
    container, key, where = rng.choice(list(_places(value)))
    if isinstance(value, list):
        where = where.partition(".")[2] or "all"
    match rng.randrange(6):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container["\ud800" if rng.randrange(2) else "more"] = container.pop(key)
        case 2:
            depth = rng.choice([50, 1500, 200_000])
            text = json.dumps(value).replace(
                json.dumps(container[key]), "[" * depth + "]" * depth, 1
            )
            path.write_text(text)
            return where
        case _:
            container[key] = rng.choice(ODD)
    _write(path, value)
    return where


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")


def _break_tokenizer(rng: random.Random, path: Path) -> str:
    """Change a part without which no text is tokenized rightly."""
    raw = json.loads(path.read_bytes())
    around = raw["post_processor"]
    model = raw["model"]
    part = rng.choice(["normalizer", "post_processor", "added", "model", "truncation"])
    if rng.randrange(4) == 0:
        raw["added_tokens" if part == "added" else part] = rng.choice([None, [], {}])
    elif part == "normalizer":
        kind = rng.choice(["Lowercase", "NFKC", "NFD", "StripAccents"])
        content = rng.choice([" ", "_", ""])
        raw[part] = rng.choice([{"type": kind}, raw[part] | {"content": content}])
    elif part == "post_processor" and rng.randrange(2):
        around["single"] = rng.sample(around["single"], 2)
    elif part == "post_processor":
        around["special_tokens"]["<bos>"]["ids"] = [rng.randrange(369)]
    elif part == "added" and rng.randrange(2):
        raw["added_tokens"] = rng.sample(raw["added_tokens"], rng.randrange(11))
    elif part == "added":
        flag = rng.choice(["lstrip", "rstrip", "single_word", "normalized"])
        raw["added_tokens"] = [token | {flag: True} for token in raw["added_tokens"]]
    elif part == "truncation":
        raw[part] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0}
    else:
        key, value = rng.choice(
            [
                *(("merges", model["merges"][:length]) for length in (0, 1, 5)),
                *(("byte_fallback", False), ("dropout", 0.5), ("unk_token", None)),
                *(("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>")),
            ]
        )
        model[key] = value
    _write(path, raw)
    return f"the {part}"


def _break_header(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match rng.randrange(7):
        case 0:
            entry[rng.choice(list(entry))] = rng.choice(ODD)
        case 1:
            step = rng.choice([-4, -1, 1, 4, 384])
            entry["data_offsets"] = [max(0, offset + step) for offset in entry["data_offsets"]]
        case 2:
            entry["data_offsets"] = rng.choice([entry["data_offsets"][::-1], [0, 1 << 60], [0]])
        case 3:
            entry["shape"] = rng.choice([entry["shape"][::-1], [], [0], [1, *entry["shape"]]])
        case 4:
            header["__metadata__"] = rng.choice(ODD)
        case 5:
            header[rng.choice(["lm_head.weight", "\ud800", ""])] = header.pop(name)
        case 6:
            text = json.dumps(header).replace("{", '{"' + name + '": ' + json.dumps(entry) + ",", 1)
            return _with_header(path, text.encode(), data[8 + length :])
    return _with_header(path, json.dumps(header).encode(), data[8 + length :])


def _with_header(path: Path, header: bytes, numbers: bytes) -> str:
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)
    return "header"


def _break_bytes(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    match rng.randrange(4):
        case 0:
            path.write_bytes(data[: rng.randrange(len(data))])
            return "cut short"
        case 1:
            path.write_bytes(data + b"\0" * rng.choice([1, 8, 4096]))
            return "longer"
        case 2:
            path.write_bytes(rng.choice([b"", b"\xff\xfe{}", b"\0" * 100, b"[]", b"null", b"7"]))
            return "another file"
    for _ in range(rng.choice([1, 1, 3, 10])):
        most = min(len(data), rng.choice([100, 5000, len(data)]))
        data[rng.randrange(most)] = rng.randrange(256)
    path.write_bytes(data)
    return "bytes"


def _no_file(rng: random.Random, path: Path) -> str:
    path.unlink()
    match rng.randrange(7):
        case 0:
            return "missing"
        case 1:
            os.mkfifo(path)
            return "a pipe"
        case 2 | 3:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/urandom", "/dev/null"]))
            return "a device"
        case 4:
            path.mkdir()
            return "a folder"
        case 5:
            with path.open("wb") as file:
                file.truncate(1 << 36)
            return "a hole"
    path.symlink_to(path.name)
    return "a circle"


def _add_index(rng: random.Random, model: Path) -> str:
    names = [None, 5, {}, [], "../model/model.safetensors", "/dev/zero", "model.safetensors", "x"]
    weight_map = rng.choice(
        [{"a": rng.choice(names), "b": "model.safetensors"}, {}, None, [], 7, {"a": "\ud800"}]
    )
    _write(model / "model.safetensors.index.json", {"weight_map": weight_map})
    if rng.randrange(2):
        (model / "model.safetensors").rename(model / rng.choice(["x", "y.safetensors"]))
    return "weight_map"


def campaign(folder: Path) -> Case:
    return Cases(folder)


if __name__ == "__main__":
    main(__file__, campaign)
