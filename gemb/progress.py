"""The bar on stderr: how far the input is, rows and tokens a second, and the time left."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemb.pipeline import Row


class Progress:
    """A bar where stderr is a terminal that shows nothing else; else nothing."""

    def __init__(self, total: int | None, *, wanted: bool) -> None:
        """Begin. `total` is the sum of all `Record.size` to come, None where it is not known."""
        self._bar: Any = None
        self._total = total
        self._rows = 0
        self._tokens = 0
        self._began = time.monotonic()
        if wanted and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            is_sized = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm(
                total=total,
                unit="rows" if total is None else "B",
                unit_scale=True,
                miniters=1,  # each window is seen; tqdm would guess from their sizes
                delay=1,  # seconds: what is done by then needs no bar
                # Some terminals say that they are 0 wide, and tqdm would believe it.
                dynamic_ncols=is_sized,
                ncols=None if is_sized else 80,
                leave=False,
            )

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows that are done."""
        if self._bar is None:
            return
        self._rows += len(rows)
        self._tokens += sum(row.tokens for row in rows)
        rate = self._tokens / max(1e-9, time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{self._rows} rows, {rate:.0f} tokens/s", refresh=False)
        known = sum(row.record.size for row in rows)
        self._bar.update(len(rows) if self._total is None else known)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
