"""`gemb verify`: measure the agreement of two models or two files of vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import ENCODING, ModelOptions, runtime_options
from gemb.commands.params import ModelReference
from gemb.embedding.formats.table import read_format_of, readable_suffixes
from gemb.errors import NegativeAnswer, UsageError
from gemb.io.notes import answer
from gemb.models.prompts import TASKS

if TYPE_CHECKING:
    from gemb.evaluation.agreement import Agreement


@click.command()
@click.argument("a", type=ModelReference(*readable_suffixes()), metavar="A")
@click.argument("b", type=ModelReference(*readable_suffixes()), metavar="B")
@click.option(
    "--texts",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Texts to compare models on, one a line.  [default: 64 that come with gemb]",
)
@ENCODING
@click.option(
    "--task",
    type=click.Choice(tuple(TASKS)),
    default="none",
    show_default=True,
    help="The prompt that each model puts around a text.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1, 1),
    metavar="X",
    help="The least cosine at which they are the same.  [default: by the coarser type]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@runtime_options
def verify(
    a: str,
    b: str,
    texts: Path | None,
    encoding: str,
    task: str,
    min_cosine: float | None,
    as_json: bool,
    options: ModelOptions,
) -> None:
    """Measure the agreement of two models or vector files.

    \b
    gemb verify embeddinggemma-300m model.gguf
    gemb verify --texts corpus.txt --task query a.gguf b.gguf
    gemb verify yesterday.npy today.npy

    Prints the cosine between the two vectors of each text, and how far their neighbours agree.
    The exit code is 1 if any cosine is below the bar: 0.99999 for f32, 0.998 for bf16, 0.995 for
    q8_0, 0.8 for q4_0, that of the coarser of two types; 0.9999 for two files of float vectors.
    """
    are_vectors = [_names_vectors(name) for name in (a, b)]
    if all(are_vectors):
        if texts is not None or task != "none":
            raise UsageError("--texts and --task are for models; A and B are files of vectors")
        agreement, usual_bar = _compare_files(Path(a), Path(b))
    elif any(are_vectors):
        raise UsageError(
            f"{a} and {b}: compare two models or two files of vectors, not one of each"
        )
    else:
        agreement, usual_bar = _compare_models(a, b, texts, encoding, task, options)
    bar = usual_bar if min_cosine is None else min_cosine
    answer(_json(agreement, bar) if as_json else _table(agreement))
    if agreement.one_failed:
        raise NegativeAnswer(f"they differ: {agreement.one_failed} rows failed on one side only")
    if agreement.min_cosine < bar:
        where = f" ({agreement.worst_text[:40]!r})" if agreement.worst_text else ""
        raise NegativeAnswer(
            f"they differ: row {agreement.worst_row + 1}{where} has cosine "
            f"{agreement.min_cosine:.6f}, and the bar is {bar:g} (--min-cosine)"
        )


def _names_vectors(name: str) -> bool:
    form = read_format_of(Path(name))
    return form is not None and bool(form.reader)


def _compare_models(
    a: str, b: str, texts: Path | None, encoding: str, task: str, options: ModelOptions
) -> tuple[Agreement, float]:
    from gemb.evaluation.agreement import VERIFICATION_TEXTS, bar_for, compare

    chosen = VERIFICATION_TEXTS if texts is None else _read_texts(texts, encoding)
    model_a, model_b = (
        dataclasses.replace(options, model=reference).open().encoder for reference in (a, b)
    )
    agreement = compare(model_a, model_b, chosen, task=task)
    return agreement, bar_for(model_a.profile.dtype, model_b.profile.dtype)


def _compare_files(a: Path, b: Path) -> tuple[Agreement, float]:
    from gemb.embedding.formats.read import read_vectors
    from gemb.evaluation.agreement import compare_vectors, stored_bar

    file_a, file_b = read_vectors(a), read_vectors(b)
    if len(file_a.ids) == len(file_b.ids):
        for row, (id_a, id_b) in enumerate(zip(file_a.ids, file_b.ids, strict=True), 1):
            if str(id_a) != str(id_b):
                raise NegativeAnswer(f"they differ: row {row} is {id_a!r} in {a}, {id_b!r} in {b}")
    if (file_a.dtype == "ubinary") != (file_b.dtype == "ubinary"):
        raise UsageError(f"one of {a} and {b} holds sign bits, the other numbers; embed one again")
    agreement = compare_vectors(file_a.vectors, file_b.vectors)
    return agreement, min(stored_bar(file.dtype) for file in (file_a, file_b))


def _read_texts(path: Path, encoding: str) -> tuple[str, ...]:
    from gemb.texts.contents import shown
    from gemb.texts.inputs import Reading, read
    from gemb.texts.records import Fields
    from gemb.weights.measure import check_texts

    name = shown(str(path))
    check_texts(str(path))
    fields = Fields(title="title", title_may_lack=True)
    reading = Reading(fields=fields, names_options=False, encoding=encoding)
    texts: list[str] = []
    for record in read([str(path)], reading):
        if record is None or (record.error and record.error.code == "empty"):
            continue
        if record.error:
            raise UsageError(f"{name}, {record.place}: {record.error.message}")
        texts.append(record.text)
    if not texts:
        raise UsageError(f"{name}: no text to compare the models on")
    return tuple(texts)


def _table(agreement: Agreement) -> str:
    worst = f"  {agreement.worst_text[:60]!r}" if agreement.worst_text else ""
    rows = [
        ("rows compared", f"{agreement.count}"),
        ("cosine, least", f"{agreement.min_cosine:.6f}"),
        ("cosine, mean", f"{agreement.mean_cosine:.6f}"),
        ("worst row", f"{agreement.worst_row + 1}{worst}"),
        ("ten nearest shared", f"{agreement.rank_agreement:.2%}"),
        ("rank correlation", f"{agreement.spearman:.6f}"),
    ]
    if agreement.both_failed or agreement.one_failed:
        failed = f"{agreement.both_failed} on both sides, {agreement.one_failed} on one"
        rows.append(("failed rows", failed))
    for kind, groups in agreement.groups.items():
        for i, group in enumerate(groups):
            cosines = f"{group.min_cosine:.6f} least, {group.mean_cosine:.6f} mean"
            rows.append(("" if i else f"by {kind}", f"{group.name:15} {group.count:4}  {cosines}"))
    return "\n".join(f"{name:19} {value}".rstrip() for name, value in rows)


def _json(agreement: Agreement, bar: float) -> str:
    import json

    same = agreement.min_cosine >= bar and not agreement.one_failed
    document = {"same": same, "bar": bar, **dataclasses.asdict(agreement)}
    return json.dumps(document, ensure_ascii=False, indent=2)
