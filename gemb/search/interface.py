"""Search from a Python program: what `gemb search` does, with a list of hits as the answer.

for hit in search("how do I cancel an order", "docs"):
    print(hit.path, hit.line, hit.score)

with Index.open("docs.gemb") as index:
    hits = index.search("refund rules", k=5, where="lang = 'en'")
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gemb.embedding.model import Model
from gemb.errors import Missing, UsageError
from gemb.index.hits import Hit
from gemb.index.manifest import is_index, read_manifest
from gemb.index.reader import Index as Snapshot
from gemb.io.text import visible
from gemb.models.references import DEFAULT, resolve
from gemb.search.excerpts import Excerpt
from gemb.search.files import run_files
from gemb.search.forms import ShownAnswer
from gemb.search.index import run_index
from gemb.search.queries import (
    USUAL_SCALE,
    Criteria,
    Scale,
    SearchJob,
    Unsure,
    from_words,
)
from gemb.texts import BUDGET_S

if TYPE_CHECKING:
    from gemb.backend import Encoder

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit(Hit):
    """A passage or row that answers a question: `path`, `line`, `last_line`, `text`, `score`."""

    best_line: int | None = None  # the line that answers best; None where there are no lines

    @staticmethod
    def of(excerpt: Excerpt) -> SearchHit:
        """Return the hit of a passage whose best line is known."""
        values = {field.name: getattr(excerpt.hit, field.name) for field in fields(Hit)}
        return SearchHit(**values, best_line=excerpt.number(excerpt.best))


class SearchHits(list[SearchHit]):
    """The hits of a search, best first."""

    # Why too few passages had a vector to tell what is relevant: "time" was too short, or the model
    # "failed"; the hits may not be relevant then, and others may be. None: this is the answer.
    unsure: Unsure | None
    scale: Scale  # by which `gemb.search.merging` compares them with those of other searches

    def __init__(
        self,
        hits: Iterable[SearchHit] = (),
        unsure: Unsure | None = None,
        scale: Scale = USUAL_SCALE,
    ) -> None:
        """Take the hits, and why they may not be relevant."""
        super().__init__(hits)
        self.unsure = unsure
        self.scale = scale


class _Kept:
    """The form of output that keeps the answers instead of writing them."""

    needs_lines = True

    def __init__(self) -> None:
        self.hits = SearchHits()

    def show(self, answer: ShownAnswer) -> None:
        """Keep the answer to the one query."""
        self.hits = SearchHits(map(SearchHit.of, answer.excerpts), answer.unsure, answer.scale)


def search(
    question: str = "",
    paths: Paths = ".",
    *,
    k: int | None = 10,
    model: Model | str = "",
    where: str | None = None,
    min_score: float | None = None,
    weak: bool = False,
    hybrid: bool = False,
    task: str | None = None,
    dim: int | None = None,
    globs: Iterable[str] = (),
    hidden: bool = False,
    ignore: bool = True,
    follow: bool = False,
    passages: str = "auto",
    budget: float | None = BUDGET_S,
    like: str | None = None,
) -> SearchHits:
    """Return the passages of files that answer a question, best first; as `gemb search` does.

    The vectors of passages are kept in the cache of `gemb search`: a second search is quick. An
    open `Model` saves the time in which one is opened.

    Args:
        question: in your own words.
        paths: files and folders, or one index.
        k: how many hits at most; None: all that are relevant.
        model: an open one, or a reference; empty: mini, or the model of the index.
        where: a filter of an index's rows: "lang = 'en' and year >= 2024".
        min_score: the least cosine; None: higher than chance explains, which may leave no hits.
        weak: also hits below that.
        hybrid: rank by words (BM25), too.
        task: of the question: query, code, qa, fact, ...; None: query, or as the index says.
        dim: width of the vectors; None: the model's, or the index's.
        globs: only files like '*.md'; '!*.min.js' leaves out; the last one counts.
        hidden: also files and folders that begin with a dot.
        ignore: obey .gitignore, .ignore and .rgignore.
        follow: follow links.
        passages: how files become passages: auto, lines, ...
        budget: seconds for the search, at least a third of them for vectors of the passages that
            words and drafts rank first; None: all passages get one.
        like: instead of a question: what is like this passage, FILE:LINE; of an index a row's id.

    Raises:
        UsageError: the question is empty, a path does not exist, or an argument is not what it
            should be.
        Missing: the model is not here.
        GembError: the model fails, or the index is damaged.
    """
    from gemb.search.corpus import Sources
    from gemb.texts import PASSAGE_KINDS
    from gemb.texts.walk import Walk

    names = _names(paths)
    if indexes := [name for name in names if is_index(Path(name))]:
        if len(names) > 1:
            raise UsageError(f"{visible(indexes[0])} is an index; it is searched alone")
        with Index.open(indexes[0], model=model or None) as index:
            return index.search(
                question,
                k,
                where=where,
                like=like,
                min_score=min_score,
                weak=weak,
                hybrid=hybrid,
                task=task,
                dim=dim,
            )
    if where is not None:
        raise UsageError("where= is for an index: gemb index build NAME PATH makes one")
    if passages not in PASSAGE_KINDS:
        raise UsageError(f"passages={passages!r}; it is one of {', '.join(PASSAGE_KINDS)}")
    walk = Walk(globs=tuple(globs), hidden=hidden, ignore=ignore, follow=follow)
    if budget is not None and not (isinstance(budget, Real) and 0 <= budget < math.inf):
        raise UsageError(f"budget={budget!r}; it is a number of seconds, 0 or more, or None")
    criteria = replace(_criteria(k, min_score=min_score, weak=weak, hybrid=hybrid), seconds=budget)
    job = _job(question, like, criteria, task=task, dim=dim)
    kept = _Kept()
    with _opened(model or DEFAULT) as opened:
        sources = Sources(paths=names, walk=walk, kind=passages)
        run_files(
            job,
            sources,
            lambda reference: opened.encoder,
            kept,
            is_silent=False,
            open_draft=lambda fingerprint: opened.draft(),
        )
    return kept.hits


class Index:
    """An index that `gemb index build` made. Threads may share it.

    A search sees what was committed when it began, so an index that is kept in step by
    `gemb index sync`, or replaced, need not be opened again. One that is replaced by an index of
    another model is searched with that, unless a model was given.
    """

    folder: Path

    def __init__(self, folder: Path, model: Model | str | None, *, force: bool = False) -> None:
        """See `Index.open`."""
        self.folder = folder
        self._given = model
        self._force = force
        self._own: Model | None = model if isinstance(model, Model) else None
        self._own_of = ""  # fingerprint of the model of the index when its own was opened
        self._at_hand: Model | None = None  # an open one, which may be the index's
        self._opening = threading.Lock()

    @staticmethod
    def open(
        folder: str | os.PathLike[str], *, model: Model | str | None = None, force: bool = False
    ) -> Index:
        """Return the index of a folder.

        Args:
            folder: that `gemb index build` made.
            model: an open one, or a reference; None: the one that the index names, which is opened
                at the first question. It is not downloaded: the index may be somebody else's.
            force: take another model of the same width all the same.

        Raises:
            UsageError: it is no index, or not whole yet.
            GembError: a file of it is missing or damaged.
        """
        index = Index(Path(folder), model, force=force)
        with Snapshot.open(index.folder):
            return index

    @staticmethod
    def suiting(folder: str | os.PathLike[str], model: Model) -> Index:
        """Return the index of a folder for an open model; that of another opens its own.

        Raises:
            UsageError: it is no index, or not whole yet.
            GembError: a file of it is missing or damaged.
        """
        index = Index.open(folder)
        index._at_hand = model
        return index

    def __len__(self) -> int:
        """Return how many rows can be found now."""
        with Snapshot.open(self.folder) as snapshot:
            return snapshot.count

    def search(
        self,
        question: str = "",
        k: int | None = 10,
        *,
        where: str | None = None,
        like: str | None = None,
        min_score: float | None = None,
        weak: bool = False,
        hybrid: bool = False,
        task: str | None = None,
        dim: int | None = None,
        accuracy: str = "auto",
        where_seconds: float | None = None,
    ) -> SearchHits:
        """Return the passages or rows that answer a question, best first; none: no hits.

        Args:
            question: in your own words; empty with `like`.
            k: how many hits at most; None: all that are relevant.
            where: a filter of rows: "lang = 'en' and year >= 2024".
            like: instead of a question: what is like this row, an id or FILE:LINE.
            min_score: the least cosine; None: higher than chance explains.
            weak: also hits below that.
            hybrid: rank by words (BM25), too.
            task: of the question; None: as the index says.
            dim: width of the vectors, that of the index; None: this one.
            accuracy: auto, exact, balanced or fast.
            where_seconds: that the filter may take; None: ten minutes.

        Raises:
            UsageError: the question is empty, or an argument is not what it should be.
            Missing: the model is not here.
            GembError: the index is damaged, or the model fails.
        """
        criteria = _criteria(
            k, min_score=min_score, weak=weak, hybrid=hybrid, where=where, accuracy=accuracy
        )
        criteria = replace(criteria, where_seconds=where_seconds)
        given = self._given.reference if isinstance(self._given, Model) else self._given or ""
        job = _job(question, like, criteria, task=task, dim=dim, model=given, force=self._force)
        kept = _Kept()
        run_index(job, self.folder, self._encoder, kept)
        return kept.hits

    def close(self) -> None:
        """Close the model that the index has opened; one that it was given stays open."""
        if self._own is not None and self._own not in (self._given, self._at_hand):
            self._own.close()
        self._own = self._given if isinstance(self._given, Model) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r})"

    def _encoder(self, reference: str) -> Encoder:
        """Return the open encoder of the model that a search wants."""
        with self._opening:  # of several threads one opens it
            if self._given:
                if self._own is None:
                    self._own = Model(self._given) if isinstance(self._given, str) else self._given
                return self._own.encoder
            wanted = read_manifest(self.folder).spec.model
            if self._own is None or self._own_of != wanted:
                # A model that was opened for an earlier index goes with the last search by it.
                self._own, self._own_of = self._named(reference, wanted), wanted
            return self._own.encoder

    def _named(self, reference: str, fingerprint: str) -> Model:
        if self._at_hand and self._at_hand.profile.fingerprint == fingerprint:
            return self._at_hand
        return _named_model(self.folder, reference)


def _named_model(folder: Path, reference: str) -> Model:
    """Open the model that an index names, if it is here.

    Raises:
        UsageError: it names none.
        Missing: it is not here.
    """
    shown = visible(str(folder))
    if not reference:
        raise UsageError(f"{shown} does not say by which model its vectors are; give model=")
    try:
        resolve(reference, download=False)
    except (Missing, UsageError) as error:
        raise Missing(
            f"{shown} was built with the model {visible(reference)}, which is not here "
            f"({visible(str(error))}); model= names its new place"
        ) from None
    return Model(reference, download=False)


def _names(paths: Paths) -> tuple[str, ...]:
    """Return the paths that are searched.

    Raises:
        UsageError: one does not exist, or there is none.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    names = tuple(os.fspath(path) for path in several)
    if not names:
        raise UsageError("no path to search; '.' is this folder")
    for name in names:
        if not name or not os.path.lexists(name):
            raise UsageError(f"{visible(name) or 'an empty name'}: no such file or folder")
    return tuple("./-" if name == "-" else name for name in names)


