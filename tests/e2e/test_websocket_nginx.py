"""The exit behind a real nginx that ends TLS, set up as configs/nginx.conf says, and clients that come by wss."""

from __future__ import annotations

import os
import re
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.applications import connect, echoes, read_exactly, through
from tests.support.programs import Exit, World, free_port
from tests.support.real_server import RealServer, filled
from tests.support.targets import TcpTarget
from tests.support.web_links import make_certificates

ROOT = Path(__file__).resolve().parents[2]
PATH = "/cryprq"

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None, reason="nginx is not installed; on Debian: apt-get install nginx-light"
)

FRAME = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
{user}
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {directory}/t1;
    proxy_temp_path {directory}/t2;
    fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4;
    scgi_temp_path {directory}/t5;
    {fragment}
}}
"""


class Nginx(RealServer):
    """nginx with the fragment of configs/, for the exit that listens on `behind`. A stop ends it at once, with all
    connections."""

    def __init__(self, directory: Path, behind: int) -> None:
        directory = directory / "nginx"
        directory.mkdir()
        self.ca, certificate, key = make_certificates(directory)
        port = free_port()
        fragment = filled(
            (ROOT / "configs" / "nginx.conf").read_text(),
            ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
            ("server_name exit.example;", "server_name localhost;"),
            ("/etc/ssl/exit.example/fullchain.pem", str(certificate)),
            ("/etc/ssl/exit.example/privkey.pem", str(key)),
            ("127.0.0.1:8443;\n\n", f"127.0.0.1:{behind};\n\n"),
        )
        file = directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        file.write_text(FRAME.format(directory=directory, fragment=fragment, user=user))
        super().__init__(["nginx", "-p", str(directory), "-c", str(file)], port, directory / "log")

    def peer(self, exit: Exit, path: str = PATH) -> str:
        return f"cryprq+wss://{exit.peer_id}@127.0.0.1:{self.port}{path}"


@pytest.fixture
def web_port() -> int:
    return free_port()


@pytest.fixture
def exit(world: World, web_port: int) -> Exit:
    return world.exit({"websocket": {"listen": f"127.0.0.1:{web_port}", "path": PATH, "forwarded": True}})


@pytest.fixture
def nginx(tmp_path: Path, web_port: int) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path, web_port)
    yield nginx
    nginx.stop()


def test_a_link_through_nginx(world: World, exit: Exit, nginx: Nginx, echo_target: TcpTarget) -> None:
    client = world.client(None, {"peer": nginx.peer(exit), "ca": str(nginx.ca)})
    with through(client.port, echo_target.port) as sock:
        echoes(sock)
        carrier = client.status()["carrier"]
        assert (carrier["kind"], carrier["why"]) == ("wss", "the only one given")
        assert carrier["address"] == f"wss://127.0.0.1:{nginx.port}{PATH}"
    assert len(exit.sessions) == 1


def test_it_goes_on_by_tcp_when_nginx_ends(
    world: World, exit: Exit, nginx: Nginx, echo_target: TcpTarget
) -> None:
    """The same stream, in the same session; and by the same way back when TCP is gone."""
    peers = [nginx.peer(exit), f"cryprq://{exit.peer_id}@127.0.0.1:{exit.port}"]
    client = world.client(None, {"peer": peers, "ca": str(nginx.ca)})
    assert client.status()["carrier"]["kind"] == "wss"
    with through(client.port, echo_target.port) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        nginx.stop()
        sock.sendall(b"again")
        assert read_exactly(sock, 5) == b"again"
    assert client.status()["carrier"]["kind"] == "tcp"
    assert len(exit.sessions) == 1
    nginx.start()


def test_a_wrong_path(world: World, exit: Exit, nginx: Nginx) -> None:
    client = world.client(None, {"peer": nginx.peer(exit, "/elsewhere"), "ca": str(nginx.ca)}, wait=False)
    client.says(r"no link to .*has nothing at this path \(404\)")


def test_a_certificate_that_nobody_vouches_for(world: World, exit: Exit, nginx: Nginx) -> None:
    client = world.client(None, {"peer": nginx.peer(exit)}, wait=False)
    client.says("no link to .*shows an invalid certificate")


def test_the_exit_is_down_behind_nginx(world: World, exit: Exit, nginx: Nginx) -> None:
    assert exit.stop() == 0
    client = world.client(None, {"peer": nginx.peer(exit), "ca": str(nginx.ca)}, wait=False)
    client.says(r"no link to .*is a reverse proxy that does not reach the exit behind it \(502\)")


def test_a_page_from_another_origin(exit: Exit, nginx: Nginx) -> None:
    """nginx passes on what a browser says of itself, and the exit turns it away."""
    context = ssl.create_default_context(cafile=nginx.ca)
    with connect(nginx.port) as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(
            f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Origin: https://page.example\r\n\r\n".encode()
        )
        assert re.match(rb"HTTP/1.1 404 ", read_exactly(sock, 13))
