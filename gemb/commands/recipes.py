"""`gemb recipes`: list, copy and check recipes, and estimate their cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.chains import TERAFLOPS, checked_chain, print_plan
from gemb.commands.params import NewPath, Override, RecipeKey, RecipeName
from gemb.commands.printing import Group, print_json, print_table
from gemb.errors import UsageError
from gemb.io.notes import answer
from gemb.recipe.names import SCRIPTS, builtin_recipes, recipe_names

if TYPE_CHECKING:
    from gemb.recipe.keys import Key
    from gemb.recipe.schema import Recipe


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
RECIPE = click.argument("recipe", type=RecipeName(), metavar="RECIPE")
OVERRIDES = click.argument("overrides", nargs=-1, type=Override(), metavar="[KEY=VALUE]...")


@click.group(cls=Group)
def recipes() -> None:
    """List, copy and check recipes of training.

    \b
    gemb recipes ls
    gemb recipes cp finetune my.yaml
    gemb recipes check my.yaml optimizer.lr=1e-5
    gemb recipes plan embeddinggemma

    RECIPE is a name that `ls` prints, or a YAML file. ./NAME is always a file. `show` and `cp` know
    slurm.sh, too, the batch file of a run on a SLURM cluster.
    """


@recipes.command()
@JSON
def ls(as_json: bool) -> None:
    """List the recipes that come with gemb."""
    built_in = [(name, builtin_recipes() / f"{name}.yaml") for name in recipe_names()]
    if as_json:
        print_json(
            [
                {"name": name, "about": _about(path), "path": str(path.absolute())}
                for name, path in built_in
            ]
        )
        return
    print_table([("NAME", "ABOUT"), *((name, _about(path)) for name, path in built_in)])


@recipes.command()
@RECIPE
def show(recipe: str) -> None:
    """Print a recipe as it is written, with its comments."""
    answer(_read(recipe), nl=False)


@recipes.command()
@RECIPE
@click.argument("file", type=NewPath())
@click.option("-f", "--force", is_flag=True, help="Replace the file.")
def cp(recipe: str, file: Path, force: bool) -> None:
    """Copy a recipe to a FILE of yours, to change it there."""
    from gemb.io.atomic import check_file, new_file

    text = _read(recipe)
    check_file(file, overwrite=force)
    with new_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    answer(str(file), errors="surrogateescape")


@recipes.command()
@RECIPE
@OVERRIDES
@click.option(
    "--resolved", is_flag=True, help="Print the recipe with every key and the overrides, as YAML."
)
@JSON
def check(recipe: str, overrides: tuple[str, ...], resolved: bool, as_json: bool) -> None:
    """Check a recipe, as training would before it begins.

    Keys, types, limits, and what must go together; neither data nor models are opened. Exit code 2
    and one line that names the file's line, or the override, if something is not right.

    \b
    gemb recipes check my.yaml
    gemb recipes check finetune data.0.path=pairs.jsonl loss.spread_out=null
    gemb recipes check smoke --resolved
    """
    from gemb.recipe.chain import dump_chain, is_chain
    from gemb.recipe.file import dump, find, read_recipe, read_tree
    from gemb.recipe.keys import to_plain

    if resolved and as_json:
        raise UsageError("--resolved prints YAML; give it or --json")
    tree = read_tree(find(recipe))
    if is_chain(tree):
        chain = checked_chain(tree, overrides)
        if as_json:
            print_json({name: stage.to_json() for name, stage in chain.items()})
        elif resolved:
            answer(dump_chain(chain), nl=False)
        else:
            answer(f"{recipe}: fine; a chain of {len(chain)} stages: {', '.join(chain)}")
        return
    checked = read_recipe(tree, overrides)
    if as_json:
        print_json(to_plain(checked))
    elif resolved:
        answer(dump(checked), nl=False)
    else:
        answer(f"{recipe}: {_summary(checked)}")


@recipes.command()
@RECIPE
@OVERRIDES
@click.option(
    "--tflops",
    "teraflops",
    type=click.FloatRange(0, min_open=True),
    default=TERAFLOPS,
    show_default=True,
    help="10^12 operations a second that the GPU reaches; 400: an H100 at 40 % of its peak.",
)
@JSON
def plan(recipe: str, overrides: tuple[str, ...], teraflops: float, as_json: bool) -> None:
    """Print the estimated cost of a recipe or a chain, stage by stage.

    Nothing is run. The formula is 6 operations for each token and number in the model's layers,
    with texts as long as max_tokens. A model that is not on this machine is assumed as large as
    EmbeddingGemma-300M.

    \b
    gemb recipes plan embeddinggemma
    gemb recipes plan embeddinggemma --tflops 150
    gemb train embeddinggemma -o RUN -n      (the same, and which stages of RUN are done)
    """
    import dataclasses

    from gemb.recipe.chain import Stage, is_chain
    from gemb.recipe.file import find, read_recipe, read_tree
    from gemb.training.chain_cost import plan as chain_plan

    path = find(recipe)
    tree = read_tree(path)
    if is_chain(tree):
        chain = checked_chain(tree, overrides)
    else:
        chain = {path.stem: Stage(name=path.stem, recipe=read_recipe(tree, overrides))}
    if not as_json:
        print_plan(chain, teraflops)
        return
    costs, absent = chain_plan(chain)
    rows = [{**dataclasses.asdict(cost), "hours": cost.hours(teraflops)} for cost in costs]
    hours = sum(cost.hours(teraflops) or 0 for cost in costs)
    print_json({"costs": rows, "tflops": teraflops, "assumed": absent, "hours": hours})


@recipes.command()
@click.argument("key", type=RecipeKey(), default="", metavar="[KEY]")
@JSON
def schema(key: str, as_json: bool) -> None:
    """Print the keys of a recipe: type, default and meaning.

    \b
    gemb recipes schema optimizer
    gemb recipes schema --json > recipe.schema.json

    The JSON Schema is for editors: put
    `# yaml-language-server: $schema=recipe.schema.json` on top of the recipe.
    """
    from gemb.recipe.keys import every_key, json_schema
    from gemb.recipe.read import find_key

    block = find_key(key)
    if as_json:
        print_json(json_schema(block))
        return
    rows = [_row(path, child) for path, child in every_key(block, key)] or [_row(key, block)]
    print_table([("KEY", "TYPE", "DEFAULT", "MEANING"), *rows])


def _about(path: Path) -> str:
    """Return the recipe's first line, a comment about its purpose."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip("\n")


