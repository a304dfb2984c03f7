"""`gemb embed --engine ray` on a cluster of several nodes: real processes, real signals."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_backend import Gemb, write_model
from fake_store import running_store
from gemb.commands.manual import topics

pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")

import pyarrow.parquet as parquet  # noqa: E402

ROWS = 400
pytestmark = pytest.mark.timeout(600)  # a cluster takes its time where others use the cores
MIB = 1 << 20


class Cluster(Gemb):
    """`gemb` in a folder, and a Ray cluster whose workers have its plugin."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster as Nodes

        self.nodes = Nodes()
        for _ in range(2):
            self.add_node()

    def add_node(self):
        """Add a node of one CPU, whose workers have the plugin."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            return self.nodes.add_node(
                num_cpus=1, object_store_memory=80 * MIB, include_dashboard=False
            )
        finally:
            os.environ.clear()
            os.environ.update(before)

    def words(self, *arguments: str) -> list[str]:
        return [
            *("embed", *arguments, "--engine", "ray", "--address", self.nodes.address),
            *("--part-rows", "32"),
        ]

    def embed(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return self(*self.words(*arguments), timeout=250)

    def plain(self, *arguments: str) -> list[dict[str, object]]:
        """The rows of the same command on one machine."""
        self("embed", *arguments, "-o", "plain.parquet")
        return parquet.read_table(self.folder / "plain.parquet").to_pylist()

    def rows(self, name: str) -> list[dict[str, object]]:
        """The rows of a folder of parts, in order."""
        parts = sorted((self.folder / name).glob("part-*.parquet"))
        return [row for part in parts for row in parquet.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray") / "work"
    folder.mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.close()
    cluster.nodes.shutdown()


@pytest.fixture(autouse=True)
def usual_model(request: pytest.FixtureRequest) -> None:
    if "cluster" in request.fixturenames:
        write_model(request.getfixturevalue("cluster").model)


@pytest.fixture(scope="module")
def texts(cluster: Cluster) -> str:
    lines = [f"text {number % 170} of {number % 13}" for number in range(ROWS)]
    lines[100], lines[200], lines[300] = "", "green poison", "long " * 100
    (cluster.folder / "texts.txt").write_text("\n".join(lines))
    return "texts.txt"


def message(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line of stderr, which is the only one that is no note and no warning."""
    lines = done.stderr.decode().splitlines()
    errors = [line for line in lines if not line.startswith(("gemb: note: ", "gemb: warning: "))]
    assert done.stdout == b""
    assert len(errors) == 1, done.stderr.decode()
    return errors[0]


