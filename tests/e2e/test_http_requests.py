"""Requests as programs send them that an HTTP proxy must not take for what they look like."""

from __future__ import annotations

import base64
import socket

import pytest

from tests.support.applications import Curl, connect, read_all, read_exactly
from tests.support.background import PATIENCE
from tests.support.programs import Client
from tests.support.targets import HttpTarget


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    return head


@pytest.fixture
def origin() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(PATIENCE)
    return server


def test_user_and_password_in_a_url(client: Client, origin: socket.socket) -> None:
    port = origin.getsockname()[1]
    with origin, connect(client.port) as sock:
        sock.sendall(b"GET http://al%%69ce:p%%40ss@127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
        server, _ = origin.accept()
        with server:
            server.settimeout(PATIENCE)
            head = read_head(server)
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % port in head
    assert b"\r\nAuthorization: Basic %b\r\n" % base64.b64encode(b"alice:p@ss") in head


def test_bytes_beyond_ascii_in_a_url(client: Client, curl: Curl, http: HttpTarget) -> None:
    """curl sends them as they were typed."""
    url = f"http://127.0.0.1:{http.port}/hello?grüße"
    assert curl.get("-x", f"http://127.0.0.1:{client.port}", url) == b"hello\n"
    assert http.seen[-1].startswith("GET /hello?gr%C3%BC%C3%9Fe ")


def test_a_final_answer_to_an_expectation_ends_the_connection(client: Client, origin: socket.socket) -> None:
    """The client may send its body now, or another request: what comes is neither."""
    port = origin.getsockname()[1]
    with origin, connect(client.port) as sock:
        head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n" % port
        sock.sendall(head + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        server, _ = origin.accept()
        with server:
            server.settimeout(PATIENCE)
            assert b"Expect: 100-continue" in read_head(server)
            server.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
            answer = read_head(sock)
            assert answer.startswith(b"HTTP/1.1 417 ") and b"\r\nConnection: close\r\n" in answer
            sock.sendall(head + b"Content-Length: 0\r\n\r\n")
            assert read_all(sock) == b""
            with pytest.raises(ConnectionResetError):
                assert not server.recv(1_000), "a request was sent as a body"


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 127.0.0.1 HTTP/1.1",
        b"CONNECT 127.0.0.1:0 HTTP/1.1",
        b"CONNECT u:p@127.0.0.1:443 HTTP/1.1",
        b"CONNECT http://127.0.0.1/ HTTP/1.1",
        b"CONNECT 127.0.0.1:443:443 HTTP/1.1",
        b"CONNECT no-such-host.invalid:443 HTTP/1.1",
    ],
)
def test_what_follows_a_refused_connect_is_no_request(line: bytes, client: Client, http: HttpTarget) -> None:
    seen = len(http.seen)
    with connect(client.port) as sock:
        sock.sendall(line + b"\r\nHost: x\r\n\r\n")
        sock.sendall(b"GET http://127.0.0.1:%d/hello HTTP/1.1\r\nHost: x\r\n\r\n" % http.port)
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answers
    assert len(http.seen) == seen
