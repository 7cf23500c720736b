"""The exit behind a real Caddy that ends TLS, set up as configs/Caddyfile says, and a client that comes by wss."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.applications import echoes, through
from tests.support.programs import Exit, World, free_port
from tests.support.real_server import RealServer, filled
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


class Caddy(RealServer):
    """Caddy with the site of configs/, for the exit that listens on `behind`."""

    def __init__(self, directory: Path, behind: int) -> None:
        directory = directory / "caddy"
        directory.mkdir()
        self.ca, certificate, key = make_certificates(directory)
        port = free_port()
        site = filled(
            (ROOT / "configs" / "Caddyfile").read_text(),
            (
                "\nexit.example {\n",
                f"\nhttps://:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}\n",
            ),
            ("reverse_proxy 127.0.0.1:8443 {", f"reverse_proxy 127.0.0.1:{behind} {{"),
        )
        file = directory / "Caddyfile"
        file.write_text(OPTIONS + site)
        super().__init__(
            ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)],
            port,
            directory / "log",
            dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(directory)),
        )


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
        echoes(sock)
        assert client.status()["carrier"]["address"] == f"wss://127.0.0.1:{caddy.port}{PATH}"
    assert len(exit.sessions) == 1
