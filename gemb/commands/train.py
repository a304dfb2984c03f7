"""`gemb train`: a model from a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.backend import Runtime, Training
from gemb.commands.options import quiet_option
from gemb.commands.params import NewPath, Override, Processes, RecipeName
from gemb.commands.printing import print_table
from gemb.errors import NegativeAnswer, UsageError
from gemb.io.notes import answer, is_quiet, note
from gemb.plugins import able
from gemb.training.outcome import speaks_for_all

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe
    from gemb.recipe.yaml_text import Value


@click.command()
@click.argument("recipe", type=RecipeName())
@click.argument("overrides", nargs=-1, type=Override(), metavar="[KEY=VALUE]...")
@click.option(
    "-o",
    "--output",
    "run",
    type=NewPath(),
    metavar="RUN",
    help="The run's folder: the model will be RUN/model, the page about it RUN/report.html.",
)
@click.option(
    "--resume",
    default="never",
    metavar="auto|never|FOLDER",
    show_default=True,
    help="auto: go on from the run's last checkpoint, if it has one; FOLDER: from that one under "
    "RUN/checkpoints.",
)
@click.option("--strict", is_flag=True, help="Stop at a bad row of the data; else it is left out.")
@click.option(
    "--no-baseline", is_flag=True, help="Do not evaluate before the first step: no verdict."
)
@click.option(
    "--backend", metavar="NAME", default="auto", help="What trains; gemb doctor lists it."
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1.", show_default=True)
@click.option(
    "-j",
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="CPU threads, of all processes together; 0 (the default): one for each core.",
)
@click.option(
    "--nproc",
    "processes",
    type=Processes(),
    metavar="auto|N",
    default="auto",
    show_default=True,
    help="Processes on this machine; auto: one for each GPU, or one.",
)
@click.option(
    "--nnodes",
    "nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines; start the same command on each.",
)
@click.option(
    "--rdzv",
    "meeting",
    default="",
    metavar="HOST:PORT",
    help="Where the machines meet: a free port of one of them.",
)
@click.option(
    "--launch",
    type=click.Choice(["auto", "none", "torchrun"]),
    default="auto",
    show_default=True,
    help="auto: processes beside this one, if more than one trains; torchrun: always; none: never.",
)
@click.option(
    "--from",
    "first",
    default="",
    metavar="STAGE",
    help="Of a chain: run this stage and those after it again.",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Look at the data, predict time and memory, and end."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@quiet_option
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
    processes: int,
    nodes: int,
    meeting: str,
    launch: str,
    first: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model as a recipe says.

    RECIPE is a YAML file, or the name of one that comes with gemb: `gemb recipes ls`. KEY=VALUE
    changes a key of it: `gemb recipes schema` lists them all.

    \b
    gemb train smoke -o runs/smoke
    gemb train domain data.0.path=pairs.jsonl eval.data=dev/ -o runs/legal
    gemb train finetune.yaml optimizer.lr=1e-5 -o runs/a -n
    gemb train finetune.yaml -o runs/a --resume auto
    gemb train adapt data.0.path=texts.txt -o runs/adapt   (an encoder of a Gemma 3 decoder)

    Before the first step it shows what it found in the data, stops if the evaluation set is in it,
    and predicts time and memory. SIGTERM, SIGUSR1 or Ctrl-C stop it, saved, after the next step.

    A recipe with `mixtures:` searches the weights of its sources by short runs, trains in full with
    the best, and averages these models: RUN/model.

    With --nproc it starts so many processes, which share each batch: the gradients are those of one
    process. Under a torchrun of yours (`torchrun -m gemb train ...`) it trains the same, and each
    process prints its own failure.

    \b
    gemb train finetune -o runs/a --nproc 8
    gemb train finetune -o runs/a --nproc 8 --nnodes 4 --rdzv host1:29500   (on each of four)
    gemb recipes cp slurm.sh job.sh                                         (for SLURM)

    A chain (gemb recipes show embeddinggemma) is run stage by stage, each in RUN/STAGE. The same
    command goes on where it was stopped, and leaves out what is done and has not changed; --from
    STAGE runs a stage and those after it again. KEY is STAGE.KEY. gemb recipes plan prints the
    cost.

    \b
    gemb train embeddinggemma-mini -o runs/paper
    gemb train chain.yaml pretrain.optimizer.lr=1e-4 -o runs/whole -n

    \b
    Exit codes: 0 done, 1 the model became worse on the evaluation set, 2 wrong usage or data,
    4 something is absent, 5 the run failed, 75 stopped and saved: the same command with
    --resume auto goes on.
    """
    if run is None and not dry_run:
        from gemb.recipe.file import find

        find(recipe)  # a misspelt name first
        raise UsageError("where to? -o RUN names the run's folder; -n only looks")
    # On a machine with other work, threads that spin while they wait cost ten times what they save.
    # Tensor libraries read this when they are loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from gemb.recipe.chain import is_chain
    from gemb.recipe.file import find, read_recipe, read_tree

    training = Training(
        run=run or Path("run"),
        resume=resume,
        dry_run=dry_run,
        strict=strict,
        baseline=not no_baseline,
        runtime=Runtime(device=device, threads=threads),
        # As this process was started, so that it is the same Python with the same packages.
        command=(sys.executable, *sys.orig_argv[1:]),
        launch=launch,
        processes=processes,
        nodes=nodes,
        meeting=meeting,
    )
    tree = read_tree(find(recipe))
    if is_chain(tree):
        if as_json or nodes > 1 or meeting:
            raise UsageError(
                f"{recipe} is a chain, which has no --json, --nnodes and --rdzv; its recipes have: "
                "gemb train RUN/stages/NAME.yaml"
            )
        _train_chain(tree, overrides, run, training, backend=backend, first=first)
    elif first:
        raise UsageError(f"{recipe} is no chain, which --from is for")
    else:
        _train(read_recipe(tree, overrides), training, backend, as_json=as_json)


