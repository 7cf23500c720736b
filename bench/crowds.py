"""Crowds at an exit: how long do clients take to come in, among strangers or among each other?

    .venv/bin/python bench/crowds.py                        all tests, about three minutes
    .venv/bin/python bench/crowds.py silent restart         some of them
    .venv/bin/python bench/crowds.py --tree /tmp/before     exit and clients of another checkout

silent    one client after another, while 200 addresses open 100 connections a second and say nothing
garbage   the same, and each says something that is no first flight
stalling  the same, with first flights that open (who floods knows the exit's id), and nothing after them
crowd     200 clients at once, each of another address
one       200 clients at once, all of one address
restart   500 clients, after the exit was ended and started again: from the moment when it listens
cut       500 clients whose connections all break at once, while the exit goes on: each joins its session again.
          Then the exit's processor time: until the last one is back, and with the rotations that follow

The exit is a process of its own, the clients are objects of this one (as many processes would measure the start of
Python). Everything is on loopback, where each of 127.0.0.0/8 is an address of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from commandline import ROOT, BenchError, checkout, count, run_to_end

TESTS = ("silent", "garbage", "stalling", "crowd", "one", "restart", "cut")
FLOOD_RATE = 100
FLOOD_ADDRESSES = 200
TRIES = 20
TRY_LIMIT = 20.0
"""Seconds for one of them."""
CUTS = 3
SETTLE = 4.0
"""Seconds after which a link is stable, and all keys have been rotated."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tests", nargs="*", choices=TESTS, metavar="TEST", help=", ".join(TESTS))
    parser.add_argument("--tree", type=checkout, default=ROOT)
    parser.add_argument("--clients", type=count, help="instead of 200 or 500")
    return parser.parse_args()


OPTIONS = options()
sys.path.insert(0, str(OPTIONS.tree))

from cryprq_proxy.address import Destination  # noqa: E402
from cryprq_proxy.base.tasks import spawn  # noqa: E402
from cryprq_proxy.carriers.admission import frame_flight  # noqa: E402
from cryprq_proxy.carriers.dial import tcp  # noqa: E402
from cryprq_proxy.carriers.dial.endpoint import Endpoint  # noqa: E402
from cryprq_proxy.client.client import Client  # noqa: E402
from cryprq_proxy.client.settings import ClientSettings  # noqa: E402
from cryprq_proxy.config.client import ClientConfig  # noqa: E402
from cryprq_proxy.config.keys import save_identity  # noqa: E402
from cryprq_proxy.crypto.handshake import FIRST_SIZE  # noqa: E402
from cryprq_proxy.crypto.identity import Identity  # noqa: E402
from cryprq_proxy.crypto.primitives import select_provider  # noqa: E402
from cryprq_proxy.session.wire import LaneUse  # noqa: E402

PROVIDER = select_provider()
FLOODER = Identity.generate(PROVIDER)
dials = 0
dialled: list[socket.socket] = []
spent = 0.0


def from_source(mark: int, segment: int, info: tuple[object, ...]) -> socket.socket:
    """Open the socket of a dial; `mark` is not the socket's mark here but the number of its address."""
    global dials
    dials += 1
    sock = socket.socket()
    sock.bind((address_of(mark), 0))
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    dialled.append(sock)
    return sock


def address_of(number: int) -> str:
    """127.0.0.1 for 0; else one of a /16 with many others, as customers of one provider are."""
    return f"127.{1 + number // 60_000}.{number // 240}.{1 + number % 240}" if number else "127.0.0.1"


