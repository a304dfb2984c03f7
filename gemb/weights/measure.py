"""How good a quantized file is: its vectors beside the source's, its scores, its speed.

And the texts for that: those that are compared, and those whose columns matter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Runtime
from gemb.embedding.pipeline import text_progress
from gemb.errors import UsageError
from gemb.evaluation.agreement import compare_vectors, encoded, prompted_ids
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.verdict import Verdict, verdict
from gemb.io.notes import warn
from gemb.models.profile import check_dims
from gemb.models.prompts import for_task
from gemb.plugins import for_model
from gemb.texts.inputs import Reading, read
from gemb.texts.records import Fields, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder
    from gemb.datasets.sets import Suite
    from gemb.evaluation.scores import Scores


# Of a corpus, evenly spaced; each as a document and as a query: about what llama-imatrix's users
# take, a hundred pieces of 512 tokens.
CALIBRATION_TEXTS = 256


def read_texts(path: str) -> tuple[str, ...]:
    """Return the texts of a file; `-` is standard input.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    return tuple(record.text for record in _records(path))


def calibration_texts(path: str, prompts: Mapping[str, str]) -> tuple[str, ...]:
    """Return texts of a corpus as the model is to see them: as documents, and as queries.

    Args:
        path: a file; of more texts than `CALIBRATION_TEXTS`, as many evenly spaced ones are taken.
        prompts: the model's.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    every = _records(path)
    step = max(1.0, len(every) / CALIBRATION_TEXTS)
    some = [every[int(i * step)] for i in range(min(len(every), CALIBRATION_TEXTS))]
    roles = [for_task(task, prompts) for task in ("document", "query")]
    return tuple(role.render(one.text, one.title) for one in some for role in roles)


def check_texts(path: str) -> None:
    """Refuse what is no file of texts.

    Raises:
        UsageError: there is none.
    """
    if path != "-" and (not Path(path).exists() or Path(path).is_dir()):  # a pipe is welcome
        raise UsageError(f"{path}: no such file of texts")


def _records(path: str) -> list[Record]:
    check_texts(path)
    reading = Reading(fields=Fields(title="title", title_may_lack=True), names_options=False)
    good: list[Record] = []
    bad: list[Record] = []
    for record in read([path], reading):
        if record is not None:
            (bad if record.error else good).append(record)
    if not good:
        raise UsageError(f"{'standard input' if path == '-' else path}: no text in it")
    if bad and bad[0].error:
        warn(f"{len(bad)} texts of {path} are left out, the first: {bad[0].error.message}")
    return good


_LONGEST = 256  # tokens of a text whose time is taken
_SECONDS = 1.0  # for which it is taken, at least


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What was found of one file."""

    size_bytes: int
    min_cosine: float  # over the texts, to the source's vectors
    mean_cosine: float
    kept: float  # 0 to 1: share of each text's ten nearest that are so in the source, too
    failed: int  # texts with a vector on one side alone
    worst_text: str
    tokens_per_s: float
    scores: Scores | None  # None: there is nothing to evaluate on
    change: Verdict | None  # of the scores, from the source's

    @property
    def drop(self) -> float:
        """By how many points, hundredths, the mean score at the widest size is lower."""
        assert self.change is not None, "nothing was evaluated"
        return -100 * self.change.main.difference


class Baseline:
    """The source's vectors and scores, to which those of files are compared."""

    def __init__(
        self,
        source: Path,
        texts: Sequence[str],
        suite: Suite | None,
        dims: Sequence[int],
        runtime: Runtime,
    ) -> None:
        """Run the source.

        Args:
            source: a GGUF file.
            texts: that are compared, without a prompt.
            suite: what is evaluated; None: nothing.
            dims: widths to evaluate; none: all that the model was trained for.
            runtime: how models are run.

        Raises:
            UsageError: the model was not trained for a width.
        """
        self._texts = texts
        self._suite = suite
        self._dims = dims
        self._runtime = runtime
        self._vectors: NDArray[np.float32] | None = None
        self._scores: Scores | None = None
        self.source = self.measure(source, "source")
        self._scores = self.source.scores

    def measure(self, file: Path, name: str) -> Measures:
        """Return what is found of a file; `name` is what its progress is called."""
        model = for_model(file).open(file, self._runtime)
        check_dims(self._dims, model.profile.matryoshka_dims)
        ids = prompted_ids(model, self._texts, "none", model.profile.max_tokens)
        vectors = encoded(model, ids)
        if self._vectors is None:
            self._vectors = vectors
        agreement = compare_vectors(self._vectors, vectors, self._texts)
        scores = self._scored(model, name)
        return Measures(
            size_bytes=file.stat().st_size,
            min_cosine=agreement.min_cosine,
            mean_cosine=agreement.mean_cosine,
            kept=agreement.rank_agreement,
            failed=agreement.one_failed,
            worst_text=agreement.worst_text,
            tokens_per_s=_speed(model, [one for one in ids if len(one) <= _LONGEST]),
            scores=scores,
            change=verdict(self._scores, scores) if self._scores and scores else None,
        )

    def _scored(self, model: Encoder, name: str) -> Scores | None:
        if self._suite is None:
            return None
        with text_progress(name) as progress:
            return evaluate(self._suite, model, dims=self._dims, progress=progress)


def _speed(model: Encoder, ids: Sequence[NDArray[np.int32]]) -> float:
    """Return the tokens a second of texts that are not long; 0 where there is none."""
    tokens = sum(map(len, ids))
    if not tokens:
        return 0.0
    done, began = 0, time.monotonic()
    while not done or time.monotonic() - began < _SECONDS:
        encoded(model, ids)
        done += tokens
    return done / (time.monotonic() - began)
