"""Write the generated parts of README.md and of mini's card.

`python tests/support/readme_reference.py` does it. The commands come from `--help`, the packages
from their docstrings, and the facts in the card from the model's file.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from gemb.commands import COMMANDS
from gemb.io.text import size_in_words
from gemb.models.references import bundled
from gemb.plugins import describe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CARD = ROOT / "gemb" / "data" / "mini.md"
PACKAGES = (  # from the command line down
    "gemb/commands",
    "gemb/training",
    "gemb/serving",
    "gemb/integrations",
    "gemb/targets",
    "gemb/weights",
    "gemb/search",
    "gemb/evaluation",
    "gemb/index",
    "gemb/datasets",
    "gemb/embedding",
    "gemb/recipe",
    "gemb/models",
    "gemb/texts",
    "gemb/io",
    "backends/gemb_torch",
    "backends/gemb_llamacpp",
    "backends/gemb_onnx",
    "backends/gemb_static",
)


def commands() -> str:
    """Return every command with the first sentence of its help, as a Markdown table."""
    lines = ["| command | what it does |", "|---|---|"]
    for name, entry in COMMANDS.items():
        lines.append(f"| `gemb {name}` | {entry.summary} |")
    return "\n".join(lines) + "\n"


def packages() -> str:
    """Return every package with the first sentence of its docstring, as a Markdown table."""
    lines = ["| package | what it is for |", "|---|---|"]
    for package in PACKAGES:
        source = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
        words = ast.get_docstring(ast.parse(source)) or ""
        lines.append(f"| `{package}` | {_first_sentence(words)} |")
    return "\n".join(lines) + "\n"


def facts(path: Path) -> str:
    """Return what a model's file says of itself, as a Markdown table."""
    model = describe(path)
    kinds = [f"{kind} {type_}" for kind, type_ in sorted(model.types.items())]
    rows = (
        ("file", f"{path.name}, {size_in_words(model.size_bytes)}, GGUF (`{model.architecture}`)"),
        ("parameters", f"{model.parameters / 1e6:.1f} M"),
        ("layers", f"{model.layers}, {model.hidden} wide"),
        ("vocabulary", f"{model.vocabulary:,} tokens"),
        ("context", f"{model.max_tokens:,} tokens"),
        ("vectors", ", ".join(str(dim) for dim in sorted(model.matryoshka_dims, reverse=True))),
        ("types", ", ".join(kinds)),
        ("fingerprint", model.fingerprint),
    )
    lines = ["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)]
    return "\n".join(lines) + "\n"


def readme_parts() -> dict[str, str]:
    """Return the generated parts of README.md."""
    return {"commands": commands(), "packages": packages()}


def card_parts() -> dict[str, str]:
    """Return the generated part of the bundled model's card."""
    return {"facts": facts(bundled())}


def replaced(text: str, parts: Mapping[str, str]) -> str:
    """Return a text with its generated parts between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, begin_found, rest = text.partition(begin)
        _, end_found, after = rest.partition(end)
        if not begin_found or not end_found:
            raise ValueError(f"no {begin} or no {end}")
        text = f"{before}{begin}\n\n{part}\n{end}{after}"
    return text


def _first_sentence(text: str) -> str:
    """Return the first line, without its last dot."""
    return text.strip().splitlines()[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    for file, parts in ((README, readme_parts()), (CARD, card_parts())):
        file.write_text(replaced(file.read_text(encoding="utf-8"), parts), encoding="utf-8")
