"""What became of the rows, counted, and what is said of it at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gemb.errors import SomeRowsFailed
from gemb.io.notes import warn
from gemb.pipeline import Row


class Tally:
    """Counts of rows, with the first place of each kind."""

    def __init__(self, max_tokens: int) -> None:
        self.rows = 0
        self.failed = 0
        self._max_tokens = max_tokens
        self._kinds: Counter[str] = Counter()  # cut, long, or an error's code
        self._first: dict[str, str] = {}  # kind -> place

    def sort(self, rows: Sequence[Row], *, on_long: str, on_error: str) -> list[int]:
        """Count the rows, and return the places of those that are to be written.

        Raises:
            SomeRowsFailed: a row has an error, and `on_error` is fail.
        """
        written = []
        for place, row in enumerate(rows):
            self.rows += 1
            if row.is_cut:
                self._count("cut", row)
            if row.error is None:
                written.append(place)
            elif row.error.code == "too_long" and on_long == "skip":
                self._count("long", row)
            else:
                self.failed += 1
                self._count(row.error.code, row)
                if on_error == "fail":
                    message = f"{row.record.place}: {row.error.message}; stopped (--on-error fail)"
                    raise SomeRowsFailed(message)
                if on_error == "inline":
                    written.append(place)
        return written

    def _count(self, kind: str, row: Row) -> None:
        self._kinds[kind] += 1
        self._first.setdefault(kind, row.record.place)

    def say(self) -> None:
        """Say on stderr what is not as the user may think, a line for each kind."""
        for kind, count in self._kinds.items():
            which = f"{count} of {self.rows} rows"
            first = f"(first: {self._first[kind]})"
            if kind == "cut":
                warn(f"{which} were cut at {self._max_tokens} tokens {first}; see --on-long")
            elif kind == "long":
                warn(f"{which} had over {self._max_tokens} tokens and were left out {first}")
            else:
                warn(f"{which} have no vector: {kind} {first}")

    def check(self, where: str) -> None:
        """Raise where rows failed.

        Args:
            where: what became of them: have an error in the place of a vector.

        Raises:
            SomeRowsFailed: at least one did.
        """
        if self.failed:
            raise SomeRowsFailed(f"{self.failed} of {self.rows} rows failed: they {where}")
