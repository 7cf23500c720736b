"""curl in all its ways of using a proxy, and what it is told when something fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.support.applications import Curl
from tests.support.background import Background
from tests.support.programs import Client, Exit, World, free_port
from tests.support.targets import BLOCK, MIB, HttpTarget, digest

USER = "alice:se:cret ü"

WAYS = {
    "socks5-hostname": ("--socks5-hostname", "127.0.0.1:{port}"),
    "socks5": ("--socks5", "127.0.0.1:{port}"),
    "socks4": ("--socks4", "127.0.0.1:{port}"),
    "socks4a": ("--socks4a", "127.0.0.1:{port}"),
    "http": ("-x", "http://127.0.0.1:{port}"),
    "connect": ("-x", "http://127.0.0.1:{port}", "--proxytunnel"),
}
SENDS_NAMES = ("socks5-hostname", "socks4a", "http", "connect")


def way(name: str, client: Client) -> list[str]:
    return [argument.format(port=client.port) for argument in WAYS[name]]


@pytest.fixture(scope="module")
def locked(shared_world: World, pair: tuple[Exit, Client]) -> Client:
    """A client that asks for user and password."""
    return shared_world.client(pair[0], {"user": USER})


@pytest.fixture(scope="module")
def strict(shared_world: World) -> Client:
    """The client of an exit that allows no private targets."""
    exit = shared_world.exit(private=False, identity="strict-exit")
    return shared_world.client(exit)


@pytest.mark.parametrize("name", WAYS)
def test_every_way(name: str, curl: Curl, client: Client, http: HttpTarget) -> None:
    assert curl.get(*way(name, client), f"http://127.0.0.1:{http.port}/hello") == b"hello\n"


@pytest.mark.parametrize("name", SENDS_NAMES)
def test_names_go_to_the_exit(name: str, curl: Curl, client: Client, http: HttpTarget) -> None:
    """Only the exit knows this name, and a client that resolves one says so in its log."""
    assert curl.get(*way(name, client), f"http://site.test:{http.port}/hello") == b"hello\n"
    assert http.seen[-1] == f"GET /hello site.test:{http.port}"


@pytest.mark.parametrize("name", ["socks5-hostname", "http"])
def test_ipv6_literals(name: str, curl: Curl, client: Client, background: Background, ipv6: None) -> None:
    target = HttpTarget(background, "::1")
    try:
        for host in ("[::1]", "six.test"):
            assert curl.get("-g", *way(name, client), f"http://{host}:{target.port}/hello") == b"hello\n"
    finally:
        target.close()


@pytest.mark.parametrize("name", ["socks5-hostname", "http", "connect"])
def test_several_requests_on_one_connection(name: str, curl: Curl, client: Client, http: HttpTarget) -> None:
    url = f"http://site.test:{http.port}/hello"
    done = curl.run("--fail", "-v", *way(name, client), url, url, url)
    assert (done.returncode, done.stdout) == (0, b"hello\n" * 3)
    assert b"Re-using existing connection" in done.stderr


@pytest.mark.parametrize("name", ["socks5-hostname", "http", "connect"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_upload(
    name: str, chunked: bool, curl: Curl, client: Client, http: HttpTarget, tmp_path: Path
) -> None:
    size = 5 * MIB + 3
    data = (BLOCK * 6)[:size]
    (tmp_path / "data").write_bytes(data)
    header = ["-H", "Transfer-Encoding: chunked"] if chunked else []
    answer = curl.get(*way(name, client), "-T", "data", *header, f"http://127.0.0.1:{http.port}/upload")
    assert json.loads(answer) == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": size,
        "chunked": chunked,
    }


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_methods(method: str, curl: Curl, client: Client, http: HttpTarget) -> None:
    answer = curl.get(
        *way("http", client), "-X", method, "-d", "body", f"http://127.0.0.1:{http.port}/upload"
    )
    assert json.loads(answer)["size"] == 4
    assert http.seen[-1].startswith(f"{method} /upload ")


def test_expect_100_continue(curl: Curl, client: Client, http: HttpTarget, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(BLOCK)
    done = curl.run(
        "-v", *way("http", client), "-T", "data", "-H", "Expect: 100-continue", "--expect100-timeout", "30",
        f"http://127.0.0.1:{http.port}/upload",
    )  # fmt: skip
    assert done.returncode == 0
    assert b"100 Continue" in done.stderr
    assert json.loads(done.stdout)["size"] == len(BLOCK)


@pytest.mark.parametrize("name", ["socks5-hostname", "http", "connect"])
def test_big_download(name: str, curl: Curl, client: Client, http: HttpTarget, tmp_path: Path) -> None:
    size = 200 * MIB + 1
    curl.get(*way(name, client), "-o", "out", f"http://127.0.0.1:{http.port}/bytes?size={size}")
    with open(tmp_path / "out", "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest(size)


# --- user and password ---


@pytest.mark.parametrize("name", ["socks5-hostname", "http", "connect"])
def test_right_password(name: str, curl: Curl, locked: Client, http: HttpTarget) -> None:
    url = f"http://127.0.0.1:{http.port}/hello"
    assert curl.get(*way(name, locked), "--proxy-user", USER, url) == b"hello\n"


@pytest.mark.parametrize("user", ["alice:wrong", "bob:se:cret ü", None])
def test_wrong_password(user: str | None, curl: Curl, locked: Client, http: HttpTarget) -> None:
    url = f"http://127.0.0.1:{http.port}/hello"
    given = [] if user is None else ["--proxy-user", user]
    seen = len(http.seen)
    curl.fails(97, *way("socks5-hostname", locked), *given, url)
    done = curl.run(*way("http", locked), *given, "-w", "%{http_code}", url)
    assert done.stdout.endswith(b"407")
    assert "407" in curl.fails(56, *way("connect", locked), *given, url)
    curl.fails(97, *way("socks4a", locked), url)
    assert len(http.seen) == seen


# --- failures ---


def page(curl: Curl, *arguments: str) -> tuple[int, str]:
    """Status and body of an HTTP answer."""
    done = curl.run("-w", "\n%{http_code}", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    body, _, code = done.stdout.decode().rpartition("\n")
    return int(code), body


def test_refused_port(curl: Curl, client: Client) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    assert "(5)" in curl.fails(97, *way("socks5-hostname", client), url)
    assert "91" in curl.fails(97, *way("socks4a", client), url)
    assert "502" in curl.fails(56, *way("connect", client), url)
    status, text = page(curl, *way("http", client), url)
    assert status == 502
    assert "refused" in text


def test_unknown_name(curl: Curl, client: Client) -> None:
    url = "http://no-such-host.invalid/"
    assert "(4)" in curl.fails(97, *way("socks5-hostname", client), url)
    assert "502" in curl.fails(56, *way("connect", client), url)
    status, text = page(curl, *way("http", client), url)
    assert status == 502
    assert "no-such-host.invalid" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "site.test", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"])
def test_forbidden_target(host: str, curl: Curl, strict: Client, http: HttpTarget) -> None:
    """The name resolves to a loopback address: what counts is where it leads."""
    url = f"http://{host}:{http.port}/hello"
    seen = len(http.seen)
    assert "(2)" in curl.fails(97, "-g", *way("socks5-hostname", strict), url)
    assert "403" in curl.fails(56, "-g", *way("connect", strict), url)
    assert page(curl, "-g", *way("http", strict), url)[0] == 403
    assert len(http.seen) == seen
