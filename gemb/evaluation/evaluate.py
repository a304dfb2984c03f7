"""Evaluate a model on sets: every text is embedded once, and every vector size scored from that.

The scored vectors are those that `gemb embed --dim --dtype` stores: cut, normalized again, rounded;
queries and documents alike. An nDCG, for example, is computed in four steps: `evaluate` embeds the
texts of all sets, `_retrieval` ranks the documents of each query, `metrics.of_rankings` returns the
nDCG of each query, and `_rows` the mean over the queries with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Doubles, Rows, Vectors
from gemb.datasets.sets import Classification, EvaluationSet, Part, Retrieval, SentencePairs, Suite
from gemb.embedding import DTYPES
from gemb.embedding.pipeline import shortened
from gemb.embedding.text_vectors import ProgressCallback, text_vectors
from gemb.embedding.vectors import packed, unpacked
from gemb.errors import UsageError
from gemb.evaluation.linear_probe import folded, predictions
from gemb.evaluation.metrics import (
    DEPTH,
    RANKING,
    Form,
    Statistic,
    best,
    of_rankings,
    resamples,
    score_interval,
)
from gemb.evaluation.scores import MetricRow, Scores, SetDescription, Size
from gemb.models.profile import check_dims
from gemb.models.prompts import for_task
from gemb.texts.examples import Text
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.models.profile import ModelProfile


CELLS = 1 << 24  # similarities in memory at a time


def evaluate(
    suite: Suite,
    encoder: Encoder,
    *,
    dims: Sequence[int] = (),
    dtypes: Sequence[str] = ("f32",),
    progress: ProgressCallback | None = None,
) -> Scores:
    """Return the scores of a model.

    Args:
        suite: the sets; the prompts of each kind come from the model's own dictionary.
        encoder: the open model.
        dims: widths that it was trained for; empty: all of them.
        dtypes: of gemb.embedding.DTYPES.
        progress: called as texts are embedded.

    Raises:
        UsageError: the model was not trained for a width.
        GembError: a text has no vector, so that there is no score.
    """
    sizes = _sizes(encoder.profile, dims, dtypes)
    embedded = _Embedded(suite, encoder, progress)
    sets, rows, evidence = [], [], {}
    for dataset in suite.sets:
        description = SetDescription(
            name=dataset.name,
            kind=dataset.kind,
            metric=dataset.metric,
            units=dataset.units,
            fingerprint=dataset.fingerprint,
            prompts=tuple(embedded.prompts[part.task].template for part in dataset.parts),
            left_out=dataset.left_out,
        )
        sets.append(description)
        statistics = {
            (size, metric): statistic
            for size in sizes
            for metric, statistic in _scored(dataset, embedded, size).items()
        }
        rows += _rows(description, statistics)
        for (size, metric), statistic in statistics.items():
            if metric == dataset.metric:
                evidence[dataset.name, size] = statistic
    return Scores(
        model=encoder.profile.fingerprint,
        arithmetic=encoder.profile.dtype,
        suite=suite.name,
        texts=embedded.count,
        cut=embedded.cut,
        sets=tuple(sets),
        sizes=sizes,
        rows=tuple(rows),
        evidence=evidence,
    )


def _sizes(profile: ModelProfile, dims: Sequence[int], dtypes: Sequence[str]) -> tuple[Size, ...]:
    check_dims(dims, profile.matryoshka_dims)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"no type '{dtype}' of vectors; types: {', '.join(DTYPES)}")
    widths = dict.fromkeys(dims or profile.widths)
    return tuple(Size(dim, dtype) for dtype in dict.fromkeys(dtypes) for dim in widths)


def _rows(
    dataset: SetDescription, statistics: Mapping[tuple[Size, str], Statistic]
) -> list[MetricRow]:
    """Return the score of each size and metric, with its interval."""
    parts: dict[tuple[Size, str], list[Doubles]] = {key: [] for key in statistics}
    for counts in resamples(dataset.units, dataset.seed):
        for key, statistic in statistics.items():
            parts[key].append(statistic.of(counts))
    rows = []
    for (size, metric), statistic in statistics.items():
        bounds = score_interval(statistic, np.concatenate(parts[size, metric]))
        rows.append(
            MetricRow(
                set=dataset.name,
                metric=metric,
                dim=size.dim,
                dtype=size.dtype,
                value=statistic.value(),
                low=bounds.low if bounds else None,
                high=bounds.high if bounds else None,
            )
        )
    return rows


class _Embedded:
    """The vectors of a suite's distinct texts."""

    def __init__(self, suite: Suite, encoder: Encoder, progress: ProgressCallback | None) -> None:
        parts = [(dataset, part) for dataset in suite.sets for part in dataset.parts]
        tasks = dict.fromkeys(part.task for _, part in parts)
        self.prompts = {task: for_task(task, encoder.profile.prompts) for task in tasks}
        self._row: dict[str, int] = {}  # what the model sees -> row of the vectors
        records: list[Record] = []
        for dataset, part in parts:
            for text in part.texts:
                prompted = self._rendered(part.task, text)
                if prompted not in self._row:
                    self._row[prompted] = len(records)
                    records.append(
                        Record(len(records), f"{dataset.name}: {text.text[:40]!r}", prompted)
                    )
        self.count = len(records)
        self._vectors, self.cut = text_vectors(records, encoder, progress)

    def _rendered(self, task: str, text: Text) -> str:
        return self.prompts[task].render(text.text, text.title)

    def rows(self, part: Part) -> Rows:
        """Return the row of each text of a part in the vectors, [N]."""
        return np.array([self._row[self._rendered(part.task, text)] for text in part.texts], int)

    def stored(self, rows: Rows, size: Size) -> StoredVectors:
        """Return the vectors of these rows in their stored form."""
        return StoredVectors(self._vectors[rows], size)


