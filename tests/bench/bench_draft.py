"""How right a draft is, alone and with words, beside the model of whose space it is.

    python tests/bench/bench_draft.py --data DEV [--real] [--queries 400] [--widths 768 256] \\
        init=RUN/model draft ...

Queries are embedded by the model with its query prompt, documents by each draft; scores are their
cosines. `words` is gemb's BM25; both together are as in a search of files: the sum of the scores,
each standardised over the documents of a query, that of the words by `WORDS`. `--real` embeds the
documents by the model, too, which takes minutes, and keeps the vectors in gemb's cache of teachers;
`--first N` then ranks as a search does that has the time for N real vectors of a query.
DEV has the BEIR folders of `SETS` in retrieval/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.backend import Encoder, Runtime
from gemb.index.bm25 import by_words
from gemb.index.words import add_words, words_table
from gemb.io.caches import teachers_cache
from gemb.models.prompts import Prompt, for_task
from gemb.models.references import resolve
from gemb.models.static import check_draft
from gemb.plugins import for_model
from gemb.search.fusion import WORDS, standardised
from gemb.texts.words import query_terms
from gemb.training.teacher import Teacher, TeacherText
from gemb.training.teachers import open_teacher

SETS = (
    "cosqa-dev",
    "boolq-dev",
    "debian-desc-dev",
    "xsum-1000",
    "narrativeqa-summaries",
    "pubmedqa-pqaa",
)
Matrix = NDArray[np.float32]
Embed = Callable[[str], Matrix]  # name of a set -> vectors of its documents


@dataclass(frozen=True)
class Set:
    """A retrieval set in memory."""

    name: str
    queries: list[str]
    documents: list[tuple[str, str]]  # title, which may be empty, and text
    relevant: list[list[int]]  # of each query
    words: Matrix  # BM25, [queries, documents]


def read_set(folder: Path, most: int) -> Set:
    """Return a BEIR folder's set, its first queries alone."""
    queries = _lines(folder / "queries.jsonl")[:most]
    corpus = _lines(folder / "corpus.jsonl")
    at = {row["_id"]: number for number, row in enumerate(corpus)}
    relevant: dict[str, list[int]] = {}
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if float(score) > 0:
            relevant.setdefault(query, []).append(at[document])
    documents = [(row.get("title") or "", row["text"]) for row in corpus]
    words = np.zeros((len(queries), len(documents)), np.float32)
    table = words_table()
    add_words(table, 0, [(title or None, text) for title, text in documents])
    for number, row in enumerate(queries):
        text = row["text"]
        found = by_words(table, text, len(documents), share=0.0, terms=query_terms(text))
        words[number, found.rows] = found.scores
    texts = [row["text"] for row in queries]
    return Set(folder.name, texts, documents, [relevant[row["_id"]] for row in queries], words)


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def measures(scores: Matrix, relevant: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return nDCG@10 and recall@50, means over the queries."""
    gains, recalls = [], []
    discounts = 1 / np.log2(np.arange(2, 12))
    for row, right in zip(scores, relevant, strict=True):
        best = np.isin(np.argsort(-row, kind="stable")[:50], right)
        gains.append((best[:10] * discounts).sum() / discounts[: len(right)].sum())
        recalls.append(best.sum() / len(right))
    return float(np.mean(gains)), float(np.mean(recalls))


def cut(vectors: Matrix, width: int) -> Matrix:
    """Return the first components, of length one."""
    part = np.nan_to_num(vectors[:, :width])
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)


def line(
    name: str, sets: Sequence[Set], queries: Sequence[Matrix], embed: Embed, width: int
) -> str:
    """Return a row of the table: nDCG@10 / recall@50 alone, then with words."""
    alone, both = [], []
    for one, vectors in zip(sets, queries, strict=True):
        cosines = cut(vectors, width) @ cut(embed(one.name), width).T
        alone.append(measures(cosines, one.relevant))
        fused = [
            standardised(right) + WORDS * standardised(words)
            for right, words in zip(cosines, one.words, strict=True)
        ]
        both.append(measures(np.stack(fused), one.relevant))
    cells = [
        f"{_pair(left)}, {_pair(right)}"
        for left, right in zip([_mean(alone), *alone], [_mean(both), *both], strict=True)
    ]
    return f"| {name} | {width} | {' | '.join(cells)} |"


def staged(
    sets: Sequence[Set], queries: Sequence[Matrix], draft: Embed, real: Embed, most: int
) -> list[tuple[float, float]]:
    """Return the measures where the first documents by words and draft are ranked by the model."""
    pairs = []
    for one, vectors in zip(sets, queries, strict=True):
        drafts = cut(vectors, vectors.shape[1]) @ cut(draft(one.name), vectors.shape[1]).T
        cosines = vectors @ real(one.name).T
        for query, words in enumerate(one.words):
            fused = standardised(drafts[query]) + WORDS * standardised(words)
            beyond = np.argsort(-fused, kind="stable")[most:]
            cosines[query, beyond] = fused[beyond] - 1e3  # all of them behind the first ones
        pairs.append(measures(cosines, one.relevant))
    return pairs


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    gain, recall = np.mean(pairs, axis=0)
    return float(gain), float(recall)


def _pair(numbers: tuple[float, float]) -> str:
    return " ".join(f"{100 * number:.1f}" for number in numbers)


def drafted(encoder: Encoder, sets: Sequence[Set]) -> Embed:
    """Return the vectors of all documents by a draft, and print its speed."""
    vectors, tokens = {}, 0
    began = time.process_time()
    for one in sets:
        texts = [f"{title}\n{text}" if title else text for title, text in one.documents]
        ids = encoder.tokenize(texts)
        tokens += sum(map(len, ids))
        vectors[one.name] = encoder.encode(ids)
    print(f"{tokens / (time.process_time() - began):,.0f} tokens a second of processor time")
    return vectors.__getitem__


def embedded(teacher: Teacher, prompt: Prompt, sets: Sequence[Set]) -> Embed:
    """Return the vectors of all documents by the model."""
    vectors = {}
    for one in sets:
        texts = [TeacherText(prompt.render(text, title or None)) for title, text in one.documents]
        teacher.fill(texts)
        vectors[one.name] = teacher.vectors(texts)
    return vectors.__getitem__


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drafts", nargs="*", metavar="[NAME=]REF")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--first", type=int, nargs="*", default=[], help="numbers of vectors")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 256])
    options = parser.parse_args()
    sets = [read_set(options.data / "retrieval" / name, options.queries) for name in options.sets]
    teacher = open_teacher(options.model, teachers_cache(), Runtime(), backend=options.backend)
    query, document = (for_task(task, teacher.prompts) for task in ("query", "document"))
    path = resolve(options.model)
    model = for_model(path, options.backend).open(path, Runtime()).profile
    queries = []
    for one in sets:
        texts = [TeacherText(query.render(text)) for text in one.queries]
        teacher.fill(texts)
        queries.append(teacher.vectors(texts))
    names = " | ".join(options.sets)
    lines = [f"| | width | mean | {names} |", f"|{'---|' * (len(sets) + 3)}"]
    words = [measures(one.words, one.relevant) for one in sets]
    lines.append(f"| words | | {' | '.join(_pair(it) for it in [_mean(words), *words])} |")
    rows: dict[str, Embed] = {}
    for named in options.drafts:
        name, _, reference = named.rpartition("=")
        folder = resolve(reference)
        encoder = for_model(folder).open(folder, Runtime())
        check_draft(encoder.profile.draft_of, model.fingerprint, reference)
        rows[name or reference] = drafted(encoder, sets)
    if options.real:
        rows[options.model] = embedded(teacher, document, sets)
    lines += [
        line(name, sets, queries, embed, width)
        for name, embed in rows.items()
        for width in options.widths
    ]
    for most in options.first if options.real and options.drafts else ():
        pairs = staged(sets, queries, next(iter(rows.values())), rows[options.model], most)
        cells = " | ".join(map(_pair, [_mean(pairs), *pairs]))
        lines.append(f"| words and draft, then {most} real | | {cells} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
