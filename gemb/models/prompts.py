"""Task prompts: the words that EmbeddingGemma was trained to see around a text.

A model carries its own prompts (sentence-transformers' dictionary, or the metadata of a GGUF file).
`TASKS` maps gemb's task names to that dictionary's names; where a model has none of them, those of
the model card are used. Source: model card of google/embeddinggemma-300m; transformers
`convert_gemma3_weights.py` for the dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gemb.errors import UsageError

NO_TITLE = "none"

# gemb's task -> the names to look for in a model's dictionary, in order.
TASKS: dict[str, tuple[str, ...]] = {
    "document": ("document", "Retrieval-document"),
    "query": ("query", "Retrieval-query", "Retrieval"),
    "similarity": ("STS", "similarity"),
    "code": ("code", "InstructionRetrieval"),
    "classification": ("Classification", "classification"),
    "clustering": ("Clustering", "clustering"),
    "qa": ("qa",),
    "fact": ("fact",),
    "none": (),
}

# The words of the model card: question answering and fact checking stand in the card alone.
CARD: dict[str, str] = {
    "document": "title: none | text: ",
    "query": "task: search result | query: ",
    "similarity": "task: sentence similarity | query: ",
    "code": "task: code retrieval | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "qa": "task: question answering | query: ",
    "fact": "task: fact checking | query: ",
    "none": "",
}

# What the model's folder on the hub holds (`convert_gemma3_weights.py`), for folders made here.
DICTIONARY: dict[str, str] = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}

_FIELD = re.compile(r"\{(text|title)\}")


@dataclass(frozen=True)
class Prompt:
    """A template with `{text}`, once or more, and perhaps `{title}`; other braces are plain."""

    template: str

    def render(self, text: str, title: str | None = None) -> str:
        """Return what the model sees. Braces inside the text or the title stay as they are."""
        fields = {"text": text, "title": title or NO_TITLE}
        return _FIELD.sub(lambda match: fields[match[1]], self.template)

    @property
    def takes_title(self) -> bool:
        """Whether a title changes what the model sees."""
        return "{title}" in self.template


def for_task(task: str, prompts: Mapping[str, str]) -> Prompt:
    """Return the prompt of one of `TASKS` for a model with this dictionary of prompts."""
    if task not in TASKS:
        raise UsageError(f"no task '{task}'; tasks: {', '.join(TASKS)}")
    template = next((prompts[name] for name in TASKS[task] if name in prompts), CARD[task])
    # The document prompt has a place for the title: `title: none | text: `.
    template = template.replace(f"title: {NO_TITLE} |", "title: {title} |", 1)
    return Prompt(template + "{text}")


def custom(template: str, option: str = "--prompt") -> Prompt:
    """Return the user's own prompt; `what` names the option that gave it.

    Raises:
        UsageError: it has no `{text}`.
    """
    if "{text}" not in template:
        raise UsageError(f"{option} {template!r} has no {{text}} where the text goes")
    return Prompt(template)
