"""The carrier is cut, stalled or damaged in the middle of transfers, which finish all the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cryprq_proxy.config.keys import load_identity
from cryprq_proxy.crypto.primitives import select_provider
from tests.support.applications import Curl, read_exactly, through
from tests.support.cutter import DOWN, UP, Cutter
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import BLOCK, MIB, HttpTarget, TcpTarget, digest

type MakeCutter = Callable[[int], Cutter]

QUICK = {"keepalive": 0.3}
"""Dead carriers are found out soon."""
CUTS = 4
"""One soon after another; the client waits twice as long each time before it dials again."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def broken(world: World, cutter: MakeCutter) -> tuple[Exit, Client, Cutter]:
    """A pair with a cutter in between."""
    exit = world.exit(QUICK)
    line = cutter(exit.port)
    return exit, world.client(exit, QUICK, through=line.port), line


def download(
    pool: ThreadPoolExecutor, curl: Curl, client: Client, http: HttpTarget, size: int
) -> Future[str]:
    """The SHA-256 of what curl gets."""

    def run() -> str:
        url = f"http://127.0.0.1:{http.port}/bytes?size={size}"
        return hashlib.sha256(curl.get("--socks5-hostname", f"127.0.0.1:{client.port}", url)).hexdigest()

    return pool.submit(run)


def assert_resumed(exit: Exit, client: Client, times: int) -> None:
    until(lambda: client.log.count("link resumed") >= times, f"the link was resumed {times} times")
    assert client.log.count("link up") == 1
    assert exit.log.count("link up") == 1
    assert len(exit.sessions) == 1


@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
def test_cut_in_mid_download(
    reset: bool, broken: tuple[Exit, Client, Cutter], pool: ThreadPoolExecutor, curl: Curl, http: HttpTarget
) -> None:
    exit, client, line = broken
    size = 120 * MIB + 7
    line.cut_every(20 * MIB, CUTS, reset=reset)
    assert download(pool, curl, client, http, size).result() == digest(size)
    line.wait_cuts()
    assert_resumed(exit, client, CUTS)
    until(lambda: exit.streams == client.streams == 0, "the stream is gone")


def test_cut_in_mid_upload(
    broken: tuple[Exit, Client, Cutter],
    pool: ThreadPoolExecutor,
    curl: Curl,
    http: HttpTarget,
    tmp_path: Path,
) -> None:
    exit, client, line = broken
    (tmp_path / "data").write_bytes(BLOCK * 64)
    url = f"http://127.0.0.1:{http.port}/upload"
    upload = pool.submit(curl.get, "-x", f"http://127.0.0.1:{client.port}", "-T", "data", url)
    for part in range(1, 4):
        until(lambda: line.bytes[UP] > part * 12 * MIB, "some of it has passed")  # noqa: B023 - waits here
        line.cut()
    assert json.loads(upload.result())["sha256"] == digest(64 * MIB)
    assert_resumed(exit, client, 3)


def test_nothing_is_readable_on_the_way(
    world: World, cutter: MakeCutter, curl: Curl, http: HttpTarget
) -> None:
    """Neither names nor data nor who the client is, from the first byte on."""
    exit = world.exit()
    line = cutter(exit.port)
    line.kept = bytearray()
    client = world.client(exit, through=line.port)
    proxy = f"127.0.0.1:{client.port}"
    assert curl.get("--socks5-hostname", proxy, f"http://site.test:{http.port}/hello") == b"hello\n"
    provider = select_provider()
    readable = [load_identity(provider, world.identity(name)[0]) for name in ("client", "exit")]
    for words in (b"site.test", b"hello", b"HTTP", *(who.public[:32] for who in readable)):
        assert words not in line.kept
    assert len(line.kept) > 10_000


def test_many_streams_survive_a_cut(broken: tuple[Exit, Client, Cutter], echo_target: TcpTarget) -> None:
    """Idle ones, and ones with data under way; also streams opened while the carrier is down."""
    exit, client, line = broken
    socks = [through(client.port, echo_target.port) for _ in range(100)]
    mark = client.written
    for number, sock in enumerate(socks[:50]):
        sock.sendall(b"%5d" % number)
    line.cut()
    socks.append(through(client.port, echo_target.port))
    client.says("link resumed", since=mark)
    for number, sock in enumerate(socks[50:], 50):
        sock.sendall(b"%5d" % number)
    for number, sock in enumerate(socks):
        assert read_exactly(sock, 5) == b"%5d" % number
        sock.close()
    until(lambda: exit.streams == client.streams == 0, "all streams are gone")
    assert_resumed(exit, client, 1)


def test_stalled_carrier(
    broken: tuple[Exit, Client, Cutter], pool: ThreadPoolExecutor, curl: Curl, http: HttpTarget
) -> None:
    """Nothing is closed, but nothing comes either: both sides find out by their keepalive."""
    exit, client, line = broken
    size = 60 * MIB
    transfer = download(pool, curl, client, http, size)
    until(lambda: line.bytes[DOWN] > 10 * MIB, "some of it has passed")
    mark = client.written, exit.written
    line.stall()
    client.says("link down: .*not answered in time", since=mark[0])
    exit.says("link down: .*not answered in time", since=mark[1])
    line.release()
    client.says("link resumed", since=mark[0])
    assert transfer.result() == digest(size)
    assert_resumed(exit, client, 1)


def test_idle_carrier_stalls(broken: tuple[Exit, Client, Cutter], echo_target: TcpTarget) -> None:
    _, client, line = broken
    with through(client.port, echo_target.port) as sock:
        mark = client.written
        line.stall()
        client.says("link down", since=mark)
        line.release()
        client.says("link resumed", since=mark)
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["up", "down"])
def test_corrupted_byte(
    direction: int,
    broken: tuple[Exit, Client, Cutter],
    pool: ThreadPoolExecutor,
    curl: Curl,
    http: HttpTarget,
) -> None:
    """The record does not authenticate: its receiver gives the carrier up, says why, and nothing is lost."""
    exit, client, line = broken
    size = 60 * MIB
    transfer = download(pool, curl, client, http, size)
    until(lambda: line.bytes[DOWN] > 10 * MIB, "some of it has passed")
    line.corrupt(direction)
    line.wait_corrupted()
    receiver = exit if direction == UP else client
    receiver.says("link down: .*(authenticat|length|answered in time)")
    assert transfer.result() == digest(size)
    assert_resumed(exit, client, 1)


def test_corrupted_length(broken: tuple[Exit, Client, Cutter], echo_target: TcpTarget) -> None:
    """A length that was enlarged makes its receiver wait for bytes that never come, until the keepalive's end."""
    exit, client, line = broken
    with through(client.port, echo_target.port) as sock:
        mark = exit.written
        line.corrupt_length(UP)
        sock.sendall(b"hello")
        exit.says("link down", since=mark)
        assert read_exactly(sock, 5) == b"hello"
    assert_resumed(exit, client, 1)


def test_address_of_the_client_changes(world: World, cutter: MakeCutter, echo_target: TcpTarget) -> None:
    """A resumed session does not mind where its carrier comes from: the line goes, another one comes."""
    exit = world.exit(QUICK)
    line = cutter(exit.port)
    client = world.client(exit, QUICK, through=line.port)
    with through(client.port, echo_target.port) as sock:
        for _ in range(CUTS):
            mark = client.written
            line.cut()
            client.says("link resumed", since=mark)
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
    assert line.connections > CUTS
    assert_resumed(exit, client, CUTS)
