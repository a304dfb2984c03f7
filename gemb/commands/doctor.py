"""`gemb doctor`: check that gemb works on this machine, and suggest fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gemb.commands.params import ModelReference
from gemb.errors import NegativeAnswer
from gemb.io.notes import answer
from gemb.models.references import DEFAULT

if TYPE_CHECKING:
    from gemb.backend import Check


@click.command()
@click.option(
    "-m",
    "--model",
    type=ModelReference(),
    metavar="REF",
    default=DEFAULT,
    envvar="GEMB_MODEL",
    show_envvar=True,
    show_default=True,
    help="The model of the self-test; nothing is downloaded.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(model: str, as_json: bool) -> None:
    """Check that gemb works here, and say what to mend.

    Looks at Python, processor, memory, every backend, the bundled model and the hub's cache; then
    embeds two texts alone and together, which must give the same vectors. The exit code is 1 if
    something is wrong.
    """
    from gemb.doctor import checks

    done: list[Check] = []
    for check in checks(model):
        done.append(check)
        if not as_json:
            answer(_line(check))
    failed = [check for check in done if not check.ok]
    if as_json:
        import json
        from dataclasses import asdict

        document = {"ok": not failed, "checks": [asdict(check) for check in done]}
        answer(json.dumps(document, ensure_ascii=False, indent=2))
    if failed:
        count = len(failed)
        raise NegativeAnswer(f"{count} thing{'s' if count > 1 else ''} to mend, marked FAIL above")


def _line(check: Check) -> str:
    line = f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}"
    return line if check.ok or not check.fix else f"{line}\n      {check.fix}"
