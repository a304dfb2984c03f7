"""`gemb recipes`: the recipes that come with gemb, and the checks that a recipe must pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from gemb.commands.params import NewPath, RecipeName
from gemb.commands.printing import Group, print_json, print_table
from gemb.errors import UsageError
from gemb.recipe.names import builtin_recipes, recipe_names

if TYPE_CHECKING:
    from gemb.recipe.keys import Key
    from gemb.recipe.schema import Recipe


class RecipeKey(click.ParamType[str]):
    """The path of a key, `optimizer.lr`; completed by what a recipe can hold."""

    name = "key"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the keys that begin so."""
        return [CompletionItem(path) for path, _ in _keys() if path.startswith(incomplete)]


class Override(RecipeKey):
    """`KEY=VALUE`, completed as far as the sign; of a block, its keys are given."""

    name = "override"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return the keys that begin so."""
        known = [f"{path}=" for path, key in _keys() if key.optional or not key.keys]
        return [CompletionItem(path) for path in known if path.startswith(incomplete)]


def _keys() -> Iterator[tuple[str, Key]]:
    from gemb.recipe.keys import every_key

    for path, key in every_key():
        yield path.replace(".N", ".0"), key


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

    RECIPE is a name that `ls` prints, or a YAML file. ./NAME is always a file.
    """


@recipes.command()
@JSON
def ls(as_json: bool) -> None:
    """List the recipes that come with gemb."""
    found = [(name, builtin_recipes() / f"{name}.yaml") for name in recipe_names()]
    if as_json:
        print_json(
            [
                {"name": name, "about": _about(path), "path": str(path.absolute())}
                for name, path in found
            ]
        )
        return
    print_table([("NAME", "ABOUT"), *((name, _about(path)) for name, path in found)])


@recipes.command()
@RECIPE
def show(recipe: str) -> None:
    """Print a recipe as it is written, with its comments."""
    click.echo(_read(recipe), nl=False)


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
    click.echo(file)


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
        from gemb.commands.chains import checked_chain

        chain = checked_chain(tree, overrides)
        if as_json:
            print_json({stage.name: stage.plain() for stage in chain.stages})
        elif resolved:
            click.echo(dump_chain(chain), nl=False)
        else:
            names = ", ".join(stage.name for stage in chain.stages)
            click.echo(f"{recipe}: fine; a chain of {len(chain.stages)} stages: {names}")
        return
    checked = read_recipe(tree, overrides)
    if as_json:
        print_json(to_plain(checked))
    elif resolved:
        click.echo(dump(checked), nl=False)
    else:
        click.echo(f"{recipe}: {_summary(checked)}")


@recipes.command()
@RECIPE
@OVERRIDES
@click.option(
    "--gpu",
    type=click.Choice(["h100", "h200", "b200", "a100", "l4", "tpu-v5e"]),
    default="h100",
    show_default=True,
    help="Whose peak counts, of bf16 products.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of the peak that is reached.",
)
@click.option(
    "--fill",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="How long texts are on average, as a share of max_tokens.",
)
@JSON
def plan(
    recipe: str, overrides: tuple[str, ...], gpu: str, share: float, fill: float, as_json: bool
) -> None:
    """Print what a recipe or a chain will cost, stage by stage.

    It is arithmetic, and nothing is run: 6 operations for each number of the model and token, at a
    share of a GPU's peak. A model that is not here is taken to be as big as EmbeddingGemma-300M.

    \b
    gemb recipes plan embeddinggemma
    gemb recipes plan embeddinggemma --gpu tpu-v5e --share 0.5 --fill 0.3
    gemb train embeddinggemma -o RUN -n      (the same, and which stages of RUN are done)
    """
    from gemb.commands.chains import print_plan
    from gemb.recipe.file import find

    print_plan(find(recipe), overrides, gpu, share, fill, as_json=as_json)


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

    found = find_key(key)
    if as_json:
        print_json(json_schema(found))
        return
    rows = [_row(path, each) for path, each in every_key(found, key)] or [_row(key, found)]
    print_table([("KEY", "TYPE", "DEFAULT", "MEANING"), *rows])


def _about(path: Path) -> str:
    """Return the recipe's first line, which is a comment, and says what it is for."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip("\n")


def _read(recipe: str) -> str:
    from gemb.recipe.file import find
    from gemb.recipe.yaml_text import file_text

    return file_text(find(recipe))


def _row(path: str, key: Key) -> tuple[str, ...]:
    """Return the columns of `schema` for a key."""
    import json

    from gemb.recipe.keys import REQUIRED

    default = "required"
    if key.default is not REQUIRED:
        default = "" if key.keys and key.default else json.dumps(key.default)
    return path, _type(key), default, key.meaning


def _type(key: Key) -> str:
    """Return the values of a key in few words."""
    if key.keys:
        words = "block"
    elif key.item:
        item = _type(key.item).replace("number", "numbers").replace("block", "blocks")
        words = f"list of {item}"
    else:
        words = key.values.removeprefix("a ").removesuffix(", or null")
        words = words.removeprefix("one of ").replace(", ", "|")
    return words + ("|null" if key.optional else "")


def _summary(recipe: Recipe) -> str:
    """Return what the recipe does, in a line."""
    from gemb.recipe.schema import Adapt

    sources = f"{len(recipe.data)} source" + ("s" if len(recipe.data) > 1 else "")
    length = f"{recipe.run.steps} steps" if recipe.run.steps else f"epochs: {recipe.run.epochs:g}"
    if recipe.stage == "adapt":
        adapt = recipe.adapt or Adapt()
        return (
            f"fine; adapt from {recipe.init.model}, {sources}, {adapt.tokens} tokens a step, "
            f"{length}, {adapt.objective}"
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
