"""An adapter that lets MTEB evaluate a model of gemb on its own tasks.

Prompts are looked up in the model's dictionary under MTEB's names of task types, as MTEB does for
sentence-transformers (`STS`, `Retrieval-query`); if there is none, gemb's prompt for such a task is
used. The title of a document is in its text, where MTEB puts it, and not in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import shortened
from gemb.embedding.text_vectors import text_vectors
from gemb.errors import Missing, UsageError
from gemb.models.profile import check_dims
from gemb.models.prompts import NO_TITLE, Prompt, for_task
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder


# MTEB's kind of task -> gemb's task, for a model whose dictionary has not MTEB's name.
TASKS = {
    "BitextMining": "query",
    "Classification": "classification",
    "Clustering": "clustering",
    "InstructionReranking": "query",
    "InstructionRetrieval": "code",  # so in the model's dictionary
    "MultilabelClassification": "classification",
    "PairClassification": "similarity",
    "Reranking": "query",
    "Retrieval": "query",
    "STS": "similarity",
    "Summarization": "similarity",
}


class Result(NamedTuple):
    """One score that MTEB computed."""

    task: str
    split: str
    subset: str
    metric: str  # the task's main one
    dim: int
    value: float


def import_mteb() -> Any:  # noqa: ANN401 - its types are not ours
    """Import mteb.

    Raises:
        Missing: mteb is not installed.
    """
    try:
        return import_module("mteb")
    except ImportError:
        raise Missing("mteb: tasks require the package mteb: pip install 'gemb[mteb]'") from None


def prompt_for(kind: str, side: str | None, prompts: Mapping[str, str]) -> Prompt:
    """Return the prompt for one of MTEB's kinds of tasks; side is query, document or None."""
    for name in (f"{kind}-{side}", kind):
        if name in prompts and (side != "document" or name != kind):
            return Prompt(prompts[name] + "{text}")
    if side == "document":
        return Prompt(for_task("document", prompts).template.replace("{title}", NO_TITLE))
    if kind not in TASKS:
        raise UsageError(f"mteb: the model reads text, and has no prompt for tasks of type {kind}")
    return for_task(TASKS[kind], prompts)


class GembEncoder:
    """`mteb.EncoderProtocol`, with vectors of one width."""

    def __init__(
        self, encoder: Encoder, dim: int, vectors_by_text: dict[str, NDArray[np.float32]]
    ) -> None:
        """Take an open model; `vectors_by_text` is shared by the encoders of all widths."""
        self._encoder = encoder
        self._dim = dim
        self._vectors_by_text = vectors_by_text
        profile = encoder.profile
        meta = import_module("mteb.models.model_meta").ModelMeta
        self.mteb_model_meta = meta.create_empty(
            {
                "name": f"gemb/{profile.fingerprint}-{dim}",
                "revision": profile.fingerprint,
                "max_tokens": profile.max_tokens,
                "embed_dim": dim,
                "similarity_fn_name": "cosine",
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ANN401
        prompt_type: Any = None,  # noqa: ANN401
        **_: object,
    ) -> NDArray[np.float32]:
        """Return unit vectors, float32 [texts, dim], of the texts of MTEB's batches."""
        side = prompt_type.value if prompt_type else None
        prompt = prompt_for(task_metadata.type, side, self._encoder.profile.prompts)
        prompted = [prompt.render(text) for batch in inputs for text in batch["text"]]
        fresh = [text for text in dict.fromkeys(prompted) if text not in self._vectors_by_text]
        records = [
            Record(row, f"{task_metadata.name}: {text[:60]!r}", text)
            for row, text in enumerate(fresh)
        ]
        vectors, _cut = text_vectors(records, self._encoder)
        self._vectors_by_text.update(zip(fresh, vectors, strict=True))
        width = self._encoder.profile.dim
        full = np.array([self._vectors_by_text[text] for text in prompted], np.float32).reshape(
            -1, width
        )
        return shortened(full, self._dim)

    def similarity(
        self, embeddings1: NDArray[np.float32], embeddings2: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the cosines of all pairs, [n, m]; of unit rows."""
        cosines: NDArray[np.float32] = np.atleast_2d(embeddings1) @ np.atleast_2d(embeddings2).T
        return cosines

    def similarity_pairwise(
        self, embeddings1: NDArray[np.float32], embeddings2: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the cosine of each pair, [n]; of unit rows."""
        cosines: NDArray[np.float32] = np.einsum("nd,nd->n", embeddings1, embeddings2)
        return cosines


def tasks_named(names: Sequence[str]) -> list[Any]:
    """Return MTEB's tasks, with their data loaded.

    Raises:
        UsageError: MTEB has no task of this name.
        Missing: the data of a task is not cached and cannot be downloaded.
    """
    mteb = import_mteb()
    tasks = []
    for name in names:
        try:
            task = mteb.get_task(name)
        except KeyError as error:
            reason = str(error.args[0] if error.args else error).removeprefix("KeyError: ")
            raise UsageError(f"mteb:{name}: {reason}") from None
        try:
            task.load_data()
        except Exception as error:  # loaders, clients of the hub: anything
            reason = str(error).strip().split("\n")[0]
            raise Missing(
                f"mteb:{name}: its data is not in the cache and cannot be downloaded: {reason}"
            ) from None
        tasks.append(task)
    return tasks


def run(tasks: Sequence[Any], encoder: Encoder, dims: Sequence[int] = ()) -> list[Result]:
    """Return the main score of each task, split and subset, for each width.

    Args:
        tasks: MTEB's, from `tasks_named` or made by the caller.
        encoder: the open model.
        dims: widths that it was trained for; empty: the widest.

    Raises:
        UsageError: the model was not trained for a width, or has no prompt for a task.
    """
    mteb = import_mteb()
    profile = encoder.profile
    check_dims(dims, profile.matryoshka_dims)
    vectors_by_text: dict[str, NDArray[np.float32]] = {}
    main_scores = []
    for dim in dims or (profile.width,):
        model = GembEncoder(encoder, dim, vectors_by_text)
        results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
        for result in results.task_results:
            metric = result.task.metadata.main_score
            for split, scores in result.scores.items():
                main_scores += [
                    Result(
                        result.task_name,
                        split,
                        score["hf_subset"],
                        metric,
                        dim,
                        float(score["main_score"]),
                    )
                    for score in scores
                ]
    return main_scores
