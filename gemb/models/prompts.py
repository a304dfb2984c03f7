"""Task prompts: the words that EmbeddingGemma was trained to see around a text.

A model carries its own prompts (sentence-transformers' dictionary, or the metadata of a GGUF file).
`TASKS` maps gemb's task names to that dictionary's names; where a model has none of them, its
default prompt is used, and where it names none, the words of EmbeddingGemma's model card.
Sources: model card of google/embeddinggemma-300m; transformers `convert_gemma3_weights.py` for the
dictionary; sentence-transformers `encode_document` (document, passage, corpus) and the published
models for other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemb.errors import UsageError
from gemb.io.notes import note

NO_TITLE = "none"

# gemb's task -> the names to look for in a model's dictionary, in order. Where none is there as it
# is written here, small letters and `-` count as capitals, `_`, `.` and spaces.
TASKS: dict[str, tuple[str, ...]] = {
    "document": (
        *("document", "passage", "corpus", "doc", "search_document", "Retrieval-document"),
        *("retrieval-passage", "search-passage", "documents", "passages", "docs"),
    ),
    "query": (
        *("query", "search_query", "Retrieval-query", "Retrieval", "queries", "question"),
        *("web-search-query", "s2p-query"),
    ),
    "similarity": (
        *("STS", "similarity", "sentence-similarity", "semantic-similarity", "text-matching"),
        "s2s-query",
    ),
    "code": ("code", "InstructionRetrieval", "code-retrieval", "code-query"),
    "classification": ("Classification",),
    "clustering": ("Clustering",),
    "qa": ("qa", "question-answering"),
    "fact": ("fact", "fact-checking", "fact-verification"),
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

PLAIN = "{text}"  # the template without words
_FIELD = re.compile(r"\{(text|title)\}")
_BETWEEN = re.compile(r"[\W_]+")


class ModelPrompts(dict[str, str]):
    """A model's own prompts by their names.

    Attributes:
        default: name of the one that counts where a task has none; empty: the model card's words.
        model: the model, in the note that these words stand in; empty: no note.
        are_own: False: the model holds none, and these are the card's.
    """

    def __init__(
        self,
        prompts: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        default: str = "",
        model: str = "",
        are_own: bool = True,
    ) -> None:
        """Take the prompts.

        Raises:
            UsageError: the default prompt is none of them.
        """
        super().__init__(prompts)
        self.default, self.model, self.are_own = default, model, are_own
        if default and default not in self:
            raise UsageError(
                f"{model}: default_prompt_name '{default}' is none of its prompts: "
                f"{', '.join(self) or 'it has none'}"
            )

    def tell_of_card(self, task: str) -> None:
        """Say, once, that the card's words stand in; a model that was trained with them needs none.

        The card has words for tasks that a model's dictionary lacks (qa, fact).
        """
        own = set(self.values()) if self.are_own else set()
        if not self.model or own & {CARD["document"], CARD["query"]}:
            return
        names = f" (it has {', '.join(self)})" if own else ""
        note(
            f"{self.model} has no prompt for '{task}'{names}: the words of EmbeddingGemma's model "
            f"card stand in: {CARD[task]!r}",
            once=True,
        )


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


_SHORTEST = 8  # characters of a prompt that no text begins with by chance
_TITLED = "title: "  # the document prompt, with a title of its own
_TITLED_TEXT = " | text: "
_LONGEST_TITLE = 300


@dataclass(frozen=True)
class PromptedTexts:
    """Finds texts that begin with a prompt already: it would stand before them twice."""

    beginnings: tuple[str, ...]

    @staticmethod
    def of(prompts: Mapping[str, str]) -> PromptedTexts:
        """Return what finds the prompts of a model and those of the model card."""
        words = dict.fromkeys([*prompts.values(), *CARD.values()])
        return PromptedTexts(tuple(prompt for prompt in words if len(prompt) >= _SHORTEST))

    def prompt_of(self, text: str) -> str:
        """Return the prompt that a text begins with; empty: none."""
        if text.startswith(self.beginnings):
            return next(prompt for prompt in self.beginnings if text.startswith(prompt))
        if text.startswith(_TITLED) and _TITLED_TEXT in text[:_LONGEST_TITLE]:
            return text[: text.index(_TITLED_TEXT)] + _TITLED_TEXT
        return ""


def for_task(task: str, prompts: Mapping[str, str]) -> Prompt:
    """Return the prompt of one of `TASKS` for a model with this dictionary of prompts.

    A note says where a model lacks one, and the card's words stand in (`ModelPrompts`).
    """
    if task not in TASKS:
        raise UsageError(f"no task '{task}'; tasks: {', '.join(TASKS)}")
    template = CARD[task]
    name = _name(task, prompts)
    if task != "none":
        if isinstance(prompts, ModelPrompts):
            name = name or prompts.default
            if not name or not prompts.are_own:
                prompts.tell_of_card(task)
        template = prompts[name] if name else template
    # The document prompt has a place for the title: `title: none | text: `.
    template = template.replace(f"title: {NO_TITLE} |", "title: {title} |", 1)
    return Prompt(template + "{text}")


def with_plain(prompts: ModelPrompts) -> ModelPrompts:
    """Return the prompts of a model that was not trained with the card's words.

    A task that has none gets the default prompt, or no words.
    """
    plain = prompts[prompts.default] if prompts.default else ""
    others = {
        names[0]: plain for task, names in TASKS.items() if names and not _name(task, prompts)
    }
    return ModelPrompts({**others, **prompts}, default=prompts.default)


def _name(task: str, prompts: Mapping[str, str]) -> str:
    """Return the dictionary's name of a task; empty where it has none."""
    names = TASKS[task]
    folded = {_folded(name): name for name in reversed(list(prompts))}
    return next(
        (name for name in names if name in prompts),
        next((folded[_folded(name)] for name in names if _folded(name) in folded), ""),
    )


def _folded(name: str) -> str:
    return _BETWEEN.sub("-", name).lower()


def custom(template: str, option: str = "--prompt") -> Prompt:
    """Return the user's own prompt; `what` names the option that gave it.

    Raises:
        UsageError: it has no `{text}`.
    """
    if "{text}" not in template:
        raise UsageError(f"{option} {template!r} has no {{text}} where the text goes")
    return Prompt(template)
