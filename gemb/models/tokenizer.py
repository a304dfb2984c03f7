"""Texts to token ids, with the tokenizer.json of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from gemb.errors import UsageError
from gemb.io.foreign import read_bytes
from gemb.models.config import MOST_TOKENIZER
from gemb.models.lfs import check_no_pointer
from gemb.models.token_probe import check_tokenizing, probe, sampled

if TYPE_CHECKING:
    from pathlib import Path

    from gemb.arrays import TokenIds


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer, without truncation, padding, and tokens beyond the embedding table.

    EmbeddingGemma's file lists <image_soft_token> as token 262144, one past the embedding table:
    without it that text is tokenized as any other, as llama.cpp does.

    Raises:
        UsageError: the file is missing or broken, has other tokens beyond the table, or is not
            Gemma's (`token_probe`).
    """
    try:
        text = read_bytes(path, MOST_TOKENIZER).decode()
        tokenizer = Tokenizer.from_str(_without_tokens_beyond(vocab_size, text))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing from the model folder") from error
    except UsageError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception for any broken file
        check_no_pointer(path)
        raise UsageError(f"{path}: no tokenizer that can be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise UsageError(
            f"{path}: has {size} tokens, config.json a vocabulary of {vocab_size}; "
            "the two are not of one model"
        )
    try:
        tokens = [tokenizer.id_to_token(i) or "" for i in sampled(size)]
        check_tokenizing(
            path,
            probe(path, tokenizer.token_to_id, tokens),
            lambda texts: tokenize(tokenizer, texts),
            lambda i: str(tokenizer.id_to_token(i)),
        )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: no tokenizer that can be used: {error}") from error
    return tokenizer


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
