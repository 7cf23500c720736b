"""Applications of our own, as small as SOCKS allows: what real ones do not let a test do, these do."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from pathlib import Path

from cryprq_proxy.address import Destination, decode, encode
from tests.support.background import PATIENCE


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"the connection ended after {bytes(data)!r}"
        data += part
    return bytes(data)


def echoes(sock: socket.socket, blocks: int = 40) -> None:
    """So many blocks of 100,000 bytes go out and come back, after a word."""
    for block in (b"hello", *(os.urandom(100_000) for _ in range(blocks))):
        sock.sendall(block)
        assert read_exactly(sock, len(block)) == block


def read_all(sock: socket.socket) -> bytes:
    """Until the end, which must come."""
    data = bytearray()
    while part := sock.recv(65_536):
        data += part
    return bytes(data)


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), PATIENCE)


def request(sock: socket.socket, command: int, host: str, port: int) -> tuple[int, Destination]:
    """SOCKS5 without a password on `sock`: the reply's code, and its address."""
    sock.sendall(b"\x05\x01\x00")
    assert read_exactly(sock, 2) == b"\x05\x00"
    sock.sendall(bytes((5, command, 0)) + encode(Destination(host, port)))
    return read_reply(sock)


def read_reply(sock: socket.socket) -> tuple[int, Destination]:
    head = read_exactly(sock, 4)
    assert head[0] == 5
    address = read_exactly(sock, 6 if head[3] == 1 else 18)
    return head[1], decode(head[3:] + address)[0]


class Refused(Exception):
    """A SOCKS reply that says no; `code` is which."""

    def __init__(self, code: int) -> None:
        super().__init__(f"SOCKS reply {code}")
        self.code = code


def through(proxy: int, port: int, host: str = "127.0.0.1") -> socket.socket:
    """A connection to the target through SOCKS5. Raises Refused."""
    sock = connect(proxy)
    try:
        code, _ = request(sock, 1, host, port)
        if code:
            raise Refused(code)
    except BaseException:
        sock.close()
        raise
    return sock


class UdpApplication:
    """One SOCKS5 UDP association, with the application's socket. Raises Refused."""

    def __init__(self, proxy: int) -> None:
        self.control = connect(proxy)
        code, self.relay = request(self.control, 3, "0.0.0.0", 0)
        if code:
            self.control.close()
            raise Refused(code)
        assert ipaddress.ip_address(self.relay.host).is_loopback
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)

    def send(
        self, data: bytes, port: int, host: str = "127.0.0.1", sock: socket.socket | None = None
    ) -> None:
        (sock or self.sock).sendto(b"\0\0\0" + encode(Destination(host, port)) + data, self.relay)

    def receive(self) -> tuple[Destination, bytes]:
        data, address = self.sock.recvfrom(65_536)
        assert address == tuple(self.relay)
        assert data[:3] == b"\0\0\0"
        source, end = decode(data, 3)
        return source, data[end:]

    def close(self) -> None:
        self.control.close()
        self.sock.close()


class Curl:
    """curl with nothing of the user's own configuration; `run` returns exit code, output and what -w says."""

    def __init__(self, path: str, directory: Path) -> None:
        self._command = (path, "-q", "-sS", "--noproxy", "")
        self._directory = directory
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory)}

    def size(self, name: str) -> int:
        """Of a file that it has written, or writes."""
        path = self._directory / name
        return path.stat().st_size if path.exists() else 0

    def started(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A transfer under way. It writes what it gets at once."""
        return subprocess.Popen(
            [*self._command, "--no-buffer", *arguments],
            cwd=self._directory,
            env=self._environment,
            stderr=subprocess.DEVNULL,
        )

    def run(self, *arguments: str, timeout: float = 2 * PATIENCE) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self._command, *arguments],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def get(self, *arguments: str) -> bytes:
        """The body, of a transfer that succeeds."""
        done = self.run("--fail", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def fails(self, code: int, *arguments: str) -> str:
        """What it says when it ends with `code`."""
        done = self.run(*arguments)
        assert done.returncode == code, (done.returncode, done.stderr.decode(), done.stdout)
        return done.stderr.decode()
