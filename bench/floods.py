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
import runpy
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
EXIT_CORE, OTHER_CORE = 0, 1
BAR = 0.020
SILENT_SERVER = "127.0.0.2"
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

    from cryprq_proxy.outbound.resolving.host_configuration import ConfigurationReader, HostFiles

    files = HostFiles(Path("resolv.conf").absolute(), Path("hosts").absolute())
    ConfigurationReader.__init__.__defaults__ = (files,)
    asyncio.BaseEventLoop._run_once = measured  # type: ignore[attr-defined]
    gc.callbacks.append(collected)
    sys.argv = ["cryprq-proxy", *arguments]
    runpy.run_module("cryprq_proxy", run_name="__main__")


if __name__ == "__main__" and sys.argv[1:2] == ["--be-exit"]:
    exit_process(*sys.argv[2:])
    sys.exit()

from commandline import BenchError, checkout, positive, run_to_end  # noqa: E402
from flood_peer import FLOODS, MANY_NAMES, PROVIDER, WS_PATH, RawPeer, flood_process, raise_limit  # noqa: E402
from pairs import free_port  # noqa: E402

from cryprq_proxy.address import Destination  # noqa: E402
from cryprq_proxy.config.keys import save_identity  # noqa: E402
from cryprq_proxy.crypto.identity import Identity  # noqa: E402
from cryprq_proxy.session import wire  # noqa: E402
from cryprq_proxy.session.wire import StreamProtocol  # noqa: E402

# --- the exit, and the peer that pings -------------------------------------------------------------------------------


def many_addresses() -> str:
    """A hosts file: localhost, and names of 32 addresses where nothing listens."""
    lines = ["127.0.0.1 localhost"]
    lines += [f"127.1.{name}.{ip} many{name}.test" for name in range(MANY_NAMES) for ip in range(1, 33)]
    return "\n".join(lines)


@contextlib.contextmanager
def silent_server() -> Iterator[None]:
    """A DNS server that never answers. Without root there is none, and the names that it has fail at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        with contextlib.suppress(PermissionError):
            server.bind((SILENT_SERVER, 53))
        yield


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
        (directory / "hosts").write_text(many_addresses())
        (directory / "resolv.conf").write_text(f"nameserver {SILENT_SERVER}\n")
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
                raise BenchError("The exit did not start.")
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
        taken: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            others, began = self._others(), time.monotonic()
            self._peer.send(wire.encode_data_header(wire.DATA, 1, 4 * len(taken)) + b"ping")
            self._wait_for(wire.DATA)
            took = time.monotonic() - began
            taken.append(max(0.0, took - self._others() + others))
            self._peer.send(wire.encode_records(wire.ACK, 0, self._peer.received))
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
    parser.add_argument("floods", nargs="*", choices=FLOODS, metavar="FLOOD", help=", ".join(FLOODS))
    parser.add_argument("--tree", type=checkout, default=ROOT)
    parser.add_argument("--seconds", type=positive, default=6.0)
    options = parser.parse_args()
    raise_limit()
    os.sched_setaffinity(0, {OTHER_CORE})
    target = EchoTarget()
    print("rise in ms:      median |      p99 |      max | turn, ms | > 20 ms | gc, ms | MiB | pings")
    for kind in options.floods or FLOODS:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            exit = MeasuredExit(options.tree, directory)
            try:
                pinger = Pinger(exit, target)
                quiet = pinger.pings(2.0)
                exit.figures()
                with silent_server(), flooding(kind, exit, directory):
                    pings = pinger.pings(options.seconds)
                told(kind, pings, quiet, exit)
                pinger.close()
            finally:
                exit.stop()
    print(f"a ping took {1000 * statistics.median(quiet):.2f} ms without a flood (median)")


if __name__ == "__main__":
    sys.exit(run_to_end(main))
