"""A smaller model folder from a bigger one: fewer layers, fewer tokens, the same numbers.

What is kept is kept bit for bit. A text whose tokens are all kept has the same vector as before
where no layer was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.datasets.plain_texts import Texts, counted_texts
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.notes import note, warn
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import write_json
from gemb.models.folder import (
    SETTINGS,
    TOKENIZER_FILES,
    config_of,
    copy_files,
    names_by_file,
    write_readme,
)
from gemb.models.safetensors import NewTensor, StoredTensor, lazily, write_file
from gemb_torch.cut.vocabulary import SmallerTokenizer, smaller_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemb.backend import Cut


_ROWS = 8192  # of the token table in memory at a time
_EMBEDDING = "embed_tokens.weight"


def cut_folder(
    source: Path, target: Path | None, cut: Cut, texts: Sequence[Texts] | None = None
) -> None:
    """Write the folder `target`, which is replaced if it exists.

    Args:
        source: a model folder.
        target: where the smaller one goes; it appears whole or not at all. None: only check.
        cut: what to keep.
        texts: whose most used tokens are kept; None: those of `cut.vocab_texts`.

    Raises:
        UsageError: the source is no model, or has not what is to be kept.
        OSError: the folder cannot be written.
    """
    checkpoint = open_checkpoint(source)
    if target is not None and target.resolve() == source.resolve():
        raise UsageError(f"{target} is the model itself; write the cut elsewhere")
    layers = _layers(checkpoint, cut.layers)
    tokenizer = None
    if cut.vocab is not None and cut.vocab != checkpoint.config.vocab_size:
        if texts is None:
            texts = [counted_texts(path, cut.encoding) for path in cut.vocab_texts]
        tokenizer = smaller_tokenizer(checkpoint, cut.vocab, texts)
    _warn_of_kinds(checkpoint, layers)
    if target is None:
        return
    with new_folder(target) as part:
        copy_files(source, part, SETTINGS)
        _write_config(checkpoint, part, layers, tokenizer)
        if tokenizer is None:
            copy_files(source, part, TOKENIZER_FILES)
        else:
            tokenizer.write(part)
        _write_weights(checkpoint, part, layers, tokenizer)
        write_readme(checkpoint, part, _changes(checkpoint, layers, tokenizer))
        open_checkpoint(part)
    if tokenizer is not None and (source / "tokenizer.model").is_file():
        note("tokenizer.model is left out: tokenizer.json holds the smaller vocabulary")


def _layers(checkpoint: Checkpoint, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    count = checkpoint.config.num_hidden_layers
    if wanted is None:
        return tuple(range(count))
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= count:
        raise UsageError(
            f"{checkpoint.folder}: cannot keep layers {','.join(map(str, wanted)) or '(none)'}: "
            f"name some of 0 to {count - 1}, each once, in ascending order"
        )
    return wanted


def _warn_of_kinds(checkpoint: Checkpoint, layers: tuple[int, ...]) -> None:
    kinds = {checkpoint.config.is_sliding[layer] for layer in layers}
    if len(kinds) == 1:
        kind, other = ("sliding", "global") if kinds == {True} else ("global", "sliding")
        warn(
            f"every kept layer has {kind} attention, which llama.cpp cannot run, so that "
            f"export-gguf will refuse the model; keep a {other} layer, too"
        )


def _write_config(
    checkpoint: Checkpoint, part: Path, layers: tuple[int, ...], tokenizer: SmallerTokenizer | None
) -> None:
    raw = config_of(checkpoint.folder)
    kinds = [checkpoint.config.is_sliding[layer] for layer in layers]
    raw["num_hidden_layers"] = len(layers)
    raw["layer_types"] = ["sliding_attention" if kind else "full_attention" for kind in kinds]
    for key in ("_sliding_window_pattern", "sliding_window_pattern"):
        # Each kept layer stays what it was, so a period may no longer say it.
        period = raw.get(key)
        period = period if type(period) is int and period > 0 else 1  # every layer is global
        if kinds != [(i + 1) % period != 0 for i in range(len(layers))]:
            raw.pop(key, None)
    if tokenizer is not None:
        raw["vocab_size"] = len(tokenizer.kept)
    write_json(part / "config.json", raw)


def _write_weights(
    checkpoint: Checkpoint, part: Path, layers: tuple[int, ...], tokenizer: SmallerTokenizer | None
) -> None:
    renumbered = {old: new for new, old in enumerate(layers)}
    files = names_by_file(checkpoint)
    backbone = files.pop(Path("model.safetensors"))
    for file, names in files.items():
        (part / file).parent.mkdir(exist_ok=True)
        write_file(
            part / file, {own: _whole(checkpoint.tensors[name]) for own, name in names.items()}
        )
    kept: dict[str, NewTensor] = {}
    for name in backbone:
        tensor = checkpoint.tensors[name]
        parts = name.split(".")
        if parts[0] == "layers":
            if int(parts[1]) not in renumbered:
                continue
            parts[1] = str(renumbered[int(parts[1])])
        new = _whole(tensor)
        if name == _EMBEDDING and tokenizer is not None:
            shape = (len(tokenizer.kept), tensor.shape[1])
            new = NewTensor(tensor.dtype, shape, _rows(tensor, tokenizer.kept))
        kept[".".join(parts)] = new
    write_file(part / "model.safetensors", kept)


def _whole(tensor: StoredTensor) -> NewTensor:
    return NewTensor(tensor.dtype, tensor.shape, lazily(tensor.raw))


def _rows(tensor: StoredTensor, ids: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    table = tensor.raw().reshape(tensor.shape[0], -1)
    for begin in range(0, len(ids), _ROWS):
        yield table[ids[begin : begin + _ROWS]].reshape(-1)


def _changes(
    checkpoint: Checkpoint, layers: tuple[int, ...], tokenizer: SmallerTokenizer | None
) -> str:
    config = checkpoint.config
    return (
        f"`gemb cut`: {len(layers)} of {config.num_hidden_layers} layers "
        f"({', '.join(map(str, layers))}), "
        f"{config.vocab_size if tokenizer is None else len(tokenizer.kept)} of "
        f"{config.vocab_size} tokens. All kept numbers are unchanged."
    )
