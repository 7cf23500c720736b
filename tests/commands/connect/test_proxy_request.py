"""What the proxy is asked for, and what becomes of its answers. Its place is taken by a listener that says what a test
wants."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.commands.connect.proxy_request import connected, parse_target
from cryprq_proxy.commands.connect.pump import OutputClosed, Streams
from cryprq_proxy.commands.connect.running_proxy import Proxy
from cryprq_proxy.commands.running import Found, Listens
from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.background import PATIENCE

TARGET = Destination("site.test", 22)
OWN = b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: cryprq-proxy; error=x\r\nConnection: close\r\n\r\n"


class Listener:
    """Answers one connection after the other with `answers`, and closes each; `asked` has the requests."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE)
        self.address = Destination(*self._server.getsockname())
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(answers,))
        self._thread.start()

    def _serve(self, answers: Sequence[bytes]) -> None:
        for answer in answers:
            sock, _ = self._server.accept()
            with sock:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += sock.recv(4096)
                self.asked.append(request)
                with contextlib.suppress(ConnectionError):
                    for byte in answer[:200]:
                        sock.sendall(bytes([byte]))
                    sock.sendall(answer[200:])

    def close(self) -> None:
        self._thread.join()
        self._server.close()


@pytest.fixture
def streams() -> Iterator[Streams]:
    reader, writer = os.pipe()
    yield Streams(0, writer)
    os.close(reader)
    os.close(writer)


def ask(streams: Streams, *answers: bytes, user_file: Path | None = None) -> tuple[bytes, list[bytes]]:
    """What came behind the answer, and the requests."""
    listener = Listener(answers)
    try:
        sock, first = connected(Proxy(listener.address, user_file, None), TARGET, streams)
        sock.close()
        return first, listener.asked
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("host", "port", "target"),
    [
        ("site.test", "22", "site.test:22"),
        ("SITE.test.", "022", "site.test:22"),
        ("192.0.2.1", "65535", "192.0.2.1:65535"),
        ("2001:db8::1", "22", "[2001:db8::1]:22"),
        ("[2001:db8::1]", "22", "[2001:db8::1]:22"),
        ("bücher.example", "22", "xn--bcher-kva.example:22"),
    ],
)
def test_targets(host: str, port: str, target: str) -> None:
    assert str(parse_target(host, port)) == target


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("site.test", "0"),
        ("site.test", "ssh"),
        ("site.test", "65536"),
        ("site.test:22", "22"),
        ("", "22"),
        ("a b", "22"),
        ("x\r\nHost: y", "22"),
        ("fe80::1%eth0", "22"),
    ],
)
def test_no_targets(host: str, port: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(host, port)


def test_what_the_target_says_first_is_kept(streams: Streams) -> None:
    first, asked = ask(streams, b"HTTP/1.1 200 OK\r\n\r\n")
    assert (first, asked) == (b"", [b"CONNECT site.test:22 HTTP/1.1\r\nHost: site.test:22\r\n\r\n"])


def test_a_banner_that_comes_with_the_answer(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *_: _Tcp(ours))
    theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n\r\n")
    sock, first = connected(Proxy(Destination("127.0.0.1", 1080), None, None), TARGET, streams)
    assert first == b"SSH-2.0-x\r\n\r\n"
    sock.close()
    theirs.close()


class _Tcp(socket.socket):
    """A socket pair's end that takes the options of TCP."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())

    def setsockopt(self, *_: object) -> None:
        pass


def test_a_refusal_is_told_in_the_proxy_s_words(streams: Streams) -> None:
    body = "502 Bad Gateway\n\nThe target refused the connection. Check the port. (Target: site.test:22)\n"
    with pytest.raises(
        CryprqError, match=r"^site\.test:22: the target refused the connection\. Check the port$"
    ):
        ask(streams, OWN + body.encode())


def test_another_proxy_s_refusal_has_only_its_status(streams: Streams) -> None:
    with pytest.raises(CryprqError, match=r"none of this program, answers with status 403$"):
        ask(streams, b"HTTP/1.1 403 No\r\n\r\n<html>")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "it ended the connection"),
        (b"SSH-2.0-x\r\n\r\n", "it is no HTTP proxy"),
        (b"HTTP/1.1 OK\r\n\r\n", "it is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 17_000, "its answer has no end"),
    ],
)
def test_what_is_no_answer(answer: bytes, why: str, streams: Streams) -> None:
    with pytest.raises(
        CryprqError, match=rf"^no proxy answers at 127\.0\.0\.1:\d+ \({why}\): start the client"
    ):
        ask(streams, answer)


def test_nobody_listens(streams: Streams) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Destination(*server.getsockname())
    with pytest.raises(CryprqError, match=r"\(connection refused\)"):
        connected(Proxy(address, None, None), TARGET, streams)


NO_LOGIN = b"HTTP/1.1 407 Login\r\n\r\n"


def test_a_proxy_that_asks_is_given_the_login(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "user"
    file.write_text("alice:se:cret\n")
    file.chmod(0o600)
    _, asked = ask(streams, NO_LOGIN, b"HTTP/1.1 200 OK\r\n\r\n", user_file=file)
    assert b"Authorization" not in asked[0]
    assert b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(b"alice:se:cret") in asked[1]


def test_a_wrong_login(streams: Streams, tmp_path: Path) -> None:
    file = tmp_path / "user"
    file.write_text("alice:secret")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"does not accept this user and password$"):
        ask(streams, NO_LOGIN, NO_LOGIN, user_file=file)


def test_no_login_to_be_found(streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"name the file that has them with --user-file$"):
        ask(streams, NO_LOGIN)


def test_a_reader_that_goes_while_the_proxy_works() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OutputClosed):
        connected(Proxy(Destination(*server.getsockname()), None, None), TARGET, Streams(0, writer))
    os.close(writer)


# --- which proxy ---


def found(told: str | None = None, config: Path | None = None) -> str:
    return str(Proxy.find(told, None, config).address)


def test_the_one_that_is_told() -> None:
    assert found("2080") == "127.0.0.1:2080"
    assert found("[::]:2080") == "[::1]:2080"
    with pytest.raises(ConfigError, match=r"^--proxy: "):
        found("nowhere")


def test_the_running_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "cryprq_proxy.commands.connect.running_proxy"
    monkeypatch.setattr(f"{module}.find", lambda *_: Found("client", Path("x"), Path("y")))
    monkeypatch.setattr(f"{module}.listens", lambda _: Listens(Destination("0.0.0.0", 3080), None))
    assert found() == "127.0.0.1:3080"


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cryprq_proxy.commands.running.control_sockets", list)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.usefixtures("nothing_runs")
def test_the_configured_one(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'peer = "cryprq://{"a" * 52}@exit.example"\nlisten = 4080\n')
    assert found(config=file) == "127.0.0.1:4080"
    file.write_text("listen = true\n")
    with pytest.raises(ConfigError, match=r"listen: expected"):
        found(config=file)


@pytest.mark.usefixtures("nothing_runs")
def test_the_usual_one() -> None:
    assert found() == "127.0.0.1:1080"
