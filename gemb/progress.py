"""The bar on stderr: how far the input is, rows and tokens a second, and the time left."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemb.pipeline import Row


def terminal_bar(**options: Any) -> Any:  # noqa: ANN401 - a tqdm, which is imported late
    """Return a tqdm bar with these options, or None where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    size = os.get_terminal_size(sys.stderr.fileno())
    is_sized = size.columns > 0 and size.lines > 0
    return tqdm(
        miniters=1,  # each update is seen; tqdm would guess from their sizes
        delay=1,  # seconds: what is done by then needs no bar
        # Some terminals say that they are 0 wide or high, and tqdm would believe it.
        dynamic_ncols=is_sized,
        ncols=None if is_sized else size.columns or 80,
        nrows=None if is_sized else size.lines or 24,
        **options,
    )


class Progress:
    """A bar where stderr is a terminal that shows nothing else; else nothing."""

    def __init__(self, total: int | None, *, wanted: bool) -> None:
        """Begin. `total` is the sum of all `Record.size` to come, None where it is not known."""
        self._bar: Any = None
        self._total = total
        self._rows = 0
        self._tokens = 0
        self._began = time.monotonic()
        if wanted:
            self._bar = terminal_bar(
                total=total,
                unit="rows" if total is None else "B",
                unit_scale=True,
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
