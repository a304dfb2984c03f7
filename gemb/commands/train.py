"""`gemb train`: a model from a recipe."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gemb.backend import Runtime, Training, able, named
from gemb.commands.params import RecipeName
from gemb.commands.recipes import Override
from gemb.errors import NegativeAnswer, UsageError


@click.command()
@click.argument("recipe", type=RecipeName())
@click.argument("overrides", nargs=-1, type=Override(), metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run's folder; the model will be RUN/model.",
)
@click.option(
    "--resume",
    default="never",
    metavar="auto|never|FOLDER",
    show_default=True,
    help="Go on from the run's last checkpoint, if it has one; or from a folder under "
    "RUN/checkpoints.",
)
@click.option("--strict", is_flag=True, help="A bad row of the data stops.")
@click.option("--no-baseline", is_flag=True, help="Do not evaluate before: there is no verdict.")
@click.option("--backend", metavar="NAME", default="auto", help="What trains; see gemb doctor.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1.", show_default=True)
@click.option(
    "-j",
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="CPU threads; 0 (the default): one for each core.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Look at the data, predict, and end there.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    run: Path | None,
    resume: str,
    strict: bool,
    no_baseline: bool,
    backend: str,
    device: str,
    threads: int,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a model as a recipe says.

    RECIPE is a file, or one that comes with gemb: `gemb recipes ls`. KEY=VALUE changes a key of it.

    \b
    gemb train smoke -o runs/smoke
    gemb train domain data.0.path=pairs.jsonl eval.data=dev/ -o runs/legal
    gemb train finetune.yaml optimizer.lr=1e-5 -o runs/a -n
    gemb train finetune.yaml -o runs/a --resume auto

    Before the first step it shows what it found in the data, stops if the evaluation set is in it,
    and predicts time and memory. SIGTERM, SIGUSR1 or Ctrl-C save at the next step.

    \b
    Exit codes: 0 done, 1 the model became worse on the evaluation set, 2 wrong usage or data,
    5 the run failed, 75 stopped and saved: the same command with --resume auto goes on.
    """
    if run is None and not dry_run:
        raise UsageError("where to? -o RUN names the run's folder; -n only looks")
    # On a machine that does other work, too, threads that spin while they wait for each other cost
    # ten times what they save. Read when a tensor library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from gemb.recipe_file import find, load

    wanted = load(find(recipe), overrides)
    trainer = able("train") if backend == "auto" else named(backend)
    verdict = trainer.train(
        wanted,
        Training(
            run=run or Path("run"),
            resume=resume,
            dry_run=dry_run,
            strict=strict,
            baseline=not no_baseline,
            runtime=Runtime(device=device, threads=threads),
            quiet=quiet,
        ),
    )
    if verdict is None:
        return
    if as_json:
        import json

        click.echo(json.dumps(verdict.to_json()))
    if verdict.word == "REGRESSION":
        raise NegativeAnswer(verdict.line)
    if not as_json:
        click.echo(verdict.line)
