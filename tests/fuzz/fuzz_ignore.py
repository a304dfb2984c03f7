"""Random rules of .gitignore over a tree of odd names: what git leaves out, gemb leaves out."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from campaign import Case, Fault, main

from rule_files import gemb_finds, git_finds, make_tree, random_rules

SLOW_S = 5.0  # that a few rules may take over a few hundred files


def campaign(folder: Path) -> Case:
    """Return the case: rules in up to four folders of a tree."""
    if shutil.which("git") is None:
        return lambda _dice, _folder: "git is not installed"
    root = folder / "tree"
    make_tree(root, random.Random(0), 250)
    folders = [Path(place) for place, *_ in os.walk(root) if ".git" not in Path(place).parts]

    def case(dice: random.Random, kept: Path) -> str:
        places = {root, *dice.sample(folders, dice.randint(0, 3))}
        files = [place / ".gitignore" for place in places]
        if dice.random() < 0.3:
            files.append(root / ".git" / "info" / "exclude")
        for number, file in enumerate(files):
            file.write_bytes(random_rules(dice))
            shutil.copy(file, kept / f"{number}-{str(file.relative_to(root)).replace('/', '%')}")
        expected = git_finds(root)
        began = time.process_time()
        found = gemb_finds(root)
        took = time.process_time() - began
        for file in files:
            file.unlink()
        if found != expected:
            detail = f"taken by git alone: {expected - found}, by gemb alone: {found - expected}"
            raise Fault("other files than git's", detail)
        if took > SLOW_S:
            raise Fault("slow", f"{took:.1f} s")
        return "as git" if expected else "as git, nothing left"

    return case


if __name__ == "__main__":
    main(__file__, campaign)
