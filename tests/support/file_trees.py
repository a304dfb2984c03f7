"""Folders of files for tests, and a user who may not read all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.io.stamps import CTIME_TICK_NS

OLD = 1_600_000_000  # seconds: files this old are not taken for ones that may still change


def write(root: Path, files: dict[str, str], mtime: int = OLD) -> None:
    """Write files under a folder, by their relative names, and wait until they are settled."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (mtime, mtime))
    time.sleep(CTIME_TICK_NS / 1e9)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Run as a user who is refused what its bits refuse; root never is."""
    user = os.geteuid()
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == user and user == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o755)
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)
