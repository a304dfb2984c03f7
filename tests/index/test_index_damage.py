"""A damaged index, or one that somebody else made: what each command says of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_backend import Gemb, write_model
from gemb.errors import GembError
from gemb.index.manifest import _checksum
from gemb.index.schema import COLUMNS, crc, explained
from gemb.index.verify import verify
from index_cases import error, inside, out
from lfs_pointer import POINTER

WORDS = ("order", "cancel", "delivery", "parcel", "money", "back", "refund", "page", "hour", "sky")
COMMANDS = (
    ("index", "info", "i.gemb"),
    ("index", "sync", "i.gemb", "--yes"),
    ("index", "sync", "i.gemb", "-n"),
    ("search", "order", "i.gemb"),
    ("search", "order", "i.gemb", "--hybrid", "-k", "0", "--min-score", "-1"),
    ("index", "verify", "i.gemb", "--rows", "0"),
    ("index", "rm", "i.gemb", "docs/d1.md"),
    ("index", "compact", "i.gemb"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents, and the index of them, of which some rows were removed."""
    folder = tmp_path_factory.mktemp("made") / "work"
    (folder / "docs").mkdir(parents=True)
    draw = random.Random(7)
    for number in range(12):
        text = " ".join(draw.choice(WORDS) for _ in range(40))
        (folder / f"docs/d{number}.md").write_text(f"# T{number}\n\n{text}\n")
    gemb = Gemb(folder)
    out(gemb, "index", "build", "i.gemb", "docs")
    out(gemb, "index", "rm", "i.gemb", "docs/d3.md", "docs/d7.md")
    return folder


@pytest.fixture
def work(made: Path, gemb: Gemb) -> Gemb:
    """`gemb` in a copy of it."""
    shutil.copytree(made, gemb.folder, dirs_exist_ok=True)
    manifest = json.loads((gemb.folder / "i.gemb/manifest.json").read_text())
    source = {**manifest["source"], "base": str(gemb.folder)}
    write_manifest(gemb.folder / "i.gemb", source=source, model=str(gemb.folder / "model.fake"))
    return gemb


def write_manifest(folder: Path, **entries: object) -> None:
    """Change entries of a manifest, with the checksum that fits: as somebody else would."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **entries}
    manifest["checksum"] = _checksum(manifest)
    path.write_text(json.dumps(manifest))


def run_sql(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


TABLES = ("rows", "removed", "blocks", "files")
OF_WORDS = ("words_data", "words_idx", "words_docsize", "words_config")


def stored(path: Path) -> list[object]:
    """Return all that SQLite reads from the tables, or what it says."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    connection.text_factory = bytes
    try:
        return [
            connection.execute(f"SELECT * FROM {table} NOT INDEXED").fetchall()
            for table in ("sqlite_schema", *TABLES, *OF_WORDS)
        ]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return [str(error)]
    finally:
        connection.close()