class ExitProcess:
    """An exit of the tree, with its own identity and a list of `clients`."""

    def __init__(self, directory: Path, clients: list[Identity]) -> None:
        self._directory = directory
        self.identity = Identity.generate(PROVIDER)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        save_identity(self.identity, directory / "identity")
        (directory / "authorized").write_text("".join(f"{client.peer_id}\n" for client in clients))
        (directory / "authorized").chmod(0o600)
        file = directory / "exit.toml"
        file.write_text(
            f'listen = "127.0.0.1:{self.port}"\nidentity = "{directory}/identity"\nlog_level = "warning"\n'
            f'authorized = "{directory}/authorized"\ncontrol_socket = "{directory}/control"\n'
            "shutdown_grace = 0\n"
        )
        file.chmod(0o600)

    def start(self) -> float:
        """Return when it listens, and that time. No connection is made for that: it would be a stranger's."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cryprq_proxy", "exit", "--config", str(self._directory / "exit.toml")],
            env={**os.environ, "PYTHONPATH": str(OPTIONS.tree)},
            cwd=self._directory,
        )
        listening = f":{self.port:04X} 00000000:0000 0A"
        while listening not in Path("/proc/net/tcp").read_text():
            if self._process.poll() is not None:
                raise BenchError("The exit did not start.")
            time.sleep(0.005)
        return time.monotonic()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        values = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")

    def client(self, identity: Identity, number: int) -> Client:
        """From the address of that number."""
        config = ClientConfig()
        settings = ClientSettings(
            self.identity.peer_id,
            (Endpoint("tcp", Destination("127.0.0.1", self.port)),),
            config.session_limits(),
            config.wait_for_link,
            config.connect,
            LaneUse.AUTO,
            mark=number,
        )
        return Client(identity, settings, PROVIDER)


@contextlib.contextmanager
def running(count: int) -> Iterator[tuple[ExitProcess, list[Identity]]]:
    identities = [Identity.generate(PROVIDER) for _ in range(count)]
    with tempfile.TemporaryDirectory() as directory:
        exit = ExitProcess(Path(directory), identities)
        exit.start()
        try:
            yield exit, identities
        finally:
            exit.stop()


async def all_in(
    clients: list[Client], began: float, limit: float = 300.0, paths: int = 1
) -> tuple[float, float]:
    """Wait until all have a link, their `paths`-th connection at least. Seconds since then of the middle one, and of
    the last; `limit` if it took longer."""
    seconds: dict[Client, float] = {}
    while len(seconds) < len(clients):
        for client in clients:
            if client not in seconds and client.up and client._link.carriers >= paths:
                seconds[client] = time.monotonic() - began
        if time.monotonic() - began > limit:
            return limit, limit
        await asyncio.sleep(0.005)
    return statistics.median(seconds.values()), max(seconds.values())


async def stop_all(clients: list[Client]) -> None:
    await asyncio.gather(*(client.stop() for client in clients))


def told(what: str, bar: float, middle: float, last: float, exit: ExitProcess) -> None:
    verdict = "" if last <= bar else "  MISSED"
    print(
        f"{what:28} median {middle:6.2f} s, last {last:6.2f} s (bar {bar:g} s){verdict}; "
        f"{dials} dials, {exit.cpu():.2f} CPU s of the exit, {time.process_time() - spent:.2f} of the clients",
        flush=True,
    )


async def crowd(what: str, bar: float, addresses: int) -> None:
    global dials, spent
    count = OPTIONS.clients or 200
    with running(count) as (exit, identities):
        clients = [exit.client(each, n % addresses) for n, each in enumerate(identities, 1)]
        dials, spent, began = 0, time.process_time(), time.monotonic()
        links = [spawn(client.run(), "link") for client in clients]
        told(what, bar, *await all_in(clients, began), exit)
        await stop_all(clients)
        await asyncio.gather(*links)


@contextlib.asynccontextmanager
async def linked(count: int) -> AsyncIterator[tuple[ExitProcess, list[Client]]]:
    """An exit and so many clients, each at an address of its own, with their links up."""
    with running(count) as (exit, identities):
        clients = [exit.client(each, number) for number, each in enumerate(identities, 1)]
        links = [spawn(client.run(), "link") for client in clients]
        await all_in(clients, time.monotonic())
        yield exit, clients
        await stop_all(clients)
        await asyncio.gather(*links)


async def restart() -> None:
    global dials, spent
    count = OPTIONS.clients or 500
    async with linked(count) as (exit, clients):
        for away in (0.0, 20.0):
            await asyncio.to_thread(exit.stop)
            await asyncio.sleep(away)
            dials, spent = 0, time.process_time()
            began = await asyncio.to_thread(exit.start)
            told(f"{count} back, away {away:g} s", 8.0, *await all_in(clients, began), exit)


async def cut() -> None:
    global dials, spent
    count = OPTIONS.clients or 500
    async with linked(count) as (exit, clients):
        for paths in range(2, 2 + CUTS):
            await asyncio.sleep(SETTLE)
            sessions = [client._kept.session for client in clients]
            dials, spent, before, began = 0, time.process_time(), exit.cpu(), time.monotonic()
            break_all()
            middle, last = await all_in(clients, began, paths=paths)
            back = exit.cpu() - before
            told(f"{count} back, sessions alive", 2.0, middle, last, exit)
            await asyncio.sleep(SETTLE)
            kept = sum(
                client._kept.session is session for client, session in zip(clients, sessions, strict=True)
            )
            each, rotated = (1000 * seconds / count for seconds in (back, exit.cpu() - before))
            print(
                f"    {kept} sessions kept; the exit's ms for each: {each:.2f}, {rotated:.2f} with rotations"
            )


def break_all() -> None:
    """Each connection that a client has ends in both directions."""
    for sock in dialled:
        with contextlib.suppress(OSError):  # it has ended before
            sock.shutdown(socket.SHUT_RDWR)
    dialled.clear()


@contextlib.asynccontextmanager
async def flood(port: int, says: Callable[[], bytes]) -> AsyncIterator[None]:
    """FLOOD_RATE connections a second, each of which says that; the exit ends them."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []

    async def go() -> None:
        began = time.monotonic()
        for number in range(1_000_000):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((f"127.200.{number % FLOOD_ADDRESSES}.7", 0))
            with contextlib.suppress(OSError):
                await loop.sock_connect(sock, ("127.0.0.1", port))
                sock.send(says())
            sockets.append(sock)
            if len(sockets) > 12 * FLOOD_RATE:
                sockets.pop(0).close()
            await asyncio.sleep(max(0.0, began + number / FLOOD_RATE - time.monotonic()))

    task = spawn(go(), "flood")
    await asyncio.sleep(11)
    try:
        yield
    finally:
        task.cancel()
        for sock in sockets:
            sock.close()