def _train(recipe: Recipe, training: Training, backend: str, *, as_json: bool) -> None:
    """Train by one recipe, and print the verdict."""
    from gemb.recipe.run_folder import RunFolder

    trainer = able("train", backend)
    if recipe.mixtures:
        from gemb.training.mixtures import run_search

        run_search(recipe.mixtures, recipe, training, trainer)
    else:
        trainer.train(recipe, training)
    # A search is one process, whatever its runs start.
    if not training.dry_run and (recipe.mixtures or speaks_for_all()):
        _print_verdict(RunFolder(training.run).verdict, as_json=as_json)


def _print_verdict(path: Path, *, as_json: bool) -> None:
    """Print the verdict of the run, if it has one.

    Raises:
        NegativeAnswer: the model became worse.
    """
    import json

    from gemb.evaluation.verdict import too_few

    if not path.is_file():
        return
    verdict = json.loads(path.read_bytes())
    answer(json.dumps(verdict) if as_json else verdict["line"])
    if verdict["verdict"] == "TOO FEW":
        note(too_few(verdict["units"]))
    if verdict["verdict"] == "REGRESSION":
        raise NegativeAnswer(verdict["line"])


def _train_chain(
    tree: Value,
    overrides: Sequence[str],
    run: Path | None,
    training: Training,
    *,
    backend: str,
    first: str,
) -> None:
    """Run the stages of a chain, repeating those from `first` on, or print the plan."""
    from gemb.commands.chains import checked_chain, print_plan
    from gemb.training.chain_run import ChainRun, StageOptions, Status, run_chain

    if training.resume not in ("never", "auto"):
        raise UsageError("a chain goes on by itself: --resume FOLDER is of one recipe")
    chain = checked_chain(tree, overrides)
    names = list(chain)
    if first and first not in names:
        raise UsageError(f"--from {first}: no such stage; there are {', '.join(names)}")
    chain_run = ChainRun(chain, training.run, names[names.index(first) :] if first else ())
    if training.dry_run:
        new = {name: Status("new") for name in chain}
        statuses = chain_run.statuses() if run else new
        print_plan(chain, states=[status.word for status in statuses.values()] if run else None)
        if absent := chain_run.absent_inputs(statuses):
            note(absent)
        return
    # As this process was started, so that it is the same Python with the same packages.
    own = len(sys.orig_argv) - len(sys.argv) + 1
    quiet = ("-q",) if is_quiet() else ()
    threads = ("-j", str(training.runtime.threads)) if training.runtime.threads else ()
    options = StageOptions(
        program=(sys.executable, *sys.orig_argv[1:own]),
        train=(*_options(training, backend), *threads, *quiet),
        commands=(*threads, *quiet),
    )
    print_table(run_chain(chain_run, options))


def _options(training: Training, backend: str) -> Iterator[str]:
    """Yield the options that a chain passes to its training stages."""
    for option, value, default in (
        ("--backend", backend, "auto"),
        ("--device", training.runtime.device, "auto"),
        ("--nproc", training.processes, 0),
        ("--launch", training.launch, "auto"),
    ):
        if value != default:
            yield from (option, str(value))
    if training.strict:
        yield "--strict"
    if not training.baseline:
        yield "--no-baseline"