def test_verify_sees_the_bits_that_matter(made: Path, tmp_path: Path) -> None:
    good = (made / "i.gemb/rows.sqlite").read_bytes()
    shutil.copytree(made / "i.gemb", tmp_path / "i.gemb")
    path = tmp_path / "i.gemb/rows.sqlite"
    before = stored(path)
    places = [place for place, byte in enumerate(good) if byte or not place % 4]
    draw = random.Random(3)
    outcomes: Counter[str] = Counter()
    while outcomes.total() < 1000:
        data = bytearray(good)
        data[draw.choice(places)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        if stored(path) == before:
            continue
        try:
            findings = verify(tmp_path / "i.gemb", None, rows=0, seed=0)
            bad = [finding.name for finding in findings if not finding.ok]
        except GembError:
            bad = ["cannot be opened"]
        outcomes[" ".join(bad)] += 1
    assert outcomes[""] <= 10, outcomes
    assert {"words", "files", "rows", "cannot be opened"} <= outcomes.keys(), outcomes


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        ("DELETE FROM words_data WHERE id > 10", "words"),
        ("DELETE FROM words_data", "words"),
        ("DELETE FROM words_docsize WHERE id = 2", "words"),
        ("UPDATE words_config SET v = v + 1", "words"),
        ("UPDATE files SET size = size + 1 WHERE path = 'docs/d2.md'", "files"),
        ("UPDATE files SET path = 'docs/other' WHERE path = 'docs/d2.md'", "files"),
        ("UPDATE removed SET slot = slot - 1", "counts"),
        ("DELETE FROM removed WHERE slot = 5", "counts"),
        ("INSERT INTO removed VALUES (3)", "counts"),
    ],
)
def test_verify_names_what_is_damaged(work: Gemb, harm: str, word: str) -> None:
    run_sql(work.folder / "i.gemb", harm)
    done = work("index", "verify", "i.gemb", "--rows", "0")
    assert done.returncode == 1, done.stderr.decode()
    assert [line.split()[1] for line in done.stdout.decode().splitlines() if "BAD" in line] == [
        word
    ]


@pytest.mark.parametrize(
    "harm",
    [
        ["DELETE FROM rows", "DELETE FROM blocks", "DELETE FROM removed"],
        ["INSERT INTO removed VALUES (70)"],
        ["DELETE FROM blocks"],
        ["UPDATE blocks SET count = count + 1"],
        ["CREATE TRIGGER more AFTER DELETE ON rows BEGIN DELETE FROM files; END"],
        ["CREATE VIEW seen AS SELECT 1"],
        ["DROP TABLE files", "CREATE TABLE files(path)"],
        ["CREATE TRIGGER rows_out AFTER DELETE ON rows BEGIN DELETE FROM removed; END"],
        [
            "ALTER TABLE rows RENAME TO old",
            "CREATE VIEW rows AS WITH RECURSIVE n(slot) AS (SELECT 0 UNION ALL SELECT slot + 1 "
            "FROM n) SELECT slot, 1 AS id, '' AS path, 1 AS line, 1 AS last_line, '' AS title, "
            "'' AS text, '{}' AS kept, x'' AS digest, 0 AS crc FROM n",
        ],
    ],
)
def test_every_command_refuses_a_database_that_gemb_did_not_make(
    work: Gemb, harm: list[str]
) -> None:
    run_sql(work.folder / "i.gemb", *harm)
    for command in COMMANDS:
        line = error(work, *command, code=5)
        assert "i.gemb/rows.sqlite is damaged (" in line or "is cut short" in line, command
    if len(harm) == 1 and "VIEW" in harm[0]:
        assert "seen is not as gemb made it" in line


def page_of(folder: Path, table: str) -> int:
    connection = sqlite3.connect(folder / "rows.sqlite")
    query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
    (page,) = connection.execute(query, (table,)).fetchone()
    connection.close()
    return (page - 1) * 4096


@pytest.mark.parametrize("table", ["files", "rows_path", "removed", "words_idx"])
def test_a_damaged_page_ends_no_command_with_a_bug(work: Gemb, table: str) -> None:
    start = page_of(work.folder / "i.gemb", table)
    with (work.folder / "i.gemb/rows.sqlite").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    codes = {}
    for command in COMMANDS:
        done = work(*command)
        assert b"a bug in gemb" not in done.stderr, (command, done.stderr)
        assert done.returncode in (0, 1, 5), (command, done.stderr)
        assert len(done.stderr.splitlines()) <= 1
        codes[command[1]] = done.returncode
    assert codes["verify"] in (1, 5)
    if table == "files":
        assert codes["info"] == codes["sync"] == 5


def test_what_is_read_of_a_damaged_database_reaches_no_terminal_raw(work: Gemb) -> None:
    run_sql(
        work.folder / "i.gemb",
        "UPDATE files SET path = CAST(x'641b5b324aff' AS TEXT) WHERE path = 'docs/d2.md'",
    )
    line = error(work, "index", "sync", "i.gemb", code=5)
    assert "rows.sqlite is damaged (" in line
    assert line.isprintable()


