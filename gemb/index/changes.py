"""What a build or a sync did to an index, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(kw_only=True)
class Changes:
    """Counts; of files, where the source is files, else of rows."""

    unit: str  # rows, files
    added: int = 0
    changed: int = 0
    removed: int = 0
    same: int = 0
    embedded: int = 0  # rows that got a new vector; in a dry run, would get one
    copied: int = 0  # new rows whose text was there already, with its vector
    taken: int = 0  # new rows that came with their vector
    failed: int = 0  # rows of the source that have no vector
    unreadable: int = 0  # files or folders; what the index had of them stays
    rows: int = 0  # of the index, afterwards

    def line(self) -> str:
        """Return the counts in short: +12 ~3 -1 files (...)."""
        what = "passages" if self.unit == "files" else "rows"
        more = [f"{self.embedded:,} {what} embedded"] if self.embedded or not self.taken else []
        if self.taken:
            more.append(f"{self.taken:,} vectors taken over")
        if self.copied:
            more.append(f"{self.copied:,} had their vector already")
        return (
            f"+{self.added:,} ~{self.changed:,} -{self.removed:,} {self.unit} "
            f"({', '.join(more)}; {self.rows:,} {what} in all)"
        )

    def to_json(self) -> dict[str, object]:
        """Return the counts by name."""
        return asdict(self)
