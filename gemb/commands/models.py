"""`gemb models`: list, describe, download and remove models."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemb.commands.params import ModelReference
from gemb.commands.printing import Group, print_json, print_table
from gemb.errors import GembError, Missing, UsageError
from gemb.io.foreign import read_bytes
from gemb.io.notes import answer, note
from gemb.models import card as gemma_terms
from gemb.models import references
from gemb.models.hub_cache import cache_folder
from gemb.models.tensors import CLASSES

if TYPE_CHECKING:
    from gemb.models.profile import ModelDescription

YES = click.option("--yes", is_flag=True, help="Do not ask.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
REFERENCE = click.argument("reference", type=ModelReference(), metavar="REF")

SHOWN_CLASSES = (*CLASSES, "norm", "pooling")


@click.group(cls=Group)
def models() -> None:
    """List, describe, pull and remove models.

    \b
    gemb models ls
    gemb models show mini
    gemb models pull embeddinggemma-300m

    REF is one of gemb's names (mini, draft, embeddinggemma-300m[:q4_0|q8_0|bf16]), a folder, a
    .gguf file, or org/repo[@revision][:file] on the hub. A path that exists comes before the hub;
    ./NAME is always a path.
    """


@models.command()
@JSON
def ls(as_json: bool) -> None:
    """List the models on this machine.

    They are gemb's own, those in the hub's cache, and $GEMB_MODEL.
    """
    descriptions: dict[str, ModelDescription] = {}
    unreadable = 0
    for reference in _candidates():
        try:
            descriptions[reference] = _describe(reference)
        except GembError as error:
            if reference in (references.DEFAULT, os.environ.get("GEMB_MODEL")):
                note(f"{reference}: {error}")
            else:
                unreadable += 1
    if unreadable:
        plural = "s" if unreadable > 1 else ""
        note(f"{unreadable} other model{plural} in {cache_folder()} that gemb cannot run")
    default = os.environ.get("GEMB_MODEL") or references.DEFAULT
    if as_json:
        rows = [
            {"reference": name, "default": name == default, **_plain(description)}
            for name, description in descriptions.items()
        ]
        print_json(rows)
        return
    table = [("NAME", "SIZE", "TYPE", "DIM", "CONTEXT", "FINGERPRINT")]
    for name, model in descriptions.items():
        mark = " (default)" if name == default else ""
        numbers = (str(model.width), str(model.max_tokens))
        table.append((name + mark, _size(model), _type(model), *numbers, model.fingerprint))
    print_table(table)


@models.command()
@REFERENCE
@JSON
@click.option("--card", is_flag=True, help="Print its model card instead.")
@click.option("--terms", is_flag=True, help="Print the terms of its licence instead.")
def show(reference: str, as_json: bool, card: bool, terms: bool) -> None:
    """Describe a model.

    Architecture, sizes, prompts, types, fingerprint and licence, as its files say. The card is a
    folder's README.md, or NAME.md beside NAME.gguf.
    """
    if as_json + card + terms > 1:
        raise UsageError("--json, --card and --terms: one of them")
    if card:
        answer(_card_of(reference), nl=False)
        return
    model = _describe(reference)
    if terms:
        if model.licence != gemma_terms.LICENCE:
            named = model.licence or "none"
            raise Missing(f"{reference}: gemb has Gemma's terms alone; licence named: {named}")
        answer(gemma_terms.terms(), nl=False)
    elif as_json:
        print_json({"reference": reference, **_plain(model)})
    else:
        print_table(list(_facts(reference, model)))


@models.command()
@REFERENCE
def path(reference: str) -> None:
    """Print where a model's folder or file is.

    Nothing is downloaded: a model of the hub that is not in the cache is missing, exit code 4.
    """
    _print_path(references.resolve(reference, download=False))


@models.command()
@REFERENCE
@YES
def pull(reference: str, yes: bool) -> None:
    """Download a model from the hub, and print where it is.

    Prints its size and licence first, and asks on a terminal. A stopped download continues where it
    was; every file is checked against the hub's digest, those that were here already, too.
    """
    target = references.locate(reference)
    if isinstance(target, Path):
        local_path = references.resolve(reference)
        note(f"{reference} is a path on this machine; there is nothing to pull")
        _print_path(local_path)
        return
    from gemb.models.hub import check_all, fetch, plan

    planned = plan(target)
    note(f"{planned.describe()}, to {cache_folder()}")
    if planned.to_download:
        if not yes and _is_terminal():
            click.confirm("download it?", default=True, abort=True, err=True)
    else:
        check_all(planned)
        note(f"all of it is here, and as the hub has it ({len(planned.files)} files checked)")
    _print_path(fetch(planned))


@models.command()
@REFERENCE
@YES
def rm(reference: str, yes: bool) -> None:
    """Remove a model from this machine.

    REF is one in the hub's cache, of which every revision goes, or a typed name. Asks on a
    terminal; elsewhere it requires --yes.
    """
    from gemb.io.text import size_in_words
    from gemb.models.hub import remove

    target = references.locate(reference)
    if isinstance(target, Path):
        if target in (references.bundled(), references.bundled_draft()):
            raise UsageError(f"{reference} comes with gemb, and goes with it alone")
        if references.made_folder().resolve() != target.parent.resolve():
            raise UsageError(f"{reference} is not in the hub cache; remove {target} yourself")
        references.resolve(reference)  # or it is missing
    elif not references.is_cached(target):
        raise Missing(f"{target} is not in the hub cache ({cache_folder()})")
    if not yes:
        from gemb.io.text import visible

        if not _is_terminal():
            raise UsageError("rm asks on a terminal; elsewhere it requires --yes")
        click.confirm(f"remove {visible(str(target))}?", abort=True, err=True)
    if isinstance(target, Path):
        freed = target.stat().st_size
        target.unlink()
    else:
        freed = remove(target)
    note(f"removed {target}: {size_in_words(freed)} freed")


def _print_path(path: Path) -> None:
    answer(str(path.absolute()), errors="surrogateescape")  # the bytes of a name that is no UTF-8


def _candidates() -> Iterator[str]:
    """Yield the references to list, each once."""
    named = os.environ.get("GEMB_MODEL")
    # The default is listed though it may be absent: then a note says so.
    every = [references.DEFAULT, *references.local_references(), *([named] if named else [])]
    yield from dict.fromkeys(every)


def _describe(reference: str) -> ModelDescription:
    from gemb.plugins import describe

    return describe(references.resolve(reference, download=False))


def _plain(model: ModelDescription) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(model), "path": str(model.path.absolute())}


def _card_path(path: Path) -> Path:
    return path / "README.md" if path.is_dir() else path.with_suffix(".md")


def _card_of(reference: str) -> str:
    card = _card_path(references.resolve(reference, download=False))
    if not card.is_file():
        raise Missing(f"{reference} has no model card: there is no {card}")
    return read_bytes(card).decode("utf-8", "replace")


def _engine(model: Path) -> str:
    """Return the backend that runs a model here, and the others that open it."""
    from gemb.plugins import candidates

    try:
        first, *others = (backend.name for backend in candidates(model))
    except GembError as error:
        return str(error)
    return first + (f"; --backend {' or '.join(others)}" if others else "")


def _facts(reference: str, model: ModelDescription) -> Iterator[tuple[str, ...]]:
    """Yield name and value of each line of `show`."""
    width = model.width
    others = ", ".join(str(dim) for dim in model.matryoshka_dims if dim != width)
    dense = ", ".join(f"{into} to {out}" for into, out in model.dense)
    is_gemma = model.licence == gemma_terms.LICENCE
    terms = f" ({gemma_terms.NAME}: {gemma_terms.LINK})" if is_gemma else ""
    yield "path", str(model.path.absolute())
    yield "format", model.format
    yield "engine", _engine(model.path)
    yield "architecture", model.architecture
    yield "size", f"{_size(model)}, {model.parameters / 1e6:.1f} M parameters"
    yield "layers", f"{model.layers}, {model.hidden} wide"
    yield "pooling", model.pooling + (f", dense {dense}" if dense else ", no dense layers")
    yield "vectors", f"{width} wide" + (f"; also {others}" if others else "")
    yield "context", f"{model.max_tokens} tokens"
    yield "vocabulary", f"{model.vocabulary} tokens"
    classes = [kind for kind in SHOWN_CLASSES if kind in model.types]
    for i, (kind, type_) in enumerate((kind, model.types[kind]) for kind in classes):
        yield "" if i else "types", f"{kind} {type_}"
    if model.trained_types:
        from gemb.models.qat import in_words

        yield "trained for", in_words(model.trained_types)
    for i, (name, text) in enumerate(model.prompts.items()):
        default = " (default)" if name == getattr(model.prompts, "default", "") else ""
        yield "" if i else "prompts", f"{name} '{text}'{default}"
    if model.adapter:
        yield "adapter", model.adapter
    if model.draft_of:
        yield "draft of", ", ".join(model.draft_of)
    yield "fingerprint", model.fingerprint
    yield "licence", (model.licence or "the files name none") + terms
    if is_gemma:
        yield "", gemma_terms.NOTICE
        yield "terms", f"gemb models show {reference} --terms"
    if _card_path(model.path).is_file():
        yield "card", f"gemb models show {reference} --card"


def _size(model: ModelDescription) -> str:
    from gemb.io.text import size_in_words

    return size_in_words(model.size_bytes)


def _type(model: ModelDescription) -> str:
    """Return the types of the matrices, in the order of the classes: q4_0, or q8_0+q4_0."""
    kinds = [kind for kind in CLASSES if kind in model.types]
    return "+".join(dict.fromkeys(model.types[kind] for kind in kinds))


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