def test_a_name_that_is_no_utf8_is_damage(work: Gemb) -> None:
    path = work.folder / "i.gemb/rows.sqlite"
    data = bytearray(path.read_bytes())
    data[data.find(b"CREATE TABLE removed") + 8] ^= 0x80
    path.write_bytes(data)
    for command in COMMANDS:
        assert "is damaged" in error(work, *command, code=5)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"


@pytest.mark.parametrize(("name", "table"), [("sqlite_statx", "rows"), ("removed", "rows")])
def test_a_trigger_under_another_things_name_is_none_of_gembs(
    work: Gemb, name: str, table: str
) -> None:
    body = f"AFTER INSERT ON {table} BEGIN SELECT count(*) FROM ({ENDLESS}); END"
    run_sql(
        work.folder / "i.gemb",
        "PRAGMA writable_schema = ON",
        f"INSERT INTO sqlite_schema VALUES('trigger', '{name}', '{table}', 0, "
        f"'CREATE TRIGGER {name} {body}')",
    )
    for command in COMMANDS:
        assert "rows.sqlite is damaged (" in error(work, *command, code=5)


def test_statistics_of_sqlite_are_no_harm(work: Gemb) -> None:
    run_sql(work.folder / "i.gemb", "ANALYZE")
    out(work, "index", "verify", "i.gemb", "--rows", "0")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("beside", ["-journal", "-wal", "-shm", ""])
def test_a_pipe_in_the_place_of_a_file_of_sqlite_hangs_nothing(work: Gemb, beside: str) -> None:
    path = work.folder / f"i.gemb/rows.sqlite{beside}"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for command in COMMANDS:
        line = error(work, *command, code=5)
        assert f"rows.sqlite{beside}" in line, line


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_lock_hangs_nothing(work: Gemb) -> None:
    (work.folder / "i.gemb/lock").unlink(missing_ok=True)
    os.mkfifo(work.folder / "i.gemb/lock")
    out(work, "search", "order", "i.gemb")
    line = error(work, "index", "sync", "i.gemb", "--yes", code=2)
    assert line == "gemb: i.gemb/lock: no regular file, where a lock is; remove it"


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_what_searches_want_hangs_nothing(work: Gemb) -> None:
    os.mkfifo(work.folder / "i.gemb/wanted.bin")
    out(work, "index", "compact", "i.gemb")


@pytest.mark.timeout(60)
def test_a_manifest_names_no_pipe_to_read(work: Gemb) -> None:
    os.mkfifo(work.folder / "pipe")
    source = {"kind": "rows", "base": str(work.folder), "paths": [str(work.folder / "pipe")]}
    write_manifest(work.folder / "i.gemb", source=source)
    line = error(work, "index", "sync", "i.gemb", "-n", code=2)
    assert "/pipe is a pipe or a device; name it, if you mean it: gemb index sync" in line


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rows SET slot = -1000000 WHERE slot = 1",
        "UPDATE rows SET slot = 1000000 WHERE slot = 1",
        "INSERT INTO words(rowid, title, text) VALUES(4611686018427387904, 'order', 'order')",
        "INSERT INTO words_docsize VALUES(9223372036854775807, x'0101')",
        "UPDATE blocks SET count = 4000000000",
    ],
)
def test_a_row_that_is_none_is_damage(work: Gemb, statement: str) -> None:
    run_sql(work.folder / "i.gemb", statement)
    for command in COMMANDS:
        line = error(work, *command, code=5)
        assert "is damaged (" in line or "is cut short" in line, (command, line)