def _read(recipe: str) -> str:
    from gemb.recipe.file import find
    from gemb.recipe.yaml_text import file_text

    return file_text(builtin_recipes() / recipe if recipe in SCRIPTS else find(recipe))


def _row(path: str, key: Key) -> tuple[str, ...]:
    """Return the columns of `schema` for a key."""
    import json

    from gemb.recipe.keys import REQUIRED

    default = "required"
    if key.default is not REQUIRED:
        default = "" if key.keys and key.default else json.dumps(key.default)
    return path, _type(key), default, key.meaning


def _type(key: Key) -> str:
    """Return a short name for the type of a key."""
    if key.keys:
        type_name = "block"
    elif key.item:
        item = _type(key.item).replace("number", "numbers").replace("block", "blocks")
        type_name = f"list of {item}"
    else:
        type_name = key.values.removeprefix("a ").removesuffix(", or null")
        type_name = type_name.removeprefix("one of ").replace(", ", "|")
    return type_name + ("|null" if key.optional else "")


def _summary(recipe: Recipe) -> str:
    """Return a summary of the recipe, in a line."""
    from gemb.recipe.schema import Adapt, Draft

    sources = f"{len(recipe.data)} source" + ("s" if len(recipe.data) > 1 else "")
    length = f"{recipe.run.steps} steps" if recipe.run.steps else f"epochs: {recipe.run.epochs:g}"
    if recipe.stage == "adapt":
        adapt = recipe.adapt or Adapt()
        return (
            f"fine; adapt from {recipe.init.model}, {sources}, {adapt.tokens} tokens a step, "
            f"{length}, {adapt.objective}"
        )
    if recipe.stage == "draft":
        draft = recipe.draft or Draft()
        return (
            f"fine; draft of {recipe.init.model}, {sources}, {draft.queries} queries and "
            f"{draft.documents} documents of its teacher, {length}"
        )
    losses = {
        "contrastive": recipe.loss.contrastive,
        "spread-out": recipe.loss.spread_out,
        "distillation": recipe.loss.distill,
    }
    return (
        f"fine; {recipe.stage} from {recipe.init.model}, {sources}, {recipe.batch.pairs} pairs a "
        f"step, {length}, {' + '.join(name for name, part in losses.items() if part)}"
    )
