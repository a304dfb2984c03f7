"""One file per subcommand: options, help and printing. The work is done elsewhere.

`COMMANDS` lists them, `options` and `params` hold what several share, `printing` the tables.
May import: everything but `cli`; heavy imports stand inside functions.
"""

import click

from gemb.commands.completion import completion
from gemb.commands.cut import cut
from gemb.commands.doctor import doctor
from gemb.commands.embed import embed
from gemb.commands.eval import evaluate
from gemb.commands.export_gguf import export
from gemb.commands.index import index
from gemb.commands.manual import show_help
from gemb.commands.mine import mine
from gemb.commands.models import models
from gemb.commands.quantize import quantize
from gemb.commands.recipes import recipes
from gemb.commands.search import search
from gemb.commands.soup import soup
from gemb.commands.train import train
from gemb.commands.verify import verify

COMMANDS: tuple[click.Command, ...] = (
    train,
    embed,
    search,
    index,
    evaluate,
    verify,
    models,
    recipes,
    mine,
    export,
    quantize,
    cut,
    soup,
    doctor,
    completion,
    show_help,
)