def test_a_number_of_a_manifest_may_be_too_large_for_python(work: Gemb) -> None:
    path = work.folder / "i.gemb/manifest.json"
    background = {"quartile": 0.1, "deviation": 0.1, "rows": 10**400}
    write_manifest(work.folder / "i.gemb", background=background)
    assert "manifest.json is damaged" in error(work, "search", "order", "i.gemb", code=5)
    vectors = json.loads(path.read_text())["vectors"]
    write_manifest(
        work.folder / "i.gemb", background=None, vectors=vectors | {"prompt": "\ud800 {text}"}
    )
    assert "manifest.json is damaged" in error(work, "search", "order", "i.gemb", code=5)


@pytest.mark.parametrize(
    "entries",
    [
        {"model": {"a": 1}},
        {"task": ""},
        {"task": ["document"]},
        {"query_task": None},
        {"background": "x"},
        {"background": {"quartile": "1", "deviation": 1, "rows": 1}},
        {"generation": "../other"},
        {"generation": 0},
        {"generation": True},
        {"slots": 10**6},
        {"slots": -1},
        {"source": {"kind": "passages", "base": 1, "paths": ["docs"]}},
        {"source": {"kind": "passages", "base": "/", "paths": "docs"}},
        {"source": {"kind": "rows", "base": "/", "paths": [], "format": "exe"}},
        {"source": {"kind": "rows", "base": "/", "paths": [], "encoding": "base64_codec"}},
        {"source": {"kind": "passages", "base": "/\ud800", "paths": ["docs"]}},
        {"coder": {"kind": "quantile bits", "dim": 1, "levels": 1, "thresholds": "", "gaps": ""}},
        {"synced": 5},
    ],
)
def test_a_manifest_has_the_types_that_gemb_writes(work: Gemb, entries: dict[str, object]) -> None:
    write_manifest(work.folder / "i.gemb", **entries)
    for command in COMMANDS:
        if "source" in entries and command[0] == "search":
            continue  # it reads no source
        done = work(*command)
        if command[1] in ("verify", "rm", "compact") and "source" in entries:
            continue
        said = done.stderr.decode()
        assert (done.returncode, done.stdout) == (5, b""), (command, said)
        assert len(said.splitlines()) == 1
        assert "damaged" in said or "build the index anew" in said


def test_a_width_that_is_none_is_damage(work: Gemb) -> None:
    manifest = json.loads((work.folder / "i.gemb/manifest.json").read_text())
    for harm in ({"dim": "768"}, {"dim": 0}, {"dtype": "ubinary"}, {"prompt": None}, {"model": 1}):
        write_manifest(work.folder / "i.gemb", vectors={**manifest["vectors"], **harm})
        assert "manifest.json is damaged" in error(work, "search", "order", "i.gemb", code=5)


def damage_vector(folder: Path, row: int, factor: float) -> None:
    vectors = np.fromfile(folder / "vectors.f16", "<f2").reshape(-1, 768)
    vectors[row] *= np.float16(factor)
    vectors.tofile(folder / "vectors.f16")


