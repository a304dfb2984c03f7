"""Evaluation sets: what each kind holds, which prompts its texts have, and how a set is opened.

The kind is recognised by the shape of what a user has:

    NAME/corpus.jsonl, queries.jsonl, qrels.tsv or qrels/test.tsv   retrieval (the layout of BEIR)
    rerank/NAME/...                            the same, each query among its judged documents
    NAME.tsv with sentence1, sentence2, score  STS; scores that are all 0 or 1: pairs; .csv and
                                               .jsonl with these names, too
    NAME.tsv of two columns                    bitext: each line a sentence and its translation
    NAME-train.jsonl and NAME-val.jsonl, or one file            classification: text, label
    NAME.json with queries, corpus, relevant_docs               retrieval (LlamaIndex)

A folder may hold many of these, at any depth. Beside a corpus.jsonl, `set.json` may say what the
shape does not: `{"kind": "rerank", "task": "code"}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gemb.arrays import Doubles, Rows
from gemb.datasets.set_files import (
    RetrievalFiles,
    has_sentence_pairs,
    read_labelled,
    read_llama_index_set,
    read_retrieval,
    read_table,
)
from gemb.errors import UsageError
from gemb.recipe.names import resolve_data
from gemb.texts.examples import Text

Kind = Literal["sts", "pairs", "bitext", "retrieval", "rerank", "classification"]
MAIN = {
    "sts": "spearman",
    "pairs": "ap",
    "bitext": "accuracy",
    "retrieval": "ndcg@10",
    "rerank": "map@100",
    "classification": "accuracy",
}


@dataclass(frozen=True)
class Part:
    """Texts of a set that have one prompt."""

    task: str  # of `gemb.models.prompts.TASKS`
    texts: Sequence[Text]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A set of one kind. What else it holds is in the children."""

    name: str
    kind: Kind
    path: Path

    @property
    def parts(self) -> tuple[Part, ...]:
        """The texts to embed."""
        raise NotImplementedError

    @property
    def scored(self) -> tuple[Part, ...]:
        """Those of the parts that the score is of: no training text may be one of these."""
        return self.parts

    @property
    def units(self) -> int:
        """How many pairs, queries or rows the main metric is over."""
        raise NotImplementedError

    @property
    def answers(self) -> Iterable[object]:
        """What is right, for the fingerprint."""
        raise NotImplementedError

    @property
    def left_out(self) -> str:
        """What of the files takes no part, in words; empty where all does."""
        return ""

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return MAIN[self.kind]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all texts and answers: two sets with the same one have equal scores."""
        digest = hashlib.blake2b(self.kind.encode(), digest_size=8)
        for part in self.parts:
            for text in part.texts:
                digest.update(f"{len(text.text)} {text.text}\0{text.title}\0".encode())
        for answer in self.answers:
            digest.update(f"{answer}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SentencePairs(EvaluationSet):
    """Pairs with a score (sts), 0 or 1 (pairs), or of one meaning in two languages (bitext)."""

    left: Sequence[Text]  # [N]
    right: Sequence[Text]  # [N]
    gold: Doubles  # [N]; bitext: all 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """Both columns; the model card's prompts for these kinds are the same on both sides."""
        task = "query" if self.kind == "bitext" else "similarity"
        return Part(task, self.left), Part(task, self.right)

    @property
    def units(self) -> int:
        """Pairs."""
        return len(self.left)

    @property
    def answers(self) -> Iterable[object]:
        """The scores."""
        return list(self.gold.tolist())


@dataclass(frozen=True, kw_only=True)
class Retrieval(EvaluationSet):
    """Queries, documents, and which answer which."""

    task: str  # of the queries
    queries: Sequence[Text]  # [N]: those with a relevant document
    documents: Sequence[Text]  # in descending order of their ids' bytes, as trec_eval breaks ties
    judged: Sequence[tuple[Rows, Doubles]]  # of each query: rows of documents, and their grades
    own: Sequence[int]  # of each query: the row of the query itself as a document; -1: none
    unscored: int  # queries whose judged documents have no grade above 0
    unknown: int  # judgements of ids that are in neither file

    @property
    def parts(self) -> tuple[Part, ...]:
        """Queries and documents."""
        document = "similarity" if self.task == "similarity" else "document"
        return Part(self.task, self.queries), Part(document, self.documents)

    @property
    def units(self) -> int:
        """Queries."""
        return len(self.queries)

    @property
    def answers(self) -> Iterable[object]:
        """The judgements. Documents are in the order of their ids, so rows say the same as ids."""
        for rows, grades in self.judged:
            yield sorted(zip(rows.tolist(), grades.tolist(), strict=True))
        yield self.task

    @property
    def left_out(self) -> str:
        """Judgements and queries that cannot be scored."""
        lines = []
        if self.unknown:
            lines.append(f"{self.unknown} judgements name ids that are not in the files")
        if self.unscored:
            lines.append(f"{self.unscored} queries have no relevant document")
        return "; ".join(lines)


