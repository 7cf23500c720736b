"""Streams and packets on a path that loses frames, falls silent, takes no UDP and changes: all that was sent arrives.

client --- router === 200 Mbit/s, 25 ms each direction === exit, and the server beside the router (hosts.py)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.browser import FLAGS, NOT_INSTALLED, find
from tests.support.config_files import Settings
from tests.support.lab.hosts import CLIENT4, CLIENT6, EXIT4, SERVER4
from tests.support.lab.links import Role
from tests.support.lab.net import until
from tests.support.lab.server import digest
from tests.support.lab.stage import Stage

LINE: Final = ("--rate", "200e6", "--delay", "0.025", "--limit", "2500000")
LOSS: Final = "0.01"
PROXY: Final = "127.0.0.1:1080"
NAME: Final = "www.example.com"
OBJECTS: Final = 60
MIB: Final = 1 << 20
PLENTY: Final = 100.0
"""Seconds: of a host without BBR, one TCP connection gets 3 Mbit/s here."""
EACH_SECOND: Settings = {"rotation": {"interval": 1.0}}
ROTATIONS: Final = 5
FILES: Final = 20
CLIENTS: Final = 50


@contextmanager
def made(*, clients: tuple[str, ...] = ("client",), settings: Settings | None = None) -> Iterator[Stage]:
    with Stage(clients=clients, exit_settings=settings, line=LINE) as stage:
        stage.server.dns.answers[f"{NAME}.", "A"] = [SERVER4]
        yield stage


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with made() as stage:
        yield stage


@contextmanager
def client(stage: Stage, tun: bool, settings: Settings | None = None) -> Iterator[Role]:
    """A client in system-wide mode or only as a proxy; both listen on PROXY."""
    if tun:
        with stage.tunnel(settings=settings) as role:
            yield role
    else:
        role = stage.links.client(stage.client, settings=settings, tun=False)
        try:
            yield role
        finally:
            assert not role.stop(), role.log


@contextmanager
def lossy(stage: Stage) -> Iterator[None]:
    tell(stage, f"loss {LOSS}")
    try:
        yield
    finally:
        tell(stage, "loss 0")


def tell(stage: Stage, command: str) -> None:
    assert stage.hosts.line is not None
    stage.hosts.line.tell(command)


def curl(*options: str, tun: bool = False) -> list[str]:
    proxy = [] if tun else ["--proxy", f"socks5h://{PROXY}"]
    return ["curl", "-sS", "--fail", "--max-time", f"{PLENTY:g}", *proxy, *options]


@pytest.mark.parametrize("tun", [False, True], ids=["proxy", "tun"])
def test_a_browser_loads_a_page_over_loss(stage: Stage, tun: bool) -> None:
    browser = find()
    if browser is None:
        pytest.skip(NOT_INSTALLED)
    proxy = [] if tun else [f"--proxy-server=socks5://{PROXY}"]
    profile = stage.client.directory / f"browser-{tun}"
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *proxy, "--timeout=60000"]
    command += ["--virtual-time-budget=60000", "--dump-dom", f"http://{NAME}/page/{OBJECTS}"]
    stage.server.forget()
    with client(stage, tun), lossy(stage):
        environment = {"HOME": str(profile), "PATH": "/usr/bin:/bin"}
        page = stage.client.attempt(command, limit=PLENTY, env=environment)
        assert f"loaded {OBJECTS} of {OBJECTS}" in page.stdout, page.stdout + page.stderr[-2000:]
    assert stage.server.sources("http") == {EXIT4}


# --- what happens while something large comes -----------------------------------------------------------------------


def moved(stage: Stage) -> None:
    stage.hosts.move_client("192.168.77.50/24", "2a01:e0a:77::50/64")


def moved_back(stage: Stage) -> None:
    stage.hosts.move_client(f"{CLIENT4}/24", f"{CLIENT6}/64")


CHANGES: Final[tuple[Callable[[Stage], None], ...]] = (
    lambda stage: tell(stage, "blackout 1"),
    lambda stage: stage.hosts.block_udp(),
    moved,
    lambda stage: stage.hosts.unblock_udp(),
)


def through_changes(stage: Stage, command: list[str], progress: Callable[[], int], whole: int) -> None:
    """Runs a command inside the client; each change happens when its part of the bytes is there."""
    with (stage.client.directory / "said").open("w+") as said:
        process = stage.client.popen(command, stdout=said, stderr=said)
        for number, change in enumerate(CHANGES, 1):
            part = whole * number // (len(CHANGES) + 1)

            def there(part: int = part) -> bool:
                return process.poll() is not None or progress() >= part

            until(there, f"{part} bytes", PLENTY)
            change(stage)
        code = process.wait(PLENTY)
        said.seek(0)
        assert not code, said.read()
    moved_back(stage)


def size(*paths: Path) -> int:
    """Of all that are there still."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_download_through_changes(stage: Stage) -> None:
    whole, file = 200_000_000, stage.client.directory / "download"
    command = curl("-o", str(file), f"http://{SERVER4}/bytes/{whole}")
    with client(stage, False) as role:
        through_changes(stage, command, lambda: size(file), whole)
        role.says("the address is gone from which")
    got = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    assert got.stdout.split()[0] == digest(whole)