@pytest.mark.parametrize("more", [[], ["--hybrid"], ["--min-score", "-1", "-k", "0"]])
@pytest.mark.parametrize("factor", [400, np.inf, np.nan, 0, 0.5])
def test_a_search_ranks_no_damaged_vector(work: Gemb, more: list[str], factor: float) -> None:
    ask = ("search", "order", "i.gemb", "--json", *more)
    first = json.loads(out(work, *ask).splitlines()[0])
    row = int(first["path"].removeprefix("docs/d").removesuffix(".md"))
    with inside(work.folder):
        paths = sorted(str(path) for path in Path("docs").iterdir())
    damage_vector(work.folder / "i.gemb", paths.index(f"docs/d{row}.md"), factor)
    done = work(*ask, "--weak") if not more else work(*ask)
    said = done.stderr.decode()
    assert done.returncode == 5, said
    assert "i.gemb is damaged: the vector of row" in said
    assert "gemb index verify i.gemb" in said
    assert len(said.splitlines()) == 1
    done = work("index", "verify", "i.gemb", "--rows", "20")
    assert done.returncode == 1
    assert b"Warning" not in done.stderr
    assert b"BAD vectors" in done.stdout.replace(b"  ", b" ")
    assert b"BAD lengths" in done.stdout.replace(b"  ", b" ")


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
def test_vectors_that_a_file_brings_are_of_length_one(gemb: Gemb, dtype: str) -> None:
    out(gemb, "embed", "-o", "v.npy", "--dtype", dtype, stdin="red\ngreen\nblue\nblack\n")
    array = np.load(gemb.folder / "v.npy")
    array[1] = 0
    array[2] //= 2 if dtype == "int8" else 1
    array[2] = array[2] if dtype == "int8" else array[2] * 3
    np.save(gemb.folder / "v.npy", array)
    done = gemb("index", "build", "i.gemb", "v.npy")
    said = done.stderr.decode()
    assert done.returncode == 3, said
    assert done.stdout.startswith(b"+2 ~0 -0 rows")
    assert "not_unit" in said or "not of length 1" in said
    assert "no vector" in said or "no_vector" in said
    out(gemb, "index", "verify", "i.gemb", "--rows", "0")


def test_an_int8_vector_with_a_clipped_component_may_be_shorter(gemb: Gemb) -> None:
    from gemb.embedding.vectors import are_units, packed

    vectors = np.zeros((3, 768), np.float32)
    vectors[0, 5] = 1  # int8 holds at most 0.29
    vectors[1] = 768**-0.5
    vectors[2] = 768**-0.5 / 2
    assert are_units(packed(vectors, "int8", 768), "int8", 768).tolist() == [True, True, False]


