"""Numbers of GGUF tensors, beside those that the package gguf unpacks: equal to the last bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from gemb.models.gguf_blocks import unpacked


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0"])
def test_rows_are_those_of_the_library(kind):
    values = np.random.default_rng(1).normal(size=(7, 96)).astype(np.float32)
    values[3] = 0
    library_kind = gguf.GGMLQuantizationType[kind.upper()]
    packed = gguf.quantize(values, library_kind).view(np.uint8).reshape(len(values), -1)
    rows = packed[[6, 0, 0, 3]]  # as a table is read
    expected = gguf.dequantize(rows, library_kind)
    assert expected.any()
    np.testing.assert_array_equal(unpacked(rows, kind), expected)
    assert unpacked(rows, kind).dtype == np.float32


def test_a_type_that_nobody_knows_is_a_key_error():
    with pytest.raises(KeyError):
        unpacked(np.zeros((1, 4), np.uint8), "q9_9")
