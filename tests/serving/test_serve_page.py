"""The page that searches the indexes: safe against what files hold, seen by a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from file_trees import write
from gemb.serving.page import PAGE, page
from html_page import Page
from served import Served

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"> the walrus swims\n"
    "<script>document.title='taken'</script></pre></li> in cold water\n"
    "\u202egnp.exe ${1+1} {{7*7}} &amp; '\" --> ]]>\n"
)


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_allows_the_pages_own_style_and_script_alone():
    answer = page(["docs", "</script><script>alert(1)"])
    text = answer.body.decode()
    assert len(re.findall("<script", text)) == len(re.findall("</script", text)) == 1
    policy = answer.headers["content-security-policy"]
    for name in ("style", "script"):
        (inside,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert f"{name}-src {digest(inside)}" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_is_whole_and_loads_nothing_from_elsewhere():
    text = PAGE.read_text(encoding="utf-8")
    Page(text.replace("<!doctype html>", "").replace("<link ", "<img ").replace("<input ", "<img "))
    assert not re.search(r"https?://|//[a-z]+\.", text)
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " on"):
        assert not re.search(rf"{re.escape(unsafe)}\w*=", text), unsafe
        assert unsafe == " on" or unsafe not in text
    assert text.count("textContent") >= 2


def test_a_server_with_an_index_has_the_page(served):
    reply = served.ask("/")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert b'const INDEXES = ["docs"];' in reply.body


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell")
def test_a_browser_shows_hits_and_runs_nothing_of_a_file(home, tmp_path):
    write(home.folder, {"bad/walrus.txt": HOSTILE, "bad/<b>.md": "The dog barks at night.\n"})
    assert home("index", "build", "-q", "bad.gemb", "bad").returncode == 0
    server = Served(home, "--index", "bad=bad.gemb")
    address = f"http://{server.host}:{server.port}/#the%20walrus%20swims%20in%20cold%20water"
    dom = seen(address, tmp_path)
    assert server.end() == 0
    assert "<title>gemb search</title>" in dom
    assert '<span class="place">bad/walrus.txt:' in dom
    assert "&lt;img src=x onerror=" in dom
    assert "&lt;script&gt;document.title='taken'&lt;/script&gt;" in dom
    assert "<img" not in dom
    assert dom.count("<script") == 1
    assert 'class="best"' in dom
    assert "\u202e" not in dom
    assert re.search(r">\d+ hits?, \d+ ms<", dom)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell")
def test_a_browser_asks_for_the_key(home, tmp_path):
    keys = home.folder / "page-keys"
    keys.write_text("k" * 40)
    keys.chmod(0o600)
    server = Served(home, "--index", "docs=docs.gemb", "--api-key-file", "page-keys")
    dom = seen(f"http://{server.host}:{server.port}/#cat", tmp_path)
    assert server.end() == 0
    assert "no key, or a wrong one" in dom
    assert not re.search(r'<input id="key"[^>]*hidden', dom)


def seen(address: str, folder: Path) -> str:
    """Return the page as a browser has it once it has run."""
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/browser",
            "--virtual-time-budget=5000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
