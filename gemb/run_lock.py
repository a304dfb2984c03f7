"""One run at a time in a folder: a second one would mix its lines and checkpoints in.

A file that a killed run left says nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from gemb.errors import UsageError
from gemb.file_lock import lock_file

NAME = "lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only one who trains in the folder `run`, which is there.

    Raises:
        UsageError: another process is; the message has its number.
        OSError: nothing can be written there.
    """
    path = run / NAME
    file = lock_file(path, partial(_refusal, path), "start no second run in it")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: then it may be another's
        os.close(file)


def _refusal(path: Path, file: int) -> UsageError:
    holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
    return UsageError(
        f"{path.parent} is being trained by process {holder or 'unknown'}: "
        "wait for it, stop it, or name another folder"
    )
