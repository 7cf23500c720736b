"""The faults of bench/soak.py: what a cycle does to an exit and its clients, one fault after another.

Each function of FAULTS takes the `Stage`, does its harm, and closes what it has opened itself. It ends within a few
seconds; what the program then has to clear away by itself is awaited at the end of the cycle.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from soak_processes import ROOT, CrowdSetting, SoakedProcess

sys.path.insert(0, str(ROOT))

from cryprq_proxy.address import Destination, encode
from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.crypto.handshake import FIRST_SIZE
from cryprq_proxy.errors import CloseReason
from cryprq_proxy.process.control import query
from cryprq_proxy.session import wire
from tests.support.applications import Refused, UdpApplication, connect, read_exactly, through
from tests.support.background import Background
from tests.support.cutter import DOWN, UP, Cutter
from tests.support.descriptors import no_free_files
from tests.support.flooder import FLOODS, Flooder
from tests.support.strangers import first_flight
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho

STRANGERS: Final = 200
STRANGER_ADDRESSES: Final = 200
FLOOD_SECONDS: Final = 1.0
CALLERS: Final = 64
NAMES: Final = 40
ASSOCIATIONS: Final = 20
EMFILE_SECONDS: Final = 2.0
NO_DATA: Final = b""

MORE_FLOODS: Final[dict[str, Callable[[int], bytes]]] = {
    "ABANDON": lambda number: wire.encode_records(wire.ABANDON, number, 0),
    "LANE": lambda number: wire.encode_lane(0, number % 2**32),
    "REKEY_PLEASE": lambda _: wire.encode_epoch(wire.REKEY_PLEASE, 1),
    "ACK": lambda _: wire.encode_records(wire.ACK, 0, 0),
    "FIN": lambda _: wire.encode_fin(1, 0),
    "CLOSE": lambda _: wire.encode_close(CloseReason.NORMAL),
}


class Stage:
    """All that stands while faults come and go."""

    exit: SoakedProcess
    exit_id: str
    websocket_port: int
    clients: list[SoakedProcess]
    """With a link over TCP through `cutter`, over TCP, and over a WebSocket."""
    admin_port: int
    """That of the dashboard of the first client."""
    cutter: Cutter
    background: Background
    echo: TcpTarget
    http: HttpTarget
    udp: UdpEcho
    unread: socket.socket
    """A listener; nothing is read from its connections."""
    listed: Path
    """The list of peers; `list_text` is what stands in it between faults."""
    list_text: str
    config: Path
    crowd_keys: tuple[str, ...]
    flooder_key: Path
    directory: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> str:
        """Run a short command of the program, and return its output."""
        done = subprocess.run(
            [sys.executable, "-m", "cryprq_proxy", *arguments],
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()


# --- strangers and crowds ---


def _from(number: int, port: int) -> socket.socket:
    sock = socket.socket()
    sock.bind((f"127.200.{number % STRANGER_ADDRESSES}.7", 0))
    sock.settimeout(30.0)
    sock.connect(("127.0.0.1", port))
    return sock


def strangers(stage: Stage) -> None:
    """At both entrances: silence, garbage, beginnings of flights, and valid first flights with nothing after them."""
    flight, chance = first_flight(stage.exit_id), random.Random(1)
    says = itertools.cycle(
        (
            NO_DATA,
            FIRST_SIZE.start.to_bytes(2) + chance.randbytes(FIRST_SIZE.start),
            flight[:1_000],
            flight,
            b"GET / HTTP/1.1\r\nHost: exit\r\n\r\n",
            b"GET /cryprq HTTP/1.1\r\nHost: exit\r\n",
            b"\xff\xff" + chance.randbytes(3_000),
        )
    )
    held = [_stranger(stage, number, says) for number in range(STRANGERS)]
    time.sleep(1.0)
    for sock in held[::2]:
        sock.close()
    # The exit ends the others.
    for sock in held[1::2]:
        with contextlib.suppress(OSError):
            while sock.recv(65_536):
                pass
        sock.close()


def _stranger(stage: Stage, number: int, says: Iterator[bytes]) -> socket.socket:
    sock = _from(number, stage.websocket_port if number % 4 == 3 else stage.exit.port)
    with contextlib.suppress(OSError):
        sock.sendall(next(says))
    time.sleep(0.005)
    return sock


@contextlib.contextmanager
def _crowd(stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    setting = stage.directory / "crowd.json"
    setting.write_bytes(
        msgspec.json.encode(CrowdSetting(stage.exit_id, stage.exit.port, stage.echo.port, stage.crowd_keys))
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "bench/soak_processes.py"), "crowd", str(setting)],
        env=stage.environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as told:
        try:
            told.readline()
            yield process
        finally:
            process.kill()
            process.wait()


def crowd_killed(stage: Stage) -> None:
    """Listed clients come, use the exit, and vanish at once."""
    with _crowd(stage):
        pass


def crowd_ended(stage: Stage) -> None:
    """Listed clients come, use the exit, and end in good order."""
    with _crowd(stage) as process:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def floods(stage: Stage) -> None:
    """A listed peer sends frames of one kind as fast as it can, is closed or goes, and comes back with the next."""
    for make in (*FLOODS.values(), *MORE_FLOODS.values()):
        flooder = Flooder(stage.exit_id, stage.exit.port, stage.flooder_key)
        timer = threading.Timer(FLOOD_SECONDS, flooder.end)
        timer.start()
        flooder.run(make)
        timer.cancel()
        flooder.sock.close()


# --- targets and applications ---


def unread_targets(stage: Stage) -> None:
    """Targets that read nothing, and applications that go on sending until they end their side, hang up or die."""
    stage.unread.settimeout(5.0)
    with contextlib.ExitStack() as targets:
        with contextlib.ExitStack() as applications:
            for number in range(12):
                sock = applications.enter_context(
                    through(_proxy(stage, number), stage.unread.getsockname()[1])
                )
                targets.enter_context(stage.unread.accept()[0])
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock.send(bytes(65_536))
                if number % 3:
                    set_reset_on_close(sock)
        time.sleep(1.0)


def vanished_targets(stage: Stage) -> None:
    """Nobody listens; or the connection is gone from the target's kernel without a word; or it is reset."""
    for number in range(10):
        with contextlib.suppress(Refused):
            through(_proxy(stage, number), 9).close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for number in range(10):
            with through(_proxy(stage, number), listener.getsockname()[1]) as application:
                target = listener.accept()[0]
                application.sendall(b"x")
                read_exactly(target, 1)
                if number % 2:
                    set_reset_on_close(target)
                else:
                    _forget(target)
                target.close()
                with contextlib.suppress(OSError):
                    application.settimeout(5.0)
                    application.sendall(b"x")
                    while application.recv(65_536):
                        pass