@pytest.mark.parametrize("numbers", ["<f4", "<f8"])
def test_a_number_too_large_for_the_stored_type_is_no_warning(gemb: Gemb, numbers: str) -> None:
    out(gemb, "embed", "-o", "v.npy", stdin="red\ngreen\n")
    array = np.load(gemb.folder / "v.npy").astype(numbers)
    array[1, 3] = np.finfo(numbers).max
    np.save(gemb.folder / "v.npy", array)
    done = gemb("index", "build", "i.gemb", "v.npy")
    assert (done.returncode, done.stdout[:15]) == (3, b"+1 ~0 -0 rows ("), done.stderr
    assert all(line.startswith(b"gemb: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("cut", [0, 40, 100, 130, 3000])
def test_a_cut_array_is_a_wrong_input(gemb: Gemb, cut: int) -> None:
    out(gemb, "embed", "-o", "v.npy", stdin="red\ngreen\nblue\n")
    with (gemb.folder / "v.npy").open("r+b") as file:
        file.truncate(cut)
    line = error(gemb, "index", "build", "i.gemb", "v.npy")
    assert line.startswith("gemb: v.npy: no vectors can be read from it")
    assert not (gemb.folder / "i.gemb").exists()
    assert not (gemb.folder / "i.gemb.part").exists()


def test_a_foreign_index_starts_no_download(work: Gemb) -> None:
    write_manifest(work.folder / "i.gemb", model="evil/repo")
    work.environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(work.folder / "hub")}
    work.environment.pop("HF_HUB_OFFLINE", None)
    (work.folder / "docs/new.md").write_text("new\n")
    for command in (
        ("search", "order", "i.gemb"),
        ("index", "sync", "i.gemb"),
    ):
        line = error(work, *command, code=4)
        assert "i.gemb was built with the model evil/repo, which is not here" in line
        assert "gemb models pull evil/repo" in line
        assert "-m REF" in line
    done = work("index", "verify", "i.gemb")
    assert done.returncode == 4, done.stderr
    assert not (work.folder / "hub").exists()


def test_a_model_that_has_moved_is_named_and_kept(work: Gemb) -> None:
    (work.folder / "model.fake").rename(work.folder / "moved.fake")
    line = error(work, "search", "order", "i.gemb", code=4)
    assert "i.gemb was built with the model" in line
    assert "model.fake, which is not here" in line
    assert "gemb index sync i.gemb -m REF keeps it" in line
    out(work, "search", "order", "i.gemb", "-m", "moved.fake")
    write_model(work.folder / "other.fake", name="other")
    line = error(work, "index", "sync", "i.gemb", "-m", "other.fake")
    assert "i.gemb was built with another model" in line
    error(work, "search", "order", "i.gemb", code=4)
    out(work, "index", "sync", "i.gemb", "-m", "moved.fake")
    out(work, "search", "order", "i.gemb")
    facts = json.loads(out(work, "index", "info", "i.gemb", "--json"))
    assert facts["model"] == str(work.folder / "moved.fake")


def test_a_hit_whose_file_is_gone_or_changed_says_so(work: Gemb) -> None:
    ask = ("search", "order", "i.gemb", "--weak", "-k", "0", "--min-score", "-1", "--json")

    def stale() -> dict[str, str | None]:
        hits = map(json.loads, out(work, *ask).splitlines())
        return {hit["path"]: hit.get("stale") for hit in hits}

    assert set(stale().values()) == {None}
    docs = work.folder / "docs"
    (docs / "d1.md").unlink()
    (docs / "d2.md").write_text("other words")
    status = (docs / "d4.md").stat()
    with (docs / "d4.md").open("r+") as file:  # as long, and of the same time
        file.write("# x")
    os.utime(docs / "d4.md", ns=(status.st_atime_ns, status.st_mtime_ns))
    states = {path: state for path, state in stale().items() if state}
    assert states == {"docs/d1.md": "gone", "docs/d2.md": "changed"}, "a copy has other inodes"
    done = work(*ask)
    assert done.stderr.decode() == (
        "gemb: note: 2 of 10 hits are of files that are gone or have changed since they were "
        "indexed: gemb index sync i.gemb\n"
    )
    out(work, "index", "sync", "i.gemb")
    assert set(stale().values()) == {None}
    status = (docs / "d5.md").stat()
    text = (docs / "d5.md").read_text()
    with (docs / "d5.md").open("r+") as file:
        file.write(text.replace("# T5", "# Xy"))
    os.utime(docs / "d5.md", ns=(status.st_atime_ns, status.st_mtime_ns))
    (docs / "d6.md").chmod(0o600)
    assert {path for path, state in stale().items() if state} == {"docs/d5.md"}


def test_a_number_and_its_digits_are_one_id(gemb: Gemb) -> None:
    rows = [{"id": 1, "text": "red"}, {"id": "2", "text": "green"}, {"id": -3, "text": "blue"}]
    rows.append({"id": "07", "text": "black"})

    def write(rows: list[dict[str, object]]) -> None:
        (gemb.folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write([*rows, {"id": "1", "text": "again"}])
    done = gemb("index", "build", "i.gemb", "r.jsonl", "--id-field", "id")
    assert (done.returncode, done.stdout[:15]) == (3, b"+4 ~0 -0 rows ("), done.stderr
    assert b"duplicate_id (first: line 5)" in done.stderr
    write([{**row, "id": str(row["id"])} for row in rows])
    assert out(gemb, "index", "sync", "i.gemb").startswith("+0 ~2 -0 rows (0 rows embedded")
    for row_id in ("1", "2", "-3", "07"):
        hit = json.loads(
            out(gemb, "search", f"--like={row_id}", "i.gemb", "--json", "-k", "1", "--weak")
        )
        assert hit["id"] != row_id
    assert "no row '7'" in error(gemb, "search", "--like", "7", "i.gemb")
    assert "no row and no file '7'" in error(gemb, "index", "rm", "i.gemb", "7")
    assert out(gemb, "index", "rm", "i.gemb", "--", "-3").startswith("-1 rows")
    assert out(gemb, "index", "rm", "i.gemb", "1").startswith("-1 rows")


def test_of_two_rows_with_one_id_none_is_taken_without_a_word(gemb: Gemb) -> None:
    with (gemb.folder / "r.jsonl").open("w") as file:
        file.write('{"id": 1, "text": "red"}\n{"id": "1", "text": "green"}\n')
    out(gemb, "embed", "r.jsonl", "--id-field", "id", "-o", "v.jsonl", "--keep", "text")
    out(gemb, "index", "build", "i.gemb", "v.jsonl")  # without an id field each is a row
    line = error(gemb, "search", "--like", "1", "i.gemb")
    assert "2 rows of i.gemb have the id '1'" in line
    done = gemb("index", "rm", "i.gemb", "1", "--yes")
    assert done.stdout.startswith(b"-2 rows")
    assert b"2 rows have the id '1'" in done.stderr


@pytest.mark.parametrize("words", ["a full moon", "a locked door", "disk I/O, readonly"])
def test_a_damaged_cell_is_damage_whatever_its_words(work: Gemb, words: str) -> None:
    database = sqlite3.connect(work.folder / "i.gemb" / "rows.sqlite")
    with database:
        cell = words.encode().hex() + "ff"
        database.execute(f"UPDATE rows SET text = CAST(x'{cell}' AS TEXT)")
    database.close()
    line = error(work, "search", "order", "i.gemb", code=5)
    assert "rows.sqlite is damaged (Could not decode to UTF-8" in line


def test_what_sqlite_says_of_the_system_is_said_by_its_code(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"

    def said(write: Callable[[], object]) -> str:
        with pytest.raises(sqlite3.Error) as raised:
            write()
        return str(explained(path, raised.value))

    absent = tmp_path / "absent" / "rows.sqlite"
    assert "cannot be opened; check" in said(lambda: sqlite3.connect(absent))
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    database.execute("CREATE TABLE t(a)")
    database.execute("PRAGMA max_page_count = 3")
    many = "INSERT INTO t VALUES (zeroblob(100000))"
    assert "no space left" in said(lambda: database.execute(many))
    reader = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0)
    assert "cannot be written to" in said(lambda: reader.execute(many))
    database.execute("BEGIN EXCLUSIVE")
    assert "is locked by another" in said(lambda: reader.execute("SELECT * FROM t"))


@pytest.mark.parametrize(("levels", "is_right"), [(200, True), (201, False), (300, False)])
def test_a_kept_field_is_no_deeper_than_can_be_written(
    work: Gemb, levels: int, is_right: bool
) -> None:
    path = work.folder / "i.gemb" / "rows.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    for slot, *columns in database.execute(f"SELECT slot, {COLUMNS} FROM rows").fetchall():
        columns[6] = '{"a":' + "[" * levels + "]" * levels + "}"
        values = (columns[6], crc(tuple(columns[:-1])), slot)
        database.execute("UPDATE rows SET kept = ?, crc = ? WHERE slot = ?", values)
    database.close()
    if is_right:
        out(work, "search", "order", "i.gemb", "--json")
        out(work, "index", "verify", "i.gemb")
        return
    assert "is damaged" in error(work, "search", "order", "i.gemb", "--json", code=5)
    answer = work("index", "verify", "i.gemb")
    assert answer.returncode == 1
    assert b"rows damaged" in answer.stdout


@pytest.mark.parametrize("name", ["manifest.json", "rows.sqlite", "vectors.f16", "codes.bin"])
def test_a_pointer_of_git_lfs_in_place_of_a_file_of_an_index_is_named(
    work: Gemb, name: str
) -> None:
    (work.folder / "i.gemb" / name).write_text(POINTER)
    line = error(work, "search", "order", "i.gemb")
    assert f"i.gemb/{name}: a Git LFS pointer, not the file" in line
    assert "a Git LFS pointer" in error(work, "index", "sync", "i.gemb")
