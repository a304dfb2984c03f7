"""How fast models embed the same texts, and how soon the first vector is there, in turns.

Speed is from strings to vectors, tokenizing and each model's own document prompt included, in a
process that has the model open. All are counted in one unit: the tokens that EmbeddingGemma's
tokenizer makes of the texts without prompts. Start is a whole process that embeds one line:
`gemb embed` of a model of gemb's, `other_models.py` of another.

The models take turns with the reference (A B C R A B C R ...); a ratio is the median of those of
each turn, so that what slows the machine for a while slows both sides of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from other_models import Other
from scored_models import chosen, describe

SHORT, LONG = 80, 12  # texts
PASSAGE = 800  # characters of a long one, at most
ROUNDS = 5
# An installed package has its bytecode beside it.
CACHED = os.environ | {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "gemb-bytecode"),
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was measured of a model."""

    tokens_per_second: float  # median
    speed_ratio: float  # to the reference's, median of the turns
    start_s: float  # median
    start_ratio: float
    turns: int


def texts_of(data: Path) -> list[str]:
    """Return sentences and passages, drawn evenly from development sets."""
    sentences = (data / "sts/stsb-en-dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    lines = (data / "retrieval/xsum-1000/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        *(line.split("\t")[0] for line in _spread(sentences, SHORT)),
        *(json.loads(line)["text"][:PASSAGE] for line in _spread(lines, LONG)),
    ]


def _spread(lines: Sequence[str], count: int) -> list[str]:
    return [lines[row] for row in np.linspace(0, len(lines) - 1, count).astype(int)]


def measured(specs: Sequence[str], reference: str, data: Path) -> dict[str, Times]:
    """Return the times of each model, by its spec (see `scored_models.chosen`).

    Args:
        specs: of models that are all here.
        reference: what ratios are to: a model that gemb runs.
        data: the folder of the development sets.
    """
    texts = texts_of(data)
    tokens = _tokens(reference, texts)
    everyone = dict.fromkeys([*specs, reference])
    starts = _turns({spec: (lambda spec=spec: _start(spec)) for spec in everyone})
    workers = {spec: _Worker(spec, texts) for spec in everyone}
    speeds = _turns({spec: worker.seconds for spec, worker in workers.items()})
    for worker in workers.values():
        worker.close()
    return {
        spec: Times(
            tokens_per_second=tokens / statistics.median(speeds[spec]),
            speed_ratio=_ratio(speeds[reference], speeds[spec]),
            start_s=statistics.median(starts[spec]),
            start_ratio=_ratio(starts[spec], starts[reference]),
            turns=ROUNDS,
        )
        for spec in specs
    }


def _tokens(reference: str, texts: Sequence[str]) -> int:
    encoder = describe(chosen(reference)).open()
    (empty,) = encoder.tokenize([""])  # the tokenizer's own
    return sum(len(ids) - len(empty) for ids in encoder.tokenize(texts))


def _turns(work: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return the seconds of each in each turn; a first one, which is not timed, warms up."""
    rounds = [{spec: run() for spec, run in work.items()} for _ in range(ROUNDS + 1)]
    return {spec: [one[spec] for one in rounds[1:]] for spec in work}


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _start(spec: str) -> float:
    model = chosen(spec)
    if isinstance(model, Other):
        command = [sys.executable, str(Path(__file__).with_name("other_models.py")), model.name]
    else:
        gemb = str(Path(sys.executable).with_name("gemb"))
        command = [gemb, "embed", "-m", model.reference, "--precision", model.precision]
    started = time.perf_counter()
    subprocess.run(
        command,
        input=b"hello\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        env=CACHED,
    )
    return time.perf_counter() - started


class _Worker:
    """A process that has a model open, and embeds the texts as often as it is asked."""

    def __init__(self, spec: str, texts: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(texts))

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def seconds(self) -> float:
        assert self._process.stdout
        self._say("")
        answer = self._process.stdout.readline()
        assert answer, "the worker ended"
        return float(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _work(spec: str) -> Callable[[Sequence[str]], None]:
    """Return what embeds texts as documents."""
    from gemb.embedding.text_vectors import text_vectors
    from gemb.models.prompts import for_task
    from gemb.texts.records import Record

    model = chosen(spec)
    if isinstance(model, Other):
        encode = model.load()
        return lambda texts: encode([model.document + text for text in texts])
    encoder = describe(model).open()
    prompt = for_task("document", encoder.profile.prompts)

    def embed(texts: Sequence[str]) -> None:
        records = [Record(row, "", prompt.render(text)) for row, text in enumerate(texts)]
        text_vectors(records, encoder)

    return embed


def main(spec: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library may print
    texts = json.loads(sys.stdin.readline())
    embed = _work(spec)
    for _ in sys.stdin:
        started = time.perf_counter()
        embed(texts)
        print(time.perf_counter() - started, file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
