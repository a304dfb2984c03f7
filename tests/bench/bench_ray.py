"""`gemb embed --engine ray` on one machine, beside `gemb embed`, and the memory of its driver.

    python tests/bench/bench_ray.py speed TEXTS [--rounds 3] [-m mini]
    python tests/bench/bench_ray.py memory [--rows 1000000] [-m draft]

`speed`: rows a second of one worker of a thread, of two, and of `gemb embed -j 2`, by turns.
All lines of TEXTS are embedded; the time of a single line (Ray's start, the model) is taken off.
Rows a second of the clock, and of processors, which other work on them changes less.
The bars: two workers have 90 % of `-j 2`, and 1.8 times one worker's. `memory`: the driver's, in
each fifth of a run; the bar: the last is at most a tenth above the second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = {
    "gemb embed -j 2": ("-j", "2"),
    "one worker": ("--engine", "ray", "--workers", "1", "-j", "1"),
    "two workers": ("--engine", "ray", "--workers", "2", "-j", "1"),
}


def command(model: str, texts: Path, output: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "gemb", "embed", str(texts), "-m", model, "-o", str(output)]
    return [*words, "-q", *more]


def seconds(model: str, texts: Path, folder: Path, way: str, part_rows: int) -> np.ndarray:
    """The clock of a whole process, and the processors' of what embeds: it, or its workers."""
    is_ray = "ray" in WAYS[way]
    output = folder / (f"parts-{time.monotonic_ns()}" if is_ray else "v.parquet")
    more = ("--part-rows", str(part_rows)) if is_ray else ()
    began, used = time.monotonic(), {}
    process = subprocess.Popen(command(model, texts, output, *WAYS[way], *more))
    while process.poll() is None:
        used |= processor_seconds("ray::MapWorker" if is_ray else str(output))
        time.sleep(0.1)
    assert process.returncode == 0
    return np.array([time.monotonic() - began, sum(used.values())])


def processor_seconds(title: str) -> dict[int, float]:
    """Of each process whose command line holds the title."""
    used = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if title.encode() in (folder / "cmdline").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf(
                    "SC_CLK_TCK"
                )
    return used


def speed(arguments: argparse.Namespace) -> None:
    texts = Path(arguments.texts)
    rows = len(texts.read_bytes().splitlines())
    rates: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single = folder / "single.txt"
        single.write_text("one line\n")
        for _ in range(arguments.rounds):
            for way in WAYS:
                start = seconds(arguments.model, single, folder, way, arguments.part_rows)
                whole = seconds(arguments.model, texts, folder, way, arguments.part_rows)
                rates[way].append(rows / (whole - start))
                clock, used = rates[way][-1]
                print(
                    f"{way}: {clock:.1f} rows/s, {used:.1f} a second of processors, "
                    f"start {start[0]:.1f} s",
                    flush=True,
                )
    usual, one, two = (np.median(rates[way], axis=0) for way in WAYS)
    for row, name in enumerate(("by the clock", "by processors")):
        print(f"two workers over gemb embed -j 2, {name}: {two[row] / usual[row]:.2f} (bar 0.90)")
    print(f"two workers over one, by the clock: {two[0] / one[0]:.2f} (bar 1.8)")


def resident(process: int) -> int:
    """Bytes of a process in memory, without the files that it shares."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
    return sizes[0] if sizes else 0  # it has ended


def memory(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        texts, output = Path(name) / "texts.txt", Path(name) / "parts"
        with texts.open("w") as file:
            file.writelines(f"row {number} of many\n" for number in range(arguments.rows))
        parts = -(-arguments.rows // 4096)
        fifths: list[list[int]] = [[] for _ in range(5)]
        began = time.monotonic()
        process = subprocess.Popen(
            command(arguments.model, texts, output, "--engine", "ray", "--dtype", "int8")
        )
        while process.poll() is None:
            done = len(list(output.glob("part-*"))) if output.is_dir() else 0
            if done:
                fifths[min(4, 5 * done // parts)].append(resident(process.pid))
            time.sleep(0.2)
        print(
            f"{arguments.rows} rows in {time.monotonic() - began:.0f} s, exit {process.returncode}"
        )
    tops = [max(fifth) / 1e6 if fifth else 0.0 for fifth in fifths]
    print("driver, MB in each fifth:", ", ".join(f"{top:.0f}" for top in tops))
    print(f"last over second: {tops[4] / tops[1]:.2f} (bar 1.10)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("speed")
    run.add_argument("texts")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--part-rows", type=int, default=128)
    run.add_argument("-m", "--model", default="mini")
    run.set_defaults(run=speed)
    run = commands.add_parser("memory")
    run.add_argument("--rows", type=int, default=1_000_000)
    run.add_argument("-m", "--model", default="draft")
    run.set_defaults(run=memory)
    arguments = parser.parse_args()
    arguments.run(arguments)
