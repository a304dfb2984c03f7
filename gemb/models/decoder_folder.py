"""A Gemma 3 language model's folder from an embedding model: something to try adaptation with.

The weights are the model's own, number by number; it never learned to write, and adaptation
teaches it. What changes is what the folder says: attention sees what stands before alone, texts
begin with BOS and have no EOS, the pooling and the dense layers are gone. UL2 marks its spans with
<unused0>, <unused1>, ...: where a smaller vocabulary has lost them, they are put at its end, with
vectors drawn from the token table's mean and spread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.models.card import history_of, write_card
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, read_optional_json, write_json
from gemb.models.from_gguf import unpack
from gemb.models.gguf import open_gguf
from gemb.models.gguf_header import looks_like_gguf
from gemb.models.safetensors import NewTensor, StoredTensor, write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MARKS = 128  # enough for texts of 2,048 tokens (`gemb.ul2.most_spans`)
_TABLE = "embed_tokens.weight"


def write_decoder(source: Path, target: Path, layers: Sequence[int] | None = None) -> None:
    """Write the folder `target`, which is replaced if it exists.

    Args:
        source: an embedding model: a folder or a GGUF file.
        target: where it goes; it appears whole or not at all.
        layers: to keep, ascending; None: all.

    Raises:
        UsageError: the source is no model, or has not these layers.
        OSError: the folder cannot be written.
    """
    if not looks_like_gguf(source):
        _write(open_checkpoint(source), source, target, layers)
        return
    with tempfile.TemporaryDirectory(dir=target.absolute().parent) as unpacked:
        unpack(open_gguf(source), Path(unpacked))
        _write(open_checkpoint(Path(unpacked)), source, target, layers)


def _write(
    checkpoint: Checkpoint, source: Path, target: Path, layers: Sequence[int] | None
) -> None:
    count = checkpoint.config.num_hidden_layers
    kept = range(count) if layers is None else layers
    if layers is not None and [each for each in layers if each >= count]:
        raise UsageError(f"{source}: cannot keep layer {max(layers)}: it has 0 to {count - 1}")
    with new_folder(target) as part:
        marks = _write_tokenizer(checkpoint, part)
        _write_config(checkpoint, part, kept, marks)
        _write_weights(checkpoint, part, kept, marks)
        write_card(
            part,
            checkpoint.licence(),
            f"Made by gemb of the embedding model {source.name}: a language model by its form "
            "alone, to try adaptation with.",
            history_of(checkpoint.folder),
        )


def _write_tokenizer(checkpoint: Checkpoint, part: Path) -> int:
    """Return how many marks were added."""
    raw = read_json(checkpoint.folder / "tokenizer.json")
    vocab, added = raw["model"]["vocab"], raw.setdefault("added_tokens", [])
    known = {*vocab, *(token["content"] for token in added)}
    lacking = [name for i in range(MARKS) if (name := f"<unused{i}>") not in known]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number, name in enumerate(lacking, checkpoint.config.vocab_size):
        vocab[name] = number
        added.append({"id": number, "content": name, **plain})
    settings = read_optional_json(checkpoint.folder / "tokenizer_config.json")
    raw["post_processor"] = _begins_alone(str(settings.get("bos_token", "<bos>")), known, added)
    write_json(part / "tokenizer.json", raw, None)
    write_json(
        part / "tokenizer_config.json", settings | {"add_bos_token": True, "add_eos_token": False}
    )
    return len(lacking)


def _begins_alone(bos: str, known: set[str], added: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rule that puts BOS before a text, and nothing after it."""
    assert bos in known, bos
    (number,) = (token["id"] for token in added if token["content"] == bos)
    before = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [before, text],
        "pair": [before, text, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _write_config(checkpoint: Checkpoint, part: Path, layers: Sequence[int], marks: int) -> None:
    raw = read_json(checkpoint.folder / "config.json")
    slides = [checkpoint.config.is_sliding[layer] for layer in layers]
    for key in ("_sliding_window_pattern", "sliding_window_pattern"):
        raw.pop(key, None)  # `layer_types` says it
    raw |= {
        "architectures": ["Gemma3ForCausalLM"],
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
        "num_hidden_layers": len(slides),
        "layer_types": ["sliding_attention" if each else "full_attention" for each in slides],
        "vocab_size": checkpoint.config.vocab_size + marks,
    }
    write_json(part / "config.json", raw)


def _write_weights(checkpoint: Checkpoint, part: Path, layers: Sequence[int], marks: int) -> None:
    places = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(layers)}
    kept: dict[str, NewTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(("1_Pooling", "2_Dense", "3_Dense")):
            continue
        new = NewTensor(tensor.dtype, tensor.shape, [tensor.raw()])
        if name.startswith("layers."):
            old = ".".join(name.split(".")[:2]) + "."
            if old not in places:
                continue
            name = places[old] + name.removeprefix(old)
        if name == _TABLE and marks:
            rows, width = tensor.shape
            new = NewTensor("F32", (rows + marks, width), _longer(tensor, marks))
        kept[f"model.{name}"] = new
    write_file(part / "model.safetensors", kept)


def _longer(table: StoredTensor, marks: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the table's bytes as fp32, and so many rows more."""
    import numpy as np

    rows = table.float32()
    yield rows.reshape(-1).view(np.uint8)
    drawn = np.random.default_rng(0).normal(rows.mean(0), rows.std(0), (marks, rows.shape[1]))
    yield drawn.astype(np.float32).reshape(-1).view(np.uint8)
