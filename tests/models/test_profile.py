from __future__ import annotations

import numpy as np
import pytest

from gemb.models.profile import cut_ids


@pytest.mark.parametrize(
    ("max_tokens", "closing_tokens", "expected"),
    [
        (6, 1, [1, 2, 3, 4, 5, 9]),
        (4, 1, [1, 2, 3, 9]),
        (4, 2, [1, 2, 5, 9]),
        (4, 0, [1, 2, 3, 4]),
    ],
)
def test_a_cut_keeps_the_beginning_and_the_closing_tokens(
    max_tokens: int, closing_tokens: int, expected: list[int]
) -> None:
    ids = np.array([1, 2, 3, 4, 5, 9], np.int32)
    found = cut_ids(ids, max_tokens, closing_tokens)
    assert (found.dtype, found.tolist()) == (np.int32, expected)
