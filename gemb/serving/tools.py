"""What `gemb mcp` offers to agents: answers as text, bounded in tokens, of some folders alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gemb import __version__
from gemb.embedding.model import Model
from gemb.errors import UsageError
from gemb.index.manifest import is_index
from gemb.index.reader import Index as Snapshot
from gemb.io.text import visible
from gemb.search.cited import fitted
from gemb.search.interface import Index, SearchHit, SearchHits, search
from gemb.search.merging import merged
from gemb.search.queries import Unsure
from gemb.texts.ignore import is_ignored

SECONDS = 5.0  # of a search of folders: agents wait, and give up after a minute
MOST_HITS = 50
MOST_TOKENS = 8000
LEAST_TOKENS = 50
AGAIN: dict[Unsure | None, str] = {
    None: "",
    "time": "too little time to tell what is relevant: ask again, and more passages are compared\n",
    "failed": "the model failed before it could be told what is relevant\n",
}
DRAFTS = (
    "(~) a draft: this passage has no vector yet, and its score is an estimate; ask again, and "
    "more passages have one\n"
)


class Tools:
    """Searches of folders and indexes; one at a time, however many are asked for."""

    def __init__(self, roots: Sequence[str], reference: str) -> None:
        """Take what may be searched.

        Args:
            roots: folders and indexes; nothing outside of them is read.
            reference: of the model of folders; it is opened at the first question.

        Raises:
            UsageError: a root is neither a folder nor an index.
        """
        for root in roots:
            if not Path(root).is_dir():
                raise UsageError(f"{visible(root)}: no such folder or index")
        real = [Path(root).resolve() for root in roots]
        self.folders = [path for path in real if not is_index(path)]
        self.indexes = [path for path in real if is_index(path)]
        self._reference = reference
        self._model: Model | None = None
        self._indexes: list[Index] = []
        self._lock = threading.Lock()

    def search(self, question: str, path: str = "", k: int = 8, max_tokens: int = 1500) -> str:
        """Return the passages that answer a question, as text.

        Raises:
            UsageError: the question is empty, a number is out of bounds, or the path is outside.
            GembError: the model fails, or an index is damaged.
        """
        with self._lock:
            hits = self._hits(question, path, _bounded("k", k, 1, MOST_HITS))
            return self._text(hits, max_tokens)

    def similar(self, place: str, k: int = 8, max_tokens: int = 1500) -> str:
        """Return the passages that are like the one at path:line, as text.

        Raises:
            UsageError: there is no such passage, a number is out of its bounds, or it is outside.
            GembError: the model fails, or an index is damaged.
        """
        name, _, line = place.rpartition(":")
        if not name or not line.isdigit():
            raise UsageError(f"{visible(place, 80)} is no path:line, such as README.md:12")
        k = _bounded("k", k, 1, MOST_HITS)
        with self._lock:
            answers: list[SearchHits] = []
            refusals: list[UsageError] = []  # a root that has no such place
            searches = [partial(index.search, k=k, like=place) for index in self._opened_indexes()]
            if self.folders:
                searches.insert(0, partial(self._like, name, line, k))
            for searching in searches:
                try:
                    answers.append(searching())
                except UsageError as error:
                    refusals.append(error)
            if len(refusals) == len(searches):
                raise refusals[0]
            return self._text(merged(answers, k), max_tokens)

    def status(self) -> str:
        """Return what is searched, and by which model."""
        with self._lock:
            model = self._opened()
            lines = [f"gemb {__version__}, model {self._reference} ({model.backend})"]
            lines += [f"{_shown(str(folder))}: a folder" for folder in self.folders]
            for index in self.indexes:
                with Snapshot.open(index) as snapshot:
                    of = f"{snapshot.count:,} passages, model {visible(snapshot.model) or '?'}"
                lines.append(f"{_shown(str(index))}: an index of {of}")
            return "\n".join(lines) + "\n"

    def _hits(self, question: str, path: str, k: int) -> SearchHits:
        """Return the hits of all that is searched, or of a path in it, best first."""
        folders, indexes = self.folders, self.indexes
        if path:
            target = self._inside(path)
            is_whole = target in indexes
            folders, indexes = ([], [target]) if is_whole else ([target], [])
        answers: list[SearchHits] = []
        if folders:
            answers.append(search(question, folders, k=k, model=self._opened(), budget=SECONDS))
        for index in self._opened_indexes():
            if index.folder in indexes:
                answers.append(index.search(question, k))
        return merged(answers, k)

    def _like(self, name: str, line: str, k: int) -> SearchHits:
        """Return the passages of the folders that are like the one at a line."""
        like = f"{self._inside(name)}:{line}"
        return search(paths=self.folders, k=k, model=self._opened(), like=like, budget=SECONDS)

    def _inside(self, path: str) -> Path:
        """Return a path that is in one of the roots, its links resolved.

        Raises:
            UsageError: it is outside, hidden, ignored, or not there.
        """
        roots = [*self.folders, *self.indexes]
        if "\0" in path:
            raise UsageError(f"{visible(path, 80)} is no name of a file")
        # A name is meant in the current folder, as the answers give it, or in a root.
        for base in (Path.cwd(), *roots):
            real = Path(os.path.realpath(base / path))
            for root in roots:
                if real != root and root not in real.parents:
                    continue
                if root in self.indexes and real != root:
                    continue
                if any(part.startswith(".") for part in real.relative_to(root).parts):
                    raise UsageError(f"{visible(path, 80)} is hidden, and not searched")
                if not real.exists():
                    continue
                if root in self.folders and is_ignored(real, root):
                    raise UsageError(f"{visible(path, 80)} is left out by rules as of .gitignore")
                return real
        shown = ", ".join(_shown(str(root)) for root in roots)
        raise UsageError(f"{visible(path, 80)} is not in what is searched: {shown}")

    def _text(self, hits: SearchHits, max_tokens: int) -> str:
        """Return hits as text of at most so many tokens, `path:line` first."""
        room = _bounded("max_tokens", max_tokens, LEAST_TOKENS, MOST_TOKENS)
        if not hits:
            return AGAIN[hits.unsure] or "nothing relevant; other words may find more\n"
        encoder = self._opened().encoder

        def count(text: str) -> int:
            return len(encoder.tokenize([text])[0])

        text, drafts, last = "", "", AGAIN[hits.unsure]
        for hit in hits:
            more = DRAFTS if hit.is_estimate else drafts
            lines = hit.text.strip("\n").split("\n")
            is_numbered = hit.line is not None and hit.best_line is not None
            best = (hit.best_line or 0) - (hit.line or 0) if is_numbered else 0
            best = min(max(0, best), len(lines) - 1)
            left = room - count(text + more + last)
            if passage := fitted(_head(hit), lines, best, left, count):
                text += passage
                drafts = more
        return text + drafts + last if text else "max_tokens is too small for the first passage\n"

    def _opened(self) -> Model:
        if self._model is None:
            self._model = Model(self._reference)
        return self._model

    def _opened_indexes(self) -> list[Index]:
        """Return the indexes; each that is of another model has that, once it is asked."""
        if not self._indexes:
            self._indexes = [Index.suiting(folder, self._opened()) for folder in self.indexes]
        return self._indexes


def _head(hit: SearchHit) -> str:
    place = _shown(hit.path) if hit.path else visible(str(hit.id))
    if hit.best_line is not None and hit.path:
        place += f":{hit.best_line}"
    stale = f", {hit.stale} since it was indexed" if hit.stale else ""
    return f"{place} ({'~' if hit.is_estimate else ''}{hit.score:.2f}{stale})\n"


def _shown(path: str) -> str:
    """Return a path from the current folder, where it is in it."""
    here = str(Path.cwd()) + os.sep
    return visible(path.removeprefix(here))


def _bounded(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise UsageError(f"{name} is {value}; it is {least} to {most}")
    return value
