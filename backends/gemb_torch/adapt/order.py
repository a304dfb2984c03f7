"""The texts of a run of adaptation: tokenized once, drawn in a fixed order, taken apart by a task.

A source is tokenized into the cache: `tokens.bin` has the ids of all texts one after the other,
int32, without BOS and EOS; `ends.bin` where each text ends, int64; `about.json` what they are of.
They are mapped, not loaded.

A text longer than `longest` is cut into equal parts. Parts come from the sources by weight, and
within a source each part once before any comes again. Everything is drawn from the seed and the
number of the example alone, so that a run goes on after a stop as if there had been none, and the
number of processes changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gemb.datasets.plain_texts import PlainTexts, Texts
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.caches import writable
from gemb.io.notes import note
from gemb.io.stamps import Stamp
from gemb.io.text import size_in_words
from gemb.texts.contents import shown
from gemb.training.ul2 import SHORTEST, Task, choose, spans, taken_apart

_VERSION = 1  # of the files in the cache
_LONG_BYTES = 1 << 28  # from here on the user is told why nothing happens


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """A source's tokens."""

    name: str
    format: str  # what was recognised, in words
    weight: float | None  # share of the texts, relative; None: by their number
    stamp: str  # of the tokens: a copy of the source has the same
    former: str  # what checkpoints of version 0.1 hold in its place
    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]  # of each text in `tokens`
    bad_count: int
    bad: list[tuple[str, str]]  # place and reason of the first

    def __len__(self) -> int:
        return len(self.ends)

    def is_at(self, stamp: object) -> bool:
        """Return whether a checkpoint was of these tokens."""
        return stamp in (self.stamp, self.former)


def tokenized(texts: PlainTexts, tokenizer: Tokenizer, digest: str, cache: Path) -> TokenStore:
    """Return a source's tokens; the first time, make them in `cache`.

    Args:
        texts: the source.
        tokenizer: without truncation.
        digest: of the tokenizer's file.
        cache: a folder, made where it is not there.

    Raises:
        UsageError: the source cannot be read, or has no text.
        OSError: the cache cannot be written.
    """
    source = texts.source
    stamp, former = _stamps(texts, digest)
    name = json.dumps([os.fspath(texts.path.resolve()), source.rows, digest])
    folder = cache / _short(name.encode("utf-8", "replace"))
    about = _about(folder, stamp)
    if about is None:
        folder = writable(cache) / folder.name
        size = sum(path.stat().st_size for path in texts.files)
        if size > _LONG_BYTES and not source.rows:
            note(f"{shown(texts.path)}: {size_in_words(size)} are tokenized, once")
        with new_folder(folder) as part:
            _fill(part, texts, tokenizer, stamp, digest)
        about = _about(folder, stamp)
        assert about is not None, f"{folder} was written, and cannot be read"
    if texts.strict and about["bad"]:
        place, reason = about["bad"][0]
        raise UsageError(f"{place}: {reason}; without --strict such rows are left out")
    return TokenStore(
        name=texts.name,
        format=about["format"],
        weight=source.weight,
        stamp=about["content"],
        former=former,
        tokens=np.memmap(folder / "tokens.bin", np.int32, "r"),
        ends=np.memmap(folder / "ends.bin", np.int64, "r"),
        bad_count=about["bad_count"],
        bad=[(place, reason) for place, reason in about["bad"]],
    )


def _stamps(texts: PlainTexts, digest: str) -> tuple[str, str]:
    """Return what makes the tokens stale when it changes, and the stamp of older checkpoints."""
    try:
        abouts = [(os.path.realpath(path), path.stat()) for path in texts.files]
    except OSError as error:
        raise UsageError(f"{shown(texts.path)} cannot be read: {error.strerror}") from None
    stamps = [(name, *Stamp.of(about)) for name, about in abouts]
    former = [stamp[:3] for stamp in stamps]
    return (
        json.dumps([_VERSION, texts.source.rows, digest, stamps]),
        _short(json.dumps([_VERSION, texts.source.rows, digest, former]).encode()),
    )


