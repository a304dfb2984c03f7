"""`gemb search` as a process: what is searched, what comes out, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_backend import Gemb, write_model

CANCEL = """# Orders

Some words about orders in general, which nobody reads.

## Cancel

You can cancel an order until it is sent.
After that send it back.

## Pay

Pay the bill by card or by cheque, whichever is nearer.
"""
SHOP = '''"""A shop."""


def cancel_order(number):
    """cancel an order"""
    return number


def refund(payment):
    """give the money back"""
    return payment
'''


@pytest.fixture
def shop(gemb: Gemb) -> Gemb:
    """A folder with a few files, and a model whose vectors are sums of those of the words."""
    write_model(gemb.folder / "model.fake", is_bag=True, max_tokens=512)
    gemb.environment["XDG_CACHE_HOME"] = str(gemb.folder.parent / "cache")
    tree = gemb.folder / "tree"
    tree.mkdir()
    (tree / "orders.md").write_text(CANCEL)
    (tree / "shop.py").write_text(SHOP)
    (tree / "weather.txt").write_text("It rains in the north and snows in the south today.\n")
    (tree / ".hidden.txt").write_text("cancel an order\n")
    return gemb


def lines(found: subprocess.CompletedProcess[bytes]) -> list[str]:
    return found.stdout.decode().splitlines()


def test_a_folder_is_searched_and_the_best_lines_come_as_grep_prints_them(shop: Gemb):
    found = shop("search", "cancel an order", "tree", "--min-score", "0.1")
    assert found.returncode == 0, found.stderr
    assert found.stderr == b""
    assert 'tree/shop.py:5:    """cancel an order"""' in lines(found)
    assert "tree/orders.md:7:You can cancel an order until it is sent." in lines(found)
    assert not any("weather" in line or "hidden" in line for line in lines(found))


def test_a_second_search_embeds_nothing_but_the_query(shop: Gemb):
    log = shop.folder / "log"
    write_model(shop.folder / "model.fake", is_bag=True, max_tokens=512, log=str(log))
    first = shop("search", "cancel an order", "tree", "--weak")
    log.unlink()
    second = shop("search", "cancel an order", "tree", "--weak")
    assert log.read_text() == "1\n"
    assert second.stdout == first.stdout != b""


def test_lines_of_standard_input_come_without_names(shop: Gemb):
    words = "no rain\ncancel an order\n\norder a parcel\n"
    found = shop("search", "cancel an order", "-k", "1", "--weak", stdin=words)
    assert (found.returncode, found.stdout) == (0, b"cancel an order\n")
    named = shop("search", "cancel an order", "-k", "1", "--weak", "-H", stdin=words)
    assert named.stdout == b"(standard input):2:cancel an order\n"
    with_dash = shop("search", "cancel an order", "-", "-k", "1", "--weak", stdin=words)
    assert with_dash.stdout == found.stdout


def test_without_a_path_and_without_lines_this_folder_is_searched(shop: Gemb):
    found = shop.start("search", "cancel an order", "-k", "1", "--weak", stdin=subprocess.DEVNULL)
    out, _ = found.communicate(timeout=60)
    assert out.startswith(b"tree/")


def test_a_socket_is_read_like_a_pipe(shop: Gemb):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = shop.start("search", "rain", "--weak", stdin=theirs)
        theirs.close()
        ours.sendall(b"snow\nrain\n")
        ours.shutdown(socket.SHUT_WR)
        assert found.communicate(timeout=60)[0] == b"rain\nsnow\n"


def test_a_pipe_that_gives_nothing_is_told_of(shop: Gemb):
    found = shop.start("search", "rain", "--weak")
    note = found.stderr.readline().decode()
    assert note == (
        "gemb: note: reading standard input; to search this folder instead: gemb search QUERY .\n"
    )
    assert found.communicate(b"rain\n", timeout=60)[0] == b"rain\n"


def test_a_path_in_the_place_of_the_question_is_told_of(shop: Gemb):
    found = shop.start("search", "tree", "--weak", stdin=subprocess.DEVNULL)
    _, err = found.communicate(timeout=60)
    assert err.decode().startswith("gemb: note: tree is taken for the question; to search in it: ")
    assert found.returncode == 0


def test_json_lines_have_one_hit_each(shop: Gemb):
    found = shop("search", "cancel an order", "tree", "--json", "-k", "2", "--weak")
    hits = [json.loads(line) for line in lines(found)]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["score"] >= hits[1]["score"]
    for hit in hits:
        content = (shop.folder / hit["path"]).read_text().splitlines()
        passage = hit["text"].splitlines()
        assert content[hit["line"] - 1 : hit["last_line"]] == passage
        assert hit["line"] <= hit["best_line"] <= hit["last_line"]


def test_names_counts_and_silence(shop: Gemb):
    assert lines(shop("search", "-l", "cancel an order", "tree", "--min-score", "0.1")) == [
        "tree/orders.md",
        "tree/shop.py",
    ] or lines(shop("search", "-l", "cancel an order", "tree", "--min-score", "0.1")) == [
        "tree/shop.py",
        "tree/orders.md",
    ]
    assert len(lines(shop("search", "-l", "-k1", "cancel an order", "tree", "--weak"))) == 1
    counted = shop("search", "-c", "cancel an order", "tree", "--weak")
    assert sorted(line.split(":")[0] for line in lines(counted)) == [
        *("tree/orders.md", "tree/shop.py", "tree/weather.txt"),
    ]
    silent = shop("search", "-q", "cancel an order", "tree", "--min-score", "0.1")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, b"", b"")


def test_names_that_end_in_nul_are_bytes_for_xargs(shop: Gemb):
    name = b"tree/caf\xe9\nx.txt"
    path = os.path.join(os.fsencode(shop.folder), name)  # noqa: PTH118 - not UTF-8
    with open(path, "w") as file:  # noqa: PTH123
        file.write("cancel an order\n")
    found = shop("search", "-l0", "-k1", "cancel an order", "tree", "--weak")
    assert found.stdout == name + b"\0"
    shown = shop("search", "-l", "-k1", "cancel an order", "tree", "--weak")
    assert shown.stdout == b"tree/caf\xe9" + "⏎x.txt\n".encode()


def test_nothing_relevant_is_exit_code_1_and_says_how_far_it_was(shop: Gemb):
    found = shop("search", "zebra crossing", "tree", "--min-score", "0.9")
    assert (found.returncode, found.stdout) == (1, b"")
    message = found.stderr.decode()
    assert message.startswith("gemb: note: nothing relevant: the best of ")
    assert "under 0.90" in message
    quiet = shop("search", "-s", "zebra crossing", "tree", "--min-score", "0.9")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, b"", b"")
    weak = shop("search", "zebra crossing", "tree", "--min-score", "0.9", "--weak")
    assert weak.returncode == 0
    assert weak.stdout


def test_a_file_that_cannot_be_read_is_exit_code_2_and_the_rest_is_shown(shop: Gemb):
    found = shop("search", "cancel an order", "tree", "absent.txt", "--weak", "-k1")
    assert found.returncode == 2
    assert found.stdout
    assert b"absent.txt: no such file or directory" in found.stderr
    silent = shop("search", "-q", "cancel an order", "tree", "absent.txt", "--weak")
    assert (silent.returncode, silent.stdout) == (0, b"")


def test_a_question_may_be_the_name_of_a_file_that_is_not_readable(shop: Gemb):
    (shop.folder / "cancel").write_text("")
    (shop.folder / "cancel").chmod(0)
    (shop.folder / "tree" / "shut.txt").write_text("cancel")
    (shop.folder / "tree" / "shut.txt").chmod(0)
    # Root reads everything, unless this right is taken away.
    mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [sys.executable, "-m", "gemb", "search", "cancel", "tree/shut.txt", "tree/orders.md"]
    found = subprocess.run(
        [*(mortal if os.geteuid() == 0 else []), *command],
        cwd=shop.folder,
        env=shop.environment,
        capture_output=True,
        timeout=60,
    )
    assert found.stderr == b"gemb: warning: tree/shut.txt: permission denied\n"
    assert found.returncode == 2
    assert lines(found) == ["tree/orders.md:5:## Cancel"]


def test_a_pipe_in_the_place_of_a_gitignore_does_not_hold_the_search_up(shop: Gemb):
    os.mkfifo(shop.folder / "tree" / ".gitignore")
    assert lines(shop("search", "cancel an order", "tree", "-k1"))[0].startswith("tree/orders.md")


def test_what_was_named_in_vain_is_said_once(shop: Gemb):
    found = shop("search", "anything", "absent")
    assert found.returncode == 2
    assert found.stderr == b"gemb: warning: absent: no such file or directory\n"


def test_an_empty_folder_and_an_empty_input_are_exit_code_1(shop: Gemb):
    (shop.folder / "empty").mkdir()
    found = shop("search", "anything", "empty")
    assert found.returncode == 1
    assert b"nothing to search" in found.stderr
    nothing = shop("search", "anything", stdin=b"")
    assert nothing.returncode == 1
    assert nothing.stderr == b"gemb: note: nothing to search: standard input has no text\n"
    assert shop("search", "anything", "-s", stdin=b"").stderr == b""


def test_globs_hidden_files_and_lines(shop: Gemb):
    only = shop("search", "cancel an order", "tree", "-g", "*.py", "--weak", "-l")
    assert lines(only) == ["tree/shop.py"]
    without = shop("search", "cancel an order", "tree", "-g", "!*.py", "--weak", "-l")
    assert "tree/shop.py" not in lines(without)
    hidden = shop("search", "cancel an order", "tree", "--hidden", "--weak", "-l")
    assert lines(hidden)[0] == "tree/.hidden.txt"
    by_line = shop("search", "After that send it back.", "tree", "--lines", "--weak", "--json")
    best = json.loads(lines(by_line)[0])
    assert (best["line"], best["last_line"], best["score"]) == (8, 8, pytest.approx(1, abs=2e-3))


def test_a_folder_that_is_ignored_is_searched_where_it_is_named(shop: Gemb):
    (shop.folder / ".git").mkdir()
    (shop.folder / ".gitignore").write_text("/tree\n")
    assert lines(shop("search", "cancel an order", "tree/", "--weak", "-l"))
    assert lines(shop("search", "cancel an order", ".", "--weak", "-l", "-g", "*.md")) == []


def test_words_count_too_where_they_are_asked_for(shop: Gemb):
    (shop.folder / "tree" / "code.txt").write_text("error E1234 is raised by the frobnicator now\n")
    by_meaning = shop("search", "E1234", "tree", "--min-score", "0.9")
    assert by_meaning.returncode == 1
    both = shop("search", "E1234", "tree", "--min-score", "0.9", "--hybrid", "--json")
    (hit,) = [json.loads(line) for line in lines(both)]
    assert hit["path"] == "tree/code.txt"
    assert 0 < hit["score"] < 0.9
    weak = shop("search", "cancel E1234", "tree", "--weak", "--hybrid", "-l")
    assert lines(weak)[0] == "tree/code.txt"
    assert set(lines(weak)) > {"tree/orders.md", "tree/shop.py"}


def test_rows_of_a_table_are_passages_with_what_was_kept(shop: Gemb):
    rows = [{"n": 7, "body": "it rains"}, {"n": 9, "body": "cancel an order"}]
    (shop.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = shop(
        *("search", "cancel an order", "rows.jsonl", "--text-field", "body", "--id-field", "n"),
        *("--keep", "all", "--json", "-k1", "--weak"),
    )
    hit = json.loads(lines(found)[0])
    assert (hit["id"], hit["text"], hit["path"]) == (9, "cancel an order", "rows.jsonl")


def test_many_queries_come_as_json_lines_or_as_a_run(shop: Gemb):
    queries = (
        '{"_id": "q1", "text": "cancel an order"}\n{"_id": "q2", "text": "rains in the north"}\n'
    )
    (shop.folder / "queries.jsonl").write_text(queries)
    found = shop("search", "-f", "queries.jsonl", "tree", "--weak", "-k2")
    assert [json.loads(line)["query"] for line in lines(found)] == ["q1", "q1", "q2", "q2"]
    run = shop("search", "-f", "-", "tree", "--weak", "-k1", "--trec", stdin=queries)
    first, second = (line.split(" ") for line in lines(run))
    assert first[:2] + first[3:4] + first[5:] == ["q1", "Q0", "1", "gemb"]
    assert second[2].startswith("tree/weather.txt:1")


def test_what_is_like_a_passage_is_not_the_passage_itself(shop: Gemb):
    found = shop("search", "--like", "tree/.hidden.txt:1", "tree", "--hidden", "--json")
    hits = [json.loads(line) for line in lines(found)]
    assert hits
    assert "tree/.hidden.txt" not in {hit["path"] for hit in hits}
    assert hits[0]["path"] in ("tree/shop.py", "tree/orders.md")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "tree"), "the query: it is empty"),
        (("x", ""), "an empty name for a PATH"),
        (("x", "-", "-"), "standard input (-) is given twice; it can be read once"),
        (("--like", "tree/orders.md", "tree"), "--like tree/orders.md: without an index it is"),
        (("--like", "tree/orders.md:99", "tree"), "tree/orders.md: no passage has line 99"),
        (("-f", "q", "--like", "a:1"), "-f FILE and --like are both given; one at a time"),
        (("-f", "absent", "tree"), "no such file: absent"),
        (("-f", "tree", "tree"), "tree is a folder; name a file"),
        (("x", "tree", "-l", "--json"), "-l and --json are given; one form at a time"),
        (("x", "tree", "-0", "--json"), "-0 is for names and lines, not for --json"),
        (("x", "tree", "--full", "-C3"), "--full shows whole passages; -A, -B, -C"),
        (("x", "tree", "--where", "a=1"), "--where is for an index: gemb index build NAME PATH"),
        (("x", "tree", "--budget", "soon"), "'soon' is no time such as 5s, 500ms, 2m or 0"),
        (("x", "tree", "--budget", "-1s"), "'-1s' is no time such as 5s, 500ms, 2m or 0"),
        (("x", "tree", "--budget", "nan"), "'nan' is no time such as 5s, 500ms, 2m or 0"),
        (("x", "tree", "--budget", "5s", "--exact"), "--exact and --budget are given; one of them"),
        (("x", "tree", "--explain", "-l"), "--explain is for hits that are shown, not for -l"),
        (("--like", "a:1", "--hybrid"), "--hybrid ranks by the words of a query; --like has none"),
        (("x", "tree", "--lines", "--passages", "code"), "--lines and --passages code are given"),
        (("x", "tree", "--min-score", "2"), "'2' is neither auto nor a cosine from -1 to 1"),
        (
            ("x", "tree", "--max-size", "big"),
            "'big' is no size, as 200M or 0.2G; 0: no bound",
        ),
        (
            ("x", "tree", "--dim", "77"),
            "77 dimensions: the model was trained for 768, 512, 256, 128",
        ),
        (("--check-recall", "5", "tree"), "--check-recall measures an INDEX; name one"),
        (("x", "tree", "-m", "absent.fake"), "unknown model"),
    ],
)
def test_wrong_usage_is_one_line(shop: Gemb, arguments: tuple[str, ...], message: str):
    (shop.folder / "q").write_text("a\n")
    found = shop("search", *arguments)
    assert found.stdout == b""
    (line,) = found.stderr.decode().splitlines()
    if message != "unknown model":
        assert message in line
        assert found.returncode == 2
    else:
        assert found.returncode in (2, 4)


def test_without_a_query_the_usage_shows_how_to_ask(shop: Gemb):
    found = shop("search")
    assert found.returncode == 2
    assert b"Nothing to look for. Ask:" in found.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "q has no query"),
        (b"\n\n", "q has no query"),
        (b'{"text": "a"}\n{"text": ""}\n', "q, line 2: it is empty"),
        (b'{"txt": "a"}\n', "q, line 1: no 'text' or 'query'; it has: txt"),
        (b'{"text": \n', "q, line 1: no valid JSON"),
        (b"\xff\n", "q, line 1: byte 1 (0xff) is no valid UTF-8"),
        (
            b'{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n',
            "q, line 2: the id '1' is that",
        ),
    ],
)
def test_a_wrong_file_of_queries_is_one_line(shop: Gemb, content: bytes, message: str):
    (shop.folder / "q").write_bytes(content)
    found = shop("search", "-f", "q", "tree")
    assert (found.returncode, found.stdout) == (2, b"")
    assert message in found.stderr.decode().splitlines()[0]


def test_a_reader_that_goes_away_ends_it_quietly(shop: Gemb):
    (shop.folder / "many.txt").write_text("".join(f"line {number}\n" for number in range(3000)))
    found = shop.start("search", "line", "many.txt", "--lines", "--weak", "-k0")
    found.stdin.close()
    found.stdout.readline()
    found.stdout.close()
    assert found.wait(60) == 141
    assert found.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(shop: Gemb):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        found = shop.start("search", "cancel an order", "tree", "--weak", stdout=full)
        err = found.communicate(timeout=60)[1].decode()
    assert found.returncode == 5
    assert os.strerror(errno.ENOSPC).lower() in err
    assert len(err.splitlines()) == 1


def test_a_closed_output_is_one_line(shop: Gemb):
    words = " ".join(shop.command("search", "cancel", "tree", "--weak"))
    found = subprocess.run(
        ["bash", "-c", f"{words} >&-"],
        cwd=shop.folder,
        env=shop.environment,
        capture_output=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith(b"gemb: standard output is closed; send it to a file or a pipe")


def test_ctrl_c_keeps_what_was_embedded(shop: Gemb):
    log = shop.folder / "log"
    texts = "".join(f"some words number {number}\n" for number in range(3000))
    (shop.folder / "many.txt").write_text(texts)
    slow = {"is_bag": True, "max_tokens": 512, "log": str(log)}
    write_model(shop.folder / "model.fake", **slow, sleep_s=0.3)
    found = shop.start("search", "words", "many.txt", "--lines", "--weak", "--exact")
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        time.sleep(0.05)
        assert found.poll() is None, found.stderr.read()
    found.send_signal(2)
    out, err = found.communicate(timeout=60)
    assert (found.returncode, out) == (130, b"")
    note, last = err.decode().split("\n", 1)[0], err.decode().splitlines()[-1]
    assert note.startswith("gemb: note: stopped: ")
    assert "the same search goes on from there" in note
    assert last == "gemb: interrupted"
    done = int(note.split(" ")[3].replace(",", ""))
    log.unlink()
    write_model(shop.folder / "model.fake", **slow)
    again = shop("search", "words", "many.txt", "--lines", "--weak", "--exact")
    assert again.returncode == 0
    embedded = sum(int(line) for line in log.read_text().splitlines())
    assert 0 < embedded <= 3001 - done


def test_without_time_words_alone_rank_and_scores_are_estimates(shop: Gemb):
    log = shop.folder / "log"
    write_model(shop.folder / "model.fake", is_bag=True, max_tokens=512, log=str(log))
    found = shop("search", "cancel an order", "tree", "--budget", "0", "--json", "--explain")
    hits = [json.loads(line) for line in lines(found)]
    assert {hit["path"] for hit in hits} == {"tree/shop.py", "tree/orders.md"}
    assert all(hit["estimated"] for hit in hits)
    assert hits[0]["ranks"] == {"words": 1, "draft": None, "vector": None}
    assert log.read_text() == "1\n"  # the query
    whole = shop("search", "cancel an order", "tree", "--exact", "--json", "--weak")
    assert all("estimated" not in json.loads(line) for line in lines(whole))
    assert len(lines(whole)) > len(hits)


def test_what_is_not_sure_is_marked_in_json(shop: Gemb):
    write_model(shop.folder / "model.fake", is_bag=True, max_tokens=512, sleep_s=0.2)
    rest = " and other words of no use" * 50  # one text fills a window
    texts = "".join(f"zebra number {number}{rest}\n" for number in range(50))
    (shop.folder / "many.txt").write_text(texts)
    arguments = ("search", "walrus with a zebra", "many.txt", "--lines", "--json")
    found = shop(*arguments, "--budget", "1ms")
    hits = [json.loads(line) for line in lines(found)]
    assert {hit["unsure"] for hit in hits} == {"time"}
    assert [hit for hit in hits if "estimated" not in hit], "a vector alone does not make it sure"
    assert b"there was too little time to tell what is relevant" in found.stderr
    weak = shop(*arguments, "--weak", "--exact")
    assert lines(weak)
    assert all("unsure" not in json.loads(line) for line in lines(weak))


def test_a_budget_ends_the_search(shop: Gemb):
    texts = "".join(f"some words number {number}\n" for number in range(3000))
    (shop.folder / "many.txt").write_text("cancel an order\n" + texts)
    write_model(shop.folder / "model.fake", is_bag=True, max_tokens=512, sleep_s=0.2)
    arguments = ("search", "cancel an order", "many.txt", "--lines", "-k1", "-v")
    found = shop(*arguments, "--budget", "500ms")
    assert lines(found) == ["many.txt:1:cancel an order"]
    stages = found.stderr.decode()
    match = re.search(r"passages: 3,001, files: 1; vectors: (\d+), \1 of them new; ", stages)
    assert match, stages
    assert int(match[1]) < 3001
    assert re.search(r"vectors [\d.]+ s, hits [\d.]+ s$", stages.strip())


def test_all_that_are_relevant_are_those_that_were_compared(shop: Gemb):
    texts = "".join(f"cancel an order number {number}\n" for number in range(3000))
    (shop.folder / "many.txt").write_text(texts)
    write_model(shop.folder / "model.fake", is_bag=True, max_tokens=512, sleep_s=0.1)
    found = shop("search", "cancel an order", "many.txt", "--lines", "-c", "--budget", "200ms")
    match = re.search(r"note: (\d+) of 3,000 passages were compared; --exact", str(found.stderr))
    assert match
    assert lines(found) == [f"many.txt:{match[1]}"]


def test_a_file_that_stands_twice_is_one_hit_with_a_count(shop: Gemb):
    for name in ("copy", "other"):
        (shop.folder / "tree" / f"{name}.py").write_text(SHOP)
    found = shop("search", "cancel an order", "tree", "--json", "-k", "3", "--weak")
    copies = [json.loads(line).get("copies", 1) for line in lines(found)]
    assert sorted(copies) == [1, 1, 3]
    names = shop("search", "cancel an order", "tree", "-l", "--weak")
    assert {"tree/copy.py", "tree/other.py", "tree/shop.py"} <= set(lines(names))
