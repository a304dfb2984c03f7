"""What a new model folder takes over from the one that it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemb.checkpoint import Checkpoint
from gemb.model_card import history_of, known_as, write_card

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


def copied_files(source: Path, *patterns: Iterable[str]) -> Iterator[Path]:
    """Yield the files of the folder `source` that match, where they are there."""
    for pattern in (pattern for some in patterns for pattern in some):
        yield from source.glob(pattern)


def copy_files(source: Path, target: Path, *patterns: Iterable[str]) -> None:
    """Copy the files of the folder `source` that match, where they are there."""
    for file in copied_files(source, *patterns):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def write_readme(source: Checkpoint, target: Path, by: str, licence: str = "") -> None:
    """Say in README.md what was changed.

    Args:
        source: the model that was changed.
        target: the new folder.
        by: what did it, and how: the end of a sentence and perhaps more.
        licence: of the new model; empty: the source's.
    """
    said = f"Modified from {known_as(source.folder)} by {by}"
    write_card(target, licence or source.licence(), said, history_of(source.folder))
