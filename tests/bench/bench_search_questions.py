"""Right file among the first three: eighty questions to the modules of Python's library.

Half of the questions use the words of the modules, half hardly any (`search_questions.jsonl`). Each
row of the table is a way to rank the passages; a file counts where it is among the first three:

    words                BM25 of the passages
    draft                draft vectors
    words and draft      both, as the first answer of `gemb search`
    N vectors            the first N of these get real vectors, which decide
    wordllama            cosines of another table of token vectors, where its package is installed
    all                  every passage has a real vector (--all: takes long the first time)

    python tests/bench/bench_search_questions.py [--vectors 10,20,40] [--all] [--cold 10]

With --cold N so many questions are asked of `gemb search` as processes, each with an empty cache of
passages and vectors, for the seconds to the first and to the last answer. GEMB_DRAFT names another
draft model; GEMB_DRAFT=none does without.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from other_models import OTHERS, Absent

from gemb.arrays import Floats, Ints, Vectors
from gemb.backend import Runtime
from gemb.embedding.model import open_model
from gemb.embedding.vectors import VectorSpec
from gemb.io.caches import search_cache
from gemb.models.prompts import for_task
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Corpus, Sources, gather
from gemb.search.files import first_reader
from gemb.search.first import FirstScores, first_ranking
from gemb.search.passage_texts import PassageTexts
from gemb.search.queries import Query, embedded
from gemb.search.scoring import embed_missing, split_known
from gemb.texts.walk import Skipped

QUESTIONS = Path(__file__).with_name("search_questions.jsonl")
FIRST = 3  # files
TABLES = ("wordllama-256", "tokenlearn-static-64")  # of `other_models`


@dataclass(frozen=True)
class Question:
    """A question, and the files of which one answers it."""

    text: str
    files: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Bench:
    """The passages, and everything that ranks them."""

    questions: Sequence[Question]
    vectors: Vectors  # of the questions, [Q, dim]
    corpus: Corpus
    cache: VectorCache
    first: Sequence[FirstScores]
    embed: Callable[[Sequence[int]], None]  # gives passages real vectors
    text: Callable[[int], str]  # of a passage, its title before it

    def cosines(self, numbers: Ints, question: int) -> Floats:
        """Return the cosines of passages that have a vector."""
        rows = self.cache.find([self.corpus.keys[number] for number in numbers.tolist()])
        return self.cache.scores(rows, self.vectors[question][None])[:, 0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", default="10,20,40", help="numbers of real vectors")
    parser.add_argument("--all", action="store_true", help="embed every passage, too")
    parser.add_argument("--cold", type=int, default=0, help="questions to ask as processes")
    arguments = parser.parse_args()
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(map(str, library.glob("*.py")))
    names = {Path(path).name for path in paths}
    rows = map(json.loads, QUESTIONS.read_text().splitlines())
    all_questions = [Question(row["text"], tuple(row["files"]), row["kind"]) for row in rows]
    questions = [question for question in all_questions if names & set(question.files)]
    bench = prepared(questions, paths)
    kinds = list(dict.fromkeys(question.kind for question in questions))
    print(f"{len(paths)} files, {len(bench.corpus):,} passages, {len(questions)} questions")
    print(f"| | {' | '.join(kinds)} | all |\n|---|{'---|' * (len(kinds) + 1)}")

    def row(label: str, order: Callable[[int], Ints]) -> None:
        right = dict.fromkeys(kinds, 0)
        for index, question in enumerate(questions):
            files = set(first_files(bench, order(index)))
            right[question.kind] += bool(files & set(question.files))
        print(f"| {label} | {' | '.join(map(str, right.values()))} | {sum(right.values())} |")

    row("words", lambda index: best(bench.first[index].words))
    if bench.first[0].drafts is not None:
        row("draft", lambda index: best(np.nan_to_num(bench.first[index].drafts, nan=-1.0)))
        row("words and draft", lambda index: best(bench.first[index].fused))
    for label, cosines in by_other_tables(bench):
        row(label, lambda index, cosines=cosines: best(cosines[index]))
    counts = [int(count) for count in arguments.vectors.split(",") if count]
    for count in [*counts, *([len(bench.corpus)] if arguments.all else [])]:
        chosen = [best(scores.fused)[:count] for scores in bench.first]
        bench.embed(sorted({number for numbers in chosen for number in numbers.tolist()}))
        label = f"{count} vectors" if count < len(bench.corpus) else "all"
        row(
            label,
            lambda index, chosen=chosen: chosen[index][
                np.argsort(-bench.cosines(chosen[index], index), kind="stable")
            ],
        )
    if arguments.cold:
        step = max(1, len(questions) // arguments.cold)
        cold(questions[::step][: arguments.cold], paths)


def prepared(questions: Sequence[Question], paths: Sequence[str]) -> Bench:
    """Gather the passages, open the models, and rank for each question."""
    folder = search_cache()
    table, skipped = PassageTable(folder, "auto"), Skipped()
    corpus = gather(Sources(paths=tuple(paths)), table, skipped)
    texts = PassageTexts(corpus, table, skipped)
    encoder = open_model("mini", "auto", Runtime()).encoder
    prompts = encoder.profile.prompts
    spec = VectorSpec.of(encoder.profile, for_task("document", prompts), dtype="f16")
    cache = VectorCache(folder, spec)
    queries = [Query(str(index), it.text, it.text) for index, it in enumerate(questions)]
    vectors = embedded(queries, encoder, for_task("query", prompts), spec.dim)
    ranking = first_ranking(texts, first_reader(folder, "", lambda: spec))
    first = [ranking.scores(it.text, vector) for it, vector in zip(questions, vectors, strict=True)]

    def embed(numbers: Sequence[int]) -> None:
        _, missing = split_known(corpus, cache)
        order = {corpus.keys[number]: number for number in numbers}
        new = [number for key, number in order.items() if key in missing]
        for _ in embed_missing(new, missing, texts, cache, encoder):
            pass

    def text(number: int) -> str:
        record = texts.record(number)
        assert record is not None, "a file of the library has changed"
        return " ".join(filter(None, (record.title, record.text)))

    return Bench(questions, vectors, corpus, cache, first, embed, text)


def by_other_tables(bench: Bench) -> Iterator[tuple[str, Floats]]:
    """Yield the name and the cosines [Q, passages] of the static encoders that are installed."""
    for other in OTHERS:
        if other.name not in TABLES:
            continue
        try:
            other.paths  # noqa: B018 - whether they are there
        except Absent:
            continue
        began = time.perf_counter()
        encode = other.load()
        passages = encode([bench.text(number) for number in range(len(bench.corpus))])
        asked = encode([question.text for question in bench.questions])
        label = f"{other.name}, {time.perf_counter() - began:.1f} s for all passages"
        yield label, asked @ passages.T


def best(scores: Floats) -> Ints:
    """Return the passages, best first."""
    return np.argsort(-scores, kind="stable")


def first_files(bench: Bench, order: Ints) -> list[str]:
    """Return the names of the first `FIRST` files of a ranking of passages."""
    names: dict[str, None] = {}
    for number in order.tolist():
        file = int(bench.corpus.files_of(np.array([number]))[0])
        names[Path(bench.corpus.files[file].path).name] = None
        if len(names) == FIRST:
            break
    return list(names)


def cold(questions: Sequence[Question], paths: Sequence[str]) -> None:
    """Ask questions of new processes with an empty cache, and print the times."""
    first, last, busy, right = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        command = [sys.executable, "-m", "gemb", "search", "-v", "--json", "--weak", "-k", "30"]
        subprocess.run([*command, "warm up", paths[0]], env=environment, capture_output=True)
        for question in questions:
            shutil.rmtree(Path(folder) / "gemb" / "search")
            began, used = time.perf_counter(), _children_s()
            found = subprocess.run(
                [*command, question.text, *paths],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            last.append(time.perf_counter() - began)
            busy.append(_children_s() - used)
            files = dict.fromkeys(
                Path(json.loads(line)["path"]).name for line in found.stdout.splitlines()
            )
            right += bool(set(list(files)[:FIRST]) & set(question.files))
            late = re.findall(r"(?:vectors|hits) ([\d.]+) s", found.stderr)
            first.append(last[-1] - sum(map(float, late)))
    print(
        f"cold, {len(questions)} questions: right {right}; median seconds to the first answer "
        f"{median(first):.1f} (worst {max(first):.1f}), to the last {median(last):.1f} "
        f"(worst {max(last):.1f}); of processors {median(busy):.1f}"
    )


def _children_s() -> float:
    """Return the seconds of processors that ended processes took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
