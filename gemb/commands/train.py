"""`gemb train`: a model from a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemb.backend import Runtime, Training
from gemb.commands.options import quiet_option
from gemb.commands.params import NewPath, Processes, RecipeName
from gemb.commands.recipes import Override
from gemb.errors import NegativeAnswer, UsageError
from gemb.io.notes import is_quiet, note
from gemb.plugins import able
from gemb.training.outcome import speaks_for_all
from gemb.training.slurm import batch_file

if TYPE_CHECKING:
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
    type=click.Choice(["auto", "none", "torchrun", "slurm"]),
    default="auto",
    show_default=True,
    help="auto: torchrun for more than one process; none: this process alone; slurm, with -n: "
    "print a batch file.",
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

    With --nproc it starts so many processes by torchrun, which share each batch: the gradients are
    those of one process. Under a torchrun of yours (`torchrun -m gemb train ...`) it trains the
    same, and each process tells its own failure.

    \b
    gemb train finetune -o runs/a --nproc 8
    gemb train finetune -o runs/a --nproc 8 --nnodes 4 --rdzv host1:29500   (on each of four)
    gemb train finetune -o runs/a --nproc 8 --nnodes 4 --launch slurm -n | sbatch

    A chain (gemb recipes show embeddinggemma) is run stage by stage, each in RUN/STAGE. The same
    command goes on where it was stopped, and leaves out what is done and has not changed; KEY is
    STAGE.KEY. gemb recipes plan tells what it costs.

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
    # On a machine that does other work, too, threads that spin while they wait for each other cost
    # ten times what they save. Read when a tensor library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from gemb.recipe.chain import is_chain
    from gemb.recipe.file import find, read_recipe, read_tree
    from gemb.recipe.run_folder import RunFolder

    tree = read_tree(find(recipe))
    if is_chain(tree):
        _train_chain(tree, click.get_current_context().params)
        return
    wanted = read_recipe(tree, overrides)
    if launch == "slurm":
        click.echo(_slurm(click.get_current_context().params), nl=False)
        return
    trainer = able("train", backend)
    how = Training(
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
    if wanted.mixtures:
        from gemb.training.mixtures import search

        search(wanted, how, trainer)
    else:
        trainer.train(wanted, how)
    # A search is one process, whatever its runs start.
    if not dry_run and (wanted.mixtures or speaks_for_all()):
        _print_verdict(RunFolder(how.run).verdict, as_json=as_json)


def _print_verdict(path: Path, *, as_json: bool) -> None:
    """Print what became of the scores, where the run has compared them.

    Raises:
        NegativeAnswer: the model became worse.
    """
    import json

    if not path.is_file():
        return
    verdict = json.loads(path.read_bytes())
    click.echo(json.dumps(verdict) if as_json else verdict["line"])
    if verdict["verdict"] == "REGRESSION":
        raise NegativeAnswer(verdict["line"])


# Options of `gemb train` that a chain hands on to its stages of training, with their defaults.
_HANDED_ON = {"backend": "auto", "device": "auto", "threads": 0, "processes": 0, "launch": "auto"}
_NAMES = {"processes": "nproc"}


def _train_chain(tree: Value, given: Mapping[str, Any]) -> None:
    """Run the stages of a chain, or only show them."""
    from gemb.commands.chains import checked_chain, command_options, plan_rows, plan_words
    from gemb.commands.printing import print_table

    if given["resume"] not in ("never", "auto"):
        raise UsageError("a chain goes on by itself: --resume FOLDER is of one recipe")
    if given["as_json"] or given["nodes"] > 1 or given["meeting"] or given["launch"] == "slurm":
        raise UsageError(
            f"{given['recipe']} is a chain, which has no --json, --nnodes, --rdzv and "
            "--launch slurm; its recipes have: gemb train RUN/stages/NAME.yaml"
        )
    chain, run = checked_chain(tree, given["overrides"]), given["run"]
    if given["dry_run"]:
        from gemb.training.chain_cost import Gpu, plan
        from gemb.training.chain_run import ChainRun, Status

        found = plan(chain, Gpu())
        statuses = ChainRun(chain, run).statuses() if run else None
        print_table(plan_rows(found, statuses))
        for line in plan_words(found):
            click.echo(line)
        every = {stage.name: Status("new") for stage in chain.stages}
        if absent := ChainRun(chain, run or Path("run")).absent_inputs(statuses or every):
            note(absent)
        return
    from gemb.recipe.chain import OUTPUTS
    from gemb.training.chain_run import Options, run_chain

    options: list[str] = []
    for name, default in _HANDED_ON.items():
        if given[name] != default:
            options += [f"--{_NAMES.get(name, name)}", str(given[name])]
    flags = {"--strict": given["strict"], "--no-baseline": given["no_baseline"], "-q": is_quiet()}
    options += [flag for flag, is_given in flags.items() if is_given]
    shared = {}
    if given["threads"]:
        shared["threads"] = ["-j", str(given["threads"])]
    if is_quiet():
        shared["quiet"] = ["-q"]
    commands = {
        name: tuple(
            word
            for option, words in shared.items()
            if option in command_options(name)
            for word in words
        )
        for name in OUTPUTS
    }
    # As this process was started, so that it is the same Python with the same packages.
    own = len(sys.orig_argv) - len(sys.argv) + 1
    program = (sys.executable, *sys.orig_argv[1:own])
    print_table(
        run_chain(
            chain,
            run,
            Options(program=program, train=tuple(options), commands=commands),
        )
    )


def _slurm(given: Mapping[str, Any]) -> str:
    """Return the batch file; the run's command in it has the options that were given.

    Raises:
        UsageError: an option is missing.
    """
    if not given["dry_run"]:
        raise UsageError("--launch slurm prints a batch file and starts nothing: say so with -n")
    if given["run"] is None:
        raise UsageError("where to? -o RUN names the run's folder, on a disk that all machines see")
    if not given["processes"]:
        raise UsageError("--launch slurm: how many GPUs has a machine? --nproc N")
    words = ["gemb", "train", given["recipe"], *given["overrides"], "-o", str(given["run"])]
    flags = {"--strict": "strict", "--no-baseline": "no_baseline", "--json": "as_json"}
    words += [flag for flag, name in flags.items() if given[name]]
    words += ["-q"] if is_quiet() else []
    for option, default in (("backend", "auto"), ("device", "auto"), ("threads", 0)):
        if given[option] != default:
            words += [f"--{option}", str(given[option])]
    return batch_file(
        words,
        name=f"gemb-{given['run'].resolve().name}",
        nodes=given["nodes"],
        processes=given["processes"],
    )