def _short(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


def _about(folder: Path, stamp: str) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        return None
    return about if about.get("stamp") == stamp else None


def _fill(folder: Path, texts: PlainTexts, tokenizer: Tokenizer, stamp: str, digest: str) -> None:
    end = 0
    content = blake2b(digest.encode(), digest_size=8)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "ends.bin").open("wb") as ends:
        for batch in Texts(texts.name, texts.read).batches():
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            sizes = np.array([len(encoding.ids) for encoding in encoded], np.int64)
            for encoding in encoded:
                ids = np.array(encoding.ids, np.int32).data
                content.update(ids)
                tokens.write(ids)
            content.update(sizes.data)
            ends.write((end + sizes.cumsum()).data)
            end += int(sizes.sum())
    if not end:
        raise UsageError(f"{shown(texts.path)}: its texts have no token")
    about = {
        "stamp": stamp,
        "content": content.hexdigest(),
        "format": texts.format,
        "bad_count": texts.bad_count,
        "bad": texts.bad,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Ids:
    """The tokenizer's own tokens."""

    bos: int
    eos: int
    marks: NDArray[np.int64]  # that stand for spans


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text, taken apart."""

    source: int
    text: int  # number of the source's text, from 0
    task: Task
    inputs: NDArray[np.int64]  # BOS, what is left, EOS
    targets: NDArray[np.int64]  # the noise, EOS

    @property
    def tokens(self) -> int:
        """Of input and target."""
        return len(self.inputs) + len(self.targets)

    def place(self, stores: Sequence[TokenStore]) -> str:
        """Return what a message calls it: the source and the number of its text, from 1."""
        return f"{stores[self.source].name}:{self.text + 1}"


class TextOrder:
    """The examples of a run, step by step."""

    def __init__(
        self,
        stores: Sequence[TokenStore],
        tasks: Sequence[Task],
        ids: Ids,
        *,
        longest: int,
        tokens: int,
        seed: int,
    ) -> None:
        """Begin at the beginning.

        Args:
            stores: the sources.
            tasks: ways to take a text apart.
            ids: the tokenizer's own.
            longest: tokens of a part of a text.
            tokens: of a step, input and target; at least those of one example.
            seed: of everything that is drawn.

        Raises:
            UsageError: a source has no text of two tokens.
        """
        self.stores, self.tasks, self.ids = stores, tasks, ids
        self.tokens, self.seed = tokens, seed
        self.parts = [_parts(store, longest) for store in stores]
        for store, parts in zip(stores, self.parts, strict=True):
            if not len(parts):
                raise UsageError(f"{store.name}: none of its texts has {SHORTEST} tokens")
        weights = np.array(
            [
                len(parts) if store.weight is None else store.weight
                for store, parts in zip(stores, self.parts, strict=True)
            ],
            float,
        )
        self.shares = weights / weights.sum()  # of the examples, by source
        self._number = 0  # of the next example
        self._drawn = [0] * len(stores)  # of each source
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def tokens_of_all(self) -> int:
        """How many tokens the parts of all sources have."""
        return sum(int((parts[:, 1] - parts[:, 0]).sum()) for parts in self.parts)

    def step(self) -> list[Example]:
        """Return the examples of the next step: as many as fit."""
        examples: list[Example] = []
        left = self.tokens
        while True:
            example, drawn = self._example()
            if examples and example.tokens > left:
                return examples
            examples.append(example)
            left -= example.tokens
            self._number += 1
            self._drawn = drawn

    def state(self) -> dict[str, Any]:
        """Return where it stands, for `restore`."""
        return {
            "number": self._number,
            "drawn": list(self._drawn),
            "stamps": [store.stamp for store in self.stores],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UsageError: a source, or the tokenizer, has changed since.
        """
        for store, stamp in zip(self.stores, state["stamps"], strict=True):
            if not store.is_at(stamp):
                raise UsageError(
                    f"{store.name} changed since the checkpoint: a run that went on would see "
                    "other texts; put it back, or begin a new run"
                )
        self._number, self._drawn = int(state["number"]), list(state["drawn"])

    def _example(self) -> tuple[Example, list[int]]:
        random = np.random.default_rng([self.seed, self._number])
        source = int(random.choice(len(self.shares), p=self.shares))
        drawn = list(self._drawn)
        passes, turn = divmod(drawn[source], len(self.parts[source]))
        drawn[source] += 1
        begin, end, text = self.parts[source][self._order(source, passes)[turn]].tolist()
        tokens = self.stores[source].tokens[begin:end].astype(np.int64)
        task = choose(self.tasks, random)
        noise = spans(task, len(tokens), random)
        inputs, targets = taken_apart(tokens, noise, self.ids.marks, is_marked=task.is_marked)
        return Example(
            source=source,
            text=text,
            task=task,
            inputs=np.concatenate([[self.ids.bos], inputs, [self.ids.eos]]),
            targets=np.concatenate([targets, [self.ids.eos]]),
        ), drawn

    def _order(self, source: int, passes: int) -> NDArray[np.int64]:
        key = source, passes
        if key not in self._orders:
            for old in [known for known in self._orders if known[0] == source]:
                del self._orders[old]
            random = np.random.default_rng([self.seed, source, passes, 1])
            self._orders[key] = random.permutation(len(self.parts[source]))
        return self._orders[key]


def _parts(store: TokenStore, longest: int) -> NDArray[np.int64]:
    """Return begin, end and text of each part, int64 [parts, 3]."""
    ends = np.asarray(store.ends)
    begins = np.concatenate([[0], ends[:-1]])
    sizes = ends - begins
    counts = -(-sizes // longest)
    text = np.repeat(np.arange(len(ends)), counts)
    first = np.repeat(counts.cumsum() - counts, counts)
    number = np.arange(len(text)) - first  # of the part in its text
    sizes, pieces = sizes[text], counts[text]
    begin = begins[text] + sizes * number // pieces
    end = begins[text] + sizes * (number + 1) // pieces
    parts: NDArray[np.int64] = np.stack([begin, end, text], 1)[end - begin >= SHORTEST]
    return parts
