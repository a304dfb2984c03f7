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
    rows: int | None = None  # of the index, afterwards; None: nothing was done

    def line(self) -> str:
        """Return the counts in short: +12 ~3 -1 files (41 passages embedded; 512 in all)."""
        what = "passage" if self.unit == "files" else "row"
        more = [f"{counted(self.embedded, what)} {'to embed' if self.rows is None else 'embedded'}"]
        if self.taken:
            more = [f"{counted(self.taken, 'vector')} taken over"]
        if self.copied:
            more.append(f"{self.copied:,} had their vector already")
        if self.rows is not None:
            more.append(f"{self.rows:,} in all")
        counts = f"+{self.added:,} ~{self.changed:,} -{self.removed:,}"
        return f"{counts} {self.unit} ({'; '.join(more)})"

    def to_json(self) -> dict[str, object]:
        """Return the counts by name."""
        return asdict(self)


def counted(count: int, what: str) -> str:
    """Return a count with its noun: 1 row, 2 rows."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