def _scored(dataset: EvaluationSet, embedded: _Embedded, size: Size) -> dict[str, Statistic]:
    """Return the metrics of a set for one size of vector, the main one first."""
    match dataset:
        case SentencePairs(kind="bitext"):
            return _bitext(dataset, embedded, size)
        case SentencePairs():
            return _pairs(dataset, embedded, size)
        case Retrieval():
            return _retrieval(dataset, embedded, size)
        case Classification():
            return _classification(dataset, embedded, size)
    raise AssertionError(dataset.kind)


def _pairs(dataset: SentencePairs, embedded: _Embedded, size: Size) -> dict[str, Statistic]:
    left, right = (embedded.stored(embedded.rows(part), size) for part in dataset.parts)
    products = np.einsum("nd,nd->n", left.codes, right.codes, dtype=np.float64)
    cosines = products / (left.lengths.astype(np.float64) * right.lengths)
    form: Form = "spearman" if dataset.kind == "sts" else "average_precision"
    return {dataset.metric: Statistic(form, cosines, dataset.gold)}


def _bitext(dataset: SentencePairs, embedded: _Embedded, size: Size) -> dict[str, Statistic]:
    """Score 1 for a pair whose sides are each other's nearest, 1/2 if only one side is."""
    rows = [embedded.rows(part) for part in dataset.parts]
    stored = [embedded.stored(part_rows, size) for part_rows in rows]
    hits = np.zeros(dataset.units)
    for side, opposite in ((0, 1), (1, 0)):
        for part in _chunks(dataset.units, dataset.units):
            nearest = stored[side].cosines(part, stored[opposite]).argmax(axis=1)
            hits[part] += (rows[opposite][nearest] == rows[opposite][part]) / 2
    return {dataset.metric: Statistic("mean", hits)}


def _retrieval(dataset: Retrieval, embedded: _Embedded, size: Size) -> dict[str, Statistic]:
    """Rank the documents of each query; in reranking only those that are judged for it."""
    queries = embedded.stored(embedded.rows(dataset.parts[0]), size)
    # Equal documents get one column, so that their scores are tied to the last bit.
    rows, column = np.unique(embedded.rows(dataset.parts[1]), return_inverse=True)
    documents = embedded.stored(rows, size)
    count = len(column)
    grades = np.zeros((dataset.units, DEPTH))
    ideal = np.zeros((dataset.units, 10))
    relevant = np.zeros(dataset.units)
    graded = np.zeros(count)
    for part in _chunks(dataset.units, count):
        for query, unique in zip(
            range(part.start, part.stop), queries.cosines(part, documents), strict=True
        ):
            judged, judged_grades = dataset.judged[query]
            scores = unique[column]
            if dataset.kind == "rerank":
                unjudged = np.ones(count, bool)
                unjudged[judged] = False
                scores[unjudged] = -np.inf
            if dataset.own[query] >= 0:
                scores[dataset.own[query]] = -np.inf
            ranking = best(scores)
            graded[judged] = judged_grades
            grades[query, : len(ranking)] = graded[ranking]
            graded[judged] = 0
            highest = np.sort(judged_grades)[::-1][:10]
            ideal[query, : len(highest)] = highest
            relevant[query] = (judged_grades > 0).sum()
    metrics = of_rankings(grades, ideal, relevant)
    names = [dataset.metric, *(name for name in RANKING if name != dataset.metric)]
    return {name: Statistic("mean", metrics[name]) for name in names}


def _classification(
    dataset: Classification, embedded: _Embedded, size: Size
) -> dict[str, Statistic]:
    train = embedded.stored(embedded.rows(dataset.parts[0]), size).unit
    if dataset.test:
        test = embedded.stored(embedded.rows(dataset.parts[1]), size).unit
        labels = predictions(train, dataset.train_labels, test)
        hits = np.array(labels) == np.array(dataset.test_labels)
    else:
        hits = np.array(folded(train, dataset.train_labels)) == np.array(dataset.train_labels)
    return {dataset.metric: Statistic("mean", hits.astype(np.float64))}


def _chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, CELLS // columns)
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


class StoredVectors:
    """Vectors as they are stored, as float32: whole numbers where the type has them.

    The products of whole numbers are exact in float32 (below 2^24), so equal similarities are tied
    and not ordered by the last bit of a sum.
    """

    def __init__(self, vectors: Vectors, size: Size) -> None:
        dim, dtype = size
        stored = packed(shortened(vectors, dim), dtype, dim)
        signs = dtype == "ubinary"
        self.codes: Vectors = unpacked(stored, dtype, dim) if signs else stored.astype(np.float32)
        squares = np.einsum("nd,nd->n", self.codes, self.codes, dtype=np.float64)
        self.lengths: Vectors = np.sqrt(squares).astype(np.float32)
        if dtype == "f32":
            self.lengths = np.ones_like(self.lengths)  # exact within float32

    @property
    def unit(self) -> Vectors:
        """Return rows of length one."""
        rows: Vectors = self.codes / self.lengths[:, None]
        return rows

    def cosines(self, rows: slice | Rows, partners: StoredVectors) -> Vectors:
        """Return the cosines of these rows with all rows of `partners`, [rows, N]."""
        products = self.codes[rows] @ partners.codes.T
        cosines: Vectors = products / (self.lengths[rows, None] * partners.lengths)
        return cosines