@pytest.fixture(scope="module")
def repository(stage: Stage) -> Path:
    """One of 20 MB that does not get smaller, on the server, at port 8081."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed; on Debian: apt-get install git")
    place = stage.hosts.server.directory / "repository"
    place.mkdir()
    for number in range(FILES):
        (place / str(number)).write_bytes(os.urandom(10**6))
    settings = ("user.name=lab", "user.email=lab@example.com", "core.compression=0", "pack.compression=0")
    git = ["git", *(word for setting in settings for word in ("-c", setting))]
    for line in ("init -q", "add .", "commit -qm all", "repack -adq", "update-server-info"):
        subprocess.run([*git, *line.split()], cwd=place, check=True)
    server = stage.hosts.server
    server.popen([sys.executable, "-m", "http.server", "8081", "--directory", str(place / ".git")])
    until(lambda: ":8081 " in server.run(["ss", "-Hltn"]), "the server of the repository listens")
    return place


@pytest.mark.parametrize("tun", [False, True], ids=["proxy", "tun"])
def test_git_clones_through_changes(stage: Stage, repository: Path, tun: bool) -> None:
    copy = stage.client.directory / f"copy-{tun}"
    proxy = [] if tun else ["-c", f"http.proxy=socks5h://{PROXY}"]
    command = ["git", *proxy, "clone", "-q", f"http://{SERVER4}:8081/", str(copy)]
    whole = size(*repository.glob(".git/objects/pack/*.pack"))
    with client(stage, tun):
        through_changes(stage, command, lambda: size(*copy.glob(".git/objects/pack/*")), whole)
    subprocess.run(["git", "-C", copy, "fsck", "--full"], capture_output=True, check=True)
    assert all((copy / str(n)).read_bytes() == (repository / str(n)).read_bytes() for n in range(FILES))


# --- keys and crowds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tun", [False, True], ids=["proxy", "tun"])
def test_keys_change_each_second_under_loss(namespaces: None, tun: bool) -> None:
    with made(settings=EACH_SECOND) as stage, client(stage, tun, EACH_SECOND), lossy(stage):
        file = stage.client.directory / "download"

        def rotations() -> int:
            session: dict[str, Any] | None = stage.links.status()["session"]
            return int(session["rotations"]) if session else 0

        until(lambda: rotations() >= 1, "the first rotation")
        before = rotations()
        while rotations() < before + ROTATIONS:
            stage.client.run(curl("-o", str(file), f"http://{SERVER4}/bytes/{MIB}", tun=tun), limit=PLENTY)
            sent = curl("--data-binary", f"@{file}", f"http://{SERVER4}/bytes", tun=tun)
            assert stage.client.run(sent, limit=PLENTY) == digest(MIB)


def test_fifty_clients_on_one_exit(namespaces: None) -> None:
    """All download at once, each through a proxy of its own."""
    ports = {f"client{number}": 10_800 + number for number in range(CLIENTS)}
    part = MIB // 4
    with made(clients=tuple(ports)) as stage, lossy(stage):
        settings = {name: {"listen": f"127.0.0.1:{port}"} for name, port in ports.items()}
        clients = stage.links.crowd(stage.client, settings)
        files = {name: stage.client.directory / name for name in ports}
        asked = [
            f'proxy = "socks5h://127.0.0.1:{port}"\nurl = "http://{SERVER4}/bytes/{part}"\noutput = "{files[name]}"\n'
            for name, port in ports.items()
        ]
        config = stage.client.directory / "curl.conf"
        config.write_text("fail\nnext\n".join(asked))
        stage.client.run(
            ["curl", "-sS", "--parallel", "--parallel-max", str(CLIENTS), "--config", str(config)],
            limit=PLENTY,
        )
        expected = digest(part)
        assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()} == {expected}
        assert len(stage.links.status("exit")["sessions"]) == CLIENTS
        assert not clients.stop(), clients.log
