"""What a new model folder takes over from the one that it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from gemb.checkpoint import Checkpoint

# Names, or patterns, of files beside the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
SETTINGS = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "3_Dense/config.json",
)
HEAD_FILES = (
    "1_Pooling/model.safetensors",
    "2_Dense/model.safetensors",
    "3_Dense/model.safetensors",
)


def copy_files(source: Path, target: Path, *patterns: Iterable[str]) -> None:
    """Copy the files of the folder `source` that match, where they are there."""
    for pattern in (pattern for some in patterns for pattern in some):
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def write_readme(source: Checkpoint, target: Path, by: str) -> None:
    """Say what was changed, as the Gemma Terms of Use ask of who passes a changed model on.

    Args:
        source: the model that was changed.
        target: the new folder.
        by: what did it, and how: the end of a sentence and perhaps more.
    """
    licence = source.licence()
    lines = ["---", f"license: {licence}", "---", ""] if licence else []
    lines.append(f"Modified from {source.folder.resolve().name} by {by}")
    if licence == "gemma":
        lines += [
            "",
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms",
        ]
    (target / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write JSON as Hugging Face's libraries do: indented, UTF-8."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
