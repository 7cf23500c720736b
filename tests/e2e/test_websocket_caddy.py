"""The exit behind a real Caddy that ends TLS, set up as configs/Caddyfile says, and a client that comes by wss."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.applications import read_exactly, through
from tests.support.programs import Exit, World, free_port, until
from tests.support.targets import TcpTarget
from tests.support.web_links import make_certificates

ROOT = Path(__file__).resolve().parents[2]
PATH = "/cryprq"

pytestmark = pytest.mark.skipif(
    shutil.which("caddy") is None, reason="caddy is not installed; on Debian: apt-get install caddy"
)

OPTIONS = """{
	admin off
	auto_https off
	default_sni localhost
}

"""


class Caddy:
    """Caddy with the site of configs/, for the exit that listens on `behind`."""

    def __init__(self, directory: Path, behind: int) -> None:
        directory = directory / "caddy"
        directory.mkdir()
        self.ca, certificate, key = make_certificates(directory)
        self.port = free_port()
        site = (ROOT / "configs" / "Caddyfile").read_text()
        for old, new in (
            (
                "\nexit.example {\n",
                f"\nhttps://:{self.port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}\n",
            ),
            ("reverse_proxy 127.0.0.1:8443 {", f"reverse_proxy 127.0.0.1:{behind} {{"),
        ):
            assert site.count(old) == 1, old
            site = site.replace(old, new)
        file = directory / "Caddyfile"
        file.write_text(OPTIONS + site)
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)],
                env=os.environ
                | {
                    "HOME": str(directory),
                    "XDG_DATA_HOME": str(directory),
                    "XDG_CONFIG_HOME": str(directory),
                },
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=log,
            )
        until(self._answers, "caddy is ready")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def web_port() -> int:
    return free_port()


@pytest.fixture
def exit(world: World, web_port: int) -> Exit:
    return world.exit({"websocket": {"listen": f"127.0.0.1:{web_port}", "path": PATH, "forwarded": True}})


@pytest.fixture
def caddy(tmp_path: Path, web_port: int) -> Iterator[Caddy]:
    caddy = Caddy(tmp_path, web_port)
    yield caddy
    caddy.stop()


def test_a_link_through_caddy(world: World, exit: Exit, caddy: Caddy, echo_target: TcpTarget) -> None:
    peer = f"cryprq+wss://{exit.peer_id}@127.0.0.1:{caddy.port}{PATH}"
    client = world.client(None, {"peer": peer, "ca": str(caddy.ca)})
    with through(client.port, echo_target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        for _ in range(40):
            block = os.urandom(100_000)
            sock.sendall(block)
            assert read_exactly(sock, len(block)) == block
        assert client.status()["carrier"]["address"] == f"wss://127.0.0.1:{caddy.port}{PATH}"
    assert len(exit.sessions) == 1
