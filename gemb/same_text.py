"""When two texts are one: hashes of texts as they are written, and without regard to their form."""

from __future__ import annotations

import unicodedata
from hashlib import blake2b


def digest(text: str) -> bytes:
    """Return 8 bytes, little-endian the id of a text.

    Raises:
        UnicodeEncodeError: it holds half a character.
    """
    return blake2b(text.encode(), digest_size=8).digest()


def folded(text: str) -> str:
    """Return the text without regard to case, white space and the form of characters (NFKC).

    So are texts compared where a copy does harm: training texts with those of the evaluation, mined
    negatives with the answers. The rows of a batch are told apart as they are written: what the
    model sees as two texts, it may learn to tell apart.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
