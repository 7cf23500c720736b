"""`cryprq-proxy check`: what it says of the answer, and its exit code. The proxy's place is taken by a listener."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.commands.check import check
from cryprq_proxy.commands.connect.running_proxy import Proxy as Place
from cryprq_proxy.commands.running import Found
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.fronts.own_page import Checked
from cryprq_proxy.status import ClientStatus, ExitAddress, KnownExit
from tests.support.background import PATIENCE

PEER = PeerId(bytes(range(32)))
LINES = [("Exit", "home (203.0.113.7:4433)"), ("IPv6", "yes\x1b[31m")]
ASKS = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"


def page(good: bool) -> bytes:
    body = msgspec.json.encode(Checked(good=good, lines=LINES))
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Proxy:
    """Gives each connection one of the answers; `asked` has the requests."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE)
        self.port = self._server.getsockname()[1]
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(answers,))
        self._thread.start()

    def _serve(self, answers: tuple[bytes, ...]) -> None:
        for answer in answers:
            sock, _ = self._server.accept()
            with sock, contextlib.suppress(ConnectionError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += sock.recv(4096)
                self.asked.append(request)
                sock.sendall(answer)

    def close(self) -> None:
        self._thread.join()
        self._server.close()


type Start = Callable[..., tuple[Proxy, list[str]]]


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Start]:
    """A proxy with these answers, and the options of the command that asks it."""
    proxies: list[Proxy] = []

    def start(*answers: bytes) -> tuple[Proxy, list[str]]:
        proxies.append(Proxy(answers))
        return proxies[-1], configured(tmp_path, proxies[-1].port)

    yield start
    for proxy in proxies:
        proxy.close()


def configured(directory: Path, port: int) -> list[str]:
    config = directory / "client.toml"
    config.write_text(
        f'peer = "cryprq://{PEER}@exit.example"\nlisten = "127.0.0.1:{port}"\nuser = "me:secret"\n'
    )
    config.chmod(0o600)
    return ["--config", str(config)]


@pytest.mark.parametrize("good", [True, False])
def test_the_exit_code_says_whether_pages_load(good: bool, proxied: Start) -> None:
    proxy, given = proxied(page(good))
    done = CliRunner().invoke(check, given)
    assert done.exit_code == (0 if good else 1), done.exception
    assert "  Exit  home (203.0.113.7:4433)\n" in done.output and "\x1b" not in done.output
    assert proxy.asked[0].startswith(b"GET http://cryprq.test/ HTTP/1.1\r\n")
    assert b"Authorization" not in proxy.asked[0]


def test_the_password_is_shown_to_who_asks_for_it(proxied: Start) -> None:
    proxy, given = proxied(ASKS, page(True))
    assert CliRunner().invoke(check, given).exit_code == 0
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in proxy.asked[1]


def failure(given: list[str]) -> Exception:
    done = CliRunner().invoke(check, given)
    assert isinstance(done.exception, CryprqError) and done.output == ""
    return done.exception


def test_what_is_said_where_it_cannot_be_asked(tmp_path: Path, proxied: Start) -> None:
    refusal = failure(proxied(ASKS, ASKS)[1])
    assert isinstance(refusal, ConfigError) and "does not accept this user and password" in str(refusal)
    assert "is not this program" in str(failure(proxied(b"SSH-2.0-x\r\n")[1]))
    assert "is not this program" in str(failure(proxied(b"HTTP/1.1 200 OK\r\n\r\nhello")[1]))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nobody = str(failure(configured(tmp_path, port)))
    assert (
        nobody
        == f"no proxy answers at 127.0.0.1:{port} (connection refused): start the client with: cryprq-proxy"
    )


def test_a_link_that_has_failed_is_not_waited_for(
    tmp_path: Path, proxied: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said of names. One that was not tried yet is waited for, as after a start."""
    status = ClientStatus(
        link="connecting",
        last_error="connection refused",
        exit=ExitAddress(address="203.0.113.7:4433"),
        exits=(KnownExit(name="home", active=True),),
    )
    proxy, given = proxied(page(True))
    found = Found("client", tmp_path / "client.toml", tmp_path / "c.sock")
    monkeypatch.setattr("cryprq_proxy.commands.running.find", lambda role, config: found)
    monkeypatch.setattr("cryprq_proxy.process.control.query_status", lambda socket: status)
    place = Place(Destination("127.0.0.1", proxy.port), None, None)
    monkeypatch.setattr(Place, "find", lambda *_: place)
    done = CliRunner().invoke(check, given)
    assert done.exit_code == 1 and not proxy.asked
    assert "203.0.113.7:4433" in done.output and "there is no link: connection refused" in done.output
    assert "Names           unknown: there is no link\n" in done.output
    status = structs.replace(status, last_error=None)
    assert CliRunner().invoke(check, given).exit_code == 0 and len(proxy.asked) == 1


def test_a_browser_is_let_in_first(proxied: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def query(path: Path, command: str, timeout: float, *, argument: str = "") -> dict[str, object]:
        asked.append(command)
        if len(asked) > 1:
            raise CryprqError("it does not run with --tun")
        return {"open": 300}

    _, given = proxied(page(False))
    monkeypatch.setattr("cryprq_proxy.process.control.query", query)
    done = CliRunner().invoke(check, ["--browser", *given])
    assert done.output.startswith("http://cryprq.test/ can be opened in a browser for 300 s\nwhat asks ")
    assert done.exit_code == 1 and asked[0] == "page"
    assert "does not run with --tun" in str(failure(["--browser", *given]))
