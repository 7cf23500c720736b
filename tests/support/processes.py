"""The program as its user meets it: processes, their exit codes and the lines that they write."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tests.support.background import PATIENCE
from tests.support.logged import ROOT, Lines


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cryprq_proxy", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a short command to its end."""
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


class Program:
    """`cryprq-proxy` with these arguments, running. Killed at the end if the test did not end it."""

    def __init__(self, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            command(*arguments),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.out = Lines(self._popen.stdout, arguments[0])
        self.log = Lines(self._popen.stderr, arguments[0])

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended and all its lines are there."""
        code = self._popen.wait(PATIENCE)
        self.out.join()
        self.log.join()
        return code

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self.wait()
        assert not any("Traceback" in line for line in self.log.lines), "\n".join(self.log.lines)


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def echo_server() -> Iterator[int]:
    """A target that sends everything back; its port on 127.0.0.1."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def socks_connect(proxy: int, target: int) -> tuple[socket.socket, int]:
    """A SOCKS5 CONNECT to 127.0.0.1:`target`: the connection and the reply code (RFC 1928 section 6)."""
    sock = socket.create_connection(("127.0.0.1", proxy), PATIENCE)
    try:
        sock.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2))
        assert receive(sock, 2) == b"\x05\x00"
        return sock, receive(sock, 10)[1]
    except BaseException:
        sock.close()
        raise


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"closed after {data!r}"
        data += piece
    return data
