"""`gemb export-gguf`: a model folder as one GGUF file, verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.params import ModelReference, NewPath
from gemb.errors import UsageError
from gemb.io.atomic import check_file
from gemb.io.notes import answer
from gemb.models import references as models
from gemb.weights.export import OUTTYPES, Exported, check_export, export_gguf

if TYPE_CHECKING:
    from gemb.models.qat import Types


class OutType(click.Choice[str]):
    """One of `OUTTYPES`, or f16, which the backend refuses and says why."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the type."""
        return value if value == "f16" else super().convert(value, param, ctx)


@click.command("export-gguf")
@click.argument("model", type=ModelReference())
@click.option(
    "-o",
    "--output",
    type=NewPath(is_file=True),
    required=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option(
    "--outtype",
    type=OutType(OUTTYPES),
    default="auto",
    show_default=True,
    help="Of every tensor but the norms; auto: as it was trained for (qat), or bf16.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the file's vectors with the model's before it gets its name.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1, 1),
    metavar="X",
    help="The least cosine that passes.  [default: by type]",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the file.")
@click.option("-n", "--dry-run", is_flag=True, help="Only check, and say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    model: str,
    output: Path,
    outtype: str,
    verify: bool,
    min_cosine: float | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a model folder as one GGUF file.

    The file holds the dense layers, the prompts and the trained sizes, and llama.cpp's own programs
    load it. It is compared with the model on texts in many scripts; if their vectors differ, no
    file is written, and the exit code is 1.

    A model of quantization-aware training is written in the types that it was trained for, with
    exactly the weights that training measured.

    \b
    gemb export-gguf embeddinggemma-300m -o model.gguf
    gemb export-gguf runs/a/model -o small.gguf --outtype q4_0
    """
    check_file(output, overwrite=force)
    source = models.resolve(model)
    if not source.is_dir():
        raise UsageError(f"{source} is a file; export-gguf takes a model folder")
    if dry_run:
        types = check_export(source, outtype=outtype, verify=verify)
        answer(_plan(source, output, types, verify, as_json))
        return
    exported = export_gguf(source, output, outtype=outtype, verify=verify, min_cosine=min_cosine)
    answer(_json(exported) if as_json else _line(exported))


def _plan(source: Path, output: Path, types: Types, verify: bool, as_json: bool) -> str:
    import json

    from gemb.models.checkpoint import open_checkpoint
    from gemb.models.qat import in_words
    from gemb.models.tensors import tensor_class
    from gemb.weights.types import bits

    size = sum(
        tensor.count * bits(types.get(tensor_class(name), "f32")) / 8
        for name, tensor in open_checkpoint(source).tensors.items()
    )
    outtype = in_words(types)
    if as_json:
        plan = {"file": str(output), "outtype": outtype, "about_bytes": int(size)}
        return json.dumps({"dry_run": True, **plan, "verify": verify})
    how = "and verify it" if verify else "unverified"
    return f"would write {output} from {source} as {outtype}, about {size / 1e6:.0f} MB, {how}"


def _line(exported: Exported) -> str:
    from gemb.models.qat import in_words

    line = f"{exported.target}: {exported.size_bytes / 1e6:.1f} MB, {in_words(exported.types)}"
    if exported.agreement is None:
        return f"{line}, not verified"
    return (
        f"{line}, cosine to the source min {exported.agreement.min_cosine:.6f}, "
        f"mean {exported.agreement.mean_cosine:.6f} over {exported.agreement.count} texts"
    )


def _json(exported: Exported) -> str:
    import json

    from gemb.models.qat import in_words

    agreement = exported.agreement
    return json.dumps(
        {
            "file": str(exported.target),
            "outtype": in_words(exported.types),
            "types": exported.types,
            "size_bytes": exported.size_bytes,
            "verified": agreement is not None,
            "bar": exported.bar,
            "min_cosine": agreement and agreement.min_cosine,
            "mean_cosine": agreement and agreement.mean_cosine,
            "texts": agreement and agreement.count,
        }
    )
