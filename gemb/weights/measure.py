"""Measure a quantized file against its source: vectors, scores, speed.

Also reads the texts that are compared, and those of the importance matrix.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Runtime
from gemb.embedding.text_vectors import text_progress
from gemb.errors import UsageError
from gemb.evaluation.agreement import compare_vectors, encoded, prompted_ids
from gemb.evaluation.evaluate import evaluate
from gemb.evaluation.verdict import Verdict, verdict
from gemb.io.notes import warn
from gemb.models.profile import check_dims
from gemb.models.prompts import for_task
from gemb.plugins import able
from gemb.texts.inputs import Reading, read
from gemb.texts.records import Fields, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder
    from gemb.datasets.sets import Suite
    from gemb.evaluation.scores import Scores


# Texts taken from a corpus, evenly spaced, each as a document and as a query. This is about what
# users of llama-imatrix take: a hundred pieces of 512 tokens.
CALIBRATION_TEXTS = 256


def read_texts(path: str, encoding: str = "") -> tuple[str, ...]:
    """Return the texts of a file; `-` is standard input.

    Args:
        path: the file.
        encoding: as `gemb.texts.contents.checked_encoding` returns it.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    return tuple(record.text for record in _records(path, encoding))


def calibration_texts(path: str, prompts: Mapping[str, str], encoding: str = "") -> tuple[str, ...]:
    """Return texts of a corpus with the prompts of the model, as documents and as queries.

    Args:
        path: a file; of more texts than `CALIBRATION_TEXTS`, as many evenly spaced ones are taken.
        prompts: the model's.
        encoding: of the file, as for `read_texts`.

    Raises:
        UsageError: there is no such file, or no text in it.
    """
    records = _records(path, encoding)
    step = max(1.0, len(records) / CALIBRATION_TEXTS)
    sample = [records[int(i * step)] for i in range(min(len(records), CALIBRATION_TEXTS))]
    roles = [for_task(task, prompts) for task in ("document", "query")]
    return tuple(role.render(record.text, record.title) for record in sample for role in roles)


def check_texts(path: str) -> None:
    """Refuse a path that is no file.

    Raises:
        UsageError: there is no such file.
    """
    if path != "-" and (not Path(path).exists() or Path(path).is_dir()):  # a pipe is welcome
        raise UsageError(f"{path}: no such file of texts")


def _records(path: str, encoding: str) -> list[Record]:
    check_texts(path)
    fields = Fields(title="title", title_may_lack=True)
    reading = Reading(fields=fields, names_options=False, encoding=encoding)
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


_LONGEST = 256  # tokens of the longest text in the measurement of speed
_SECONDS = 1.0  # that the measurement of speed takes at least


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one file."""

    size_bytes: int
    min_cosine: float  # over the texts, between the vectors of the source and of the file
    mean_cosine: float
    neighbours_kept: float  # 0 to 1: share of the ten nearest texts that are the same
    failed: int  # texts with a vector on one side alone
    worst_text: str
    tokens_per_s: float
    scores: Scores | None  # None: there is no evaluation set
    change: Verdict | None  # from the scores of the source

    @property
    def drop(self) -> float:
        """How much lower the mean score at the widest size is, in points (hundredths)."""
        assert self.change is not None, "nothing was evaluated"
        return -100 * self.change.main.difference


class Baseline:
    """The vectors and scores of the source, with which those of files are compared."""

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
            texts: the texts whose vectors are compared, without a prompt.
            suite: the evaluation sets; None: scores are not computed.
            dims: widths to evaluate; empty: all that the model was trained for.
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
        """Return the measures of a file; `name` is the label of the progress bar."""
        model = able("quantize").open(file, self._runtime)
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
            neighbours_kept=agreement.rank_agreement,
            failed=agreement.one_failed,
            worst_text=agreement.worst_text,
            tokens_per_s=_speed(model, [text_ids for text_ids in ids if len(text_ids) <= _LONGEST]),
            scores=scores,
            change=verdict(self._scores, scores) if self._scores and scores else None,
        )

    def _scored(self, model: Encoder, name: str) -> Scores | None:
        if self._suite is None:
            return None
        with text_progress(name) as progress:
            return evaluate(self._suite, model, dims=self._dims, progress=progress)


def _speed(model: Encoder, ids: Sequence[NDArray[np.int32]]) -> float:
    """Return the tokens per second of these texts; 0 if there are none."""
    tokens = sum(map(len, ids))
    if not tokens:
        return 0.0
    done, began = 0, time.monotonic()
    while not done or time.monotonic() - began < _SECONDS:
        encoded(model, ids)
        done += tokens
    return done / (time.monotonic() - began)
