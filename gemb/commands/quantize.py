"""`gemb quantize`: a model in fewer bits, and its measured quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemb.commands.options import ENCODING, GroupedCommand, quiet_option
from gemb.commands.params import FileSize, ModelReference, NewPath
from gemb.errors import UsageError
from gemb.io.notes import answer

if TYPE_CHECKING:
    from gemb.backend import Quantization
    from gemb.weights.quantize import QuantizeJob

LADDER = "bf16,q8_0,q6_k,large,q5_k_m,medium,small,q4_k_m,iq4_nl,q4_0,q3_k_m,q2_k"
GROUPS = {
    "What is written": ("types", "output", "rules", "corpus"),
    "What is searched": ("ladder", "by_class", "target_size", "max_drop"),
    "What is measured": ("texts", "sets", "encoding", "dims", "min_cosine"),
    "Output": ("force", "dry_run", "as_json", "quiet"),
    "Source": ("requantize", "ignore_qat"),
}


def _print_types(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Print the types and exit."""
    if not value or ctx.resilient_parsing:
        return
    from gemb.weights.types import FILE_TYPES, PRESETS, bits

    for name, file_type in FILE_TYPES.items():
        answer(f"{name:11} {bits(file_type.base):6.4g} bits in most tensors")
    for name, preset in PRESETS.items():
        rules = ", ".join(f"{pattern}={type_}" for pattern, type_ in preset.rules)
        answer(f"{name:11} {preset.type}, {rules}: {preset.about}")
    ctx.exit()


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("model", type=ModelReference())
@click.option(
    "-t",
    "--type",
    "types",
    metavar="TYPE,...",
    help="Types or presets, see --types.  [default: those that the model was trained for]",
)
@click.option(
    "-o",
    "--output",
    type=NewPath(path_type=str),  # a path forgets the / at its end
    metavar="FILE|FOLDER",
    help="The file to write; of several types, or with a / at its end, the folder.",
)
@click.option(
    "--tensor",
    "rules",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type of the tensors whose name matches the pattern; the first match counts; repeatable.",
)
@click.option(
    "--imatrix",
    "corpus",
    metavar="FILE",
    help="Your own texts: columns that matter to them are stored more exactly.",
)
@click.option("--ladder", is_flag=True, help=f"Try {LADDER.replace(',', ' ')}.")
@click.option(
    "--sensitivity",
    "by_class",
    is_flag=True,
    help="Raise one class of tensors at a time to 8 bits.",
)
@click.option("--texts", metavar="FILE", help="Texts to compare vectors on.  [default: 64 of gemb]")
@click.option(
    "--eval",
    "sets",
    multiple=True,
    metavar="PATH|builtin:tiny",
    help="Evaluation sets, as gemb eval --data takes them; repeatable.",
)
@ENCODING
@click.option(
    "--dims",
    metavar="A,B",
    help="Widths to evaluate.  [default: all that the model was trained for]",
)
@click.option(
    "--target-size",
    type=FileSize(),
    metavar="SIZE",
    help="Find the best mix of types for a file of at most this size: 200M, 0.2G.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Keep only the smallest file whose mean score is lower by at most this.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1, 1),
    metavar="X",
    help="The least cosine that a text may have.  [default: by type]",
)
@click.option("--requantize", is_flag=True, help="Take a file that is quantized already.")
@click.option("--ignore-qat", is_flag=True, help="Take other types than the model was trained for.")
@click.option("-f", "--force", is_flag=True, help="Overwrite files.")
@click.option("-n", "--dry-run", is_flag=True, help="Only check, and say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--types",
    "list_types",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_types,
    help="Print the types and exit.",
)
@click.option("-j", "--threads", type=click.IntRange(min=0), default=0, help="0: one a core.")
@quiet_option
def quantize(**values: Any) -> None:  # noqa: ANN401
    """Write a model in fewer bits, and measure the loss.

    MODEL is a model folder or an unquantized .gguf file. Every file is measured against it before
    it gets its name; one that differs too much is not written, and the exit code is 1.

    \b
    gemb quantize runs/a/model -t small -o small.gguf
    gemb quantize model.gguf -t q8_0,q4_k_m -o files/ --eval dev/ --dims 768,128
    gemb quantize model.gguf --ladder --eval dev/
    gemb quantize model.gguf --sensitivity -t q4_0
    gemb quantize model.gguf --target-size 200M -o fits.gguf

    \b
    Columns of the table:
      MB           of the file, millions of bytes
      least, mean  cosine of a text's vector to the source's
      kept@10      share of each text's ten nearest texts that stay the same
      tokens/s     measured now on this machine, texts of up to 256 tokens

    A type names a mix as llama.cpp's llama-quantize makes it, but the token table has the type of
    most tensors: an embedder only looks rows up in it. Rows that a type's blocks do not fit (1,152
    values of ffn_down, and K types pack 256) get a type near it, and a note says so.

    A model that was trained for its types (QAT) gets these, to the last bit, without -t.

    With --imatrix each text is run with the prompt of a document and with that of a query, and
    rounding spares the columns that these texts use most.
    """
    options = QuantizeOptions(**values)
    if options.output is None and not (options.measures_only or options.dry_run):
        raise click.UsageError("-o FILE is missing: where to write")
    _run(options)


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """The options of `gemb quantize`."""

    model: str
    types: str | None
    output: str | None
    rules: tuple[str, ...]
    corpus: str | None
    ladder: bool
    by_class: bool
    target_size: int | None
    texts: str | None
    encoding: str
    sets: tuple[str, ...]
    dims: str | None
    max_drop: float | None
    min_cosine: float | None
    requantize: bool
    ignore_qat: bool
    force: bool
    dry_run: bool
    as_json: bool
    threads: int

    @property
    def measures_only(self) -> bool:
        """Whether the options are useful without a file to write."""
        return self.ladder or self.by_class


