"""What tells that a file is as it was when it was read."""

from __future__ import annotations

import os
from typing import NamedTuple

# A file may be written to twice within one tick of its disk's clock: FAT's is 2 s, and that of the
# kernel, which alone sets the time of change, 10 ms.
MTIME_TICK_NS = 2 * 10**9
CTIME_TICK_NS = 10**8


class Stamp(NamedTuple):
    """Whatever changes a file changes one of these: a tool that sets mtime back changes ctime."""

    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    inode: int

    @staticmethod
    def of(about: os.stat_result) -> Stamp:
        """Return the stamp of a file."""
        return Stamp(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)

    def is_settled(self, now_ns: int) -> bool:
        """Return whether a change from now on (nanoseconds since the epoch) would change it."""
        is_old = self.mtime_ns < now_ns - MTIME_TICK_NS
        return is_old and self.ctime_ns < now_ns - CTIME_TICK_NS
