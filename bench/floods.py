"""One listed peer floods an exit: what do another peer's pings take meanwhile, and how long are the exit's turns?

    .venv/bin/python bench/floods.py                        all floods, about three minutes
    .venv/bin/python bench/floods.py readable ping          some of them
    .venv/bin/python bench/floods.py --tree /tmp/before     the exit of another checkout

The exit is a process with a core of its own, all else shares another one: the flooder, which yields to all others
(nice 19), and the peer that pings, in this process. A ping is four bytes through the exit to an echoing target and
back, less the time in which the threads on its path were ready to run and other programs had their core.

"Turn" is the longest turn of the exit's event loop, in CPU time of its thread, and "gc" the longest collection of
garbage in it: this script starts the exit's program and measures around its loop, with no help by the program.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import mmap
import multiprocessing
import os
import resource
import runpy
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
EXIT_CORE, OTHER_CORE = 0, 1
BAR = 0.020
TARGETS = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 128) * 3 // 4 - 100)
"""Streams of the flooder: what the limit of descriptors lets one peer have."""
ASSOCIATIONS = TARGETS // 2
FIGURES = struct.Struct("ddd")
"""Longest turn and longest collection in seconds, and the number of turns above BAR."""


def exit_process(tree: str, figures: str, *arguments: str) -> None:
    """Be the exit, and keep the figures in that file."""
    sys.path[0:1] = [tree]
    with open(figures, "r+b") as file:
        shared = mmap.mmap(file.fileno(), FIGURES.size)
    run_once = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]
    main = threading.current_thread()
    began = 0.0

    def measured(loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not main:
            run_once(loop)
            return
        start = time.thread_time()
        run_once(loop)
        took = time.thread_time() - start
        turn, collection, above = FIGURES.unpack(shared[:])
        if took > turn or took > BAR:
            shared[:] = FIGURES.pack(max(turn, took), collection, above + (took > BAR))

    def collected(phase: str, _: object) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time()
            return
        turn, collection, above = FIGURES.unpack(shared[:])
        shared[:] = FIGURES.pack(turn, max(collection, time.thread_time() - began), above)

    asyncio.BaseEventLoop._run_once = measured  # type: ignore[attr-defined]
    gc.callbacks.append(collected)
    sys.argv = ["cryprq-proxy", *arguments]
    runpy.run_module("cryprq_proxy", run_name="__main__")


if __name__ == "__main__" and sys.argv[1:2] == ["--be-exit"]:
    exit_process(*sys.argv[2:])
    sys.exit()

from cryprq_proxy.address import Destination  # noqa: E402
from cryprq_proxy.carriers.admission import frame_flight  # noqa: E402
from cryprq_proxy.config.keys import load_identity, save_identity  # noqa: E402
from cryprq_proxy.crypto.handshake import ClientHandshake  # noqa: E402
from cryprq_proxy.crypto.identity import Identity, PeerId  # noqa: E402
from cryprq_proxy.crypto.primitives import select_provider  # noqa: E402
from cryprq_proxy.errors import StreamReason  # noqa: E402
from cryprq_proxy.session import wire  # noqa: E402
from cryprq_proxy.session.records import HEADER, RecordOpener, RecordSealer  # noqa: E402
from cryprq_proxy.session.streams import INITIAL_WINDOW  # noqa: E402
from cryprq_proxy.session.wire import StreamProtocol  # noqa: E402

PROVIDER = select_provider()
WS_PATH = "/flood"
NOWHERE = Destination("127.0.0.1", 9)


class RawPeer:
    """A listed client whose frames are this script's own, on TCP or, with `web`, in messages of a WebSocket."""

    def __init__(self, port: int, exit_id: PeerId, identity: Identity, web: bool = False) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._web = web
        self._rest = bytearray()
        self.lock = threading.Lock()
        if web:
            self.sock.sendall(
                f"GET {WS_PATH} HTTP/1.1\r\nHost: exit\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += self._raw(1)
        handshake = ClientHandshake(identity, exit_id, PROVIDER)
        self._write(frame_flight(handshake.write_first()))
        handshake.read_second(self._read(int.from_bytes(self._read(2))))
        self._write(frame_flight(handshake.write_third(None)))
        established = handshake.result
        self.sealer = RecordSealer(established.cipher, established.epoch.client_record)
        self._opener = RecordOpener(established.cipher, established.epoch.exit_record)
        self.received = 0
        self.window = INITIAL_WINDOW
        """How much the exit takes on its only stream."""
        self.next_frames()

    def send(self, *frames: bytes) -> None:
        with self.lock:
            self._write(self.sealer.seal(b"".join(frames)))

    def next_frames(self) -> list[wire.Frame]:
        """The frames of the exit's next record."""
        header = self._read(HEADER)
        plain, _ = self._opener.open(memoryview(header + self._read(int.from_bytes(header))), 0)
        frames = list(wire.read_frames(bytes(plain or b"")))
        self.received += sum(kind <= wire.RESET for kind, _, _ in frames)
        return frames

    def answer(self) -> None:
        """Take all that the exit sends, and acknowledge it, until the connection ends."""
        acknowledged = 0
        with contextlib.suppress(OSError, EOFError):
            while True:
                for kind, _, value in self.next_frames():
                    if kind == wire.PING and isinstance(value, int):
                        self.send(wire.encode_number(wire.PONG, value))
                    elif kind == wire.WINDOW and isinstance(value, int):
                        self.window = value
                if self.received - acknowledged > 256:
                    acknowledged = self.received
                    self.send(wire.encode_number(wire.ACK, acknowledged))

    def drop(self) -> None:
        """Take all that the exit sends, until the connection ends."""
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 18):
                pass

    def close(self) -> None:
        self.sock.close()

    def _write(self, data: bytes) -> None:
        if self._web:
            data = b"\x82\xff" + len(data).to_bytes(8) + bytes(4) + data
        self.sock.sendall(data)

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            if not self._web:
                self._rest += self._raw(size - len(self._rest))
                continue
            length = self._raw(2)[1]
            if length > 125:
                length = int.from_bytes(self._raw(2 if length == 126 else 8))
            self._rest += self._raw(length)
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def _raw(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not (got := self.sock.recv(size - len(data))):
                raise EOFError
            data += got
        return bytes(data)


# --- the floods ------------------------------------------------------------------------------------------------------


def flood_frames(make: Callable[[int], bytes], each: int = 2_000) -> Callable[[RawPeer], None]:
    """Records full of small frames, whose numbers rise."""

    def go(peer: RawPeer) -> None:
        threading.Thread(target=peer.drop, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        number = 2
        while True:
            peer.send(*map(make, range(number, number + each)))
            number += each

    return go


def flood_bytes(make: Callable[[RawPeer], bytes]) -> Callable[[RawPeer], None]:
    """Bytes under the session, as they are."""

    def go(peer: RawPeer) -> None:
        threading.Thread(target=peer.drop, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        while True:
            peer.sock.sendall(make(peer))

    return go


def tiny_data(peer: RawPeer) -> None:
    """One byte in each DATA frame, and each frame in a record of its own, for a target that takes all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=peer.answer, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.TCP, Destination(*server.getsockname()[:2])))
        target, _ = server.accept()
        threading.Thread(target=lambda: all(iter(lambda: target.recv(1 << 18), b"")), daemon=True).start()
        frame = wire.encode_data_header(wire.DATA, 1) + b"x"
        sent = 0
        while True:
            if sent + 1_000 > peer.window:
                time.sleep(0.001)
                continue
            with peer.lock:
                peer.sock.sendall(b"".join(peer.sealer.seal(frame) for _ in range(1_000)))
            sent += 1_000


def tiny_messages(peer: RawPeer) -> bytes:
    """A record, each byte in a message of its own."""
    record = peer.sealer.seal(wire.encode_datagram(1, NOWHERE, b"x") * 500)
    return b"".join(b"\x82\x81\0\0\0\0" + record[n : n + 1] for n in range(len(record)))


PING_FRAMES = b"\x89\x80\0\0\0\0" * 40_000
FRAGMENTS = b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 40_000 + b"\x80\x80\0\0\0\0"


def targets_of(peer: RawPeer, count: int) -> list[socket.socket]:
    """So many streams to targets in this process, and the sockets of these."""
    with socket.create_server(("127.0.0.1", 0), backlog=4_096) as server:
        destination = Destination(*server.getsockname()[:2])
        targets = []
        for first in range(1, count + 1, 100):
            numbers = range(first, min(first + 100, count + 1))
            peer.send(*(wire.encode_open(number, StreamProtocol.TCP, destination) for number in numbers))
            targets += [server.accept()[0] for _ in numbers]
    for target in targets:
        target.setblocking(False)
    return targets


def readable(peer: RawPeer) -> None:
    """Targets that all have something to say, again and again."""
    threading.Thread(target=peer.answer, daemon=True).start()
    targets = targets_of(peer, TARGETS)
    for _ in range(60):
        for target in targets:
            with contextlib.suppress(BlockingIOError):
                target.send(b"x")


def ending(peer: RawPeer) -> None:
    """Targets that all end at once."""
    threading.Thread(target=peer.answer, daemon=True).start()
    targets = targets_of(peer, TARGETS)
    for target in targets:
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for target in targets:
        target.close()
    time.sleep(0.5)


def answering(peer: RawPeer) -> None:
    """UDP associations that all get datagrams at once, again and again."""
    threading.Thread(target=peer.answer, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(0.5)
        destination = Destination(*target.getsockname()[:2])
        sources = set()
        for first in range(1, ASSOCIATIONS + 1, 50):
            numbers = range(first, first + 50)
            peer.send(*(wire.encode_open(number, StreamProtocol.UDP, destination) for number in numbers))
            peer.send(*(wire.encode_datagram(number, destination, b"x") for number in numbers))
            with contextlib.suppress(TimeoutError):
                for _ in numbers:
                    sources.add(target.recvfrom(16)[1])
        target.setblocking(False)
        for _ in range(60):
            for source in sources:
                for _ in range(4):
                    with contextlib.suppress(BlockingIOError):
                        target.sendto(b"x" * 1_000, source)


TAKEN = wire.encode_taken([ip_network("10.0.0.0/24")] * 16)
FLOODS: dict[str, tuple[bool, Callable[[RawPeer], None]]] = {
    "datagram": (False, flood_frames(lambda _: wire.encode_datagram(1, NOWHERE, b"x"))),
    "open-reset": (
        False,
        flood_frames(
            lambda number: (
                wire.encode_open(number, StreamProtocol.TCP, NOWHERE)
                + wire.encode_reset(number, StreamReason.CANCELLED)
            )
        ),
    ),
    "open-name": (
        False,
        flood_frames(
            lambda number: wire.encode_open(number, StreamProtocol.TCP, Destination("localhost", 9)), 500
        ),
    ),
    "reset": (False, flood_frames(lambda _: wire.encode_reset(1, StreamReason.GENERAL))),
    "rekey-please": (False, flood_frames(lambda _: wire.encode_bare(wire.REKEY_PLEASE))),
    "lane": (False, flood_frames(lambda number: wire.encode_lane(1, number))),
    "taken": (False, flood_frames(lambda _: TAKEN, 100)),
    "window": (False, flood_frames(lambda _: wire.encode_window(1, 1))),
    "tiny-data": (False, tiny_data),
    "tiny-messages": (True, flood_bytes(tiny_messages)),
    "ping": (True, flood_bytes(lambda _: PING_FRAMES)),
    "fragments": (True, flood_bytes(lambda _: FRAGMENTS)),
    "readable": (False, readable),
    "ending": (False, ending),
    "answering": (False, answering),
}
"""Whether it is for the WebSocket entrance, and what one connection does until the exit has had enough."""


def flood_process(kind: str, ports: tuple[int, int], exit_id: str, key: Path) -> None:
    """Flood for ever: a connection that the exit ends is followed by another one."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    raise_limit()
    identity = load_identity(PROVIDER, key)
    web, go = FLOODS[kind]
    while True:
        with contextlib.suppress(OSError, EOFError):
            peer = RawPeer(ports[web], PeerId.parse(exit_id), identity, web)
            with contextlib.closing(peer):
                go(peer)


# --- the exit, and the peer that pings -------------------------------------------------------------------------------


def raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class MeasuredExit:
    """The exit's process; `figures` are those of FIGURES since the last call."""

    def __init__(self, tree: Path, directory: Path) -> None:
        self.identity = Identity.generate(PROVIDER)
        self.peers = {name: Identity.generate(PROVIDER) for name in ("honest", "flooder")}
        save_identity(self.identity, directory / "identity")
        for name, peer in self.peers.items():
            save_identity(peer, directory / name)
        self.ports = free_port(), free_port()
        allowed = ", ".join(f'"{peer.peer_id}"' for peer in self.peers.values())
        config = directory / "exit.toml"
        config.write_text(
            f'listen = "127.0.0.1:{self.ports[0]}"\nidentity = "{directory}/identity"\nallow = [{allowed}]\n'
            f'allow_private = true\ncontrol_socket = "{directory}/control"\nlog_level = "error"\nshutdown_grace = 0\n'
            f'[websocket]\nlisten = "127.0.0.1:{self.ports[1]}"\npath = "{WS_PATH}"\n'
        )
        config.chmod(0o600)
        file = directory / "figures"
        file.write_bytes(bytes(FIGURES.size))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), FIGURES.size)
        me = [sys.executable, __file__, "--be-exit", str(tree), str(file)]
        self._process = subprocess.Popen([*me, "exit", "--config", str(config)], cwd=directory)
        os.sched_setaffinity(self._process.pid, {EXIT_CORE})
        listening = f":{self.ports[1]:04X} 00000000:0000 0A"
        while listening not in Path("/proc/net/tcp").read_text():
            if self._process.poll() is not None:
                sys.exit("The exit did not start.")
            time.sleep(0.01)
        time.sleep(0.3)

    def figures(self) -> tuple[float, float, float]:
        values = FIGURES.unpack(self._shared[:])
        self._shared[:] = bytes(FIGURES.size)
        return values

    @property
    def pid(self) -> int:
        return self._process.pid

    def memory(self) -> int:
        """Resident, in MiB."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE >> 20

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class EchoTarget:
    """A target that sends back what it gets."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.delays = Delays(os.getpid(), self._thread.native_id or 0)

    def _serve(self) -> None:
        while True:
            sock, _ = self._server.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                while data := sock.recv(1 << 16):
                    sock.sendall(data)


class Delays:
    """How long a thread has been ready to run while its core served others: seconds since its start."""

    def __init__(self, pid: int, thread: int) -> None:
        self._fd = os.open(f"/proc/{pid}/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> float:
        return int(os.pread(self._fd, 64, 0).split()[1]) / 1e9


class Pinger:
    """The honest peer and its one stream."""

    def __init__(self, exit: MeasuredExit, target: EchoTarget) -> None:
        self._delays = (
            Delays(exit.pid, exit.pid),
            Delays(os.getpid(), threading.get_native_id()),
            target.delays,
        )
        self._peer = RawPeer(exit.ports[0], exit.identity.peer_id, exit.peers["honest"])
        self._peer.send(wire.encode_open(1, StreamProtocol.TCP, Destination("127.0.0.1", target.port)))
        self._wait_for(wire.OPENED)

    def pings(self, seconds: float) -> list[float]:
        """The seconds of each, in order of size."""
        taken, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            others, began = self._others(), time.monotonic()
            self._peer.send(wire.encode_data_header(wire.DATA, 1) + b"ping")
            self._wait_for(wire.DATA)
            took = time.monotonic() - began
            taken.append(max(0.0, took - self._others() + others))
            self._peer.send(wire.encode_number(wire.ACK, self._peer.received))
            time.sleep(0.002)
        return sorted(taken)

    def close(self) -> None:
        self._peer.close()

    def _others(self) -> float:
        return sum(delays.seconds() for delays in self._delays)

    def _wait_for(self, wanted: int) -> None:
        while True:
            kinds = {kind: value for kind, _, value in self._peer.next_frames()}
            if isinstance(token := kinds.get(wire.PING), int):
                self._peer.send(wire.encode_number(wire.PONG, token))
            if wanted in kinds:
                return


@contextlib.contextmanager
def flooding(kind: str, exit: MeasuredExit, directory: Path) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(
        target=flood_process,
        args=(kind, exit.ports, str(exit.identity.peer_id), directory / "flooder"),
        daemon=True,
    )
    process.start()
    time.sleep(1.5)
    exit.figures()
    try:
        yield
    finally:
        process.kill()
        process.join()


def told(what: str, pings: list[float], quiet: list[float], exit: MeasuredExit) -> None:
    turn, collection, above = exit.figures()
    middle, late = (pings[int(len(pings) * part)] - quiet[int(len(quiet) * part)] for part in (0.5, 0.99))
    missed = "  MISSED" if turn > BAR or late > BAR else ""
    print(
        f"{what:14} | {1000 * middle:8.2f} | {1000 * late:8.2f} | {1000 * (pings[-1] - quiet[-1]):8.2f} | "
        f"{1000 * turn:8.2f} | {int(above):6} | {1000 * collection:8.2f} | {exit.memory():6} | {len(pings)}{missed}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help=", ".join(FLOODS))
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    raise_limit()
    os.sched_setaffinity(0, {OTHER_CORE})
    target = EchoTarget()
    print("rise in ms:      median |      p99 |      max | turn, ms | > 20 ms | gc, ms | MiB | pings")
    for kind in options.floods or FLOODS:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            exit = MeasuredExit(options.tree.resolve(), directory)
            try:
                pinger = Pinger(exit, target)
                quiet = pinger.pings(2.0)
                exit.figures()
                with flooding(kind, exit, directory):
                    pings = pinger.pings(options.seconds)
                told(kind, pings, quiet, exit)
                pinger.close()
            finally:
                exit.stop()
    print(f"a ping took {1000 * statistics.median(quiet):.2f} ms without a flood (median)")


if __name__ == "__main__":
    main()