def _run(options: QuantizeOptions) -> None:
    from gemb.commands.quantize_table import print_fit, print_ladder, print_plans, print_shares
    from gemb.weights.quantize import check_targets, quantizer

    job = _job(options)
    if not options.by_class:
        check_targets(job)
    with quantizer(job) as opened:
        if options.dry_run:
            print_plans(opened, as_json=options.as_json)
        elif options.by_class:
            print_shares(opened, as_json=options.as_json)
        elif options.target_size is not None:
            print_fit(opened, options.target_size, as_json=options.as_json)
        else:
            print_ladder(opened, as_json=options.as_json)


def _job(options: QuantizeOptions) -> QuantizeJob:
    from gemb.backend import Runtime
    from gemb.evaluation.agreement import VERIFICATION_TEXTS
    from gemb.models import references as models
    from gemb.weights.measure import check_texts, read_texts
    from gemb.weights.quantize import Limits, QuantizeJob

    quantizations = quantizations_of(options)
    if options.corpus is not None:
        check_texts(options.corpus)
    output = None if options.output is None else Path(options.output)
    suite = None
    if options.sets:
        from gemb.datasets.sets import open_suite

        suite = open_suite(*options.sets, encoding=options.encoding)
    return QuantizeJob(
        model=models.resolve(options.model),
        quantizations=quantizations,
        output=output,
        is_folder=output is not None
        and (
            output.is_dir()
            or str(options.output).endswith("/")
            or (len(quantizations) > 1 and options.max_drop is None)
        ),
        limits=Limits(min_cosine=options.min_cosine, max_drop=options.max_drop),
        requantize=options.requantize,
        ignore_qat=options.ignore_qat,
        corpus=options.corpus,
        encoding=options.encoding,
        texts=read_texts(options.texts, options.encoding) if options.texts else VERIFICATION_TEXTS,
        suite=suite,
        dims=_widths(options.dims),
        runtime=Runtime(threads=options.threads),
        overwrite=options.force,
        is_plan=options.dry_run,
    )


def quantizations_of(options: QuantizeOptions) -> tuple[Quantization, ...]:
    """Return the types and presets of the options, without repetition; no file is opened.

    Raises:
        UsageError: a type does not exist, or two options do not go together.
    """
    from gemb.weights.types import quantization, rule

    _check_options(options)
    rules = [rule(text) for text in options.rules]
    named = options.types or ("" if not options.ladder else LADDER)
    if (options.by_class or options.target_size is not None) and not named:
        named = "q4_0"  # of which the classes are raised
    named_types = [quantization(name, rules) for name in named.split(",") if name.strip()]
    return tuple({type_.name: type_ for type_ in named_types}.values())


def _check_options(options: QuantizeOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: two options do not go together.
    """
    for option, value in (("--max-drop", options.max_drop), ("--dims", options.dims)):
        if value is not None and not options.sets:
            raise UsageError(f"{option} requires evaluation sets: --eval SET")
    if options.target_size is not None and (options.types or options.rules or options.ladder):
        raise UsageError("--target-size finds the types itself; leave out -t, --tensor, --ladder")
    if options.target_size is not None and options.dry_run:
        raise UsageError(
            "--target-size finds the types by measuring, which -n does not; leave it out"
        )
    if not options.by_class:
        return
    excluded = {
        "-o": options.output,
        "-n": options.dry_run,
        "--ladder": options.ladder,
        "--target-size": options.target_size,
        "--max-drop": options.max_drop,
        "--min-cosine": options.min_cosine,
    }
    if conflicting := [option for option, value in excluded.items() if value not in (None, False)]:
        raise UsageError(
            f"--sensitivity measures, and writes nothing; leave out {', '.join(conflicting)}"
        )
    named = [name.strip().lower() for name in (options.types or "").split(",") if name.strip()]
    if len(named) > 1 or named in (["f32"], ["bf16"]):
        raise UsageError(
            f"--sensitivity raises the classes of one type to more bits: not of {', '.join(named)}"
        )


def _widths(dims: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(dim) for dim in dims.split(",")) if dims else ()
    except ValueError:
        raise click.UsageError(f"--dims {dims}: widths with commas between, as 768,256") from None
