"""Which scores are no better than chance: the floor of `--min-score auto`.

A query that has nothing to do with a corpus still has a nearest passage, and the more passages
there are, the nearer it is. So `PROBES`, queries about everything, are asked of a sample of the
corpus; the lower quartile of their best scores is its background, for some of them may be
answered. Then

    floor = 0.24 + quartile / 2

which is halfway between one floor for all corpora and one that follows the corpus alone. It was
chosen by experiment among a dozen rules: fourteen sets of questions and texts, 30 to 3,500 texts,
four models; each rule's constant was set so that 2 % of the questions lose the answer that they
have. So many questions about another subject then have an answer, on the mean and in the worst
set:

    0.35, for all corpora                          1.0 %   12 %
    0.13 + median                                  1.9 %   12 %
    0.17 + quartile                                1.5 %   11 %
    0.265 + quartile / 2                           0.7 %    3 %
    2.1 deviations of all scores above the median  2.0 %   12 %
    4.4 deviations above the mean of all scores    3.3 %   66 %

The constant is lower than that comparison's 0.265: long passages of mixed matter, as those of a
manual, score lower than the sets' short texts, and an answer that is hidden costs more than a
weak one that is shown. With the bundled model, over nine sets with long documents too, 3.0 % of
the questions lose their answers and 3.6 % of those about another subject have one (5.2 % and 1.2
% with 0.265). The deviations of the one query's own scores tell even less than those of all: what
many passages answer has a high mean and a wide spread. And no score tells a question that is
answered from one about the same subject that is not: half of those pass, and more in a large
corpus.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemb.errors import GembError, UsageError
from gemb.io.atomic import new_file
from gemb.io.caches import search_cache
from gemb.io.foreign import read_bytes
from gemb.models.prompts import for_task
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.embedding.vectors import VectorSpec

SAMPLE = 2000  # rows of a corpus
BASE = 0.24
SHARE = 0.5  # of the quartile
# The best of N normal scores grows as sqrt(2 ln N) of their deviations. The tails of real ones are
# heavier: measured, from 300 to 3,500 texts, 1.1 to 2 deviations (3.6 in one corpus of six).
GROWTH = 1.5
# A model of another family has high scores for everything: no floor is lower than that.
LEAST_ABOVE = 1.5  # deviations above the quartile
# Queries about everything: hardly a corpus answers more than a few of them.
PROBES = (
    "how long to boil an egg",
    "symptoms of iron deficiency",
    "offside rule in football explained",
    "what causes thunder",
    "sort a list of dictionaries by key",
    "can a landlord keep my deposit",
    "how do vaccines work",
    "mortgage interest rates",
    "interpretation of Hamlet's soliloquy",
    "distance from the earth to the moon",
    "chords of Let It Be",
    "train from Vienna to Prague",
    "which trees lose their leaves",
    "population of Indonesia",
    "how does a heat pump heat a house",
    "meaning of the word serendipity",
    "who painted the Night Watch",
    "how are black holes formed",
    "treatment of a sprained ankle",
    "memory leak in a server",
    "life cycle of a butterfly",
    "replace the battery of a phone",
    "speed of light in water",
    "birds that cannot fly",
    "Wie backt man einen Apfelkuchen",
    "horaires du musée du Louvre",
    "cómo aprender a tocar la guitarra",
    "как вырастить помидоры",
    "如何学习游泳",
    "京都の紅葉の見頃",
    "cos'è l'effetto serra",
    "como renovar o passaporte",
)


@dataclass(frozen=True, kw_only=True)
class Background:
    """How queries score that a corpus does not answer."""

    quartile: float  # the lower one of the best scores of `PROBES`, cosines
    deviation: float  # of all scores of `PROBES`
    rows: int  # among which the best ones were the best

    def floor(self, count: int) -> float:
        """Return the cosine below which a best score among `count` rows is no answer.

        It is for short queries with the query's prompt: a passage that serves as a query is nearer
        to everything.

        Args:
            count: rows that were searched, after any filter.
        """
        quartile = self.best_of(count)
        return max(BASE + SHARE * quartile, quartile + LEAST_ABOVE * self.deviation)

    def best_of(self, count: int) -> float:
        """Return the lower quartile of the best scores of `PROBES` among so many rows."""
        grown = _expected(count) - _expected(self.rows)
        return self.quartile + GROWTH * self.deviation * grown

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` takes: for a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(entries: object) -> Background:
        """Return the background in a manifest.

        Raises:
            UsageError: it is none of ours.
        """
        names = [field.name for field in fields(Background)]
        numbers = [entries.get(name) for name in names] if isinstance(entries, Mapping) else []
        if not numbers or not all(_is_number(number) for number in numbers):
            raise UsageError("the background of the scores is none that gemb wrote")
        quartile, deviation, rows = map(float, numbers)  # type: ignore[arg-type]
        return Background(quartile=quartile, deviation=deviation, rows=int(rows))


# What is usual for EmbeddingGemma and for models that were distilled from it.
USUAL = Background(quartile=0.17, deviation=0.055, rows=1000)


def measure(
    stored: NDArray[Any], dtype: str, spec: VectorSpec, encoder: Encoder | None = None
) -> Background:
    """Return the background of a corpus, from a sample of its vectors.

    Args:
        stored: vectors as `gemb.embedding.vectors.packed` makes them, [n, dim], a memory map too;
            at most `SAMPLE` rows are read, spread over all of it. Rows of NaN or zeros are passed
            over.
        dtype: of `stored`: f32, f16 or int8.
        spec: of the vectors.
        encoder: the open model; None: `USUAL` is all that is known.
    """
    from gemb.embedding.pipeline import shortened
    from gemb.embedding.vectors import unpacked

    if encoder is None:
        return USUAL
    places = np.unique(np.linspace(0, len(stored) - 1, min(SAMPLE, len(stored)), dtype=np.int64))
    sample = unpacked(np.asarray(stored[places]), dtype, spec.dim)
    lengths = np.linalg.norm(sample, axis=1)
    good = lengths > 0  # nor is NaN
    if not good.any():
        return USUAL
    sample = sample[good] / lengths[good, None]
    scores = shortened(probe_vectors(encoder), spec.dim) @ sample.T  # [probes, rows]
    return Background(
        quartile=round(float(np.quantile(scores.max(axis=1), 0.25)), 4),
        deviation=round(float(scores.std()), 4),
        rows=int(good.sum()),
    )


def probe_vectors(encoder: Encoder) -> NDArray[np.float32]:
    """Return unit vectors of `PROBES` with the model's prompt for queries, float32 [probes, dim].

    They are kept in $XDG_CACHE_HOME/gemb/search, where that can be written to: a search that needs
    them has no second to spare.

    Raises:
        GembError: the model fails on them.
    """
    from gemb.embedding.store import key_of
    from gemb.embedding.vectors import are_units

    prompt = for_task("query", encoder.profile.prompts)
    texts = [prompt.render(probe) for probe in PROBES]
    key = key_of("\0".join((encoder.profile.fingerprint, *texts))).hex()
    path = search_cache() / f"probes-{key}.npy"
    with contextlib.suppress(OSError, UsageError, ValueError, EOFError):
        kept = np.lib.format.read_array(io.BytesIO(read_bytes(path)), allow_pickle=False)
        is_right = kept.shape == (len(PROBES), encoder.profile.dim) and kept.dtype == np.float32
        if is_right and are_units(kept, "f32", kept.shape[1]).all():
            return kept
    from gemb.embedding.text_vectors import NoVector, text_vectors

    records = [Record(number, repr(PROBES[number]), text) for number, text in enumerate(texts)]
    try:
        vectors, _ = text_vectors(records, encoder)
    except NoVector as error:
        raise GembError(f"which scores chance explains cannot be measured: {error}") from None
    with contextlib.suppress(OSError, UsageError):  # something else has the name
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part, part.open("wb") as file:
            np.save(file, vectors)
    return vectors


def _expected(count: int) -> float:
    """Return the expected maximum of so many normal scores, in deviations."""
    return math.sqrt(2 * math.log(max(count, 2)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
