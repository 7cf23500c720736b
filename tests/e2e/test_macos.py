"""The local proxy and its exit as processes that take this Linux for macOS (tests/support/macos/darwin.py): every
module can be imported, and whatever is still Linux's own is an error in the log of who uses it."""

from __future__ import annotations

import json
import pkgutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryprq_proxy
import tun
from cryprq_proxy.address import Destination
from tests.support.applications import UdpApplication, echoes, through
from tests.support.background import PATIENCE
from tests.support.logged import ROOT, environment_in
from tests.support.programs import Client, Exit, World, free_port, until
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho

STARTUP = ROOT / "tests" / "support" / "macos" / "startup"
OF_LINUX = ("tun.linux", "cryprq_proxy.base.rtnetlink")
"""What is for Linux alone; nothing else imports it there."""
IMPORT = """
import importlib, json, sys
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
json.dump(failed, sys.stdout)
"""
TRY = """
import select, socket, sys, time
found = {
    "platform": sys.platform,
    "names": [name for name in ("SO_MARK", "AF_NETLINK", "TCP_INFO", "SO_PEERCRED") if hasattr(socket, name)],
    "epoll": hasattr(select, "epoll"),
    "kqueue": hasattr(select, "kqueue"),
    "boottime": hasattr(time, "CLOCK_BOOTTIME"),
}
try:
    open("/proc/self/status")
except FileNotFoundError:
    found["proc"] = False
with socket.socket() as sock:
    try:
        sock.setsockopt(socket.SOL_SOCKET, 36, 1)
    except OSError as error:
        found["mark"] = error.strerror
try:
    import pyroute2
except ModuleNotFoundError:
    found["pyroute2"] = False
import json
json.dump(found, sys.stdout)
"""


def modules() -> list[str]:
    return [
        module.name
        for top in (cryprq_proxy, tun)
        for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}.")
        if not any(module.name == own or module.name.startswith(f"{own}.") for own in OF_LINUX)
        and not module.name.endswith("__main__")
    ]


def on_macos(world: World) -> World:
    world.environment |= {"PYTHONPATH": f"{STARTUP}:{ROOT}"}
    return world


def python(directory: Path, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment_in(directory, STARTUP),
        check=True,
    )


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The modules that cannot be imported, with the reason."""
    told: dict[str, str] = json.loads(
        python(tmp_path_factory.mktemp("modules"), IMPORT, json.dumps(modules())).stdout
    )
    return told


@pytest.mark.parametrize("module", modules())
def test_every_module_can_be_imported(module: str, failed: dict[str, str]) -> None:
    assert module not in failed, failed[module]


def test_such_a_process_has_nothing_of_linux(tmp_path: Path) -> None:
    """The test's own means: what they hide is missing, and what is used nonetheless is written down."""
    ended = python(tmp_path, TRY)
    assert json.loads(ended.stdout) == {
        "platform": "darwin",
        "names": [],
        "epoll": False,
        "kqueue": True,
        "boottime": False,
        "proc": False,
        "mark": "Protocol not available",
        "pyroute2": False,
    }
    assert "no socket option 36" in ended.stderr
    assert "pyroute2 is imported" in ended.stderr


@pytest.fixture(scope="module")
def pair(shared_world: World) -> tuple[Exit, Client]:
    on_macos(shared_world)
    exit = shared_world.exit()
    return exit, shared_world.client(exit, {"admin": f"127.0.0.1:{free_port()}", "carrier": "auto"})


def command(client: Client, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command of the program, which must end well and say nothing of an error."""
    directory = client.control.parent
    environment = environment_in(directory, STARTUP)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "cryprq_proxy",
            *arguments,
            "--config",
            str(directory / f"{client.name}.toml"),
        ],
        input=stdin,
        capture_output=True,
        timeout=2 * PATIENCE,
        env=environment,
        cwd=directory,
    )
    said = ended.stderr.decode()
    assert " error " not in said, said
    assert "Traceback" not in said, said
    return ended


def test_socks(client: Client, echo_target: TcpTarget) -> None:
    for host in ("127.0.0.1", "site.test"):
        with through(client.port, echo_target.port, host) as sock:
            echoes(sock)


def test_http(client: Client, http: HttpTarget) -> None:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{client.port}"})
    )
    with opener.open(f"http://site.test:{http.port}/bytes?size=1000000", timeout=PATIENCE) as answer:
        assert len(answer.read()) == 1_000_000


def test_udp(client: Client, udp_echo: UdpEcho) -> None:
    application = UdpApplication(client.port)
    try:
        for size in (0, 5, 1_400, 9_000):
            application.send(b"x" * size, udp_echo.port, "site.test")
            assert application.receive() == (Destination("127.0.0.1", udp_echo.port), b"x" * size)
    finally:
        application.close()


def test_datagrams_have_the_lane(client: Client) -> None:
    """UDP without a batch in one call, and with the numbers of macOS for its options."""
    until(lambda: client.status()["packets"]["lane"]["up"], "the lane is up")


def test_what_both_sides_say_of_themselves(exit: Exit, client: Client) -> None:
    assert client.up
    assert len(exit.sessions) == 1
    assert client.control.stat().st_mode & 0o777 == 0o600


def test_status(client: Client) -> None:
    ended = command(client, "status")
    assert ended.returncode == 0
    assert b"up" in ended.stdout


def test_dashboard_and_pac(client: Client) -> None:
    admin = client.status()["admin"]
    with urllib.request.urlopen(f"{admin.partition('#')[0]}proxy.pac", timeout=PATIENCE) as answer:
        served = answer.read()
    assert b"FindProxyForURL" in served
    assert command(client, "pac").stdout == served
    assert command(client, "dashboard", "--print").returncode in (0, 2)


@pytest.mark.parametrize("arguments", [("env",), ("explain", "site.test:80")])
def test_commands(client: Client, arguments: tuple[str, ...]) -> None:
    ended = command(client, *arguments)
    assert ended.returncode == 0, ended.stderr


def test_connect(client: Client, echo_target: TcpTarget) -> None:
    ended = command(client, "connect", "site.test", str(echo_target.port), stdin=b"hello")
    assert (ended.returncode, ended.stdout) == (0, b"hello")


def test_doctor_and_check(client: Client) -> None:
    """Whatever they find on a machine without a network: they look to the end."""
    for name in ("doctor", "check"):
        ended = command(client, name)
        assert ended.returncode in (0, 1), ended.stderr
        assert ended.stdout, ended.stderr


def test_an_application_that_is_gone_harms_nobody(client: Client, echo_target: TcpTarget) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", client.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with through(client.port, echo_target.port) as sock:
        echoes(sock)


@pytest.fixture
def lonely(world: World) -> Iterator[World]:
    yield on_macos(world)


def test_restart(lonely: World, echo_target: TcpTarget) -> None:
    """The link comes again to an exit that was away, and a socket that was left is replaced."""
    exit = lonely.exit()
    client = lonely.client(exit)
    client.kill()
    again = lonely.client(exit)
    with through(again.port, echo_target.port) as sock:
        echoes(sock)
