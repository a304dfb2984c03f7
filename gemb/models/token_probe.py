"""Try a tokenizer before its model is used: does it cut a text as Gemma's does?

A tokenizer that lost its normalizer, its template or its merges still gives ids, and the model
vectors, which are wrong. What a trimmed vocabulary keeps of Gemma's is what is looked at: BOS and
EOS around a text, bytes for unknown characters, every character of a text in its tokens, spaces as
U+2581, added tokens found as they stand, and tokens that their merges lead to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.arrays import TokenIds

SPACE = "▁"
_UNKNOWN = "\U0010fffd"  # in no vocabulary: a character of private use
# Case, two spaces and a tab, accents apart, a ligature and wide letters, which NFC and NFKC would
# change, and spaces at both ends.
_TEXT = " A b  C\td\n\nE e\u0301 \ufb01 Ｗide — ’ \u200b. 12,345 "
_TAGS = ("table", "tr", "td", "h1", "h2", "blockquote", "strong", "em", "b", "i", "sub", "code")
LONGEST_TOKEN = 1024  # of characters or bytes; all ways to part one are looked through
MARKS = (  # of Gemma's added tokens; a trimmed vocabulary has some of them
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    *(f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/")),
    *(f"<unused{number}>" for number in (*range(8), *range(8, 6242, 97))),
)
_ADDED = (
    *MARKS,
    *("\n" * length for length in range(2, 32)),
    *(SPACE * length for length in range(2, 32)),
)
_SAMPLES = 64  # ids, evenly spaced, whose tokens are looked at
_SHARE = 0.75  # of those that come back whole; of Gemma's all but a few do


@dataclass(frozen=True)
class Probe:
    """What a tokenizer must make of some texts."""

    around: tuple[int, int]  # BOS, EOS
    unknown: tuple[int, ...]  # the bytes of a character that no token has
    added: dict[str, int]  # token -> id: found in a text as it stands
    words: dict[str, int]  # text -> its one id; true of nearly all


def probe(where: object, ids: Callable[[str], int | None], tokens: Sequence[str]) -> Probe:
    """Return what to try.

    Args:
        where: the tokenizer's file, for the message.
        ids: token -> id; None: there is no such token.
        tokens: of ids that are evenly spaced (`sampled`).

    Raises:
        UsageError: a token is missing that Gemma's tokenizer has.
    """

    def id_of(token: str) -> int:
        if (number := ids(token)) is None:
            raise _wrong(where, f"it has no token {token}")
        return number

    around = id_of("<bos>"), id_of("<eos>")
    unknown = tuple(id_of(f"<0x{byte:02X}>") for byte in _UNKNOWN.encode())
    added = {name: number for name in _ADDED if (number := ids(name)) is not None}
    words = [token for token in tokens if len(token.strip(SPACE)) > 1 and "<" not in token]
    word_ids = {
        word.replace(SPACE, " "): number for word in words if (number := ids(word)) is not None
    }
    return Probe(around, unknown, added, word_ids)


def sampled(size: int) -> range:
    """Return the ids whose tokens `probe` takes, of a vocabulary of this size."""
    return range(0, size, max(1, size // _SAMPLES))


def check_tokenizing(
    where: object,
    expected: Probe,
    tokenize: Callable[[Sequence[str]], Sequence[TokenIds]],
    token: Callable[[int], str],
) -> None:
    """Refuse a tokenizer that does not do what it must.

    Args:
        where: its file, for the message.
        expected: what it must make of some texts.
        tokenize: texts -> the ids of each, with those around it.
        token: of an id.

    Raises:
        UsageError: it is not Gemma's.
    """
    amid = [f"a{name} b {name}c" for name in expected.added]
    texts = ["", _UNKNOWN, _TEXT, *amid, *expected.words]
    answers = [tuple(ids.tolist()) for ids in tokenize(texts)]
    if answers[0] != expected.around:
        around = visible(" ".join(map(token, answers[0]))) or "nothing"
        raise _wrong(where, f"it puts {around} around a text, not <bos> and <eos>")
    inner = {text: ids[1:-1] for text, ids in zip(texts, answers, strict=True)}
    if inner[_UNKNOWN] != expected.unknown:
        raise _wrong(where, "a character that no token has is not cut into its bytes")
    for text in (_TEXT, *amid):
        if _bytes(map(token, inner[text])) != text.replace(" ", SPACE).encode():
            raise _wrong(
                where, f"the tokens of {text!r} are not its characters, with U+2581 for a space"
            )
    for text, (name, number) in zip(amid, expected.added.items(), strict=True):
        if inner[text].count(number) != 2:
            raise _wrong(where, f"{name!r} is not found as one token")
    whole = sum(inner[text] == (number,) for text, number in expected.words.items())
    if whole < _SHARE * len(expected.words):
        words = len(expected.words)
        raise _wrong(where, f"it finds {whole} of {words} of its words: merges are missing")


def _bytes(tokens: Iterable[str]) -> bytes:
    parts = []
    for token in tokens:
        is_byte = len(token) == 6 and token.startswith("<0x")
        parts.append(bytes.fromhex(token[3:5]) if is_byte else token.encode("utf-8", "replace"))
    return b"".join(parts)


def _wrong(where: object, fault: str) -> UsageError:
    return UsageError(
        f"{where}: not Gemma's tokenizer: {fault}; its vectors would be wrong: fetch the file again"
    )