def wait_for(condition, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(title: str, mark: str) -> list[int]:
    """The processes that are called so, and whose words or variables hold the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
                variables = (folder / "environ").read_bytes()
            except OSError:
                continue
            if title.encode() in words and mark.encode() in words + variables:
                found.append(int(folder.name))
    return found


def workers(cluster: Cluster) -> list[int]:
    """The processes that embed."""
    return processes("ray::MapWorker(MapBatches(PartWorker))", str(cluster.folder))


def parts(cluster: Cluster, name: str) -> list[Path]:
    return sorted((cluster.folder / name).glob("part-*.parquet"))


@pytest.mark.slow
def test_rows_are_those_of_one_machine(cluster: Cluster, texts: str) -> None:
    folder = cluster.folder
    rows = [
        {"text": "red fox", "n": 1},
        {"text": None},
        {"n": 2},
        {"text": "a " * 90},
        {"text": "text 7 of 7"},
    ]
    lines = [json.dumps(row) for row in rows] + ["{broken", '{"text": "last"}']
    (folder / "rows.jsonl").write_text("\n".join(lines * 20))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["007", "two\nlines"], ["8", ""], ["x"]] * 30)
    table = pyarrow.table({"text": [*(f"row {n}" for n in range(90)), None, "notfinite"]})
    parquet.write_table(table, folder / "table.parquet", row_group_size=10)
    files = [texts, "rows.jsonl", "table.csv", "table.parquet"]

    done = cluster.embed(*files, "-o", "four")
    alone = cluster("embed", *files, "-o", "alone.parquet")
    assert done.returncode == alone.returncode == 3
    assert message(done) == message(alone)
    assert sorted(done.stderr.splitlines()) == sorted(alone.stderr.splitlines())
    assert cluster.rows("four") == cluster.plain(*files)

    part = parquet.read_schema(parts(cluster, "four")[0])
    whole = parquet.read_schema(folder / "plain.parquet")
    assert part == whole  # names and types
    described = json.loads(part.metadata[b"gemb"])
    expected = json.loads(whole.metadata[b"gemb"])
    assert described.items() >= expected.items()
    assert described["part"]["rows"] == 32
    manifest = json.loads((folder / "four" / "_gemb.json").read_text())
    assert manifest["rows"] == len(cluster.rows("four"))
    assert manifest["parts"] == len(parts(cluster, "four"))


@pytest.mark.slow
def test_a_worker_and_a_node_are_lost_and_no_row_is(cluster: Cluster, texts: str) -> None:
    write_model(cluster.model, sleep_s=0.3)
    extra = cluster.add_node()
    process = cluster.start(*cluster.words(texts, "-o", "lost"))
    wait_for(lambda: parts(cluster, "lost"), process)
    os.kill(workers(cluster)[0], signal.SIGKILL)
    before = len(parts(cluster, "lost"))
    wait_for(lambda: len(parts(cluster, "lost")) > before, process)
    cluster.nodes.remove_node(extra, allow_graceful=False)
    process.wait(250)
    assert process.returncode == 3
    assert cluster.rows("lost") == cluster.plain(texts)
    assert not [path for path in (cluster.folder / "lost").iterdir() if path.name[0] == "."]


def stopped(cluster: Cluster, texts: str, name: str, sent: signal.Signals) -> tuple[int, str]:
    """A run that got a signal when it had three parts: its exit code, and what it said."""
    write_model(cluster.model, sleep_s=0.3)
    process = cluster.start(*cluster.words(texts, "-o", name))
    wait_for(lambda: len(parts(cluster, name)) >= 3, process)
    process.send_signal(sent)
    error = process.communicate(timeout=100)[1].decode()
    wait_for(lambda: not workers(cluster))
    write_model(cluster.model)
    return process.returncode, error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_the_driver_and_its_workers(
    cluster: Cluster, texts: str, sent: signal.Signals, code: int, word: str
) -> None:
    name = sent.name
    returned, error = stopped(cluster, texts, name, sent)
    *notes, last = filter(None, error.splitlines())  # click ends the line of a ^C
    assert (returned, last) == (code, f"gemb: {word}")
    assert notes[-1].startswith(f"gemb: note: {name} keeps the ")
    assert notes[-1].endswith("the same command with --resume goes on from there")


@pytest.mark.slow
def test_a_run_goes_on_after_its_driver_was_killed(cluster: Cluster, texts: str) -> None:
    name = "killed"
    stopped(cluster, texts, name, signal.SIGKILL)
    kept = {path.name: path.stat().st_ino for path in parts(cluster, name)}
    (cluster.folder / name / f".part-000000-000000.parquet.{'0' * 32}").write_text("half")
    again = cluster.embed(texts, "-o", name)
    assert again.returncode == 2
    assert message(again).endswith(
        f"{name} holds this run already, unfinished; --resume goes on, or name another folder"
    )
    done = cluster.embed(texts, "-o", name, "--resume")
    assert done.returncode == 3
    assert cluster.rows(name) == cluster.plain(texts)
    assert {path.name: path.stat().st_ino for path in parts(cluster, name)}.items() >= kept.items()
    assert not [path for path in (cluster.folder / name).iterdir() if path.name[0] == "."]

    # A part of a whole run that was cut short: it alone is computed.
    cut = parts(cluster, name)[2]
    cut.write_bytes(cut.read_bytes()[:-9])
    log = cluster.folder / f"{name}.log"
    write_model(cluster.model, log=str(log))
    assert cluster.embed(texts, "-o", name, "--resume").returncode == 3
    assert sum(map(int, log.read_text().split())) == 32
    assert cluster.rows(name) == cluster.plain(texts)
    other = cluster.embed(texts, "-o", name, "--resume", "--dim", "128")
    assert (other.returncode, message(other)) == (
        2,
        f"gemb: {name} is of a run with another dim (768, now 128); "
        "repeat that one, or name another folder",
    )


def write_bad(folder: Path) -> None:
    """Inputs that end a run, and one that does not."""
    (folder / "bad").mkdir(exist_ok=True)
    table = pyarrow.table({"text": ["one", "two"]})
    for name in ("part-1.parquet", "torn/1.parquet", "other/1.parquet"):
        (folder / "bad" / name).parent.mkdir(exist_ok=True)
        parquet.write_table(table, folder / "bad" / name)
    (folder / "bad" / "torn" / "2.parquet").write_text("no table")
    parquet.write_table(
        pyarrow.table({"body": ["three"], "n": [4]}), folder / "bad" / "other" / "2.parquet"
    )
    (folder / "bad" / "deadly.txt").write_text("one\ntwo deadly\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("torn", 2, "gemb: bad/torn/2.parquet: no readable Parquet file: "),
        ("other", 2, "gemb: bad/other/2.parquet: no column 'text'; it has: body, n"),
        (
            "deadly.txt",
            5,
            "gemb: 4 workers were killed, one after the other, at part 1 of input file 1; "
            "fewer --workers, a smaller model or --part-rows need less memory",
        ),
    ],
)
def test_what_ends_a_run_is_one_line(cluster: Cluster, name: str, code: int, line: str) -> None:
    write_bad(cluster.folder)
    field = [] if name.endswith(".txt") else ["--text-field", "text"]
    done = cluster.embed(f"bad/{name}", *field, "-o", f"of-{name}")
    assert (done.returncode, message(done)[: len(line)]) == (code, line)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(cluster: Cluster, texts: str) -> None:
    write_model(cluster.model, file_limit=20_000)
    done = cluster.embed(texts, "-o", "full")
    assert done.returncode == 5
    assert "full/part-000000-" in message(done)
    assert message(done).endswith(": file too large")
    assert not [path for path in (cluster.folder / "full").iterdir() if path.name[0] == "."]


@pytest.mark.slow
def test_ids_that_repeat_are_said_and_ids_that_lack_are_errors(cluster: Cluster) -> None:
    rows = [{"id": n % 40, "text": f"row {n}"} for n in range(50)] + [{"text": "no id"}]
    (cluster.folder / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = cluster.embed("ids.jsonl", "--id-field", "id", "-o", "ids")
    assert done.returncode == 3
    assert (
        "gemb: warning: 10 ids are those of several rows, such as '0': all rows are here; "
        "an index keeps one of each\n" in done.stderr.decode()
    )
    assert "1 of 51 rows have no vector: missing_field (first: line 51)" in done.stderr.decode()
    assert cluster.rows("ids") == cluster.plain("ids.jsonl", "--id-field", "id")


@pytest.mark.slow
def test_a_store_is_read_and_written_and_no_key_is_told(cluster: Cluster) -> None:
    (cluster.folder / "in").mkdir()
    lines = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(50))
    (cluster.folder / "in" / "a.jsonl").write_text(lines)
    table = pyarrow.table({"text": [f"cell {number}" for number in range(70)]})
    parquet.write_table(table, cluster.folder / "in" / "b.parquet")
    with running_store() as store:
        for name in ("a.jsonl", "b.parquet"):
            store.objects[f"in/{name}"] = (cluster.folder / "in" / name).read_bytes()
        words = (store.address("in"), "-o", store.address("out"))
        done = cluster.embed(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        parts = [store.objects[key] for key in sorted(store.objects) if key.endswith(".parquet")]
        rows = [
            row
            for part in parts[1:]  # after the input
            for row in parquet.read_table(pyarrow.BufferReader(part)).to_pylist()
        ]
        assert b"secret" not in b"".join(
            data for key, data in store.objects.items() if key.startswith("out/")
        )
        refused = cluster.embed(*words)
        assert refused.returncode == 2
        assert message(refused).startswith("gemb: s3://bucket/out holds this run already, whole;")
        for key in [key for key in store.objects if key.endswith("-000001.parquet")]:
            del store.objects[key]
        assert cluster.embed(*words, "--resume").returncode == 0
        assert [store.objects[key] for key in sorted(store.objects) if "part-" in key] == parts[1:]
    expected = cluster.plain("in/a.jsonl", "in/b.parquet")
    for row in expected:
        row["id"] = f"s3://bucket/{row['id']}"
    assert rows == expected


@pytest.mark.slow
def test_the_class_serves_a_pipeline_of_ones_own(cluster: Cluster) -> None:
    program = """
import sys, numpy, ray
from gemb import Model
from gemb.integrations.ray import Embedder
ray.init(sys.argv[1], log_to_driver=False)
data = ray.data.from_items([{"n": n, "text": f"row {n}"} for n in range(50)])
data = data.map_batches(Embedder, fn_constructor_kwargs={"model": sys.argv[2]}, batch_size=16,
                        compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
rows = sorted(data.take_all(), key=lambda row: row["n"])
expected = Model("model.fake").encode_document([f"row {n}" for n in range(50)])
assert numpy.array_equal(numpy.array([row["embedding"] for row in rows]), expected)
"""
    subprocess.run(
        [sys.executable, "-c", program, cluster.nodes.address, str(cluster.model)],
        cwd=cluster.folder,
        env=cluster.environment,
        check=True,
        timeout=250,
    )


def five_lines() -> list[str]:
    """The run on two nodes that `gemb help scale` shows."""
    text = topics()["scale"].read_text("utf-8")
    shown = text.split("and a worker that is killed:\n\n")[1].split("\n\n")[0]
    return [line.removeprefix("    ") for line in shown.splitlines()]


@pytest.mark.slow
def test_the_five_lines_of_the_help(tmp_path: Path) -> None:
    lines = five_lines()
    assert len(lines) == 5
    folder = tmp_path / "work"
    folder.mkdir()
    gemb = Gemb(folder)
    write_model(gemb.model, sleep_s=0.2)
    texts = "\n".join(f"text {number}" for number in range(ROWS))
    (folder / "pages.txt").write_text(texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = folder.parent / "bin"
    names.mkdir()
    for name, module in (("gemb", "gemb"), ("ray", "ray.scripts.scripts")):
        program = f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n'
        (names / name).write_text(program)
        (names / name).chmod(0o755)
    environment = {
        **gemb.environment,
        "PATH": f"{names}:{os.environ['PATH']}",
        "HOME": str(tmp_path),  # Ray keeps its token there
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    script = "\n".join(["set -e", *lines]).replace("6379", port)
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        for process in processes("/ray/", f":{port}") + processes("/gcs_server", f"={port}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert '"rows": 400,' in done.stdout
    parts = sorted((folder / "vectors").glob("part-*"))
    rows = [row for part in parts for row in parquet.read_table(part, columns=["id"])["id"]]
    assert [row.as_py() for row in rows] == list(range(1, ROWS + 1))


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["a.txt"], 2, "--engine ray writes a folder of parts: -o FOLDER"),
        (["-o", "x"], 2, "--engine ray reads files, not standard input: its workers have none"),
        (["-e", "a", "-o", "x"], 2, "--engine ray reads files, not -e TEXT: its workers have none"),
        (
            ["a.txt", "-o", "x", "-O", "npy"],
            2,
            "--engine ray writes Parquet; -O npy is for a file",
        ),
        (
            ["a.txt", "-o", "x", "--keep", "a"],
            2,
            "--keep: parts hold ids and vectors; join the input by the id",
        ),
        (
            ["a.txt", "-o", "x", "--shard", "1/2"],
            2,
            "--shard: Ray shares the rows out by itself; leave it out",
        ),
        (["none.txt", "-o", "x"], 2, "no such file: none.txt"),
        (["a.txt", "a.txt", "-o", "x"], 2, "a.txt is given twice; each file is an input once"),
        (["a.txt", "-o", "a.txt"], 2, "a.txt is a file; --engine ray writes a folder of parts"),
        (["a.txt", "-o", "."], 2, ". holds other files (a.txt); name an empty folder"),
        (["nope://a/b", "-o", "x"], 2, "nope://a/b: no address that can be opened: "),
        (
            ["a.txt", "-o", "x", "--address", "nobody"],
            2,
            "--address nobody: write auto or HOST:PORT",
        ),
        (
            ["a.txt", "-o", "x", "--address", "ray://127.0.0.1:9"],
            2,
            "--address ray://127.0.0.1:9: Ray Data does not work through Ray's client; run this on "
            "a node of the cluster, with --address auto",
        ),
        (
            ["a.txt", "-o", "x", "--address", "127.0.0.1:9"],
            4,
            "--address 127.0.0.1:9: nobody answers (Connection refused); "
            "is the cluster up? ray status",
        ),
    ],
)
def test_a_wrong_command_is_one_line(
    gemb: Gemb, arguments: list[str], code: int, line: str
) -> None:
    (gemb.folder / "a.txt").write_text("one")
    done = gemb("embed", *arguments, "--engine", "ray")
    *_, last = done.stderr.decode().splitlines()
    if code == 4:  # a manifest is there, and no part: the same command begins again
        assert gemb("embed", *arguments, "--engine", "ray").stderr == done.stderr
    assert (done.returncode, last[: len("gemb: " + line)]) == (code, f"gemb: {line}")
    assert done.stdout == b""


def test_options_of_ray_need_it_and_its_absence_names_the_extra(gemb: Gemb) -> None:
    (gemb.folder / "a.txt").write_text("one")
    done = gemb("embed", "a.txt", "-o", "x", "--workers", "2")
    assert done.returncode == 2
    assert message(done).startswith("gemb: --workers goes with --engine ray (")
    program = (
        "import sys; sys.modules['ray'] = None; sys.argv[0] = 'gemb'\n"
        "from gemb.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *("embed", "a.txt", "-o", "x", "--engine", "ray")],
        cwd=gemb.folder,
        env=gemb.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 4
    assert message(done).endswith("pip install 'gemb[ray]'")