@dataclass(frozen=True, kw_only=True)
class Classification(EvaluationSet):
    """Texts with a label. Without a part to train on, each fifth is tested after the others."""

    train: Sequence[Text]
    train_labels: Sequence[str]
    test: Sequence[Text]  # empty: five folds of `train`
    test_labels: Sequence[str]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is trained on, and what is tested."""
        return Part("classification", self.train), Part("classification", self.test)

    @property
    def scored(self) -> tuple[Part, ...]:
        """What is tested."""
        return self.parts[1:] if self.test else self.parts[:1]

    @property
    def units(self) -> int:
        """Rows that are tested."""
        return len(self.test) or len(self.train)

    @property
    def answers(self) -> Iterable[object]:
        """The labels."""
        return [*self.train_labels, *self.test_labels]


TESTED = ("test", "val", "dev", "validation")  # NAME-val.jsonl; the first of these that is there


@dataclass(frozen=True)
class Suite:
    """Sets that are evaluated together. Its score is the mean of their main metrics."""

    name: str
    sets: tuple[EvaluationSet, ...]

    def fingerprints(self) -> dict[str, str]:
        """Return each set's fingerprint by name."""
        return {dataset.name: dataset.fingerprint for dataset in self.sets}


def builtins() -> dict[str, Path]:
    """Return the folders of the sets that come with gemb, by name."""
    folder = Path(__file__).parents[1] / "data" / "eval"
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def open_suite(*specs: str | Path, encoding: str = "") -> Suite:
    """Return the sets of a file, a folder, a tree of folders, or `builtin:NAME`; of several, too.

    Args:
        specs: which.
        encoding: of files without a byte-order mark, as `checked_encoding` returns it.

    Raises:
        UsageError: there is no such path or name, there is no set in it, or a file of it is wrong.
    """
    sets: list[EvaluationSet] = []
    for spec in specs:
        some = list(_sets(_path(spec), encoding))
        if not some:
            raise UsageError(f"{spec}: no evaluation set in it (see gemb eval --help)")
        sets += some
    if not sets:
        raise UsageError("no evaluation set is named")
    name = ", ".join(str(spec) for spec in specs)
    return Suite(name, _with_one_name_each(sets))


def _path(spec: str | Path) -> Path:
    prefix, colon, name = str(spec).partition(":")
    if prefix == "builtin" and colon:
        known = builtins()
        if name not in known:
            raise UsageError(f"no built-in set '{name}'; there is: builtin:{', '.join(known)}")
        return known[name]
    path = resolve_data(str(spec))
    if not path.exists():
        raise UsageError(f"no such file or folder: {spec}")
    return path


def _with_one_name_each(sets: list[EvaluationSet]) -> tuple[EvaluationSet, ...]:
    """Return the sets; those with the name of another have their folder's before it."""
    names = [dataset.name for dataset in sets]
    if len(set(names)) == len(names):
        return tuple(sets)
    longer = [
        replace(dataset, name=f"{dataset.path.parent.name}/{dataset.name}")
        if names.count(dataset.name) > 1
        else dataset
        for dataset in sets
    ]
    again = [dataset.name for dataset in longer]
    for dataset in longer:
        if again.count(dataset.name) > 1:
            raise UsageError(
                f"{dataset.path}: two sets are named '{dataset.name}'; rename one of them"
            )
    return tuple(longer)


