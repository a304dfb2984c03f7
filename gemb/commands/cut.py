"""`gemb cut`: a smaller model folder from a bigger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.backend import Cut
from gemb.commands.options import ENCODING
from gemb.commands.params import ModelReference, NewPath
from gemb.errors import UsageError
from gemb.io.atomic import check_folder
from gemb.io.notes import answer
from gemb.models import references as models
from gemb.plugins import able
from gemb.recipe.layers import layers_in

if TYPE_CHECKING:
    from gemb.models.checkpoint import Checkpoint

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=ModelReference())
@click.argument("more_texts", nargs=-1, type=_FILE, metavar="[TEXT]...")
@click.option(
    "-o", "--output", type=NewPath(), required=True, metavar="FOLDER", help="The folder to write."
)
@click.option("--vocab", type=click.IntRange(min=1), metavar="N", help="How many tokens to keep.")
@click.option(
    "--vocab-from",
    "texts",
    type=_FILE,
    multiple=True,
    metavar="TEXT...",
    help="Files whose most used tokens are kept, each counting alike: text, or .jsonl with query, "
    "positive, title, text; .gz, too.",
)
@ENCODING
@click.option(
    "--keep-layers", metavar="0,1,...", help="The layers to keep, counted from 0; 0-5 is a range."
)
@click.option("-f", "--force", is_flag=True, help="Replace the folder.")
@click.option("-n", "--dry-run", is_flag=True, help="Only check, and say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cut(
    model: str,
    more_texts: tuple[Path, ...],
    output: Path,
    vocab: int | None,
    texts: tuple[Path, ...],
    encoding: str,
    keep_layers: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a smaller model: fewer tokens or layers.

    With fewer tokens, rare words fall into smaller pieces, and the vectors of other texts stay as
    they are. With fewer layers, the model must be trained again.

    \b
    gemb cut embeddinggemma-300m -o small --vocab 32768 --vocab-from docs.txt rows.jsonl.gz
    gemb cut small -o smaller --keep-layers 0-5,11,17,23
    """
    texts += more_texts
    if bool(vocab) != bool(texts):
        raise UsageError("--vocab N and --vocab-from TEXT go together")
    if vocab is None and keep_layers is None:
        raise UsageError("nothing to cut: give --vocab N --vocab-from TEXT..., or --keep-layers")
    layers = _layers(keep_layers) if keep_layers is not None else None
    for text in texts:
        if not text.is_file():
            raise UsageError(f"{text}: no such file to count tokens in")
    source = models.resolve(model)
    if not source.is_dir():
        raise UsageError(f"{source} is a file; cut takes a model folder")
    from gemb.models.adapter import base_of
    from gemb.models.checkpoint import open_checkpoint

    for folder in dict.fromkeys((source, base_of(source))):
        check_folder(output, overwrite=force, source=folder)

    original = open_checkpoint(source)
    request = Cut(layers=layers, vocab=vocab, vocab_texts=texts, encoding=encoding)
    if dry_run:
        able("cut").cut(source, None, request)
        answer(_plan(original, output, request, as_json))
        return
    able("cut").cut(source, output, request)
    smaller = open_checkpoint(output)
    answer(_json(smaller) if as_json else f"{output}: {_size(smaller)} of {_size(original)}")


def _layers(text: str) -> tuple[int, ...]:
    """Return the layers of `0,1,6-8`."""
    try:
        return layers_in(text)
    except ValueError as error:
        raise UsageError(f"--keep-layers {text!r}: {error}") from error


def _plan(original: Checkpoint, output: Path, cut: Cut, as_json: bool) -> str:
    """Return what would be written."""
    import json

    tokens = cut.vocab or original.config.vocab_size
    layers = len(cut.layers) if cut.layers else original.config.num_hidden_layers
    if as_json:
        plan = {"folder": str(output), "vocabulary": tokens, "layers": layers}
        return json.dumps({"dry_run": True, **plan})
    return f"would write {output} from {original.folder}: {tokens} tokens, {layers} layers"


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.count for tensor in checkpoint.tensors.values())


def _size(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    return (
        f"{config.vocab_size} tokens, {config.num_hidden_layers} layers, "
        f"{_parameters(checkpoint) / 1e6:.1f} M parameters"
    )


def _json(checkpoint: Checkpoint) -> str:
    import json

    return json.dumps(
        {
            "folder": str(checkpoint.folder),
            "vocabulary": checkpoint.config.vocab_size,
            "layers": checkpoint.config.num_hidden_layers,
            "parameters": _parameters(checkpoint),
            "fingerprint": checkpoint.fingerprint(),
        }
    )
