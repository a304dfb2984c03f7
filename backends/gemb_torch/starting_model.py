"""The model folder that training starts from: `init: {from, keep_layers, vocab}` of a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from gemb.backend import Cut
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.notes import note
from gemb.models import references as models
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.recipe.checks import LayerChoice, layer_choice
from gemb_torch.cut import cut_folder
from gemb_torch.cut_texts import Texts

if TYPE_CHECKING:
    from gemb.backend import Runtime
    from gemb.recipe.schema import Init
    from gemb_torch.layer_removal import Teacher

_MADE_FROM = "made_from.json"  # in a folder of ours: what it was made from
_COUNTED = 50_000_000  # characters of a source whose tokens are counted


_TEMPORARY: list[TemporaryDirectory[str]] = []


def forgotten_folder() -> Path:
    """Return a new folder for what a look at the data makes: it goes when the process ends."""
    folder = TemporaryDirectory(prefix="gemb-start-", ignore_cleanup_errors=True)
    _TEMPORARY.append(folder)
    return Path(folder.name)


def quickly_made(init: Init) -> Init:
    """Return what is as deep, for a look: what takes long to find out, tokens and layers, can wait.

    Raises:
        UsageError: the choice of layers is none.
    """
    greedy = _choice(init).greedy
    layers = init.keep_layers if greedy is None else f"0-{greedy - 1}"
    return replace(init, keep_layers=layers, vocab=0)


def starting_folder(
    init: Init,
    work: Path,
    *,
    texts: Sequence[Texts],
    runtime: Runtime,
    seed: int = 0,
    teacher: Teacher | None = None,
) -> Path:
    """Return a plain model folder; `init.model` itself where nothing of it is to be changed.

    Args:
        init: the model, and what to keep of it.
        work: where what is made is kept, and found again: unpacked/, layers.json, start/. One
            process at a time.
        texts: the training texts, source by source, without prompts; read only where something is
            cut.
        runtime: of the model, where layers are removed by their worth.
        seed: of the choice of texts by which layers are removed.
        teacher: whose vectors the layers' worth is measured against, where its width is the
            model's; None: the whole model's own.

    Raises:
        UsageError: the model is none, or has not what is to be kept.
        Missing: it is not here.
    """
    source = models.resolve(init.model)
    if not source.is_dir():
        source = _unpacked(source, work)
    checkpoint = open_checkpoint(source)
    choice = _choice(init)
    if choice == LayerChoice() and not init.vocab:
        return source
    layers = choice.layers
    if choice.greedy is not None:
        from gemb_torch.layer_removal import LayerRemoval

        removal = LayerRemoval(
            checkpoint=checkpoint, texts=texts, seed=seed, runtime=runtime, teacher=teacher
        )
        layers = removal.kept(choice.greedy, work / "layers.json")
    return _cut(checkpoint, work / "start", Cut(layers=layers, vocab=init.vocab or None), texts)


def _choice(init: Init) -> LayerChoice:
    try:
        return layer_choice(init.keep_layers)
    except ValueError as error:
        raise UsageError(f"init.keep_layers {init.keep_layers!r}: {error}") from error


def _cut(checkpoint: Checkpoint, target: Path, cut: Cut, texts: Sequence[Texts]) -> Path:
    made_from = {
        "model": checkpoint.fingerprint(),
        "layers": list(cut.layers) if cut.layers is not None else "all",
        "vocab": cut.vocab or "all",
        "texts": _hash(texts) if cut.vocab else "none",
    }
    if not _is_made(target, made_from):
        target.parent.mkdir(parents=True, exist_ok=True)
        counted = [_beginning(source, tells=True) for source in texts]
        cut_folder(checkpoint.folder, target, cut, counted)
        write_json(target / _MADE_FROM, made_from)  # last: without it the folder is made again
    return target


def _beginning(texts: Texts, *, tells: bool = False) -> Texts:
    """Return so much of the texts as tells how often they use a token."""

    def read() -> Iterator[str]:
        left = _COUNTED
        for text in texts.read():
            if left <= 0:
                if tells:
                    note(f"{texts.name}: tokens are counted in its first {_COUNTED:,} characters")
                return
            left -= len(text)
            yield text

    return Texts(texts.name, read)


def _hash(texts: Sequence[Texts]) -> str:
    """Return 16 hex digits of the sources' names, and of their texts that are counted."""
    whole = hashlib.blake2b(digest_size=8)
    for source in texts:
        digest = hashlib.blake2b(digest_size=8)
        for text in _beginning(source).read():
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        whole.update(json.dumps([source.name, digest.hexdigest()]).encode())
    return whole.hexdigest()


def _unpacked(source: Path, work: Path) -> Path:
    """Return the GGUF file as a folder, named as the file is."""
    from gemb.models.from_gguf import unpack
    from gemb.models.gguf import open_gguf

    model = open_gguf(source)
    target = work / "unpacked" / source.stem
    made_from = {"model": model.fingerprint()}
    if not _is_made(target, made_from):
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as part:
            unpack(model, part)
            open_checkpoint(part)
            write_json(part / _MADE_FROM, made_from)
    return target


def _is_made(folder: Path, made_from: Mapping[str, object]) -> bool:
    path = folder / _MADE_FROM
    return path.is_file() and read_json(path) == made_from
