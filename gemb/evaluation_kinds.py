"""The kinds of evaluation sets: what each holds, and which texts of it have which prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemb.metrics import Floats, Rows
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

    task: str  # of gemb.prompts.TASKS
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
    gold: Floats  # [N]; bitext: all 1

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
    judged: Sequence[tuple[Rows, Floats]]  # of each query: rows of documents, and their grades
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
