"""The texts of a source as tokens, kept in the cache: each source is tokenized once.

`tokens.bin` has the ids of all texts one after the other, int32, without BOS and EOS; `ends.bin`
where each text ends, int64; `about.json` what they are of. They are mapped, not loaded.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gemb.datasets.files import shown
from gemb.datasets.plain_texts import PlainTexts
from gemb.errors import UsageError
from gemb.io.atomic import new_folder
from gemb.io.notes import note
from gemb_torch.cut_texts import Texts, batches

_VERSION = 1  # of the files in the cache
_LONG_BYTES = 1 << 28  # from here on the user is told why nothing happens


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """A source's tokens."""

    name: str
    format: str  # what was recognised, in words
    weight: float | None  # share of the texts, relative; None: by their number
    stamp: str  # changes when source or tokenizer do
    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]  # of each text in `tokens`
    bad_count: int
    bad: list[tuple[str, str]]  # place and reason of the first

    def __len__(self) -> int:
        return len(self.ends)


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
    stamp = _stamp(texts, digest)
    name = json.dumps([os.fspath(texts.path.resolve()), source.rows, digest])
    folder = cache / blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest()
    about = _about(folder, stamp)
    if about is None:
        cache.mkdir(parents=True, exist_ok=True)
        size = sum(path.stat().st_size for path in texts.files)
        if size > _LONG_BYTES and not source.rows:
            note(f"{shown(texts.path)}: {size / 1e9:.1f} GB are tokenized, once")
        with new_folder(folder) as part:
            _fill(part, texts, tokenizer, stamp)
        about = _about(folder, stamp)
        assert about is not None, f"{folder} was written, and cannot be read"
    if texts.strict and about["bad"]:
        place, reason = about["bad"][0]
        raise UsageError(f"{place}: {reason}; without --strict such rows are left out")
    return TokenStore(
        name=texts.name,
        format=about["format"],
        weight=source.weight,
        stamp=blake2b(stamp.encode(), digest_size=8).hexdigest(),
        tokens=np.memmap(folder / "tokens.bin", np.int32, "r"),
        ends=np.memmap(folder / "ends.bin", np.int64, "r"),
        bad_count=about["bad_count"],
        bad=[(place, reason) for place, reason in about["bad"]],
    )


def _stamp(texts: PlainTexts, digest: str) -> str:
    try:
        abouts = [(os.path.realpath(path), path.stat()) for path in texts.files]
    except OSError as error:
        raise UsageError(f"{shown(texts.path)} cannot be read: {error.strerror}") from None
    of_files = [(name, about.st_size, about.st_mtime_ns) for name, about in abouts]
    return json.dumps([_VERSION, texts.source.rows, digest, of_files])


def _about(folder: Path, stamp: str) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        return None
    return about if about.get("stamp") == stamp else None


def _fill(folder: Path, texts: PlainTexts, tokenizer: Tokenizer, stamp: str) -> None:
    end = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "ends.bin").open("wb") as ends:
        for batch in batches(Texts(texts.name, texts.read)):
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            sizes = np.array([len(encoding.ids) for encoding in encoded], np.int64)
            for encoding in encoded:
                tokens.write(np.array(encoding.ids, np.int32).data)
            ends.write((end + sizes.cumsum()).data)
            end += int(sizes.sum())
    if not end:
        raise UsageError(f"{shown(texts.path)}: its texts have no token")
    about = {
        "stamp": stamp,
        "format": texts.format,
        "bad_count": texts.bad_count,
        "bad": texts.bad,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
