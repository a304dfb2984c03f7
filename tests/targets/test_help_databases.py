"""The commands of `gemb help databases`, run as they stand but for the address."""

from __future__ import annotations

import json
import shlex

from fake_backend import Gemb, write_model
from gemb.commands.manual import topics
from pushed_rows import BAG, ROWS, write_rows

PLACE = "postgres://localhost/wiki"


def test_the_lines_of_the_help_topic_run(gemb: Gemb, database: str) -> None:
    write_model(gemb.folder / "model.fake", **BAG)
    (gemb.folder / "docs").mkdir()
    (gemb.folder / "docs" / "money.md").write_text("# Refunds\n\nYour money comes back soon.\n")
    (gemb.folder / "docs" / "rules.md").write_text("# Rules\n\nThe refund rules are strict.\n")
    text = topics()["databases"].read_text(encoding="utf-8")
    lines = [line.strip() for line in text.split("\n\n")[1].splitlines()]
    assert len(lines) == 5
    assert lines[0].startswith("pip install ")
    outputs = []
    for line in lines[1:]:
        program, *arguments = shlex.split(line.replace(PLACE, database))
        assert program == "gemb"
        done = gemb(*arguments)
        assert done.returncode == 0, (line, done.stderr)
        outputs.append(done.stdout.decode())
    assert "recall@10 1.000" in outputs[1]
    assert "money" in outputs[2]
    assert json.loads(outputs[3].splitlines()[0])["path"] == "docs/rules.md"
    write_rows(gemb, ROWS)
    (line,) = (line for line in text.splitlines() if line.startswith("    gemb embed "))
    output = b""
    for part in line.replace(PLACE, database).split(" | "):
        program, *arguments = shlex.split(part)
        assert program == "gemb"
        done = gemb(*arguments, stdin=output)
        assert done.returncode == 0, (part, done.stderr)
        output = done.stdout
    assert output.startswith(b'+5 ~0 -0 rows (5 in table "rows" in ')