def _forget(sock: socket.socket) -> None:
    """Its end will send nothing (TCP_REPAIR), where this process may do so."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, 19, 1)


def names(stage: Stage) -> None:
    """Names that exist, that do not, and that no server answers; who waits for the last goes after a while."""
    with contextlib.ExitStack() as stack:
        for number in range(NAMES):
            host = ("echo.test", f"gone-{number}.test", f"mute-{number}.test", f"mute-{number}.test")[
                number % 4
            ]
            sock = stack.enter_context(connect(_proxy(stage, number)))
            request = b"\x05\x01\x00" + b"\x05\x01\x00" + encode(Destination(host, stage.echo.port))
            sock.sendall(request)
        time.sleep(2.0)


def udp(stage: Stage) -> None:
    """Associations that are used, closed or abandoned, and datagrams to names that no server answers."""
    with contextlib.ExitStack() as stack:
        for number in range(ASSOCIATIONS):
            application = UdpApplication(_proxy(stage, number))
            stack.callback(application.close)
            for _ in range(20):
                application.send(b"hello", stage.udp.port)
            application.send(b"hello", 53, f"mute-{number}.test")
            application.receive()
            if number % 2:
                set_reset_on_close(application.control)


def http(stage: Stage) -> None:
    """Requests that are left alone in the middle: of the head, of an upload, of a download, of a tunnel."""
    target = b"127.0.0.1:%d" % stage.http.port
    for number in range(24):
        text = (
            b"GET http://%s/bytes?size=50000000 HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target),
            b"GET http://%s/hello HTTP/1.1\r\nHost: %s\r\n" % (target, target),
            b"POST http://%s/upload HTTP/1.1\r\nHost: %s\r\nContent-Length: 100000\r\n\r\nhello"
            % (target, target),
            b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\nGET /bytes?size=50000000 HTTP/1.1\r\nHost: x\r\n\r\n"
            % (target, target),
            b"GET http://%s/hello HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target),
            b"garbage\r\n\r\n",
        )[number % 6]
        with connect(_proxy(stage, number)) as sock:
            sock.sendall(text)
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                sock.recv(65_536)
            if number % 4 == 1:
                set_reset_on_close(sock)


def dashboard(stage: Stage) -> None:
    """Programs that take the PAC file, and pages that look at events, are left alone."""
    host = b"Host: 127.0.0.1:%d\r\n\r\n" % stage.admin_port
    for path in (b"/proxy.pac", b"/api/events", b"/metrics", b"/") * 4:
        with connect(stage.admin_port) as sock:
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\n" + host)
            sock.recv(65_536)


# --- the process and its files ---


def no_descriptors(stage: Stage) -> None:
    """The exit finds no free descriptor, while strangers and applications come."""
    with contextlib.ExitStack() as stack, no_free_files(stage.exit.pid):
        for number in range(20):
            stack.enter_context(_from(number, stage.exit.port))
        for number in range(10):
            sock = stack.enter_context(connect(_proxy(stage, number)))
            sock.sendall(
                b"\x05\x01\x00" + b"\x05\x01\x00" + encode(Destination("127.0.0.1", stage.echo.port))
            )
        time.sleep(EMFILE_SECONDS)


def lists(stage: Stage) -> None:
    """The list of peers is edited, damaged, emptied, and put back."""
    for text in (stage.list_text + "# a note\n", "garbage\n", "", stage.list_text):
        stage.listed.write_text(text)
        with contextlib.suppress(Exception):
            query(stage.exit.control, "reload", 30.0)


def invites(stage: Stage) -> None:
    """A guest uses an invite, a second one comes with the same; then the guest is taken off the list."""
    invitation = stage.command("invite", "guest", "--address", "127.0.0.1", "--config", str(stage.config))
    joined, identities = stage.directory / "joined", stage.directory / "cryprq"
    for _ in range(2):
        with contextlib.suppress(subprocess.CalledProcessError):
            stage.command("join", invitation, "--config", str(joined / "client.toml"))
        shutil.rmtree(joined, ignore_errors=True)
        shutil.rmtree(identities, ignore_errors=True)
    stage.listed.write_text(stage.list_text)
    query(stage.exit.control, "reload", 30.0)


def callers(stage: Stage) -> None:
    """Many ask for the status at once, and a few send garbage or leave."""
    with ThreadPoolExecutor(CALLERS) as pool:
        for role in (stage.exit, *stage.clients):
            list(pool.map(lambda _, at=role.control: query(at, timeout=30.0), range(CALLERS)))
            for text in (b"", b"{", b"x" * 5_000):
                with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
                    sock.connect(str(role.control))
                    sock.sendall(text)


def unread_log(stage: Stage) -> None:
    """Nobody reads the log of the exit, while it has much to say."""
    with stage.exit.reader_stopped():
        for _ in range(100):
            query(stage.exit.control, "reload", 30.0)


# --- the link ---


def cuts(stage: Stage) -> None:
    """The carrier of the first client ends by a reset, an end, a damaged record, and while much is under way."""
    client, cutter = stage.clients[0], stage.cutter
    harms: tuple[Callable[[], None], ...] = (
        cutter.cut,
        partial(cutter.cut, reset=False),
        partial(cutter.corrupt, DOWN),
        partial(cutter.corrupt, UP),
        partial(cutter.cut_every, 1 << 20, 2),
    )
    for harm in harms:
        with through(client.port, stage.http.port) as sock:
            sock.sendall(b"GET /bytes?size=20000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            read_exactly(sock, 100_000)
            harm()
            read_exactly(sock, 5_000_000)
            set_reset_on_close(sock)


def use(stage: Stage) -> None:
    """What honest applications do, on all links."""
    for client in stage.clients:
        for _ in range(5):
            with through(client.port, stage.http.port) as sock:
                sock.sendall(b"GET /bytes?size=2000000 HTTP/1.1\r\nHost: x\r\n\r\n")
                read_exactly(sock, 2_000_000)


def _proxy(stage: Stage, number: int) -> int:
    return stage.clients[number % len(stage.clients)].port


FAULTS: Final[tuple[Callable[[Stage], None], ...]] = (
    use,
    strangers,
    crowd_killed,
    crowd_ended,
    floods,
    unread_targets,
    vanished_targets,
    names,
    udp,
    http,
    dashboard,
    cuts,
    no_descriptors,
    callers,
    unread_log,
    invites,
    lists,
)
