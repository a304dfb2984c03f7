"""Gemma's tokenizer for a few short texts, from arrays: nothing is built when a model is opened.

The library's tokenizer takes 0.15 s to load, more than the vector of a question takes to compute.
This one gives the same ids: characters, or their bytes where no token is one, then pairs joined by
the rank of their merge, the leftmost of equals first. A text with an added token in it is left to
the library. `quick_arrays` makes the arrays of a tokenizer.json of Gemma's form alone.

Source: tokenizers, `models/bpe` (`merge_word`, `Word::merge_all`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gemb.arrays import TokenIds

    Arrays = Mapping[str, NDArray[Any]]

MOST_CHARS = 4096  # of the texts of a call: beyond it the library's tokenizer is loaded
MOST_IN_ALL = 20_000  # characters, likewise: it is fifty times as fast once it is there
_SPACE = "▁"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_MODEL = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
}
_PLAIN = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token: none of these


class LazyTokenizer:
    """The quick tokenizer until it gives up, then the library's; for any number of threads."""

    def __init__(self, quick: QuickTokenizer | None, load: Callable[[], Tokenizer]) -> None:
        """Take both.

        Args:
            quick: of the same file; None: there is none, and the library's is loaded at once.
            load: returns the library's; called once.
        """
        self._quick, self._load = quick, load
        self._library = load() if quick is None else None
        self._chars = 0  # that were asked for
        self._lock = Lock()

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return each text's ids, int32 [tokens], BOS and EOS included; nothing is cut."""
        if self._library is None:
            assert self._quick, "there is one of the two"
            self._chars += sum(map(len, texts))
            if self._chars <= MOST_IN_ALL and (ids := self._quick.tokenize(texts)) is not None:
                return ids
            with self._lock:
                self._library = self._library or self._load()
        from gemb.models.tokenizer import tokenize

        return tokenize(self._library, texts)


class QuickTokenizer:
    """Texts to ids, for few and short ones."""

    def __init__(self, arrays: Arrays) -> None:
        """Take what `quick_arrays` made, or a file of it."""
        self._chars = arrays["chars"]
        self._char_ids = arrays["char_ids"]
        self._bytes = arrays["bytes"].tolist()
        self._pairs = arrays["pairs"]
        self._joined = arrays["joined"]
        self._ranks = arrays["ranks"]
        self._around = arrays["around"].tolist()
        self._added = bytes(arrays["added"]).decode().split("\0")

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds] | None:
        """Return each text's ids, int32 [tokens], BOS and EOS included; None: ask the library."""
        if sum(map(len, texts)) > MOST_CHARS:
            return None
        if any(token in text for text in texts for token in self._added):
            return None
        begin, end = self._around
        return [np.array([begin, *self._ids(text), end], np.int32) for text in texts]

    def _ids(self, text: str) -> list[int]:
        """Return a text's ids, without those around it."""
        ids = self._characters(text.replace(" ", _SPACE))
        count = len(ids)
        following, before = list(range(1, count + 1)), list(range(-1, count - 1))
        # Of each pair: rank of its merge, place of its left part, the pair, the joined id.
        lefts = np.array(ids[:-1], np.uint64) << np.uint64(32)
        heap = [
            (rank, place, ids[place], ids[place + 1], joined)
            for place, (rank, joined) in self._merges(lefts | np.array(ids[1:], np.uint64))
        ]
        heapq.heapify(heap)
        while heap:
            _, place, left, right, joined = heapq.heappop(heap)
            after = following[place]
            if ids[place] != left or after >= count or ids[after] != right:
                continue  # one of the two was joined meanwhile
            ids[place], ids[after] = joined, -1
            following[place] = following[after]
            if following[after] < count:
                before[following[after]] = place
            for start, stop in ((before[place], place), (place, following[place])):
                if start >= 0 and stop < count:
                    pair = np.array([ids[start] << 32 | ids[stop]], np.uint64)
                    for _, (rank, new) in self._merges(pair):
                        heapq.heappush(heap, (rank, start, ids[start], ids[stop], new))
        return [token for token in ids if token >= 0]

    def _characters(self, text: str) -> list[int]:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        places = np.searchsorted(self._chars, points)
        places[places == len(self._chars)] = 0
        is_token = self._chars[places] == points
        ids = []
        for char, known, place in zip(text, is_token.tolist(), places.tolist(), strict=True):
            if known:
                ids.append(int(self._char_ids[place]))
            else:
                ids += [self._bytes[byte] for byte in char.encode()]
        return ids

    def _merges(self, pairs: NDArray[np.uint64]) -> list[tuple[int, tuple[int, int]]]:
        """Return index, rank and joined id of the pairs that have a merge."""
        places = np.searchsorted(self._pairs, pairs)
        places[places == len(self._pairs)] = 0
        return [
            (index, (int(self._ranks[places[index]]), int(self._joined[places[index]])))
            for index in np.flatnonzero(self._pairs[places] == pairs).tolist()
        ]


def quick_arrays(tokenizer: Mapping[str, Any]) -> Arrays | None:
    """Return the arrays of a tokenizer.json; None: it is of another form than Gemma's.

    Args:
        tokenizer: the file's JSON.
    """
    model = tokenizer["model"]
    vocabulary: Mapping[str, int] = model["vocab"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    around = _around(tokenizer.get("post_processor"))
    added = tokenizer.get("added_tokens", [])
    is_gemma = (
        tokenizer.get("normalizer") == _NORMALIZER
        and tokenizer.get("pre_tokenizer") in (None, _splits("MergedWithPrevious"))
        and {key: model.get(key) for key in _MODEL} == _MODEL
        and not model.get("ignore_merges")
        and all(token in vocabulary for token in byte_tokens)
        and around is not None
        and not any(token.get(key) for token in added for key in _PLAIN)
    )
    if not is_gemma or not model["merges"]:
        return None
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in model["merges"]
    ]
    lefts, rights, joined = np.array(
        [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges],
        np.uint64,
    ).T
    pairs = lefts << np.uint64(32) | rights
    ranks = np.argsort(pairs, kind="stable")
    # Of a pair that stands twice the later one counts, as in the library's map.
    ranks = ranks[np.append(pairs[ranks[1:]] != pairs[ranks[:-1]], True)]
    chars = sorted((ord(token), number) for token, number in vocabulary.items() if len(token) == 1)
    return {
        "chars": np.array([char for char, _ in chars], np.uint32),
        "char_ids": np.array([number for _, number in chars], np.int32),
        "bytes": np.array([vocabulary[token] for token in byte_tokens], np.int32),
        "pairs": pairs[ranks],
        "ranks": ranks.astype(np.int32),
        "joined": joined[ranks].astype(np.int32),
        "around": np.array(around, np.int32),
        "added": np.frombuffer("\0".join(token["content"] for token in added).encode(), np.uint8),
    }


def _splits(behavior: str) -> Mapping[str, Any]:
    return {"type": "Split", "pattern": {"String": " "}, "behavior": behavior, "invert": False}


def _around(processor: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return the ids before and after a text; None: the template is another one."""
    if processor is None or processor.get("type") != "TemplateProcessing":
        return None
    template = [next(iter(part)) for part in processor["single"]]
    if template != ["SpecialToken", "Sequence", "SpecialToken"]:
        return None
    names = [processor["single"][place]["SpecialToken"]["id"] for place in (0, 2)]
    ids = [processor["special_tokens"][name]["ids"] for name in names]
    return (ids[0][0], ids[1][0]) if all(len(numbers) == 1 for numbers in ids) else None