@contextmanager
def _opened(model: Model | str) -> Iterator[Model]:
    """Yield an open model; one that is opened here is closed again."""
    if isinstance(model, Model):
        yield model
    else:
        with Model(model) as opened:
            yield opened


def _criteria(
    k: int | None,
    *,
    min_score: float | None,
    weak: bool,
    hybrid: bool,
    where: str | None = None,
    accuracy: str = "auto",
) -> Criteria:
    """Return the criteria of answers.

    Raises:
        UsageError: a value is out of its bounds.
    """
    from gemb.index.ranking import ACCURACIES

    if k is not None and (not isinstance(k, int) or k < 1):
        raise UsageError(f"k={k!r}; it is 1 or more, or None for all that are relevant")
    is_number = isinstance(min_score, Real)
    if min_score is not None and not (is_number and -1 <= min_score <= 1):
        raise UsageError(f"min_score={min_score!r}; it is a cosine, from -1 to 1, or None")
    if accuracy not in ACCURACIES:
        raise UsageError(f"accuracy={accuracy!r}; it is one of {', '.join(ACCURACIES)}")
    return Criteria(
        k=k,
        min_score=min_score,
        is_weak=weak,
        is_hybrid=hybrid,
        where=where,
        accuracy=accuracy,
    )


def _job(
    question: str,
    like: str | None,
    criteria: Criteria,
    *,
    task: str | None,
    dim: int | None = None,
    model: str = "",
    force: bool = False,
) -> SearchJob:
    """Return the search of one question, or of what is like a row.

    Raises:
        UsageError: the question is empty, or there are both.
    """
    if like is not None and question:
        raise UsageError("a question and like= are both given; one at a time")
    if not isinstance(question, str):
        raise UsageError(f"the question is {type(question).__name__}, not a string")
    return SearchJob(
        queries=[] if like is not None else [from_words(question)],
        like=like,
        criteria=criteria,
        task=task,
        dim=dim,
        model=model,
        force=force,
    )