async def among_strangers(what: str, says: Callable[[ExitProcess], bytes]) -> None:
    global dials, spent
    with running(1) as (exit, identities):
        seconds, dials, spent = [], 0, time.process_time()
        async with flood(exit.port, lambda: says(exit)):
            for _ in range(TRIES):
                client = exit.client(identities[0], 0)
                began = time.monotonic()
                link = spawn(client.run(), "link")
                seconds.append((await all_in([client], began, TRY_LIMIT))[1])
                await client.stop()
                await link
        within = sum(value <= 2 for value in seconds)
        what = f"{what}, {within} of {TRIES} in 2 s"
        told(what, 2.0, statistics.median(seconds), max(seconds), exit)


def first_flight(exit: ExitProcess) -> bytes:
    # Here and not above: the other tests run with checkouts in which it stands elsewhere, too.
    from cryprq_proxy.crypto.client_handshake import ClientHandshake

    return frame_flight(ClientHandshake(FLOODER, exit.identity.peer_id, PROVIDER).write_first())


async def main() -> None:
    logging.disable()
    tcp._open = from_source
    runs = {
        "silent": lambda: among_strangers("silent", lambda exit: b""),
        "garbage": lambda: among_strangers("garbage", lambda exit: frame_flight(bytes(FIRST_SIZE.start))),
        "stalling": lambda: among_strangers("stalling", first_flight),
        "crowd": lambda: crowd("200 at once", 2.0, 1_000_000),
        "one": lambda: crowd("200 at once, one address", 10.0, 1),
        "restart": restart,
        "cut": cut,
    }
    for name in OPTIONS.tests or TESTS:
        await runs[name]()


if __name__ == "__main__":
    sys.exit(run_to_end(lambda: asyncio.run(main())))
