"""Who may ask `gemb serve`: keys, hosts, pages of others, sockets; and where it may listen."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.responses import Response

from gemb.commands.serve import _access
from gemb.errors import UsageError
from gemb.serving.bodies import Bodies
from gemb.serving.guard import Access, Guard, read_keys
from gemb.serving.limits import Limits
from gemb.serving.metrics import Metrics
from gemb.serving.server import listening_socket, unix_socket
from index_cases import error
from served import Served

KEY, OTHER = "k" * 40, "o" * 40


@pytest.fixture(scope="module")
def keyed(home):
    keys = home.folder / "keys.txt"
    keys.write_text(f"# the keys of two programs\n{KEY}\n\n{OTHER}\n")
    keys.chmod(0o600)
    server = Served(
        home, "--host", "0.0.0.0", "--api-key-file", "keys.txt", "--index", "d=docs.gemb"
    )
    yield server
    assert server.end() == 0


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens(keyed, key):
    headers = {"authorization": f"Bearer {key}"}
    reply = keyed.ask("/v1/embeddings", {"model": "model.fake", "input": "x"}, headers=headers)
    assert reply.status == 200
    assert keyed.ask("/metrics", headers=headers).status == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xff\xfe"],
)
@pytest.mark.parametrize("path", ["/metrics", "/info", "/v1/models", "/nosuch"])
def test_no_other_key_does(keyed, value, path):
    reply = keyed.ask(path, headers={"authorization": value} if value else {})
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json["error"]["code"] == "invalid_api_key"
    assert KEY not in reply.body.decode()


def test_health_and_the_page_need_no_key(keyed):
    assert keyed.ask("/health").status == 200
    assert keyed.ask("/").status == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys has no key; write one on a line"),
        ("# nothing\n", "keys has no key"),
        ("short\n", "a key has 16 characters or more"),
        ("a key with spaces in it\n", "a key has 16 characters or more, and no space"),
        ("schlüsselschlüssel\n", "and no space, all in ASCII"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_refused(tmp_path, text, message):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_keys(tmp_path / "keys")
    with pytest.raises(UsageError, match=r"--api-key-file .*nosuch: No such file"):
        read_keys(tmp_path / "nosuch")


def test_a_file_of_keys_that_others_can_read_is_warned_of(tmp_path, capfd):
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o644)
    assert len(read_keys(tmp_path / "keys")) == 1
    assert "can be read by others: chmod 600" in capfd.readouterr().err


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8080", "[::1]:9", "LOCALHOST:1", "127.0.0.1"]
)
def test_names_of_this_machine_are_allowed(served, host):
    assert served.ask("/health", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "169.254.169.254"]
)
def test_a_foreign_name_that_leads_here_is_refused(served, host):
    reply = served.ask("/health", headers={"host": host})
    assert reply.status == 403
    assert "is not this server's; --allow-host NAME allows it" in reply.body.decode()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", ""])
def test_pages_of_others_may_not_ask(served, origin):
    value = {"model": "model.fake", "input": "x"}
    reply = served.ask("/v1/embeddings", value, headers={"origin": origin})
    assert reply.status == 403
    assert "access-control-allow-origin" not in reply.headers
    reply = served.ask("/v1/embeddings", method="OPTIONS", headers={"origin": origin})
    assert reply.status == 403


def test_a_browser_may_ask_before_without_the_key(home):
    page = "https://app.example"
    server = Served(home, "--api-key-file", "keys.txt", "--cors", page)
    before = server.ask("/v1/embeddings", method="OPTIONS", headers={"origin": page})
    assert before.status == 204
    value = {"model": "model.fake", "input": "x"}
    headers = {"origin": page}
    refused = server.ask("/v1/embeddings", value, headers=headers)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == page  # so that it can be read
    headers["authorization"] = f"Bearer {KEY}"
    assert server.ask("/v1/embeddings", value, headers=headers).status == 200
    assert server.end() == 0


def test_its_own_page_may_ask(served):
    own = f"http://localhost:{served.port}"
    headers = {"origin": own, "host": f"localhost:{served.port}"}
    assert served.ask("/v1/search", {"query": "cat"}, headers=headers).status == 200


def test_a_page_that_is_allowed_may_ask(home):
    page = "https://app.example"
    server = Served(home, "--cors", page, "--allow-host", "Box.example")
    value = {"model": "model.fake", "input": "x"}
    asked = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"  # of openai-js
    headers = {"origin": page, "access-control-request-headers": asked}
    before = server.ask("/v1/embeddings", method="OPTIONS", headers=headers)
    assert before.status == 204
    assert before.headers["access-control-allow-headers"] == asked
    assert "POST" in before.headers["access-control-allow-methods"]
    reply = server.ask("/v1/embeddings", value, headers={"origin": page})
    assert "retry-after" in reply.headers["access-control-expose-headers"]
    headers["origin"] = "https://b.example"
    assert server.ask("/v1/embeddings", method="OPTIONS", headers=headers).status == 403
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, page)
    assert server.ask("/health", headers={"origin": "https://b.example"}).status == 403
    assert server.ask("/health", headers={"host": "box.example:443"}).status == 200
    assert server.end() == 0


def test_a_server_is_called_by_the_address_that_it_was_given():
    more = {"uds": None, "key_file": None, "hosts": ("box.example",), "origins": ()}
    access = _access("127.0.0.2", insecure=False, **more)
    for host in ("127.0.0.2:8080", "localhost", "box.example"):
        access.check_caller(_headers(host=host))
    for host in ("127.0.0.3:8080", "evil.example"):
        with pytest.raises(Exception, match="is not this server's"):
            access.check_caller(_headers(host=host))
    _access("Box.lan", insecure=True, **more).check_caller(_headers(host="box.lan:80"))


def test_an_insecure_server_takes_addresses_and_named_hosts_alone():
    access = Access(hosts=("localhost",), any_address=True)
    for host in ("10.0.0.7:80", "[fe80::1]:80", "localhost"):
        access.check_caller(_headers(host=host))
    for host in ("evil.example", "10.0.0.7.evil.example", ""):
        with pytest.raises(Exception, match="is not this server's"):
            access.check_caller(_headers(host=host))


@pytest.mark.parametrize("host", ["x/health?", "[", "[::1/health#", "localhost:80/health?"])
def test_no_host_makes_another_path_of_a_request(host):
    statuses = []

    async def secret(request):
        return Response(b"secret")

    async def send(message):
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b""}
    scope |= {"headers": [(b"host", host.encode())], "state": {}, "scheme": "http"}
    access = Access(hosts=None, key_digests=(b"0" * 32,))
    routes = {("GET", "/metrics"): secret, ("GET", "/health"): secret}
    guard = Guard(routes, access, Bodies(Limits()), Metrics(lambda: 0))
    asyncio.run(guard(scope, None, send))
    assert statuses[0] == 401


def _headers(**values):
    return Headers(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 can be reached from other machines: give --api-k"),
        (("--host", "::"), "--host :: can be reached from other machines"),
        (("--index", "docs.gemb"), "--index docs.gemb: write NAME=INDEX: docs=docs.gemb"),
        (("--index", "a=docs.gemb", "--index", "a=b"), "--index a is given twice"),
        (("--index", "a=docs"), "docs"),
        (("--cors", "*"), "--cors *: an origin is https://HOST[:PORT]"),
        (("--cors", "http://["), "--cors http://[: an origin is https://HOST[:PORT]"),
        (("--cors", "https://a.example/path"), "an origin is https://HOST[:PORT]"),
        (("--name", "a:b"), "--name a:b: a colon parts the model from the prompt"),
        (("--host", "no.such.host.invalid", "--insecure"), "--host no.such.host.invalid: "),
        (("--api-key-file", "nosuch"), "--api-key-file nosuch: No such file"),
        (("--uds", "docs/cat.md"), "--uds docs/cat.md: a file of this name is there"),
        (("--uds", "nosuch/socket"), "--uds nosuch/socket: No such file or directory"),
        (("--uds", "s" * 200), "AF_UNIX path too long"),
        (("--port", "70000"), "70000"),
    ],
)
def test_a_start_that_is_refused(home, words, message):
    assert message in error(home, "serve", *words)


def test_a_port_in_use_is_named(home, served):
    line = error(home, "serve", "--port", str(served.port))
    assert f"port {served.port} of 127.0.0.1 is in use; --port 0 takes a free one" in line


def test_of_two_that_start_at_once_one_has_the_port():
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use"):
            listening_socket("127.0.0.1", port).__enter__()


def test_of_two_that_start_at_once_one_has_the_unix_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("s.sock")
    with unix_socket(path), pytest.raises(UsageError, match=r"s\.sock is in use"):
        unix_socket(path).__enter__()
    assert not path.exists()
    with unix_socket(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"  # it is not removed


def test_a_unix_socket_is_its_owners_alone(home):
    path = home.folder / "s.sock"
    server = Served(home, "--uds", "s.sock")
    assert "serving model.fake at s.sock" in server.said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert "s.sock is in use; choose another path" in error(home, "serve", "--uds", "s.sock")
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert path.exists()  # it could not be removed
    again = Served(home, "--uds", "s.sock")
    assert again.end() == 0
    assert not path.exists()


def test_the_extra_is_named_where_it_is_not_installed(home):
    blocker = home.folder / "blocked"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'starlette' else "
        "find(name, package)\n"
    )
    before = home.environment["PYTHONPATH"]
    home.environment["PYTHONPATH"] = f"{blocker}{os.pathsep}{before}"
    try:
        line = error(home, "serve", code=4)
    finally:
        home.environment["PYTHONPATH"] = before
    assert "gemb serve needs the module 'starlette': pip install 'gemb[serve]'" in line
