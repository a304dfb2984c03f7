"""Texts to token ids, with the tokenizer.json of the checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from gemb.errors import UsageError
from gemb.io.foreign import json_value, read_bytes
from gemb.io.lfs import check_no_pointer
from gemb.models.config import MOST_TOKENIZER
from gemb.models.token_probe import check_tokenizing, probe, sampled

if TYPE_CHECKING:
    from pathlib import Path

    from gemb.arrays import TokenIds


_PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*(?!null\b|""|\s)')
_ESCAPED = re.compile(r"\\u00[2-7]")  # an escape of a letter, which no library writes

_MOST_GROWTH, _MOST_STEPS = 64, 100  # of a normalizer


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Return Gemma's tokenizer, as `read_tokenizer` does.

    Raises:
        UsageError: the file is missing or broken, has other tokens beyond the table, or is not
            Gemma's (`token_probe`).
    """
    text = _text(path)
    _check_prefix(path, text)
    tokenizer = _tokenizer(path, text, vocab_size)
    _check_patterns(path, tokenizer)
    with _readable(path):
        tokens = [tokenizer.id_to_token(i) or "" for i in sampled(tokenizer.get_vocab_size())]
        check_tokenizing(
            path,
            probe(path, tokenizer.token_to_id, tokens),
            lambda texts: tokenize(tokenizer, texts),
            lambda i: str(tokenizer.id_to_token(i)),
        )
    return tokenizer


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Return a tokenizer.json, without truncation, padding, and tokens beyond the embedding table.

    EmbeddingGemma's file lists <image_soft_token> as token 262144, one past the embedding table:
    without it that text is tokenized as any other, as llama.cpp does.

    Raises:
        UsageError: the file is missing or broken, or has other tokens beyond the table.
    """
    return _tokenizer(path, _text(path), vocab_size)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MOST_TOKENIZER).decode()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing from the model folder") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no tokenizer that can be read: {error}") from error


def _tokenizer(path: Path, text: str, vocab_size: int) -> Tokenizer:
    with _readable(path):
        tokenizer = Tokenizer.from_str(_without_tokens_beyond(vocab_size, text))
    _check_growth(path, tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise UsageError(
            f"{path}: has {size} tokens, config.json a vocabulary of {vocab_size}; "
            "the two are not of one model"
        )
    return tokenizer


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what tokenizers raises of a broken file, a bare Exception or a panic, into one line."""
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        check_no_pointer(path)
        raise UsageError(f"{path}: no tokenizer that can be read: {error}") from error


def _check_prefix(path: Path, text: str) -> None:
    """Refuse a prefix of subwords: tokenizers cuts it off tokens that have none, and aborts."""
    has_prefix = _PREFIX.search(text) is not None
    if _ESCAPED.search(text):  # the key may be written in escapes
        tokenizer = json_value(text.encode(), path)
        model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
        has_prefix = isinstance(model, dict) and bool(model.get("continuing_subword_prefix"))
    if has_prefix:
        raise UsageError(
            f"{path}: continuing_subword_prefix, which Gemma's tokenizer does not have"
        )


def _check_patterns(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse what may take for ever on a text: regular expressions, and steps that make it longer.

    Gemma's has neither. It exchanges a space for one other character.
    """
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        if part is None:
            continue
        state = part.__getstate__()
        if b'"Regex"' in state:
            raise UsageError(f"{path}: a regular expression, which Gemma's tokenizer does not have")
        for step in _steps(json.loads(state)):
            if _lengthens(step):
                raise UsageError(
                    f"{path}: a step {step.get('type')} that makes texts longer, which Gemma's "
                    "tokenizer does not have"
                )


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer, or of what cuts a text before its tokens."""
    inner = part.get("normalizers") or part.get("pretokenizers")
    if inner is None:
        yield part
    for step in inner or ():
        yield from _steps(step)


def _lengthens(step: dict[str, Any]) -> bool:
    """Return whether a step may make a text longer: a row of such steps makes it endless."""
    if step["type"] == "Replace":
        return len(step["content"]) > 1 or not step["pattern"]["String"]
    return step["type"] in ("Prepend", "ByteLevel", "Precompiled")


def _check_growth(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse a normalizer that makes texts much longer: forty doublings take for ever."""
    normalizer = tokenizer.normalizer
    steps = _steps(json.loads(normalizer.__getstate__())) if normalizer else ()
    growth = 1.0
    for count, step in enumerate(steps):
        replaced = step.get("pattern", {}).get("String", "")
        growth *= max(1.0, len(step.get("content", "")) / max(1, len(replaced)))
        if growth > _MOST_GROWTH or count > _MOST_STEPS:
            raise UsageError(
                f"{path}: a normalizer that makes texts longer, over {_MOST_GROWTH} times, or has "
                f"over {_MOST_STEPS} steps; that is no tokenizer of a model: fetch the file again"
            )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[TokenIds]:
    """Return each text's ids, int32 [tokens], BOS and EOS included. Uses all cores."""
    encodings = tokenizer.encode_batch_fast(list(texts))
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _without_tokens_beyond(vocab_size: int, text: str) -> str:
    """Return the JSON text without added tokens of larger ids; reads only their list of it.

    Parsing the whole of a 33 MB file in Python would take longer than loading the model.
    """
    key = '"added_tokens":'
    start = text.find(key)
    if start < 0:
        return text
    start += len(key)
    start += len(text[start : start + 100]) - len(text[start : start + 100].lstrip())
    tokens, end = json.JSONDecoder().raw_decode(text, start)
    inside = [token for token in tokens if token["id"] < vocab_size]
    if len(inside) == len(tokens):
        return text
    return text[:start] + json.dumps(inside) + text[end:]
