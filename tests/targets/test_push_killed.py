"""Pushes that end in the middle: nothing is lost, nothing is there twice, the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from fake_backend import Gemb
from postgres import Server
from pushed_rows import embedded_lines, push

psycopg = pytest.importorskip("psycopg")

BATCH = 8192  # lines that a reader gives at a time
WAIT_S = 200  # where others use the cores


def count(database: str, table: str = "piped") -> int:
    with psycopg.connect(database, autocommit=True) as connection:
        (name,) = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
        if name is None:
            return 0
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def is_alone(database: str) -> bool:
    """Whether the server has no connection of a push."""
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'gemb' AND datname = current_database()"
    )
    with psycopg.connect(database, autocommit=True) as connection:
        return connection.execute(query).fetchone() == (0,)


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def half_way(gemb: Gemb, database: str, rows: list[bytes]) -> subprocess.Popen:
    """Return a push that has committed the first rows, and waits for more."""
    process = gemb.start("index", "push", "-", database, "--table", "piped")
    process.stdin.write(b"".join(rows[:BATCH]))
    process.stdin.flush()
    wait_for(lambda: count(database) == BATCH)
    return process


def finished(gemb: Gemb, database: str, rows: list[bytes], *, kept: int) -> None:
    """Push all, and check what there is."""
    pushed = push(gemb, "-", database, "--table", "piped", stdin=b"".join(rows))
    assert (pushed["unchanged"], pushed["added"]) == (kept, len(rows) - kept)
    assert (pushed["rows"], pushed["others"]) == (len(rows), 0)
    assert pushed["checked"]["wrong"] == 0


def test_gemb_killed_in_the_middle(gemb: Gemb, database: str) -> None:
    rows = embedded_lines(12_000)
    process = half_way(gemb, database, rows)
    process.kill()
    process.wait()
    finished(gemb, database, rows, kept=BATCH)


def test_an_interrupt_keeps_what_is_committed(gemb: Gemb, database: str) -> None:
    rows = embedded_lines(9000)
    process = half_way(gemb, database, rows)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors.splitlines()[-1]) == (130, b"gemb: interrupted")
    finished(gemb, database, rows, kept=BATCH)


def test_an_interrupt_while_the_server_waits_for_a_lock(gemb: Gemb, database: str) -> None:
    rows = embedded_lines(9000)
    process = half_way(gemb, database, rows)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gemb' "
        "AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    with (
        psycopg.connect(database) as holder,
        psycopg.connect(database, autocommit=True) as watcher,
    ):
        holder.execute("LOCK TABLE piped IN EXCLUSIVE MODE")
        process.stdin.write(b"".join(rows[BATCH:]))
        process.stdin.close()
        wait_for(lambda: watcher.execute(waiting).fetchone() == (1,))
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
    assert process.stderr.read().splitlines()[-1] == b"gemb: interrupted"
    finished(gemb, database, rows, kept=BATCH)


def test_a_connection_that_drops(gemb: Gemb, database: str) -> None:
    rows = embedded_lines(9000)
    process = half_way(gemb, database, rows)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'gemb' AND datname = current_database()"
        )
    _, errors = process.communicate(b"".join(rows[BATCH:]), timeout=WAIT_S)
    (line,) = errors.splitlines()
    assert process.returncode == 5
    assert line.endswith(b"what was committed is kept, and the same command goes on")
    finished(gemb, database, rows, kept=BATCH)


def test_postgresql_killed_in_the_middle(gemb: Gemb, postgres: Server, database: str) -> None:
    rows = embedded_lines(12_000)
    process = half_way(gemb, database, rows)
    postgres.kill()
    try:
        _, errors = process.communicate(b"".join(rows[BATCH:]), timeout=WAIT_S)
        assert process.returncode == 5
        assert len(errors.splitlines()) == 1
    finally:
        postgres.start()
    finished(gemb, database, rows, kept=BATCH)


def test_two_pushes_at_once(gemb: Gemb, database: str) -> None:
    rows = embedded_lines(9000)
    process = half_way(gemb, database, rows)
    (gemb.folder / "piped.jsonl").write_bytes(b"".join(rows))
    done = gemb("index", "push", "piped.jsonl", database)
    assert done.returncode == 5
    assert b"another gemb index push is loading it" in done.stderr
    assert process.communicate(b"".join(rows[BATCH:]), timeout=WAIT_S)[0].startswith(b"+9,000 ")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_any_moment(gemb: Gemb, postgres: Server, database: str, seed: int) -> None:
    rows = embedded_lines(12_000)
    (gemb.folder / "piped.jsonl").write_bytes(b"".join(rows))
    chance = random.Random(seed)
    for number in range(3):
        process = gemb.start(
            "index",
            "push",
            "piped.jsonl",
            database,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.3, 4))
        if number % 2:
            postgres.kill()
            process.wait(WAIT_S)
            postgres.start()
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wait_for(lambda: is_alone(database))  # the server may be at the last commit
    kept = count(database)
    pushed = push(gemb, "piped.jsonl", database, "--no-index")
    assert (pushed["unchanged"], pushed["added"]) == (kept, len(rows) - kept)
    assert (pushed["rows"], pushed["others"], pushed["checked"]["wrong"]) == (len(rows), 0, 0)