def _sets(path: Path, encoding: str) -> Iterator[EvaluationSet]:
    if path.is_dir():
        if (path / "corpus.jsonl").exists() or (path / "queries.jsonl").exists():
            yield _retrieval(path, encoding)
            return
        rows = sorted(child for child in path.iterdir() if child.suffix in (".csv", ".jsonl"))
        tables = [child for child in rows if has_sentence_pairs(child, encoding)]
        labelled = [child for child in rows if child.suffix == ".jsonl" and child not in tables]
        yield from (_pairs(table, encoding) for table in tables)
        yield from (_classification(files, encoding) for files in _grouped(labelled))
        for child in sorted(path.iterdir()):
            if not child.name.startswith(".") and (child.is_dir() or child.suffix == ".tsv"):
                yield from _sets(child, encoding)
    elif path.suffix in (".tsv", ".csv") or (
        path.suffix == ".jsonl" and has_sentence_pairs(path, encoding)
    ):
        yield _pairs(path, encoding)
    elif path.suffix == ".json":
        yield _judged(path, read_llama_index_set(path, encoding), path.stem, is_rerank=False)
    elif path.suffix == ".jsonl":
        siblings = sorted(path.parent.glob("*.jsonl"))
        yield next(
            _classification(files, encoding) for files in _grouped(siblings) if path in files
        )
    else:
        raise UsageError(
            f"{path}: evaluation sets are .tsv, .csv or .jsonl files, LlamaIndex's .json, "
            "or folders of them"
        )


def _retrieval(folder: Path, encoding: str) -> Retrieval:
    read = read_retrieval(folder, encoding)
    kind = read.kind or ("rerank" if folder.resolve().parent.name == "rerank" else "retrieval")
    return _judged(folder, read, folder.resolve().name, is_rerank=kind == "rerank")


def _judged(path: Path, read: RetrievalFiles, name: str, *, is_rerank: bool) -> Retrieval:
    place = {key: row for row, key in enumerate(read.documents)}
    queries, judged, own = [], [], []
    for key, grades in read.judged.items():
        if max(grades.values()) <= 0:
            continue
        query = read.queries[key]
        itself = place.get(key, -1)
        # Some sets (ArguAna, Quora) have their queries among the documents.
        if itself >= 0 and (key in grades or read.documents[key].text != query.text):
            itself = -1
        queries.append(query)
        rows = np.array([place[document] for document in grades], np.int64)
        judged.append((rows, np.array(list(grades.values()), np.float64)))
        own.append(itself)
    if not queries:
        raise UsageError(f"{read.qrels}: no query has a document with a grade above 0")
    return Retrieval(
        name=name,
        kind="rerank" if is_rerank else "retrieval",
        path=path,
        task=read.task,
        queries=queries,
        documents=list(read.documents.values()),
        judged=judged,
        own=own,
        unscored=len(read.judged) - len(queries),
        unknown=read.unknown,
    )


def _pairs(path: Path, encoding: str) -> SentencePairs:
    table = read_table(path, encoding)
    kind: Kind = "bitext"
    gold = np.ones(len(table.left))
    if table.scores is not None:
        gold = np.array(table.scores)
        if gold.min() == gold.max():
            raise UsageError(f"{path}: every score is {gold[0]:g}; there is nothing to rank")
        kind = "pairs" if set(gold.tolist()) <= {0.0, 1.0} else "sts"
    return SentencePairs(
        name=path.stem,
        kind=kind,
        path=path,
        left=[Text(text) for text in table.left],
        right=[Text(text) for text in table.right],
        gold=gold,
    )


def _grouped(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Return the files of each classification set: what to train on, then what to test, or one."""
    groups: dict[str, dict[str, Path]] = {}
    for file in files:
        name, _, part = file.stem.rpartition("-")
        is_part = bool(name) and part in ("train", *TESTED)
        groups.setdefault(name if is_part else file.stem, {})[part if is_part else ""] = file
    sets: list[tuple[Path, ...]] = []
    for parts in groups.values():
        tested = next((parts[part] for part in TESTED if part in parts), None)
        if tested and "train" in parts:
            sets.append((parts["train"], tested))
        else:
            sets += [(file,) for file in parts.values()]
    return sets


def _classification(files: tuple[Path, ...], encoding: str) -> Classification:
    rows = [read_labelled(file, encoding) for file in files]
    texts = [[Text(text) for text, _ in some] for some in rows]
    labels = [[label for _, label in some] for some in rows]
    if len(set(labels[0])) < 2:
        raise UsageError(f"{files[0]}: one label alone; there is nothing to tell apart")
    for number, label in enumerate(labels[-1], 1):
        if label not in set(labels[0]):
            raise UsageError(f"{files[-1]}, row {number}: {files[0].name} has no label {label!r}")
    has_test = len(files) == 2
    return Classification(
        name=files[-1].stem,
        kind="classification",
        path=files[-1],
        train=texts[0],
        train_labels=labels[0],
        test=texts[1] if has_test else [],
        test_labels=labels[1] if has_test else [],
    )
