"""The arithmetic of `gemb help scale`, beside a simulation of a pool of workers."""

from __future__ import annotations

import heapq
import random

import pytest

from gemb.commands.manual import topics
from gemb.embedding.scale import COUNTS, SPEEDS, Pool, stored_bytes, tables
from gemb.embedding.vectors import packed


def simulated(pool: Pool, parts: int, seed: int) -> float:
    """Hours until all parts are done: a worker that dies has its part again, after its restart.

    The deaths are a Poisson process; the part goes back into the queue, as Ray does it.
    """
    chance = random.Random(seed)
    slow = round(pool.slow * pool.workers)
    free = [(0.0, number) for number in range(pool.workers)]
    heapq.heapify(free)
    queue, ends, finished = parts, [], 0
    returned: list[float] = []  # when lost parts are in the queue again
    while finished < parts:
        now, worker = heapq.heappop(free)
        if not queue:
            if not returned:
                break
            now = max(now, heapq.heappop(returned))
            queue += 1
        queue -= 1
        takes = pool.part_hours * (pool.slowness if worker < slow else 1)
        dies = chance.expovariate(pool.lost_an_hour) if pool.lost_an_hour else takes + 1
        if dies < takes:
            heapq.heappush(returned, now + dies)
            heapq.heappush(free, (now + dies + pool.restart_hours, worker))
        else:
            finished += 1
            ends.append(now + takes)
            heapq.heappush(free, (now + takes, worker))
        while returned and returned[0] <= free[0][0]:
            heapq.heappop(returned)
            queue += 1
    assert finished == parts
    return max(ends)


@pytest.mark.parametrize(
    "pool",
    [
        Pool(workers=1, part_hours=0.1),
        Pool(workers=16, part_hours=0.1),
        Pool(workers=16, part_hours=0.2, slow=0.25, slowness=3),
        Pool(workers=16, part_hours=0.2, lost_an_hour=0.5, restart_hours=0.1),
        Pool(workers=64, part_hours=0.1, lost_an_hour=1, restart_hours=0.2, slow=0.125, slowness=2),
    ],
    ids=["one", "even", "stragglers", "losses", "all"],
)
def test_the_clock_of_a_pool_is_that_of_its_simulation(pool: Pool):
    parts = 3000
    expected = pool.hours(parts * pool.part_hours)
    times = [simulated(pool, parts, seed) for seed in range(5)]
    assert sum(times) / 5 == pytest.approx(expected, rel=0.04)
    alone = parts * pool.part_hours / pool.workers
    if pool.slow or pool.lost_an_hour:  # a formula without them would be told
        assert sum(times) / 5 > 1.04 * alone


def test_hours_are_tokens_by_speed_and_bytes_those_of_a_stored_row():
    core = next(speed for speed in SPEEDS if speed.tokens_s == 2362)
    assert core.hours(10**8, 200) == pytest.approx(2e10 / 2362 / 3600)
    import numpy as np

    rows = np.eye(4, 128, dtype=np.float32)
    for dtype in ("f32", "f16", "int8", "ubinary"):
        assert stored_bytes(4, 128, dtype) == packed(rows, dtype, 128).nbytes


def test_the_help_shows_what_is_computed():
    text = topics()["scale"].read_text("utf-8")
    assert "\n".join(tables()) in text
    assert all(name in text for name in COUNTS)
    usual = Pool(workers=100, part_hours=1 / 6)
    dying = Pool(workers=100, part_hours=1 / 6, lost_an_hour=1 / 24, restart_hours=1 / 20)
    assert dying.hours(10**5) / usual.hours(10**5) == pytest.approx(1.006, abs=5e-4)
